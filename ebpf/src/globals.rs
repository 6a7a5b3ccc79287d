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

/// Offset of `sk` in `struct bpf_sock_addr_kern`.
#[unsafe(no_mangle)]
pub static SOCK_ADDR_SK: Global<u32> = Global::new(0);

/// Offset of `uc_index` in `struct inet_sock`; 0, here and below: not known.
#[unsafe(no_mangle)]
pub static INET_UNICAST_IF: Global<u32> = Global::new(0);

/// Offset of `pinet6` in `struct inet_sock`.
#[unsafe(no_mangle)]
pub static INET6: Global<u32> = Global::new(0);

/// Offset of `ucast_oif` in `struct ipv6_pinfo`.
#[unsafe(no_mangle)]
pub static INET6_UNICAST_IF: Global<u32> = Global::new(0);

/// Offset of the byte in `struct ipv6_pinfo` that says whether public addresses are preferred: of `srcprefs`,
/// which in older kernels is a bit field.
#[unsafe(no_mangle)]
pub static INET6_PREFERENCES: Global<u32> = Global::new(0);

/// The bit of that byte.
#[unsafe(no_mangle)]
pub static INET6_PREFERS_PUBLIC: Global<u32> = Global::new(0);

/// Offset of `inet6`, a `struct ipv6_pinfo`, in `struct udp6_sock`.
#[unsafe(no_mangle)]
pub static UDP6_INET6: Global<u32> = Global::new(0);
