//! Packet programs of others (each counts what it sees of one address, and says how the chain goes on), and
//! packet filters.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::packet_filter;

/// What a program of others returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next program runs (`TCX_NEXT`, `TC_ACT_UNSPEC`).
    Next,
    /// The packet goes on, and no other program runs (`TC_ACT_OK`).
    End,
}

/// A side of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What arrives.
    Ingress,
    /// What leaves.
    Egress,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// As `tc` calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`.
    const fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }
}

/// Where in the chain of tcx a program is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before all others.
    Head,
    /// After all others.
    Tail,
}

/// A program of somebody else. It is detached when this is dropped, unless it is a filter of `tc`.
#[derive(Debug)]
pub struct ForeignProgram {
    program: OwnedFd,
    counts: OwnedFd,
    links: Vec<OwnedFd>,
}

impl ForeignProgram {
    /// Loads a program that counts packets from or to `address`, of every interface it is attached to.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn load(address: Ipv4Addr, verdict: Verdict) -> Result<Self> {
        let counts = bpf(MAP_CREATE, &mut [ARRAY | 4 << 32, 8 | 1 << 32, 0, 0])
            .context("make a map for counts")?;
        let code = program(u32::from_ne_bytes(address.octets()), &counts, verdict);
        let length = u64::try_from(code.len()).context("length of a program")?;
        let mut argument = [0; 8];
        argument[0] = SCHED_CLS | length << 32;
        argument[1] = code.as_ptr().expose_provenance() as u64;
        argument[2] = LICENSE.as_ptr().expose_provenance() as u64;
        let program = bpf(PROGRAM_LOAD, &mut argument).context("load a packet program")?;
        Ok(Self {
            program,
            counts,
            links: Vec::new(),
        })
    }

    /// Attaches it to the host's `interface` by tcx.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach(&mut self, lab: &Lab, interface: &str, side: Side, place: Place) -> Result<()> {
        const BEFORE: u64 = 1 << 3;
        const AFTER: u64 = 1 << 4;
        let program = number(&self.program);
        let link = lab.host().run(|| {
            let index = nix::net::if_::if_nametoindex(interface).context("interface index")?;
            let flags = match place {
                Place::Head => BEFORE,
                Place::Tail => AFTER,
            };
            let kind = u64::from(side.attach_type());
            let mut argument = [program | u64::from(index) << 32, kind | flags << 32, 0, 0];
            bpf(LINK_CREATE, &mut argument)
                .with_context(|| format!("attach a program at {} of {interface}", side.name()))
        })?;
        self.links.push(link);
        Ok(())
    }

    /// Attaches it to the host's `interface` as a filter of the `clsact` qdisc.
    ///
    /// # Errors
    /// If `tc` refuses.
    pub fn attach_filter(&self, lab: &Lab, interface: &str, side: Side) -> Result<()> {
        // In the host's mount namespace, where tc looks for it.
        let path = format!("/sys/fs/bpf/foreign-{interface}-{}", side.name());
        let program = number(&self.program);
        lab.host().run(|| {
            let name = std::ffi::CString::new(path.as_str()).context("a path")?;
            let mut argument = [name.as_ptr().expose_provenance() as u64, program];
            bpf_call(OBJECT_PIN, &mut argument).with_context(|| format!("pin {path}"))
        })?;
        lab.tc(&format!("qdisc replace dev {interface} clsact"))?;
        lab.tc(&format!(
            "filter add dev {interface} {} bpf direct-action pinned {path}",
            side.name()
        ))?;
        lab.host()
            .run(|| fs::remove_file(Path::new(&path)).with_context(|| format!("remove {path}")))
    }

    /// How many packets from or to its address it saw.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn seen(&self) -> Result<u64> {
        let key = 0_u32;
        let mut value = 0_u64;
        let mut argument = [
            number(&self.counts),
            (&raw const key).expose_provenance() as u64,
            (&raw mut value).expose_provenance() as u64,
            0,
        ];
        bpf_call(MAP_LOOKUP, &mut argument).context("read counts")?;
        Ok(value)
    }
}

impl Lab {
    /// Runs `tc` with the words of `arguments` at the host.
    ///
    /// # Errors
    /// If it fails, with its words.
    pub fn tc(&self, arguments: &str) -> Result<String> {
        packet_filter::tc(self.host(), arguments)
    }
}

// `include/uapi/linux/bpf.h`.
const MAP_CREATE: i32 = 0;
pub(crate) const MAP_LOOKUP: i32 = 1;
const PROGRAM_LOAD: i32 = 5;
const OBJECT_PIN: i32 = 6;
const LINK_CREATE: i32 = 28;
const ARRAY: u64 = 2;
const SCHED_CLS: u64 = 3;
const LICENSE: &std::ffi::CStr = c"GPL";

/// One call; the argument is a `union bpf_attr` in words of eight bytes.
pub(crate) fn bpf_call(command: i32, argument: &mut [u64]) -> Result<i64> {
    // SAFETY: the argument lives through the call and has the length that is told, and so does what its
    // callers let it point to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            argument.as_mut_ptr(),
            size_of_val(argument),
        )
    };
    nix::errno::Errno::result(result).context("bpf")
}

/// [`bpf_call`] that opens something.
pub(crate) fn bpf(command: i32, argument: &mut [u64]) -> Result<OwnedFd> {
    let fd = i32::try_from(bpf_call(command, argument)?).context("a descriptor")?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives rules to `nft` at the host, and returns what it prints.
///
/// # Errors
/// If it refuses, with its words.
pub fn nft(lab: &Lab, rules: &str) -> Result<String> {
    packet_filter::nft(lab.host(), rules)
}

/// A descriptor as calls take it.
pub(crate) fn number(fd: &OwnedFd) -> u64 {
    // An open descriptor is never negative.
    u64::from(fd.as_raw_fd().unsigned_abs())
}

/// The code: `address` is in network byte order.
fn program(address: u32, counts: &OwnedFd, verdict: Verdict) -> Vec<u64> {
    let address = address.cast_signed();
    let map = counts.as_raw_fd();
    let verdict = match verdict {
        Verdict::Next => -1,
        Verdict::End => 0,
    };
    const LOAD_BYTES_RELATIVE: i32 = 68;
    const LOOKUP: i32 = 1;
    vec![
        // Source and destination from the network header to the stack.
        op(0xb7, 2, 0, 0, 12),
        op(0xbf, 3, 10, 0, 0),
        op(0x07, 3, 0, 0, -8),
        op(0xb7, 4, 0, 0, 8),
        op(0xb7, 5, 0, 0, 1),
        op(0x85, 0, 0, 0, LOAD_BYTES_RELATIVE),
        op(0x55, 0, 0, 13, 0),
        op(0x61, 1, 10, -8, 0),
        op(0x61, 2, 10, -4, 0),
        op(0x16, 1, 0, 1, address),
        op(0x56, 2, 0, 9, address),
        // Counts it.
        op(0x62, 10, 0, -16, 0),
        op(0xbf, 2, 10, 0, 0),
        op(0x07, 2, 0, 0, -16),
        op(0x18, 1, 1, 0, map),
        op(0, 0, 0, 0, 0),
        op(0x85, 0, 0, 0, LOOKUP),
        op(0x15, 0, 0, 2, 0),
        op(0xb7, 1, 0, 0, 1),
        op(0xdb, 0, 1, 0, 0),
        op(0xb7, 0, 0, 0, verdict),
        op(0x95, 0, 0, 0, 0),
    ]
}

/// `struct bpf_insn`.
fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let [low, high] = offset.to_ne_bytes();
    let [a, b, c, d] = immediate.to_ne_bytes();
    u64::from_ne_bytes([code, destination | source << 4, low, high, a, b, c, d])
}
