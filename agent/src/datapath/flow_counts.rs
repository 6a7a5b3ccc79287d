//! Counting what single flows carry: a lease. Two programs and one map, in force only while this value
//! lives; nothing is pinned, so a dead agent counts nothing.

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::Map,
    programs::{CgroupSkb, ProgramError},
};
use steer_common::FlowCount;

use super::{
    error::{Error, Result},
    maps::Table,
    sys::{self, AttachType},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/flow-counts"));

const MAP: &str = "FLOW_COUNTS";

/// The programs, and where they are attached: `BPF_CGROUP_INET_INGRESS` and `BPF_CGROUP_INET_EGRESS`.
const PROGRAMS: [(&str, AttachType); 2] = [
    ("flow_received", AttachType(0)),
    ("flow_sent", AttachType(1)),
];

/// Packets and bytes are counted for each socket below a cgroup, as long as this lives.
pub struct FlowCounts {
    counts: Table<u64, FlowCount>,
    /// Nothing else holds them: they end with this.
    _links: Vec<OwnedFd>,
}

impl FlowCounts {
    /// Begins to count, from zero.
    pub fn begin(cgroup_root: &Path) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        // None of the programs has relocations against kernel types.
        loader.btf(None);
        let mut object = loader
            .load(OBJECT)
            .map_err(|error| Error::Object(Box::new(error)))?;
        let cgroup = File::open(cgroup_root).map_err(|source| Error::File {
            operation: "open cgroup",
            path: cgroup_root.to_owned(),
            source,
        })?;
        let mut links = Vec::new();
        for (name, attach_type) in PROGRAMS {
            let program = load(&mut object, name).map_err(|error| Error::Program {
                name,
                source: Box::new(error),
            })?;
            let attached = sys::link_cgroup(program.as_fd(), cgroup.as_fd(), attach_type);
            links.push(attached.map_err(Error::kernel("attach", name))?);
        }
        let Some(Map::HashMap(map)) = object.take_map(MAP) else {
            return Err(Error::Program {
                name: MAP,
                source: Box::new(ProgramError::NotLoaded),
            });
        };
        let map = map.fd().as_fd().try_clone_to_owned();
        Ok(Self {
            counts: Table::of(map.map_err(Error::kernel("keep map", MAP))?, MAP),
            _links: links,
        })
    }

    /// What was counted until now, by the sockets' cookies.
    pub fn read(&self) -> Result<Vec<(u64, FlowCount)>> {
        self.counts.entries()
    }

    /// Gives up the place of a socket that is no longer there.
    pub fn forget(&self, cookie: u64) -> Result<()> {
        self.counts.remove(&cookie).map(drop)
    }
}

fn load(object: &mut Ebpf, name: &str) -> std::result::Result<OwnedFd, ProgramError> {
    let program = object.program_mut(name).ok_or(ProgramError::NotLoaded)?;
    let program: &mut CgroupSkb = program.try_into()?;
    program.load()?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}
