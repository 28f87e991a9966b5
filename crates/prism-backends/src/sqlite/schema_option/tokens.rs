/// A token of SQL, as far as a schema needs telling them apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A keyword or a bare name.
    Word(&'a str),
    /// A name in `"…"`, `` `…` `` or `[…]`.
    Quoted(String),
    /// A string. SQLite takes it for a name where it wants one, but never within an expression.
    Text(String),
    /// A number.
    Number(&'a str),
    /// Anything else of one character.
    Symbol(char),
}

impl Token<'_> {
    /// Whether it is this keyword.
    pub(super) fn is(&self, keyword: &str) -> bool {
        matches!(self, Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    /// What it names, if it can be a name.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Token::Word(word) => Some(word),
            Token::Quoted(text) | Token::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// One statement without its `;`.
#[derive(Debug)]
pub(super) struct Statement<'a> {
    pub(super) sql: &'a str,
    pub(super) tokens: Vec<Token<'a>>,
}

/// Symbols that a table definition or an index expression can need. Parameters (`?`, `:`, `@`, `$`, `#`) are not among them.
const SYMBOLS: &str = "(),.+-*/%<>=!|&~";

/// Splits a script into statements, comments left out; empty statements do not count. The message says what is wrong.
///
/// Stricter than SQLite, so that both never disagree about where a token ends: outside of quotes and comments there is
/// only ASCII (SQLite skips a byte order mark anywhere), and whatever is opened is closed.
pub(super) fn statements(script: &str) -> Result<Vec<Statement<'_>>, String> {
    if script.contains('\0') {
        return Err("contains a zero byte".to_owned());
    }
    let mut scanner = Scanner { script, at: 0 };
    let (mut statements, mut tokens, mut begin) = (Vec::new(), Vec::new(), 0);
    loop {
        scanner.skip_blank()?;
        if tokens.is_empty() {
            begin = scanner.at;
        }
        let end = scanner.at;
        let token = scanner.token()?;
        if matches!(token, None | Some(Token::Symbol(';'))) {
            if !tokens.is_empty() {
                let sql = script.get(begin..end).unwrap_or_default();
                statements.push(Statement { sql, tokens: std::mem::take(&mut tokens) });
            }
            if token.is_none() {
                return Ok(statements);
            }
        } else {
            tokens.extend(token);
        }
    }
}

struct Scanner<'a> {
    script: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        self.script.get(self.at..).unwrap_or_default()
    }

    /// Takes as many characters as `belongs` accepts.
    fn take(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let taken = rest.split(|c| !belongs(c)).next().unwrap_or_default();
        self.at += taken.len();
        taken
    }

    /// Goes on behind the next `end`.
    fn skip_behind(&mut self, end: &str, what: &str) -> Result<(), String> {
        let length = self.rest().find(end).ok_or_else(|| format!("{what} is not closed"))?;
        self.at += length + end.len();
        Ok(())
    }

    fn skip_blank(&mut self) -> Result<(), String> {
        loop {
            self.take(|c| matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0c'));
            if self.rest().starts_with("--") {
                self.take(|c| c != '\n');
            } else if self.rest().starts_with("/*") {
                self.at += 2;
                self.skip_behind("*/", "a comment")?;
            } else {
                return Ok(());
            }
        }
    }

    fn token(&mut self) -> Result<Option<Token<'a>>, String> {
        let Some(first) = self.rest().chars().next() else { return Ok(None) };
        let in_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        Ok(Some(match first {
            'a'..='z' | 'A'..='Z' | '_' => Token::Word(self.take(in_word)),
            '0'..='9' => Token::Number(self.take(in_word)),
            '"' | '`' => Token::Quoted(self.quoted(first)?),
            '\'' => Token::Text(self.quoted(first)?),
            '[' => {
                let begin = self.at + 1;
                self.skip_behind("]", "a name in brackets")?;
                Token::Quoted(self.script.get(begin..self.at - 1).unwrap_or_default().to_owned())
            }
            ';' => {
                self.at += 1;
                Token::Symbol(first)
            }
            _ if SYMBOLS.contains(first) => {
                self.at += 1;
                Token::Symbol(first)
            }
            _ => return Err(format!("has {first:?} outside of quotes")),
        }))
    }

    /// Quotes within quotes are doubled.
    fn quoted(&mut self, quote: char) -> Result<String, String> {
        let mut text = String::new();
        self.at += 1;
        loop {
            text.push_str(self.take(|c| c != quote));
            let rest = self.rest();
            if rest.is_empty() {
                return Err(format!("a text in {quote} is not closed"));
            }
            self.at += 1;
            if !self.rest().starts_with(quote) {
                return Ok(text);
            }
            text.push(quote);
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_at_semicolons_that_are_not_quoted() {
        let script = "a ';' -- ;\n b; /* ; */ ; [x;y] \"p\"\"q\" 1e5";
        let statements = statements(script).unwrap();
        assert_eq!(statements.len(), 2);
        assert_eq!(statements[0].tokens, [Token::Word("a"), Token::Text(";".to_owned()), Token::Word("b")]);
        assert_eq!(statements[0].sql, "a ';' -- ;\n b");
        let second = [Token::Quoted("x;y".to_owned()), Token::Quoted("p\"q".to_owned()), Token::Number("1e5")];
        assert_eq!(statements[1].tokens, second);
    }

    #[test]
    fn what_sqlite_could_read_otherwise_is_refused() {
        for bad in
            ["'a", "\"a", "[a", "/* a", "a\0", "\u{feff}a", "ä", "?1", ":a", "@a", "$a", "#1", "a\u{a0}b", "\x0ba"]
        {
            assert!(statements(bad).is_err(), "{bad:?}");
        }
    }
}
