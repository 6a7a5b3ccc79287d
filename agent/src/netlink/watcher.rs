//! Follows what the kernel tells of links, addresses, routes and rules, and what routers advertise.

use std::io;

use netlink_sys::Socket;
use nix::sys::socket::{setsockopt, sockopt};
use steer_core::ids::IfIndex;
use steer_core::network::{Address, ForeignRule, Link, Network, NetworkChange};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::connection::{Connection, Refusal, registered};
use super::mirror::{Batch, Mirror, Stale};
use super::route::{RouteKey, RouteObject};
use super::router::{self, RouterOption};
use super::wire::{AF_INET, AF_INET6, AF_UNSPEC, Message, Request, messages};
use super::{Error, OwnRange, address, route, rule};

/// Bytes that may wait in the socket: some ten thousand notifications. Accounted, not allocated.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Notifications are far shorter; a longer one counts as lost.
const BUFFER: usize = 64 * 1024;
/// Notifications in one batch at most, so that a flood does not keep the caller waiting.
const BATCH: usize = 16_384;

const GROUPS: [u32; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_NEXTHOP,
    libc::RTNLGRP_ND_USEROPT,
];

/// Something that changed in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// The network that is not the agent's own work. Applied in order, the changes give at the end
    /// of every batch what the kernel held at some moment since the batch began.
    Network(NetworkChange),
    /// A rule of the agent's own was deleted, or may have been (the agent's own deletions count).
    OwnRule,
    /// A route of the agent's own was deleted or replaced, or may have been: the kernel drops routes
    /// with their link or address without a word (the agent's own deletions count).
    OwnRoute,
    /// A router advertised this by an interface. No dump has it: it comes as often as the router says
    /// it, and from whoever is on the link.
    RouterOption {
        /// The interface.
        interface: IfIndex,
        /// What it advertised.
        option: RouterOption,
    },
}

/// Follows what the kernel tells of links, addresses, routes and rules, and turns it into exact
/// changes. What the kernel does not tell, and what is lost when the socket overflows, it reads
/// again.
pub struct Watcher {
    notifications: AsyncFd<Socket>,
    buffer: Vec<u8>,
    requests: Connection,
    mirror: Mirror,
    batch: Batch,
    dump: Option<Network>,
    /// The socket was not read until it was empty.
    more: bool,
}

impl Watcher {
    /// Subscribes, on the calling thread, in its network namespace. Rules and tables in `range` that
    /// bear the agent's protocol number are the agent's own and do not appear in the network.
    ///
    /// # Errors
    /// No socket, or no subscription.
    pub async fn open(range: OwnRange) -> Result<Self, Error> {
        Self::open_with_receive_buffer(range, RECEIVE_BUFFER).await
    }

    /// As [`Watcher::open`], with room for `bytes` of notifications that wait to be read.
    ///
    /// # Errors
    /// As [`Watcher::open`].
    #[expect(
        clippy::unused_async,
        reason = "needs the runtime that its caller awaits it on"
    )]
    pub async fn open_with_receive_buffer(range: OwnRange, bytes: usize) -> Result<Self, Error> {
        let mut batch = Batch::default();
        batch.stale.all = true;
        Ok(Self {
            notifications: subscribe(bytes)?,
            buffer: Vec::with_capacity(BUFFER),
            requests: Connection::open(libc::NETLINK_ROUTE).map_err(Error::Open)?,
            mirror: Mirror::new(range),
            batch,
            dump: None,
            more: true,
        })
    }

    /// Waits for changes and gives all that is there, at least one. The first is a
    /// [`NetworkChange::Dump`]; so is what follows an overrun of the socket.
    ///
    /// Cancel-safe: what was read before it was dropped is given by the next call.
    ///
    /// # Errors
    /// The socket or a dump failed. The next call tries again.
    pub async fn next(&mut self) -> Result<Vec<Notification>, Error> {
        loop {
            self.drain()?;
            self.refresh().await?;
            let found = self.take();
            if !found.is_empty() {
                return Ok(found);
            }
            if !self.more {
                // An overrun is an error on the socket. Readiness is cleared before the socket is
                // read, so that what comes meanwhile sets it again.
                self.notifications
                    .ready(Interest::READABLE | Interest::ERROR)
                    .await
                    .map_err(Error::Receive)?
                    .clear_ready();
            }
        }
    }

    /// Makes the next result a complete new dump.
    pub fn request_dump(&mut self) {
        self.batch.stale.all = true;
        self.more = true;
    }

    /// Reads what waits in the socket.
    fn drain(&mut self) -> Result<(), Error> {
        for _ in 0..BATCH {
            self.buffer.clear();
            match self
                .notifications
                .get_ref()
                .recv(&mut self.buffer, libc::MSG_TRUNC)
            {
                Ok(len) if len > self.buffer.len() => self.overrun(),
                Ok(_) => {
                    for message in messages(&self.buffer) {
                        if self.batch.stale.all && message.kind != router::NEW {
                            // The dump to come says what this would have said, but of the agent's own
                            // objects.
                            self.batch.own_rule = true;
                            self.batch.own_route = true;
                        } else {
                            self.mirror.apply(&message, &mut self.batch);
                        }
                    }
                }
                Err(error) => match (error.kind(), error.raw_os_error()) {
                    (io::ErrorKind::WouldBlock, _) => {
                        self.more = false;
                        return Ok(());
                    }
                    (io::ErrorKind::Interrupted, _) => {}
                    (_, Some(libc::ENOBUFS)) => self.overrun(),
                    _ => return Err(Error::Receive(error)),
                },
            }
        }
        self.more = true;
        Ok(())
    }

    /// The kernel dropped notifications (`ENOBUFS`). It says so once until the socket was empty, so
    /// the dump is made after the socket was read.
    fn overrun(&mut self) {
        tracing::debug!("netlink notifications were lost; reading everything again");
        self.batch.stale.all = true;
        self.batch.own_rule = true;
        self.batch.own_route = true;
    }

    /// Reads again what notifications left out.
    async fn refresh(&mut self) -> Result<(), Error> {
        if !self.batch.stale.any() {
            return Ok(());
        }
        if self.batch.stale.all {
            let links = self.links().await?;
            let addresses = self.addresses().await?;
            let rules = self.rules().await?;
            let routes = self.routes().await?;
            self.mirror.replace_all(links, addresses, routes, rules);
            self.dump = Some(self.mirror.network());
            self.batch.changes.clear();
            self.batch.stale = Stale::default();
            return Ok(());
        }
        if self.batch.stale.addresses || self.batch.stale.routes {
            self.barrier().await?;
        }
        if self.batch.stale.addresses {
            let addresses = self.addresses().await?;
            self.mirror.replace_addresses(addresses, &mut self.batch);
            self.batch.stale.addresses = false;
        }
        if self.batch.stale.routes {
            let routes = self.routes().await?;
            self.mirror.replace_routes(routes, &mut self.batch);
            self.batch.stale.routes = false;
        }
        if self.batch.stale.rules {
            let rules = self.rules().await?;
            self.mirror.replace_rules(rules, &mut self.batch);
            self.batch.stale.rules = false;
        }
        Ok(())
    }

    /// Waits until the kernel has finished the change whose notification came last.
    ///
    /// `RTM_NEWLINK` and `RTM_DELADDR` are sent before the routes are flushed (`__dev_notify_flags`,
    /// `__inet_del_ifa`), and newer kernels dump routes without the lock under which that happens.
    /// Asking for one link takes that lock.
    async fn barrier(&mut self) -> Result<(), Error> {
        let mut fixed = [0; 16];
        fixed[4..8].copy_from_slice(&1_u32.to_ne_bytes());
        let request = Request::new(libc::RTM_GETLINK, libc::NLM_F_ACK, &fixed);
        match self.requests.change(request).await {
            // The kernel's refusal comes as late as its answer.
            Err(refusal) if refusal.errno() == 0 => Err(read("links")(refusal)),
            _ => Ok(()),
        }
    }

    async fn links(&mut self) -> Result<Vec<Link>, Error> {
        let request = Request::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; 16]);
        let mirror = &mut self.mirror;
        self.requests
            .dump(&request, |message| mirror.read_link(message))
            .await
            .map_err(read("links"))
    }

    async fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let request = Request::new(
            libc::RTM_GETADDR,
            libc::NLM_F_DUMP,
            &[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0],
        );
        self.requests
            .dump(&request, address::parse)
            .await
            .map_err(read("addresses"))
    }

    async fn rules(&mut self) -> Result<Vec<ForeignRule>, Error> {
        let mirror = &self.mirror;
        both_families(&mut self.requests, rule::dump_request, |message| {
            mirror.read_rule(message)
        })
        .await
        .map_err(read("rules"))
    }

    async fn routes(&mut self) -> Result<Vec<(RouteKey, RouteObject)>, Error> {
        let mirror = &self.mirror;
        both_families(
            &mut self.requests,
            |family| route::dump_request(family, None),
            |message| mirror.read_route(message),
        )
        .await
        .map_err(read("routes"))
    }

    fn take(&mut self) -> Vec<Notification> {
        let batch = std::mem::take(&mut self.batch);
        let dump = self.dump.take().map(NetworkChange::Dump);
        let told = |(interface, option)| Notification::RouterOption { interface, option };
        let advertised = batch.advertised.into_iter().map(told);
        dump.into_iter()
            .chain(batch.changes)
            .map(Notification::Network)
            .chain(batch.own_rule.then_some(Notification::OwnRule))
            .chain(batch.own_route.then_some(Notification::OwnRoute))
            .chain(advertised)
            .collect()
    }
}

/// A dump for IPv4 and one for IPv6, where the kernel has it.
pub(super) async fn both_families<T>(
    connection: &mut Connection,
    request: impl Fn(u8) -> Request,
    mut parse: impl FnMut(&Message<'_>) -> Option<T>,
) -> Result<Vec<T>, Refusal> {
    let mut found = connection.dump(&request(AF_INET), &mut parse).await?;
    match connection.dump(&request(AF_INET6), &mut parse).await {
        Ok(more) => found.extend(more),
        Err(refusal) if matches!(refusal.errno(), libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => {}
        Err(refusal) => return Err(refusal),
    }
    Ok(found)
}

/// Names what could not be read.
pub(super) fn read(what: &'static str) -> impl Fn(Refusal) -> Error {
    move |source| Error::Read { what, source }
}

fn subscribe(receive_buffer: usize) -> Result<AsyncFd<Socket>, Error> {
    let mut socket = Socket::new(isize::try_from(libc::NETLINK_ROUTE).unwrap_or_default())
        .map_err(Error::Open)?;
    socket.set_non_blocking(true).map_err(Error::Open)?;
    // Past net.core.rmem_max with CAP_NET_ADMIN; without it, as far as that allows.
    if let Err(error) = setsockopt(&socket, sockopt::RcvBufForce, &receive_buffer) {
        tracing::debug!(%error, "net.core.rmem_max bounds the buffer for netlink notifications");
        setsockopt(&socket, sockopt::RcvBuf, &receive_buffer)
            .map_err(|error| Error::Open(error.into()))?;
    }
    socket.bind_auto().map_err(Error::Open)?;
    for group in GROUPS {
        socket
            .add_membership(group)
            .map_err(|source| Error::Subscribe { group, source })?;
    }
    registered(socket, Interest::READABLE | Interest::ERROR).map_err(Error::Open)
}
