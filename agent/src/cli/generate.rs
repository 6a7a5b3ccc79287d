//! `steer generate`: what a package carries beside the program, made by the program itself.

use std::fs;
use std::path::Path;

use anyhow::Context;

use super::{complete, manual};

/// Completion scripts: the shell, and where distributions look for its file.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "share/bash-completion/completions/steer"),
    ("zsh", "share/zsh/site-functions/_steer"),
    ("fish", "share/fish/vendor_completions.d/steer.fish"),
];

/// Where manual pages are looked for.
const PAGES: &str = "share/man/man1";

/// Writes everything below `directory`, as below a prefix such as /usr.
pub(super) fn generate(directory: &Path) -> anyhow::Result<()> {
    for (shell, file) in COMPLETIONS {
        let script = complete::script(shell).with_context(|| format!("complete in {shell}"))?;
        write(&directory.join(file), &script)?;
    }
    for (name, page) in manual::pages().context("make the manual pages")? {
        write(&directory.join(PAGES).join(name), &page)?;
    }
    Ok(())
}

fn write(file: &Path, content: &[u8]) -> anyhow::Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    fs::write(file, content).with_context(|| format!("write {}", file.display()))
}
