//! Which WLANs interfaces are connected to, and how well they hear them.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use netlink_sys::Socket;
use steer_core::attached::{Ssid, Station, Wlan};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use super::Error;
use super::connection::{Connection, Refusal, registered};
use super::nl80211::{self, Change, Family, Heard, Interface, header};
use super::watcher::read;
use super::wire::{Attributes, Message, Request, messages};

/// How well networks are heard is looked at this often.
const LOOK: Duration = Duration::from_secs(10);
/// Nothing is read again sooner: whoever has a transmitter can cause notifications without end.
const PAUSE: Duration = Duration::from_millis(50);
/// Notifications are shorter; what does not fit is not needed.
const BUFFER: usize = 16 * 1024;
/// Notifications that are read at once.
const BATCH: usize = 1024;

/// Follows which WLANs interfaces are connected to.
pub struct Stations {
    notifications: AsyncFd<Socket>,
    buffer: Vec<u8>,
    requests: Connection,
    /// nl80211's number, if the kernel has it: a module may come later.
    family: Option<u16>,
    /// By the interfaces' names, with their indices.
    told: BTreeMap<String, (u32, Station)>,
    /// Something was told that is out of date.
    outdated: bool,
    /// Nothing was read since something changed.
    stale: bool,
    /// When it was read last.
    looked: Option<Instant>,
    /// The kernel could not be asked then.
    failing: bool,
}

impl Stations {
    /// Subscribes, on the calling thread, in its network namespace.
    ///
    /// # Errors
    /// No socket, or no subscription.
    #[expect(
        clippy::unused_async,
        reason = "needs the runtime that its caller awaits it on"
    )]
    pub async fn open() -> Result<Self, Error> {
        let mut socket = Socket::new(isize::try_from(libc::NETLINK_GENERIC).unwrap_or_default())
            .map_err(Error::Open)?;
        socket.set_non_blocking(true).map_err(Error::Open)?;
        socket.bind_auto().map_err(Error::Open)?;
        subscribe(&socket, u32::from(nl80211::CONTROL))?;
        Ok(Self {
            notifications: registered(socket, Interest::READABLE | Interest::ERROR)
                .map_err(Error::Open)?,
            buffer: Vec::with_capacity(BUFFER),
            requests: Connection::open(libc::NETLINK_GENERIC).map_err(Error::Open)?,
            family: None,
            told: BTreeMap::new(),
            outdated: false,
            stale: true,
            looked: None,
            failing: false,
        })
    }

    /// Waits until something is different from what it gave last (at first, from that nothing is connected), and
    /// gives all of it, by the interfaces' names. An interface that is being connected is left out until it is
    /// known to what.
    ///
    /// Cancel-safe: what it was about to give is given by the next call.
    ///
    /// # Errors
    /// The kernel could not be asked. The next calls try again, and tell no error until it could be.
    pub async fn next(&mut self) -> Result<BTreeMap<String, Station>, Error> {
        loop {
            if std::mem::take(&mut self.outdated) {
                return Ok(self.all());
            }
            let due = self.due();
            if due.is_some_and(|due| due <= Instant::now()) {
                let before = self.told.clone();
                let failing = self.failing;
                match self.read().await {
                    Ok(_) if self.told == before => continue,
                    Err(_) if failing => continue,
                    read => return read,
                }
            }
            let told = async {
                let ready = Interest::READABLE | Interest::ERROR;
                self.notifications.ready(ready).await?.clear_ready();
                io::Result::Ok(())
            };
            let told = match due {
                // Its end is no error: it is time to look.
                Some(due) => timeout_at(due, told).await.unwrap_or(Ok(())),
                None => told.await,
            };
            // What could not be waited for is read, and fails there.
            self.stale |= told.is_err() || self.drain().is_err();
        }
    }

    /// What is so now.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub async fn read(&mut self) -> Result<BTreeMap<String, Station>, Error> {
        let read = match self.drain() {
            Ok(()) => self.look().await,
            Err(error) => Err(error),
        };
        self.looked = Some(Instant::now());
        self.failing = read.is_err();
        self.told = read?;
        self.stale = false;
        self.outdated = false;
        Ok(self.all())
    }

    /// Whoever was told has forgotten an interface, as its link went down: it is read and given anew.
    pub fn forgotten(&mut self, name: &str) {
        self.stale |= self.told.remove(name).is_some();
    }

    fn all(&self) -> BTreeMap<String, Station> {
        let told = self.told.iter();
        told.map(|(name, (_, station))| (name.clone(), station.clone()))
            .collect()
    }

    /// When to read next, if nothing is told.
    fn due(&self) -> Option<Instant> {
        let Some(looked) = self.looked else {
            return Some(Instant::now());
        };
        let pause = match self.stale && !self.failing {
            true => Some(PAUSE),
            false => (self.failing || !self.told.is_empty()).then_some(LOOK),
        };
        pause.map(|pause| looked + pause)
    }

    /// Reads what waits in the socket, for whether anything may be different.
    fn drain(&mut self) -> Result<(), Error> {
        for _ in 0..BATCH {
            self.buffer.clear();
            match self.notifications.get_ref().recv(&mut self.buffer, 0) {
                Ok(_) => {
                    for message in messages(&self.buffer) {
                        match nl80211::change(&message) {
                            Some(Change::Families) => self.family = None,
                            Some(Change::Network(index)) => {
                                let before = self.told.len();
                                self.told.retain(|_, (known, _)| *known != index);
                                self.outdated |= self.told.len() != before;
                            }
                            Some(Change::Interfaces) => {}
                            None => continue,
                        }
                        self.stale = true;
                    }
                }
                Err(error) => match (error.kind(), error.raw_os_error()) {
                    (io::ErrorKind::WouldBlock, _) => return Ok(()),
                    (io::ErrorKind::Interrupted, _) => {}
                    (_, Some(libc::ENOBUFS)) => self.stale = true,
                    _ => return Err(Error::Receive(error)),
                },
            }
        }
        self.stale = true;
        Ok(())
    }

    async fn look(&mut self) -> Result<BTreeMap<String, (u32, Station)>, Error> {
        let Some(family) = self.family().await? else {
            return Ok(BTreeMap::new());
        };
        let request = Request::new(family, libc::NLM_F_DUMP, &header(nl80211::GET_INTERFACE));
        let parse = |message: &Message<'_>| nl80211::interface(message, family);
        let interfaces = match self.requests.dump(&request, parse).await {
            Ok(interfaces) => interfaces,
            // The module is gone, and its number with it.
            Err(refusal) if refusal.errno() == libc::ENOENT => {
                self.family = None;
                return Ok(BTreeMap::new());
            }
            Err(refusal) => return Err(read("WLAN interfaces")(refusal)),
        };
        let mut stations = BTreeMap::new();
        for Interface { index, name, ssid } in interfaces {
            // To which network it is connected stays so while nothing is told.
            let known = self.told.get(&name).filter(|_| !self.stale);
            let known = known.filter(|(known, _)| *known == index);
            let wlan = match known.map(|(_, station)| station.wlan.clone()) {
                Some(wlan) => wlan,
                None => match self.wlan(family, index, ssid).await? {
                    Some(wlan) => wlan,
                    None => continue,
                },
            };
            let heard = self.ask(
                family,
                nl80211::GET_STATION,
                index,
                "WLAN signal",
                nl80211::heard,
            );
            let Heard { signal, bitrate } = heard.await?.unwrap_or_default();
            let station = Station {
                wlan,
                signal,
                bitrate,
            };
            stations.insert(name, (index, station));
        }
        Ok(stations)
    }

    /// The network that an interface is connected to: what a scan found of it, since the kernel itself knows its
    /// name only where it was the one to connect (`NL80211_CMD_CONNECT`), which wpa_supplicant does not ask of it.
    async fn wlan(
        &mut self,
        family: u16,
        interface: u32,
        ssid: Option<Ssid>,
    ) -> Result<Option<Wlan>, Error> {
        let found = self.ask(
            family,
            nl80211::GET_SCAN,
            interface,
            "WLANs in reach",
            nl80211::associated,
        );
        let found = found.await?;
        let protected = found.as_ref().is_some_and(|found| found.protected);
        let ssid = ssid.or(found.and_then(|found| found.ssid));
        Ok(ssid.map(|ssid| Wlan { ssid, protected }))
    }

    /// The first that is found in an answer about an interface; nothing if that is gone.
    async fn ask<T>(
        &mut self,
        family: u16,
        command: u8,
        interface: u32,
        what: &'static str,
        parse: impl Fn(Attributes<'_>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let mut request = Request::new(family, libc::NLM_F_DUMP, &header(command));
        request.put_u32(nl80211::IFINDEX, interface);
        let parse = |message: &Message<'_>| parse(nl80211::body(message, family)?);
        match self.requests.dump(&request, parse).await {
            Ok(found) => Ok(found.into_iter().next()),
            Err(refusal) if is_gone(&refusal) => Ok(None),
            Err(refusal) => Err(read(what)(refusal)),
        }
    }

    /// nl80211's number; its notifications are subscribed to when it is known.
    async fn family(&mut self) -> Result<Option<u16>, Error> {
        if self.family.is_some() {
            return Ok(self.family);
        }
        // Asking for it by its name would have the kernel load the module.
        let request = Request::new(
            nl80211::CONTROL,
            libc::NLM_F_DUMP,
            &header(nl80211::GET_FAMILY),
        );
        let families = self.requests.dump(&request, nl80211::family).await;
        let families = families.map_err(read("families of generic netlink"))?;
        let Some(Family { number, groups }) = families.into_iter().next() else {
            return Ok(None);
        };
        for group in groups {
            subscribe(self.notifications.get_ref(), group)?;
        }
        self.family = Some(number);
        Ok(self.family)
    }
}

fn subscribe(socket: &Socket, group: u32) -> Result<(), Error> {
    let subscribed = socket.add_membership(group);
    subscribed.map_err(|source| Error::Subscribe { group, source })
}

/// What is so of an interface that is gone, or whose driver does not say.
fn is_gone(refusal: &Refusal) -> bool {
    let gone = [libc::ENODEV, libc::ENOENT, libc::ENETDOWN, libc::EOPNOTSUPP];
    gone.contains(&refusal.errno())
}

#[cfg(test)]
mod tests {
    use super::Stations;

    #[tokio::test]
    async fn the_kernel_answers_whether_it_has_wlan_or_not() {
        let mut stations = Stations::open().await.expect("generic netlink is there");
        assert!(stations.look().await.is_ok());
    }
}
