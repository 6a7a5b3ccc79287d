//! Every command of the pages for users is run, as the page says it, at a host whose interfaces are named
//! as the pages name them.
//!
//! Blocks marked `sh` are commands, `toml` files, `text` and `json` what is shown. Each page is played from
//! its beginning to its end, with an agent that runs.

mod docs {
    pub(crate) mod page;
    pub(crate) mod play;
}

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use docs::page::{Block, Page};
use docs::play::{self, What};

/// README.md and the pages of docs/, by name.
fn pages() -> Result<Vec<Page>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files: Vec<PathBuf> = fs::read_dir(root.join("docs"))
        .context("list docs/")?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"))
        .collect();
    files.push(root.join("README.md"));
    files.sort();
    files.iter().map(|file| Page::read(file)).collect()
}

#[test]
fn every_command_of_the_pages_does_what_the_page_says() -> Result<()> {
    let mut count = 0;
    for page in pages()? {
        count += play::page(&page)?;
    }
    ensure!(
        count >= 8,
        "only {count} commands of steer were found: are the blocks marked?"
    );
    Ok(())
}

#[test]
fn every_block_is_marked_and_every_command_is_known() -> Result<()> {
    for page in pages()? {
        for block in &page.blocks {
            let known = ["sh", "toml", "text", "json"].contains(&block.language.as_str());
            ensure!(
                known,
                "{}:{}: a block is marked `{}`",
                page.name,
                block.line,
                block.language
            );
            for (line, words) in block.commands() {
                if block.language == "sh" {
                    play::what(&words).with_context(|| format!("{}:{line}", page.name))?;
                } else {
                    let shown = words.starts_with("sudo ") || words.starts_with("cargo ");
                    ensure!(
                        !shown,
                        "{}:{line}: a command outside of an sh block",
                        page.name
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_command_that_cannot_be_is_found() -> Result<()> {
    let block = Block {
        language: "sh".to_owned(),
        line: 1,
        text: "sudo steer domain \\\n  list   # all\n\n# a comment\nsteer polcy  # exit code 2\n"
            .to_owned(),
    };
    let commands = block.commands();
    let expected = [
        (2, "sudo steer domain list".to_owned()),
        (6, "steer polcy".to_owned()),
    ];
    ensure!(commands == expected, "{commands:?}");
    ensure!(block.exit_codes() == [0, 2]);
    ensure!(matches!(play::what("sudo steer x")?, What::Run));
    ensure!(matches!(
        play::what("cargo xtask test")?,
        What::Elsewhere(_)
    ));
    ensure!(play::what("rm -rf x").is_err());
    let page = |text: &str| Page {
        name: "a page".to_owned(),
        blocks: vec![Block {
            language: "sh".to_owned(),
            line: 1,
            text: text.to_owned(),
        }],
    };
    ensure!(play::page(&page("sudo steer domain list\n"))? == 1);
    ensure!(play::page(&page("sudo steer domain show wlan7\n")).is_err());
    ensure!(play::page(&page("sudo steer domain show wlan7  # exit code 1\n"))? == 1);
    let showing = |text: &str| {
        let mut page = page("sudo steer policy\n");
        page.blocks.push(Block {
            language: "text".to_owned(),
            line: 5,
            text: text.to_owned(),
        });
        play::page(&page)
    };
    let all = "no policies: every flow is left to the host's ordinary routing\n";
    ensure!(showing(all)? == 1 && showing("...\n")? == 1);
    for wrong in ["no policies\n", "...\nx\n", ""] {
        ensure!(showing(wrong).is_err(), "{wrong}");
    }
    Ok(())
}
