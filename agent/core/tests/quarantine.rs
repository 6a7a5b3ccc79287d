//! A bad policy in a good file: the rest is taken, and a strict one stays closed.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use steer_core::config::{Config, parse};
use steer_core::engine::{Engine, Rejected, Warning};
use steer_core::ids::CgroupId;
use steer_core::policy::Origin;
use steer_core::select::Verdict;
use steer_core::state::Event;
use support::{apply, engine_with, made, name, policy};

/// A good policy on `c`, and a bad one on `a`.
fn beside_a_good_one(bad: &str) -> String {
    format!(
        "[policy.good]\nmatch.cgroup = \"c\"\nuse = \"wlan0\"\n[policy.bad]\nmatch.cgroup = \"a\"\n{bad}"
    )
}

fn quarantined(text: &str) -> Vec<String> {
    let config = parse(&[("f", text)]).unwrap();
    let names = config.quarantined.keys();
    names.map(ToString::to_string).collect()
}

fn verdict(engine: &Engine, cgroup: u64) -> Option<Verdict> {
    let effective = engine.effective(CgroupId(cgroup))?;
    Some(effective.decision.verdict)
}

#[test]
fn a_policy_that_is_bad_in_itself_does_not_make_the_file_bad() {
    for bad in [
        "use = \"wlan0\"\nstrict = true\notherwise = \"pass\"",
        "use = \"a-name-that-no-interface-has\"",
        "use = []",
        "use = \"wlan0\"\nlunch = true",
        "use = [\"wlan0\", 3]",
        "use = \"wlan0\"\notherwise = \"perhaps\"",
        "use = \"wlan0\"\nstrict = \"yes\"",
        "use = \"wlan0\"\npriority = 3_000_000_000",
        "use = \"wlan0\"\nlocal-networks = true",
        "priority = 1",
    ] {
        let text = beside_a_good_one(bad);
        assert_eq!(quarantined(&text), ["bad"], "{bad}");
        let engine = engine_with(&text);
        assert_eq!(verdict(&engine, 20), Some(Verdict::Steer(name("wlan0"))));
        let warned = engine.warnings();
        assert!(
            matches!(&warned[..], [Warning::Quarantined { name, .. }] if name.as_str() == "bad"),
            "{bad}: {warned:?}"
        );
    }
}

#[test]
fn whatever_makes_the_meaning_of_other_things_uncertain_makes_the_file_bad() {
    let good = "[policy.good]\nmatch.cgroup = \"c\"\nuse = \"wlan0\"\n";
    for bad in [
        "[policy.bad]\nuse = \"wlan0\"",
        "[policy.bad]\nmatch.cgroup = \"a/../b\"\nuse = \"wlan0\"",
        "[policy.bad]\nmatch.cgruop = \"a\"\nuse = \"wlan0\"",
        "[policy.bad]\nmatch = {}\nuse = \"wlan0\"",
        "[policy.\"b d\"]\nmatch.cgroup = \"a\"\nuse = \"wlan0\"",
        "[policy]\nbad = 1",
        "[[policy.bad]]\nmatch.cgroup = \"a\"",
        "[policies.bad]\nmatch.cgroup = \"a\"\nuse = \"wlan0\"",
        "[agent]\ndiscover = 1",
        "[domain.x]\ncolour = 1",
        "[group.x]\ndomains = []",
        "[group.x]\ndomains = \"a-name-that-no-interface-has\"",
        "[policy.bad",
    ] {
        let text = format!("{good}{bad}\n");
        assert!(parse(&[("f", &text)]).is_err(), "taken: {bad}");
    }
}

#[test]
fn a_bad_file_tells_of_bad_policies_too_in_the_order_of_the_text() {
    let text = format!("{}\n[agent]\ncolour = 1\n", beside_a_good_one("use = []"));
    let lines: Vec<usize> = parse(&[("f", &text)])
        .unwrap_err()
        .iter()
        .map(|error| error.place.line)
        .collect();
    assert_eq!(lines, [6, 8]);
}

#[test]
fn what_a_strict_one_matches_is_blocked_and_what_another_matches_is_left() {
    let strict = engine_with(&beside_a_good_one(
        "use = \"wlan0\"\nstrict = true\notherwise = \"pass\"",
    ));
    assert_eq!(verdict(&strict, 10), Some(Verdict::Block));
    assert_eq!(verdict(&strict, 11), Some(Verdict::Block), "below it, too");
    let lax = engine_with(&beside_a_good_one("use = \"wlan0\"\notherwise = \"maybe\""));
    assert_eq!(verdict(&lax, 10), None);
}

#[test]
fn where_it_cannot_be_told_whether_it_is_strict_it_is_closed() {
    for unclear in ["strict = 1", "stirct = true", "Strict = true"] {
        let engine = engine_with(&beside_a_good_one(&format!("use = \"wlan0\"\n{unclear}")));
        assert_eq!(verdict(&engine, 10), Some(Verdict::Block), "{unclear}");
    }
    let engine = engine_with(&beside_a_good_one("use = \"wlan0\"\nstrict = false\nx = 1"));
    assert_eq!(verdict(&engine, 10), None);
}

#[test]
fn of_two_policies_of_one_priority_on_one_cgroup_a_strict_one_in_quarantine_holds() {
    for first_strict in [false, true] {
        let text = format!(
            "[policy.a]\nmatch.cgroup = \"a\"\nuse = \"wlan0\"\nstrict = {first_strict}\n\
             [policy.b]\nmatch.cgroup = [\"a\", \"c\"]\nuse = \"lte0\"\nstrict = true\n"
        );
        assert_eq!(quarantined(&text), ["b"]);
        let engine = engine_with(&text);
        assert_eq!(verdict(&engine, 10), Some(Verdict::Block));
        assert_eq!(verdict(&engine, 20), Some(Verdict::Block));
    }
}

#[test]
fn a_priority_that_cannot_be_read_is_the_highest() {
    let text = "[policy.a]\nmatch.cgroup = \"a\"\nuse = \"wlan0\"\npriority = 7\n\
                [policy.b]\nmatch.cgroup = \"a\"\nstrict = true\npriority = \"high\"\n";
    assert_eq!(verdict(&engine_with(text), 10), Some(Verdict::Block));
}

#[test]
fn a_later_file_that_replaces_it_mends_it() {
    let bad = beside_a_good_one("use = []");
    let better = "[policy.bad]\nmatch.cgroup = \"a\"\nuse = \"lte0\"\n";
    let config = parse(&[("f", &bad), ("g", better)]).unwrap();
    assert_eq!(config.mistakes().count(), 0);
    assert!(config.policies.contains_key("bad"));
}

#[test]
fn its_name_stays_the_files() {
    let mut engine = engine_with(&beside_a_good_one("use = []"));
    let set = policy("bad", "a", &["wlan0"]);
    let refused = engine.apply(Event::SetPolicy(set));
    assert_eq!(refused, Err(Rejected::InFile(name("bad"))));
    let refused = engine.apply(Event::UnsetPolicy(name("bad")));
    assert_eq!(refused, Err(Rejected::InFile(name("bad"))));
}

#[test]
fn a_policy_set_by_command_is_not_opened_by_a_bad_one_of_its_name_in_a_file() {
    let mut engine = engine_with("");
    let set = support::strict(policy("bad", "a", &["wlan0"]));
    apply(&mut engine, Event::SetPolicy(set));
    let lax = config_of("use = []");
    apply(&mut engine, Event::Config(Box::new(lax)));
    assert_eq!(verdict(&engine, 10), Some(Verdict::Steer(name("wlan0"))));
    assert_eq!(engine.state().policy("bad").unwrap().origin, Origin::User);
    let strict = config_of("use = []\nstrict = true");
    apply(&mut engine, Event::Config(Box::new(strict)));
    assert_eq!(verdict(&engine, 10), Some(Verdict::Block));
    assert_eq!(engine.state().policy("bad").unwrap().origin, Origin::Admin);
}

#[test]
fn a_cgroup_that_a_strict_one_names_is_closed_when_it_is_made() {
    let mut engine = engine_with("[policy.bad]\nmatch.cgroup = \"later\"\nstrict = true\nx = 1\n");
    apply(&mut engine, made(30, 1, "later"));
    assert_eq!(verdict(&engine, 30), Some(Verdict::Block));
}

#[test]
fn the_hosts_default_is_quarantined_too() {
    let open = engine_with("[policy.default]\nuse = \"wlan0\"\nx = 1\n");
    assert_eq!(verdict(&open, 20), None);
    let closed = engine_with("[policy.default]\nuse = \"wlan0\"\nstrict = true\nx = 1\n");
    assert_eq!(verdict(&closed, 20), Some(Verdict::Block));
}

fn config_of(bad: &str) -> Config {
    parse(&[("f", &beside_a_good_one(bad))]).unwrap()
}
