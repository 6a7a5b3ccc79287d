//! `steer move`: steers a process that runs already.

use std::path::Path;

use super::args::MoveArgs;
use super::output::{Look, Page, print_json};
use super::{call, sessions};
use crate::api::methods::Move;

pub(super) fn run(socket: &Path, args: MoveArgs, json: bool) -> anyhow::Result<()> {
    let moved = Move {
        pid: args.pid,
        via: args.via,
        strict: args.strict.then_some(true),
    };
    let reply = call(socket, &moved)?;
    if json {
        return print_json(&reply);
    }
    let mut page = Page::new();
    let domain = reply.domain.unwrap_or_default();
    let (pid, policy) = (moved.pid, reply.policy);
    page.line(
        &format!("process {pid}: new flows leave by {domain} (policy {policy})"),
        Look::Good,
    );
    if let Some(words) = sessions::sentence(reply.sessions.as_ref()) {
        page.line(&words, Look::Plain);
    }
    page.print()
}
