//! Live flows: the sockets of this network namespace that have a peer, and closing one.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use steer_common::FlowState;

use super::connection::{Connection, Refusal};
use super::diag::{self, ANSWER, Condition, MOST_CONDITIONS};
use super::watcher::read;
use super::wire::{AF_INET, AF_INET6, Attributes, Message, attributes, ip, u32_at};
use super::{Error, sockets};

/// `INET_DIAG_INFO`.
const INFO: u16 = 2;
/// `INET_DIAG_SKV6ONLY`.
const V6ONLY: u16 = 11;
/// `INET_DIAG_MARK`.
const MARK: u16 = 15;
/// `INET_DIAG_SK_BPF_STORAGES`, `SK_DIAG_BPF_STORAGE`, `SK_DIAG_BPF_STORAGE_MAP_VALUE`.
const STORAGES: [u16; 3] = [20, 1, 3];
/// `INET_DIAG_CGROUP_ID`.
const CGROUP: u16 = 21;

/// `tcpi_bytes_received`, `tcpi_bytes_sent`, `tcpi_bytes_retrans` and `tcpi_segs_out`, `tcpi_segs_in` in
/// `struct tcp_info`. (`tcpi_bytes_acked` counts SYN and FIN too.)
const TCP_BYTES: [usize; 3] = [128, 200, 208];
const TCP_SEGMENTS: [usize; 2] = [136, 140];

/// `TCP_LISTEN`.
const LISTEN: u8 = 10;

/// What a live flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// Connected UDP.
    Udp,
    /// Connected UDP-Lite; gone from newer kernels.
    UdpLite,
}

impl Transport {
    const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::UdpLite];

    /// `IPPROTO_*`.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::UdpLite => 136,
        }
    }
}

/// What a flow does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowPhase {
    /// It asks its peer (`SYN_SENT`).
    Opening,
    /// Both may send; a datagram socket with a peer.
    Open,
    /// One side or both sent their last.
    Closing,
    /// A datagram socket without a peer.
    Unconnected,
}

impl FlowPhase {
    /// Bits of the states that are live, and of listeners.
    const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << LISTEN | 1 << 11;
    /// The bit of datagram sockets without a peer (`CLOSE`).
    const UNCONNECTED: u32 = 1 << 7;

    const fn of(state: u8) -> Option<Self> {
        match state {
            1 => Some(Self::Open),
            2 => Some(Self::Opening),
            4 | 5 | 8 | 9 | 11 => Some(Self::Closing),
            7 => Some(Self::Unconnected),
            _ => None,
        }
    }
}

/// How much a flow carried, as far as TCP knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes that were sent, each once.
    pub bytes_out: u64,
    /// Bytes that came.
    pub bytes_in: u64,
    /// Segments that were sent.
    pub packets_out: u32,
    /// Segments that came.
    pub packets_in: u32,
}

/// A socket that has a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveFlow {
    /// Its protocol.
    pub transport: Transport,
    /// What it does.
    pub phase: FlowPhase,
    /// Its own address; IPv4 also where the socket is an IPv6 one.
    pub local: SocketAddr,
    /// Its peer's, likewise.
    pub peer: SocketAddr,
    /// The socket is of IPv6.
    pub v6: bool,
    /// The peer asked: its own port is a listener's.
    pub accepted: bool,
    /// Who owns the socket.
    pub uid: u32,
    /// Its inode, as in /proc/PID/fd; 0: no process has it (any more).
    pub inode: u32,
    /// Its cookie: no other socket of this boot has the same.
    pub cookie: u64,
    /// Its mark; 0 also without `CAP_NET_ADMIN`.
    pub mark: u32,
    /// The cgroup that made it; 0: the kernel does not tell.
    pub cgroup: u64,
    /// The interface that it is bound to, or 0.
    pub interface: u32,
    /// What it carried, if asked for and TCP.
    pub carried: Option<Carried>,
    /// What the kernel programs remember of it, if asked for. Of TCP alone: the kernel lists no storage of
    /// datagram sockets (`inet_sk_diag_fill`).
    pub state: Option<FlowState>,
}

/// Which flows are wanted, and what of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Flows for which one of these holds; without any, all.
    pub any: &'a [Condition],
    /// The socket storage with what the kernel programs remember. The kernel wants `CAP_BPF`.
    pub storage: Option<BorrowedFd<'a>>,
    /// Datagram sockets without a peer, too.
    pub unconnected: bool,
    /// Tell what flows carried.
    pub carried: bool,
}

/// The live flows of the calling thread's network namespace: TCP that is not closed nor a listener, and
/// connected UDP and UDP-Lite, each once.
///
/// Not seen: connections that wait to be accepted, and what the kernel lists nowhere (raw, ping and packet
/// sockets).
///
/// # Errors
/// TCP or UDP sockets could not be listed.
pub async fn live_flows(wanted: Wanted<'_>) -> Result<Vec<LiveFlow>, Error> {
    let mut connection = Connection::open(libc::NETLINK_SOCK_DIAG).map_err(Error::Open)?;
    let mut found = Vec::new();
    // A dump may tell of a socket twice that went from one place to another meanwhile.
    let mut seen = HashMap::new();
    let unconnected = u32::from(wanted.unconnected) * FlowPhase::UNCONNECTED;
    let states = FlowPhase::STATES | unconnected;
    let requests = match wanted.any {
        [] => vec![wanted.any],
        some => some.chunks(MOST_CONDITIONS).collect(),
    };
    for transport in Transport::ALL {
        let mut listeners = Vec::new();
        let first = found.len();
        for family in [AF_INET, AF_INET6] {
            for any in &requests {
                let mut request = diag::list(
                    family,
                    transport.number(),
                    states,
                    u8::from(wanted.carried) << (INFO - 1),
                );
                diag::only(&mut request, any);
                if let Some(map) = wanted.storage {
                    diag::with_storage(&mut request, map.as_raw_fd());
                }
                let listed = connection
                    .dump(&request, |message| parse(transport, message))
                    .await;
                match listed {
                    Ok(listed) => {
                        for socket in listed {
                            match socket {
                                Socket::Flow(flow) => {
                                    if seen.insert(flow.cookie, ()).is_none() {
                                        found.push(*flow);
                                    }
                                }
                                Socket::Listener(listener) => listeners.push(listener),
                            }
                        }
                    }
                    Err(refusal)
                        if sockets::is_not_listed(&refusal, transport.number(), family) =>
                    {
                        break;
                    }
                    Err(refusal) => return Err(read("sockets")(refusal)),
                }
            }
        }
        let listeners = Listeners::new(listeners);
        for flow in &mut found[first..] {
            flow.accepted = listeners.have(flow.local);
        }
    }
    Ok(found)
}

/// Closes flows: their applications see `ECONNABORTED` at once, and TCP tells the peer by a reset, which
/// leaves as the flow's packets did. The outcome of each.
///
/// A flow that ended by itself meanwhile is closed too. A datagram socket loses its peer and lives on: who
/// waits on it sees the same error, and who sends `EDESTADDRREQ`.
///
/// # Errors
/// There is no netlink socket.
pub async fn reset_flows<'a>(
    flows: impl IntoIterator<Item = &'a LiveFlow>,
) -> Result<Vec<Result<(), Refusal>>, Error> {
    let mut connection = Connection::open(libc::NETLINK_SOCK_DIAG).map_err(Error::Open)?;
    let mut outcomes = Vec::new();
    for flow in flows {
        let [local, peer] = [flow.local, flow.peer].map(|address| match address.ip() {
            IpAddr::V4(ip) if flow.v6 => {
                SocketAddr::new(ip.to_ipv6_mapped().into(), address.port())
            }
            _ => address,
        });
        let request = diag::destroy(
            flow.transport.number(),
            local,
            peer,
            flow.interface,
            flow.cookie,
        );
        outcomes.push(match connection.change(request).await {
            Err(refusal) if refusal.errno() == libc::ENOENT => Ok(()),
            outcome => outcome,
        });
    }
    Ok(outcomes)
}

/// What a dump tells of.
enum Socket {
    Flow(Box<LiveFlow>),
    Listener(Listener),
}

/// A socket that accepts connections.
struct Listener {
    local: SocketAddr,
    v6only: bool,
}

/// Listeners by port.
struct Listeners(HashMap<u16, Vec<Listener>>);

impl Listeners {
    fn new(listeners: Vec<Listener>) -> Self {
        let mut by_port: HashMap<u16, Vec<Listener>> = HashMap::new();
        for listener in listeners {
            by_port
                .entry(listener.local.port())
                .or_default()
                .push(listener);
        }
        Self(by_port)
    }

    /// Whether a connection with this address of its own may have been accepted by one.
    fn have(&self, local: SocketAddr) -> bool {
        let at_port = self.0.get(&local.port()).into_iter().flatten();
        let mut fits = at_port.filter(|listener| {
            let ip = listener.local.ip();
            if ip.is_unspecified() {
                ip.is_ipv4() == local.is_ipv4() || local.is_ipv4() && !listener.v6only
            } else {
                ip == local.ip()
            }
        });
        fits.next().is_some()
    }
}

fn parse(transport: Transport, message: &Message<'_>) -> Option<Socket> {
    let (fixed, attributes) = message.split::<ANSWER>()?;
    let (family, state) = (fixed[0], fixed[1]);
    let port = |at: usize| Some(u16::from_be_bytes(*fixed.get(at..)?.first_chunk()?));
    let address = |at: usize| {
        let length = if family == AF_INET { 4 } else { 16 };
        ip(fixed.get(at..at + length)?)
    };
    let local = SocketAddr::new(address(8)?, port(4)?);
    let peer = SocketAddr::new(address(24)?, port(6)?);
    let told = Told::read(attributes);
    if state == LISTEN {
        return Some(Socket::Listener(Listener {
            local,
            v6only: told.v6only,
        }));
    }
    let phase = FlowPhase::of(state)?;
    let canonical =
        |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let low = u32_at(fixed, 44)?;
    let high = u32_at(fixed, 48)?;
    Some(Socket::Flow(Box::new(LiveFlow {
        transport,
        phase,
        local: canonical(local),
        peer: canonical(peer),
        v6: family == AF_INET6,
        accepted: false,
        uid: u32_at(fixed, 64)?,
        inode: u32_at(fixed, 68)?,
        cookie: u64::from(high) << 32 | u64::from(low),
        mark: told.mark,
        cgroup: told.cgroup,
        interface: u32_at(fixed, 40)?,
        carried: told.carried,
        state: told.state,
    })))
}

/// What the attributes of an answer say.
#[derive(Default)]
struct Told {
    mark: u32,
    cgroup: u64,
    v6only: bool,
    carried: Option<Carried>,
    state: Option<FlowState>,
}

impl Told {
    fn read(attributes: Attributes<'_>) -> Self {
        let mut told = Self::default();
        for (kind, payload) in attributes {
            match kind {
                MARK => told.mark = u32_at(payload, 0).unwrap_or_default(),
                CGROUP => told.cgroup = u64_at(payload, 0).unwrap_or_default(),
                V6ONLY => told.v6only = payload.first().is_some_and(|only| *only != 0),
                INFO => told.carried = carried(payload),
                kind if kind == STORAGES[0] => told.state = state(payload),
                _ => {}
            }
        }
        told
    }
}

/// The value among the storages that were asked for, which is one.
fn state(storages: &[u8]) -> Option<FlowState> {
    let [_, storage, value] = STORAGES;
    let inside = |bytes, wanted: u16| {
        let mut found = attributes(bytes).filter(|(kind, _)| *kind == wanted);
        found.next().map(|(_, payload)| payload)
    };
    let value = inside(inside(storages, storage)?, value)?;
    bytemuck::try_pod_read_unaligned(value).ok()
}

/// Of `tcp_info`, which older kernels end earlier; `None`: it is not TCP's.
fn carried(info: &[u8]) -> Option<Carried> {
    let [received, sent, repeated] = TCP_BYTES.map(|at| u64_at(info, at));
    let [out, come] = TCP_SEGMENTS.map(|at| u32_at(info, at));
    Some(Carried {
        bytes_out: sent?.saturating_sub(repeated?),
        bytes_in: received?,
        packets_out: out?,
        packets_in: come?,
    })
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*bytes))
}
