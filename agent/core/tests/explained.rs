//! What is explained in each situation, word for word: `explained/*.txt`. `STEER_WRITE_DOCS=1` writes them.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use steer_core::network::NetworkChange;
use steer_core::policy::Policy;
use steer_core::probe::Outcome;
use steer_core::select::{Decision, Verdict};
use steer_core::state::Event;
use support::host::{Host, failed};
use support::{address, name, route};

/// Set to write what is explained instead of comparing it.
const WRITE: &str = "STEER_WRITE_DOCS";

const CHECK: &str = "[agent]\ncheck = { icmp = \"192.0.2.99\" }\n";
const LISTED: &str = "[policy.default]\nuse = [\"wlan0\", \"lte0\"]\n";

/// Both domains have passed their check.
fn well(more: &str) -> Host {
    let mut host = Host::new(&format!("{CHECK}{LISTED}{more}"));
    host.check("wlan0", Outcome::Passed);
    host.check("lte0", Outcome::Passed);
    host
}

fn passes(host: &mut Host, domain: &str, millis: u64) {
    let probe = host.probe(domain).unwrap();
    host.at(probe.due.max(host.now));
    host.measure(domain, probe.epoch, Duration::from_millis(millis), 0);
}

fn fails(host: &mut Host, domain: &str) {
    for _ in 0..3 {
        host.check(domain, failed());
    }
}

fn text(decision: &Decision) -> String {
    let verdict = match &decision.verdict {
        Verdict::Steer(domain) => format!("steer {domain}"),
        Verdict::Block => "block".to_owned(),
        Verdict::Pass => "pass".to_owned(),
    };
    let mut text = format!("{verdict}: {}\n", decision.reason);
    for one in &decision.candidates {
        let taken = if one.taken { "taken" } else { "not taken" };
        writeln!(text, "  {} {taken}: {}", one.domain, one.reason).unwrap();
    }
    text
}

/// What is explained of the host's default, and of each domain.
fn explain(host: &Host) -> String {
    let engine = &host.engine;
    let mut said = text(&engine.decision("default").unwrap());
    for domain in engine.domains().iter() {
        let state = domain.state_with(engine.health());
        let reason = domain.reason_with(engine.health());
        writeln!(said, "{} is {state:?}: {reason}", domain.name).unwrap();
    }
    said
}

/// Compares what is said with the file of this name.
fn compare(scenario: &str, said: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/explained")
        .join(format!("{scenario}.txt"));
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&file, said).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(
        said, expected,
        "{scenario}: if that is right, run with {WRITE}=1"
    );
}

#[test]
fn a_carrier_that_is_lost() {
    let mut host = well("");
    host.carrier(2, false);
    compare("carrier-lost", &explain(&host));
}

#[test]
fn a_path_that_is_dead() {
    let mut host = well("");
    fails(&mut host, "wlan0");
    compare("path-dead", &explain(&host));
}

#[test]
fn all_paths_that_are_dead() {
    let mut host = well("");
    fails(&mut host, "wlan0");
    fails(&mut host, "lte0");
    compare("all-paths-dead", &explain(&host));
}

#[test]
fn all_that_is_down() {
    let mut host = well("");
    host.carrier(2, false);
    host.carrier(3, false);
    compare("all-down", &explain(&host));
}

#[test]
fn a_portal() {
    let mut host = well("");
    let page = Some("http://login.example/".to_owned());
    host.check("wlan0", Outcome::Portal(page));
    compare("portal", &explain(&host));
}

#[test]
fn a_portal_that_a_user_names() {
    let mut host = well("");
    host.check("wlan0", Outcome::Portal(None));
    let user: Policy = support::policy("mine", "a", &["wlan0"]);
    host.apply(Event::SetPolicy(user));
    let mine = host.engine.decision("mine").unwrap();
    compare("portal-by-user", &text(&mine));
}

#[test]
fn a_domain_that_comes_back() {
    let mut host = well("");
    host.carrier(2, false);
    host.carrier(2, true);
    compare("not-proven", &explain(&host));
}

#[test]
fn an_address_that_is_lost() {
    let mut host = well("");
    for net in ["192.0.2.10/24", "2001:db8:2::10/64"] {
        let address = address(2, net);
        let gone = NetworkChange::AddressGone(address.interface, address.ip);
        host.apply(Event::Network(gone));
    }
    compare("address-lost", &explain(&host));
}

#[test]
fn a_prefix_that_is_renumbered() {
    let mut host = well("");
    let old = address(2, "192.0.2.10/24");
    host.apply(Event::Network(NetworkChange::Address(address(
        2,
        "192.0.77.10/24",
    ))));
    host.apply(Event::Network(NetworkChange::AddressGone(
        old.interface,
        old.ip,
    )));
    host.apply(Event::Network(NetworkChange::Route(route(
        2,
        "192.0.77.0/24",
        None,
        0,
    ))));
    compare("renumbered", &explain(&host));
}

#[test]
fn a_link_that_flaps() {
    let mut host = well("");
    for _ in 0..3 {
        host.carrier(2, false);
        host.carrier(2, true);
        host.check("wlan0", Outcome::Passed);
    }
    compare("flapping", &explain(&host));
}

#[test]
fn a_link_that_is_too_slow_or_loses_too_much() {
    let wish = "require = { max-latency = \"50ms\", max-loss = \"10%\" }\n";
    let mut host = Host::new(&format!("{CHECK}{LISTED}{wish}"));
    compare("not-measured", &explain(&host));
    passes(&mut host, "wlan0", 80);
    passes(&mut host, "lte0", 20);
    compare("too-slow", &explain(&host));
    let probe = host.probe("lte0").unwrap();
    host.measure("lte0", probe.epoch, Duration::from_millis(20), 60);
    compare("too-lossy", &explain(&host));
}

#[test]
fn a_better_domain_and_one_that_is_hardly_better() {
    let mut host = Host::new(&format!("{CHECK}{LISTED}prefer = [\"latency\"]\n"));
    passes(&mut host, "wlan0", 80);
    passes(&mut host, "lte0", 20);
    compare("better", &explain(&host));
    // The other one gets a little better than it.
    for _ in 0..40 {
        passes(&mut host, "wlan0", 19);
    }
    compare("hardly-better", &explain(&host));
}

#[test]
fn a_domain_that_is_taken_for_gone() {
    let host = well("");
    let chain = host.engine.chain_of(&name("default"));
    let without = host.engine.decide_without(&chain, None, &name("wlan0"));
    compare("without", &text(&without));
}

#[test]
fn every_file_is_of_a_situation() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/explained");
    let source = include_str!("explained.rs");
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let scenario = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            source.contains(&format!("compare(\"{scenario}\"")),
            "{scenario}"
        );
    }
}
