//! Capture of everything that crosses the uplinks, taken at the *peer's* end: what the host redirects
//! shows there where it really went.
//!
//! Absence is sound because of [`Capture::drain`]: it sends a marker frame from every CPU over every
//! uplink and waits until it has seen them all. A veth hands frames over through the sending CPU's
//! backlog, first in, first out, so whatever was sent before has then been recorded too.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::ops::RangeBounds;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use nix::unistd::Pid;

use crate::link;
use crate::namespace::Namespace;
use crate::packet::{Direction, Packet};
use crate::wait::DEADLINE;

/// Ethertype for local experiments (IEEE 802), carried by marker frames only.
const MARKER: u16 = 0x88b5;
/// Room for packets that arrive while the reader is not scheduled, in bytes.
const RECEIVE_BUFFER: usize = 64 << 20;

/// A running capture on the peers' ends of all uplinks.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    host: Namespace,
    stop: Option<OwnedFd>,
    reader: Option<JoinHandle<()>>,
    sockets: Arc<Vec<Tap>>,
    /// A packet socket of the host's, which sends markers: to close one takes the kernel ten milliseconds.
    marking: OwnedFd,
    next_marker: AtomicU64,
}

/// A packet socket for all interfaces of a peer's namespace.
#[derive(Debug)]
struct Tap {
    socket: OwnedFd,
    peer: Namespace,
    /// The uplink of each far end, by its name.
    far_ends: BTreeMap<String, String>,
}

impl Tap {
    /// The uplink whose far end has the index `index` now, or the only one there is.
    fn uplink(&self, index: usize) -> Result<Option<String>> {
        if self.far_ends.len() == 1 {
            return Ok(self.far_ends.values().next().cloned());
        }
        let index = u32::try_from(index).context("interface index")?;
        let name = self
            .peer
            .run(|| Ok(nix::net::if_::if_indextoname(index).ok()))?;
        let name = name.map(|name| name.to_string_lossy().into_owned());
        Ok(name.and_then(|name| self.far_ends.get(&name).cloned()))
    }
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    packets: Vec<Packet>,
    markers: HashSet<(String, u64, usize)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Capture {
    /// Starts capturing in `peers` (with the uplink of each far end); markers are sent from `host`.
    ///
    /// # Errors
    /// If a packet socket cannot be opened.
    pub(crate) fn start(
        host: &Namespace,
        peers: &[(Namespace, BTreeMap<String, String>)],
    ) -> Result<Self> {
        let mut sockets = Vec::new();
        for (peer, far_ends) in peers {
            sockets.push(Tap {
                socket: peer.run(open)?,
                peer: peer.clone(),
                far_ends: far_ends.clone(),
            });
        }
        let sockets = Arc::new(sockets);
        let (stopped, stop) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make a pipe")?;
        let shared = Arc::new(Shared::default());
        let reader = std::thread::spawn({
            let shared = Arc::clone(&shared);
            let sockets = Arc::clone(&sockets);
            move || {
                if let Err(error) = read_all(&sockets, &stopped, &shared) {
                    eprintln!("laboratory: capture ended: {error:#}");
                }
            }
        });
        Ok(Self {
            shared,
            host: host.clone(),
            stop: Some(stop),
            reader: Some(reader),
            sockets,
            marking: host.run(open_to_send)?,
            next_marker: AtomicU64::new(1),
        })
    }

    /// Packets seen so far that satisfy `wanted`, in the order they were read.
    pub fn packets(&self, wanted: impl Fn(&Packet) -> bool) -> Vec<Packet> {
        self.shared
            .lock()
            .packets
            .iter()
            .filter(|p| wanted(p))
            .cloned()
            .collect()
    }

    /// Packets from or to `address`, ARP and neighbour solicitations for it included.
    pub fn about(&self, address: IpAddr) -> Vec<Packet> {
        self.packets(|p| p.is_about(address))
    }

    /// Number of packets seen so far: a position for [`Capture::since`].
    pub fn position(&self) -> usize {
        self.shared.lock().packets.len()
    }

    /// Packets seen after `position` that satisfy `wanted`.
    pub fn since(&self, position: usize, wanted: impl Fn(&Packet) -> bool) -> Vec<Packet> {
        let seen = self.shared.lock();
        seen.packets
            .iter()
            .skip(position)
            .filter(|p| wanted(p))
            .cloned()
            .collect()
    }

    /// Packets seen at `positions` that satisfy `wanted`.
    pub fn between(
        &self,
        positions: impl RangeBounds<usize>,
        wanted: impl Fn(&Packet) -> bool,
    ) -> Vec<Packet> {
        let seen = self.shared.lock();
        let packets = seen.packets.iter().enumerate();
        packets
            .filter(|(position, packet)| positions.contains(position) && wanted(packet))
            .map(|(_, packet)| packet.clone())
            .collect()
    }

    /// Whether a packet after `position` satisfies `wanted`.
    pub fn has(&self, position: usize, wanted: impl Fn(&Packet) -> bool) -> bool {
        let seen = self.shared.lock();
        seen.packets.iter().skip(position).any(wanted)
    }

    /// Waits for a packet that satisfies `wanted`.
    ///
    /// # Errors
    /// If none came before the deadline, naming `what`.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Packet) -> bool) -> Result<Packet> {
        let mut found = None;
        self.wait(what, |seen| {
            found = seen.packets.iter().find(|p| wanted(p)).cloned();
            found.is_some()
        })?;
        found.context("the packet just found")
    }

    fn wait(&self, what: &str, mut done: impl FnMut(&Seen) -> bool) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        let mut seen = self.shared.lock();
        while !done(&seen) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let last: Vec<String> = seen
                    .packets
                    .iter()
                    .rev()
                    .take(12)
                    .rev()
                    .map(ToString::to_string)
                    .collect();
                bail!(
                    "not captured within {DEADLINE:?}: {what}; last packets:\n{}",
                    last.join("\n")
                );
            }
            seen = self
                .shared
                .changed
                .wait_timeout(seen, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(())
    }

    /// Returns when everything that the host's `interfaces` had sent before the call is recorded.
    ///
    /// `interfaces` are pairs of the interface and the uplink that captures it; those without carrier
    /// are left out, for nothing can be on its way there.
    ///
    /// # Errors
    /// If a marker is not seen in time, or the kernel dropped packets for want of buffer.
    pub fn drain(&self, interfaces: &[(String, String)]) -> Result<()> {
        let number = self.next_marker.fetch_add(1, Ordering::Relaxed);
        let expected = self.host.run(|| {
            let mut expected = Vec::new();
            for cpu in cpus()? {
                pin(cpu)?;
                for (interface, uplink) in interfaces {
                    if link::is_running(interface)?
                        && send_marker(&self.marking, interface, number, cpu)?
                    {
                        expected.push((uplink.clone(), number, cpu));
                    }
                }
            }
            Ok(expected)
        })?;
        self.wait("the markers of a drain", |seen| {
            expected.iter().all(|marker| seen.markers.contains(marker))
        })?;
        for tap in self.sockets.iter() {
            let dropped = dropped(&tap.socket)?;
            ensure!(
                dropped == 0,
                "capture of {:?} lost {dropped} packets: its buffer was full",
                tap.far_ends.values()
            );
        }
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(reader) = self.reader.take()
            && reader.join().is_err()
        {
            eprintln!("laboratory: the capture's thread panicked");
        }
    }
}

/// A packet socket for all interfaces of the calling thread's namespace, those yet to come included.
fn open() -> Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::EthAll,
    )
    .context("open packet socket")?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("set receive buffer")?;
    Ok(socket)
}

fn read_all(sockets: &[Tap], stopped: &OwnedFd, shared: &Shared) -> Result<()> {
    let mut frame = vec![0; 1 << 17];
    let mut known = vec![BTreeMap::new(); sockets.len()];
    loop {
        let mut waiting: Vec<PollFd<'_>> = sockets
            .iter()
            .map(|tap| PollFd::new(tap.socket.as_fd(), PollFlags::POLLIN))
            .collect();
        waiting.push(PollFd::new(stopped.as_fd(), PollFlags::POLLIN));
        match poll(&mut waiting, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result.context("poll packet sockets")?,
        };
        let ended = waiting.last().is_some_and(|fd| fd.any().unwrap_or(true));
        for (tap, known) in sockets.iter().zip(&mut known) {
            read_one(tap, known, &mut frame, shared)?;
        }
        shared.changed.notify_all();
        if ended {
            return Ok(());
        }
    }
}

/// Reads what waits at `tap`; `known` are the uplinks of far ends by their index, found so far.
fn read_one(
    tap: &Tap,
    known: &mut BTreeMap<usize, String>,
    frame: &mut [u8],
    shared: &Shared,
) -> Result<()> {
    loop {
        let (length, from) = match recvfrom::<LinkAddr>(tap.socket.as_raw_fd(), frame) {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(()),
            // The interface went down; the socket goes on when it, or another, is up.
            Err(Errno::ENETDOWN | Errno::EINTR) => continue,
            Err(error) => return Err(error).context("read packet socket"),
        };
        let Some(from) = from else { continue };
        if from.hatype() == libc::ARPHRD_LOOPBACK {
            continue;
        }
        let direction = if from.pkttype() == libc::PACKET_OUTGOING {
            Direction::ToHost
        } else {
            Direction::FromHost
        };
        let uplink = match known.entry(from.ifindex()) {
            Entry::Occupied(uplink) => uplink.into_mut(),
            Entry::Vacant(place) => match tap.uplink(from.ifindex())? {
                Some(uplink) => place.insert(uplink),
                None => continue,
            },
        };
        let packet = Packet::parse(uplink, direction, &frame[..length]);
        let mut seen = shared.lock();
        match (packet.ethertype, marker_fields(&packet.payload)) {
            (MARKER, Some((number, cpu))) => {
                seen.markers.insert((packet.uplink, number, cpu));
            }
            _ => seen.packets.push(packet),
        }
    }
}

fn marker_fields(payload: &[u8]) -> Option<(u64, usize)> {
    let number = u64::from_be_bytes(*payload.first_chunk()?);
    let cpu = u32::from_be_bytes(*payload.get(8..)?.first_chunk()?);
    Some((number, usize::try_from(cpu).ok()?))
}

/// A packet socket that receives nothing.
fn open_to_send() -> Result<OwnedFd> {
    socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("open packet socket")
}

/// Sends one marker; `false` if the interface went away meanwhile.
fn send_marker(socket: &OwnedFd, interface: &str, number: u64, cpu: usize) -> Result<bool> {
    let index = match nix::net::if_::if_nametoindex(interface) {
        Ok(index) => i32::try_from(index).context("interface index")?,
        Err(_) => return Ok(false),
    };
    let mut frame = vec![0xff; 6];
    frame.extend([0x02, 0x5e, 0, 0, 0, 0]);
    frame.extend(MARKER.to_be_bytes());
    frame.extend(number.to_be_bytes());
    frame.extend(u32::try_from(cpu).context("CPU number")?.to_be_bytes());
    frame.resize(60, 0);
    match link::send_frame(socket, index, &frame) {
        Ok(()) => Ok(true),
        Err(Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("send a marker by {interface}")),
    }
}

/// Packets lost since the last call (`PACKET_STATISTICS`).
fn dropped(socket: &OwnedFd) -> Result<u32> {
    let mut statistics = [0_u32; 2];
    let mut length =
        libc::socklen_t::try_from(size_of_val(&statistics)).context("length of statistics")?;
    // SAFETY: tpacket_stats is two u32 (packets, drops); the buffer is that long and says so.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            statistics.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result).context("read packet statistics")?;
    Ok(statistics[1])
}

/// CPUs that this process may run on.
fn cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("read CPU affinity")?;
    Ok((0..CpuSet::count())
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .collect())
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).context("choose CPU")?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("move to CPU {cpu}"))
}
