//! Loads the kernel programs that are built into this binary.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::Path,
    sync::OnceLock,
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{Program, ProgramError, ProgramFd},
};
use steer_common::MarkMask;
use steer_core::plan::Hook;

use super::{
    btf::{self, BtfError, Types},
    error::{Error, Result},
    hook,
    maps::MAPS,
    sys,
};
use crate::heap;

/// The program at tc egress.
pub(super) const GUARD: &str = "guard";
/// The program at tc ingress.
pub(super) const INGRESS: &str = "ingress";
/// The host model's program at tc egress.
pub(super) const HOST_EGRESS: &str = "host_egress";

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer-ebpf"));

/// All programs, loaded and verified, attached nowhere, with their ids.
pub(super) struct Programs {
    loaded: BTreeMap<&'static str, (ProgramFd, u32)>,
    /// The packet programs, loaded once more where one had to be.
    again: BTreeMap<&'static str, OnceLock<ProgramFd>>,
    mask: MarkMask,
}

impl Programs {
    /// Loads the programs for this thread's network namespace. Maps are taken from `maps`, and made
    /// and pinned there where they are missing.
    pub(super) fn load(maps: &Path, mask: MarkMask) -> Result<Self> {
        let globals = Globals::of_this_thread(mask)?;
        let mut object = globals.object(maps)?;
        let kernel_types =
            Btf::from_sys_fs().map_err(|error| Error::Object(Box::new(error.into())))?;
        let mut programs = BTreeMap::new();
        let required = |hook: &Hook| !hook::is_optional(*hook);
        for name in Hook::ALL
            .into_iter()
            .filter(required)
            .map(hook::program)
            .chain([GUARD, INGRESS, HOST_EGRESS])
        {
            let program =
                load_one(&mut object, name, &kernel_types).map_err(|error| Error::Program {
                    name,
                    source: Box::new(error),
                })?;
            programs.insert(name, with_id(program)?);
        }
        for hook in Hook::ALL.into_iter().filter(|hook| !required(hook)) {
            let name = hook::program(hook);
            match load_one(&mut object, name, &kernel_types) {
                Ok(program) => {
                    programs.insert(name, with_id(program)?);
                }
                Err(error) => tracing::debug!(program = name, %error, "the kernel refuses it"),
            }
        }
        #[cfg(feature = "log-programs")]
        super::logs::follow(&mut object)?;
        drop((object, kernel_types, globals));
        // The kernel's types took some 20 MB.
        heap::release();
        Ok(Self {
            loaded: programs,
            again: [GUARD, INGRESS, HOST_EGRESS]
                .map(|name| (name, OnceLock::new()))
                .into(),
            mask,
        })
    }

    /// The packet program called `name`, loaded once more with the maps in `maps`: the kernel attaches no
    /// program twice to an interface. One serves all interfaces, and those to come.
    pub(super) fn again(&self, maps: &Path, name: &'static str) -> Result<BorrowedFd<'_>> {
        let place = &self.again[name];
        let program = match place.get() {
            Some(program) => program,
            None => {
                let program = self.load_again(maps, name)?;
                place.get_or_init(|| program)
            }
        };
        Ok(program.as_fd())
    }

    fn load_again(&self, maps: &Path, name: &'static str) -> Result<ProgramFd> {
        let globals = Globals::of_this_thread(self.mask)?;
        let mut object = globals.object(maps)?;
        let kernel_types =
            Btf::from_sys_fs().map_err(|error| Error::Object(Box::new(error.into())))?;
        let program = load_one(&mut object, name, &kernel_types).map_err(|error| Error::Program {
            name,
            source: Box::new(error),
        });
        #[cfg(feature = "log-programs")]
        super::logs::follow(&mut object)?;
        drop((object, kernel_types, globals));
        // The kernel's types took some 20 MB.
        heap::release();
        program
    }

    /// Whether a program with this id is one of these.
    pub(super) fn contains(&self, id: u32) -> bool {
        self.loaded.values().any(|(_, own)| *own == id)
    }

    /// Whether the kernel took the program of `hook`.
    pub(super) fn has(&self, hook: Hook) -> bool {
        self.loaded.contains_key(hook::program(hook))
    }

    /// The program called `name`, which is there unless it is an optional hook's.
    pub(super) fn get(&self, name: &'static str) -> BorrowedFd<'_> {
        self.loaded[name].0.as_fd()
    }

    /// The kernel's id of the program called `name`, if the kernel took it.
    pub(super) fn id(&self, name: &str) -> Option<u32> {
        self.loaded.get(name).map(|(_, id)| *id)
    }
}

/// What the programs are told when they are loaded.
struct Globals {
    mark_mask: u32,
    netns_cookie: u64,
    offsets: Offsets,
}

impl Globals {
    fn of_this_thread(mask: MarkMask) -> Result<Self> {
        Ok(Self {
            mark_mask: mask.bits(),
            netns_cookie: netns_cookie().map_err(Error::NetnsCookie)?,
            offsets: Offsets::of_this_kernel()?,
        })
    }

    /// The programs, not loaded yet, with the maps that are pinned in `maps`, or made and pinned there. Those of
    /// [`MAPS`] alone: what the programs log, if anything, is not for the next agent.
    fn object(&self, maps: &Path) -> Result<Ebpf> {
        let mut loader = self.loader();
        for map in &MAPS {
            loader.map_pin_path(map.name, maps.join(map.name));
        }
        loader
            .load(OBJECT)
            .map_err(|error| Error::Object(Box::new(error)))
    }

    fn loader(&self) -> EbpfLoader<'_> {
        let mut loader = EbpfLoader::new();
        // None of the programs has relocations against kernel types.
        loader.btf(None);
        loader.override_global("MARK_MASK", &self.mark_mask, true);
        loader.override_global("NETNS_COOKIE", &self.netns_cookie, true);
        #[cfg(feature = "log-programs")]
        super::logs::ask(&mut loader);
        for (name, offset) in &self.offsets.0 {
            loader.override_global(name, offset, true);
        }
        loader
    }
}

/// A program that was loaded only to see whether the kernel takes it.
pub(super) struct Tried {
    pub(super) name: &'static str,
    /// Steer does its work without it.
    pub(super) optional: bool,
    pub(super) result: std::result::Result<ProgramFd, ProgramError>,
}

/// Loads every program with small maps that nobody else sees, pins nothing and attaches nothing.
pub(super) fn try_each(mask: MarkMask) -> Result<Vec<Tried>> {
    let globals = Globals::of_this_thread(mask)?;
    let mut loader = globals.loader();
    for map in &MAPS {
        if let Some(entries) = map.least_entries() {
            loader.map_max_entries(map.name, entries);
        }
    }
    let failed = |error| Error::Object(Box::new(error));
    let mut object = loader.load(OBJECT).map_err(failed)?;
    let kernel_types = Btf::from_sys_fs().map_err(|error| failed(error.into()))?;
    let hooks = Hook::ALL.map(|hook| (hook::program(hook), hook::is_optional(hook)));
    let packets = [(GUARD, false), (INGRESS, false), (HOST_EGRESS, false)];
    let tried = hooks.into_iter().chain(packets).map(|(name, optional)| {
        let result = load_one(&mut object, name, &kernel_types);
        Tried {
            name,
            optional,
            result,
        }
    });
    Ok(tried.collect())
}

fn with_id(program: ProgramFd) -> Result<(ProgramFd, u32)> {
    let id = sys::program_id(program.as_fd())
        .map_err(Error::kernel("read the properties of", "a program"))?;
    Ok((program, id))
}

fn load_one(
    object: &mut Ebpf,
    name: &str,
    kernel_types: &Btf,
) -> std::result::Result<ProgramFd, ProgramError> {
    let program = object.program_mut(name).ok_or(ProgramError::NotLoaded)?;
    let mut attempts = 1..=LOAD_ATTEMPTS;
    loop {
        attempts.next();
        let loaded = match program {
            Program::CgroupSock(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSockopt(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            // The tracepoints are called as their programs are.
            Program::BtfTracePoint(program) => program.load(name, kernel_types),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        match loaded {
            Ok(()) => return Ok(program.fd()?.try_clone()?),
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock && !attempts.is_empty() => {}
            Err(error) => return Err(error),
        }
    }
}

/// A signal interrupts the verifier, which then says `EAGAIN`; libbpf tries as often.
const LOAD_ATTEMPTS: u32 = 5;

/// Offsets in kernel structures, by the name of the global that takes them.
struct Offsets(Vec<(&'static str, u32)>);

impl Offsets {
    fn of_this_kernel() -> Result<Self> {
        let data = fs::read(btf::VMLINUX).map_err(BtfError::Read)?;
        let types = Types::parse(&data)?;
        let own_state = types.offset("cgroup", "self")?;
        let mut offsets = vec![
            ("CGROUP_KN", types.offset("cgroup", "kn")?),
            ("CGROUP_SELF", own_state),
            (
                "CGROUP_SELF_PARENT",
                own_state + types.offset("cgroup_subsys_state", "parent")?,
            ),
            ("CGROUP_ROOT", types.offset("cgroup", "root")?),
            (
                "CGROUP_ROOT_HIERARCHY_ID",
                types.offset("cgroup_root", "hierarchy_id")?,
            ),
            ("KERNFS_NODE_ID", types.offset("kernfs_node", "id")?),
            ("KERNFS_NODE_NAME", types.offset("kernfs_node", "name")?),
        ];
        match socket_options(&types) {
            Ok(found) => offsets.extend(found),
            Err(error) => tracing::warn!(
                %error,
                "what applications choose by IP_UNICAST_IF, IPV6_UNICAST_IF and IPV6_ADDR_PREFERENCES is not \
                 respected: this kernel keeps it elsewhere"
            ),
        }
        Ok(Self(offsets))
    }
}

/// Where a socket has what its application chose by an option. Without them the globals stay 0, and the
/// programs do not look.
fn socket_options(types: &Types<'_>) -> std::result::Result<[(&'static str, u32); 7], BtfError> {
    let preferences = types.place("ipv6_pinfo", "srcprefs")?;
    // IPV6_PREFER_SRC_PUBLIC is the second bit of it from below. Bits are counted as the machine fills words.
    let (byte, bit) = if cfg!(target_endian = "little") {
        let at = preferences.bit + 1;
        (at / 8, at % 8)
    } else {
        let at = preferences.bit + preferences.width.unwrap_or(8) - 2;
        (at / 8, 7 - at % 8)
    };
    Ok([
        ("SOCK_ADDR_SK", types.offset("bpf_sock_addr_kern", "sk")?),
        ("INET_UNICAST_IF", types.offset("inet_sock", "uc_index")?),
        ("INET6", types.offset("inet_sock", "pinet6")?),
        ("INET6_UNICAST_IF", types.offset("ipv6_pinfo", "ucast_oif")?),
        ("INET6_PREFERENCES", byte),
        ("INET6_PREFERS_PUBLIC", 1 << bit),
        ("UDP6_INET6", types.offset("udp6_sock", "inet6")?),
    ])
}

/// The cookie of this thread's network namespace.
fn netns_cookie() -> io::Result<u64> {
    // Any socket will do; this family needs no network.
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: both pointers are valid, and `length` is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
