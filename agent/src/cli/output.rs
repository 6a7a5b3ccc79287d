//! What a command prints: JSON, or text for people. Text is aligned and fits the width of the terminal,
//! or 80 columns; on a terminal it is also coloured. What others named (policies, commands) cannot
//! control the terminal.
//!
//! Piped text is laid out like any other: `--json` is for programs.

mod columns;
pub(super) mod stream;
pub(super) mod traffic;
pub(super) mod units;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};

use anyhow::Context;
use serde::Serialize;
use terminal_size::terminal_size_of;

use columns::{Column, GAP, length, shorten, widths, wrap};

/// Width of text where no terminal tells its own, columns.
const WIDTH: usize = 80;

/// Least width that text is laid out for, columns.
const NARROWEST: usize = 40;

/// Indentation of what is said of a row that has no room beside its name, columns.
const INDENT: usize = 2;

/// Width of an item's label, columns.
const LABEL: usize = 3;

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
    /// Whether it must not be shortened.
    whole: bool,
}

impl Cell {
    pub(super) fn new(text: &str, look: Look) -> Self {
        Self {
            text: clean(text),
            look,
            whole: false,
        }
    }

    /// A name, which is never shortened: it is to be typed again.
    pub(super) fn name(name: &str) -> Self {
        Self {
            whole: true,
            ..name.into()
        }
    }

    /// The same with another look.
    pub(super) fn look(self, look: Look) -> Self {
        Self { look, ..self }
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
    /// Where to wrap, columns.
    width: usize,
}

/// Whether to use colour on what is a terminal, or not.
pub(super) fn colour(terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let plain = set("NO_COLOR").is_some() || set("TERM").is_some_and(|v| v == "dumb");
    terminal && !plain
}

impl Page {
    /// A page for standard output.
    pub(super) fn new() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let columns = set("COLUMNS").and_then(|text| text.to_str()?.parse().ok());
        let terminal = terminal_size_of(io::stdout()).map(|(width, _)| width.0.into());
        Self {
            text: String::new(),
            colour: colour(io::stdout().is_terminal()),
            width: width(columns, terminal),
        }
    }

    /// A page for a terminal that is not standard output.
    pub(super) fn for_terminal(terminal: &File) -> Self {
        let size = terminal_size_of(terminal).map(|(width, _)| width.0.into());
        Self {
            text: String::new(),
            colour: colour(true),
            width: width(None, size),
        }
    }

    /// What was put together.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Takes back what was put behind the first bytes.
    pub(super) fn cut(&mut self, bytes: usize) {
        self.text.truncate(bytes);
    }

    /// An empty line, unless the page is empty.
    pub(super) fn gap(&mut self) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
    }

    /// A sentence, in as many lines as it takes.
    pub(super) fn line(&mut self, text: &str, look: Look) {
        for line in wrap(&clean(text), self.width) {
            self.paint(&line, look);
            self.text.push('\n');
        }
    }

    /// A sentence behind a short label, indented; wrapped so that the labels stand out.
    pub(super) fn item(&mut self, label: &str, text: &str, look: Look) {
        let indent = INDENT + LABEL + GAP;
        for (index, line) in wrap(&clean(text), self.width - indent).iter().enumerate() {
            self.text.extend(std::iter::repeat_n(' ', INDENT));
            let label = if index == 0 { label } else { "" };
            self.paint(label, look);
            let pad = (LABEL + GAP).saturating_sub(length(label));
            self.text.extend(std::iter::repeat_n(' ', pad));
            self.text.push_str(line);
            self.text.push('\n');
        }
    }

    /// Rows of a name and what there is to say of it.
    pub(super) fn facts(&mut self, rows: Vec<(&str, Cell)>) {
        let rows = rows
            .into_iter()
            .filter(|(_, cell)| !cell.text.is_empty())
            .map(|(name, cell)| vec![heading(name), cell]);
        let rows: Vec<_> = rows.collect();
        if let Some(widths) = widths(&measure(&rows), self.width) {
            self.rows(&rows, &widths);
        }
    }

    /// A table. The first column holds names. The last takes what width is left and is wrapped, those
    /// between are shortened if they must be, but for names. If it does not fit even then, each row
    /// becomes a paragraph.
    pub(super) fn table(&mut self, headings: &[&str], mut rows: Vec<Vec<Cell>>) {
        for name in rows.iter_mut().filter_map(|row| row.first_mut()) {
            name.whole = true;
        }
        let headings: Vec<Cell> = headings.iter().map(|name| heading(name)).collect();
        rows.insert(0, headings);
        if let Some(widths) = widths(&measure(&rows), self.width) {
            return self.rows(&rows, &widths);
        }
        let headings = rows.remove(0);
        for row in rows {
            let mut cells = headings.iter().zip(row);
            if let Some((_, name)) = cells.next() {
                self.paint(&name.text, name.look);
                self.text.push('\n');
            }
            let facts = cells.filter(|(_, cell)| !cell.text.is_empty());
            let facts: Vec<_> = facts
                .map(|(heading, cell)| {
                    let name = " ".repeat(INDENT) + &heading.text.to_lowercase();
                    vec![Cell::new(&name, Look::Heading), cell]
                })
                .collect();
            if let Some(widths) = widths(&measure(&facts), self.width) {
                self.rows(&facts, &widths);
            }
        }
    }

    fn rows(&mut self, rows: &[Vec<Cell>], widths: &[usize]) {
        let Some((left, widths)) = widths.split_last() else {
            return;
        };
        let indent: usize = widths.iter().map(|width| width + GAP).sum();
        for row in rows {
            let Some((last, first)) = row.split_last() else {
                continue;
            };
            for (cell, width) in first.iter().zip(widths) {
                let text = shorten(&cell.text, *width);
                self.paint(&text, cell.look);
                let pad = width + GAP - length(&text);
                self.text.extend(std::iter::repeat_n(' ', pad));
            }
            let mut lines = wrap(&last.text, *left).into_iter();
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

pub(super) fn write_out(text: &str) -> anyhow::Result<()> {
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

fn heading(name: &str) -> Cell {
    Cell::new(name, Look::Heading)
}

/// The columns of a table whose rows are all of one length.
fn measure(rows: &[Vec<Cell>]) -> Vec<Column> {
    let count = rows.first().map_or(0, Vec::len);
    let mut columns = vec![Column::default(); count];
    for (column, cell) in rows.iter().flat_map(|row| row.iter().enumerate()) {
        let Some(column) = columns.get_mut(column) else {
            continue;
        };
        column.natural = column.natural.max(length(&cell.text));
        column.whole |= cell.whole;
    }
    columns
}

/// How wide text is: as `COLUMNS` says, else as the terminal is, else as wide as every terminal.
fn width(columns: Option<usize>, terminal: Option<usize>) -> usize {
    let told = columns.filter(|&columns| columns > 0).or(terminal);
    told.unwrap_or(WIDTH).max(NARROWEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(width: usize, colour: bool) -> Page {
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
    fn a_table_is_aligned() {
        let mut page = page(80, false);
        page.table(&["NAME", "STATE", "REASON"], rows());
        let expected = "NAME           STATE  REASON\n\
                        web            up     one two three four five six\n\
                        a-longer-name  down\n";
        assert_eq!(page.text, expected);
    }

    #[test]
    fn a_last_column_is_wrapped() {
        let mut page = page(46, false);
        page.table(&["NAME", "STATE", "REASON"], rows());
        let expected = "NAME           STATE  REASON\n\
                        web            up     one two three four five\n\
                        \x20                     six\n\
                        a-longer-name  down\n";
        assert_eq!(page.text, expected);
    }

    #[test]
    fn a_middle_column_is_shortened_but_no_name() {
        let long = "0123456789".repeat(3);
        let row = |middle: Cell| vec!["web".into(), middle, "one two three four five six".into()];
        let mut short = page(46, false);
        short.table(&["NAME", "USE", "REASON"], vec![row(long.as_str().into())]);
        let expected = "NAME  USE             REASON\n\
                        web   0123456789012…  one two three four five\n\
                        \x20                     six\n";
        assert_eq!(short.text, expected);
        let mut whole = page(46, false);
        whole.table(&["NAME", "USE", "REASON"], vec![row(Cell::name(&long))]);
        let expected = format!("web\n  use     {long}\n  reason  one two three four five six\n");
        assert_eq!(whole.text, expected);
    }

    #[test]
    fn no_line_is_wider_than_the_page() {
        let name = "n".repeat(64);
        let path = "user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox-1234.scope";
        for width in [40, 80, 120] {
            let mut page = page(width, false);
            let decision = format!("steer by {name} (wlan0)");
            let row = |cells: [&str; 4]| cells.map(Cell::from).to_vec();
            page.table(
                &["POLICY", "DECISION", "USE", "MATCHES"],
                vec![
                    row(["web", &decision, &name, path]),
                    row(["a", "b", "c", "d"]),
                ],
            );
            page.facts(vec![
                ("policy", name.as_str().into()),
                ("matches", path.into()),
            ]);
            page.line(&format!("warning: {path} {name}"), Look::Warning);
            for line in page.text.lines() {
                assert!(length(line) <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn the_width_is_told_by_the_environment_then_by_the_terminal() {
        for (columns, terminal, expected) in [
            (None, None, 80),
            (None, Some(132), 132),
            (None, Some(60), 60),
            (None, Some(20), 40),
            (Some(100), Some(132), 100),
            (Some(100), None, 100),
            (Some(0), Some(90), 90),
        ] {
            assert_eq!(
                width(columns, terminal),
                expected,
                "{columns:?} {terminal:?}"
            );
        }
    }

    #[test]
    fn colour_does_not_disturb_the_columns() {
        let mut page = page(80, true);
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
        let mut page = page(80, false);
        page.facts(vec![("name", "x\x07".into()), ("nothing", "".into())]);
        page.line("y\r", Look::Plain);
        assert_eq!(page.text, "name  x\\u{7}\ny\\r\n");
    }
}
