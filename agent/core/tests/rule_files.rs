//! Rules in files: what they may say, and what is said of their mistakes.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::fmt::Write as _;

use steer_core::config::{parse, policy_to_toml};
use steer_core::policy::{Otherwise, Policy};
use steer_core::rules::{Dscp, Ports, Protocol, Rule, Rules};
use support::name;

const HEAD: &str = "[policy.p]\nmatch.cgroup = \"a\"\nuse = \"wlan0\"\n";

fn policy(rules: &str) -> Policy {
    let config = parse(&[("f", &format!("{HEAD}{rules}"))]).unwrap();
    let mistakes: Vec<String> = config.mistakes().map(ToString::to_string).collect();
    assert!(mistakes.is_empty(), "{mistakes:?}");
    config.policies["p"].clone()
}

/// The words that the first mistake is about, and what it says.
fn mistake(text: &str) -> (String, String) {
    let config = parse(&[("f", text)]).unwrap();
    let mistake = config.mistakes().next().unwrap();
    let about = text[mistake.place.span()].to_owned();
    (about, mistake.message.clone())
}

fn in_rule(keys: &str) -> (String, String) {
    mistake(&format!("{HEAD}[[policy.p.rule]]\n{keys}\n"))
}

#[test]
fn a_rule_says_what_its_keys_say() {
    let policy = policy(
        "[[policy.p.rule]]\nsource = \"192.0.2.0/24\"\nsource-ports = 5000\ndestination = [\"10.0.0.0/8\", \
         \"2001:db8::1\"]\nports = [443, \"8000-8100\"]\nprotocol = [\"tcp\", 17]\ndscp = [\"EF\", 0]\nuse = \
         [\"lte0\", \"wlan0\"]\n[[policy.p.rule]]\nports = 0x1bb\notherwise = \"next\"\n",
    );
    let ports = |first, last| Ports::new(first, last).unwrap();
    let net = |text: &str| text.parse().unwrap();
    let first = Rule {
        source: vec![net("192.0.2.0/24")],
        source_ports: vec![ports(5000, 5000)],
        destination: vec![net("10.0.0.0/8"), net("2001:db8::1/128")],
        ports: vec![ports(443, 443), ports(8000, 8100)],
        protocol: vec![Protocol(6), Protocol(17)],
        dscp: vec![Dscp::new(46).unwrap(), Dscp::new(0).unwrap()],
        use_: vec![name("lte0"), name("wlan0")],
        otherwise: None,
    };
    let second = Rule {
        ports: vec![ports(443, 443)],
        otherwise: Some(Otherwise::Next),
        ..Rule::default()
    };
    assert_eq!(policy.rules[..], [first, second]);
    let printed = policy_to_toml(&policy).unwrap();
    let again = parse(&[("f", &printed)]).unwrap();
    assert_eq!(again.policies["p"], policy, "{printed}");
}

#[test]
fn mistakes_are_told_at_the_very_value() {
    for (keys, about, says) in [
        (
            "use = \"lte0\"\nports = [443, \"9-1\"]",
            "\"9-1\"",
            "ends before it begins",
        ),
        (
            "use = \"lte0\"\nports = 65536",
            "65536",
            "ports are 1 to 65535",
        ),
        (
            "use = \"lte0\"\nports = true",
            "true",
            "must be a list of strings and numbers",
        ),
        (
            "use = \"lte0\"\nports = [1.5]",
            "1.5",
            "must be a string or a number",
        ),
        ("use = \"lte0\"\nports = []", "[]", "is empty"),
        ("use = \"lte0\"\ndscp = [64]", "64", "0 to 63"),
        (
            "use = \"lte0\"\nprotocol = \"tpc\"",
            "\"tpc\"",
            "is no protocol",
        ),
        (
            "use = \"lte0\"\ndestination = \"10.1.0.0/8\"",
            "\"10.1.0.0/8\"",
            "write 10.0.0.0/8",
        ),
        (
            "use = \"lte0\"\ndestination = 10",
            "10",
            "must be a list of strings",
        ),
        (
            "use = \"lte0\"\nport = 443",
            "port",
            "unknown key `port` in rule 1 of [policy.p]",
        ),
        (
            "use = \"lte0\"\nprotocol = \"icmp\"\nports = 1",
            "\"icmp\"",
            "rule 1 of [policy.p] has ports",
        ),
        (
            "use = \"lte0\"\notherwise = \"perhaps\"",
            "\"perhaps\"",
            "must be `block`, `pass` or `next`",
        ),
        (
            "use = \"a-name-that-no-interface-has\"",
            "\"a-name-that-no-interface-has\"",
            "unknown domain",
        ),
    ] {
        let (at, message) = in_rule(keys);
        assert_eq!(at, about, "{keys}");
        assert!(message.contains(says), "{keys}: {message}");
    }
}

#[test]
fn a_rule_that_does_nothing_is_told_with_its_number() {
    let text = format!("{HEAD}[[policy.p.rule]]\nuse = \"lte0\"\n[[policy.p.rule]]\nports = 1\n");
    let (at, message) = mistake(&text);
    assert_eq!(at.lines().next(), Some("[[policy.p.rule]]"));
    assert!(
        message.contains("rule 2 of [policy.p] names no domain"),
        "{message}"
    );
    let line = parse(&[("f", &text)]).unwrap();
    assert_eq!(line.mistakes().next().unwrap().place.line, 6);
}

#[test]
fn the_rules_of_a_strict_policy_only_block() {
    for (otherwise, good) in [("block", true), ("pass", false), ("next", false)] {
        let text = format!(
            "{HEAD}strict = true\n[[policy.p.rule]]\nuse = \"lte0\"\notherwise = \"{otherwise}\"\n"
        );
        let config = parse(&[("f", &text)]).unwrap();
        assert_eq!(config.mistakes().count() == 0, good, "{otherwise}");
        if !good {
            let (at, message) = mistake(&text);
            assert_eq!(at, format!("\"{otherwise}\""));
            assert!(message.contains("is of a strict policy"), "{message}");
            // What it matches is blocked, by rules too.
            let stands = &config.policies["p"];
            assert!(stands.is_closed() && stands.rules.is_none());
        }
    }
}

#[test]
fn what_is_too_much_is_told_where_it_begins() {
    let mut text = HEAD.to_owned();
    for at in 0..=Rules::MAX {
        let _ = writeln!(
            text,
            "[[policy.p.rule]]\nports = {}\notherwise = \"next\"",
            at % 60_000 + 1
        );
    }
    let (_, message) = mistake(&text);
    assert_eq!(
        message,
        "[policy.p] has 10001 rules, more than the limit of 10000"
    );

    let many = |count: usize| vec!["1"; count].join(",");
    let (at, message) = in_rule(&format!("use = \"lte0\"\nports = [{}]", many(10_001)));
    assert!(at.starts_with("[1,1"));
    assert!(message.contains("10001 items in `ports`"), "{message}");

    let mut text = HEAD.to_owned();
    for _ in 0..7 {
        let _ = writeln!(
            text,
            "[[policy.p.rule]]\nuse = \"lte0\"\nports = [{}]",
            many(9_999)
        );
    }
    let (_, message) = mistake(&text);
    assert_eq!(
        message,
        "the lists of the rules of [policy.p] have more than 65536 items"
    );
}

#[test]
fn a_policy_may_not_leave_out_what_becomes_of_the_rest() {
    let text = "[policy.p]\nmatch.cgroup = \"a\"\n[[policy.p.rule]]\nuse = \"lte0\"\n";
    let (_, message) = mistake(text);
    assert!(message.contains("has no `use`"), "{message}");
    let text = text.replace("\"a\"\n", "\"a\"\notherwise = \"pass\"\n");
    assert_eq!(parse(&[("f", &text)]).unwrap().mistakes().count(), 0);
}

#[test]
fn rules_are_a_list_of_tables() {
    let (at, message) = mistake(&format!("{HEAD}rule = 3\n"));
    assert_eq!(at, "3");
    assert!(
        message.contains("`rule` of [policy.p] must be a list of tables"),
        "{message}"
    );
    let (at, _) = mistake(&format!("{HEAD}rule = [3]\n"));
    assert_eq!(at, "3");
    let inline = policy("rule = [{ ports = 1, otherwise = \"pass\" }]\n");
    assert_eq!(inline.rules.len(), 1);
}
