//! A relay between the cable of an uplink and its peer, which loses and delays packets: what a poor radio
//! does, for kernels without `netem`.
//!
//! Frames are taken from the cable by a packet socket and given to the peer by a tap device, and back. Both
//! have the header of virtio, so that what the sending kernel left to hardware (checksums, segments) is left
//! to the receiving one.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::mpsc::{self, Receiver, SendError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::ip::ip_batch;
use crate::lab::Lab;
use crate::link;
use crate::namespace::Namespace;
use crate::uplink::Uplink;
use crate::wait;

/// What a relay does to each packet, either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impairment {
    /// How many of a hundred packets are lost. Which ones follows from `seed` and their number alone; packets to
    /// more than one station, which hosts send on their own, are neither lost nor numbered.
    pub loss: u8,
    /// How long each is held, at least.
    pub delay: Duration,
    /// How much longer at most, evenly spread. Packets do not overtake each other.
    pub jitter: Duration,
    /// What chance begins with.
    pub seed: u64,
}

impl Impairment {
    /// Loses `loss` of a hundred packets.
    pub fn lossy(loss: u8) -> Self {
        Self {
            loss,
            ..Self::default()
        }
    }

    /// Holds each packet for `delay`, either way: the round trip takes twice as long.
    pub fn late(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }
}

impl Lab {
    /// Has the relay of `uplink`, which was built with [`Uplink::relayed`], do this with what is sent from now on;
    /// its chance begins again.
    ///
    /// # Errors
    /// If the uplink has no relay, or the relay has ended.
    pub fn impair(&self, uplink: &str, impairment: Impairment) -> Result<()> {
        let relay = self.attached(uplink)?.relay.as_ref();
        let relay = relay.with_context(|| format!("{uplink} was built without a relay"))?;
        // What was sent before has then come to the relay.
        self.drain()?;
        relay.impair(impairment)
    }
}

/// A running relay; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    orders: Sender<Order>,
    /// Written to with every order, and closed to end it.
    wake: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// What is to be done from now on, and who is told when it is.
#[derive(Debug)]
struct Order {
    impairment: Impairment,
    done: Sender<()>,
}

impl Relay {
    /// Starts a relay between the cable that ends in `wire` and a new interface in `peer` of the same name.
    pub(crate) fn start(wire: &Namespace, peer: &Namespace, uplink: &Uplink) -> Result<Self> {
        let far_end = uplink.far_end();
        let tap = peer.run(|| open_tap(far_end))?;
        let line = format!("link set {far_end} address {}", uplink.peer_mac());
        ip_batch(peer, &[line])?;
        ip_batch(wire, &[format!("link set {far_end} up")])?;
        let cable = wire.run(|| link::open_cable(far_end))?;
        let (woken, wake) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make a pipe")?;
        let (orders, ordered) = mpsc::channel();
        let name = uplink.name.clone();
        let thread = std::thread::spawn(move || {
            let mut ways = [Way::new(1), Way::new(2)];
            let ends = [cable.as_fd(), tap.as_fd()];
            if let Err(error) = pass_on(ends, &mut ways, &ordered, &woken) {
                eprintln!("laboratory: the relay of {name} ended: {error:#}");
            }
        });
        Ok(Self {
            orders,
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    fn impair(&self, impairment: Impairment) -> Result<()> {
        const ENDED: &str = "the relay has ended";
        let (done, is_done) = mpsc::channel();
        let order = Order { impairment, done };
        self.orders.send(order).context(ENDED)?;
        let wake = self.wake.as_ref().context(ENDED)?;
        nix::unistd::write(wake, b"x").context("wake the relay")?;
        is_done.recv_timeout(wait::DEADLINE).context(ENDED)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.wake.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("laboratory: a relay's thread panicked");
        }
    }
}

/// Packets on their way from one end to the other.
#[derive(Debug)]
struct Way {
    /// Sets the chance of one way apart from that of the other.
    number: u64,
    impairment: Impairment,
    /// How many packets to one station came since that changed.
    seen: u64,
    waiting: VecDeque<(Instant, Vec<u8>)>,
}

impl Way {
    fn new(number: u64) -> Self {
        Self {
            number,
            impairment: Impairment::default(),
            seen: 0,
            waiting: VecDeque::new(),
        }
    }

    /// Takes a packet (the header of virtio, then the frame) that came at `now`.
    fn take(&mut self, packet: &[u8], now: Instant) {
        let Impairment {
            loss,
            delay,
            jitter,
            seed,
        } = self.impairment;
        let to_many = packet.get(HEADER).is_some_and(|first| first & 1 == 1);
        let mut late = delay;
        if !to_many {
            self.seen += 1;
            let chance = scatter(seed ^ scatter(self.number) ^ self.seen);
            if chance % 100 < u64::from(loss) {
                return;
            }
            // Another part of the number, in thousandths.
            let part = u32::try_from((chance >> 32) % 1000).unwrap_or(0);
            late += jitter * part / 1000;
        }
        let due = now + late;
        let due = self.waiting.back().map_or(due, |(last, _)| due.max(*last));
        self.waiting.push_back((due, packet.to_vec()));
    }

    /// Gives what is due to its end.
    fn give(&mut self, to: BorrowedFd<'_>, now: Instant) -> Result<()> {
        while self.waiting.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, packet)) = self.waiting.pop_front() else {
                break;
            };
            match nix::unistd::write(to, &packet) {
                // A full queue or an interface that is down loses packets, as it does elsewhere.
                Ok(_) | Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::ENETDOWN | Errno::EIO) => {}
                Err(error) => return Err(error).context("pass a packet on"),
            }
        }
        Ok(())
    }
}

/// Length of `struct virtio_net_hdr`.
const HEADER: usize = 10;

/// A number that looks like chance and follows from `number` alone (the last step of SplitMix64).
fn scatter(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Passes packets on, each by its way to the other end, until it is stopped.
fn pass_on(
    ends: [BorrowedFd<'_>; 2],
    ways: &mut [Way; 2],
    ordered: &Receiver<Order>,
    woken: &OwnedFd,
) -> Result<()> {
    let mut buffer = vec![0; 1 << 17];
    loop {
        let next = ways
            .iter()
            .filter_map(|way| Some(way.waiting.front()?.0))
            .min();
        let mut waiting = [
            PollFd::new(woken.as_fd(), PollFlags::POLLIN),
            PollFd::new(ends[0], PollFlags::POLLIN),
            PollFd::new(ends[1], PollFlags::POLLIN),
        ];
        match poll(&mut waiting, until(next)) {
            Err(Errno::EINTR) => continue,
            result => result.context("poll the relay's ends")?,
        };
        let is_woken = waiting[0].any().unwrap_or(true);
        if is_woken && nix::unistd::read(woken, &mut [0]).context("read the wake-up")? == 0 {
            return Ok(());
        }
        for (from, way) in ends.into_iter().zip(&mut *ways) {
            read_all(from, way, &mut buffer)?;
        }
        if is_woken && let Ok(order) = ordered.try_recv() {
            for way in &mut *ways {
                way.impairment = order.impairment;
                way.seen = 0;
            }
            // Who has given up waiting has said so.
            let _: Result<(), SendError<()>> = order.done.send(());
        }
        let now = Instant::now();
        for (to, way) in ends.into_iter().rev().zip(&mut *ways) {
            way.give(to, now)?;
        }
    }
}

fn read_all(from: BorrowedFd<'_>, way: &mut Way, buffer: &mut [u8]) -> Result<()> {
    loop {
        match nix::unistd::read(from, buffer) {
            Ok(length) => way.take(&buffer[..length], Instant::now()),
            Err(Errno::EAGAIN) => return Ok(()),
            // The cable has no carrier; it goes on when it has.
            Err(Errno::ENETDOWN | Errno::EINTR) => {}
            Err(error) => return Err(error).context("read a packet to relay"),
        }
    }
}

/// How long to wait for `next`, in whole milliseconds, and never too short.
fn until(next: Option<Instant>) -> PollTimeout {
    let Some(next) = next else {
        return PollTimeout::NONE;
    };
    let left = next.saturating_duration_since(Instant::now());
    let milliseconds = left.as_micros().div_ceil(1000);
    PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
}

/// A tap device of the calling thread's namespace; it goes with its descriptor.
fn open_tap(name: &str) -> Result<File> {
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("open /dev/net/tun: a relay needs the kernel's tun driver")?;
    link::make_tap(&tap, name)?;
    Ok(tap)
}
