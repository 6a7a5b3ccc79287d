//! The maps, as typed tables.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use bytemuck::Pod;
use steer_common::{
    CgroupEntry, ChoiceEntry, DomainSlots, EVENT_RING_BYTES, FlowState, FragmentKey, FragmentLease,
    HostCounts, HostKey, IngressEntry, LocalEntry, LocalKey4, LocalKey6, MAX_CGROUPS, MAX_CHOICES,
    MAX_DOMAINS, MAX_ECHOES, MAX_FRAGMENTS, MAX_GUARDED, MAX_HOSTS, MAX_INGRESS, MAX_LOCALS,
    MAX_NAMES, MAX_POLICIES, MAX_REPAIRED, MAX_SHARES, MAX_SOURCES, MAX_TRAFFIC, NameKey,
    PolicyEntry, RepairKey, RepairLease, ReturnKey, ReturnLease, ShareEntry, SocketLease,
    SourceKey, Traffic, TrafficKey, cell, counter, rules::MAX_RULESETS,
};

use super::{
    domains::Domains,
    error::{Error, Result},
    rulesets::Rulesets,
    sys,
};

/// What a map must be.
pub(super) struct MapSpec {
    pub(super) name: &'static str,
    kind: u32,
    key_size: usize,
    value_size: usize,
    max_entries: u32,
}

impl MapSpec {
    /// Entries of a map that only has to be there; `None`: as many as ever.
    pub(super) const fn least_entries(&self) -> Option<u32> {
        match self.kind {
            HASH | ARRAY | PERCPU_HASH | LPM_TRIE | ARRAY_OF_MAPS => Some(1),
            LRU_HASH => Some(64),
            // One page.
            RINGBUF => Some(4096),
            _ => None,
        }
    }
}

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_HASH: u32 = 5;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const LPM_TRIE: u32 = 11;
const ARRAY_OF_MAPS: u32 = 12;
const SK_STORAGE: u32 = 24;
const RINGBUF: u32 = 27;

const fn spec<K, V>(name: &'static str, kind: u32, max_entries: u32) -> MapSpec {
    MapSpec {
        name,
        kind,
        key_size: size_of::<K>(),
        value_size: size_of::<V>(),
        max_entries,
    }
}

const CGROUPS: MapSpec = spec::<u64, CgroupEntry>("CGROUPS", HASH, MAX_CGROUPS);
const NAMES: MapSpec = spec::<NameKey, CgroupEntry>("NAMES", HASH, MAX_NAMES);
const POLICIES: MapSpec = spec::<u32, PolicyEntry>("POLICIES", ARRAY, MAX_POLICIES);
const CHOICES: MapSpec = spec::<u32, ChoiceEntry>("CHOICES", ARRAY, MAX_CHOICES);
const SHARES: MapSpec = spec::<u32, ShareEntry>("SHARES", HASH, MAX_SHARES);
/// Its values are maps.
pub(super) const RULESETS: MapSpec = spec::<u32, u32>("RULESETS", ARRAY_OF_MAPS, MAX_RULESETS);
const DOMAINS: MapSpec = spec::<u32, DomainSlots>("DOMAINS", ARRAY, MAX_DOMAINS);
const SOURCES: MapSpec = spec::<SourceKey, u8>("SOURCES", HASH, MAX_SOURCES);
const LOCALS4: MapSpec = spec::<LocalKey4, LocalEntry>("LOCALS4", LPM_TRIE, MAX_LOCALS);
const LOCALS6: MapSpec = spec::<LocalKey6, LocalEntry>("LOCALS6", LPM_TRIE, MAX_LOCALS);
const INGRESS: MapSpec = spec::<u32, IngressEntry>("INGRESS", HASH, MAX_INGRESS);
const HOSTS: MapSpec = spec::<HostKey, u8>("HOSTS", HASH, MAX_HOSTS);
const HOST_COUNTS: MapSpec = spec::<u32, HostCounts>("HOST_COUNTS", PERCPU_HASH, MAX_INGRESS);
const GUARDED: MapSpec = spec::<u32, u8>("GUARDED", HASH, MAX_GUARDED);
const REPAIRED: MapSpec = spec::<RepairKey, RepairLease>("REPAIRED", LRU_HASH, MAX_REPAIRED);
const RETURNS: MapSpec = spec::<ReturnKey, ReturnLease>("RETURNS", LRU_HASH, MAX_REPAIRED);
const ECHOES: MapSpec = spec::<RepairKey, RepairLease>("ECHOES", LRU_HASH, MAX_ECHOES);
const ECHO_RETURNS: MapSpec = spec::<ReturnKey, ReturnLease>("ECHO_RETURNS", LRU_HASH, MAX_ECHOES);
const SOCKET_LEASES: MapSpec = spec::<i32, SocketLease>("SOCKET_LEASES", SK_STORAGE, 0);
const CELLS: MapSpec = spec::<u32, u32>("CELLS", ARRAY, cell::COUNT);
const FRAGMENTS: MapSpec = spec::<FragmentKey, FragmentLease>("FRAGMENTS", LRU_HASH, MAX_FRAGMENTS);
const COUNTERS: MapSpec = spec::<u32, u64>("COUNTERS", PERCPU_ARRAY, counter::COUNT);
pub(super) const TRAFFIC: MapSpec =
    spec::<TrafficKey, Traffic>("TRAFFIC", PERCPU_HASH, MAX_TRAFFIC);
/// What sockets remember.
pub(super) const FLOWS: MapSpec = spec::<i32, FlowState>("FLOWS3", SK_STORAGE, 0);
/// The ring of events.
pub(super) const EVENTS: MapSpec = spec::<(), ()>("EVENTS", RINGBUF, EVENT_RING_BYTES);

/// Every map there is.
pub(super) const MAPS: [MapSpec; 25] = [
    CGROUPS,
    NAMES,
    POLICIES,
    CHOICES,
    SHARES,
    RULESETS,
    DOMAINS,
    SOURCES,
    LOCALS4,
    LOCALS6,
    INGRESS,
    HOSTS,
    HOST_COUNTS,
    GUARDED,
    REPAIRED,
    RETURNS,
    ECHOES,
    ECHO_RETURNS,
    SOCKET_LEASES,
    CELLS,
    FRAGMENTS,
    COUNTERS,
    TRAFFIC,
    FLOWS,
    EVENTS,
];

impl MapSpec {
    /// Opens the map that is pinned in `directory`, if it is as it must be. `None`: nothing there.
    pub(super) fn open(&self, directory: &Path) -> Result<Option<OwnedFd>> {
        let path = directory.join(self.name);
        let map = match sys::get(&path) {
            Ok(map) => map,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(Error::File {
                    operation: "open pinned map",
                    path,
                    source,
                });
            }
        };
        let found = sys::map_info(map.as_fd())
            .map_err(Error::kernel("read the properties of map", self.name))?;
        let found = [
            found.kind,
            found.key_size,
            found.value_size,
            found.max_entries,
        ];
        let size = |size: usize| u32::try_from(size).expect("map elements are small");
        let expected = [
            self.kind,
            size(self.key_size),
            size(self.value_size),
            self.max_entries,
        ];
        if found != expected {
            let describe = |[kind, key, value, entries]: [u32; 4]| {
                format!("type {kind}, keys of {key} and values of {value} bytes, {entries} entries")
            };
            return Err(Error::MapDiffers {
                path,
                found: describe(found),
                expected: describe(expected),
            });
        }
        Ok(Some(map))
    }

    pub(super) fn open_existing(&self, directory: &Path) -> Result<OwnedFd> {
        self.open(directory)?.ok_or_else(|| Error::File {
            operation: "open pinned map",
            path: directory.join(self.name),
            source: io::ErrorKind::NotFound.into(),
        })
    }
}

/// Elements per system call when many are written or read.
const BATCH: usize = 4_096;
/// Most bytes of them that are read by one, unless a bucket of a hash table holds more.
const BATCH_BYTES: usize = 256 * 1024;

/// A map from `K` to `V` whose keys come and go.
pub struct Table<K, V> {
    map: OwnedFd,
    name: &'static str,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    fn open(spec: &MapSpec, directory: &Path) -> Result<Self> {
        debug_assert_eq!(
            (spec.key_size, spec.value_size),
            (size_of::<K>(), size_of::<V>())
        );
        Ok(Self {
            map: spec.open_existing(directory)?,
            name: spec.name,
            types: PhantomData,
        })
    }

    /// The table that a map is.
    pub(super) const fn of(map: OwnedFd, name: &'static str) -> Self {
        Self {
            map,
            name,
            types: PhantomData,
        }
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let mut value = V::zeroed();
        let found = sys::lookup(
            self.map.as_fd(),
            bytemuck::bytes_of(key),
            bytemuck::bytes_of_mut(&mut value),
        )
        .map_err(Error::kernel("read map", self.name))?;
        Ok(found.then_some(value))
    }

    /// Sets the value of `key`.
    pub fn set(&self, key: &K, value: &V) -> Result<()> {
        sys::update(
            self.map.as_fd(),
            bytemuck::bytes_of(key),
            bytemuck::bytes_of(value),
        )
        .map_err(Error::kernel("write map", self.name))
    }

    /// Sets many, a few thousand by one system call.
    pub fn set_all(&self, elements: &[(K, V)]) -> Result<()> {
        set_all(&self.map, self.name, elements.iter().copied())
    }

    /// Removes `key`. False: it was not there.
    pub fn remove(&self, key: &K) -> Result<bool> {
        sys::delete(self.map.as_fd(), bytemuck::bytes_of(key))
            .map_err(Error::kernel("delete from map", self.name))
    }

    /// Everything in it, in no order. What is added or removed meanwhile may be missed.
    pub fn entries(&self) -> Result<Vec<(K, V)>> {
        entries(&self.map, self.name)
    }
}

/// A map from a number to a `V` for each CPU, which programs fill.
pub(super) struct PerCpu<V> {
    map: OwnedFd,
    name: &'static str,
    types: PhantomData<fn() -> V>,
}

impl<V: Pod> PerCpu<V> {
    fn open(spec: &MapSpec, directory: &Path) -> Result<Self> {
        // The kernel pads values to eight bytes.
        debug_assert_eq!((spec.key_size, spec.value_size), (4, size_of::<V>()));
        debug_assert_eq!(size_of::<V>() % 8, 0);
        Ok(Self {
            map: spec.open_existing(directory)?,
            name: spec.name,
            types: PhantomData,
        })
    }

    /// The values of `key`, if there are some.
    pub(super) fn get(&self, key: u32) -> Result<Vec<V>> {
        let mut values = vec![V::zeroed(); cpus()?];
        let found = sys::lookup(
            self.map.as_fd(),
            bytemuck::bytes_of(&key),
            bytemuck::cast_slice_mut(&mut values),
        )
        .map_err(Error::kernel("read map", self.name))?;
        if !found {
            values.clear();
        }
        Ok(values)
    }

    /// Removes `key`. False: it was not there.
    pub(super) fn remove(&self, key: u32) -> Result<bool> {
        sys::delete(self.map.as_fd(), bytemuck::bytes_of(&key))
            .map_err(Error::kernel("delete from map", self.name))
    }
}

/// A map from an index to `V`, where zero means "nothing".
pub struct Array<V> {
    map: OwnedFd,
    name: &'static str,
    types: PhantomData<fn() -> V>,
}

impl<V: Pod + PartialEq> Array<V> {
    fn open(spec: &MapSpec, directory: &Path) -> Result<Self> {
        debug_assert_eq!((spec.key_size, spec.value_size), (4, size_of::<V>()));
        Ok(Self {
            map: spec.open_existing(directory)?,
            name: spec.name,
            types: PhantomData,
        })
    }

    /// The value at `index`. An index beyond the end is an error.
    pub fn get(&self, index: u32) -> Result<V> {
        let mut value = V::zeroed();
        let found = sys::lookup(
            self.map.as_fd(),
            bytemuck::bytes_of(&index),
            bytemuck::bytes_of_mut(&mut value),
        )
        .map_err(Error::kernel("read map", self.name))?;
        if found {
            Ok(value)
        } else {
            Err(self.beyond_end())
        }
    }

    fn beyond_end(&self) -> Error {
        Error::Kernel {
            operation: "read map",
            object: self.name.to_owned(),
            source: io::Error::from_raw_os_error(libc::E2BIG),
        }
    }

    /// Sets the value at `index`. An index beyond the end is an error.
    pub fn set(&self, index: u32, value: &V) -> Result<()> {
        sys::update(
            self.map.as_fd(),
            bytemuck::bytes_of(&index),
            bytemuck::bytes_of(value),
        )
        .map_err(Error::kernel("write map", self.name))
    }

    /// Sets many, a few thousand by one system call.
    pub fn set_all(&self, elements: &[(u32, V)]) -> Result<()> {
        set_all(&self.map, self.name, elements.iter().copied())
    }

    /// All that are not zero.
    pub fn entries(&self) -> Result<Vec<(u32, V)>> {
        let mut all = Vec::new();
        for_each(&self.map, self.name, 1, |index, values: &[V]| {
            if values[0] != V::zeroed() {
                all.push((index, values[0]));
            }
        })?;
        Ok(all)
    }
}

fn set_all<K: Pod, V: Pod>(
    map: &OwnedFd,
    name: &'static str,
    elements: impl ExactSizeIterator<Item = (K, V)>,
) -> Result<()> {
    let mut elements = elements.peekable();
    while elements.peek().is_some() {
        let (keys, values): (Vec<K>, Vec<V>) = elements.by_ref().take(BATCH).unzip();
        let count = u32::try_from(keys.len()).expect("at most a batch");
        sys::update_batch(
            map.as_fd(),
            bytemuck::cast_slice(&keys),
            bytemuck::cast_slice(&values),
            count,
        )
        .map_err(Error::kernel("write map", name))?;
    }
    Ok(())
}

fn entries<K: Pod, V: Pod>(map: &OwnedFd, name: &'static str) -> Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    for_each(map, name, 1, |key, values: &[V]| all.push((key, values[0])))?;
    Ok(all)
}

/// Everything in a map whose elements have so many values: one, or one for each CPU.
pub(super) fn for_each<K: Pod, V: Pod>(
    map: &OwnedFd,
    name: &'static str,
    cpus: usize,
    mut seen: impl FnMut(K, &[V]),
) -> Result<()> {
    let element = size_of::<K>() + size_of::<V>() * cpus;
    let mut room = BATCH.min(BATCH_BYTES / element).max(1);
    let mut keys = vec![K::zeroed(); room];
    let mut values = vec![V::zeroed(); room * cpus];
    let mut from = None;
    loop {
        let found = sys::lookup_batch(
            map.as_fd(),
            from,
            bytemuck::cast_slice_mut(&mut keys),
            bytemuck::cast_slice_mut(&mut values),
            u32::try_from(room).expect("a few batches"),
        );
        match found {
            Ok(found) => {
                let count = found.count as usize;
                for (key, values) in keys.iter().zip(values.chunks(cpus)).take(count) {
                    seen(*key, values);
                }
                match found.next {
                    Some(next) => from = Some(next),
                    None => return Ok(()),
                }
            }
            // One bucket of the hash table holds more than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                room *= 2;
                keys.resize(room, K::zeroed());
                values.resize(room * cpus, V::zeroed());
            }
            Err(error) => return Err(Error::kernel("read map", name)(error)),
        }
    }
}

/// Every table that the agent writes.
pub struct Tables {
    /// Cgroup id -> the policy in force for it.
    pub cgroups: Table<u64, CgroupEntry>,
    /// Name of a cgroup that policies name -> its entry when it is made.
    pub names: Table<NameKey, CgroupEntry>,
    /// Policy -> choice.
    pub policies: Array<PolicyEntry>,
    /// Choice -> domain.
    pub choices: Array<ChoiceEntry>,
    /// Choice -> the members that its flows are spread over.
    pub shares: Table<u32, ShareEntry>,
    /// Number of a policy's rules -> the compiled set.
    pub rulesets: Rulesets,
    /// Domain -> mark, interface, sources.
    pub domains: Domains,
    /// All addresses of every domain.
    pub sources: Table<SourceKey, u8>,
    /// On-link prefixes and own addresses, IPv4.
    pub locals4: Table<LocalKey4, LocalEntry>,
    /// On-link prefixes and own addresses, IPv6.
    pub locals6: Table<LocalKey6, LocalEntry>,
    /// Addresses of the host and where they are at home.
    pub hosts: Table<HostKey, u8>,
    pub(super) host_counts: PerCpu<HostCounts>,
    pub(super) ingress: Table<u32, IngressEntry>,
    pub(super) guarded: Table<u32, u8>,
    cells: Array<u32>,
    counters: OwnedFd,
    pub(super) traffic: OwnedFd,
    flows: OwnedFd,
}

impl Tables {
    /// Opens the maps that are pinned in `directory`.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let tables = Self {
            cgroups: Table::open(&CGROUPS, directory)?,
            names: Table::open(&NAMES, directory)?,
            policies: Array::open(&POLICIES, directory)?,
            choices: Array::open(&CHOICES, directory)?,
            shares: Table::open(&SHARES, directory)?,
            rulesets: Rulesets::open(directory)?,
            domains: Domains::new(Array::open(&DOMAINS, directory)?),
            sources: Table::open(&SOURCES, directory)?,
            locals4: Table::open(&LOCALS4, directory)?,
            locals6: Table::open(&LOCALS6, directory)?,
            hosts: Table::open(&HOSTS, directory)?,
            host_counts: PerCpu::open(&HOST_COUNTS, directory)?,
            ingress: Table::open(&INGRESS, directory)?,
            guarded: Table::open(&GUARDED, directory)?,
            cells: Array::open(&CELLS, directory)?,
            counters: COUNTERS.open_existing(directory)?,
            traffic: TRAFFIC.open_existing(directory)?,
            flows: FLOWS.open_existing(directory)?,
        };
        tables.have_secret()?;
        Ok(tables)
    }

    /// Ends what programs found out by what has been written since: to be called after anything that flows are
    /// decided by was changed, and before anybody is told so.
    pub fn count_change(&self) -> Result<()> {
        let made = self.cells.get(cell::CHANGES)?;
        self.cells.set(cell::CHANGES, &made.wrapping_add(1))
    }

    /// Sees to it that there is a hash by which strict policies' packets are known behind a tunnel.
    fn have_secret(&self) -> Result<()> {
        if self.cells.get(cell::TUNNELLED)? != 0 {
            return Ok(());
        }
        let random = sys::random().map_err(Error::kernel("have a random number for", "tunnels"))?;
        self.cells.set(cell::TUNNELLED, &random.get())
    }

    /// The socket storage with what sockets remember ([`FlowState`]), for a dump of live flows.
    pub fn flows(&self) -> BorrowedFd<'_> {
        self.flows.as_fd()
    }

    /// What the programs counted since their maps were made, over all CPUs.
    pub fn counters(&self) -> Result<Counters> {
        let cpus = cpus()?;
        let read = |index: u32| -> Result<u64> {
            let mut values = vec![0_u64; cpus];
            sys::lookup(
                self.counters.as_fd(),
                bytemuck::bytes_of(&index),
                bytemuck::cast_slice_mut(&mut values),
            )
            .map_err(Error::kernel("read map", COUNTERS.name))?;
            Ok(values.iter().sum())
        };
        Ok(Counters {
            connect_steered: read(counter::CONNECT_STEERED)?,
            refused: read(counter::REFUSED)?,
            source_failed: read(counter::SOURCE_FAILED)?,
            not_allowed: read(counter::NOT_ALLOWED)?,
            guard_passed: read(counter::GUARD_PASSED)?,
            guard_dropped: read(counter::GUARD_DROPPED)?,
            events_lost: read(counter::EVENTS_LOST)?,
            storage_failed: read(counter::STORAGE_FAILED)?,
            cgroups_full: read(counter::CGROUPS_FULL)?,
            guard_wrong: read(counter::GUARD_WRONG)?,
            traffic_lost: read(counter::TRAFFIC_LOST)?,
            repaired: read(counter::REPAIRED)?,
            repair_refused: read(counter::REPAIR_REFUSED)?,
            repair_too_big: read(counter::REPAIR_TOO_BIG)?,
        })
    }
}

/// CPUs that there may be: so many values has an element of a per-CPU map.
pub(super) fn cpus() -> Result<usize> {
    aya::util::nr_cpus().map_err(|(path, source)| Error::File {
        operation: "read",
        path: path.into(),
        source,
    })
}

/// The slots of [`counter`] by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Flows put on a domain by `connect`.
    pub connect_steered: u64,
    /// Flows refused: no domain fits.
    pub refused: u64,
    /// Sources that could not be set.
    pub source_failed: u64,
    /// Options and binds that a strict policy refused.
    pub not_allowed: u64,
    /// Packets of strict policies that a guard let through.
    pub guard_passed: u64,
    /// Packets of strict policies that a guard dropped.
    pub guard_dropped: u64,
    /// Events that did not fit the ring: scan cgroups anew.
    pub events_lost: u64,
    /// Socket storage that could not be had.
    pub storage_failed: u64,
    /// New cgroups whose entry could not be written.
    pub cgroups_full: u64,
    /// Packets of other policies that left otherwise than their policy said.
    pub guard_wrong: u64,
    /// Packets that could not be counted for their policy.
    pub traffic_lost: u64,
    /// Packets that were repaired.
    pub repaired: u64,
    /// Packets that were not repaired because their flow could not be told from another.
    pub repair_refused: u64,
    /// Packets to be repaired that were too big for their domain's interface.
    pub repair_too_big: u64,
}
