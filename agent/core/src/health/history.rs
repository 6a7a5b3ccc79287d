//! What is remembered of networks: when each was well first and last, and how often it failed. It belongs
//! to the network and not to the interface, and outlives the agent and the boot.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::domains::Domain;
use crate::network::LinkKind;

/// What a domain is attached to: the name of its WLAN; of a modem or a VPN, its connection; else hardware address and
/// on-link prefix of its gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetworkId(String);

/// What is known of a network. Times are seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Record {
    /// When it was well for the first time.
    pub first_good: Option<u64>,
    /// When it was well last.
    pub last_good: Option<u64>,
    /// How often it failed since it was well last.
    pub failures: u32,
    /// When it failed last.
    pub last_failure: Option<u64>,
}

/// What is known of all networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History {
    networks: BTreeMap<NetworkId, Record>,
}

/// Most networks that are remembered: those that were seen last.
pub const MAX_NETWORKS: usize = 1_000;

/// A network is forgotten when it was not seen for this long, in seconds: 180 days.
pub const MAX_AGE: u64 = 180 * 24 * 60 * 60;

impl NetworkId {
    /// The network of a domain that bears a name. A connection manager's connection is one for modems and VPNs alone:
    /// that of a wire may be up wherever the wire leads.
    pub(super) fn named(domain: &Domain) -> Option<Self> {
        let connection = matches!(domain.kind, LinkKind::Cellular | LinkKind::Vpn)
            .then_some(domain.connection.as_ref())
            .flatten();
        match (&domain.wlan, connection) {
            // An open network of the same name is another's.
            (Some(wlan), _) if wlan.protected => Some(Self(format!("WLAN {}", wlan.ssid))),
            (Some(wlan), _) => Some(Self(format!("open WLAN {}", wlan.ssid))),
            (None, Some(connection)) => Some(Self(format!("connection {connection}"))),
            (None, None) => None,
        }
    }

    /// The network of a domain whose gateway has this hardware address, and that bears no name.
    pub(super) fn at_gateway(domain: &Domain, gateway: [u8; 6]) -> Self {
        let pairs = gateway.map(|byte| format!("{byte:02x}"));
        let prefix = domain.gateways.first().and_then(|gateway| {
            let mut on_link = domain.on_link();
            on_link.find_map(|(net, _)| net.contains(gateway).then_some(net))
        });
        let at = match (prefix, domain.gateways.first()) {
            (Some(net), _) => format!(" {net}"),
            (None, Some(IpAddr::V6(_))) => " ipv6".to_owned(),
            (None, _) => String::new(),
        };
        Self(format!("{}{at}", pairs.join(":")))
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Record {
    fn seen(&self) -> u64 {
        self.last_good.max(self.last_failure).unwrap_or(0)
    }

    /// Whether the last that is known of it is that it failed.
    pub fn failed(&self) -> bool {
        self.failures > 0
    }
}

impl History {
    /// What is known of a network.
    pub fn get(&self, network: &NetworkId) -> Option<&Record> {
        self.networks.get(network)
    }

    /// Whether more is new since `before` than that networks are still well.
    pub fn tells_more_than(&self, before: &Self) -> bool {
        let but_for_last = |history: &Self| {
            let mut history = history.clone();
            for record in history.networks.values_mut() {
                record.last_good = None;
            }
            history
        };
        but_for_last(self) != but_for_last(before)
    }

    /// It was well at `wall`.
    pub(super) fn good(&mut self, network: &NetworkId, wall: u64) {
        let record = self.networks.entry(network.clone()).or_default();
        record.first_good.get_or_insert(wall);
        record.last_good = Some(wall);
        record.failures = 0;
        self.limit(wall);
    }

    /// It failed at `wall`.
    pub(super) fn failed(&mut self, network: &NetworkId, wall: u64) {
        let record = self.networks.entry(network.clone()).or_default();
        record.failures = record.failures.saturating_add(1);
        record.last_failure = Some(wall);
        self.limit(wall);
    }

    /// Forgets what is too old, and what was not seen for longest where there is too much.
    pub fn limit(&mut self, wall: u64) {
        self.networks
            .retain(|_, record| wall.saturating_sub(record.seen()) <= MAX_AGE);
        while self.networks.len() > MAX_NETWORKS {
            let oldest = self.networks.iter().min_by_key(|(_, record)| record.seen());
            let Some((oldest, _)) = oldest else { break };
            let oldest = oldest.clone();
            self.networks.remove(&oldest);
        }
    }
}
