//! Rules of policies, from the file to the wire: which flows each fits, by every way to begin one, captured
//! on every uplink.

mod rules {
    pub(crate) mod bed;
    mod changes;
    mod many;
    mod repair;
}

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use steer_tests::report::ECHO_PORT;
use steer_tests::{Family, Kind, Lab, LabCgroup, Probe, Uplink, conformance, ip_batch};

use rules::bed::{self, Flow, KINDS, Place, policy, to};

/// Rules of one policy that uses `wlan0`, on a host whose own way is `eth0`, and flows of it.
struct Case {
    name: &'static str,
    rules: Vec<String>,
    /// Where flows go; none: to no place that a rule names.
    place: Option<Place>,
    /// What their sockets are told before, each flow with a number of its own.
    before: fn(Family, u8) -> Vec<String>,
    /// The uplink that they leave by.
    expected: fn(Kind) -> &'static str,
}

impl Case {
    fn new(name: &'static str, rules: &[&str], expected: fn(Kind) -> &'static str) -> Self {
        Self {
            name,
            rules: rules.iter().map(ToString::to_string).collect(),
            place: None,
            before: |_, _| Vec::new(),
            expected,
        }
    }

    fn to(self, place: Place) -> Self {
        Self {
            place: Some(place),
            ..self
        }
    }

    fn told(self, before: fn(Family, u8) -> Vec<String>) -> Self {
        Self { before, ..self }
    }

    fn flows(&self, lab: &Lab, cgroup: &LabCgroup) -> Result<()> {
        let mut number = 0;
        for kind in KINDS {
            for family in Family::ALL {
                number += 1;
                let place = |place: Place| place.at(family, number);
                let mut flow = Flow::new(
                    kind,
                    family,
                    self.place.map_or_else(|| family.target(lab), place),
                );
                flow.before = (self.before)(family, number);
                flow.leaves_by(lab, cgroup, (self.expected)(kind))
                    .with_context(|| self.name.to_owned())?;
            }
        }
        Ok(())
    }
}

/// The place that rules name.
const NAMED: Place = Place(1);

fn by_rule(_: Kind) -> &'static str {
    "wwan0"
}

fn by_policy(_: Kind) -> &'static str {
    "wlan0"
}

fn if_datagrams(kind: Kind) -> &'static str {
    match kind {
        Kind::Tcp => "wlan0",
        _ => "wwan0",
    }
}

fn from_port(family: Family, port: u16) -> Vec<String> {
    let any = if family == Family::V4 {
        "0.0.0.0"
    } else {
        "::"
    };
    vec![format!(
        "bind {}",
        SocketAddr::new(any.parse().unwrap_or([0; 4].into()), port)
    )]
}

/// With bits of congestion, which are not the code point's.
fn of_class(family: Family, class: u8) -> Vec<String> {
    let option = if family == Family::Mapped {
        "tos4"
    } else {
        "tos"
    };
    vec![format!("set {option}={}", class << 2 | 2)]
}

fn cases() -> Vec<Case> {
    let named = NAMED.named();
    let (destination, elsewhere) = (named.as_str(), Place(2).named());
    let wwan0 = |what: &str| format!("{what}\nuse = \"wwan0\"");
    let case = |name, what: &[&str], expected| {
        let rules: Vec<String> = what.iter().map(|what| wwan0(what)).collect();
        Case {
            rules,
            ..Case::new(name, &[], expected)
        }
    };
    let eth0 = |_| "eth0";
    vec![
        case("to a destination", &[destination], by_rule).to(NAMED),
        case("to another destination", &[destination], by_policy),
        case("protocol udp", &["protocol = \"udp\""], if_datagrams),
        case("protocol tcp", &["protocol = 6"], |kind| match kind {
            Kind::Tcp => "wwan0",
            _ => "wlan0",
        }),
        case("to a port", &["ports = [1, \"5-9\"]"], by_rule),
        case("to another port", &["ports = [6, \"8-65535\"]"], by_policy),
        case("from a port", &["source-ports = \"41000-41999\""], by_rule)
            .told(|family, number| from_port(family, 41_500 + u16::from(number))),
        case(
            "from another port",
            &["source-ports = \"41000-41999\""],
            by_policy,
        )
        .told(|family, number| from_port(family, 42_000 + u16::from(number))),
        case("of a class", &["dscp = [\"AF11\", \"EF\"]"], by_rule)
            .told(|family, _| of_class(family, 46)),
        case(
            "of another class",
            &["dscp = [\"AF11\", \"EF\"]"],
            by_policy,
        )
        .told(|family, _| of_class(family, 45)),
        case("of no class", &["dscp = \"EF\""], by_policy),
        case("of class 0", &["dscp = \"CS0\""], by_rule),
        case(
            "all of it fits",
            &[&format!(
                "{destination}\nprotocol = \"udp\"\nports = {ECHO_PORT}\ndscp = 10"
            )],
            if_datagrams,
        )
        .to(NAMED)
        .told(|family, _| of_class(family, 10)),
        case(
            "one thing of it does not fit",
            &[&format!(
                "{destination}\nprotocol = \"udp\"\nports = {ECHO_PORT}\ndscp = 10"
            )],
            by_policy,
        )
        .to(NAMED)
        .told(|family, _| of_class(family, 12)),
        Case::new(
            "the first that fits",
            &[
                &wwan0(&elsewhere),
                &wwan0(destination),
                &format!("{destination}\nuse = \"eth0\""),
                "use = \"eth0\"",
            ],
            by_rule,
        )
        .to(NAMED),
        Case::new(
            "none of the first",
            &[&wwan0(destination), "use = \"eth0\""],
            eth0,
        ),
    ]
}

fn each_case(strict: bool) -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let cases = cases();
    let mut text = String::new();
    let mut cgroups = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let name = format!("app{number}");
        let cgroup = lab.cgroup().child(&name)?;
        let lines = format!("use = \"wlan0\"\nstrict = {strict}");
        text.push_str(&policy(&name, &cgroup, &lines, &case.rules));
        cgroups.push(cgroup);
    }
    lab.configure(&text)?;
    let _agent = lab.start_agent()?;
    for (case, cgroup) in cases.iter().zip(&cgroups) {
        case.flows(&lab, cgroup)?;
    }
    Ok(())
}

#[test]
fn a_flow_leaves_by_the_domain_of_the_first_rule_that_fits_it() -> Result<()> {
    each_case(false)?;
    conformance::row(
        "LIN-2",
        "rules by protocol, destination, source port and destination port mark flows for another domain, \
         from the first packet on, with its source: TCP, connected and unconnected UDP, IPv4, IPv6 and mapped",
    )?;
    for row in ["P-5.3-2", "BB-3"] {
        conformance::row(
            row,
            "rules by the code point (type of service) that a program asks for choose the domain of its flows",
        )?;
    }
    conformance::row(
        "LIN-1",
        "rules by code point lead flows to another domain's table by its mark",
    )
}

#[test]
fn so_do_flows_of_a_strict_policy() -> Result<()> {
    each_case(true)?;
    conformance::row(
        "INVARIANT-1",
        "a flow that a rule of a strict policy fits leaves by the rule's domain alone, every other by the policy's",
    )
}

#[test]
fn a_source_that_the_program_chose_decides() -> Result<()> {
    let lab = Lab::new()?;
    let (open, strict) = (lab.cgroup().child("open")?, lab.cgroup().child("strict")?);
    let from = "source = [\"10.3.0.2\", \"2001:db8:3::2\"]";
    let blocked = "source = [\"10.1.0.0/24\", \"2001:db8:1::/64\"]\notherwise = \"block\"";
    let rules = [format!("{from}\nuse = \"wwan0\""), blocked.to_owned()];
    lab.configure(&format!(
        "{}{}",
        policy("open", &open, "use = \"wlan0\"", &rules),
        policy("strict", &strict, "use = \"wlan0\"\nstrict = true", &rules),
    ))?;
    let _agent = lab.start_agent()?;
    for cgroup in [&open, &strict] {
        for kind in KINDS {
            for family in [Family::V4, Family::V6] {
                let (wwan0, eth0) = match family {
                    Family::V4 => ("10.3.0.2", "10.1.0.2"),
                    _ => ("2001:db8:3::2", "2001:db8:1::2"),
                };
                let mut flow = Flow::new(kind, family, family.target(&lab));
                flow.leaves_by(&lab, cgroup, "wlan0")?;
                flow.to = family.target(&lab);
                flow.before = vec![format!("bind {wwan0}")];
                flow.leaves_by(&lab, cgroup, "wwan0")?;
                flow.to = family.target(&lab);
                flow.before = vec![format!("bind {eth0}")];
                if cgroup.name() == open.name() {
                    flow.is_refused(&lab, cgroup, "ENETUNREACH")?;
                } else {
                    // No domain that the strict policy may use has it.
                    let bound = Probe::new(kind, family).then(&flow.before[0]);
                    let report = bound.last(&lab, cgroup)?;
                    ensure!(report.errno_name == "EPERM", "{report:?}");
                }
            }
        }
    }
    conformance::row(
        "LIN-1",
        "rules by the source that a program has bound: by the rule's domain, or refused",
    )
}

#[test]
fn a_port_that_the_kernel_chose_is_no_source_port_of_a_connected_flow() -> Result<()> {
    let lab = Lab::new()?;
    let (open, strict) = (lab.cgroup().child("open")?, lab.cgroup().child("strict")?);
    let rules = ["source-ports = \"1-65535\"\nuse = \"wwan0\"".to_owned()];
    lab.configure(&format!(
        "{}{}",
        policy("open", &open, "use = \"wlan0\"", &rules),
        policy("strict", &strict, "use = \"wlan0\"\nstrict = true", &rules),
    ))?;
    let _agent = lab.start_agent()?;
    for cgroup in [&open, &strict] {
        for (kind, family) in [
            (Kind::Tcp, Family::V4),
            (Kind::Tcp, Family::V6),
            (Kind::Tcp, Family::Mapped),
            (Kind::UdpConnected, Family::V4),
            (Kind::UdpConnected, Family::V6),
        ] {
            Flow::new(kind, family, family.target(&lab)).leaves_by(&lab, cgroup, "wlan0")?;
        }
        // It has one before its first datagram is asked about.
        for family in Family::ALL {
            Flow::new(Kind::UdpUnconnected, family, family.target(&lab))
                .leaves_by(&lab, cgroup, "wwan0")?;
        }
    }
    Ok(())
}

#[test]
fn one_unconnected_socket_sends_each_datagram_by_its_own_rule() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let (open, strict) = (lab.cgroup().child("open")?, lab.cgroup().child("strict")?);
    let (one, two) = (Place(1), Place(2));
    let rules = [to(one, "wwan0", ""), to(two, "eth0", "")];
    lab.configure(&format!(
        "{}{}",
        policy("open", &open, "use = \"wlan0\"", &rules),
        policy("strict", &strict, "use = \"wlan0\"\nstrict = true", &rules),
    ))?;
    let _agent = lab.start_agent()?;
    for (number, cgroup) in (1..).zip([&open, &strict]) {
        for family in Family::ALL {
            lab.drain()?;
            let position = lab.position()?;
            let mut session = Probe::new(Kind::UdpUnconnected, family).start(&lab, cgroup)?;
            let targets = [
                (one.at(family, number), "wwan0"),
                (two.at(family, number), "eth0"),
                (family.target(&lab), "wlan0"),
            ];
            for round in 0..6 {
                for (to, uplink) in targets {
                    let to = SocketAddr::new(to, ECHO_PORT);
                    let report = session.succeed(&format!("send token-{round} {to}"))?;
                    let told = || format!("{family:?} round {round} to {to}: {report:?}");
                    ensure!(report.uplink.as_deref() == Some(uplink), "{}", told());
                }
            }
            for (to, uplink) in targets {
                Flow::new(Kind::UdpUnconnected, family, to).only_by(&lab, uplink, position)?;
            }
        }
    }
    conformance::row(
        "AMSS-3",
        "datagrams of one unconnected socket to destinations of different rules: each by its domain with its \
         source, from the first on",
    )
}

#[test]
fn what_no_domain_of_a_rule_fits_goes_to_the_policy_or_to_the_next() -> Result<()> {
    let lab = Lab::builder()
        .uplinks([
            Uplink::new("eth0", 1),
            Uplink::new("wlan0", 2),
            Uplink::new("wwan0", 3),
            Uplink::new("lte0", 4),
        ])
        .build()?;
    let outer = lab.cgroup().child("outer")?;
    let inner = lab.cgroup().child("outer/inner")?;
    let [one, two, three] = [1, 2, 3].map(Place);
    lab.configure(&format!(
        "{}{}",
        policy(
            "inner",
            &inner,
            "use = \"wlan0\"\notherwise = \"next\"",
            &[
                to(one, "wwan0", "otherwise = \"next\""),
                to(two, "wwan0", ""),
                to(three, "wwan0", ""),
            ],
        ),
        policy("outer", &outer, "use = \"lte0\"", &[to(two, "eth0", "")]),
    ))?;
    let _agent = lab.start_agent()?;
    let expect = |ways: [&str; 4]| -> Result<()> {
        let places = [Some(one), Some(two), Some(three), None];
        for (place, uplink) in places.into_iter().zip(ways) {
            bed::flows_leave_by(&lab, &inner, place, uplink)?;
        }
        Ok(())
    };
    expect(["wwan0", "wwan0", "wwan0", "wlan0"]).context("all there")?;
    lab.carrier_down("wwan0")?;
    bed::wait_rule(&lab, ("inner", "inner", 1), "wlan0")?;
    // The first asks its own policy, the others the next one, which has a rule for one of them.
    expect(["wlan0", "eth0", "lte0", "wlan0"]).context("without wwan0")?;
    lab.carrier_down("wlan0")?;
    lab.wait_decision("inner", "domain", "lte0")?;
    expect(["lte0", "eth0", "lte0", "lte0"]).context("without both")?;
    lab.carrier_up("wwan0")?;
    lab.carrier_up("wlan0")?;
    bed::wait_rule(&lab, ("inner", "inner", 1), "wwan0")?;
    lab.wait_decision("inner", "domain", "wlan0")?;
    expect(["wwan0", "wwan0", "wwan0", "wlan0"]).context("all back")
}

#[test]
fn a_rule_that_names_a_network_of_another_interface_steers_there() -> Result<()> {
    let lab = Lab::builder()
        .uplinks([
            Uplink::new("eth0", 1),
            // The same addresses are behind it.
            Uplink::new("wlan0", 2)
                .serves("10.1.0.0/24")
                .serves("2001:db8:1::/64"),
        ])
        .build()?;
    let at = |family, number: u8| match family {
        Family::V6 => format!("2001:db8:1::{number:x}"),
        _ => format!("10.1.0.{number}"),
    };
    let addresses = (100..150).flat_map(|number| {
        [(Family::V4, 24, ""), (Family::V6, 64, " nodad")].map(|(family, length, more)| {
            format!("address add {}/{length} dev peer{more}", at(family, number))
        })
    });
    ip_batch(lab.peer("eth0")?, &addresses.collect::<Vec<_>>())?;
    let rules = [
        ("none", Vec::new(), "eth0"),
        (
            "any",
            vec!["protocol = [\"tcp\", \"udp\"]\nuse = \"wlan0\""],
            "eth0",
        ),
        (
            "named",
            vec!["destination = [\"10.1.0.0/24\", \"2001:db8:1::/64\"]\nuse = \"wlan0\""],
            "wlan0",
        ),
    ];
    let mut text = String::new();
    for (name, rules, _) in &rules {
        let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
        let cgroup = lab.cgroup().child(name)?;
        text.push_str(&policy(name, &cgroup, "use = \"wlan0\"", &rules));
    }
    lab.configure(&text)?;
    let _agent = lab.start_agent()?;
    let mut number = 100;
    for (name, _, uplink) in rules {
        let cgroup = lab.cgroup().child(name)?;
        for kind in KINDS {
            for family in Family::ALL {
                Flow::new(kind, family, at(family, number).parse()?)
                    .leaves_by(&lab, &cgroup, uplink)
                    .with_context(|| format!("rules: {name}"))?;
                number += 1;
            }
        }
    }
    Ok(())
}
