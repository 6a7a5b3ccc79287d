//! `steer domain login`: opens the address of a domain's portal, by that domain only.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, bail};

use super::args::LoginArgs;
use super::call;
use crate::api::methods::{CheckDomain, ShowDomain};

/// What opens an address, where no command is given.
const OPENER: &str = "xdg-open";

/// Runs a command with the portal's address as its last argument, by the domain alone, and has the domain
/// checked when it ends.
pub(super) fn login(socket: &Path, args: LoginArgs) -> anyhow::Result<ExitCode> {
    let LoginArgs { name, command } = args;
    let domain = call(socket, &ShowDomain { name })?.domain;
    let Some(portal) = domain.portal else {
        if domain.state == "portal" {
            bail!(
                "a portal answers on {0} and does not say where its page is: open any http:// page by \
                 `steer run --strict --via {0} -- BROWSER`",
                domain.name
            );
        }
        bail!(
            "no portal answers on {}: it is {} ({})",
            domain.name,
            domain.state,
            domain.reason
        );
    };
    let command = match command.is_empty() {
        true => vec![OsString::from(OPENER)],
        false => command,
    };
    eprintln!("steer: {} by {} alone", super::clean(&portal), domain.name);
    let program = std::env::current_exe().context("find steer's own program")?;
    let status = Command::new(program)
        .arg("--socket")
        .arg(socket)
        .args(["run", "--strict", "--via", &domain.name, "--"])
        .args(command)
        .arg(portal)
        .status()
        .context("start steer run")?;
    call(socket, &CheckDomain { name: domain.name })?;
    Ok(code(status))
}

fn code(status: ExitStatus) -> ExitCode {
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
