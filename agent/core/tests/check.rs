//! What is worth knowing of files in which nothing is wrong.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use proptest::prelude::*;
use steer_core::check::{Facts, Kind, check};
use steer_core::config::parse_with_places;
use steer_core::engine::Engine;
use steer_core::ids::CgroupId;
use steer_core::state::State;
use support::{config, made, two_uplinks};

/// Line, word and sentence of each finding.
fn found_with(files: &[(&str, &str)], facts: &Facts) -> Vec<String> {
    let parsed = parse_with_places(files).unwrap();
    assert_eq!(parsed.config.mistakes().count(), 0);
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    let report = check(&parsed, &names, facts);
    assert!(report.complete);
    let findings = report.findings.iter();
    findings
        .map(|finding| format!("{}: {}: {}", finding.place, finding.kind, finding.message))
        .collect()
}

fn found(text: &str) -> Vec<String> {
    found_with(&[("f", text)], &Facts::default())
}

fn policy(name: &str, cgroup: &str, more: &str) -> String {
    format!("[policy.{name}]\nmatch.cgroup = \"{cgroup}\"\nuse = \"eth0\"\n{more}\n")
}

fn two(one: (&str, &str), other: (&str, &str)) -> Vec<String> {
    found(&[policy("a", one.0, one.1), policy("b", other.0, other.1)].concat())
}

#[test]
fn files_that_keep_out_of_each_others_way_have_no_findings() {
    assert_eq!(two(("x/a", ""), ("x/b", "")), [""; 0]);
    assert_eq!(two(("x/*.scope", ""), ("x/*.slice", "")), [""; 0]);
}

#[test]
fn a_section_that_a_later_file_replaces_is_told_with_both_places() {
    let (one, two) = (policy("a", "x", ""), policy("a", "y", ""));
    assert_eq!(
        found_with(&[("one", &one), ("two", &two)], &Facts::default()),
        ["two:1: replaced: [policy.a] replaces the one in one:1"]
    );
}

#[test]
fn a_policy_that_never_holds_is_shadowed() {
    for (one, other, line, says) in [
        (
            ("x", ""),
            ("x", "priority = 5"),
            1,
            "its priority is higher (5 over 0)",
        ),
        (
            ("x/*", ""),
            ("x/**", "priority = 5"),
            1,
            "its priority is higher (5 over 0)",
        ),
        (
            ("**", "strict = true"),
            ("x/*.scope", ""),
            5,
            "it is strict",
        ),
        (
            ("x/*.scope", "priority = 1\nstrict = true"),
            ("x/a.scope", ""),
            6,
            "its priority",
        ),
    ] {
        let found = two(one, other);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with(&format!("f:{line}: shadowed: policy `")),
            "{found:?}"
        );
        assert!(found[0].contains(says), "{found:?}");
    }
}

#[test]
fn a_policy_that_asks_the_next_one_shadows_none() {
    let found = two(("x", ""), ("x", "priority = 5\notherwise = \"next\""));
    assert!(found[0].contains("overlapping"), "{found:?}");
}

#[test]
fn one_that_holds_somewhere_is_not_shadowed() {
    let other = "[policy.b]\nmatch.cgroup = [\"x/*\", \"y\"]\nuse = \"eth0\"\n";
    let found = found(&[policy("a", "x/*", "priority = 1"), other.to_owned()].concat());
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("overlapping"), "{found:?}");
}

#[test]
fn overlaps_say_who_holds_and_why() {
    for (one, other, says) in [
        (
            ("x/*.scope", "priority = 2"),
            ("x/web*", "priority = 7"),
            "f:2: overlapping: policies `a` and `b` (f:6) can match one cgroup, x/web.scope for \
             instance: `b` holds there, since its priority is higher (7 over 2)",
        ),
        (
            ("x/*", ""),
            ("x/a", ""),
            "f:2: overlapping: policies `a` and `b` (f:6) can match one cgroup, x/a for instance: \
             `b` holds there, since it names the cgroup by its path, and the other by a pattern or unit",
        ),
        (
            ("x/a*", ""),
            ("x/*b", "strict = true"),
            "f:2: overlapping: policies `a` and `b` (f:6) can match one cgroup, x/ab for instance: \
             `b` holds there, since it is strict, and nothing else decides between them",
        ),
        (
            ("x/a*", ""),
            ("x/*b", ""),
            "f:6: overlapping: policies `b` and `a` (f:2) can match one cgroup, x/ab for instance: \
             `a` holds there, since its name comes first, and nothing else decides between them",
        ),
        (
            ("x", ""),
            ("x/**/y", ""),
            "f:6: overlapping: policy `b` can match below what `a` (f:2) matches, x/y for instance: \
             `b` holds there, since its cgroup is deeper",
        ),
    ] {
        assert_eq!(two(one, other), [says]);
    }
}

#[test]
fn what_nothing_uses_and_what_comes_too_late_is_unreachable() {
    let text = "[domain.wifi]\nmatch.interface = \"wlan0\"\n[domain.spare]\nmatch.interface = \"usb0\"\n\
                [group.all]\ndomains = [\"wifi\", \"eth0\", \"wlan0\"]\n[group.none]\ndomains = \"wifi\"\n\
                [policy.a]\nmatch.cgroup = \"x\"\nuse = [\"all\", \"wlan0\", \"lte0\", \"eth0\"]\n";
    assert_eq!(
        found(text),
        [
            "f:3: unreachable: nothing in the files uses the domain `spare`",
            "f:6: unreachable: `wlan0` is never reached here in [group.all]: what it stands for comes \
             before, as `wifi`",
            "f:7: unreachable: nothing in the files uses the group `none`",
            "f:11: unreachable: `wlan0` is never reached here in [policy.a]: what it stands for comes \
             before, as `all`",
            "f:11: unreachable: `eth0` is never reached here in [policy.a]: what it stands for comes \
             before, as `all`",
        ]
    );
}

#[test]
fn a_default_behind_a_policy_that_has_the_last_word_everywhere_is_unreachable() {
    let facts = Facts {
        managed_root: Some(Ok("user.slice".to_owned())),
        ..Facts::default()
    };
    let default = "[policy.default]\nuse = \"eth0\"\n";
    let all = |more: &str| [policy("a", "user.slice", more).as_str(), default].concat();
    let text = all("");
    let found = found_with(&[("f", &text)], &facts);
    assert_eq!(
        found,
        [
            "f:5: unreachable: [policy.default] can never be asked: `a` (f:1) matches all that is \
             managed, and says what else to do"
        ]
    );
    let text = all("otherwise = \"next\"");
    assert_eq!(found_with(&[("f", &text)], &facts), [""; 0]);
    assert_eq!(found_with(&[("f", &all(""))], &Facts::default()), [""; 0]);
}

#[test]
fn what_this_host_cannot_do_is_unenforceable() {
    let interfaces = || Some(["lo", "eth0"].map(str::to_owned).into());
    let late = Facts {
        interfaces: interfaces(),
        ..Facts::default()
    };
    let text = "[policy.a]\nmatch.cgroup = \"x\"\nuse = [\"eth0\", \"eth9\"]\n";
    assert_eq!(
        found_with(&[("f", text)], &late),
        [
            "f:3: unenforceable: unknown domain `eth9` in [policy.a]: no interface bears this name now"
        ]
    );
    let outside = Facts {
        managed_root: Some(Ok("user.slice/user-1.slice".to_owned())),
        ..Facts::default()
    };
    for (path, inside) in [
        ("user.slice", true),
        ("user.slice/user-1.slice/x/y", true),
        ("user.slice/*/**", true),
        ("**/z", true),
        ("user.slice/user-2.slice", false),
        ("system.slice/**", false),
    ] {
        let text = policy("a", path, "");
        let found = found_with(&[("f", &text)], &outside);
        assert_eq!(found.is_empty(), inside, "{path}: {found:?}");
        assert!(inside || found[0].starts_with("f:2: unenforceable: policy `a` matches nothing"));
    }
    let mounted = Facts {
        mount: Some("sys/fs/cgroup/unified".to_owned()),
        ..Facts::default()
    };
    let text = policy("a", "/sys/fs/cgroup/unified/app.slice/x", "");
    let found_there = found_with(&[("f", &text)], &mounted);
    assert!(
        found_there[0].contains("without the mount point"),
        "{found_there:?}"
    );
    assert_eq!(
        found_with(&[("f", &policy("a", "app.slice/x", ""))], &mounted),
        [""; 0]
    );
    let narrow = format!("[agent]\nmark-mask = 1\n{}", policy("a", "x", ""));
    assert_eq!(found(&narrow), [""; 0]);
    let more = narrow.replace("\"eth0\"", "[\"eth0\", \"eth1\"]");
    assert_eq!(
        found(&more),
        ["f:5: unenforceable: policies use more domains than the 1 that `mark-mask` has marks for"]
    );
    let long = policy("a", &"x".repeat(256), "");
    assert!(found(&long)[0].contains("no cgroup has a name of more than 255 bytes"));
}

#[test]
fn a_requirement_that_no_domain_of_the_policy_can_meet_is_told() {
    let told = |agent: &str, domains: &str, more: &str| {
        let text = format!("{agent}{domains}{}", policy("a", "x", more));
        let found = found(&text);
        let words = found.first().cloned().unwrap_or_default();
        words.split_once("can meet ").map(|(_, key)| key.to_owned())
    };
    let profile = "require.profile = \"work\"\n";
    let work = "[domain.eth0]\nprofile = \"work\"\n";
    let other = "[domain.eth0]\nprofile = \"home\"\n";
    assert_eq!(
        told("", other, profile).as_deref(),
        Some("`require.profile`")
    );
    assert_eq!(told("", work, profile), None);
    let latency = "require.max-latency = \"50ms\"\n";
    let none = "[agent]\ncheck = \"none\"\n";
    let own = "[domain.eth0]\ncheck = { icmp = \"gateway\" }\n";
    assert_eq!(
        told(none, "", latency).as_deref(),
        Some("`require.max-latency`")
    );
    assert_eq!(told(none, own, latency), None);
    assert_eq!(told("", "", latency), None, "its gateway is asked");
    let loss = "require.max-loss = \"1%\"\n";
    assert_eq!(told(none, "", loss).as_deref(), Some("`require.max-loss`"));
}

#[test]
fn what_the_kernel_lacks_is_told_once() {
    let on = |kernel: Option<(u32, u32)>, btf: Option<bool>, more: &str| {
        let text = [policy("a", "x", more), policy("b", "y", more)].concat();
        let facts = Facts {
            kernel,
            btf,
            ..Facts::default()
        };
        found_with(&[("f", &text)], &facts)
    };
    assert!(on(Some((5, 15)), None, "")[0].contains("older than 6.1"));
    assert_eq!(on(Some((6, 12)), Some(true), ""), [""; 0]);
    let strict = on(Some((6, 12)), Some(true), "strict = true");
    assert_eq!(strict.len(), 1);
    assert!(
        strict[0].contains("6.18") && strict[0].contains("`a`"),
        "{strict:?}"
    );
    assert!(on(None, Some(false), "")[0].contains("BTF"));
}

#[test]
fn what_an_equal_one_displaces_casts_no_shadow() {
    // At a/a/c the first and the second are equal, so that the second does not apply there, and the first
    // asks the third.
    let of = |at: usize, path: &str, more: &str| {
        format!("[policy.p{at}]\nmatch.cgroup = \"{path}\"\nuse = \"wlan0\"\n{more}\n")
    };
    let text = of(0, "**", "priority = 2\notherwise = \"next\"")
        + &of(1, "*/*/c", "priority = 2")
        + &of(2, "a/a/c", "");
    assert!(
        found(&text)
            .iter()
            .all(|line| !line.contains(": shadowed: ")),
        "{:?}",
        found(&text)
    );
}

#[test]
fn a_strict_policy_that_asks_for_repair_is_told_that_it_drops() {
    let app =
        |more: &str| format!("[policy.app]\nmatch.cgroup = \"a\"\nuse = [\"eth0\"]\n{more}\n");
    let found_strict = found(&app("strict = true\nrepair = true"));
    assert!(
        found_strict.iter().any(|f| f.contains("`repair`")),
        "{found_strict:?}"
    );
    let found_repair = found(&app("repair = true"));
    assert!(
        !found_repair.iter().any(|f| f.contains("`repair`")),
        "{found_repair:?}"
    );
}

fn policies() -> impl Strategy<Value = String> {
    let level = prop_oneof![4 => "[abc]", 1 => Just("*".to_owned()), 1 => Just("**".to_owned())];
    let path = proptest::collection::vec(level, 1..4).prop_map(|levels| levels.join("/"));
    let says = (
        proptest::collection::vec(path, 1..3),
        0..3,
        any::<bool>(),
        any::<bool>(),
    );
    proptest::collection::vec(says, 2..5).prop_map(|policies| {
        let policies = policies.into_iter().enumerate();
        let texts = policies.map(|(at, (paths, priority, strict, next))| {
            let next = if next && !strict { "next" } else { "block" };
            format!(
                "[policy.p{at}]\nmatch.cgroup = {paths:?}\nuse = \"wlan0\"\npriority = {priority}\n\
                 strict = {strict}\notherwise = \"{next}\"\n"
            )
        });
        texts.collect()
    })
}

/// All cgroups to the depth of four with names of two letters.
fn engine(text: &str) -> Engine {
    let mut state = State::new(CgroupId(1));
    state.network = two_uplinks();
    state.config = config(text);
    let mut engine = Engine::new(state);
    let mut parents = vec![1];
    let mut next = 2;
    for _ in 0..4 {
        let mut made_here = Vec::new();
        for parent in parents {
            for name in ["a", "b", "c"] {
                engine.apply(made(next, parent, name)).unwrap();
                made_here.push(next);
                next += 1;
            }
        }
        parents = made_here;
    }
    engine.settle();
    engine
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_called_shadowed_is_in_force_nowhere(text in policies()) {
        let parsed = parse_with_places(&[("f", &text)]).unwrap();
        let report = check(&parsed, &["f"], &Facts::default());
        let engine = engine(&text);
        for finding in report.findings.iter().filter(|f| f.kind == Kind::Shadowed) {
            let (name, _) = parsed.places.policies.iter()
                .find(|(_, places)| places.name == finding.place).unwrap();
            for id in 1..122 {
                let effective = engine.effective(CgroupId(id));
                let chain = effective.map(|e| e.chain).unwrap_or_default();
                prop_assert!(!chain.contains(name), "{name} at {id}: {chain:?}\n{text}");
            }
        }
    }
}

/// A policy with these rules, each in a line of its own.
fn with_rules(rules: &[&str]) -> String {
    let lines = rules.iter().map(|keys| format!("rule.{keys}"));
    let rules: Vec<String> = lines
        .map(|keys| {
            keys.replace("rule.", "[[policy.a.rule]]\n")
                .replace("; ", "\n")
        })
        .collect();
    format!("{}{}\n", policy("a", "x", ""), rules.join("\n"))
}

#[test]
fn a_rule_that_an_earlier_one_leaves_nothing_is_told_with_its_line() {
    let rules = [
        "destination = [\"10.0.0.0/8\", \"192.0.2.0/24\"]; ports = \"1-1000\"; use = \"eth0\"",
        "destination = \"10.0.0.0/7\"; ports = 443; use = \"eth0\"",
        "destination = \"10.1.0.0/16\"; ports = [80, \"400-500\"]; protocol = \"tcp\"; use = \"eth0\"",
    ];
    assert_eq!(
        found(&with_rules(&rules)),
        [
            "f:13: unreachable: rule 3 of policy `a` never applies: rule 1 fits everything that it fits"
        ]
    );
    let [first, second, third] = rules;
    assert_eq!(found(&with_rules(&[third, second, first])), [""; 0]);
}

#[test]
fn a_share_among_single_domains_is_told() {
    let groups = "[group.one]\ndomains = \"eth0\"\n[group.two]\ndomains = [\"eth0\", \"eth1\"]\n";
    let shared = |names: &str| {
        format!("{groups}[policy.a]\nmatch.cgroup = \"x\"\nuse = [{names}]\nshare = \"flow\"\n")
    };
    let lonely = |text: &str| -> Vec<String> {
        let found = found(text).into_iter();
        found.filter(|finding| finding.contains("share")).collect()
    };
    assert_eq!(
        lonely(&shared("\"one\", \"eth1\"")),
        ["f:8: unreachable: policy `a` has nothing to share: each name in its `use` is one domain"]
    );
    assert_eq!(lonely(&shared("\"eth1\", \"two\"")), [""; 0]);
    let by_rule = format!(
        "{}[[policy.a.rule]]\nports = 1\nuse = \"two\"\n",
        shared("\"one\"")
    );
    assert_eq!(lonely(&by_rule), [""; 0]);
}

#[test]
fn what_only_a_rule_names_is_used() {
    let domain = "[domain.vpn]\nmatch.interface = \"wg0\"\n";
    let with = format!("{domain}{}", with_rules(&["ports = 1; use = \"vpn\""]));
    assert_eq!(found(&with), [""; 0]);
    assert_eq!(found(&format!("{domain}{}", with_rules(&[]))).len(), 1);
}
