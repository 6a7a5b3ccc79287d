//! What the other end of the uplinks sees.

use std::{
    io::ErrorKind,
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Instant,
};

use crate::lab::{Lab, PATIENCE};

/// A UDP server on all the peer's addresses.
pub(crate) struct Udp {
    socket: UdpSocket,
    /// Its port.
    pub(crate) port: u16,
}

impl Udp {
    pub(crate) fn new(lab: &Lab) -> Self {
        Self::at(lab, "::")
    }

    /// On one of the peer's addresses.
    pub(crate) fn at(lab: &Lab, address: &str) -> Self {
        let socket = lab.in_peer(|| UdpSocket::bind((address, 0)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = socket.local_addr().unwrap().port();
        Self { socket, port }
    }

    /// As [`Self::next`], and sends it back.
    pub(crate) fn echo(&self) -> (String, IpAddr) {
        let mut buffer = vec![0; 65_536];
        let (length, from) = self.socket.recv_from(&mut buffer).expect("a datagram");
        self.socket.send_to(&buffer[..length], from).unwrap();
        let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
        (text, from.ip().to_canonical())
    }

    /// Whether there is a datagram with this text, now, among those that have arrived.
    pub(crate) fn has(&self, text: &str) -> bool {
        let mut buffer = [0; 64];
        self.socket.set_nonblocking(true).unwrap();
        let found = std::iter::from_fn(|| {
            self.socket
                .recv(&mut buffer)
                .ok()
                .map(|n| buffer[..n] == *text.as_bytes())
        })
        .any(|same| same);
        self.socket.set_nonblocking(false).unwrap();
        found
    }

    /// Text and source of the next datagram.
    pub(crate) fn next(&self) -> (String, IpAddr) {
        let mut buffer = [0; 64];
        let (length, from) = loop {
            match self.socket.recv_from(&mut buffer) {
                // A socket with a time limit does not go on by itself after a signal.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => break received.expect("a datagram"),
            }
        };
        let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
        (text, from.ip().to_canonical())
    }
}

/// A TCP server on all the peer's addresses.
pub(crate) struct Tcp {
    listener: TcpListener,
    /// Its port.
    pub(crate) port: u16,
}

impl Tcp {
    pub(crate) fn new(lab: &Lab) -> Self {
        let listener = lab.in_peer(|| TcpListener::bind("[::]:0").unwrap());
        let port = listener.local_addr().unwrap().port();
        Self { listener, port }
    }

    /// The next connection.
    pub(crate) fn accept(&self) -> TcpStream {
        self.listener.accept().unwrap().0
    }

    /// Source of the next connection.
    pub(crate) fn next(&self) -> IpAddr {
        self.listener.accept().unwrap().1.ip().to_canonical()
    }
}

/// Everything that arrives at one of the peer's interfaces.
pub(crate) struct Capture(OwnedFd);

impl Capture {
    pub(crate) fn on(lab: &Lab, interface: &str) -> Self {
        lab.in_peer(|| {
            const ALL: u16 = 3;
            // SAFETY: takes numbers.
            let socket = unsafe {
                libc::socket(
                    libc::AF_PACKET,
                    libc::SOCK_DGRAM | libc::SOCK_NONBLOCK,
                    i32::from(ALL.to_be()),
                )
            };
            assert!(socket >= 0);
            // SAFETY: just made.
            let socket = unsafe { OwnedFd::from_raw_fd(socket) };
            // SAFETY: all zero is valid.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
            address.sll_protocol = ALL.to_be();
            address.sll_ifindex = i32::try_from(crate::lab::ifindex(interface)).unwrap();
            let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
            // SAFETY: the address is valid for the length told.
            let bound =
                unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
            assert_eq!(bound, 0);
            Self(socket)
        })
    }

    /// Whether a packet that contains `text` has arrived by now.
    pub(crate) fn saw(&self, text: &str) -> bool {
        let mut found = false;
        let mut buffer = [0_u8; 2048];
        loop {
            // SAFETY: the buffer is valid for the length told.
            let length = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                )
            };
            let Ok(length) = usize::try_from(length) else {
                return found;
            };
            found |= buffer[..length]
                .windows(text.len())
                .any(|part| part == text.as_bytes());
        }
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::yield_now();
    }
}
