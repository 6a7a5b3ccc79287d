//! What an agent of another layout left: taken over without a gap, at whatever point that is cut short.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::{
        SchedClassifier,
        links::{FdLink, PinnedLink},
    },
};
use steer::datapath::{self, Hook};
use steer_common::{DomainEntry, policy_flags::STRICT};

use crate::{
    child::Child,
    lab::{Lab, TWO, arriving, ifindex, mark, on_a_new_host},
};

/// Writes all that the programs need for a strict policy of `app` on domain two.
fn fill(lab: &mut Lab) {
    lab.write_domains();
    lab.policy(1, TWO, STRICT);
    let app = lab.cgroup.join("app");
    lab.give(&app, 1, 0);
}

/// A host on which another version's agent attached everything for the cgroup `app`, and died.
fn on_another_versions_host(test: impl FnOnce(&mut Lab, &Path, &mut Child) + Send + 'static) {
    on_a_new_host(|lab| {
        let app = lab.group("app", 0);
        fill(lab);
        lab.attach_all();
        lab.datapath().set_guard(ifindex("h1"), true).unwrap();
        lab.datapath()
            .set_ingress(ifindex("h2"), Some(arriving(TWO)))
            .unwrap();
        let other = lab.leave_as_another_version();
        let mut child = Child::start(&app);
        test(lab, &other, &mut child);
    });
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// The kernel's id of a pinned link.
fn link_id(pin: &Path) -> u32 {
    let link = FdLink::from(PinnedLink::from_pin(pin).unwrap());
    link.info().unwrap().id()
}

fn map_id(layout: &Path, name: &str) -> u32 {
    let map = MapData::from_pin(layout.join("maps").join(name)).unwrap();
    map.info().unwrap().id()
}

#[test]
fn attachments_of_another_version_stay_until_they_are_asked_for() {
    on_another_versions_host(|lab, other, child| {
        lab.start_agent();
        assert!(lab.datapath().takes_over().unwrap());
        assert!(lab.datapath().hooks().unwrap().is_empty());
        assert!(lab.datapath().guards().unwrap().is_empty());
        assert!(lab.maps().policies.entries().unwrap().is_empty());
        child.must(&["open s inet stream"]);
        assert_eq!(child.mark("s"), mark(TWO));
        lab.kill_agent();
        let pinned = datapath::read_pinned(&lab.pins).unwrap().unwrap();
        assert!(pinned.hooks.contains(&Hook::Connect4));
        assert_eq!(pinned.guards, [ifindex("h1")].into());
        assert!(pinned.maps.is_none());
        assert!(names(&other.join("links")).contains("connect4"));
    });
}

#[test]
fn a_take_over_has_no_gap_and_goes_on_where_it_was_cut_short() {
    on_another_versions_host(|lab, other, child| {
        let done = AtomicBool::new(false);
        let links = names(&other.join("links"));
        let own = lab.layout().join("links");
        // A tracepoint's link cannot be given another program.
        let ids = |directory: &Path| {
            let updated = links.iter().filter(|name| !name.starts_with("cgroup-"));
            let ids = updated.map(|name| link_id(&directory.join(name)));
            ids.collect::<Vec<_>>()
        };
        let before = ids(&other.join("links"));
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let mut sockets = 0;
                while !done.load(Ordering::Relaxed) {
                    child.must(&["open s inet stream"]);
                    assert_eq!(child.mark("s"), mark(TWO));
                    sockets += 1;
                }
                sockets
            });
            // Each agent dies after one more hook.
            for hook in Hook::ALL {
                lab.kill_agent();
                lab.start_agent();
                fill(lab);
                lab.datapath().set_hook(hook, true).unwrap();
                let both: BTreeSet<String> = names(&own)
                    .union(&names(&other.join("links")))
                    .cloned()
                    .collect();
                assert_eq!(both, links, "after {hook}");
            }
            lab.attach_all();
            lab.datapath().set_guard(ifindex("h1"), true).unwrap();
            lab.datapath()
                .set_ingress(ifindex("h2"), Some(arriving(TWO)))
                .unwrap();
            lab.datapath().sweep().unwrap();
            done.store(true, Ordering::Relaxed);
            assert!(worker.join().unwrap() > 10);
        });
        assert_eq!(names(&own), links);
        assert_eq!(ids(&own), before);
        assert!(!other.exists());
        assert!(!lab.datapath().takes_over().unwrap());
        let hooks = lab.hooks();
        assert_eq!(lab.datapath().hooks().unwrap(), hooks);
        assert_eq!(lab.datapath().guards().unwrap(), [ifindex("h1")].into());
    });
}

#[test]
fn what_this_version_has_not_is_detached_and_removed() {
    on_another_versions_host(|lab, other, child| {
        let links = other.join("links");
        fs::rename(links.join("sock-create"), links.join("sock-made")).unwrap();
        fs::rename(other.join("maps/SOURCES"), other.join("maps/ORIGINS")).unwrap();
        fs::rename(other.join("maps/COUNTERS"), links.join("no-link")).unwrap();
        fs::create_dir(other.join("more")).unwrap();
        lab.start_agent();
        fill(lab);
        for hook in Hook::ALL {
            lab.datapath()
                .set_hook(hook, hook != Hook::SockCreate)
                .unwrap();
        }
        child.must(&["open s inet stream"]);
        assert_eq!(child.mark("s"), mark(TWO));
        lab.datapath().sweep().unwrap();
        child.must(&["open s inet stream"]);
        assert_eq!(child.mark("s"), 0);
        assert!(!other.exists());
        assert!(lab.datapath().guards().unwrap().is_empty());
        let left = names(&lab.layout().join("links"));
        assert!(
            !left.iter().any(|name| name.starts_with("guard-")),
            "{left:?}"
        );
    });
}

#[test]
fn what_sockets_remember_goes_from_version_to_version() {
    on_another_versions_host(|lab, other, _| {
        lab.start_agent();
        assert_eq!(map_id(&lab.layout(), "FLOWS3"), map_id(other, "FLOWS3"));
        assert_ne!(map_id(&lab.layout(), "CGROUPS"), map_id(other, "CGROUPS"));
    });
}

#[test]
fn maps_of_an_agent_that_took_nothing_over_are_made_anew() {
    on_another_versions_host(|lab, _, _| {
        lab.start_agent();
        fill(lab);
        lab.kill_agent();
        lab.start_agent();
        assert!(lab.maps().cgroups.entries().unwrap().is_empty());
        fill(lab);
        lab.datapath().set_hook(Hook::Connect4, true).unwrap();
        lab.kill_agent();
        lab.start_agent();
        assert!(!lab.maps().cgroups.entries().unwrap().is_empty());
    });
}

fn tc(arguments: &str) -> String {
    let output = Command::new("tc")
        .args(arguments.split_whitespace())
        .output()
        .expect("these tests need iproute2");
    assert!(output.status.success(), "tc {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The ids of the programs in the filters that leave by `h1`.
fn filters() -> Vec<String> {
    let shown = tc("filter show dev h1 egress");
    let mut words = shown.split_whitespace();
    let mut ids = Vec::new();
    while let Some(word) = words.next() {
        if word == "id" {
            ids.extend(words.next().map(str::to_owned));
        }
    }
    ids
}

/// As [`on_another_versions_host`], where `h1` has its guard as kernels without tcx have it.
fn on_another_versions_old_kernel(test: impl FnOnce(&mut Lab, &Path) + Send + 'static) {
    on_another_versions_host(|lab, other, _| {
        let index = ifindex("h1");
        fs::remove_file(other.join(format!("links/guard-{index}"))).unwrap();
        let records = other.join("filters");
        fs::create_dir_all(records.join(format!("qdisc-{index}"))).unwrap();
        let record = records.join(format!("guard-{index}"));
        let mut object = Ebpf::load(aya::include_bytes_aligned!(concat!(
            env!("OUT_DIR"),
            "/steer-ebpf"
        )))
        .unwrap();
        let guard: &mut SchedClassifier = object.program_mut("guard").unwrap().try_into().unwrap();
        guard.load().unwrap();
        guard.pin(&record).unwrap();
        tc("qdisc add dev h1 clsact");
        tc(&format!(
            "filter add dev h1 egress prio 1 handle 0x5354 bpf da object-pinned {}",
            record.display()
        ));
        assert_eq!(filters().len(), 1);
        test(lab, other);
    });
}

#[test]
fn filters_of_kernels_without_tcx_are_replaced_in_place() {
    on_another_versions_old_kernel(|lab, other| {
        let index = ifindex("h1");
        let before = filters();
        let pinned = datapath::read_pinned(&lab.pins).unwrap().unwrap();
        assert_eq!(pinned.guards, [index].into());
        lab.start_agent();
        assert!(lab.datapath().guards().unwrap().is_empty());
        lab.datapath().set_guard(index, true).unwrap();
        assert_eq!(lab.datapath().guards().unwrap(), [index].into());
        let after = filters();
        assert_eq!(after.len(), 1);
        assert_ne!(after, before);
        lab.datapath().sweep().unwrap();
        assert!(!other.exists());
        assert_eq!(filters(), after);
        // The next agent of the same version does likewise.
        lab.kill_agent();
        lab.start_agent();
        assert!(lab.datapath().guards().unwrap().is_empty());
        lab.datapath().set_guard(index, true).unwrap();
        assert_eq!(filters().len(), 1);
        assert_ne!(filters(), after);
        lab.datapath().set_guard(index, false).unwrap();
        assert!(filters().is_empty());
        assert!(!tc("qdisc show dev h1").contains("clsact"));
    });
}

#[test]
fn a_filter_that_two_versions_recorded_is_removed_once() {
    on_another_versions_old_kernel(|lab, other| {
        lab.start_agent();
        lab.datapath().set_guard(ifindex("h1"), true).unwrap();
        let record = format!("filters/guard-{}", ifindex("h1"));
        assert!(lab.layout().join(&record).exists() && other.join(&record).exists());
        lab.kill_agent();
        datapath::detach(&lab.pins).unwrap().finish().unwrap();
        assert!(!lab.pins.exists());
        assert!(filters().is_empty());
        assert!(!tc("qdisc show dev h1").contains("clsact"));
    });
}

#[test]
fn a_filter_that_nobody_asked_for_goes_with_its_version() {
    on_another_versions_old_kernel(|lab, other| {
        lab.start_agent();
        lab.datapath().sweep().unwrap();
        assert!(!other.exists());
        assert!(filters().is_empty());
        assert!(!tc("qdisc show dev h1").contains("clsact"));
    });
}

#[test]
fn a_domain_in_use_is_never_written() {
    on_a_new_host(|lab| {
        let entry = |octet| DomainEntry {
            source6: [octet; 16],
            ..DomainEntry::default()
        };
        let map = MapData::from_pin(lab.layout().join("maps/DOMAINS")).unwrap();
        let slots = Array::<_, [u8; 260]>::try_from(aya::maps::Map::Array(map)).unwrap();
        // `DomainSlots`: changes, and the last byte of each entry's `source6`.
        let read = || -> (u8, Vec<u8>) {
            let bytes = slots.get(&TWO, 0).unwrap();
            (bytes[0], (0..4).map(|at| bytes[35 + 64 * at]).collect())
        };
        let domains = &lab.datapath().maps.domains;
        let mut expected = vec![0; 4];
        for octet in 1..=20 {
            domains.set(TWO, &entry(octet)).unwrap();
            domains.set(TWO, &entry(octet)).unwrap();
            expected[usize::from(octet) % 4] = octet;
            assert_eq!(read(), (octet, expected.clone()));
        }
        assert_eq!(domains.get(TWO).unwrap(), entry(20));
        assert_eq!(domains.entries().unwrap(), [(TWO, entry(20))]);
    });
}
