//! `steer reload`: has the agent read its files again.

use std::path::Path;

use super::call;
use super::output::{Look, Page, colour, print_json};
use crate::api::methods::Reload;
use crate::draw::draw_first;

pub(super) fn reload(socket: &Path, json: bool) -> anyhow::Result<()> {
    let reloaded = call(socket, &Reload {})?;
    if json {
        return print_json(&reloaded);
    }
    let mut page = Page::new();
    let (files, policies) = (reloaded.files, reloaded.policies);
    let counted = |count: u64, one: &str, more: &str| {
        format!("{count} {}", if count == 1 { one } else { more })
    };
    let files = counted(files, "file", "files");
    let policies = counted(policies, "policy", "policies");
    page.line(&format!("{files} read, {policies} in force"), Look::Plain);
    page.print()?;
    if !reloaded.quarantined.is_empty() {
        let colour = colour(std::io::IsTerminal::is_terminal(&std::io::stderr()));
        eprintln!("{}\n", draw_first(&reloaded.quarantined, colour));
        eprintln!(
            "steer: what is wrong above is in quarantine: it does not hold, and what a strict policy there \
             matches is blocked (`steer policy list`); all else is in force"
        );
    }
    Ok(())
}
