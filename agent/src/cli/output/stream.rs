//! Output that goes on until the reader has seen enough.

use std::io::{self, ErrorKind, Write};

/// Whether the reader has gone: `steer watch | head -1`.
pub(in crate::cli) fn is_gone(error: &anyhow::Error) -> bool {
    let broken = |error: &io::Error| error.kind() == ErrorKind::BrokenPipe;
    error.downcast_ref().is_some_and(broken)
}

/// Prints without the mercy of a [`Page`](super::Page): whether somebody reads says when to end.
pub(in crate::cli) fn write_out(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
