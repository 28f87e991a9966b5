//! Keyset pages (contract §8 "lists").

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::{Error, Result};

/// Page size when a request asks for 0.
pub const DEFAULT_PAGE_SIZE: usize = 50;
/// Largest page; a larger `page_size` is taken as this.
pub const MAX_PAGE_SIZE: usize = 1000;
/// Longest page token accepted, in bytes; a key of 4 KiB fits.
pub const MAX_PAGE_TOKEN_BYTES: usize = 8192;

/// One page of a list: how many rows, and after which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// 1 to [`MAX_PAGE_SIZE`].
    pub size: usize,
    /// The last key of the page before; `None` on the first page.
    pub after: Option<String>,
    fingerprint: [u8; 8],
}

impl Page {
    /// Parses `page_size` and `page_token` of a list whose filter is `filter` (any stable text of the list and its filter).
    ///
    /// INVALID_ARGUMENT when the size is negative, the token malformed, or made for another filter.
    pub fn parse(filter: &str, page_size: i32, page_token: Option<&str>) -> Result<Self> {
        let size = match usize::try_from(page_size) {
            Err(_) => Err(Error::invalid("page_size", "must not be negative; 0 means 50, more than 1000 means 1000")),
            Ok(0) => Ok(DEFAULT_PAGE_SIZE),
            Ok(size) => Ok(size.min(MAX_PAGE_SIZE)),
        };
        let fingerprint = fingerprint(filter);
        let after = match page_token {
            None | Some("") => Ok(None),
            Some(token) => open(token, fingerprint).map(Some),
        };
        match (size, after) {
            (Ok(size), Ok(after)) => Ok(Self { size, after, fingerprint }),
            (Err(size), Err(after)) => Err(Error::invalid_fields([size.fields(), after.fields()].concat())),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    /// The token that continues after `key`.
    pub fn token_after(&self, key: &str) -> String {
        let mut body = Vec::with_capacity(8 + key.len());
        body.extend_from_slice(&self.fingerprint);
        body.extend_from_slice(key.as_bytes());
        URL_SAFE_NO_PAD.encode(body)
    }

    /// Cuts `rows`, fetched with a limit of `size + 1`, to the page, and gives the token of the next one.
    pub fn cut<T>(&self, rows: &mut Vec<T>, key: impl Fn(&T) -> String) -> Option<String> {
        if rows.len() <= self.size {
            return None;
        }
        rows.truncate(self.size);
        rows.last().map(|last| self.token_after(&key(last)))
    }
}

fn open(token: &str, expected: [u8; 8]) -> Result<String> {
    let malformed = || Error::invalid("page_token", "is not a token of this list; start again without one");
    if token.len() > MAX_PAGE_TOKEN_BYTES {
        return Err(malformed());
    }
    let body = URL_SAFE_NO_PAD.decode(token).map_err(|_| malformed())?;
    let (fingerprint, key) = body.split_at_checked(8).ok_or_else(malformed)?;
    if fingerprint != expected {
        return Err(Error::invalid(
            "page_token",
            "belongs to another list or filter; repeat the filter it was made with, or start again without it",
        ));
    }
    String::from_utf8(key.to_vec()).map_err(|_| malformed())
}

fn fingerprint(filter: &str) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(&digest::digest(&digest::SHA256, filter.as_bytes()).as_ref()[..8]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_have_their_bounds() {
        assert!(Page::parse("x", -1, None).is_err());
        assert_eq!(Page::parse("x", 0, None).unwrap().size, 50);
        assert_eq!(Page::parse("x", 1001, None).unwrap().size, 1000);
    }

    proptest! {
        #[test]
        fn pages_neither_lose_nor_repeat(count in 0usize..300, size in 1i32..60) {
            let all: Vec<String> = (0..count).map(|n| format!("k{n:05}")).collect();
            let (mut seen, mut token) = (Vec::new(), None);
            loop {
                let page = Page::parse("list", size, token.as_deref()).unwrap();
                let mut rows: Vec<String> = all.iter()
                    .filter(|key| page.after.as_ref().is_none_or(|after| *key > after))
                    .take(page.size + 1).cloned().collect();
                token = page.cut(&mut rows, Clone::clone);
                seen.append(&mut rows);
                if token.is_none() { break; }
            }
            prop_assert_eq!(seen, all);
        }

        #[test]
        fn a_token_is_refused_with_another_filter(key in ".{0,40}", token in ".{0,60}") {
            let made = Page::parse("a", 1, None).unwrap().token_after(&key);
            prop_assert_eq!(Page::parse("a", 1, Some(&made)).unwrap().after, Some(key));
            prop_assert!(Page::parse("b", 1, Some(&made)).is_err());
            let _ = Page::parse("a", 1, Some(&token));
        }
    }
}
