//! `steer agent`: the daemon.

use std::path::PathBuf;

use anyhow::Context;
use tokio::task::LocalSet;
use tracing_subscriber::EnvFilter;

use super::args::AgentArgs;
use crate::daemon::{self, Options};

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
    LocalSet::new().block_on(&runtime, daemon::run(options))
}

/// Logs to standard error; the journal adds the time itself.
fn start_log() -> anyhow::Result<()> {
    let filter = match std::env::var(LOG) {
        Ok(text) => EnvFilter::try_new(text).with_context(|| format!("read {LOG}"))?,
        Err(_) => EnvFilter::new("info"),
    };
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
