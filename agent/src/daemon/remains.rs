//! What `steer doctor` is told of the files: the configuration, and what an agent kept.

use std::path::{Path, PathBuf};

use steer_core::config::Config;

use super::{Saved, load, scan, state_file};
use crate::api::mistake::Mistake;
use crate::cgroup::{self, OwnCgroup, Placement as _, Tree};
use crate::statefile::{self, RUN_DIRECTORY};

/// What the state file says, as far as it matters to somebody who looks for what is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// The managed root of the agent that wrote it.
    pub cgroup_root: PathBuf,
    /// Settings that were changed, by their path below /proc/sys.
    pub settings: Vec<String>,
}

/// What the last agent of this boot kept; `None`: nothing.
///
/// # Errors
/// The file cannot be read, or is damaged.
pub fn remains() -> Result<Option<Remains>, statefile::Error> {
    let saved: Option<Saved> = state_file().read()?;
    Ok(saved.map(|saved| Remains {
        cgroup_root: saved.cgroup_root,
        settings: saved.sysctls.into_keys().collect(),
    }))
}

/// Where the state file is.
pub fn state_path() -> PathBuf {
    Path::new(RUN_DIRECTORY).join("state.json")
}

/// What the files say, those beside `named` or the usual ones, and which single policies in them are wrong.
///
/// # Errors
/// A file cannot be read, or they are wrong as a whole ([`super::Mistakes`]).
pub fn configuration(named: Option<&Path>) -> anyhow::Result<(Config, Vec<Mistake>)> {
    let loaded = load::load(named).map_err(load::Error::into_cause)?;
    Ok((loaded.config, loaded.quarantined))
}

/// The cgroups that agents made and that are there still.
///
/// # Errors
/// The managed root cannot be read.
pub fn places(tree: &Tree) -> Result<Vec<PathBuf>, cgroup::Error> {
    let cgroups = scan(tree)?;
    let places = OwnCgroup::new(tree).existing(&cgroups).into_iter();
    Ok(places.map(|place| place.directory().to_owned()).collect())
}
