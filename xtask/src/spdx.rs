//! Licence expressions, as far as `Cargo.toml` files use them: OR, AND, WITH, parentheses, and the old `/` for OR.

use std::iter::Peekable;
use std::vec::IntoIter;

/// Whether an expression can be met with the allowed licences alone. An expression that does not parse cannot.
pub fn is_met(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<String> = spaced.split_whitespace().map(str::to_owned).collect();
    let mut words = words.into_iter().peekable();
    let met = any(&mut words, allowed);
    met == Some(true) && words.next().is_none()
}

type Words = Peekable<IntoIter<String>>;

fn any(words: &mut Words, allowed: &[&str]) -> Option<bool> {
    let mut met = every(words, allowed)?;
    while words.next_if(|word| word == "OR").is_some() {
        met |= every(words, allowed)?;
    }
    Some(met)
}

fn every(words: &mut Words, allowed: &[&str]) -> Option<bool> {
    let mut met = one(words, allowed)?;
    while words.next_if(|word| word == "AND").is_some() {
        met &= one(words, allowed)?;
    }
    Some(met)
}

fn one(words: &mut Words, allowed: &[&str]) -> Option<bool> {
    let word = words.next()?;
    if word == "(" {
        let met = any(words, allowed)?;
        return words.next_if(|word| word == ")").map(|_| met);
    }
    let mut licence = word;
    if words.next_if(|word| word == "WITH").is_some() {
        licence = format!("{licence} WITH {}", words.next()?);
    }
    Some(allowed.contains(&licence.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: &[&str] = &["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "ISC"];

    #[test]
    fn one_of_several_is_enough_and_all_of_several_are_needed() {
        for met in [
            "MIT",
            "GPL-3.0 OR MIT",
            "MIT/Apache-2.0",
            "Apache-2.0 / GPL-3.0",
            "ISC AND (Apache-2.0 OR GPL-3.0)",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
        ] {
            assert!(is_met(met, ALLOWED), "{met}");
        }
        for unmet in [
            "",
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "(MIT OR ISC) AND GPL-3.0",
            "GPL-2.0 WITH Classpath-exception-2.0",
            "MIT OR",
            "(MIT",
            "MIT)",
            "MIT GPL-3.0",
        ] {
            assert!(!is_met(unmet, ALLOWED), "{unmet}");
        }
    }
}
