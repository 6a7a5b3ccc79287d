//! Sending with control messages.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{SockaddrLike, SockaddrStorage};

use crate::operation::Extras;

/// A message in the form that system calls take, with what it points to.
pub(crate) struct Prepared {
    to: Option<SockaddrStorage>,
    control: Vec<u64>,
    part: libc::iovec,
    header: libc::msghdr,
}

impl Prepared {
    /// `payload` must outlive it; `extras` go along as `IP_PKTINFO` or `IPV6_PKTINFO` and `SO_MARK`.
    pub(crate) fn new(
        payload: &[u8],
        to: Option<SocketAddr>,
        is_ipv6: bool,
        extras: Extras,
    ) -> Box<Self> {
        // SAFETY: msghdr is plain data for which all zeroes are valid.
        let header: libc::msghdr = unsafe { std::mem::zeroed() };
        let mut message = Box::new(Self {
            to: to.map(SockaddrStorage::from),
            control: control_buffer(is_ipv6, extras),
            part: libc::iovec {
                iov_base: payload.as_ptr().cast_mut().cast(),
                iov_len: payload.len(),
            },
            header,
        });
        message.header.msg_iov = &raw mut message.part;
        message.header.msg_iovlen = 1;
        if let Some(to) = &message.to {
            message.header.msg_name = to.as_ptr().cast_mut().cast();
            message.header.msg_namelen = to.len();
        }
        if !message.control.is_empty() {
            message.header.msg_control = message.control.as_mut_ptr().cast();
            message.header.msg_controllen = size_of_val(message.control.as_slice());
        }
        message
    }

    /// For the system call, while this lives.
    pub(crate) fn header(&self) -> *const libc::msghdr {
        &raw const self.header
    }
}

/// Sends a message, with `MSG_FASTOPEN` or other `flags`.
pub(crate) fn send(socket: &OwnedFd, message: &Prepared, flags: i32) -> Result<(), Errno> {
    // SAFETY: all that the header points to lives as long as the message and has the lengths given;
    // sendmsg writes to none of it.
    let sent = unsafe {
        libc::sendmsg(
            socket.as_raw_fd(),
            message.header(),
            flags | libc::MSG_NOSIGNAL,
        )
    };
    Errno::result(sent).map(drop)
}

/// Control messages, in words so that every header is aligned.
fn control_buffer(is_ipv6: bool, extras: Extras) -> Vec<u64> {
    let mut bytes = Vec::new();
    if let Some(mark) = extras.mark {
        append(
            &mut bytes,
            libc::SOL_SOCKET,
            libc::SO_MARK,
            &mark.to_ne_bytes(),
        );
    }
    if extras.interface != 0 || extras.source.is_some() {
        let index = extras.interface.to_ne_bytes();
        if is_ipv6 {
            let source = match extras.source {
                Some(IpAddr::V6(address)) => address.octets(),
                Some(IpAddr::V4(address)) => address.to_ipv6_mapped().octets(),
                None => [0; 16],
            };
            let info = [source.as_slice(), &index].concat();
            append(&mut bytes, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        } else {
            let source = match extras.source {
                Some(IpAddr::V4(address)) => address.octets(),
                _ => [0; 4],
            };
            let info = [index, source, [0; 4]].concat();
            append(&mut bytes, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
    }
    bytes
        .chunks_exact(8)
        .filter_map(|chunk| chunk.first_chunk().map(|word| u64::from_ne_bytes(*word)))
        .collect()
}

/// Appends one `cmsghdr` with its data, padded to eight bytes (`CMSG_ALIGN` of a 64-bit system).
fn append(bytes: &mut Vec<u8>, level: i32, kind: i32, data: &[u8]) {
    let length = size_of::<libc::cmsghdr>() + data.len();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(level.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}
