//! Files: what they mean, and every mistake with its place.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

use proptest::prelude::*;
use steer_common::MarkMask;
use steer_core::config::{
    Config, Discover, MAX_FILE_BYTES, NotSavable, parse, parse_with_places, policy_to_toml,
};
use steer_core::ids::CgroupId;
use steer_core::name::Name;
use steer_core::network::{LinkKind, Network};
use steer_core::pattern::{CgroupPattern, UnitName};
use steer_core::policy::{LocalNetworks, Match, Origin, Otherwise, Policy};

/// Everything that is wrong, with the file or with single policies.
fn errors(text: &str) -> Vec<String> {
    match parse(&[("steer.toml", text)]) {
        Ok(config) => config.mistakes().map(ToString::to_string).collect(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

fn error(text: &str) -> String {
    let errors = errors(text);
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.into_iter().next().unwrap()
}

/// A policy on one line, after the three lines that define its domains.
fn with_policy(body: &str) -> String {
    format!(
        "domain.wifi.match.interface = \"wlan0\"\ndomain.lte.match.kind = \"cellular\"\n\
         group.internet.domains = [\"wifi\", \"lte\"]\n[policy.web]\n{body}\n"
    )
}

#[test]
fn a_whole_file_means_what_it_says() {
    let text = r#"
        [agent]
        mark-mask = "0x0f00"
        table-base = 1000
        rule-base = 9000
        discover = ["wl*"]
        cgroup-root = "/sys/fs/cgroup"

        [domain.wifi]
        match = { interface = "wlan0", mac = "02:00:5e:10:00:01" }
        kind = "wlan"
        sources = ["192.0.2.7", "2001:db8::/32"]
        gateways = ["192.0.2.1"]
        cost = 1_000_000
        metered = true

        [group.internet]
        domains = ["wifi", "wlan7"]

        [policy.backup]
        match.cgroup = "/system.slice/backup-*.service"
        match.unit = ["a.service", "b.scope"]
        use = ["internet"]
        strict = true
        priority = -3

        [policy.default]
        otherwise = "pass"
    "#;
    let config = parse(&[("steer.toml", text)]).unwrap();
    assert_eq!(config.agent.mark_mask, MarkMask::new(0xf00).unwrap());
    assert_eq!(
        (config.agent.table_base, config.agent.rule_base),
        (1000, 9000)
    );
    assert_eq!(
        config.agent.discover,
        Discover::Globs(vec!["wl*".to_owned()])
    );
    assert_eq!(config.agent.cgroup_root.as_deref(), Some("/sys/fs/cgroup"));
    let wifi = &config.domains["wifi"];
    assert_eq!(wifi.kind, Some(LinkKind::Wlan));
    assert_eq!(wifi.matches.mac, Some([2, 0, 0x5e, 0x10, 0, 1]));
    assert_eq!(wifi.sources[0].to_string(), "192.0.2.7/32");
    assert_eq!((wifi.cost, wifi.metered), (1_000_000, true));
    let backup = &config.policies["backup"];
    assert_eq!(backup.origin, Origin::Admin);
    assert_eq!(backup.matches.len(), 3);
    assert_eq!(
        (
            backup.strict,
            backup.otherwise,
            backup.local_networks,
            backup.priority
        ),
        (true, Otherwise::Block, LocalNetworks::Steer, -3)
    );
    assert_eq!(config.policies["default"].origin, Origin::Default);
    assert_eq!(config.awaited.len(), 1, "wlan7 may come");
}

#[test]
fn nothing_at_all_is_a_configuration() {
    assert_eq!(parse(&[]), Ok(Config::default()));
    assert_eq!(
        parse(&[("a", ""), ("b", "# nothing\n")]),
        Ok(Config::default())
    );
    let agent = Config::default().agent;
    assert_eq!(agent.mark_mask.bits(), 0x7700_0000);
    assert_eq!((agent.table_base, agent.rule_base), (40_000, 4_000));
}

#[test]
fn mistakes_are_named_with_file_line_and_column() {
    let cases = [
        (
            "match.cgroup = \"a\"\nusee = [\"wifi\"]\nuse = [\"wifi\"]",
            "steer.toml:6:1: unknown key `usee` in [policy.web]; did you mean `use`?",
        ),
        (
            "match.cgroup = \"a\"\nuse = []",
            "steer.toml:6:7: `use` of [policy.web] is empty",
        ),
        (
            "match.cgroup = \"a/../b\"\nuse = [\"wifi\"]",
            "steer.toml:5:16: the cgroup path `a/../b` has a level `..`; write the path as in \
          /proc/PID/cgroup",
        ),
        (
            "match.cgroup = \"a\"\nuse = [\"wifi\", 3]",
            "steer.toml:6:16: what is in `use` must be a string, not an integer",
        ),
        (
            "match.cgroup = \"a\"\nuse = \"wifi\"\nstrict = \"yes\"",
            "steer.toml:7:10: `strict` must be true or false, not a string",
        ),
        (
            "match.cgroup = \"a\"\nuse = \"wifi\"\notherwise = \"blok\"",
            "steer.toml:7:13: `otherwise` must be `block`, `pass` or `next`, not `blok`; did you mean \
          `block`?",
        ),
        (
            "match.cgroup = \"a\"\nuse = \"wifi\"\nstrict = true\notherwise = \"pass\"",
            "steer.toml:8:13: policy `web` is strict, so its flows are blocked when no domain fits: \
          `otherwise` cannot be anything else",
        ),
        (
            "match.cgroup = \"a\"",
            "steer.toml:4:9: [policy.web] has no `use`; name domains or groups, or say `otherwise = \
          \"block\"` or `\"pass\"`",
        ),
        (
            "use = \"wifi\"",
            "steer.toml:4:9: [policy.web] has no match; give it `match.cgroup` or `match.unit`",
        ),
        (
            "match.unit = \"web\"\nuse = \"wifi\"",
            "steer.toml:5:14: `web` is not the name of a service, scope or slice unit",
        ),
        (
            "match.cgroup = \"a\"\nuse = [\"wi fi\"]",
            "steer.toml:6:8: the name `wi fi` contains ' '; a name is made of visible ASCII characters \
          without `,`, `/`, quotes and backslash",
        ),
        (
            "match.cgroup = \"a\"\nuse = \"wifi\"\npriority = 3000000000",
            "steer.toml:7:12: `priority` must be from -2147483648 to 2147483647",
        ),
    ];
    for (body, expected) in cases {
        assert_eq!(error(&with_policy(body)), expected);
    }
}

#[test]
fn a_number_without_a_unit_and_a_key_out_of_place_are_told_with_what_to_write() {
    for (text, expected) in [
        (
            "[agent]\ncheck = { icmp = \"gateway\", interval = 5 }\n",
            "`interval` is a number without a unit; write it with one, in quotes, such as `interval = \"5s\"`",
        ),
        (
            "[domain.eth0]\nbandwidth = 50\n",
            "such as `bandwidth = \"50M\"`",
        ),
        (
            "[policy.a]\nmatch.cgroup = \"a\"\nuse = \"eth0\"\nmax-latency = \"50ms\"\n",
            "it is a key of [policy.x.require]",
        ),
        (
            "[policy.a]\nmatch.cgroup = \"a\"\nuse = \"eth0\"\ncheck = \"none\"\n",
            "it is a key of [agent] and [domain.x]",
        ),
        (
            "[policy.a]\nmatch.cgroup = \"a\"\nuse = \"eth0\"\nrequire.max-loss = 0.05\n",
            "such as `max-loss = \"5%\"`",
        ),
        (
            "[policy.a]\nmatch.cgroup = \"a\"\nuse = \"eth0\"\nstrikt = true\n",
            "did you mean `strict`?",
        ),
    ] {
        let said = error(text);
        assert!(said.contains(expected), "{text}: {said}");
    }
}

#[test]
fn a_primary_domain_that_cannot_be_there_is_told() {
    let of = |primary: &str| {
        let text = format!(
            "[agent]\ndiscover = false\nprimary = [\"{primary}\"]\n[domain.lan]\n[group.g]\ndomains = [\"lan\"]\n"
        );
        parse(&[("steer.toml", &text)])
    };
    assert!(of("lan").is_ok());
    let unknown = of("lam").unwrap_err()[0].to_string();
    assert!(
        unknown.contains("unknown domain `lam` in `primary` of [agent]")
            && unknown.contains("`lan`"),
        "{unknown}"
    );
    let group = of("g").unwrap_err()[0].to_string();
    assert!(group.contains("contains the group `g`"), "{group}");
}

#[test]
fn broken_toml_is_named_with_its_place() {
    assert!(
        error("[agent\n").starts_with("steer.toml:1:"),
        "{}",
        error("[agent\n")
    );
    let twice = errors("[policy.a]\nuse = \"b\"\nuse = \"c\"\nmatch.cgroup = \"x\"\n");
    assert!(
        twice[0].starts_with("steer.toml:3:1: duplicate key"),
        "{twice:?}"
    );
}

#[test]
fn limits_are_said() {
    let long = "x".repeat(300);
    let message = error(&format!("[domain.{long}]\n"));
    assert!(
        message.starts_with("steer.toml:1:9: the name `xxx"),
        "{message}"
    );
    assert!(
        message.contains("300 characters, more than the limit of 64"),
        "{message}"
    );
    let large = "#".repeat(MAX_FILE_BYTES + 1);
    assert_eq!(
        error(&large),
        "steer.toml:1:1: the file has 1048577 bytes, more than the limit of 1048576"
    );
    assert_eq!(
        error("agent.mark-mask = \"0x1ff\""),
        "steer.toml:1:19: a mark mask has at most eight bits (255 domains)"
    );
    assert_eq!(
        error("domain.x.cost = 1_000_001"),
        "steer.toml:1:17: `cost` must be from 0 to 1000000"
    );
    assert_eq!(
        error("agent.rule-base = 32766\nagent.discover = true"),
        "steer.toml:1:19: `rule-base` must be from 1 to 32165"
    );
}

#[test]
fn an_unknown_domain_is_an_error_unless_an_interface_of_the_name_can_come() {
    let closed = |body: &str| format!("agent.discover = false\n{}", with_policy(body));
    assert_eq!(
        error(&closed("match.cgroup = \"a\"\nuse = [\"wiffi\"]")),
        "steer.toml:7:8: unknown domain `wiffi` in [policy.web]; did you mean `wifi`?"
    );
    let alias = closed("match.cgroup = \"a\"\nuse = [\"wlan0\", \"internet\"]");
    assert_eq!(
        errors(&alias),
        [""; 0],
        "the interface of a domain is an alias of it"
    );

    let open = parse(&[("f", &with_policy("match.cgroup = \"a\"\nuse = [\"eth7\"]"))]).unwrap();
    let unknown: Vec<_> = open
        .unknown(&Network::default())
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        unknown,
        [
            "f:6:8: unknown domain `eth7` in [policy.web]; define it by [domain.x] or [group.x], or \
          name an interface"
        ]
    );
    let long = with_policy("match.cgroup = \"a\"\nuse = [\"longer-than-an-interface\"]");
    assert!(
        error(&long).contains("unknown domain"),
        "no interface can have that name"
    );
}

#[test]
fn an_interface_that_does_not_exist_is_no_mistake() {
    let text = with_policy("match.cgroup = \"a\"\nuse = [\"wifi\"]");
    let config = parse(&[("steer.toml", &text)]).unwrap();
    assert_eq!(config.unknown(&Network::default()).count(), 0);
}

#[test]
fn two_policies_of_one_priority_on_one_cgroup_are_a_mistake_whatever_their_files() {
    let a = "[policy.a]\nmatch.cgroup = \"x\"\nuse = \"eth0\"\n";
    let b = "[policy.b]\nmatch.cgroup = \"x\"\nuse = \"eth0\"\n";
    let config = parse(&[("one", a), ("two", b)]).unwrap();
    assert_eq!(
        config.quarantined["b"].mistakes[0].to_string(),
        "two:2:16: [policy.b] and [policy.a] (one:2) have the same origin and priority on one \
         cgroup; give one of them another `priority`"
    );
    let apart = format!("{b}priority = 1\n");
    let config = parse(&[("one", a), ("two", &apart)]).unwrap();
    assert_eq!(config.mistakes().count(), 0);
}

#[test]
fn later_files_replace_policies_whole_and_merge_the_agent() {
    let one = "[agent]\nrule-base = 5000\ntable-base = 500\n[policy.a]\nmatch.cgroup = \"x\"\n\
               use = \"eth0\"\npriority = 5\n";
    let two = "[agent]\nrule-base = 6000\n[policy.a]\nmatch.unit = \"y.service\"\nuse = \"eth1\"\n";
    let parsed = parse_with_places(&[("one", one), ("two", two)]).unwrap();
    let config = parsed.config;
    assert_eq!(
        (config.agent.rule_base, config.agent.table_base),
        (6000, 500)
    );
    let policy = &config.policies["a"];
    assert_eq!((policy.matches.len(), policy.priority), (1, 0));
    let [replaced] = &parsed.places.replaced[..] else {
        panic!("{:?}", parsed.places.replaced)
    };
    assert_eq!(replaced.section, "[policy.a]");
    assert_eq!(
        (replaced.later.to_string(), replaced.earlier.to_string()),
        ("two:3".to_owned(), "one:4".to_owned())
    );
}

#[test]
fn groups_are_made_of_domains() {
    let text = "group.a.domains = \"eth0\"\ngroup.b.domains = [\"a\"]\n";
    assert_eq!(
        error(text),
        "steer.toml:2:20: [group.b] contains the group `a`; a group is made of domains"
    );
    let both = "domain.a.match.interface = \"eth0\"\ngroup.a.domains = \"eth0\"\n";
    assert_eq!(
        error(both),
        "steer.toml:2:7: `a` is both a group and the domain in steer.toml:1; give one of them \
         another name"
    );
}

#[test]
fn a_policy_on_a_cgroup_id_cannot_be_saved() {
    let id = Match::CgroupId(CgroupId(7));
    let policy = Policy::new(
        Name::new("p").unwrap(),
        Origin::User,
        vec![id],
        Vec::new(),
        true,
    );
    assert!(matches!(
        policy_to_toml(&policy),
        Err(NotSavable::Id { .. })
    ));
}

fn names() -> impl Strategy<Value = Name> {
    "[!#-&(-+.0-\\[\\]-~][!#-&(-+.0-\\[\\]-~-]{0,14}".prop_filter_map("the default", |text| {
        Name::new(&text).ok().filter(|n| n.as_str() != "default")
    })
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

prop_compose! {
    fn policies()(
        name in names(),
        mut matches in proptest::collection::vec(matches(), 1..4),
        use_ in proptest::collection::vec("[a-z][a-z0-9.:@_-]{0,10}", 0..4),
        strict: bool,
        otherwise in prop_oneof![Just(Otherwise::Block), Just(Otherwise::Pass), Just(Otherwise::Next)],
        steer: bool,
        priority: i32,
    ) -> Policy {
        // Files tell cgroups and units apart by key, not by order.
        matches.sort_by_key(|wanted| matches!(wanted, Match::Unit(_)));
        let use_ = use_.iter().map(|text| Name::new(text).unwrap()).collect();
        Policy {
            otherwise: if strict { Otherwise::Block } else { otherwise },
            local_networks: if steer { LocalNetworks::Steer } else { LocalNetworks::Pass },
            priority,
            ..Policy::new(name, Origin::Admin, matches, use_, strict)
        }
    }
}

proptest! {
    #[test]
    fn a_saved_policy_is_read_back_the_same(policy in policies()) {
        let text = policy_to_toml(&policy).unwrap();
        // What may follow a name in `use` are interfaces and domains; here all of them are domains.
        let mut all = text.clone();
        for name in std::collections::BTreeSet::from_iter(&policy.use_) {
            all += &format!("[domain.\"{name}\"]\n");
        }
        let config = parse(&[("50-p.toml", &all)]).map_err(|e| TestCaseError::fail(format!("{}\n{text}", e[0])))?;
        prop_assert_eq!(config.policies.get(&policy.name), Some(&policy), "{}", text);
    }

    #[test]
    fn errors_stand_inside_the_text_whatever_it_is(text in "\\PC{0,200}") {
        check_spans(&text)?;
    }

    #[test]
    fn errors_stand_inside_the_text_of_files_that_are_nearly_right(
        lines in proptest::collection::vec(prop_oneof![
            Just("[agent]"), Just("[policy.web]"), Just("[domain.ä]"), Just("[domain.wifi]"),
            Just("[group.g]"), Just("match.cgroup = \"a/b\""), Just("match = 3"), Just("match = {}"),
            Just("use = [\"ü\", \"wifi\"]"), Just("use = [\"nowhere-at-all-to-go\"]"),
            Just("domains = [\"g\"]"), Just("strict = 1"), Just("[policy]"), Just("policy = 1"),
            Just("[[policy.web]]"), Just("mark-mask = -1"), Just("mark-mask = 0xffff_ffff_ffff"),
            Just("discover = [3]"), Just("rule-base = 1979-05-27"), Just("use = \"\"\"\n"),
            Just("sources = [\"300.0.0.0\", \"::/129\"]"), Just("x.y.z = 'ß'"), Just("["),
        ], 0..12)
    ) {
        check_spans(&lines.join("\n"))?;
    }
}

fn check_spans(text: &str) -> Result<(), TestCaseError> {
    let errors = match parse(&[("steer.toml", text)]) {
        Ok(config) => config.mistakes().cloned().collect(),
        Err(errors) => {
            prop_assert!(!errors.is_empty());
            errors
        }
    };
    for error in errors {
        let place = &error.place;
        prop_assert!(text.get(place.span()).is_some(), "{error:?}");
        let before = &text[..place.start];
        let line = before.rsplit('\n').next().unwrap_or_default();
        prop_assert_eq!(place.line, before.matches('\n').count() + 1);
        prop_assert_eq!(place.column, line.chars().count() + 1);
        prop_assert!(!error.message.is_empty());
    }
    Ok(())
}
