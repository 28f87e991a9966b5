use prism_core::config::is_table_name;

use super::tokens::{Statement, Token};

/// What a schema may contain, for messages.
const ALLOWED: &str =
    "only CREATE TABLE IF NOT EXISTS name (…) and CREATE [UNIQUE] INDEX IF NOT EXISTS name ON table (…) are allowed";
/// Most random bytes of one default value.
const MAX_RANDOM_BYTES: u32 = 64;

/// Checks one statement by its tokens; the message says what is wrong. Whether it is good SQL is for SQLite to say.
pub(super) fn check(statement: &Statement<'_>) -> Result<(), String> {
    let tokens = &statement.tokens;
    let body = head(tokens)?;
    for token in tokens {
        if let Some(name) = token.name() {
            let lower = name.trim_start().to_ascii_lowercase();
            if lower.starts_with("_prism") || lower.starts_with("sqlite_") {
                return Err(format!("{name:?} is a reserved name"));
            }
        }
    }
    let mut depth = 0;
    for (index, token) in body.iter().enumerate() {
        match token {
            Token::Symbol('(') => depth += 1,
            Token::Symbol(')') => depth -= 1,
            token if token.is("AS") && depth < 2 => return Err("generated columns are not allowed".to_owned()),
            // A deferred violation would surface only at the group commit, and take other writes down with it.
            token if token.is("DEFERRED") => return Err("foreign keys must be checked at once, not deferred".to_owned()),
            token if token.is("ON") => check_action(body.get(index + 1..).unwrap_or_default())?,
            token => check_function(token, body.get(index + 1..).unwrap_or_default())?,
        }
    }
    Ok(())
}

/// Proves how the statement begins, and returns what follows the name it defines or indexes.
fn head<'a, 't>(tokens: &'a [Token<'t>]) -> Result<&'a [Token<'t>], String> {
    let refused = || ALLOWED.to_owned();
    let rest = keywords(tokens, &["CREATE"]).ok_or_else(refused)?;
    let body = if let Some(rest) = keywords(rest, &["TABLE", "IF", "NOT", "EXISTS"]) {
        name(rest)?
    } else {
        let rest = keywords(rest, &["UNIQUE"]).unwrap_or(rest);
        let rest = keywords(rest, &["INDEX", "IF", "NOT", "EXISTS"]).ok_or_else(refused)?;
        name(keywords(name(rest)?, &["ON"]).ok_or_else(refused)?)?
    };
    // Not `.`, which would make the name that of a database, and not AS SELECT.
    if body.first() == Some(&Token::Symbol('(')) { Ok(body) } else { Err(refused()) }
}

fn keywords<'a, 't>(tokens: &'a [Token<'t>], wanted: &[&str]) -> Option<&'a [Token<'t>]> {
    let (found, rest) = tokens.split_at_checked(wanted.len())?;
    found.iter().zip(wanted).all(|(token, keyword)| token.is(keyword)).then_some(rest)
}

fn name<'a, 't>(tokens: &'a [Token<'t>]) -> Result<&'a [Token<'t>], String> {
    let (first, rest) = tokens.split_first().ok_or_else(|| ALLOWED.to_owned())?;
    match first.name() {
        Some(name) if is_table_name(name) && !name.contains('.') => Ok(rest),
        Some(name) => Err(format!("{name:?} is not allowed as a name; names are of letters, digits and '_'")),
        None => Err(ALLOWED.to_owned()),
    }
}

/// A write changes the row it names and no other: else neither `rows_affected` nor the bytes stored would be true.
fn check_action(behind_on: &[Token<'_>]) -> Result<(), String> {
    let at = |index: usize, keyword: &str| behind_on.get(index).is_some_and(|token| token.is(keyword));
    if at(0, "CONFLICT") {
        return Err("ON CONFLICT is not allowed; the mode of a write says what happens to duplicates".to_owned());
    }
    if (at(0, "DELETE") || at(0, "UPDATE")) && (at(1, "CASCADE") || at(1, "SET")) {
        return Err(
            "foreign keys may only restrict: neither CASCADE nor SET NULL nor SET DEFAULT is allowed".to_owned()
        );
    }
    Ok(())
}

/// `hex(randomblob(16))` is how SQLite makes ids, but both can make any number of bytes.
fn check_function(token: &Token<'_>, behind: &[Token<'_>]) -> Result<(), String> {
    let name = token.name().unwrap_or_default().to_ascii_lowercase();
    if behind.first() != Some(&Token::Symbol('(')) {
        return Ok(());
    }
    let argument = behind.get(1);
    match name.as_str() {
        "randomblob" => match (argument, behind.get(2)) {
            (Some(Token::Number(count)), Some(Token::Symbol(')')))
                if count.parse::<u32>().is_ok_and(|count| count <= MAX_RANDOM_BYTES) =>
            {
                Ok(())
            }
            _ => Err(format!("randomblob takes a number up to {MAX_RANDOM_BYTES} here")),
        },
        "hex" if !argument.is_some_and(|argument| argument.is("randomblob")) => {
            Err("hex takes randomblob(…) only here".to_owned())
        }
        _ => Ok(()),
    }
}
