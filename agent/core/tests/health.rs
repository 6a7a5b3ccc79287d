//! What checks say of a domain over time: two thresholds, back-off, holds, and what networks leave behind.

mod support;

use std::time::Duration;

use proptest::prelude::*;
use steer_core::domains::DomainState;
use steer_core::health::{Health, hold};
use steer_core::ids::IfIndex;
use steer_core::network::NetworkChange;
use steer_core::probe::Outcome;
use steer_core::state::Event;
use support::host::{Host, failed};
use support::{ip, name};

const FILE: &str = "[agent]\ncheck = { icmp = \"192.0.2.99\", interval = \"8s\" }\n[policy.default]\nuse = \
                    [\"wlan0\", \"lte0\"]\n";

#[test]
fn a_domain_falls_after_so_many_failures_in_a_row_and_rises_after_so_many_successes() {
    let mut host = Host::new(FILE);
    assert_eq!(host.state("wlan0"), DomainState::Up);
    for domain in ["wlan0", "lte0"] {
        host.check(domain, Outcome::Passed);
        assert_eq!(host.state(domain), DomainState::Validated);
    }
    for _ in 0..2 {
        host.check("wlan0", failed());
        assert_eq!(host.chosen(), "wlan0");
    }
    // One success, and it counts anew.
    host.check("wlan0", Outcome::Passed);
    for _ in 0..2 {
        host.check("wlan0", failed());
    }
    assert_eq!(host.state("wlan0"), DomainState::Validated);
    host.check("wlan0", failed());
    assert_eq!(host.state("wlan0"), DomainState::Limited);
    assert_eq!(host.chosen(), "lte0");
    host.check("wlan0", Outcome::Passed);
    host.check("wlan0", failed());
    host.check("wlan0", Outcome::Passed);
    assert_eq!(host.state("wlan0"), DomainState::Limited);
    host.check("wlan0", Outcome::Passed);
    assert_eq!(host.state("wlan0"), DomainState::Validated);
    assert_eq!(host.chosen(), "wlan0");
}

#[test]
fn a_dead_path_is_given_up_within_three_intervals_however_the_failures_come() {
    for fall in 1..=20 {
        let mut host = Host::new(&FILE.replace("interval", &format!("fall = {fall}, interval")));
        host.check("wlan0", Outcome::Passed);
        host.check("lte0", Outcome::Passed);
        // It dies right after it passed, and each check waits for its time.
        let died = host.now;
        while host.state("wlan0") != DomainState::Limited {
            let probe = host.probe("wlan0").unwrap();
            let ended = probe.due.max(host.now) + probe.timeout;
            host.at(ended);
            host.report("wlan0", probe.epoch, failed());
        }
        let waited = host.now - died;
        assert!(waited < Duration::from_secs(24), "{fall}: {waited:?}");
        assert_eq!(host.chosen(), "lte0");
    }
}

#[test]
fn a_domain_that_fails_is_asked_less_and_less_often_but_every_minute() {
    let mut host = Host::new(FILE);
    host.check("wlan0", Outcome::Passed);
    for _ in 0..3 {
        host.check("wlan0", failed());
    }
    let mut before = Duration::ZERO;
    let mut longest = Duration::ZERO;
    for _ in 0..8 {
        let begun = host.now;
        host.check("wlan0", failed());
        let pause = host.now - begun;
        // An eighth more or less.
        assert!(pause * 4 >= before * 3, "{before:?}, then {pause:?}");
        before = pause;
        longest = longest.max(pause);
    }
    assert!(longest > Duration::from_secs(50) && longest <= Duration::from_secs(68));
    // Asked for, it is checked soon.
    host.apply(Event::Recheck(name("wlan0")));
    let due = host.probe("wlan0").unwrap().due;
    assert_eq!(
        due,
        host.now + Duration::from_secs(1),
        "not at once after another"
    );
    host.at(host.now + Duration::from_secs(5));
    host.apply(Event::Recheck(name("wlan0")));
    assert_eq!(host.probe("wlan0").unwrap().due, due);
}

#[test]
fn packets_that_do_not_come_back_have_the_domain_checked_at_once_and_one_failure_is_enough() {
    let mut host = Host::new(FILE);
    host.check("wlan0", Outcome::Passed);
    host.check("lte0", Outcome::Passed);
    host.apply(Event::Stalled(name("wlan0")));
    assert!(
        host.probe("wlan0").unwrap().due > host.now,
        "it passed just now"
    );
    host.at(host.now + Duration::from_secs(2));
    host.apply(Event::Stalled(name("wlan0")));
    assert_eq!(host.probe("wlan0").unwrap().due, host.now);
    assert_eq!(host.chosen(), "wlan0", "it is only a suspicion");
    host.check("wlan0", failed());
    assert_eq!(host.chosen(), "lte0");
}

#[test]
fn a_portal_is_never_chosen_by_itself_and_one_pass_short_of_rise_does_not_end_it() {
    let mut host = Host::new(FILE);
    let page = Some("http://login.example/".to_owned());
    host.check("wlan0", Outcome::Portal(page.clone()));
    assert_eq!(host.state("wlan0"), DomainState::Portal);
    let condition = host.engine.health().get(&name("wlan0")).unwrap();
    assert_eq!(condition.portal(), page.as_deref());
    assert_eq!(host.chosen(), "lte0");
    host.carrier(3, false);
    assert_eq!(host.chosen(), "none");
    host.check("wlan0", Outcome::Passed);
    assert_eq!(host.chosen(), "none");
    host.check("wlan0", Outcome::Passed);
    assert_eq!(host.chosen(), "wlan0");
}

#[test]
fn what_is_limited_is_chosen_if_nothing_is_better() {
    let mut host = Host::new(FILE);
    host.carrier(3, false);
    for _ in 0..3 {
        host.check("wlan0", failed());
    }
    assert_eq!(host.state("wlan0"), DomainState::Limited);
    assert_eq!(host.chosen(), "wlan0");
}

#[test]
fn a_verdict_about_another_attachment_counts_for_nothing() {
    let mut host = Host::new(FILE);
    let old = host.probe("wlan0").unwrap().epoch;
    host.carrier(2, false);
    assert_eq!(
        host.probe("wlan0"),
        None,
        "nothing is asked of what is down"
    );
    host.carrier(2, true);
    host.report("wlan0", old, Outcome::Portal(None));
    assert_eq!(host.state("wlan0"), DomainState::Up);
}

#[test]
fn a_domain_that_comes_waits_for_its_check_and_the_one_in_use_does_not() {
    let mut host = Host::new(FILE);
    assert_eq!(host.chosen(), "wlan0", "nothing is known of any");
    host.check("lte0", Outcome::Passed);
    assert_eq!(
        host.chosen(),
        "wlan0",
        "what is not known yet is no reason to leave"
    );
    host.carrier(2, false);
    assert_eq!(host.chosen(), "lte0");
    host.carrier(2, true);
    assert_eq!(host.chosen(), "lte0", "it is not proven yet");
    host.check("wlan0", Outcome::Passed);
    assert_eq!(host.chosen(), "wlan0");
}

#[test]
fn a_gateway_that_never_answered_says_nothing_by_its_silence() {
    let mut host = Host::new("[policy.default]\nuse = [\"wlan0\", \"lte0\"]\n");
    for _ in 0..5 {
        host.check("wlan0", failed());
    }
    assert_eq!(host.state("wlan0"), DomainState::Up);
    assert_eq!(host.chosen(), "wlan0");
    let loss = host.engine.health().get(&name("wlan0")).unwrap();
    assert_eq!(loss.measured().loss(), None);
    host.check("wlan0", Outcome::Passed);
    assert_eq!(
        host.state("wlan0"),
        DomainState::Up,
        "it proves no more than a gateway can"
    );
    for _ in 0..3 {
        host.check("wlan0", failed());
    }
    assert_eq!(host.state("wlan0"), DomainState::Limited);
    assert_eq!(host.chosen(), "lte0");
}

#[test]
fn without_a_check_nothing_is_asked() {
    let host = Host::new("agent.check = \"none\"\n[policy.default]\nuse = \"wlan0\"\n");
    assert_eq!(host.engine.probes(), []);
    let host = Host::new(FILE);
    assert_eq!(
        host.engine.probes().len(),
        2,
        "those that a policy can choose"
    );
}

#[test]
fn a_link_that_flaps_changes_little() {
    let file = "agent.check = \"none\"\n[policy.default]\nuse = [\"wlan0\", \"lte0\"]\n";
    let mut host = Host::new(file);
    let mut changes = 0;
    let mut chosen = host.chosen();
    let mut look = |host: &Host| {
        let now = host.chosen();
        changes += u32::from(now != chosen);
        chosen = now;
    };
    let half = Duration::from_millis(500);
    for _ in 0..60 {
        host.at(host.now + half);
        host.carrier(2, false);
        look(&host);
        host.at(host.now + half);
        host.carrier(2, true);
        look(&host);
    }
    assert_eq!(changes, 5, "each loss counts, and the third return waits");
    // Once it stays, it is taken again after the hold, by time alone.
    assert_eq!(host.chosen(), "lte0");
    let due = host.engine.deadline().unwrap();
    assert!(due > host.now && due <= host.now + Duration::from_secs(60));
    host.at(due);
    assert_eq!(host.chosen(), "wlan0");
}

#[test]
fn the_hold_grows_to_a_minute_and_not_beyond() {
    let seconds: Vec<u64> = [0, 2, 3, 4, 5, 8, 9, 10, 1_000_000]
        .map(|losses| hold(losses).as_secs())
        .to_vec();
    assert_eq!(seconds, [0, 0, 1, 2, 4, 32, 60, 60, 60]);
}

const TIMED: &str = "[agent]\ncheck = { icmp = \"192.0.2.99\" }\n[domain.wlan0]\nattach-timeout = \
                     \"3s\"\n[policy.default]\nuse = [\"wlan0\", \"lte0\"]\n";

#[test]
fn a_check_that_does_not_pass_in_time_is_a_failure_of_the_network() {
    let mut host = Host::new(TIMED);
    host.check("lte0", Outcome::Passed);
    let probe = host.probe("wlan0").unwrap();
    // Time counts from when it was asked first.
    host.at(Duration::from_secs(100));
    assert_eq!(host.state("wlan0"), DomainState::Up);
    host.report("wlan0", probe.epoch, failed());
    host.at(Duration::from_secs(102));
    assert_eq!(host.state("wlan0"), DomainState::Up);
    host.at(Duration::from_secs(103));
    assert_eq!(host.state("wlan0"), DomainState::Limited);
    let domain = host.engine.domains().get("wlan0").unwrap();
    assert_eq!(
        domain.reason_with(host.engine.health()),
        "its check did not pass within 3 s (`attach-timeout`)"
    );
    let condition = host.engine.health().get(&name("wlan0")).unwrap();
    let network = condition.network().unwrap().clone();
    assert_eq!(
        host.engine.state().history.get(&network).unwrap().failures,
        1
    );
}

#[test]
fn another_address_after_hours_has_the_domain_checked_and_not_given_up() {
    let mut host = Host::new(TIMED);
    host.check("wlan0", Outcome::Passed);
    host.at(Duration::from_secs(7_200));
    let old = support::address(2, "192.0.2.10/24");
    for change in [
        NetworkChange::Address(support::address(2, "192.0.2.77/24")),
        NetworkChange::AddressGone(old.interface, old.ip),
    ] {
        host.apply(Event::Network(change));
    }
    assert_eq!(host.state("wlan0"), DomainState::Up);
    host.at(host.now + Duration::from_secs(60));
    assert_eq!(
        host.state("wlan0"),
        DomainState::Up,
        "nothing was asked yet"
    );
    host.check("wlan0", Outcome::Passed);
    assert_eq!(host.state("wlan0"), DomainState::Validated);
}

#[test]
fn a_verdict_ends_with_the_check_that_gave_it() {
    let mut host = Host::new(FILE);
    for _ in 0..3 {
        host.check("wlan0", failed());
    }
    assert_eq!(host.state("wlan0"), DomainState::Limited);
    let other = FILE.replace("192.0.2.99", "192.0.2.98");
    host.apply(Event::Config(Box::new(support::config(&other))));
    assert_eq!(host.state("wlan0"), DomainState::Up);
    assert_eq!(host.probe("wlan0").unwrap().due, host.now, "at once");
    host.check("wlan0", Outcome::Portal(None));
    let none = "agent.check = \"none\"\n[policy.default]\nuse = [\"wlan0\", \"lte0\"]\n";
    host.apply(Event::Config(Box::new(support::config(none))));
    assert_eq!(host.state("wlan0"), DomainState::Up);
    assert_eq!(host.chosen(), "wlan0");
}

#[test]
fn no_address_in_time_is_told_and_the_next_network_has_to_prove_itself() {
    let mut host = Host::new("[policy.default]\nuse = [\"wlan0\", \"lte0\"]\n");
    let addresses = ["192.0.2.10/24", "2001:db8:2::10/64"].map(|net| support::address(2, net));
    for address in addresses {
        let gone = NetworkChange::AddressGone(address.interface, address.ip);
        host.apply(Event::Network(gone));
    }
    let due = host.engine.deadline().unwrap();
    assert_eq!(due, Duration::from_secs(20));
    host.at(due);
    let domain = host.engine.domains().get("wlan0").unwrap();
    assert_eq!(
        domain.reason_with(host.engine.health()),
        "no usable address on wlan0, for longer than its `attach-timeout`"
    );
    for address in addresses {
        host.apply(Event::Network(NetworkChange::Address(address)));
    }
    assert_eq!(host.chosen(), "lte0", "it failed before");
    // A gateway that does not answer is no proof, and no reason against it.
    host.check("wlan0", failed());
    assert_eq!(host.chosen(), "wlan0");
}

#[test]
fn a_network_that_failed_last_time_has_to_prove_itself() {
    let file = "[policy.default]\nuse = [\"wlan0\", \"lte0\"]\n";
    for (failures, chosen) in [(0, "wlan0"), (2, "lte0")] {
        let mut host = Host::new(file);
        let network = "02:00:00:00:00:09 192.0.2.0/24";
        let kept = format!("{{\"{network}\":{{\"last-good\":900000,\"failures\":{failures}}}}}");
        host.apply(Event::Remembered(serde_json::from_str(&kept).unwrap()));
        host.carrier(2, false);
        host.carrier(2, true);
        // Its gateway is known, and answers nothing.
        let probe = host.probe("wlan0").unwrap();
        host.report("wlan0", probe.epoch, failed());
        assert_eq!(host.chosen(), chosen, "{failures}");
    }
}

#[test]
fn what_came_back_counts_as_settled_only_after_it_stayed() {
    let mut host = Host::new(FILE);
    host.check("lte0", Outcome::Passed);
    host.check("wlan0", Outcome::Passed);
    for _ in 0..5 {
        for _ in 0..3 {
            host.check("wlan0", failed());
        }
        for _ in 0..2 {
            host.check("wlan0", Outcome::Passed);
        }
    }
    assert_eq!(host.state("wlan0"), DomainState::Validated);
    assert_eq!(host.chosen(), "lte0", "lost five times: four seconds");
    host.at(host.now + Duration::from_secs(4));
    assert_eq!(host.chosen(), "wlan0");
}

#[test]
fn a_check_that_was_under_way_does_not_answer_what_was_asked_after_it_began() {
    let mut host = Host::new(FILE);
    host.check("wlan0", Outcome::Passed);
    let probe = host.probe("wlan0").unwrap();
    host.at(probe.due);
    let began = host.now;
    host.at(host.now + Duration::from_secs(1));
    host.apply(Event::Stalled(name("wlan0")));
    host.report_of("wlan0", probe.epoch, began, Outcome::Passed);
    let due = host.probe("wlan0").unwrap().due;
    assert!(due <= host.now + Duration::from_secs(1));
    host.check("wlan0", failed());
    assert_eq!(host.state("wlan0"), DomainState::Limited, "one is enough");
}

#[test]
fn what_was_kept_of_no_time_before_now_is_dropped() {
    let mut host = Host::new(FILE);
    host.at(Duration::from_secs(100));
    host.check("wlan0", Outcome::Passed);
    for _ in 0..3 {
        host.check("wlan0", failed());
    }
    let kept = serde_json::to_value(host.engine.health()).unwrap();
    let read = |kept: &serde_json::Value, now: Duration| {
        let health: Health = serde_json::from_value(kept.clone()).unwrap();
        health.until(now).get(&name("wlan0")).is_some()
    };
    assert!(read(&kept, host.now));
    assert!(!read(&kept, Duration::from_secs(1)), "of another boot");
    for field in [
        "link_since",
        "since",
        "checked_at",
        "next",
        "settled_at",
        "pause",
    ] {
        let mut damaged = kept.clone();
        damaged["wlan0"][field]["secs"] = u64::MAX.into();
        assert!(!read(&damaged, host.now), "{field}");
    }
    let mut damaged = kept.clone();
    damaged["wlan0"]["losses"][0]["secs"] = u64::MAX.into();
    assert!(!read(&damaged, host.now));
    damaged = kept;
    damaged["wlan0"]["measured"]["jitter"]["secs"] = u64::MAX.into();
    assert!(!read(&damaged, host.now));
}

#[test]
fn what_routers_of_a_network_announce_is_not_believed_in_the_next() {
    let mut host = Host::new(FILE);
    let api = "https://hotel.example/api".to_owned();
    let ever = Duration::from_secs(u32::MAX.into());
    for told in [
        NetworkChange::Portal(IfIndex(2), Some(api.clone())),
        NetworkChange::Servers(IfIndex(2), vec![ip("2001:db8:bad::1")], ever),
    ] {
        host.apply(Event::Network(told));
    }
    let here = host.probe("wlan0").unwrap();
    assert_eq!((here.portal_api, here.servers.len()), (Some(api), 1));
    host.carrier(2, false);
    host.carrier(2, true);
    let next = host.probe("wlan0").unwrap();
    assert_eq!((next.portal_api, next.servers.len()), (None, 0));
}

#[test]
fn networks_are_forgotten_when_they_are_too_many_or_too_old() {
    let text: Vec<String> = (0..1_500_u64)
        .map(|at| format!("\"net{at}\":{{\"last-good\":{}}}", 20_000_000 + at))
        .collect();
    let text = format!("{{\"old\":{{\"last-good\":1000}},{}}}", text.join(","));
    let mut history: steer_core::health::History = serde_json::from_str(&text).unwrap();
    history.limit(20_002_000);
    let kept = serde_json::to_value(&history).unwrap();
    let kept = kept.as_object().unwrap();
    assert_eq!(kept.len(), steer_core::health::MAX_NETWORKS);
    assert!(
        kept.contains_key("net1499") && !kept.contains_key("net0") && !kept.contains_key("old")
    );
}

#[test]
fn what_a_domain_was_seen_to_carry_counts_where_the_files_say_less() {
    let file = "agent.check = { icmp = \"192.0.2.99\" }\n[policy.default]\nuse = [\"wlan0\", \
                \"lte0\"]\nrequire = { min-bandwidth = \"8M\" }\n";
    let mut host = Host::new(file);
    assert_eq!(host.chosen(), "none");
    // A megabyte a second, either way; what the counters say at first is the past's.
    for (second, received, sent) in [(1, 5_000_000, 0), (2, 6_000_000, 10), (3, 6_000_010, 20)] {
        host.at(Duration::from_secs(second));
        host.carried("lte0", received, sent);
        assert_eq!(host.chosen(), if second == 1 { "none" } else { "lte0" });
    }
    // Counters that begin again are another interface's.
    host.at(Duration::from_secs(4));
    host.carried("wlan0", 9_000_000, 0);
    host.at(Duration::from_secs(5));
    host.carried("wlan0", 0, 0);
    assert_eq!(host.chosen(), "lte0");
}

proptest! {
    /// Whatever comes of checks, in whatever order: the clock's numbers stay sane, and a domain of which
    /// nothing is known that is bad is as good as it was.
    #[test]
    fn the_next_check_is_never_more_than_a_minute_and_a_bit_away(
        outcomes in proptest::collection::vec(
            prop_oneof![Just(Outcome::Passed), Just(failed()), Just(Outcome::Portal(None))],
            0..40,
        ),
    ) {
        let mut host = Host::new(FILE);
        for outcome in outcomes {
            host.check("wlan0", outcome.clone());
            let due = host.probe("wlan0").unwrap().due;
            prop_assert!(due > host.now);
            prop_assert!(due <= host.now + Duration::from_secs(68));
            let state = host.state("wlan0");
            match outcome {
                Outcome::Portal(_) => prop_assert_eq!(state, DomainState::Portal),
                Outcome::Passed => prop_assert!(state != DomainState::Up),
                Outcome::Failed(_) => {}
            }
        }
    }
}
