//! What `cargo test` prints: passed on as it comes, without the blocks that have no test, and counted.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{BufRead, Write};

use anyhow::{Context as _, Result};

/// The first line of a block in which no test ran. It ends with the block's result.
const EMPTY: &str = "running 0 tests";
const RESULT: &str = "test result: ";
const FAILURES: &str = "failures:";

/// What all test programs said together.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Test programs that came to their end.
    pub(crate) programs: u32,
    pub(crate) passed: u32,
    pub(crate) ignored: u32,
    /// Names of the tests that failed.
    pub(crate) failed: BTreeSet<String>,
}

impl Outcome {
    /// How many tests there were, passed or not.
    pub(crate) fn tests(&self) -> usize {
        self.failed.len() + (self.passed + self.ignored) as usize
    }

    /// Reads what test programs print, and passes on what tells something.
    ///
    /// Nobody needs to listen: the tests are to come to their end, and to clean up, all the same.
    pub(crate) fn read(mut from: impl BufRead, mut to: impl Write) -> Result<Self> {
        let mut outcome = Self::default();
        let (mut line, mut names) = (Vec::new(), BTreeSet::new());
        let (mut empty, mut after_empty, mut listing) = (false, false, false);
        loop {
            line.clear();
            // Tests may print anything: not each line is UTF-8.
            if from
                .read_until(b'\n', &mut line)
                .context("read what the tests print")?
                == 0
            {
                return Ok(outcome);
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\n', '\r']);
            if text == EMPTY {
                (empty, after_empty) = (true, false);
            } else if text == FAILURES {
                // The first such list has what the tests printed, the last their names.
                (listing, names) = (true, BTreeSet::new());
            } else if let Some(result) = text.strip_prefix(RESULT) {
                outcome.programs += 1;
                outcome.passed += count(result, "passed");
                outcome.ignored += count(result, "ignored");
                outcome.failed.append(&mut names);
                listing = false;
            } else if let Some(name) = text.strip_prefix("    ").filter(|_| listing) {
                names.insert(name.to_owned());
            }
            let blank = text.is_empty();
            if !(empty || after_empty && blank) {
                let _unheard = to.write_all(&line).and_then(|()| to.flush());
                after_empty = false;
            }
            if empty && text.starts_with(RESULT) {
                (empty, after_empty) = (false, true);
            }
        }
    }
}

/// `ok. 12 passed; 0 failed; ..` -> 12
fn count(result: &str, what: &str) -> u32 {
    result
        .split([';', '.'])
        .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
        .unwrap_or(0)
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, ", self.passed)?;
        if !self.failed.is_empty() {
            write!(f, "{} failed, ", self.failed.len())?;
        }
        write!(f, "{} ignored", self.ignored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\nrunning 2 tests\ntest a ... ok\ntest b ... ignored\n\n\
        test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s\n\n";
    const NONE: &str = "\nrunning 0 tests\n\n\
        test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\n";
    const BAD: &str = "\nrunning 2 tests\ntest c::d ... FAILED\ntest e ... ok\n\nfailures:\n\n\
        ---- c::d stdout ----\n    not a name\n\n\nfailures:\n    c::d\n\n\
        test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\n";

    fn read(text: &str) -> Result<(Outcome, String)> {
        let mut shown = Vec::new();
        let outcome = Outcome::read(text.as_bytes(), &mut shown)?;
        Ok((outcome, String::from_utf8(shown)?))
    }

    #[test]
    fn all_programs_are_counted_and_failed_tests_named() -> Result<()> {
        let (outcome, shown) = read(&[GOOD, BAD].concat())?;
        assert_eq!(outcome.to_string(), "2 passed, 1 failed, 1 ignored");
        assert_eq!(outcome.failed, BTreeSet::from(["c::d".to_owned()]));
        assert_eq!((outcome.programs, outcome.tests()), (2, 4));
        assert_eq!(shown, [GOOD, BAD].concat());
        Ok(())
    }

    #[test]
    fn blocks_without_a_test_are_counted_but_not_shown() -> Result<()> {
        let (outcome, shown) = read(&[NONE, GOOD, NONE, NONE].concat())?;
        assert_eq!(outcome.to_string(), "1 passed, 1 ignored");
        assert_eq!(outcome.programs, 4);
        assert!(
            !shown.contains("running 0") && !shown.contains("ok. 0"),
            "{shown}"
        );
        assert!(
            shown.contains("test a ... ok\n") && shown.contains("ok. 1 passed"),
            "{shown}"
        );
        Ok(())
    }

    #[test]
    fn what_is_no_test_program_is_passed_on() -> Result<()> {
        let (outcome, shown) = read("a: test\n\n1 test, 0 benchmarks\n")?;
        assert_eq!(outcome, Outcome::default());
        assert_eq!(shown, "a: test\n\n1 test, 0 benchmarks\n");
        Ok(())
    }
}
