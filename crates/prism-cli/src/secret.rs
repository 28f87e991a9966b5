//! What must not be seen: tokens and client secrets.

use std::{fmt, fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Failure, Result},
    output::note,
    private_file,
};

/// No credential of Prism or of an issuer comes near this; a larger file is the wrong file.
const LONGEST_FILE: u64 = 64 * 1024;

/// A text that no log, error or debug output shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes a text without the blanks around it; `from` names its source in the failure.
    pub fn parse(text: &str, from: &str) -> Result<Self> {
        let word = text.trim();
        if word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failure::usage(format!("{from} does not hold a token"))
                .hint("a token is one word of printable ASCII, such as prx_…"));
        }
        Ok(Self(word.to_owned()))
    }

    /// Takes a client's secret at an issuer, which may hold blanks, but not at the end of its line.
    pub fn parse_client(text: &str, from: &str) -> Result<Self> {
        let line = text.trim_end();
        if line.is_empty() || line.chars().any(char::is_control) {
            return Err(
                Failure::usage(format!("{from} does not hold a client's secret")).hint("it is one line of text")
            );
        }
        Ok(Self(line.to_owned()))
    }

    /// Reads a token from a file, and warns if others can read it too.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&read(path, "token")?, &path.display().to_string())
    }

    /// Reads a client's secret from a file, and warns if others can read it too.
    pub fn read_client(path: &Path) -> Result<Self> {
        Self::parse_client(&read(path, "client's secret")?, &path.display().to_string())
    }

    /// The secret itself, for the wire and for private files.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

fn read(path: &Path, what: &str) -> Result<String> {
    let failed = |error: std::io::Error| {
        Failure::usage(format!("cannot read the {what} in {}: {error}", path.display()))
            .hint("run as the user who owns it, or name another file")
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.len() > LONGEST_FILE {
        return Err(Failure::usage(format!("{} is too large to hold a {what}", path.display())));
    }
    if private_file::is_open_to_others(&metadata) {
        note(&format!("warning: others can read {}; `chmod 600` it", path.display()));
    }
    fs::read_to_string(path).map_err(failed)
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_one_word_and_hidden() {
        let secret = Secret::parse(" prx_a \n", "f").unwrap();
        assert_eq!(secret.reveal(), "prx_a");
        assert!(!format!("{secret:?}").contains("prx_a"));
        for bad in ["", "  \n", "two words", "ünï", "a\u{0}b"] {
            let text = Secret::parse(bad, "f").unwrap_err().to_string();
            assert!(text.contains("f does not hold a token"), "{bad:?}: {text}");
        }
        assert_eq!(Secret::parse_client("two wörds\n", "f").unwrap().reveal(), "two wörds");
        for bad in ["", "\n", "two\nlines", "a\u{0}"] {
            assert!(Secret::parse_client(bad, "f").is_err(), "{bad:?}");
        }
    }
}
