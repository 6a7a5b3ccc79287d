//! What a command prints: JSON, or text for people. Text is aligned; on a terminal it is also
//! coloured and kept within the width. What others named (policies, commands) cannot control the
//! terminal.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write};

use anyhow::Context;
use serde::Serialize;

/// Width of text when the terminal does not tell its own, columns.
const WIDTH: usize = 80;

/// Least width of a last column, columns.
const LEAST: usize = 24;

/// Spaces between columns.
const GAP: usize = 2;

/// How a piece of text looks on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    Heading,
    Good,
    Bad,
    Warning,
}

impl Look {
    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Heading => Some("1"),
            Self::Good => Some("32"),
            Self::Bad => Some("31"),
            Self::Warning => Some("33"),
        }
    }
}

/// A piece of a table.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    look: Look,
}

impl Cell {
    pub(super) fn new(text: &str, look: Look) -> Self {
        Self {
            text: clean(text),
            look,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text, Look::Plain)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(&text, Look::Plain)
    }
}

/// Text for people, put together and then printed at once.
#[derive(Debug)]
pub(super) struct Page {
    text: String,
    colour: bool,
    /// Where to wrap, if at all.
    width: Option<usize>,
}

impl Page {
    /// A page for standard output.
    pub(super) fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Self {
            text: String::new(),
            colour: terminal && !plain,
            width: terminal.then(terminal_width),
        }
    }

    /// An empty line, unless the page is empty.
    pub(super) fn gap(&mut self) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
    }

    /// One line or, on a terminal, as many as it takes.
    pub(super) fn line(&mut self, text: &str, look: Look) {
        for line in wrap(&clean(text), self.width) {
            self.paint(&line, look);
            self.text.push('\n');
        }
    }

    /// Rows of a name and what there is to say of it.
    pub(super) fn facts(&mut self, rows: Vec<(&str, Cell)>) {
        let rows = rows
            .into_iter()
            .filter(|(_, cell)| !cell.text.is_empty())
            .map(|(name, cell)| vec![Cell::new(name, Look::Heading), cell]);
        self.rows(&rows.collect::<Vec<_>>());
    }

    /// A table. Its last column takes what width is left.
    pub(super) fn table(&mut self, headings: &[&str], mut rows: Vec<Vec<Cell>>) {
        rows.insert(
            0,
            headings
                .iter()
                .map(|h| Cell::new(h, Look::Heading))
                .collect(),
        );
        self.rows(&rows);
    }

    fn rows(&mut self, rows: &[Vec<Cell>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|c| {
                rows.iter()
                    .filter_map(|r| r.get(c))
                    .map(|c| length(&c.text))
                    .max()
            })
            .map(|width| width.unwrap_or(0))
            .collect();
        let indent: usize = widths.iter().rev().skip(1).map(|width| width + GAP).sum();
        let left = self
            .width
            .map(|width| width.saturating_sub(indent).max(LEAST));
        for row in rows {
            let Some((last, first)) = row.split_last() else {
                continue;
            };
            for (cell, width) in first.iter().zip(&widths) {
                self.paint(&cell.text, cell.look);
                let pad = width + GAP - length(&cell.text);
                self.text.extend(std::iter::repeat_n(' ', pad));
            }
            let mut lines = wrap(&last.text, left).into_iter();
            if let Some(line) = lines.next().filter(|line| !line.is_empty()) {
                self.paint(&line, last.look);
            } else {
                self.text.truncate(self.text.trim_end_matches(' ').len());
            }
            self.text.push('\n');
            for line in lines {
                self.text.extend(std::iter::repeat_n(' ', indent));
                self.paint(&line, last.look);
                self.text.push('\n');
            }
        }
    }

    fn paint(&mut self, text: &str, look: Look) {
        match look.code().filter(|_| self.colour) {
            // Writing to a string does not fail.
            Some(code) => drop(write!(self.text, "\x1b[{code}m{text}\x1b[0m")),
            None => self.text.push_str(text),
        }
    }

    /// Prints the page.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn print(&self) -> anyhow::Result<()> {
        write_out(&self.text)
    }
}

/// Prints a JSON document. Keys are sorted, as `serde_json` keeps them.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let value = serde_json::to_value(value).context("put the answer into JSON")?;
    write_out(&format!("{value:#}\n"))
}

fn write_out(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Who reads has seen enough: `steer status | head -1`.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write to standard output"),
    }
}

/// The text with everything spelled out that would control a terminal: control characters, and
/// those that reorder what is read (Unicode TR 36, section 2.1).
pub fn clean(text: &str) -> String {
    let hostile = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if hostile(c) {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// Breaks a text between words; a word longer than the width stays whole, so that it can be copied.
fn wrap(text: &str, width: Option<usize>) -> Vec<String> {
    let Some(width) = width else {
        return vec![text.to_owned()];
    };
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last().map_or(0, |line| length(line));
        if line > 0 && line + 1 + length(word) > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// Width of the terminal, but not more than reads well.
fn terminal_width() -> usize {
    let told = std::env::var("COLUMNS")
        .ok()
        .and_then(|text| text.parse().ok());
    told.filter(|&width: &usize| width >= 40)
        .map_or(WIDTH, |width| width.min(WIDTH))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(width: Option<usize>, colour: bool) -> Page {
        Page {
            text: String::new(),
            colour,
            width,
        }
    }

    fn rows() -> Vec<Vec<Cell>> {
        vec![
            vec![
                "web".into(),
                Cell::new("up", Look::Good),
                "one two three four five six".into(),
            ],
            vec!["a-longer-name".into(), "down".into(), "".into()],
        ]
    }

    #[test]
    fn a_table_is_aligned_and_plain_when_piped() {
        let mut page = page(None, false);
        page.table(&["NAME", "STATE", "REASON"], rows());
        let expected = "NAME           STATE  REASON\n\
                        web            up     one two three four five six\n\
                        a-longer-name  down\n";
        assert_eq!(page.text, expected);
    }

    #[test]
    fn a_table_stays_within_the_terminal() {
        let mut page = page(Some(46), false);
        page.table(&["NAME", "STATE", "REASON"], rows());
        let expected = "NAME           STATE  REASON\n\
                        web            up     one two three four five\n\
                        \x20                     six\n\
                        a-longer-name  down\n";
        assert_eq!(page.text, expected);
    }

    #[test]
    fn colour_does_not_disturb_the_columns() {
        let mut page = page(None, true);
        page.table(&["NAME", "STATE", "REASON"], rows());
        assert!(
            page.text.contains("\x1b[32mup\x1b[0m     one"),
            "{}",
            page.text
        );
    }

    #[test]
    fn names_cannot_control_the_terminal() {
        assert_eq!(
            clean("a\x1b[31m\n\u{202e}b\u{9b}"),
            "a\\u{1b}[31m\\n\\u{202e}b\\u{9b}"
        );
        assert_eq!(clean("größe 100 €"), "größe 100 €");
        let mut page = page(None, false);
        page.facts(vec![("name", "x\x07".into()), ("nothing", "".into())]);
        page.line("y\r", Look::Plain);
        assert_eq!(page.text, "name  x\\u{7}\ny\\r\n");
    }
}
