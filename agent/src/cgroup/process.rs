//! Processes: by file descriptor, which no other process can take over as it can a number;
//! by cgroup; whose they are; and becoming another program.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A pidfd of the process that has this number now.
///
/// # Errors
/// There is none, or no descriptor is left.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ids of the groups that the peer of a socket was in when it connected: the effective one, and the
/// supplementary ones (`SO_PEERGROUPS`, Linux 4.13).
///
/// # Errors
/// The kernel does not tell.
pub fn groups_of_peer(socket: &impl AsFd, gid: u32) -> io::Result<Vec<u32>> {
    // As many as a process can have (NGROUPS_MAX), at most.
    let mut room = 64;
    loop {
        let mut groups = vec![0u32; room];
        let mut length =
            libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        // SAFETY: `groups` has room for `length` bytes, and both live until the call returns.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let wanted = length as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(wanted);
            groups.push(gid);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || wanted <= room {
            return Err(error);
        }
        room = wanted;
    }
}

/// Whether a process is in the network namespace of the calling thread.
pub fn shares_network(pid: i32) -> bool {
    let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/net")).ok();
    let own = of("thread-self");
    own.is_some() && of(&pid.to_string()) == own
}

/// Whether the process of a pidfd has ended: then it is readable (pidfd_open(2)).
pub fn has_ended(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// The user whose process it is: real, effective, saved and file system id are all that one. None: they
/// differ, as in a program with set-user-ID that somebody else started.
///
/// # Errors
/// The process has ended: what was read may be another's that has its number now.
pub fn owner(pid: i32, process: &OwnedFd) -> io::Result<Option<u32>> {
    let uids = uids(pid);
    // Asked after reading: as long as it lives, nobody else has its number.
    if has_ended(process) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(uids.and_then(|[first, others @ ..]| others.iter().all(|id| *id == first).then_some(first)))
}

/// Effective user id of the process that has this number now.
pub fn effective(pid: i32) -> Option<u32> {
    uids(pid).map(|[_, effective, ..]| effective)
}

/// Real, effective, saved and file system user id of a process.
fn uids(pid: i32) -> Option<[u32; 4]> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let ids: Vec<u32> = line
        .split_whitespace()
        .map_while(|id| id.parse().ok())
        .collect();
    ids.try_into().ok()
}

/// The process that started a process, or took it over when that one ended.
pub fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok()
}

/// Whether SIGPIPE was ignored when this program was started: Rust's runtime ignores it before `main`, and
/// what is started must find it as it would without us.
static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);

#[used]
// SAFETY: the C library calls what is in this section once, before `main` and before other threads, with
// the three arguments that a C function may leave alone.
#[unsafe(link_section = ".init_array")]
static NOTE_SIGPIPE: extern "C" fn() = note_sigpipe;

extern "C" fn note_sigpipe() {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: `action` lives until the call, which only writes it, returns.
    let told = unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: it is plain data, for which zeros are a valid value.
    let action = unsafe { action.assume_init() };
    let ignored = told == 0 && action.sa_sigaction == libc::SIG_IGN;
    PIPE_IGNORED.store(ignored, Ordering::Relaxed);
}

/// Becomes another program, which finds everything as if it had been started in our place: environment,
/// directory, descriptors, blocked and ignored signals. Returns only if it cannot.
pub fn replace(program: &Path, name: &OsStr, arguments: &[OsString]) -> io::Error {
    let text = |text: &OsStr| CString::new(text.as_bytes());
    let words = std::iter::once(name).chain(arguments.iter().map(OsString::as_os_str));
    let (Ok(program), Ok(words)) = (
        text(program.as_os_str()),
        words.map(text).collect::<Result<Vec<_>, _>>(),
    ) else {
        return io::Error::from(io::ErrorKind::InvalidInput);
    };
    if !PIPE_IGNORED.load(Ordering::Relaxed) {
        // SAFETY: the default action is no handler of ours that could do anything wrong.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        }
    }
    let error = match nix::unistd::execv(&program, &words) {
        Err(error) => io::Error::from(error),
        Ok(never) => match never {},
    };
    // SAFETY: as above; the rest of us expects it as Rust's runtime had it.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    error
}

/// Name of the process that has this number now.
pub fn command(pid: i32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().to_owned())
}

/// Process ids in a cgroup itself, as far as they can be read.
pub fn of(directory: &Path) -> Vec<i32> {
    let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    procs.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Process ids in a cgroup and those below it, as far as they can be read.
pub fn below(directory: &Path) -> Vec<i32> {
    let mut pids = of(directory);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(below(&entry.path()));
        }
    }
    pids
}
