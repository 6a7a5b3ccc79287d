//! `steer reload`: has the agent read its files again.

use std::path::Path;

use super::call;
use super::output::{colour, print_json};
use crate::api::methods::Reload;
use crate::draw::draw_first;

pub(super) fn reload(socket: &Path, json: bool) -> anyhow::Result<()> {
    let reloaded = call(socket, &Reload {})?;
    if json {
        return print_json(&reloaded);
    }
    if !reloaded.quarantined.is_empty() {
        let colour = colour(std::io::IsTerminal::is_terminal(&std::io::stderr()));
        eprintln!("{}\n", draw_first(&reloaded.quarantined, colour));
        eprintln!(
            "steer: these policies are in quarantine: what the strict ones match is blocked; all \
             else is in force"
        );
    }
    Ok(())
}
