//! `cgroup_mkdir`, `cgroup_rmdir`: a new cgroup has its parent's policy before its first process, and
//! a removed one leaves nothing.
//!
//! Tracepoints with BTF, because tracefs may not be mounted. The kernel calls them with its cgroup
//! lock held, `cgroup_mkdir` before user space can see the directory.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::generated::bpf_probe_read_kernel_str, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use steer_common::{CgroupEntry, CgroupEvent, EventKind, NAME_LEN, NameKey, cgroup_flags, counter};

use crate::{
    count::count,
    globals,
    kernel::read,
    log::log,
    maps::{CGROUPS, EVENTS, NAMES},
};

/// Entry.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    let Some(cgroup) = Cgroup::unified(ctx.arg(0)) else {
        return 0;
    };
    let Some(id) = cgroup.id() else { return 0 };
    let parent = cgroup.parent().and_then(|parent| parent.id()).unwrap_or(0);
    enter(&cgroup, id, parent);
    tell(EventKind::CgroupMade, id, parent, cgroup.name());
    0
}

/// Entry.
#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    let Some(cgroup) = Cgroup::unified(ctx.arg(0)) else {
        return 0;
    };
    let Some(id) = cgroup.id() else { return 0 };
    // Absent where no policy ever held.
    let _: Result<(), i32> = CGROUPS.remove(id);
    let parent = cgroup.parent().and_then(|parent| parent.id()).unwrap_or(0);
    tell(EventKind::CgroupRemoved, id, parent, None);
    0
}

/// Gives a new cgroup the entry of its name, or else what it has from its parent. The bits are those
/// of [`cgroup_flags`].
fn enter(cgroup: &Cgroup, id: u64, parent: u64) {
    // SAFETY: copied at once.
    let Some(&parent) = (unsafe { CGROUPS.get(parent) }) else {
        return;
    };
    if parent.flags & cgroup_flags::EXEMPT != 0 {
        return;
    }
    let entry = named(cgroup, parent).unwrap_or_else(|flags| inherited(parent, flags));
    if entry == CgroupEntry::default() {
        return;
    }
    if CGROUPS.insert(id, entry, 0).is_err() {
        count(counter::CGROUPS_FULL);
        return;
    }
    log!(log_entered(id, entry.policy, entry.flags));
}

/// What a new child of `parent` has from it, and `flags` besides.
fn inherited(parent: CgroupEntry, mut flags: u32) -> CgroupEntry {
    const INHERITED: u32 = cgroup_flags::UNDECIDED
        | cgroup_flags::DESCENDANTS_UNDECIDED
        | cgroup_flags::UNITS_UNDECIDED;
    flags |= parent.flags & INHERITED;
    if parent.flags & (cgroup_flags::CHILDREN_UNDECIDED | cgroup_flags::DESCENDANTS_UNDECIDED) != 0
    {
        flags |= cgroup_flags::UNDECIDED;
    }
    CgroupEntry {
        policy: parent.policy,
        flags,
        place: 0,
    }
}

/// The entry that policies have for a new child of `parent` by its name, or else the flags that its
/// name alone gives it.
fn named(cgroup: &Cgroup, parent: CgroupEntry) -> Result<CgroupEntry, u32> {
    let units = parent.flags & cgroup_flags::UNITS_UNDECIDED != 0;
    if parent.place == 0 && !units {
        return Err(0);
    }
    let mut key = NameKey {
        place: parent.place,
        name: [0; NAME_LEN],
    };
    let Some(name) = cgroup.name() else {
        return Err(0);
    };
    // SAFETY: written within the bounds of the key's name; what is read from the map is copied at once.
    unsafe {
        bpf_probe_read_kernel_str(key.name.as_mut_ptr().cast(), NAME_LEN as u32, name);
        if parent.place != 0
            && let Some(entry) = NAMES.get(&key)
        {
            return Ok(*entry);
        }
        key.place = 0;
        if units && NAMES.get(&key).is_some() {
            return Err(cgroup_flags::UNDECIDED);
        }
    }
    Err(0)
}

fn tell(kind: EventKind, id: u64, parent: u64, name: Option<*const c_void>) {
    let Some(mut record) = EVENTS.reserve(0) else {
        count(counter::EVENTS_LOST);
        return;
    };
    let event: *mut CgroupEvent = record.as_mut_ptr();
    // SAFETY: the record has this type's size; the name is written within its bounds and ends in zero.
    unsafe {
        (&raw mut (*event).kind).write(kind as u32);
        (&raw mut (*event).reserved).write(0);
        (&raw mut (*event).id).write(id);
        (&raw mut (*event).parent).write(parent);
        let target = (&raw mut (*event).name).cast::<c_void>();
        let written = match name {
            Some(name) => bpf_probe_read_kernel_str(target, NAME_LEN as u32, name),
            None => 0,
        };
        if written <= 0 {
            target.cast::<u8>().write(0);
        }
    }
    record.submit(0);
}

/// A `struct cgroup` of the kernel.
struct Cgroup(*const c_void);

impl Cgroup {
    /// The cgroup, if it is one of the unified hierarchy, which is number 0.
    fn unified(cgroup: *const c_void) -> Option<Self> {
        let root: *const c_void = read(cgroup, globals::CGROUP_ROOT.load())?;
        let hierarchy: i32 = read(root, globals::CGROUP_ROOT_HIERARCHY_ID.load())?;
        (hierarchy == 0).then_some(Self(cgroup))
    }

    fn node(&self) -> Option<*const c_void> {
        read(self.0, globals::CGROUP_KN.load())
    }

    fn id(&self) -> Option<u64> {
        read(self.node()?, globals::KERNFS_NODE_ID.load())
    }

    fn name(&self) -> Option<*const c_void> {
        read(self.node()?, globals::KERNFS_NODE_NAME.load())
    }

    fn parent(&self) -> Option<Self> {
        let state: *const c_void = read(self.0, globals::CGROUP_SELF_PARENT.load())?;
        if state.is_null() {
            return None;
        }
        Some(Self(
            state.wrapping_byte_sub(globals::CGROUP_SELF.load() as usize),
        ))
    }
}
