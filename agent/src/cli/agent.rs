//! `steer agent`: the daemon.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, bail};
use tokio::task::LocalSet;
use tracing_subscriber::EnvFilter;

use super::args::AgentArgs;
use crate::daemon::{self, Options};

/// What it may be.
const LEVELS: &str = "off, error, warn, info, debug, trace";

/// Environment variable that sets what is logged.
const LOG: &str = "STEER_LOG";

pub(super) fn agent(args: AgentArgs, socket: PathBuf) -> anyhow::Result<()> {
    start_log()?;
    // One thread: the agent is one loop.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the asynchronous runtime")?;
    let options = Options {
        config: args.config,
        socket,
    };
    let ended = LocalSet::new().block_on(&runtime, daemon::run(options));
    // What threads are about is the next agent's.
    runtime.shutdown_background();
    ended
}

/// What is logged: a level, or directives with `=` (those of `tracing_subscriber`), with commas between.
fn filter(text: Option<OsString>) -> anyhow::Result<EnvFilter> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(EnvFilter::new("info"));
    };
    let wrong = || format!("{LOG}: `{}` is none of {LEVELS}", text.display());
    let text = text.to_str().with_context(wrong)?;
    // A word that is no level would be taken for the name of a module, and nothing be logged of others.
    let levels = LEVELS.split(", ").collect::<Vec<_>>();
    let known = |part: &str| part.contains('=') || levels.contains(&part);
    if !text.split(',').all(|part| known(part.trim())) {
        bail!(wrong());
    }
    EnvFilter::try_new(text).with_context(wrong)
}

/// Logs to standard error; the journal adds the time itself.
fn start_log() -> anyhow::Result<()> {
    let filter = filter(std::env::var_os(LOG))?;
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(!journal && std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let started = if journal {
        log.without_time().try_init()
    } else {
        log.try_init()
    };
    started.map_err(|e| anyhow::anyhow!("start the log: {e}"))
}

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn a_level_is_a_level() {
        for (text, read) in [
            (None, Some("info")),
            (Some(""), Some("info")),
            (Some("warn"), Some("warn")),
            (Some("off"), Some("off")),
            (
                Some("info,steer::netlink=debug"),
                Some("steer::netlink=debug,info"),
            ),
            (Some("loud"), None),
            (Some("info,loud"), None),
            (Some("steer=loud"), None),
        ] {
            let filter = filter(text.map(Into::into));
            let shown = filter.ok().map(|filter| filter.to_string());
            assert_eq!(shown.as_deref(), read, "{text:?}");
        }
    }
}
