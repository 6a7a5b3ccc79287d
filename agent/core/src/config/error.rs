//! Mistakes in files, and the places that they are about.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Largest file that is read, bytes.
pub const MAX_FILE_BYTES: usize = 1 << 20;

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// First byte of the file that it is about.
    pub start: usize,
    /// The byte behind the last.
    pub end: usize,
}

/// A mistake in a file, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where it is.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What is wrong with the very words at the place, briefly.
    pub label: Option<String>,
    /// What to do.
    pub help: Option<String>,
}

/// A file, with the places of its lines: a large one has many places to tell.
#[derive(Debug)]
pub(super) struct Source<'a> {
    file: Arc<str>,
    pub(super) text: &'a str,
    /// Byte at which each line begins.
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    pub(super) fn new(file: &str, text: &'a str) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            file: file.into(),
            text,
            lines: std::iter::once(0).chain(ends).collect(),
        }
    }

    /// The place of `span`, which is cut to the text and to whole characters.
    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        let start = self
            .text
            .floor_char_boundary(span.start.min(self.text.len()));
        let end = self
            .text
            .ceil_char_boundary(span.end.clamp(start, self.text.len()));
        let line = self.lines.partition_point(|begin| *begin <= start);
        Place {
            file: Arc::clone(&self.file),
            line,
            column: self.text[self.lines[line - 1]..start].chars().count() + 1,
            start,
            end,
        }
    }
}

impl Place {
    /// A mistake here.
    pub(super) fn error(&self, message: impl Into<String>) -> ConfigError {
        ConfigError {
            place: self.clone(),
            message: message.into(),
            label: None,
            help: None,
        }
    }

    /// The bytes of the file that it is about.
    pub fn span(&self) -> Range<usize> {
        self.start..self.end
    }
}

impl ConfigError {
    /// The same with advice.
    pub(super) fn help(mut self, help: impl Into<Option<String>>) -> Self {
        self.help = help.into();
        self
    }

    /// The same with words for the place itself.
    pub(super) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }
}

/// File and line.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.place, self.place.column, self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}
