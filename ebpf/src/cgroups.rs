//! `cgroup_mkdir`, `cgroup_rmdir`: a new cgroup has its parent's policy before its first process, and
//! a removed one leaves nothing.
//!
//! Tracepoints with BTF, because tracefs may not be mounted. The kernel calls them with its cgroup
//! lock held, `cgroup_mkdir` before user space can see the directory.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use steer_common::{CgroupEntry, CgroupEvent, EventKind, NAME_LEN, cgroup_flags, counter};

use crate::{
    count::count,
    globals,
    maps::{CGROUPS, EVENTS},
};

/// Entry.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    let Some(cgroup) = Cgroup::unified(ctx.arg(0)) else {
        return 0;
    };
    let Some(id) = cgroup.id() else { return 0 };
    let parent = cgroup.parent().and_then(|parent| parent.id()).unwrap_or(0);
    inherit(id, parent);
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

/// Gives cgroup `id` what it has from its parent. The bits are those of [`cgroup_flags`].
fn inherit(id: u64, parent: u64) {
    // SAFETY: copied at once.
    let Some(&parent) = (unsafe { CGROUPS.get(parent) }) else {
        return;
    };
    if parent.flags & cgroup_flags::EXEMPT != 0 {
        return;
    }
    let mut flags = parent.flags & (cgroup_flags::UNDECIDED | cgroup_flags::DESCENDANTS_UNDECIDED);
    if parent.flags & (cgroup_flags::CHILDREN_UNDECIDED | cgroup_flags::DESCENDANTS_UNDECIDED) != 0
    {
        flags |= cgroup_flags::UNDECIDED;
    }
    if parent.policy == 0 && flags == 0 {
        return;
    }
    let entry = CgroupEntry {
        policy: parent.policy,
        flags,
    };
    if CGROUPS.insert(id, entry, 0).is_err() {
        count(counter::CGROUPS_FULL);
    }
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

/// Reads a member of a kernel structure. Offsets are known at load time only, so these are not
/// direct, checked accesses; the kernel's reader fails on a wrong one.
#[inline(always)]
fn read<T: Copy>(object: *const c_void, offset: u32) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: `value` has the size that is told; it is used only if the kernel filled it.
    unsafe {
        let result = bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            object.wrapping_byte_add(offset as usize),
        );
        (result == 0).then(|| value.assume_init())
    }
}
