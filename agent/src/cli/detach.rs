//! `steer detach`: undoes everything.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};

use super::FAILED;
use super::output::{Look, Page, print_json};
use crate::api::client::{Client, Error};
use crate::api::server::remove_leftovers;
use crate::daemon::{self, DetachReport};

pub(super) fn detach(socket: &Path, json: bool) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("only root may undo what the agent made: try sudo");
    }
    match Client::connect(socket) {
        Err(Error::NotRunning(_)) => {
            if let Some(running) = daemon::running() {
                bail!("{running} and would make everything again: stop it first");
            }
        }
        Ok(_) | Err(_) => bail!(
            "the agent is running (it answers at {}) and would make everything again: stop it \
             first, by `systemctl stop steer` or Ctrl-C where it runs",
            socket.display()
        ),
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the asynchronous runtime")?;
    let DetachReport {
        mut removed,
        mut left,
        notes,
    } = runtime.block_on(daemon::detach())?;
    match remove_leftovers(socket) {
        Ok(files) => removed.extend(files.iter().map(|file| file.display().to_string())),
        Err(error) => left.push(format!("{}: {:#}", socket.display(), anyhow!(error))),
    }
    let code = if left.is_empty() {
        ExitCode::SUCCESS
    } else {
        FAILED.into()
    };
    if json {
        print_json(&DetachReport {
            removed,
            left,
            notes,
        })?;
        return Ok(code);
    }
    let mut page = Page::new();
    if removed.is_empty() && left.is_empty() {
        page.line("nothing to undo", Look::Plain);
    }
    for what in removed {
        page.line(&format!("removed {what}"), Look::Plain);
    }
    for what in left {
        page.line(&format!("left: {what}"), Look::Warning);
    }
    for note in notes {
        page.line(&note, Look::Plain);
    }
    page.print()?;
    Ok(code)
}
