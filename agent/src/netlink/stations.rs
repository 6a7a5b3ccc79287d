//! Which WLANs interfaces are connected to, and how well they hear them.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::time::Duration;

use netlink_sys::Socket;
use steer_core::attached::{Ssid, Station, Wlan};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout_at};

use super::Error;
use super::connection::{Connection, Refusal, registered};
use super::nl80211::{self, Associated, Change, Family, Heard, Interface, header};
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

/// Interfaces that are connected to WLANs, by their names.
type Connected = BTreeMap<String, Station>;

/// Tells which WLANs interfaces are connected to. A task of its own follows them: to ask takes some messages, and
/// whoever waits here waits for other things too.
pub struct Stations {
    told: mpsc::Receiver<(u64, Result<Connected, Error>)>,
    forgotten: mpsc::UnboundedSender<u64>,
    /// How often something was forgotten: what was found before the last time is out of date.
    generation: u64,
}

impl Stations {
    /// Subscribes, on the calling thread, in its network namespace, and begins to follow; on a [`LocalSet`].
    ///
    /// [`LocalSet`]: tokio::task::LocalSet
    ///
    /// # Errors
    /// No socket, or no subscription.
    pub async fn open() -> Result<Self, Error> {
        let follower = Follower::open().await?;
        let (tell, told) = mpsc::channel(1);
        let (forgotten, forget) = mpsc::unbounded_channel();
        let _ends_with_this = spawn_local(follow(follower, tell, forget));
        Ok(Self {
            told,
            forgotten,
            generation: 0,
        })
    }

    /// Waits until something is different from what it gave last, and gives all of it; the first comes at once. An
    /// interface that is being connected is left out until it is known to what.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// The kernel could not be asked, and nothing is known. It is asked again, and no error told until it answers.
    pub async fn next(&mut self) -> Result<Connected, Error> {
        loop {
            match self.told.recv().await {
                Some((generation, told)) if generation == self.generation => return told,
                // From before something was forgotten.
                Some(_) => {}
                None => pending().await,
            }
        }
    }

    /// Whoever was told has forgotten an interface, as its link went down: all is read and given anew.
    pub fn forgotten(&mut self) {
        self.generation += 1;
        // It ends when this does.
        let _sent = self.forgotten.send(self.generation);
    }
}

async fn follow(
    mut follower: Follower,
    tell: mpsc::Sender<(u64, Result<Connected, Error>)>,
    mut forget: mpsc::UnboundedReceiver<u64>,
) {
    let mut generation = 0;
    loop {
        let told = tokio::select! {
            biased;
            forgotten = forget.recv() => match forgotten {
                Some(forgotten) => {
                    generation = forgotten;
                    follower.owe();
                    continue;
                }
                None => return,
            },
            told = follower.next() => told,
        };
        if tell.send((generation, told)).await.is_err() {
            return;
        }
    }
}

/// Follows which WLANs interfaces are connected to.
struct Follower {
    notifications: AsyncFd<Socket>,
    buffer: Vec<u8>,
    requests: Connection,
    /// nl80211's number, if the kernel has it: a module may come later.
    family: Option<u16>,
    /// What is so, as far as it is known, by the interfaces' names, with their indices.
    known: BTreeMap<String, (u32, Station)>,
    /// Something was given that is out of date.
    outdated: bool,
    /// All is to be given, also if it is the same.
    owed: bool,
    /// Nothing was read since something changed.
    stale: bool,
    /// When it was read last.
    looked: Option<Instant>,
    /// The kernel could not be asked then.
    failing: bool,
    /// An interface was connected then to a network whose name no scan has found yet.
    nameless: bool,
}

impl Follower {
    #[expect(
        clippy::unused_async,
        reason = "needs the runtime that its caller awaits it on"
    )]
    async fn open() -> Result<Self, Error> {
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
            known: BTreeMap::new(),
            outdated: false,
            owed: true,
            stale: true,
            looked: None,
            failing: false,
            nameless: false,
        })
    }

    /// As [`Stations::next`].
    async fn next(&mut self) -> Result<Connected, Error> {
        loop {
            if std::mem::take(&mut self.outdated) {
                return Ok(self.all());
            }
            let due = self.due();
            if due.is_some_and(|due| due <= Instant::now()) {
                let before = self.known.clone();
                let failing = self.failing;
                let read = self.read().await;
                let owed = std::mem::take(&mut self.owed);
                match read {
                    Err(error) if owed || !failing => return Err(error),
                    Ok(()) if owed || self.known != before => return Ok(self.all()),
                    _ => continue,
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

    /// Reads what is so.
    async fn read(&mut self) -> Result<(), Error> {
        let read = match self.drain() {
            Ok(()) => self.look().await,
            Err(error) => Err(error),
        };
        self.looked = Some(Instant::now());
        self.failing = read.is_err();
        if self.failing {
            self.known.clear();
        }
        self.known = read?;
        self.stale = false;
        self.outdated = false;
        Ok(())
    }

    /// All is to be read and given anew.
    fn owe(&mut self) {
        self.owed = true;
        self.stale = true;
    }

    fn all(&self) -> Connected {
        let known = self.known.iter();
        known
            .map(|(name, (_, station))| (name.clone(), station.clone()))
            .collect()
    }

    /// Takes a notification in. What an interface is connected to is not known from the moment on in which it may be
    /// something else.
    fn note(&mut self, message: &Message<'_>) {
        match nl80211::change(message) {
            Some(Change::Families) => self.family = None,
            Some(Change::Network(index)) => {
                let before = self.known.len();
                self.known.retain(|_, (known, _)| *known != index);
                self.outdated |= self.known.len() != before;
            }
            Some(Change::Interfaces) => {}
            None => return,
        }
        self.stale = true;
    }

    /// What was given may be out of date, all of it.
    fn forget_all(&mut self) {
        self.stale = true;
        self.outdated |= !self.known.is_empty();
        self.known.clear();
    }

    /// When to read next, if nothing is told.
    fn due(&self) -> Option<Instant> {
        let Some(looked) = self.looked else {
            return Some(Instant::now());
        };
        let pause = match self.stale && !self.failing {
            true => Some(PAUSE),
            false => (self.failing || self.nameless || !self.known.is_empty()).then_some(LOOK),
        };
        pause.map(|pause| looked + pause)
    }

    /// Reads what waits in the socket, for whether anything may be different.
    fn drain(&mut self) -> Result<(), Error> {
        for _ in 0..BATCH {
            self.buffer.clear();
            match self.notifications.get_ref().recv(&mut self.buffer, 0) {
                Ok(_) => {
                    let buffer = std::mem::take(&mut self.buffer);
                    messages(&buffer).for_each(|message| self.note(&message));
                    self.buffer = buffer;
                }
                Err(error) => match (error.kind(), error.raw_os_error()) {
                    (io::ErrorKind::WouldBlock, _) => return Ok(()),
                    (io::ErrorKind::Interrupted, _) => {}
                    (_, Some(libc::ENOBUFS)) => self.forget_all(),
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
        self.nameless = false;
        let mut stations = BTreeMap::new();
        for Interface { index, name, ssid } in interfaces {
            // To which network it is connected stays so while nothing is told.
            let known = self.known.get(&name).filter(|_| !self.stale);
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

    /// The network that an interface is connected to: what a scan found of it. `ssid` is the name that the kernel was
    /// asked to connect to, if it was: wpa_supplicant does so with drivers that do all by themselves alone.
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
        // Without one it is not connected yet, whatever name it asks for.
        let Some(Associated {
            ssid: told,
            protected,
        }) = found.await?
        else {
            return Ok(None);
        };
        let ssid = told.or(ssid);
        self.nameless |= ssid.is_none();
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
    use tokio::task::LocalSet;

    use super::*;

    #[tokio::test]
    async fn the_kernel_answers_whether_it_has_wlan_or_not() {
        let mut follower = Follower::open().await.expect("generic netlink is there");
        assert!(follower.look().await.is_ok());
    }

    #[tokio::test]
    async fn what_an_interface_was_connected_to_is_not_known_before_it_is_read_again() {
        let mut follower = Follower::open().await.expect("generic netlink is there");
        let station = |ssid: &str| Station {
            wlan: Wlan {
                ssid: ssid.parse().expect("a name"),
                protected: false,
            },
            signal: None,
            bitrate: None,
        };
        for command in [46, 47, 48] {
            follower.known = [("wlan0", 3, "cafe"), ("wlan1", 4, "office")]
                .map(|(name, index, ssid)| (name.to_owned(), (index, station(ssid))))
                .into();
            let mut told = Request::new(28, 0, &header(command));
            told.put_u32(nl80211::IFINDEX, 3);
            let bytes = told.finish(0);
            messages(&bytes).for_each(|message| follower.note(&message));
            let given = follower.next().await.expect("what is left");
            assert!(given.keys().eq(["wlan1"]), "{command}: {given:?}");
            assert!(
                follower.stale && follower.looked.is_none(),
                "nothing was read"
            );
        }
    }

    #[test]
    fn what_was_found_before_something_was_forgotten_is_not_given() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let mut stations = Stations::open().await.expect("generic netlink is there");
            // The first waits there already.
            while stations.told.is_empty() {
                tokio::task::yield_now().await;
            }
            stations.forgotten();
            assert!(stations.next().await.is_ok(), "it is read and given anew");
            let again = timeout_at(Instant::now() + PAUSE * 4, stations.next());
            assert!(again.await.is_err(), "and once");
        });
    }
}
