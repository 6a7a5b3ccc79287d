//! The laboratory: a host with uplinks, and what can be done to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::builder::LabBuilder;
use crate::capture::Capture;
use crate::cgroup::LabCgroup;
use crate::ip::{ip, ip_batch, ip_json};
use crate::link;
use crate::namespace::Namespace;
use crate::packet::{Direction, Packet};
use crate::relay::Relay;
use crate::server::Server;
use crate::uplink::Uplink;
use crate::wait;

/// Address of a server that stands behind every uplink.
pub const SERVER4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
/// The same for IPv6.
pub const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x10));

/// A host with uplinks to peers that capture, route and serve. Everything ends with it.
#[derive(Debug)]
pub struct Lab {
    pub(crate) capture: Capture,
    pub(crate) servers: Vec<Server>,
    pub(crate) attached: Vec<Attached>,
    pub(crate) host: Namespace,
    pub(crate) cgroup: LabCgroup,
    pub(crate) next_target: AtomicU32,
}

/// An uplink, its interface's name at the moment, and what is behind it.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) name: String,
    /// What it is like at the moment.
    pub(crate) uplink: RwLock<Uplink>,
    pub(crate) interface: String,
    pub(crate) peer: Namespace,
    /// Where the other end of the host's cable is: with the peer, or with a relay before it.
    pub(crate) wire: Namespace,
    pub(crate) relay: Option<Relay>,
    /// Which of the laboratory's servers stand behind it.
    pub(crate) server: usize,
}

impl Attached {
    /// What it is like at the moment.
    pub(crate) fn uplink(&self) -> Uplink {
        let uplink = self.uplink.read().unwrap_or_else(PoisonError::into_inner);
        uplink.clone()
    }

    /// Sets up the far end, with addresses and routes. Idempotent.
    pub(crate) fn configure_far_end(&self) -> Result<()> {
        let uplink = self.uplink();
        if self.relay.is_some() {
            ip(&self.wire, &["link", "set", uplink.far_end(), "up"])?;
        }
        ip_batch(&self.peer, &uplink.peer_configuration())
    }

    /// Has it be like `next` from now on; the interfaces are the caller's to change.
    pub(crate) fn become_like(&self, next: Uplink) {
        *self.uplink.write().unwrap_or_else(PoisonError::into_inner) = next;
    }
}

impl Lab {
    /// Builds the default laboratory: `eth0` (best metric), `wlan0`, `wwan0`, both families.
    ///
    /// # Errors
    /// As [`LabBuilder::build`].
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// A laboratory to one's wishes.
    pub fn builder() -> LabBuilder {
        LabBuilder::default()
    }

    /// The host's namespaces.
    pub fn host(&self) -> &Namespace {
        &self.host
    }

    /// The namespace behind `uplink`.
    ///
    /// # Errors
    /// If there is no such uplink.
    pub fn peer(&self, uplink: &str) -> Result<&Namespace> {
        Ok(&self.attached(uplink)?.peer)
    }

    /// The uplink `name` as it is at the moment.
    ///
    /// # Errors
    /// If there is no such uplink.
    pub fn uplink(&self, name: &str) -> Result<Uplink> {
        Ok(self.attached(name)?.uplink())
    }

    /// Names of all uplinks as built.
    pub fn uplink_names(&self) -> Vec<&str> {
        self.attached.iter().map(|a| a.name.as_str()).collect()
    }

    /// The laboratory's cgroup.
    pub fn cgroup(&self) -> &LabCgroup {
        &self.cgroup
    }

    /// The capture on all uplinks.
    pub fn capture(&self) -> &Capture {
        &self.capture
    }

    /// A server's IPv4 address that nothing in this laboratory has used before: whatever is captured
    /// about it belongs to the flow under test, handshakes and address resolution included.
    pub fn target4(&self) -> IpAddr {
        let number = self.next_target.fetch_add(1, Ordering::Relaxed) % 60_000 + 1;
        IpAddr::V4(Ipv4Addr::from(
            u32::from(Ipv4Addr::new(198, 18, 0, 0)) + number,
        ))
    }

    /// The same for IPv6.
    pub fn target6(&self) -> IpAddr {
        let number = self.next_target.fetch_add(1, Ordering::Relaxed) + 0x1_0000;
        let network = u128::from(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0));
        IpAddr::V6(Ipv6Addr::from(network + u128::from(number)))
    }

    /// A command that will run at the host in `cgroup`.
    ///
    /// # Errors
    /// If the cgroup cannot be entered.
    pub fn command(&self, program: &str, cgroup: &LabCgroup) -> Result<Command> {
        let mut command = self.host.command(program);
        cgroup.place(&mut command)?;
        Ok(command)
    }

    /// Records everything sent so far (see [`Capture::drain`]).
    ///
    /// # Errors
    /// As [`Capture::drain`].
    pub fn drain(&self) -> Result<()> {
        let interfaces: Vec<_> = self
            .attached
            .iter()
            .map(|a| (a.interface.clone(), a.name.clone()))
            .collect();
        self.capture.drain(&interfaces)
    }

    /// Where the capture is, with everything sent so far before it: what is recorded from here on was
    /// sent from here on.
    ///
    /// # Errors
    /// As [`Capture::drain`].
    pub fn position(&self) -> Result<usize> {
        self.drain()?;
        Ok(self.capture.position())
    }

    /// Asserts that something about `address` crossed `uplink`, nothing crossed any other, and every
    /// IP packet that the host sent to it bore one of `uplink`'s addresses as its source.
    ///
    /// # Errors
    /// If not, with the packets.
    pub fn assert_only_by(&self, uplink: &str, address: IpAddr) -> Result<Vec<Packet>> {
        let sources = self.uplink(uplink)?.addresses();
        self.assert_only_by_from(uplink, address, &sources)
    }

    /// [`Lab::assert_only_by`] with the sources that are right.
    ///
    /// # Errors
    /// If not, with the packets.
    pub fn assert_only_by_from(
        &self,
        uplink: &str,
        address: IpAddr,
        sources: &[IpAddr],
    ) -> Result<Vec<Packet>> {
        self.drain()?;
        let packets = self.capture.about(address);
        let list = || {
            packets
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n")
        };
        ensure!(
            packets
                .iter()
                .any(|p| p.direction == Direction::FromHost && p.is_ip()),
            "nothing was sent to {address}, by no uplink; captured:\n{}",
            list()
        );
        for packet in &packets {
            ensure!(
                packet.uplink == uplink,
                "a packet about {address} crossed {}, not {uplink}:\n{}",
                packet.uplink,
                list()
            );
            if packet.direction == Direction::FromHost && packet.is_ip() {
                ensure!(
                    packet
                        .source
                        .is_some_and(|source| sources.contains(&source)),
                    "a packet to {address} has a source that is not {uplink}'s {sources:?}:\n{}",
                    list()
                );
            }
        }
        Ok(packets)
    }

    /// Asserts that nothing about `address` crossed any uplink.
    ///
    /// # Errors
    /// If something did, with the packets.
    pub fn assert_silent(&self, address: IpAddr) -> Result<()> {
        self.drain()?;
        let packets = self.capture.about(address);
        let list: Vec<_> = packets.iter().map(ToString::to_string).collect();
        ensure!(
            packets.is_empty(),
            "nothing should be sent to {address}, but:\n{}",
            list.join("\n")
        );
        Ok(())
    }

    /// Asserts that no packet that carries `token` crossed any uplink.
    ///
    /// # Errors
    /// If one did, with the packets.
    pub fn assert_token_unseen(&self, token: &str) -> Result<()> {
        self.drain()?;
        let packets = self.capture.packets(|p| p.carries(token));
        let list: Vec<_> = packets.iter().map(ToString::to_string).collect();
        ensure!(
            packets.is_empty(),
            "{token} should stay unseen, but:\n{}",
            list.join("\n")
        );
        Ok(())
    }

    /// Runs `ip ARGS` at the host.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        ip(&self.host, args)
    }

    /// `ip -json ARGS` at the host.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn ip_json(&self, args: &[&str]) -> Result<Value> {
        ip_json(&self.host, args)
    }

    /// Takes the carrier of `uplink` away: its far end goes down.
    ///
    /// # Errors
    /// If `ip` fails, or the carrier stays.
    pub fn carrier_down(&self, uplink: &str) -> Result<()> {
        let attached = self.attached(uplink)?;
        let wanted = attached.uplink();
        ip(&attached.wire, &["link", "set", wanted.far_end(), "down"])?;
        self.wait_running(&attached.interface, false)
    }

    /// Gives the carrier back, with the peer's addresses and routes.
    ///
    /// # Errors
    /// If `ip` fails, or the carrier does not come.
    pub fn carrier_up(&self, uplink: &str) -> Result<()> {
        let attached = self.attached(uplink)?;
        attached.configure_far_end()?;
        self.wait_running(&attached.interface, true)
    }

    /// Sets the host's interface down.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn link_down(&self, uplink: &str) -> Result<()> {
        let attached = self.attached(uplink)?;
        self.ip(&["link", "set", &attached.interface, "down"])
            .map(drop)
    }

    /// Sets the host's interface up again and configures it as at the beginning.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn link_up(&self, uplink: &str) -> Result<()> {
        let attached = self.attached(uplink)?;
        ip_batch(
            &self.host,
            &attached.uplink().host_configuration(&attached.interface),
        )?;
        self.wait_running(&attached.interface, true)
    }

    /// Deletes the host's interface (and with it its far end).
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn delete_link(&self, uplink: &str) -> Result<()> {
        let attached = self.attached(uplink)?;
        self.ip(&["link", "delete", &attached.interface]).map(drop)
    }

    /// Makes a deleted interface again, with another index, and configures it as at the beginning.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn create_link(&self, uplink: &str) -> Result<()> {
        let attached = self.attached(uplink)?;
        ensure!(
            attached.relay.is_none(),
            "the relay of {uplink} holds the cable that was deleted"
        );
        let wanted = attached.uplink();
        let mut lines = wanted.creation(&attached.wire.path());
        lines.extend(wanted.host_configuration(&attached.name));
        ip_batch(&self.host, &lines)?;
        attached.configure_far_end()?;
        self.wait_running(&attached.name, true)
    }

    /// Renames the host's interface; the uplink keeps its name in captures.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn rename_link(&mut self, uplink: &str, to: &str) -> Result<()> {
        let attached = self
            .attached
            .iter_mut()
            .find(|a| a.name == uplink)
            .with_context(|| format!("no uplink {uplink}"))?;
        let from = std::mem::replace(&mut attached.interface, to.to_owned());
        // Before Linux 6.2 an interface that is up cannot be renamed.
        let mut lines = vec![
            format!("link set {from} down"),
            format!("link set {from} name {to}"),
        ];
        lines.extend(attached.uplink().host_configuration(to));
        ip_batch(&self.host, &lines)?;
        self.wait_running(to, true)
    }

    /// Adds `address/length` to the host's interface.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn add_address(&self, uplink: &str, address: &str) -> Result<()> {
        let interface = &self.attached(uplink)?.interface;
        let mut args = vec!["address", "add", address, "dev", interface];
        if address.contains(':') {
            args.push("nodad");
        }
        self.ip(&args).map(drop)
    }

    /// Removes `address/length` from the host's interface.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn remove_address(&self, uplink: &str, address: &str) -> Result<()> {
        let interface = &self.attached(uplink)?.interface;
        self.ip(&["address", "delete", address, "dev", interface])
            .map(drop)
    }

    /// Deletes every routing rule of both families but the kernel's three (`local` is made again).
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn flush_rules(&self) -> Result<()> {
        for family in ["-4", "-6"] {
            // `flush` keeps the rule of priority 0, and deletes the two others of the kernel.
            self.ip(&[family, "rule", "flush"])?;
            self.ip(&[family, "rule", "add", "table", "main", "priority", "32766"])?;
            if family == "-4" {
                self.ip(&[
                    family, "rule", "add", "table", "default", "priority", "32767",
                ])?;
            }
        }
        Ok(())
    }

    /// The link-local IPv6 address of the host's interface.
    ///
    /// # Errors
    /// If it has none.
    pub fn link_local(&self, uplink: &str) -> Result<IpAddr> {
        link_local(&self.host, &self.attached(uplink)?.interface)
    }

    /// The link-local IPv6 address of the peer's end.
    ///
    /// # Errors
    /// If it has none.
    pub fn peer_link_local(&self, uplink: &str) -> Result<IpAddr> {
        let attached = self.attached(uplink)?;
        link_local(&attached.peer, attached.uplink().far_end())
    }

    pub(crate) fn attached(&self, uplink: &str) -> Result<&Attached> {
        self.attached
            .iter()
            .find(|a| a.name == uplink)
            .with_context(|| format!("no uplink {uplink}"))
    }

    fn wait_running(&self, interface: &str, wanted: bool) -> Result<()> {
        let what = format!(
            "{interface} to {} carrier",
            if wanted { "have" } else { "lose" }
        );
        self.host.run(|| {
            wait::until(&what, || {
                Ok((link::is_running(interface)? == wanted).then_some(()))
            })
        })
    }
}

/// Waits for the address that the kernel gives an interface when it has carrier.
fn link_local(namespace: &Namespace, interface: &str) -> Result<IpAddr> {
    wait::until(&format!("a link-local address of {interface}"), || {
        let shown = ip_json(namespace, &["address", "show", "dev", interface])?;
        let found = shown
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|link| link.get("addr_info")?.as_array())
            .flatten()
            .filter(|address| address.get("scope").and_then(Value::as_str) == Some("link"))
            .find_map(|address| address.get("local")?.as_str()?.parse::<Ipv6Addr>().ok());
        Ok(found.map(IpAddr::V6))
    })
}
