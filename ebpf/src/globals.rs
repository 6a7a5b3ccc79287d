//! Constants that the agent sets when it loads the programs.

use aya_ebpf::Global;

/// Bits of a mark that are ours.
#[unsafe(no_mangle)]
pub static MARK_MASK: Global<u32> = Global::new(0);

/// Cookie of the network namespace that is steered; sockets of others are left alone.
#[unsafe(no_mangle)]
pub static NETNS_COOKIE: Global<u64> = Global::new(0);

/// Offset of `kn` in `struct cgroup`.
#[unsafe(no_mangle)]
pub static CGROUP_KN: Global<u32> = Global::new(0);

/// Offset of `self.parent` in `struct cgroup`.
#[unsafe(no_mangle)]
pub static CGROUP_SELF_PARENT: Global<u32> = Global::new(0);

/// Offset of `self` in `struct cgroup`.
#[unsafe(no_mangle)]
pub static CGROUP_SELF: Global<u32> = Global::new(0);

/// Offset of `root` in `struct cgroup`.
#[unsafe(no_mangle)]
pub static CGROUP_ROOT: Global<u32> = Global::new(0);

/// Offset of `hierarchy_id` in `struct cgroup_root`.
#[unsafe(no_mangle)]
pub static CGROUP_ROOT_HIERARCHY_ID: Global<u32> = Global::new(0);

/// Offset of `id` in `struct kernfs_node`.
#[unsafe(no_mangle)]
pub static KERNFS_NODE_ID: Global<u32> = Global::new(0);

/// Offset of `name` in `struct kernfs_node`.
#[unsafe(no_mangle)]
pub static KERNFS_NODE_NAME: Global<u32> = Global::new(0);
