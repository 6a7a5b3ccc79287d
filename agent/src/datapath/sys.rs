//! The `bpf` system call, as far as aya keeps it to itself: pins, links and map elements.
//!
//! Layouts and numbers are those of `include/uapi/linux/bpf.h`, which never change. The kernel takes
//! a shorter argument than its own as if the rest were zero.

use std::{
    ffi::{CStr, CString},
    io,
    num::NonZeroU32,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use bytemuck::{Pod, Zeroable};

const MAP_CREATE: u32 = 0;
const MAP_LOOKUP: u32 = 1;
const MAP_UPDATE: u32 = 2;
const MAP_DELETE: u32 = 3;
const OBJECT_PIN: u32 = 6;
const OBJECT_GET: u32 = 7;
const PROGRAM_BY_ID: u32 = 13;
const MAP_BY_ID: u32 = 14;
const INFO: u32 = 15;
const PROGRAM_QUERY: u32 = 16;
const RAW_TRACEPOINT_OPEN: u32 = 17;
/// `BPF_MAP_LOOKUP_AND_DELETE_ELEM`, of hash maps since Linux 5.14.
const MAP_TAKE: u32 = 21;
const MAP_FREEZE: u32 = 22;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

/// `BPF_F_BEFORE`: without a relative, before all others.
const BEFORE: u32 = 1 << 3;

/// An attach type of a link (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AttachType(pub(super) u32);

fn bpf<T: Pod>(command: u32, argument: &mut T) -> io::Result<RawFd> {
    // SAFETY: the argument is plain data of the length that is told. What it points to is kept alive
    // by the callers in this module, who also tell its right length.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(argument),
            size_of::<T>(),
        )
    };
    RawFd::try_from(result)
        .ok()
        .filter(|result| *result >= 0)
        .ok_or_else(io::Error::last_os_error)
}

fn bpf_fd<T: Pod>(command: u32, argument: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, argument)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor as a number.
pub(super) fn number(fd: BorrowedFd<'_>) -> u32 {
    // An open descriptor is never negative.
    fd.as_raw_fd().unsigned_abs()
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Element {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Copies the value of `key` into `value`. False: there is none.
///
/// `value` has the map's value size (times the possible CPUs for per-CPU maps), `key` its key size;
/// the callers in `maps` check both against the map when they open it.
pub(super) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    read(MAP_LOOKUP, map, key, value)
}

/// Copies the value of `key` to `value`, as [`lookup`] does, and removes it in one step. False: there was none.
pub(super) fn take(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    read(MAP_TAKE, map, key, value)
}

fn read(command: u32, map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut argument = Element {
        map: number(map),
        reserved: 0,
        key: address(key.as_ptr()),
        value: address(value.as_mut_ptr()),
        flags: 0,
    };
    match bpf(command, &mut argument) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sets the value of `key`.
pub(super) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut argument = Element {
        map: number(map),
        reserved: 0,
        key: address(key.as_ptr()),
        value: address(value.as_ptr()),
        flags: 0,
    };
    bpf(MAP_UPDATE, &mut argument).map(drop)
}

/// Removes `key`. False: there was none.
pub(super) fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut argument = Element {
        map: number(map),
        reserved: 0,
        key: address(key.as_ptr()),
        value: 0,
        flags: 0,
    };
    match bpf(MAP_DELETE, &mut argument) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// Makes an array for a map of maps whose arrays may have different lengths (`BPF_F_INNER_MAP`). Of the name
/// the kernel keeps 15 bytes.
pub(super) fn make_inner_array(
    name: &CStr,
    value_size: u32,
    max_entries: u32,
) -> io::Result<OwnedFd> {
    const ARRAY: u32 = 2;
    const INNER_MAP: u32 = 1 << 12;
    let mut argument = MapCreate {
        kind: ARRAY,
        key_size: 4,
        value_size,
        max_entries,
        flags: INNER_MAP,
        ..MapCreate::zeroed()
    };
    let (to, from) = (&mut argument.name, name.to_bytes());
    for (to, from) in to.iter_mut().take(15).zip(from) {
        *to = *from;
    }
    bpf_fd(MAP_CREATE, &mut argument)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Map {
    map: u32,
}

/// A random number.
pub(super) fn random() -> io::Result<NonZeroU32> {
    loop {
        let mut bytes = [0_u8; 4];
        // SAFETY: the buffer has the length that is told.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if usize::try_from(got) != Ok(bytes.len()) {
            return Err(io::Error::last_os_error());
        }
        if let Some(number) = NonZeroU32::new(u32::from_ne_bytes(bytes)) {
            return Ok(number);
        }
    }
}

/// From now on, no system call writes the map.
pub(super) fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    bpf(MAP_FREEZE, &mut Map { map: number(map) }).map(drop)
}

/// The map with an id.
pub(super) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(MAP_BY_ID, &mut ById { id, next: 0 })
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Batch {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Where a walk over a map stands: opaque to us, at most as long as the longest key.
#[derive(Clone, Copy, Default)]
pub(super) struct Position {
    _opaque: [u64; 4],
}

/// What [`lookup_batch`] found.
pub(super) struct Found {
    /// Elements that were copied.
    pub(super) count: u32,
    /// Where to go on; `None`: that was all.
    pub(super) next: Option<Position>,
}

/// Copies up to `count` elements, for which `keys` and `values` have room, from `from` on.
pub(super) fn lookup_batch(
    map: BorrowedFd<'_>,
    from: Option<Position>,
    keys: &mut [u8],
    values: &mut [u8],
    count: u32,
) -> io::Result<Found> {
    let mut next = Position::default();
    let mut argument = Batch {
        from: from.as_ref().map_or(0, |from| address(from)),
        next: address(&raw mut next),
        keys: address(keys.as_mut_ptr()),
        values: address(values.as_mut_ptr()),
        count,
        map: number(map),
        element_flags: 0,
        flags: 0,
    };
    match bpf(MAP_LOOKUP_BATCH, &mut argument) {
        Ok(_) => Ok(Found {
            count: argument.count,
            next: Some(next),
        }),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Found {
            count: argument.count,
            next: None,
        }),
        Err(error) => Err(error),
    }
}

/// Sets `count` elements at once.
pub(super) fn update_batch(
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: u32,
) -> io::Result<()> {
    let mut argument = Batch {
        from: 0,
        next: 0,
        keys: address(keys.as_ptr()),
        values: address(values.as_ptr()),
        count,
        map: number(map),
        element_flags: 0,
        flags: 0,
    };
    bpf(MAP_UPDATE_BATCH, &mut argument).map(drop)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Pins `object` at `path`.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut argument = Object {
        path: address(path.as_ptr()),
        fd: number(object),
        flags: 0,
    };
    bpf(OBJECT_PIN, &mut argument).map(drop)
}

/// Opens what is pinned at `path`.
pub(super) fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut argument = Object {
        path: address(path.as_ptr()),
        fd: 0,
        flags: 0,
    };
    bpf_fd(OBJECT_GET, &mut argument)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches `program` to a cgroup. Such links stack and take no flags.
pub(super) fn link_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    let mut argument = LinkCreate {
        program: number(program),
        target: number(cgroup),
        attach_type: attach_type.0,
        flags: 0,
    };
    bpf_fd(LINK_CREATE, &mut argument)
}

/// Attaches `program` to an interface, before all other programs there.
pub(super) fn link_tcx(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    let mut argument = LinkCreate {
        program: number(program),
        target: ifindex,
        attach_type: attach_type.0,
        flags: BEFORE,
    };
    bpf_fd(LINK_CREATE, &mut argument)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RawTracepoint {
    name: u64,
    program: u32,
    reserved: u32,
}

/// Attaches a tracing program to the tracepoint that it was loaded for.
pub(super) fn link_tracepoint(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut argument = RawTracepoint {
        name: 0,
        program: number(program),
        reserved: 0,
    };
    bpf_fd(RAW_TRACEPOINT_OPEN, &mut argument)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Replaces the program of a cgroup or tcx link, atomically. The kernel compares program types only,
/// not attach types: a slip is silent.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut argument = LinkUpdate {
        link: number(link),
        program: number(program),
        flags: 0,
        old_program: 0,
    };
    bpf(LINK_UPDATE, &mut argument).map(drop)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkDetach {
    link: u32,
}

/// Detaches a cgroup or tcx link at once, whoever holds it. Tracing links know no such thing.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_DETACH, &mut LinkDetach { link: number(link) }).map(drop)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Info {
    fd: u32,
    length: u32,
    info: u64,
}

fn info<T: Pod>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::zeroed();
    let mut argument = Info {
        fd: number(object),
        length: u32::try_from(size_of::<T>()).expect("infos are small"),
        info: address(&raw mut info),
    };
    bpf(INFO, &mut argument)?;
    Ok(info)
}

/// The first fields of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct MapInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}

/// What the kernel says of a map.
pub(super) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(map)
}

/// Where a link is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkTarget {
    /// A cgroup; id 0: removed.
    Cgroup { id: u64, attach_type: AttachType },
    /// An interface; index 0: gone.
    Tcx {
        ifindex: u32,
        attach_type: AttachType,
    },
    /// A tracepoint.
    Tracepoint,
    /// Nothing of ours.
    Other,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    reserved: u32,
    target: [u32; 12],
}

/// What the kernel says of a link: the id of its program, and where it is attached.
pub(super) fn link_state(link: BorrowedFd<'_>) -> io::Result<(u32, LinkTarget)> {
    const RAW_TRACEPOINT: u32 = 1;
    const CGROUP: u32 = 3;
    const TCX: u32 = 11;
    let LinkInfo {
        kind,
        program,
        target,
        ..
    } = info(link)?;
    let target = match kind {
        RAW_TRACEPOINT => LinkTarget::Tracepoint,
        CGROUP => LinkTarget::Cgroup {
            id: bytemuck::cast([target[0], target[1]]),
            attach_type: AttachType(target[2]),
        },
        TCX => LinkTarget::Tcx {
            ifindex: target[0],
            attach_type: AttachType(target[1]),
        },
        _ => LinkTarget::Other,
    };
    Ok((program, target))
}

/// The first fields of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    /// Lengths, addresses and times of the code, and its maps.
    code: [u32; 12],
    name: [u8; 16],
}

/// The id of a program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    info::<ProgramInfo>(program).map(|info| info.id)
}

/// The name of the program with an id. The kernel keeps 15 bytes of it.
pub(super) fn program_name(id: u32) -> io::Result<String> {
    let mut argument = ById { id, next: 0 };
    let program = bpf_fd(PROGRAM_BY_ID, &mut argument)?;
    let info: ProgramInfo = info(program.as_fd())?;
    let name = info.name.split(|byte| *byte == 0).next();
    Ok(String::from_utf8_lossy(name.unwrap_or_default()).into_owned())
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ById {
    id: u32,
    next: u32,
}

/// All of `bpf_attr.query`: the kernel writes its last fields whatever size it is told (`revision` of
/// interfaces since Linux 6.6, 053c8e1f235d).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    reserved: u32,
    flags_of_each: u64,
    links: u64,
    flags_of_links: u64,
    revision: u64,
}

const _: () = assert!(size_of::<Query>() == 64);

/// What is attached at one place.
pub(super) struct Attached {
    /// With which flags (`BPF_F_ALLOW_OVERRIDE` and `BPF_F_ALLOW_MULTI`); of a cgroup.
    pub(super) flags: u32,
    /// The ids of the programs, in the order in which they run.
    pub(super) programs: Vec<u32>,
}

/// The programs that are attached to a cgroup itself (its descriptor), or to an interface (its index).
pub(super) fn attached(target: u32, attach_type: AttachType) -> io::Result<Attached> {
    // More programs than the kernel lets anyone attach at one place (`BPF_CGROUP_MAX_PROGS`).
    let mut programs = vec![0_u32; 64];
    let mut argument = Query {
        target,
        attach_type: attach_type.0,
        query_flags: 0,
        attach_flags: 0,
        ids: address(programs.as_mut_ptr()),
        count: 64,
        ..Query::zeroed()
    };
    bpf(PROGRAM_QUERY, &mut argument)?;
    programs.truncate(argument.count as usize);
    Ok(Attached {
        flags: argument.attach_flags,
        programs,
    })
}

/// As [`attached`], of the cgroup whose directory is open.
pub(super) fn attached_to_cgroup(
    cgroup: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<Attached> {
    attached(number(cgroup), attach_type)
}
