//! `steer detach`: undoes everything.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use serde_json::json;

use super::output::{Look, Page, print_json};
use crate::api::client::{Client, Error};
use crate::api::server::remove_leftovers;
use crate::daemon::{self, DetachReport};

pub(super) fn detach(socket: &Path, json: bool) -> anyhow::Result<()> {
    match Client::connect(socket) {
        Err(Error::NotRunning(_)) => {}
        Err(Error::NotPermitted(_)) => bail!("only root may undo what the agent made: try sudo"),
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
    } = runtime.block_on(daemon::detach())?;
    match remove_leftovers(socket) {
        Ok(files) => removed.extend(files.iter().map(|file| file.display().to_string())),
        Err(error) => left.push(format!("{}: {:#}", socket.display(), anyhow!(error))),
    }
    if json {
        return print_json(&json!({ "removed": removed, "left": left }));
    }
    let mut page = Page::new();
    if removed.is_empty() && left.is_empty() {
        page.line("nothing to undo", Look::Plain);
    }
    for what in removed {
        page.line(&format!("removed {what}"), Look::Plain);
    }
    for what in left {
        page.line(&format!("left {what}"), Look::Warning);
    }
    page.print()
}
