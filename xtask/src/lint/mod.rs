//! `cargo xtask lint`: what must hold before a commit.
//!
//! First the checks that only read files (module borders, module docs, links, paths of one
//! machine), then the compilers' (format, clippy, rustdoc, the kernel programs). All run, also
//! after one has found something; each finding names its file and line and what to do.

mod borders;
mod code;
mod compilers;
mod links;
mod paths;
mod text;
mod tree;

use std::fmt;

use anyhow::{Result, bail};

use crate::progress;

/// Arguments of `cargo xtask lint`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the checks that read files: takes a second and builds nothing
    #[arg(long)]
    files: bool,
}

/// Something that must be changed.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    file: String,
    line: usize,
    /// What is wrong and what to do.
    text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.text)
    }
}

/// Runs every check and fails if any has found something.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut failed = Vec::new();

    let tree = tree::Tree::read()?;
    for (name, check) in [
        (
            "module borders",
            borders::check as fn(&tree::Tree) -> Vec<Finding>,
        ),
        ("module docs", text::module_docs),
        ("paths and hosts of one machine", text::machine_names),
        ("links in Markdown", links::check),
    ] {
        let findings = check(&tree);
        progress::step(format_args!("{name}: {}", verdict(findings.len())));
        for finding in &findings {
            eprintln!("{finding}");
        }
        if !findings.is_empty() {
            failed.push(name);
        }
    }

    if !args.files {
        failed.extend(compilers::check()?);
    }
    if failed.is_empty() {
        progress::step("lint: all is well");
        Ok(())
    } else {
        bail!("lint found something in: {}", failed.join(", "));
    }
}

fn verdict(findings: usize) -> String {
    match findings {
        0 => "ok".to_owned(),
        1 => "1 finding".to_owned(),
        many => format!("{many} findings"),
    }
}
