//! Packets that are lost without a word, or wait too long, behind an uplink whose carrier stays.
//!
//! All of it is done behind the place where the capture is: it sees what the host really sent, and of
//! what was sent to the host only what came through.

use anyhow::Result;

use crate::lab::{Attached, Lab};
use crate::packet_filter::{nft, tc};
use crate::uplink::Uplink;

/// What is lost behind an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Everything, address resolution included.
    Both,
    /// Everything that is sent to the host: its own packets arrive, and no answer comes back.
    ToHost,
    /// Everything that the host sends.
    FromHost,
    /// What is not the gateway's own: it still answers for itself, and nothing behind it does.
    Upstream,
}

impl Lab {
    /// Loses packets behind `uplink` from now on; another `way` before is over.
    ///
    /// # Errors
    /// If `nft` refuses.
    pub fn blackhole(&self, uplink: &str, way: Way) -> Result<()> {
        let attached = self.attached(uplink)?;
        let (from_host, to_host) = match way {
            Way::Both => ("drop\n".to_owned(), "drop\n".to_owned()),
            Way::ToHost => (String::new(), "drop\n".to_owned()),
            Way::FromHost => ("drop\n".to_owned(), String::new()),
            Way::Upstream => {
                let uplink = attached.uplink();
                (
                    but_gateways(&uplink, "daddr"),
                    but_gateways(&uplink, "saddr"),
                )
            }
        };
        let device = attached.uplink().far_end().to_owned();
        let rules = format!(
            "table netdev blackhole-{device}\n\
             delete table netdev blackhole-{device}\n\
             table netdev blackhole-{device} {{\n\
             chain from-host {{\n\
             type filter hook ingress device \"{device}\" priority 0\n{from_host}}}\n\
             chain to-host {{\n\
             type filter hook egress device \"{device}\" priority 0\n{to_host}}}\n\
             }}\n"
        );
        nft(&attached.peer, &rules).map(drop)
    }

    /// Loses nothing behind `uplink` any more.
    ///
    /// # Errors
    /// If `nft` refuses.
    pub fn heal(&self, uplink: &str) -> Result<()> {
        let attached = self.attached(uplink)?;
        let table = format!("table netdev blackhole-{}", attached.uplink().far_end());
        nft(&attached.peer, &format!("{table}\ndelete {table}\n")).map(drop)
    }

    /// Sends no more than `rate` bit/s to the host by `uplink`: a short queue, and what does not fit is lost.
    ///
    /// # Errors
    /// If `tc` refuses.
    pub fn slow(&self, uplink: &str, rate: u64) -> Result<()> {
        // A bucket holds what a timer that fires a hundred times a second lets through, and a packet at least.
        let burst = (rate / 8 / 100).max(2000);
        let queue = burst.max(8000);
        let Attached { peer, .. } = self.attached(uplink)?;
        let device = self.uplink(uplink)?;
        let device = device.far_end();
        tc(
            peer,
            &format!(
                "qdisc replace dev {device} root tbf rate {rate}bit burst {burst} limit {queue}"
            ),
        )
        .map(drop)
    }

    /// Sends as much to the host by `uplink` as there is.
    ///
    /// # Errors
    /// If `tc` refuses.
    pub fn full_speed(&self, uplink: &str) -> Result<()> {
        let attached = self.attached(uplink)?;
        let uplink = attached.uplink();
        tc(
            &attached.peer,
            &format!("qdisc delete dev {} root", uplink.far_end()),
        )
        .map(drop)
    }
}

/// Lets pass what has a gateway of `uplink` as its `side` (`saddr` or `daddr`), and what hosts of a network
/// say to find each other; nothing else.
fn but_gateways(uplink: &Uplink, side: &str) -> String {
    let mut rules = format!("ether type arp accept\nip6 {side} {{ fe80::/10, ff00::/8 }} accept\n");
    for net in uplink.nets() {
        let family = if net.gateway.is_ipv6() { "ip6" } else { "ip" };
        rules.push_str(&format!("{family} {side} {} accept\n", net.gateway));
    }
    rules.push_str("drop\n");
    rules
}
