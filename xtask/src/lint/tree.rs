//! The files that belong to the project, as git sees them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{cargo, process};

/// A file of the project.
pub(super) struct File {
    /// From the workspace's directory, with `/`.
    pub(super) path: String,
    pub(super) text: String,
}

/// The workspace's directory and its text files.
pub(super) struct Tree {
    pub(super) root: PathBuf,
    pub(super) files: Vec<File>,
}

impl Tree {
    /// Reads what is tracked, and what is new and not ignored: the next commit's files.
    pub(super) fn read() -> Result<Self> {
        let root = cargo::workspace();
        let list = process::capture(Command::new("git").current_dir(&root).args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]))
        .context("lint reads the list of files from git: install git and run it in a checkout")?;
        let mut files = Vec::new();
        for path in list.split('\0').filter(|path| !path.is_empty()) {
            let full = root.join(path);
            // Removed but still tracked, or a link to a directory.
            if !full.is_file() {
                continue;
            }
            let bytes = std::fs::read(&full).with_context(|| format!("read {}", full.display()))?;
            // Pictures have no lines.
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(File {
                    path: path.to_owned(),
                    text,
                });
            }
        }
        Ok(Self { root, files })
    }

    pub(super) fn with_ending<'a>(&'a self, ending: &'a str) -> impl Iterator<Item = &'a File> {
        self.files
            .iter()
            .filter(move |file| file.path.ends_with(ending))
    }
}
