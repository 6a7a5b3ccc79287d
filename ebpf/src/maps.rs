//! The maps. What they hold is described by the types of `steer-common`.

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_INNER_MAP, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE,
        bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
    },
    btf_maps::{
        Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf,
    },
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::btf_map,
};
use steer_common::{
    CgroupEntry, CgroupEvent, ChoiceEntry, DomainSlots, EVENT_RING_BYTES, FlowState, FragmentKey,
    FragmentLease, HostCounts, HostKey, IngressEntry, LocalEntry, MAX_CGROUPS, MAX_CHOICES,
    MAX_DOMAINS, MAX_ECHOES, MAX_FRAGMENTS, MAX_GUARDED, MAX_HOSTS, MAX_INGRESS, MAX_LOCALS,
    MAX_NAMES, MAX_POLICIES, MAX_REPAIRED, MAX_SHARES, MAX_SOURCES, MAX_TRAFFIC, NameKey,
    PolicyEntry, RepairKey, RepairLease, ReturnKey, ReturnLease, ShareEntry, SocketLease,
    SourceKey, Traffic, TrafficKey, cell, counter,
    rules::{MAX_RULESETS, RulePage},
};

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// Cgroup id -> the policy in force for it.
#[btf_map]
pub static CGROUPS: HashMap<u64, CgroupEntry, { MAX_CGROUPS as usize }, ON_DEMAND> = HashMap::new();

/// Name of a cgroup that strict policies name -> its entry when it is made.
#[btf_map]
pub static NAMES: HashMap<NameKey, CgroupEntry, { MAX_NAMES as usize }, ON_DEMAND> = HashMap::new();

/// Policy -> choice.
#[btf_map]
pub static POLICIES: Array<PolicyEntry, { MAX_POLICIES as usize }> = Array::new();

/// Choice -> domain.
#[btf_map]
pub static CHOICES: Array<ChoiceEntry, { MAX_CHOICES as usize }> = Array::new();

/// Choice whose flows are spread -> the domains of its slots.
#[btf_map]
pub static SHARES: HashMap<u32, ShareEntry, { MAX_SHARES as usize }, ON_DEMAND> = HashMap::new();

/// The pages of a compiled set of rules. Sets differ in size, which `BPF_F_INNER_MAP` allows.
pub type RuleSet = Array<RulePage, 1, { BPF_F_INNER_MAP as usize }>;

/// Number of a policy's rules -> the set.
#[btf_map]
pub static RULESETS: ArrayOfMaps<RuleSet, { MAX_RULESETS as usize }> = ArrayOfMaps::new();

/// Domain -> mark, interface and sources.
#[btf_map]
pub static DOMAINS: Array<DomainSlots, { MAX_DOMAINS as usize }> = Array::new();

/// All addresses of every domain.
#[btf_map]
pub static SOURCES: HashMap<SourceKey, u8, { MAX_SOURCES as usize }, ON_DEMAND> = HashMap::new();

/// On-link prefixes and own addresses, IPv4.
#[btf_map]
pub static LOCALS4: LpmTrie<[u8; 4], LocalEntry, { MAX_LOCALS as usize }> = LpmTrie::new();

/// On-link prefixes and own addresses, IPv6.
#[btf_map]
pub static LOCALS6: LpmTrie<[u8; 16], LocalEntry, { MAX_LOCALS as usize }> = LpmTrie::new();

/// Interface -> what is done with what arrives there.
#[btf_map]
pub static INGRESS: HashMap<u32, IngressEntry, { MAX_INGRESS as usize }, ON_DEMAND> =
    HashMap::new();

/// Addresses of the host, and where they are at home.
#[btf_map]
pub static HOSTS: HashMap<HostKey, u8, { MAX_HOSTS as usize }, ON_DEMAND> = HashMap::new();

/// Interface -> what the strong host model drops there.
#[btf_map]
pub static HOST_COUNTS: PerCpuHashMap<u32, HostCounts, { MAX_INGRESS as usize }, ON_DEMAND> =
    PerCpuHashMap::new();

/// Interfaces that have a guard.
#[btf_map]
pub static GUARDED: HashMap<u32, u8, { MAX_GUARDED as usize }, ON_DEMAND> = HashMap::new();

/// Repaired flow -> what its packets get.
#[btf_map]
pub static REPAIRED: LruHashMap<RepairKey, RepairLease, { MAX_REPAIRED as usize }> =
    LruHashMap::new();

/// Answer to a repaired flow -> where it is to arrive.
#[btf_map]
pub static RETURNS: LruHashMap<ReturnKey, ReturnLease, { MAX_REPAIRED as usize }> =
    LruHashMap::new();

/// As `REPAIRED`, of pings.
#[btf_map]
pub static ECHOES: LruHashMap<RepairKey, RepairLease, { MAX_ECHOES as usize }> = LruHashMap::new();

/// As `RETURNS`, of pings.
#[btf_map]
pub static ECHO_RETURNS: LruHashMap<ReturnKey, ReturnLease, { MAX_ECHOES as usize }> =
    LruHashMap::new();

/// Repaired flow's socket -> what its packets get.
#[btf_map]
pub static SOCKET_LEASES: SocketStorage<SocketLease, ON_DEMAND> = SocketStorage::new();

/// See [`cell`].
#[btf_map]
pub static CELLS: Array<u32, { cell::COUNT as usize }> = Array::new();

/// First fragment of a repaired flow's packet -> what the later ones get.
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentLease, { MAX_FRAGMENTS as usize }> =
    LruHashMap::new();

/// See [`counter`].
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { counter::COUNT as usize }> = PerCpuArray::new();

/// What was sent for each policy by each domain.
#[btf_map]
pub static TRAFFIC: PerCpuHashMap<TrafficKey, Traffic, { MAX_TRAFFIC as usize }, ON_DEMAND> =
    PerCpuHashMap::new();

/// What the agent is told.
#[btf_map]
pub static EVENTS: RingBuf<CgroupEvent, { EVENT_RING_BYTES as usize }> = RingBuf::new();

/// What sockets remember. Accepted sockets take over their listener's state, hence `BPF_F_CLONE`.
#[btf_map]
pub static FLOWS3: SocketStorage<FlowState, { (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize }> =
    SocketStorage::new();

/// Definition of a socket storage map in the form that loaders read from BTF. aya's own `SkStorage` takes no
/// other flags, and no socket but that of an address program.
#[repr(C)]
pub struct SocketStorage<V, const FLAGS: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const V,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the pointers only carry types for the loader and are never followed.
unsafe impl<V, const FLAGS: usize> Sync for SocketStorage<V, FLAGS> {}

impl<V, const FLAGS: usize> SocketStorage<V, FLAGS> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The value of a socket, if it has one, which lives as long as the program runs.
    #[inline(always)]
    pub fn get<S>(&self, socket: *mut S) -> Option<&'static mut V> {
        self.value(socket, core::ptr::null_mut(), 0)
    }

    /// The value of a socket, beginning with `initial`. `None`: no memory.
    #[inline(always)]
    pub fn get_or_create<S>(&self, socket: *mut S, initial: &mut V) -> Option<&'static mut V> {
        self.value(socket, initial, BPF_SK_STORAGE_GET_F_CREATE.into())
    }

    #[inline(always)]
    fn value<S>(&self, socket: *mut S, initial: *mut V, flags: u64) -> Option<&'static mut V> {
        // SAFETY: `initial` is null or outlives the call; the kernel gives null or this socket's own value.
        unsafe {
            bpf_sk_storage_get(self.as_ptr(), socket.cast(), initial.cast(), flags)
                .cast::<V>()
                .as_mut()
        }
    }

    /// Removes the value of a socket, if it has one.
    #[inline(always)]
    pub fn remove<S>(&self, socket: *mut S) {
        // SAFETY: the verifier checks that it is a socket. There being none is no failure.
        unsafe { bpf_sk_storage_delete(self.as_ptr(), socket.cast()) };
    }

    fn as_ptr(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// A number of [`CELLS`].
#[inline(always)]
pub fn cell(index: u32) -> u32 {
    match CELLS.get(index) {
        // SAFETY: a valid, aligned word, which may change.
        Some(cell) => unsafe { core::ptr::from_ref(cell).read_volatile() },
        None => 0,
    }
}
