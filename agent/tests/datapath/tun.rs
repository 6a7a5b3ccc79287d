//! Tunnels without a link-layer header: two tun interfaces, and a thread that carries packets between them.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A tun interface.
pub(crate) struct Tun(File);

impl Tun {
    /// Makes interface `name` in this thread's namespace.
    pub(crate) fn new(name: &str) -> Self {
        const TUN_WITHOUT_HEADER: u16 = 0x1001;
        const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .expect("these tests need /dev/net/tun");
        let mut request = [0_u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&TUN_WITHOUT_HEADER.to_ne_bytes());
        // SAFETY: the request has the size of `struct ifreq`.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
        assert_eq!(
            result,
            0,
            "make {name}: {}",
            std::io::Error::last_os_error()
        );
        Self(file)
    }
}

/// Two tun interfaces that are joined until this is dropped.
pub(crate) struct Tunnel {
    ends: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl Tunnel {
    pub(crate) fn join(Tun(mut one): Tun, Tun(mut other): Tun) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ends);
        let carrier = thread::spawn(move || {
            let mut packet = vec![0; 1 << 16];
            while !ended.load(Ordering::Relaxed) {
                let wanted = |file| PollFd::new(file, PollFlags::POLLIN);
                let mut both = [wanted(one.as_fd()), wanted(other.as_fd())];
                // A little, so that the end is noticed.
                let _ready = poll(&mut both, PollTimeout::from(50_u8));
                while let Ok(length) = one.read(&mut packet) {
                    let _lost = other.write(&packet[..length]);
                }
                while let Ok(length) = other.read(&mut packet) {
                    let _lost = one.write(&packet[..length]);
                }
            }
        });
        Self {
            ends,
            carrier: Some(carrier),
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            let _ended = carrier.join();
        }
    }
}
