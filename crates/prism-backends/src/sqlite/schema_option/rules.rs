use prism_core::config::is_table_name;

use super::tokens::{Statement, Token};

/// What a schema may contain, for messages.
const ALLOWED: &str =
    "only CREATE TABLE IF NOT EXISTS name (…) and CREATE [UNIQUE] INDEX IF NOT EXISTS name ON table (…) are allowed";
/// Operators that take time in proportion to the product of their operands.
const MATCHERS: [&str; 4] = ["LIKE", "GLOB", "REGEXP", "MATCH"];
/// Words of expressions that cannot be names.
const OPERATORS: [&str; 11] = ["AND", "OR", "NOT", "NULL", "IS", "IN", "BETWEEN", "CASE", "WHEN", "THEN", "ELSE"];
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
    // The depth that a DEFAULT is at; within it all is constant, and so no larger than the schema.
    let mut constant = None;
    for (index, token) in body.iter().enumerate() {
        let behind = body.get(index + 1..).unwrap_or_default();
        match token {
            Token::Symbol('(') => depth += 1,
            Token::Symbol(')') => {
                depth -= 1;
                constant = constant.filter(|at| *at < depth);
            }
            Token::Symbol('|') if constant.is_none() && behind.first() == Some(&Token::Symbol('|')) => {
                return Err("|| is allowed in DEFAULT only".to_owned());
            }
            token if token.is("DEFAULT") && behind.first() == Some(&Token::Symbol('(')) => constant = Some(depth),
            token if MATCHERS.iter().any(|matcher| token.is(matcher)) => {
                return Err("LIKE, GLOB, REGEXP and MATCH are not allowed".to_owned());
            }
            token if token.is("AS") && depth < 2 => return Err("generated columns are not allowed".to_owned()),
            // A deferred violation would surface only at the group commit, and take other writes down with it.
            token if token.is("DEFERRED") => {
                return Err("foreign keys must be checked at once, not deferred".to_owned());
            }
            token if token.is("ON") => check_action(behind)?,
            token => check_function(token, behind, constant.is_some())?,
        }
    }
    Ok(())
}

/// How many columns and functions the expressions of a statement name that are worked out for every row: CHECKs, and
/// whatever an index says.
pub(super) fn operands(tokens: &[Token<'_>]) -> usize {
    let index = !tokens.iter().take(2).any(|token| token.is("TABLE"));
    let (mut depth, mut check, mut count) = (0, None, 0);
    for token in tokens {
        match token {
            Token::Symbol('(') => depth += 1,
            Token::Symbol(')') => {
                depth -= 1;
                check = check.filter(|at| *at < depth);
            }
            token if token.is("CHECK") => check = Some(depth),
            Token::Word(word) if OPERATORS.iter().any(|operator| word.eq_ignore_ascii_case(operator)) => {}
            Token::Word(_) | Token::Quoted(_) if depth > 0 && (index || check.is_some()) => count += 1,
            _ => {}
        }
    }
    count
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

/// `hex(randomblob(16))` is how SQLite makes ids, but both can make any number of bytes; so can a format of `strftime` that a
/// row gives. Functions that search take time in proportion to the product of their arguments.
fn check_function(token: &Token<'_>, behind: &[Token<'_>], constant: bool) -> Result<(), String> {
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
        "strftime" if !constant => Err("strftime is allowed in DEFAULT only".to_owned()),
        "instr" | "like" | "glob" => Err(format!("{name} is not allowed")),
        "trim" | "ltrim" | "rtrim" if has_two_arguments(behind) => Err(format!("{name} takes one argument only here")),
        _ => Ok(()),
    }
}

/// Whether there is a comma between the parenthesis that `behind` begins with and its counterpart.
fn has_two_arguments(behind: &[Token<'_>]) -> bool {
    let mut depth = 0;
    for token in behind {
        match token {
            Token::Symbol('(') => depth += 1,
            Token::Symbol(')') => depth -= 1,
            Token::Symbol(',') if depth == 1 => return true,
            _ => {}
        }
        if depth == 0 {
            return false;
        }
    }
    false
}
