//! Any text is a configuration that prints back to the same, or gives errors with valid places.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use steer_common::MarkMask;
use steer_core::attached::Ssid;
use steer_core::config::{
    AgentConfig, Config, Discover, DomainConfig, DomainMatch, HostModel, MAX_COST, MAX_WEIGHT,
    parse, to_toml,
};
use steer_core::criteria::{Bandwidth, Criteria, Criterion, Loss, Margin, Require, Security};
use steer_core::name::Name;
use steer_core::network::LinkKind;
use steer_core::pattern::{CgroupPattern, UnitName};
use steer_core::permit::{Account, Permit};
use steer_core::plan::Family;
use steer_core::policy::{
    LocalNetworks, Match, Origin, Otherwise, Policy, Rebind, Session, Sessions, Share,
};
use steer_core::probe::{Check, DnsTarget, Expect, Host, HttpTarget};
use steer_core::rules::{Dscp, Ports, Protocol, Rule, prefix};

/// What a configuration says, without where.
fn says(config: &Config) -> Config {
    Config {
        agent_places: BTreeMap::new(),
        awaited: Vec::new(),
        ..config.clone()
    }
}

/// The property itself.
fn holds(text: &str) -> Result<(), TestCaseError> {
    let (config, errors) = match parse(&[("steer.toml", text)]) {
        Ok(config) => {
            let mistakes = config.mistakes().cloned().collect();
            (Some(config), mistakes)
        }
        Err(errors) => {
            prop_assert!(!errors.is_empty());
            (None, errors)
        }
    };
    for error in &errors {
        let place = &error.place;
        prop_assert!(place.start <= place.end && place.end <= text.len());
        prop_assert!(text.get(place.span()).is_some(), "{error:?}");
        let before = &text[..place.start];
        let line = before.rsplit('\n').next().unwrap_or_default();
        prop_assert_eq!(place.line, before.matches('\n').count() + 1);
        prop_assert_eq!(place.column, line.chars().count() + 1);
        prop_assert!(!error.message.is_empty());
    }
    if let Some(config) = config.filter(|_| errors.is_empty()) {
        let printed = to_toml(&config).unwrap();
        let again = parse(&[("again", &printed)]);
        let again = again.map_err(|e| TestCaseError::fail(format!("{}\n{printed}", e[0])))?;
        prop_assert_eq!(says(&again), says(&config), "{}", printed);
    }
    Ok(())
}

fn names() -> impl Strategy<Value = Name> {
    "[!#-&(-+.0-\\[\\]-~][!#-&(-+.0-\\[\\]-~-]{0,14}".prop_filter_map("the default", |text| {
        Name::new(&text).ok().filter(|n| n.as_str() != "default")
    })
}

fn kinds() -> impl Strategy<Value = LinkKind> {
    select(vec![
        LinkKind::Wired,
        LinkKind::Wlan,
        LinkKind::Cellular,
        LinkKind::Vpn,
        LinkKind::Other,
    ])
}

fn nets() -> impl Strategy<Value = IpNet> {
    (any::<IpAddr>(), 0u8..=128).prop_map(|(ip, len)| {
        let most = IpNet::from(ip).max_prefix_len();
        IpNet::new(ip, len.min(most)).unwrap()
    })
}

fn host_models() -> impl Strategy<Value = HostModel> {
    select(vec![
        HostModel::Kernel,
        HostModel::Weak,
        HostModel::Strong,
        HostModel::Count,
    ])
}

fn lingers() -> impl Strategy<Value = Duration> {
    (0u64..=86_400_000).prop_map(Duration::from_millis)
}

fn sessions() -> impl Strategy<Value = Session> {
    select(vec![Session::Keep, Session::Move, Session::Reset])
}

fn securities() -> impl Strategy<Value = Security> {
    select(vec![
        Security::Open,
        Security::Protected,
        Security::Encrypted,
    ])
}

fn bandwidths() -> impl Strategy<Value = Bandwidth> {
    prop_oneof![any::<u64>(), (0u64..1000).prop_map(|mega| mega * 1_000_000)].prop_map(Bandwidth)
}

fn hosts() -> impl Strategy<Value = Host> {
    prop_oneof![
        any::<IpAddr>().prop_map(Host::Ip),
        "[a-z][a-z0-9-]{0,9}(\\.[a-z]{1,5}){0,3}"
            .prop_filter("the gateway", |name| name != "gateway")
            .prop_map(Host::Name),
        Just(Host::Gateway),
    ]
}

fn checks() -> impl Strategy<Value = Check> {
    let http = (hosts(), 1u16.., "/[!\"$-~]{0,9}").prop_map(|(host, port, path)| HttpTarget {
        host,
        port,
        path,
    });
    let dns = (
        "[a-z]{1,9}(\\.[a-z]{1,5}){0,3}",
        option::of(any::<IpAddr>()),
    )
        .prop_map(|(name, address)| DnsTarget { name, address });
    let expect = prop_oneof![
        (200u16..300).prop_map(Expect::Status),
        "[A-Za-z \"\\\\]{1,9}".prop_map(Expect::Body),
    ];
    let targets = (
        vec(http, 0..3),
        vec(dns, 0..3),
        vec((hosts(), 1u16..), 0..3),
        vec(hosts(), 0..3),
    );
    (targets, expect, 100u64..3_600_000, 1u32..=100, 1u32..=100).prop_map(
        |((http, dns, tcp, icmp), expect, interval, fall, rise)| {
            let check = Check {
                http,
                dns,
                tcp,
                icmp,
                expect,
                interval: Duration::from_millis(interval),
                fall,
                rise,
                implied: false,
            };
            if check.asks() {
                check
            } else {
                Check::default()
            }
        },
    )
}

prop_compose! {
    fn requirements()(
        kind in vec(kinds(), 0..3),
        min_bandwidth in option::of(bandwidths()),
        max_latency in option::of((0u64..100_000).prop_map(Duration::from_millis)),
        max_loss in option::of((0u16..=1000).prop_map(Loss)),
        max_cost in option::of(0..=MAX_COST),
        metered in option::of(any::<bool>()),
        security in option::of(securities()),
        profile in option::of(names()),
        family in option::of(select(vec![Family::Ipv4, Family::Ipv6])),
    ) -> Require {
        Require {
            kind, min_bandwidth, max_latency, max_loss, max_cost, metered, security, profile, family,
        }
    }
}

prop_compose! {
    fn criteria()(
        require in requirements(),
        prefer in vec(
            select(vec![
                Criterion::Cost, Criterion::Latency, Criterion::Loss, Criterion::Bandwidth,
                Criterion::Stability, Criterion::Security, Criterion::Metric, Criterion::LastGood,
                Criterion::FirstGood,
            ]),
            0..4,
        ),
        margin in (0u8..=90).prop_map(Margin),
    ) -> Criteria {
        Criteria { require, prefer, margin }
    }
}

prop_compose! {
    /// What a policy says besides.
    fn habits()(
        repair: bool,
        share in option::of(select(vec![Share::Flow, Share::Destination])),
        rebind in select(vec![Rebind::Flow, Rebind::Datagram]),
        on_better in sessions(),
        on_loss in sessions(),
        linger in option::of(lingers()),
        criteria in criteria(),
        prefer_family in option::of(select(vec![Family::Ipv4, Family::Ipv6])),
    ) -> Policy {
        Policy {
            repair, share, rebind, sessions: Sessions { on_better, on_loss }, linger, criteria, prefer_family,
            ..Policy::new(Name::default_policy(), Origin::Admin, Vec::new(), Vec::new(), false)
        }
    }
}

prop_compose! {
    fn agents()(
        root in option::of("(/[a-zA-Z0-9 .\"'\\\\äß]{1,9}x){1,3}"),
        bits in btree_set(0u32..32, 1..9),
        table_base in 256u32..=4_294_967_039,
        rule_base in 1u32..=32_165,
        discover in prop_oneof![
            Just(Discover::All),
            Just(Discover::None),
            vec("[a-z*][a-z0-9*.]{0,9}", 1..3).prop_map(Discover::Globs),
        ],
        host_model in host_models(),
        linger in lingers(),
        check in option::of(checks()),
        order in vec(kinds(), 1..4),
        primary in vec(names(), 0..3),
    ) -> AgentConfig {
        let mask = bits.into_iter().fold(0, |mask, bit| mask | 1 << bit);
        AgentConfig {
            cgroup_root: root, mark_mask: MarkMask::new(mask).unwrap(), table_base, rule_base, discover,
            host_model, linger, check, order, primary,
        }
    }
}

prop_compose! {
    fn domains()(
        interface in option::of("[a-z][a-z0-9.@_-]{0,14}"),
        mac in option::of(any::<[u8; 6]>()),
        match_kind in option::of(kinds()),
        kind in option::of(kinds()),
        sources in vec(nets(), 0..3),
        gateways in vec(any::<IpAddr>(), 0..3),
        cost in 0..=MAX_COST,
        metered: bool,
        weight in option::of(0..=MAX_WEIGHT),
        host_model in option::of(host_models()),
        check in option::of(checks()),
        bandwidth in option::of(bandwidths()),
        about in (
            option::of(securities()),
            option::of(names()),
            option::of((100u64..3_600_000).prop_map(Duration::from_millis)),
            vec(any::<IpAddr>(), 0..3),
        ),
        network in (
            option::of(vec(1u8.., 1..=Ssid::MAX_LEN)),
            option::of("[ -~äß]{1,60}"),
        ),
    ) -> DomainConfig {
        let (ssid, connection) = network;
        let ssid = ssid.and_then(|bytes| Ssid::new(&bytes));
        let connection = connection.and_then(|text| text.try_into().ok());
        let matches = DomainMatch { interface, mac, kind: match_kind, ssid, connection };
        let (security, profile, attach_timeout, servers) = about;
        DomainConfig {
            matches, kind, sources, gateways, cost, metered, weight, host_model, check, bandwidth,
            security, profile, attach_timeout, servers,
        }
    }
}

fn matches() -> impl Strategy<Value = Match> {
    prop_oneof![
        "[ -.0-~äß]{1,20}(/[ -.0-~]{1,20}){0,3}".prop_filter_map("no path", |text| {
            CgroupPattern::new(&text).ok().map(Match::Cgroup)
        }),
        "[a-z@\\\\\"']{1,9}\\.(service|scope|slice)"
            .prop_filter_map("no unit", |text| UnitName::new(&text).ok().map(Match::Unit)),
    ]
}

/// A rule but for the names that it uses, as a file may have it.
fn rules(strict: bool) -> impl Strategy<Value = (Rule, Vec<Index>)> {
    // IPv4 addresses that are written as IPv6 are refused.
    let nets = || {
        let nets = nets().prop_map(|net| net.trunc());
        nets.prop_filter("stands for IPv4", |net| prefix(&net.to_string()).is_ok())
    };
    let ports = || (1u16.., 1u16..).prop_map(|(a, b)| Ports::new(a.min(b), a.max(b)).unwrap());
    let protocols = select(vec![6, 17, 33, 132, 136]).prop_map(Protocol);
    let otherwise = if strict {
        vec![Otherwise::Block]
    } else {
        vec![Otherwise::Block, Otherwise::Pass, Otherwise::Next]
    };
    let parts = (
        (
            vec(nets(), 0..3),
            vec(ports(), 0..3),
            vec(nets(), 0..3),
            vec(ports(), 0..3),
        )
            .boxed(),
        vec(protocols, 0..3),
        vec((0u8..64).prop_map(|value| Dscp::new(value).unwrap()), 0..3),
        vec(any::<Index>(), 0..3),
        option::of(select(otherwise)),
    );
    parts.prop_map(
        |((source, source_ports, destination, ports), protocol, dscp, uses, otherwise)| {
            let nothing = uses.is_empty() && otherwise.is_none();
            let otherwise = if nothing {
                Some(Otherwise::Block)
            } else {
                otherwise
            };
            let rule = Rule {
                source,
                source_ports,
                destination,
                ports,
                protocol,
                dscp,
                use_: Vec::new(),
                otherwise,
            };
            (rule, uses)
        },
    )
}

/// A policy but for its name and the names that it uses; with those of its rules.
fn policies() -> impl Strategy<Value = (Policy, Vec<Index>, Vec<Vec<Index>>)> {
    let otherwise = select(vec![Otherwise::Block, Otherwise::Pass, Otherwise::Next]);
    let rules = any::<bool>().prop_flat_map(|strict| (Just(strict), vec(rules(strict), 0..4)));
    let parts = (
        vec(matches(), 1..4),
        vec(any::<Index>(), 0..4),
        rules.boxed(),
        otherwise,
        any::<bool>(),
        habits(),
    );
    parts.prop_map(
        |(mut matches, uses, (strict, rules), otherwise, steer, habits)| {
            let (rules, of_rules): (Vec<Rule>, _) = rules.into_iter().unzip();
            // Files tell cgroups and units apart by key, not by order.
            matches.sort_by_key(|wanted| matches!(wanted, Match::Unit(_)));
            let policy = Policy {
                otherwise: if strict { Otherwise::Block } else { otherwise },
                local_networks: if steer {
                    LocalNetworks::Steer
                } else {
                    LocalNetworks::Pass
                },
                repair: habits.repair,
                share: habits.share,
                rebind: habits.rebind,
                sessions: habits.sessions,
                linger: habits.linger,
                criteria: habits.criteria,
                prefer_family: habits.prefer_family,
                rules: rules.into(),
                ..Policy::new(
                    Name::default_policy(),
                    Origin::Admin,
                    matches,
                    Vec::new(),
                    strict,
                )
            };
            (policy, uses, of_rules)
        },
    )
}

fn accounts() -> impl Strategy<Value = Account> {
    "(\\*|[0-9]{1,5}|[a-z_][a-z0-9_-]{0,9})"
        .prop_filter_map("no account", |text| Account::new(&text).ok())
}

fn permits() -> impl Strategy<Value = (Permit, Vec<Index>)> {
    let patterns = "[a-z*]{1,9}(/[a-z]{1,9}){0,2}"
        .prop_filter_map("no path", |text| CgroupPattern::new(&text).ok());
    let parts = (
        vec(accounts(), 1..3),
        vec(accounts(), 0..3),
        vec(patterns, 0..3),
        vec(any::<Index>(), 0..3),
        vec(nets(), 0..2),
        option::of(any::<bool>()),
    );
    parts.prop_map(|(users, groups, cgroups, domains, destinations, strict)| {
        let permit = Permit {
            users,
            groups,
            cgroups,
            domains: Vec::new(),
            destinations,
            strict,
        };
        (permit, domains)
    })
}

/// Configurations in which nothing is wrong.
fn configs() -> BoxedStrategy<Config> {
    let parts = (
        agents().boxed(),
        vec((names(), domains()), 1..5).boxed(),
        vec((names(), vec(any::<Index>(), 1..4)), 0..3).boxed(),
        vec((names(), policies()), 0..5).boxed(),
        option::of(policies()).boxed(),
        vec((names(), permits()), 0..3).boxed(),
    );
    parts
        .prop_map(|(agent, domains, groups, policies, default, permits)| {
            let mut config = Config {
                agent,
                domains: domains.into_iter().collect(),
                ..Config::default()
            };
            let domains: Vec<Name> = config.domains.keys().cloned().collect();
            // As many of them as were named.
            let primary = domains.iter().zip(&config.agent.primary);
            config.agent.primary = primary.map(|(name, _)| name.clone()).collect();
            let pick = |from: &[Name], at: Vec<Index>| -> Vec<Name> {
                at.into_iter().map(|at| at.get(from).clone()).collect()
            };
            for (name, members) in groups {
                if !config.domains.contains_key(&name) {
                    config.groups.insert(name, pick(&domains, members));
                }
            }
            let filled = |policy: &Policy, all: &[Name], uses: Vec<Vec<Index>>| -> Vec<Rule> {
                let rules = policy.rules.iter().cloned().zip(uses);
                rules
                    .map(|(rule, uses)| Rule {
                        use_: pick(all, uses),
                        ..rule
                    })
                    .collect()
            };
            let all: Vec<Name> = domains
                .iter()
                .chain(config.groups.keys())
                .cloned()
                .collect();
            for (at, (name, (policy, uses, of_rules))) in policies.into_iter().enumerate() {
                let policy = Policy {
                    name: name.clone(),
                    use_: pick(&all, uses),
                    rules: filled(&policy, &all, of_rules).into(),
                    // No two have one priority on one cgroup.
                    priority: i32::MAX - i32::try_from(at).unwrap(),
                    ..policy
                };
                config.policies.insert(name, policy);
            }
            if let Some((policy, uses, of_rules)) = default {
                let policy = Policy {
                    origin: Origin::Default,
                    matches: Vec::new(),
                    use_: pick(&all, uses),
                    rules: filled(&policy, &all, of_rules).into(),
                    ..policy
                };
                config.policies.insert(Name::default_policy(), policy);
            }
            for (name, (permit, domains)) in permits {
                let domains = pick(&all, domains);
                config.permits.insert(name, Permit { domains, ..permit });
            }
            config
        })
        .boxed()
}

#[test]
fn every_key_of_the_schema_is_printed() {
    let text = r#"
        [agent]
        cgroup-root = "/x"
        order = "vpn"
        primary = "a"
        check = "none"
        discover = ["eth*"]
        [domain.a]
        match = { interface = "eth0", mac = "02:00:5e:10:00:01", kind = "wired", ssid = "a", connection = "b" }
        kind = "vpn"
        sources = "192.0.2.1"
        gateways = "192.0.2.2"
        cost = 1
        metered = true
        weight = 2
        host-model = "weak"
        bandwidth = "5M"
        security = "open"
        profile = "y"
        attach-timeout = "3s"
        dns = { servers = "192.0.2.3" }
        [domain.a.check]
        http = "http://[2001:db8::1]:81/x?y"
        dns = "host.example=192.0.2.4"
        tcp = ["[2001:db8::1]:443", "host.example:80"]
        icmp = "gateway"
        expect = "ok"
        interval = "1s"
        fall = 2
        rise = 1
        [group.g]
        domains = "a"
        [policy.p]
        match = { cgroup = "a", unit = "b.service" }
        use = "g"
        strict = true
        local-networks = "pass"
        repair = true
        share = "flow"
        rebind = "datagram"
        sessions = { on-better = "move", on-loss = "keep" }
        linger = "5s"
        prefer = ["latency", "last-good"]
        margin = "5%"
        family = "ipv6"
        prefer-family = "ipv4"
        priority = 1
        [policy.p.require]
        kind = "wlan"
        min-bandwidth = "1500k"
        max-latency = "80ms"
        max-loss = "0.5%"
        max-cost = 3
        metered = false
        security = "protected"
        profile = "y"
        [[policy.p.rule]]
        source = "192.0.2.1"
        source-ports = 1
        destination = ["2001:db8::/32", "10.0.0.0/8"]
        ports = [443, "8000-8100"]
        protocol = ["tcp", 17]
        dscp = [46, "AF11"]
        use = "g"
        otherwise = "block"
        [policy.default]
        use = "a"
        strict = true
        local-networks = "pass"
        [permit.x]
        users = "*"
        groups = "7"
        domains = "a"
        cgroups = "c"
        destinations = "::/0"
        strict = false
    "#;
    let config = parse(&[("f", text)]).unwrap();
    assert_eq!(config.mistakes().count(), 0);
    let printed = to_toml(&config).unwrap();
    for table in &steer_core::config::keys::TABLES[1..] {
        for key in table
            .names()
            .filter(|key| !["match", "sessions", "rule", "dns", "check", "require"].contains(key))
        {
            let has = |line: &str| {
                let printed = line.split(" = ").next().unwrap_or_default();
                let below = ["", "match.", "sessions.", "dns.", "check.", "require."]
                    .map(|table| format!("{table}{key}"));
                below.iter().any(|key| key == printed)
            };
            assert!(
                printed.lines().any(has),
                "{} {key}:\n{printed}",
                table.table
            );
        }
    }
    holds(text).unwrap();
}

proptest! {
    #[test]
    fn a_configuration_prints_to_a_file_that_says_the_same(config in configs()) {
        let printed = to_toml(&config).unwrap();
        let again = parse(&[("steer.toml", &printed)])
            .map_err(|e| TestCaseError::fail(format!("{}\n{printed}", e[0])))?;
        prop_assert_eq!(again.mistakes().count(), 0, "{}", &printed);
        prop_assert_eq!(says(&again), config, "{}", &printed);
    }

    #[test]
    fn any_bytes_as_text_hold(bytes in vec(any::<u8>(), 0..300)) {
        holds(&String::from_utf8_lossy(&bytes))?;
    }

    #[test]
    fn any_text_holds(text in "(\\PC|[\n\t\"\\[\\]=.{}#,']){0,200}") {
        holds(&text)?;
    }

    #[test]
    fn files_that_were_changed_somewhere_hold(
        config in configs(),
        changes in vec((any::<Index>(), 0usize..6, "(\\PC|[\n\"\\[\\]=.{},]|true|9|strict = true\n){0,3}"), 1..5)
    ) {
        let mut text = to_toml(&config).unwrap();
        for (at, removed, put) in changes {
            let begin = text.floor_char_boundary(at.index(text.len() + 1));
            let end = text.ceil_char_boundary((begin + removed).min(text.len()));
            text.replace_range(begin..end, &put);
        }
        holds(&text)?;
    }

    #[test]
    fn files_with_lines_swapped_or_doubled_hold(
        config in configs(), swaps in vec((any::<Index>(), any::<Index>(), any::<bool>()), 1..5)
    ) {
        let text = to_toml(&config).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        for (one, two, double) in swaps {
            let (one, two) = (one.index(lines.len()), two.index(lines.len()));
            if double {
                lines.insert(one, lines[two]);
            } else {
                lines.swap(one, two);
            }
        }
        holds(&lines.join("\n"))?;
    }
}
