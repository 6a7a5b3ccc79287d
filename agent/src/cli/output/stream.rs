//! Output that goes on until the reader has seen enough.

use std::io::{self, ErrorKind, Write};

use crate::api::client;

/// How output ended that goes on until the agent or the reader goes: who reads may have seen enough
/// (`steer watch | head -1`).
pub(in crate::cli) fn ended(
    watched: Result<anyhow::Result<()>, client::Error>,
) -> anyhow::Result<()> {
    match watched {
        Ok(Err(error)) if is_gone(&error) => Ok(()),
        Ok(shown) => shown,
        Err(error @ client::Error::Closed(_)) => {
            Err(anyhow::Error::new(error).context("the agent has stopped"))
        }
        Err(error) => Err(error.into()),
    }
}

fn is_gone(error: &anyhow::Error) -> bool {
    let broken = |error: &io::Error| error.kind() == ErrorKind::BrokenPipe;
    error.downcast_ref().is_some_and(broken)
}

/// Prints without the mercy of a [`Page`](super::Page): whether somebody reads says when to end.
pub(in crate::cli) fn write_out(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
