//! What a run of each program costs. A measurement, not a test: run it by name, alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use aya::{programs::loaded_programs, sys::Stats};
use steer::datapath::Hook;
use steer_common::{CgroupEntry, PolicyEntry, policy_flags::STRICT};
use steer_core::rules::Rule;

use crate::{
    child::Child,
    lab::{Lab, ONE, SERVER4, SERVER6, TWO, ifindex, on_a_new_host},
    peer::{Tcp, Udp},
    repair::repaired,
};

/// Runs and nanoseconds of each of our programs so far.
fn totals() -> BTreeMap<String, (u64, u64)> {
    let mut totals = BTreeMap::new();
    for program in loaded_programs().flatten() {
        if program.run_count() > 0 {
            let name = program.name_as_str().unwrap_or_default().to_owned();
            let total: &mut (u64, u64) = totals.entry(name).or_default();
            total.0 += program.run_count();
            total.1 += u64::try_from(program.run_time().as_nanos()).unwrap();
        }
    }
    totals
}

fn report(what: &str, work: impl FnOnce()) {
    let before = totals();
    work();
    println!("{what}:");
    for (name, (runs, time)) in totals() {
        let (runs_before, time_before) = before.get(&name).copied().unwrap_or_default();
        // Programs of other hosts come and go.
        let (Some(runs), Some(time)) =
            (runs.checked_sub(runs_before), time.checked_sub(time_before))
        else {
            continue;
        };
        if runs >= 1_000 {
            println!("  {name:14} {:4} ns ({runs} runs)", time / runs);
        }
    }
}

fn work(lab: &Lab, child: &mut Child) {
    let udp = Udp::new(lab).port;
    let tcp = Tcp::new(lab);
    child.must(&[&format!("loop-connect inet dgram {SERVER4}:{udp} 20000")]);
    child.must(&[&format!("loop-connect inet6 dgram [{SERVER6}]:{udp} 20000")]);
    child.must(&[
        "open s inet dgram",
        &format!("loop-send s {SERVER4}:{udp} 100000"),
    ]);
    child.must(&[
        "open s inet6 dgram",
        &format!("loop-send s [{SERVER6}]:{udp} 100000"),
    ]);
    child.must(&["open s inet dgram", "loop-set s 100000"]);
    child.must(&[&format!(
        "loop-connect inet stream {SERVER4}:{} 50",
        tcp.port
    )]);
}

#[test]
#[ignore = "a measurement"]
fn measure() {
    on_a_new_host(|lab| {
        let _counting = aya::sys::enable_stats(Stats::RunTime).unwrap();
        lab.attach_all();
        lab.write_domains();
        let mut child = Child::start(&lab.group("none", 0));
        report("no policy", || work(lab, &mut child));
        lab.policy(1, TWO, 0);
        let mut child = Child::start(&lab.group("app", 1));
        report("steered", || work(lab, &mut child));
        for interface in ["h1", "h2"] {
            lab.datapath().set_guard(ifindex(interface), true).unwrap();
        }
        report("steered, with guards", || work(lab, &mut child));
        lab.policy(1, TWO, STRICT);
        report("strict, with guards", || work(lab, &mut child));
        let mut child = Child::start(&lab.group("none2", 0));
        report("no policy, with guards", || work(lab, &mut child));
        let policies: Vec<_> = (2..=100_000)
            .map(|index| {
                (
                    index,
                    PolicyEntry {
                        choice: TWO,
                        flags: 0,
                        rules: 0,
                    },
                )
            })
            .collect();
        lab.maps().policies.set_all(&policies).unwrap();
        let cgroups: Vec<_> = (2..=100_000)
            .map(|index| {
                (
                    u64::from(index) << 20,
                    CgroupEntry {
                        policy: index,
                        flags: 0,
                        place: 0,
                    },
                )
            })
            .collect();
        lab.maps().cgroups.set_all(&cgroups).unwrap();
        report("no policy, with guards and 100,000 policies", || {
            work(lab, &mut child);
        });
        let mut child = Child::start(&lab.group("app3", 1));
        report("strict, with guards and 100,000 policies", || {
            work(lab, &mut child);
        });
    });
}

/// Runs and nanoseconds of every guard of the machine so far, by program.
fn guards() -> BTreeMap<u32, (u64, u64)> {
    let programs = loaded_programs().flatten();
    let guards = programs.filter(|program| program.name_as_str() == Some("guard"));
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap();
    guards
        .map(|guard| {
            let counts = (guard.run_count(), nanoseconds(guard.run_time()));
            (guard.id(), counts)
        })
        .collect()
}

/// A few dozen rules, of which the last fits what [`work`] does; or ten thousand.
fn measured_rules(count: u32) -> Vec<(Rule, u32)> {
    let mut rules: Vec<(Rule, u32)> = (0..count)
        .map(|at| {
            let net = format!("10.{}.{}.0/24", 64 + at / 250, at % 250);
            let rule = Rule {
                destination: vec![net.parse().unwrap()],
                ports: vec!["443".parse().unwrap()],
                ..Rule::default()
            };
            (rule, ONE)
        })
        .collect();
    let last = Rule {
        protocol: vec!["udp".parse().unwrap(), "tcp".parse().unwrap()],
        ..Rule::default()
    };
    rules.push((last, TWO));
    rules
}

#[test]
#[ignore = "a measurement"]
fn measure_rules() {
    on_a_new_host(|lab| {
        let _counting = aya::sys::enable_stats(Stats::RunTime).unwrap();
        lab.attach_all();
        lab.write_domains();
        lab.guard_uplinks();
        for (name, flags) in [("steered", 0), ("strict", STRICT)] {
            for count in [0, 30, 9_999] {
                if count == 0 {
                    lab.policy(1, TWO, flags);
                } else {
                    lab.rules(1, &measured_rules(count), ONE);
                    lab.policy_with_rules(1, TWO, flags, 1);
                }
                let mut child = Child::start(&lab.group(&format!("{name}{count}"), 1));
                report(&format!("{name}, {count} rules"), || work(lab, &mut child));
            }
        }
    });
}

#[test]
#[ignore = "a measurement"]
fn measure_the_guard() {
    on_a_new_host(|lab| {
        for hook in Hook::ALL {
            lab.datapath().set_hook(hook, hook != Hook::Egress).unwrap();
        }
        lab.write_domains();
        for interface in ["h1", "h2"] {
            lab.datapath().set_guard(ifindex(interface), true).unwrap();
        }
        let server = Udp::new(lab);
        let udp = server.port;
        let none = lab.group("none", 0);
        let app = lab.group("app", 1);
        for (what, group, flags) in [
            ("no policy", &none, 0),
            ("steered", &app, 0),
            ("strict", &app, STRICT),
        ] {
            lab.policy(1, TWO, flags);
            let mut child = Child::start(group);
            for (family, target) in [
                ("inet", format!("{SERVER4}:{udp}")),
                ("inet6", format!("[{SERVER6}]:{udp}")),
            ] {
                child.must(&[
                    &format!("open s {family} dgram"),
                    &format!("connect s {target}"),
                ]);
                let mut best = u64::MAX;
                for _ in 0..8 {
                    let counting = aya::sys::enable_stats(Stats::RunTime).unwrap();
                    let before = guards();
                    child.must(&["loop-write s 40000"]);
                    let after = guards();
                    drop(counting);
                    for (id, (runs, time)) in after {
                        let (runs_before, time_before) = before.get(&id).copied().unwrap_or((0, 0));
                        // Guards of other hosts run too, but not that often.
                        if (40_000..40_100).contains(&(runs - runs_before)) {
                            best = best.min((time - time_before) * 10 / (runs - runs_before));
                        }
                    }
                }
                println!("{what}, {family}: {}.{} ns", best / 10, best % 10);
            }
        }
    });
}

/// Each packet meets a guard twice: where it would have left, and where it is put.
#[test]
#[ignore = "a measurement"]
fn measure_repair() {
    repaired(|lab, child, group| {
        let server = Udp::new(lab);
        let udp = server.port;
        child.must(&["open s inet dgram", &format!("connect s {SERVER4}:{udp}")]);
        lab.give(&group, 1, 0);
        let _counting = aya::sys::enable_stats(Stats::RunTime).unwrap();
        for _ in 0..4 {
            report("repaired", || child.must(&["loop-write s 40000"]));
        }
    });
}

/// How much the verifier looked at, and how large the programs are.
#[test]
#[ignore = "a measurement"]
fn measure_the_verifier() {
    let others: BTreeSet<u32> = loaded_programs().flatten().map(|one| one.id()).collect();
    on_a_new_host(move |_| {
        for program in loaded_programs().flatten() {
            if !others.contains(&program.id()) {
                println!(
                    "{:15} {:7} instructions verified, {:6} bytes",
                    program.name_as_str().unwrap_or_default(),
                    program.verified_instruction_count().unwrap_or_default(),
                    program.size_translated().unwrap_or_default(),
                );
            }
        }
    });
}
