//! The count of what ran: one number over every test binary and every check.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

/// How many tests and checks passed, failed and were left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Summary {
    /// Counts one check, and says in one line how it went.
    pub fn check(&mut self, name: &str, outcome: anyhow::Result<()>) {
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("check {name} ... ok");
            }
            Err(error) => {
                self.failed += 1;
                println!("check {name} ... FAILED: {error:#}");
            }
        }
    }

    /// Counts what one line of cargo's output reports, if it is the closing line of a test binary.
    pub fn read(&mut self, line: &str) {
        let Some((_, counts)) = line.trim().strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        for part in counts.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }

    /// Success when nothing failed, and something ran.
    pub fn exit_code(self) -> ExitCode {
        if self.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// How many failed so far.
    pub fn failed(self) -> u64 {
        self.failed
    }

    /// Writes the closing line to a file, for a caller that prints more afterwards.
    pub fn write(self, file: &Path) -> anyhow::Result<()> {
        std::fs::write(file, format!("{self}\n")).with_context(|| format!("{} cannot be written", file.display()))
    }

    fn is_good(self) -> bool {
        self.failed == 0 && self.passed > 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(formatter, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_add_up_and_nothing_else_counts() {
        let mut summary = Summary::default();
        summary.read("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s");
        summary
            .read("test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s");
        summary.read("running 9 tests");
        summary.read("test said \"9 passed\" ... ok");
        assert_eq!(summary, Summary { passed: 7, failed: 2, skipped: 1 });
        assert_eq!(summary.to_string(), "7 passed, 2 failed, 1 skipped");
        assert!(!summary.is_good());
    }

    #[test]
    fn a_run_of_no_test_is_not_good() {
        assert!(!Summary::default().is_good());
    }
}
