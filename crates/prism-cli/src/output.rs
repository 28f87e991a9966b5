//! Data on standard output: tables for people, proto3 JSON and YAML for programs.

use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width};
use prost::{Message, Name};

use crate::{
    error::{Failure, Result},
    exit::Exit,
    text,
};

/// Form of the data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// Proto3 JSON; streams print one document per line
    Json,
    /// The same as YAML
    Yaml,
    /// Only the token of a new key
    Token,
}

/// Prints data in the format that was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    format: Format,
}

impl Printer {
    /// A printer of that format.
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether programs read the output.
    pub fn is_for_programs(self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    /// Refuses `-o token` where there is no token.
    pub fn refuse_token(self) -> Result<()> {
        match self.format {
            Format::Token => Err(Failure::usage(
                "-o token is for `key create`, `key rotate`, `client-key create` and `token create`",
            )),
            _ => Ok(()),
        }
    }

    /// Prints one message.
    pub fn message<M: Message + Name>(self, message: &M, table: impl FnOnce(&M) -> String) -> Result<()> {
        match self.format {
            Format::Json | Format::Yaml => self.value(&to_json(message)?, String::new),
            Format::Table | Format::Token => write(&table(message)),
        }
    }

    /// Prints an answer that holds nothing for people: what was done is told on standard error.
    pub fn done<M: Message + Name>(self, message: &M) -> Result<()> {
        if self.is_for_programs() { self.message(message, |_| String::new()) } else { Ok(()) }
    }

    /// Prints a listing. Its list and its count are there even when they are empty, so that a program can go through
    /// the one and read the other without asking first; proto3 JSON would leave them out.
    pub fn listing<M: Message + Name>(self, message: &M, items: &str, table: impl FnOnce(&M) -> String) -> Result<()> {
        if !self.is_for_programs() {
            return self.message(message, table);
        }
        let mut json = to_json(message)?;
        if let Some(fields) = json.as_object_mut() {
            fields.entry(items).or_insert_with(|| serde_json::Value::Array(Vec::new()));
            fields.entry("totalCount").or_insert_with(|| 0.into());
        }
        self.value(&json, String::new)
    }

    /// Prints what is not a message of the contract.
    pub fn value(self, json: &serde_json::Value, table: impl FnOnce() -> String) -> Result<()> {
        match self.format {
            Format::Json => {
                let json = serde_json::to_string_pretty(json).map_err(|error| unprintable(&error))?;
                write(&format!("{json}\n"))
            }
            Format::Yaml => write(&serde_norway::to_string(json).map_err(|error| unprintable(&error))?),
            Format::Table | Format::Token => write(&table()),
        }
    }

    /// Prints one message of a stream, as one line of JSON, one YAML document, or the given line.
    pub fn streamed<M: Message + Name>(self, message: &M, line: impl FnOnce(&M) -> String) -> Result<()> {
        match self.format {
            Format::Json => write(&format!("{}\n", to_json(message)?)),
            Format::Yaml => {
                let yaml = serde_norway::to_string(&to_json(message)?).map_err(|error| unprintable(&error))?;
                write(&format!("---\n{yaml}"))
            }
            Format::Table | Format::Token => write(&format!("{}\n", text::safe(&line(message)))),
        }
    }

    /// Prints the answer to the creation of a key: everything, or with `-o token` the token alone.
    pub fn secret<M: Message + Name>(self, message: &M, token: &str, table: impl FnOnce(&M) -> String) -> Result<()> {
        if self.format == Format::Token { write(&format!("{token}\n")) } else { self.message(message, table) }
    }
}

/// Writes text to standard output at once.
pub fn write(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
}

/// Tells the reader something that is not data.
pub fn note(text: &str) {
    // With standard error closed there is nobody left to tell.
    let _ = writeln!(io::stderr().lock(), "{}", text::safe(text));
}

/// Rows under a header.
pub struct Grid {
    table: Table,
    /// For each column, whether its text is folded where the terminal is narrow.
    folds: Vec<bool>,
}

/// Columns of sentences are folded to no less than this; shorter text and names, which people copy, are never folded.
const FOLDED: u16 = 24;

impl Grid {
    /// A grid with these columns.
    pub fn new<const N: usize>(header: [&str; N]) -> Self {
        Self::build(Some(header.to_vec()))
    }

    /// Labels and values of one thing.
    pub fn sheet() -> Self {
        Self::build(None)
    }

    /// Adds a row.
    pub fn row<const N: usize>(mut self, cells: [String; N]) -> Self {
        self.folds.resize(N, false);
        for (folds, cell) in self.folds.iter_mut().zip(&cells) {
            *folds |= cell.contains(' ') && cell.chars().count() > usize::from(FOLDED);
        }
        self.table.add_row(cells.map(|cell| text::safe(&cell)).to_vec());
        self
    }

    /// Adds a label and its value.
    pub fn field(self, label: &str, value: impl Into<String>) -> Self {
        self.row([format!("{label}:"), value.into()])
    }

    /// The text, one line per row, without trailing blanks.
    pub fn render(mut self, when_empty: &str) -> String {
        if self.table.is_empty() {
            return format!("{when_empty}\n");
        }
        // Fitted to a terminal; scripts get one line per row however long.
        if io::stdout().is_terminal() {
            self.table.set_content_arrangement(ContentArrangement::Dynamic);
        } else {
            self.table.force_no_tty();
            self.table.set_content_arrangement(ContentArrangement::Disabled);
        }
        for (column, folds) in self.table.column_iter_mut().zip(&self.folds) {
            column.set_padding((0, 2));
            column.set_constraint(if *folds {
                ColumnConstraint::LowerBoundary(Width::Fixed(FOLDED))
            } else {
                ColumnConstraint::ContentWidth
            });
        }
        let mut out = String::new();
        for line in self.table.lines() {
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    fn build(header: Option<Vec<&str>>) -> Self {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        if let Some(header) = header {
            table.set_header(header);
        }
        Self { table, folds: Vec::new() }
    }
}

fn to_json<M: Message + Name>(message: &M) -> Result<serde_json::Value> {
    prism_proto::message_to_json(message).map_err(|error| unprintable(&error))
}

fn unprintable(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("the answer cannot be printed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_align_and_escape() {
        let text = Grid::new(["NAME", "STATUS"])
            .row(["a".to_owned(), "active".to_owned()])
            .row(["longer\u{1b}".to_owned(), "x".to_owned()])
            .render("none");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0].find("STATUS"), lines[1].find("active"), "{text}");
        assert!(lines[2].contains("longer\\u{1b}"), "{text}");
        assert!(lines.iter().all(|line| !line.ends_with(' ')), "{text:?}");
    }

    #[test]
    fn sheets_have_one_line_per_field() {
        assert_eq!(Grid::sheet().field("name", "a").field("status", "active").render("none").lines().count(), 2);
    }

    #[test]
    fn an_empty_grid_says_so() {
        assert_eq!(Grid::new(["NAME"]).render("no namespaces"), "no namespaces\n");
    }

    #[test]
    fn tokens_are_for_new_keys_only() {
        assert!(Printer::new(Format::Token).refuse_token().is_err());
        assert!(Printer::new(Format::Json).refuse_token().is_ok());
    }
}
