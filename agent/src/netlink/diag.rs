//! `SOCK_DIAG` requests as the kernel wants them: which sockets, by state, mark and cgroup.

use std::net::SocketAddr;

use super::wire::{Request, family_of, octets};

/// `SOCK_DIAG_BY_FAMILY`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `SOCK_DESTROY`.
const SOCK_DESTROY: u16 = 21;
/// `INET_DIAG_REQ_BYTECODE`.
const BYTECODE: u16 = 1;
/// `INET_DIAG_REQ_SK_BPF_STORAGES`.
const STORAGES: u16 = 2;
/// `SK_DIAG_BPF_STORAGE_REQ_MAP_FD`.
const STORAGE_MAP: u16 = 1;
/// `INET_DIAG_BC_JMP`.
const JUMP: u8 = 1;
/// `INET_DIAG_BC_MARK_COND`.
const MARK: u8 = 10;
/// `INET_DIAG_BC_CGROUP_COND`.
const CGROUP: u8 = 13;
/// Length of `struct inet_diag_bc_op`, and so of a jump.
const OPERATION: usize = 4;

/// Length of `struct inet_diag_msg`, the fixed part of an answer.
pub(super) const ANSWER: usize = 72;
/// Every state of `inet_diag_req_v2`: UDP sockets are "closed" until they are connected.
pub(super) const ALL_STATES: u32 = u32::MAX;

/// A property of sockets that the kernel can filter by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Its mark has these bits in the mask. The kernel wants `CAP_NET_ADMIN` to tell.
    Mark {
        /// The bits.
        mark: u32,
        /// The mask.
        mask: u32,
    },
    /// It belongs to exactly this cgroup.
    Cgroup(u64),
}

/// Asks for the sockets of a family and protocol in some states (`inet_diag_req_v2`). `extensions`:
/// `INET_DIAG_*` that are wanted besides what is always told, as bits from 1 on.
pub(super) fn list(family: u8, protocol: u8, states: u32, extensions: u8) -> Request {
    let mut fixed = [0; 56];
    fixed[0] = family;
    fixed[1] = protocol;
    fixed[2] = extensions;
    fixed[4..8].copy_from_slice(&states.to_ne_bytes());
    Request::new(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, &fixed)
}

/// Lists only sockets for which one of `conditions` holds; without any, all.
///
/// The filter is a program. An operation goes on at `yes` where it holds, else at `no`, both counted
/// from itself. Its end lists the socket, and beyond its end does not. So behind each condition stands a
/// jump to the end, and a condition that does not hold goes round it.
pub(super) fn only(request: &mut Request, conditions: &[Condition]) {
    if conditions.is_empty() {
        return;
    }
    let operands: Vec<(u8, Vec<u8>)> = conditions.iter().map(operand).collect();
    let length = |operand: &[u8]| OPERATION + operand.len() + OPERATION;
    let mut left: usize = operands.iter().map(|(_, operand)| length(operand)).sum();
    let mut program = Vec::with_capacity(left);
    for (code, operand) in &operands {
        let own = length(operand);
        // Of the last one, `no` is beyond the end.
        let no = if left == own { own + 4 } else { own };
        put_operation(&mut program, *code, own - OPERATION, no);
        program.extend(operand);
        left -= own;
        put_operation(&mut program, JUMP, OPERATION, OPERATION + left);
    }
    request.put(BYTECODE, &program);
}

/// Most conditions of one request: a jump reaches 64 KiB.
pub(super) const MOST_CONDITIONS: usize = 1024;

fn put_operation(program: &mut Vec<u8>, code: u8, yes: usize, no: usize) {
    program.push(code);
    program.push(u8::try_from(yes).unwrap_or(u8::MAX));
    program.extend(u16::try_from(no).unwrap_or(u16::MAX).to_ne_bytes());
}

fn operand(condition: &Condition) -> (u8, Vec<u8>) {
    match condition {
        Condition::Mark { mark, mask } => {
            let mut operand = (mark & mask).to_ne_bytes().to_vec();
            operand.extend(mask.to_ne_bytes());
            (MARK, operand)
        }
        Condition::Cgroup(id) => (CGROUP, id.to_ne_bytes().to_vec()),
    }
}

/// Asks to be told with each socket what it holds in the socket storage with this descriptor.
pub(super) fn with_storage(request: &mut Request, map: i32) {
    request.nest(STORAGES, |nest| {
        nest.put(STORAGE_MAP, &map.to_ne_bytes());
    });
}

/// Asks to close a socket. Its own and its peer's address have the socket's own family, and the cookie
/// keeps another that came in its place alive.
pub(super) fn destroy(
    protocol: u8,
    local: SocketAddr,
    peer: SocketAddr,
    interface: u32,
    cookie: u64,
) -> Request {
    let mut fixed = [0; 56];
    fixed[0] = family_of(local.ip());
    fixed[1] = protocol;
    fixed[4..8].copy_from_slice(&ALL_STATES.to_ne_bytes());
    fixed[8..10].copy_from_slice(&local.port().to_be_bytes());
    fixed[10..12].copy_from_slice(&peer.port().to_be_bytes());
    let (own, other) = (octets(local.ip()), octets(peer.ip()));
    fixed[12..12 + own.len()].copy_from_slice(&own);
    fixed[28..28 + other.len()].copy_from_slice(&other);
    fixed[44..48].copy_from_slice(&interface.to_ne_bytes());
    // Two words, the lower first, in any byte order.
    let [low, high] = [cookie & 0xffff_ffff, cookie >> 32].map(|word| {
        let word = u32::try_from(word).unwrap_or_default();
        word.to_ne_bytes()
    });
    fixed[48..52].copy_from_slice(&low);
    fixed[52..56].copy_from_slice(&high);
    Request::new(SOCK_DESTROY, libc::NLM_F_ACK, &fixed)
}
