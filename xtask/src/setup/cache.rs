//! Where setup keeps what takes long to make, so that every checkout and target directory shares it.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// `$XDG_CACHE_HOME/steer`.
pub(super) fn directory() -> Result<PathBuf> {
    let cache = match env::var_os("XDG_CACHE_HOME").filter(|path| Path::new(path).is_absolute()) {
        Some(cache) => PathBuf::from(cache),
        None => env::home_dir()
            .context("neither XDG_CACHE_HOME nor HOME is set: set HOME")?
            .join(".cache"),
    };
    Ok(cache.join("steer"))
}
