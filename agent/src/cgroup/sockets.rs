//! Sockets of running processes: which a process has, and another mark for one that it keeps.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::process;

/// Inodes of a process's sockets, as far as they can be read.
pub fn of_process(pid: i32) -> BTreeSet<u32> {
    descriptors(pid).map(|(_, inode)| inode).collect()
}

/// What a socket is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its cookie, which no other socket has.
    pub cookie: u64,
    /// The mark inside the mask.
    pub mark: u32,
    /// The bits that are written; others are kept.
    pub mask: u32,
}

/// Gives live sockets, by their inodes, another mark, whichever process has them. The kernel looks their
/// route up anew. Returns why it could not be done.
pub fn mark(mut wanted: HashMap<u32, Wanted>) -> HashMap<u32, io::Error> {
    let mut failed = HashMap::new();
    for pid in processes() {
        if wanted.is_empty() {
            break;
        }
        for (descriptor, inode) in descriptors(pid) {
            let Some(socket) = wanted.get(&inode) else {
                continue;
            };
            match mark_one(pid, descriptor, socket) {
                // The descriptor is another file's by now: somebody else may have the socket.
                Ok(false) => {}
                Ok(true) => {
                    wanted.remove(&inode);
                    failed.remove(&inode);
                }
                Err(error) => {
                    failed.insert(inode, error);
                }
            }
        }
    }
    let gone = || io::Error::new(io::ErrorKind::NotFound, "no process has it");
    for inode in wanted.into_keys() {
        failed.entry(inode).or_insert_with(gone);
    }
    failed
}

/// False: the descriptor is not that socket's.
fn mark_one(pid: i32, descriptor: i32, wanted: &Wanted) -> io::Result<bool> {
    let process = process::open(pid)?;
    // SAFETY: the call takes three numbers and touches no memory of ours.
    let own = unsafe {
        libc::syscall(
            libc::SYS_pidfd_getfd,
            process.as_raw_fd(),
            descriptor,
            0_u32,
        )
    };
    if own < 0 {
        return Err(io::Error::last_os_error());
    }
    let own = i32::try_from(own).map_err(io::Error::other)?;
    // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
    let own = unsafe { OwnedFd::from_raw_fd(own) };
    if get::<u64>(&own, libc::SO_COOKIE).is_ok_and(|cookie| cookie == wanted.cookie) {
        let now = get::<u32>(&own, libc::SO_MARK)?;
        let mark = now & !wanted.mask | wanted.mark & wanted.mask;
        nix::sys::socket::setsockopt(&own, nix::sys::socket::sockopt::Mark, &mark)?;
        return Ok(true);
    }
    Ok(false)
}

fn get<T: Default>(socket: &OwnedFd, option: i32) -> io::Result<T> {
    let mut value = T::default();
    let mut length = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the value and its length are valid for writes of the size that the length names; both
    // options are plain numbers, of which any bits are a value.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A process's descriptors that are sockets, each with its inode.
fn descriptors(pid: i32) -> impl Iterator<Item = (i32, u32)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    entries.into_iter().flatten().flatten().filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?;
        let inode = inode.strip_suffix(']')?.parse().ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, inode))
    })
}
