//! Networks that bear a name: WLANs, and connections of connection managers.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use steer_core::attached::{Managed, Ssid, Station, Wlan};
use steer_core::criteria::Security;
use steer_core::domains::{DomainState, Domains};
use steer_core::ids::IfIndex;
use steer_core::network::{Link, LinkKind, Network, NetworkChange};
use steer_core::probe::Outcome;
use steer_core::state::Event;
use support::host::{Host, failed};
use support::{config, name, two_uplinks};

const FILE: &str = "[agent]\ncheck = { icmp = \"192.0.2.99\", interval = \"8s\" }\n[domain.wlan0]\nkind = \
                    \"wlan\"\n[domain.lte0]\nkind = \"cellular\"\n[policy.default]\nuse = [\"wlan0\", \"lte0\"]\n";

fn station(ssid: &str, protected: bool) -> Station {
    Station {
        wlan: Wlan {
            ssid: ssid.parse().expect("a name"),
            protected,
        },
        signal: Some(-60),
        bitrate: None,
    }
}

/// wlan0 is connected to a WLAN.
fn connected(ssid: &str, protected: bool) -> NetworkChange {
    let station = station(ssid, protected);
    NetworkChange::Stations(BTreeMap::from([("wlan0".to_owned(), station)]))
}

/// A connection is up on an interface.
fn up(interface: &str, connection: &str) -> NetworkChange {
    let managed = Managed {
        connection: Some(connection.parse().expect("a name")),
        ..Managed::default()
    };
    NetworkChange::Managed(BTreeMap::from([(interface.to_owned(), managed)]))
}

impl Host {
    /// wlan0 leaves the WLAN that it is connected to, and is connected to another.
    fn join(&mut self, ssid: &str, protected: bool) {
        self.carrier(2, false);
        self.apply(Event::Network(NetworkChange::Stations(BTreeMap::new())));
        self.apply(Event::Network(connected(ssid, protected)));
        self.carrier(2, true);
        // Losses are no matter any more.
        self.at(self.now + Duration::from_secs(600));
    }

    fn network(&self, domain: &str) -> Option<String> {
        let condition = self.engine.health().get(&name(domain)).expect("a domain");
        condition.network().map(ToString::to_string)
    }
}

#[test]
fn a_wlan_that_failed_last_time_has_to_prove_itself_before_it_is_chosen() {
    let mut host = Host::new("[policy.default]\nuse = [\"wlan0\", \"lte0\"]\n");
    host.join("cafe", false);
    assert_eq!(host.network("wlan0").as_deref(), Some("open WLAN cafe"));
    host.check("wlan0", Outcome::Passed);
    for _ in 0..3 {
        host.check("wlan0", failed());
    }
    assert_eq!(host.state("wlan0"), DomainState::Limited);
    // At home nothing is held against it, and nothing has to be asked first.
    host.join("home", true);
    assert_eq!(host.chosen(), "wlan0");
    host.check("wlan0", Outcome::Passed);
    host.join("cafe", false);
    assert_eq!(host.chosen(), "lte0", "it failed when it was there last");
    host.check("wlan0", Outcome::Passed);
    assert_eq!(host.chosen(), "wlan0");
}

#[test]
fn an_open_wlan_inherits_nothing_from_a_protected_one_of_the_same_name() {
    let mut host = Host::new(FILE);
    host.join("office", true);
    host.check("wlan0", Outcome::Passed);
    assert_eq!(host.network("wlan0").as_deref(), Some("WLAN office"));
    let before = |host: &Host| *host.engine.health().get(&name("wlan0")).unwrap().before();
    host.join("office", true);
    assert!(before(&host).last_good.is_some());
    host.join("office", false);
    assert_eq!(host.network("wlan0").as_deref(), Some("open WLAN office"));
    assert_eq!(before(&host).last_good, None);
}

#[test]
fn another_wlan_is_another_attachment_also_where_the_link_stays_up() {
    let mut host = Host::new(FILE);
    host.apply(Event::Network(connected("cafe", false)));
    host.check("wlan0", Outcome::Passed);
    assert_eq!(host.state("wlan0"), DomainState::Validated);
    let epoch = host.probe("wlan0").unwrap().epoch;
    // How well it is heard is no other network.
    let mut near = station("cafe", false);
    near.signal = Some(-30);
    let stations = BTreeMap::from([("wlan0".to_owned(), near)]);
    host.apply(Event::Network(NetworkChange::Stations(stations)));
    assert_eq!(host.probe("wlan0").unwrap().epoch, epoch);
    host.apply(Event::Network(connected("office", true)));
    assert_eq!(
        host.state("wlan0"),
        DomainState::Up,
        "what was known is of another"
    );
    assert_ne!(host.probe("wlan0").unwrap().epoch, epoch);
}

#[test]
fn a_name_that_is_not_known_yet_or_any_more_is_no_other_network() {
    let mut host = Host::new(FILE);
    host.check("wlan0", Outcome::Passed);
    let epoch = host.probe("wlan0").unwrap().epoch;
    host.apply(Event::Network(connected("cafe", false)));
    host.apply(Event::Network(NetworkChange::Stations(BTreeMap::new())));
    host.check("wlan0", Outcome::Passed);
    assert_eq!(host.network("wlan0").as_deref(), Some("open WLAN cafe"));
    host.apply(Event::Network(connected("cafe", false)));
    assert_eq!(host.state("wlan0"), DomainState::Validated);
    assert_eq!(host.probe("wlan0").unwrap().epoch, epoch);
}

#[test]
fn a_wlan_without_an_address_in_time_has_failed() {
    let mut host =
        Host::new("[domain.wlan0]\nattach-timeout = \"3s\"\n[policy.default]\nuse = [\"wlan0\"]\n");
    host.join("cafe", false);
    for address in ["192.0.2.10/24", "2001:db8:2::10/64"] {
        let address = support::address(2, address);
        let gone = NetworkChange::AddressGone(IfIndex(2), address.ip);
        host.apply(Event::Network(gone));
    }
    assert_eq!(host.state("wlan0"), DomainState::Configuring);
    host.at(host.now + Duration::from_secs(3));
    let history = &host.engine.state().history;
    let condition = host.engine.health().get(&name("wlan0")).unwrap();
    let record = history.get(condition.network().unwrap()).unwrap();
    assert_eq!(record.failures, 1);
}

#[test]
fn a_modem_and_a_vpn_are_at_their_connections_network_and_a_wire_at_its_gateways() {
    let mut host = Host::new(FILE);
    host.apply(Event::Network(up("lte0", "Telco")));
    host.check("lte0", Outcome::Passed);
    assert_eq!(host.network("lte0").as_deref(), Some("connection Telco"));
    let mut host = Host::new(&FILE.replace("\"cellular\"", "\"wired\""));
    host.apply(Event::Network(up("lte0", "Wired connection 1")));
    host.check("lte0", Outcome::Passed);
    let network = host.network("lte0").unwrap();
    assert!(network.starts_with("02:00:00:00:00:09 "), "{network}");
}

fn seen(text: &str, changes: impl IntoIterator<Item = NetworkChange>) -> (Domains, Network) {
    let mut network = two_uplinks();
    changes.into_iter().for_each(|change| network.apply(change));
    (Domains::new(&config(text), &network), network)
}

#[test]
fn a_domain_is_on_the_interface_that_is_connected_to_its_wlan() {
    let text =
        "[domain.cafe]\nmatch.ssid = \"caf\u{e9}\"\n[domain.office]\nmatch.ssid = \"office\"\n";
    let (domains, mut network) = seen(text, [connected("caf\u{e9}", false)]);
    let names =
        |domains: &Domains| -> Vec<String> { domains.iter().map(|d| d.name.to_string()).collect() };
    assert_eq!(names(&domains), ["cafe", "lte0", "office"]);
    assert_eq!(
        domains.get("wlan0").unwrap().name.as_str(),
        "cafe",
        "by its alias"
    );
    let office = domains.get("office").unwrap();
    assert_eq!(office.state, DomainState::Absent);
    assert_eq!(
        office.reason,
        "no interface is connected to the WLAN office"
    );
    // A dump of rtnetlink says nothing of WLANs.
    network.apply(NetworkChange::Dump(two_uplinks()));
    assert_eq!(Domains::new(&config(text), &network), domains);
    network.apply(NetworkChange::Stations(BTreeMap::new()));
    let domains = Domains::new(&config(text), &network);
    assert_eq!(names(&domains), ["cafe", "lte0", "office", "wlan0"]);
}

#[test]
fn a_wlan_is_forgotten_with_its_link_until_it_is_told_anew() {
    let text = "[domain.cafe]\nmatch.ssid = \"cafe\"\n";
    let state = |network: &Network| {
        let domains = Domains::new(&config(text), network);
        domains.get("cafe").expect("a domain of the files").state
    };
    let wlan0 = |network: &Network| network.links[&IfIndex(2)].clone();
    let (_, network) = seen(text, [connected("cafe", false)]);
    assert_eq!(state(&network), DomainState::Up);
    // Another network may be behind the next carrier.
    let mut other = network.clone();
    for carrier in [false, true] {
        let link = wlan0(&network);
        other.apply(NetworkChange::Link(Link { carrier, ..link }));
    }
    assert_eq!(state(&other), DomainState::Absent);
    // Another interface may bear its name.
    let mut other = network.clone();
    let name = "wlan1".to_owned();
    for link in [
        Link {
            name,
            ..wlan0(&network)
        },
        Link {
            index: IfIndex(3),
            ..wlan0(&network)
        },
    ] {
        other.apply(NetworkChange::Link(link));
    }
    assert_eq!(state(&other), DomainState::Absent);
    let mut other = network.clone();
    other.apply(NetworkChange::LinkGone(IfIndex(2)));
    other.apply(NetworkChange::Link(wlan0(&network)));
    assert_eq!(state(&other), DomainState::Absent);
}

#[test]
fn a_connection_is_forgotten_with_its_interface() {
    let text = "[domain.work]\nmatch.connection = \"Work\"\n";
    let state = |network: &Network| {
        let domains = Domains::new(&config(text), network);
        domains.get("work").expect("a domain of the files").state
    };
    let (_, network) = seen(text, [up("lte0", "Work")]);
    assert_eq!(state(&network), DomainState::Up);
    let lte0 = network.links[&IfIndex(3)].clone();
    let index = IfIndex(9);
    let mut other = two_uplinks();
    other.links.remove(&IfIndex(3));
    other.links.insert(
        index,
        Link {
            index,
            ..lte0.clone()
        },
    );
    let name = "wwan9".to_owned();
    for changes in [
        vec![
            NetworkChange::LinkGone(IfIndex(3)),
            NetworkChange::Link(lte0.clone()),
        ],
        vec![
            NetworkChange::Link(Link {
                name,
                ..lte0.clone()
            }),
            NetworkChange::Link(lte0.clone()),
        ],
        vec![NetworkChange::Link(Link {
            index,
            ..lte0.clone()
        })],
        vec![NetworkChange::Dump(other)],
    ] {
        let mut network = network.clone();
        changes.into_iter().for_each(|change| network.apply(change));
        assert!(network.links.values().any(|link| link.name == "lte0"));
        assert_eq!(state(&network), DomainState::Absent);
    }
    // Carrier that is lost is no matter: it is the same interface.
    let mut network = network;
    for carrier in [false, true] {
        network.apply(NetworkChange::Link(Link {
            carrier,
            ..lte0.clone()
        }));
    }
    assert_eq!(state(&network), DomainState::Up);
}

#[test]
fn a_domain_is_on_the_interface_that_its_connection_is_up_on() {
    let text = "[domain.work]\nmatch.connection = \"Work VPN\"\n";
    let (domains, _) = seen(text, []);
    assert_eq!(
        domains.get("work").unwrap().reason,
        "no interface has the connection Work VPN, as far as NetworkManager and ModemManager tell"
    );
    let (domains, _) = seen(text, [up("lte0", "Work VPN")]);
    assert_eq!(domains.get("work").unwrap().ifname.as_deref(), Some("lte0"));
}

#[test]
fn a_wlan_is_as_secure_as_its_encryption_unless_the_file_says_otherwise() {
    let security = |text: &str, protected| {
        let (domains, _) = seen(text, [connected("cafe", protected)]);
        let wlan = domains.get("wlan0").unwrap();
        (wlan.kind, wlan.security)
    };
    let text = "[domain.wlan0]\nkind = \"wlan\"\n";
    assert_eq!(security(text, false), (LinkKind::Wlan, Security::Open));
    assert_eq!(security(text, true), (LinkKind::Wlan, Security::Protected));
    let text = format!("{text}security = \"open\"\n");
    assert_eq!(security(&text, true), (LinkKind::Wlan, Security::Open));
}

#[test]
fn wrong_names_of_networks_are_told_with_their_place() {
    let wrong = |text: &str| {
        let mistakes = steer_core::config::parse(&[("steer.toml", text)]).unwrap_err();
        mistakes.iter().map(ToString::to_string).collect::<String>()
    };
    let long = "a".repeat(Ssid::MAX_LEN + 1);
    for (text, said) in [
        (format!("ssid = \"{long}\""), "1 to 32 bytes"),
        ("ssid = \"a\\\\b\"".to_owned(), "`\\x5c`"),
        ("connection = \"\"".to_owned(), "1 to 255 bytes"),
    ] {
        let mistakes = wrong(&format!("[domain.x.match]\n{text}\n"));
        assert!(mistakes.contains(said), "{text}: {mistakes}");
    }
}
