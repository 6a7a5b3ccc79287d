//! Packet programs on kernels without tcx (before Linux 6.6): filters of the `clsact` qdisc.
//!
//! A filter outlives the agent by itself, but says nowhere whose it is. So its program is pinned under
//! the filter's name as a record, and a directory records that the qdisc is ours too. There is one
//! filter for a side of an interface, whichever layout has the record.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use super::{
    attachment::{Attachment, Side},
    error::{Error, Result},
    pins,
};
use crate::netlink::filter::{self, FilterSide};

/// The records of filters in one layout.
pub(super) struct Filters<'a> {
    /// Where they are.
    pub(super) directory: &'a Path,
}

const QDISC: &str = "qdisc-";

impl Filters<'_> {
    /// Attaches `program` to an interface, or puts it in the place of the one that is there.
    pub(super) fn attach(&self, side: Side, interface: u32, program: BorrowedFd<'_>) -> Result<()> {
        let name = name(side, interface);
        fs::create_dir_all(self.directory)
            .map_err(Error::file("make directory", self.directory))?;
        if filter::add_clsact(interface).map_err(Error::filter("add clsact qdisc for", &name))? {
            self.record_qdisc(interface)?;
        }
        // The record comes first: a filter without one would stay for ever.
        pins::replace(program, &self.directory.join(&name))?;
        filter::set_filter(interface, parent(side), program, &format!("steer-{name}"))
            .map_err(Error::filter("attach", name))
    }

    /// Whether there is a record of a filter, and the filter.
    pub(super) fn has(&self, side: Side, interface: u32) -> Result<bool> {
        Ok(self.program(side, interface)?.is_some())
    }

    /// The id of the program in a filter of which there is a record.
    pub(super) fn program(&self, side: Side, interface: u32) -> Result<Option<u32>> {
        let name = name(side, interface);
        if !self.directory.join(&name).exists() {
            return Ok(None);
        }
        filter::filter_program(interface, parent(side)).map_err(Error::filter("read", name))
    }

    /// The interfaces of which there are records on a side.
    pub(super) fn recorded(&self, wanted: Side) -> Result<BTreeSet<u32>> {
        let records = pins::list(self.directory)?;
        let interfaces =
            records
                .into_iter()
                .filter_map(|(name, _)| match Attachment::from_name(&name) {
                    Some(Attachment::Interface(side, interface)) if side == wanted => {
                        Some(interface)
                    }
                    _ => None,
                });
        Ok(interfaces.collect())
    }

    /// Detaches a filter if there is a record of it, and removes the record, and the qdisc if it was
    /// made for it and nothing is left in it.
    pub(super) fn detach(&self, side: Side, interface: u32) -> Result<()> {
        let name = name(side, interface);
        let record = self.directory.join(&name);
        if !record.exists() {
            return Ok(());
        }
        filter::remove_filter(interface, parent(side)).map_err(Error::filter("detach", &name))?;
        pins::unlink(&record)?;
        let qdisc = self.qdisc(interface);
        let empty = |side| !filter::has_filters(interface, side);
        if !qdisc.exists() || !empty(FilterSide::Ingress) || !empty(FilterSide::Egress) {
            return Ok(());
        }
        filter::remove_clsact(interface).map_err(Error::filter("remove clsact qdisc for", name))?;
        remove_directory(&qdisc)
    }

    /// Takes the records of another layout over as far as there is one of the same filter here. What is
    /// left there are filters that this layout has not.
    pub(super) fn inherit(&self, other: &Filters<'_>) -> Result<()> {
        for side in Side::ALL {
            for interface in other.recorded(side)? {
                if !self.directory.join(name(side, interface)).exists() {
                    continue;
                }
                let qdisc = other.qdisc(interface);
                if qdisc.exists() {
                    self.record_qdisc(interface)?;
                    remove_directory(&qdisc)?;
                }
                pins::unlink(&other.directory.join(name(side, interface)))?;
            }
        }
        Ok(())
    }

    fn record_qdisc(&self, interface: u32) -> Result<()> {
        let record = self.qdisc(interface);
        fs::create_dir_all(&record).map_err(Error::file("make directory", record))
    }

    fn qdisc(&self, interface: u32) -> PathBuf {
        self.directory.join(format!("{QDISC}{interface}"))
    }
}

fn name(side: Side, interface: u32) -> String {
    Attachment::Interface(side, interface).name()
}

const fn parent(side: Side) -> FilterSide {
    match side {
        Side::Guard => FilterSide::Egress,
        Side::HostEgress => FilterSide::EgressSecond,
        Side::Ingress => FilterSide::Ingress,
    }
}

fn remove_directory(path: &Path) -> Result<()> {
    fs::remove_dir(path).map_err(Error::file("remove directory", path))
}
