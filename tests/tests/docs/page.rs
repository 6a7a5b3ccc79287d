//! A page's fenced blocks, and the commands in them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A page of the documentation.
pub(crate) struct Page {
    /// Name of its file.
    pub(crate) name: String,
    /// Its blocks, in order.
    pub(crate) blocks: Vec<Block>,
}

/// A fenced block.
pub(crate) struct Block {
    /// What it is marked as.
    pub(crate) language: String,
    /// Line of its fence.
    pub(crate) line: usize,
    /// What is in it.
    pub(crate) text: String,
}

impl Page {
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let name = file
            .file_name()
            .context("a name")?
            .to_string_lossy()
            .into_owned();
        let mut blocks = Vec::new();
        let mut open: Option<Block> = None;
        for (number, line) in text.lines().enumerate() {
            match (line.trim_start().strip_prefix("```"), open.take()) {
                (Some(language), None) => {
                    open = Some(Block {
                        language: language.to_owned(),
                        line: number + 1,
                        text: String::new(),
                    });
                }
                (Some(_), Some(block)) => blocks.push(block),
                (None, Some(mut block)) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                    open = Some(block);
                }
                (None, None) => {}
            }
        }
        Ok(Self { name, blocks })
    }
}

impl Block {
    /// Whether `next` shows something and stands right below.
    pub(crate) fn is_before(&self, next: &Self) -> bool {
        let end = self.line + self.text.lines().count() + 1;
        next.language == "text" && next.line == end + 2
    }

    /// Its commands, each with its line: without comments, and with continued lines put together.
    pub(crate) fn commands(&self) -> Vec<(usize, String)> {
        let parsed = self.parsed();
        parsed
            .into_iter()
            .map(|(line, command, _)| (line, command))
            .collect()
    }

    /// The exit code of each: as its comment says, else 0.
    pub(crate) fn exit_codes(&self) -> Vec<i32> {
        let parsed = self.parsed();
        parsed.into_iter().map(|(_, _, code)| code).collect()
    }

    fn parsed(&self) -> Vec<(usize, String, i32)> {
        let mut commands = Vec::new();
        let mut begun: Option<(usize, String)> = None;
        for (number, line) in self.text.lines().enumerate() {
            let (words, comment) = match line.split_once(" #") {
                Some((words, comment)) => (words, comment),
                None => (line, ""),
            };
            let words = words.trim();
            if words.is_empty() || words.starts_with('#') {
                continue;
            }
            let (at, mut command) = begun
                .take()
                .unwrap_or((self.line + number + 1, String::new()));
            let (words, goes_on) = match words.strip_suffix('\\') {
                Some(words) => (words.trim_end(), true),
                None => (words, false),
            };
            if !command.is_empty() {
                command.push(' ');
            }
            command.push_str(words);
            if goes_on {
                begun = Some((at, command));
                continue;
            }
            let code = comment.split_once("exit code ");
            let code = code.and_then(|(_, code)| code.split_whitespace().next()?.parse().ok());
            commands.push((at, command, code.unwrap_or(0)));
        }
        commands
    }
}
