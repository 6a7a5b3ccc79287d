//! Sending with control messages.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{SockaddrLike, SockaddrStorage};

use crate::operation::Extras;

/// Sends `payload`; `extras` go along as `IP_PKTINFO` or `IPV6_PKTINFO` and `SO_MARK`.
pub(crate) fn send(
    socket: &OwnedFd,
    payload: &[u8],
    to: Option<SocketAddr>,
    is_ipv6: bool,
    extras: Extras,
) -> Result<(), Errno> {
    let to = to.map(SockaddrStorage::from);
    let mut control = control_buffer(is_ipv6, extras);
    let part = libc::iovec {
        iov_base: payload.as_ptr().cast_mut().cast(),
        iov_len: payload.len(),
    };
    // SAFETY: msghdr is plain data for which all zeroes are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = (&raw const part).cast_mut();
    message.msg_iovlen = 1;
    if let Some(to) = &to {
        message.msg_name = to.as_ptr().cast_mut().cast();
        message.msg_namelen = to.len();
    }
    if !control.is_empty() {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(control.as_slice());
    }
    // SAFETY: payload, address and control buffer live through the call and have the lengths given;
    // sendmsg writes to none of them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
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
