//! Sending what the kernel waits for in the midst of it, with the socket locked.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;

use anyhow::{Context, Result};
use nix::errno::Errno;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, Api);
nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, Register);

/// `UFFD_API`.
const API: u64 = 0xaa;
/// `UFFDIO_REGISTER_MODE_MISSING`.
const MISSING: u64 = 1;
/// `struct uffd_msg`.
const EVENT: usize = 32;
const PAGE: usize = 4096;

/// A socket that is locked for as long as this lives.
pub(crate) struct Held {
    _pages: OwnedFd,
}

/// Has a thread send a page that is not there: the kernel locks the socket, and waits for the page. Nobody
/// else can do anything with the socket meanwhile, so it is the thread's own from then on.
pub(crate) fn hold(socket: OwnedFd) -> Result<Result<Held, Errno>> {
    let (protection, flags) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: the mapping takes no place that is taken, and is never unmapped.
    let page = unsafe { libc::mmap(null_mut(), PAGE, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Ok(Err(Errno::last()));
    }
    let page = page.expose_provenance();
    // SAFETY: the call takes a number and touches no memory of ours.
    let pages = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    let pages = match Errno::result(pages) {
        Ok(pages) => i32::try_from(pages).context("a descriptor")?,
        Err(errno) => return Ok(Err(errno)),
    };
    // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
    let pages = unsafe { OwnedFd::from_raw_fd(pages) };
    register(&pages, page)?;
    std::thread::spawn(move || {
        let bytes = std::ptr::with_exposed_provenance(page);
        // SAFETY: the page is mapped for as long as the process lives, and nobody writes it.
        unsafe { libc::send(socket.as_raw_fd(), bytes, PAGE, libc::MSG_NOSIGNAL) };
    });
    // It is missed: the kernel has come so far.
    nix::unistd::read(&pages, &mut [0; EVENT]).context("wait until the page is missed")?;
    Ok(Ok(Held { _pages: pages }))
}

fn register(pages: &OwnedFd, page: usize) -> Result<()> {
    let mut api = Api {
        api: API,
        features: 0,
        ioctls: 0,
    };
    // SAFETY: the structure is the one that this request reads and writes.
    unsafe { uffdio_api(pages.as_raw_fd(), &raw mut api) }.context("UFFDIO_API")?;
    let mut range = Register {
        start: page as u64,
        len: PAGE as u64,
        mode: MISSING,
        ioctls: 0,
    };
    // SAFETY: likewise.
    unsafe { uffdio_register(pages.as_raw_fd(), &raw mut range) }.context("UFFDIO_REGISTER")?;
    Ok(())
}
