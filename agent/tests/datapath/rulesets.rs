//! Sets of rules as the agent writes them and reads them back.

use steer_common::policy_flags::STRICT;
use steer_common::rules::MAX_RULESETS;
use steer_core::rules::{Rule, compile::compile};

use crate::{
    lab::{Lab, ONE, SERVER4, TWO, on_a_new_host},
    peer::Udp,
    rules::{OTHER4, ruled, to_other},
};

fn everything() -> Rule {
    Rule::default()
}

#[test]
fn what_is_there_is_told_with_its_hash_also_to_the_next_agent() {
    on_a_new_host(|lab| {
        assert_eq!(lab.maps().rulesets.hashes().unwrap(), []);
        let (rule, other) = (everything(), to_other());
        let small = compile(&[(&rule, 1)], 2).unwrap();
        let rules: Vec<(&Rule, u32)> = (0..5_000).map(|at| (&other, at)).collect();
        let large = compile(&rules, 1).unwrap();
        assert!(large.pages().len() > 1);
        let last = MAX_RULESETS - 1;
        let sets = |lab: &Lab| lab.maps().rulesets.hashes().unwrap();
        lab.maps().rulesets.set(1, small.pages()).unwrap();
        lab.maps().rulesets.set(last, large.pages()).unwrap();
        let (small, large) = ((1, small.hash().0), (last, large.hash().0));
        assert_eq!(sets(lab), [small, large]);
        lab.kill_agent();
        lab.start_agent();
        assert_eq!(sets(lab), [small, large]);
        // The larger one takes the smaller one's place.
        let again = compile(&rules, 1).unwrap();
        lab.maps().rulesets.set(1, again.pages()).unwrap();
        assert_eq!(sets(lab), [(1, large.1), large]);
        lab.maps().rulesets.clear(&[last, 7]).unwrap();
        assert_eq!(sets(lab), [(1, large.1)]);
        assert_eq!(lab.maps().rulesets.hash(last).unwrap(), None);
        assert!(lab.maps().rulesets.clear(&[MAX_RULESETS]).is_err());
    });
}

#[test]
fn many_sets_are_published_and_removed_by_few_calls() {
    on_a_new_host(|lab| {
        let rule = everything();
        let sets: Vec<_> = (1..=600)
            .map(|index| (index, compile(&[(&rule, index)], 2).unwrap()))
            .collect();
        let rulesets = &lab.maps().rulesets;
        let pages = sets.iter().map(|(index, set)| (*index, set.pages()));
        rulesets.set_all(pages).unwrap();
        let told: Vec<_> = sets.iter().map(|(at, set)| (*at, set.hash().0)).collect();
        assert_eq!(rulesets.hashes().unwrap(), told);
        assert_eq!(rulesets.hash(600).unwrap(), Some(told[599].1));
        assert_eq!(rulesets.hash(601).unwrap(), None);
        let beyond = [(MAX_RULESETS, sets[0].1.pages())];
        assert!(rulesets.set_all(beyond).is_err());
        let all_but_last: Vec<u32> = (1..600).collect();
        rulesets.clear(&all_but_last).unwrap();
        assert_eq!(rulesets.hashes().unwrap(), told[599..]);
    });
}

#[test]
fn pages_of_another_size_are_refused_and_change_nothing() {
    on_a_new_host(|lab| {
        let rule = everything();
        let set = compile(&[(&rule, 1)], 2).unwrap();
        lab.maps().rulesets.set(1, set.pages()).unwrap();
        let short = [7_u32; 100];
        let refused = lab.maps().rulesets.set(1, [short.as_slice()].into_iter());
        let words = refused.unwrap_err().to_string();
        assert_eq!(words, "write set 1 of rules");
        assert_eq!(lab.maps().rulesets.hashes().unwrap(), [(1, set.hash().0)]);
    });
}

/// Sets that say nothing: none, one without header, one that leads out of itself.
fn damaged(lab: &Lab, how: u32) {
    let rule = to_other();
    let set = compile(&[(&rule, ONE)], ONE).unwrap();
    let mut pages: Vec<Vec<u32>> = set.pages().map(<[u32]>::to_vec).collect();
    match how {
        0 => {
            lab.maps().rulesets.clear(&[1]).unwrap();
            return;
        }
        1 => pages[0][0] ^= 1,
        // Place and leaves of the tables, which begin behind ten words.
        2 => pages[0][10..34].fill(1 << 30),
        // Rules, and place of their choices.
        _ => (pages[0][6], pages[0][9]) = (0, 1 << 30),
    }
    let pages = pages.iter().map(Vec::as_slice);
    lab.maps().rulesets.set(1, pages).unwrap();
}

#[test]
fn a_damaged_set_leaves_the_policys_own_choice_and_closes_a_strict_one() {
    ruled(0, &[|| (to_other(), ONE)], |lab, child| {
        let server = Udp::new(lab);
        for how in 0..4 {
            lab.policy_with_rules(1, TWO, 0, 1);
            lab.rules(1, &[(to_other(), ONE)], ONE);
            child.must(&["open s inet dgram"]);
            child.must(&[&format!("send s {OTHER4}:{} x", server.port)]);
            assert_eq!(server.next().1.to_string(), "10.0.1.2");
            damaged(lab, how);
            child.must(&["open s inet dgram"]);
            child.must(&[&format!("send s {OTHER4}:{} x", server.port)]);
            assert_eq!(server.next().1.to_string(), "10.0.2.2", "{how}");
            lab.policy_with_rules(1, TWO, STRICT, 1);
            child.must(&["open s inet dgram"]);
            let to_rule = format!("send s {OTHER4}:{} x", server.port);
            assert_eq!(child.ask(&to_rule), "errno 101", "{how}");
        }
        let hashes = lab.maps().rulesets.hashes().unwrap();
        assert_eq!(hashes.len(), 1);
    });
}

#[test]
fn ten_thousand_rules_are_followed_in_either_family() {
    ruled(STRICT, &[], |lab, child| {
        let mut rules: Vec<(Rule, u32)> = (0_u32..9_998)
            .map(|at| {
                let net = format!("10.{}.{}.0/24", 64 + at / 250, at % 250);
                let net6 = format!("2001:db9:{at:x}::/48");
                let rule = Rule {
                    destination: vec![net.parse().unwrap(), net6.parse().unwrap()],
                    ..Rule::default()
                };
                (rule, ONE)
            })
            .collect();
        rules.push((to_other(), TWO));
        rules.push((everything(), ONE));
        lab.rules(1, &rules, ONE);
        let server = Udp::new(lab);
        child.must(&["open four inet dgram", "open six inet6 dgram"]);
        for (socket, target, source) in [
            ("four", format!("{OTHER4}:{}", server.port), "10.0.2.2"),
            ("four", format!("{SERVER4}:{}", server.port), "10.0.1.2"),
            ("six", format!("[2001:db8::2]:{}", server.port), "fd00:2::2"),
            ("six", format!("[2001:db8::1]:{}", server.port), "fd00:1::2"),
        ] {
            child.must(&[&format!("send {socket} {target} x")]);
            assert_eq!(server.next().1.to_string(), source);
        }
        assert_eq!(lab.datapath().counters().unwrap().guard_dropped, 0);
    });
}
