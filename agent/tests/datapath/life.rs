//! The life of pins: made, adopted, refused, removed.

use std::{fs, path::Path, time::Instant};

use steer::datapath::{self, Datapath, Error, Options};
use steer_common::{CgroupEntry, MarkMask, PolicyEntry};

use crate::{
    child::Child,
    lab::{TWO, arriving, ifindex, mark, on_a_new_host},
};

fn open<'a>(pin_root: &'a Path, cgroup_root: &'a Path) -> Result<Datapath, Error> {
    Datapath::open(Options {
        pin_root,
        cgroup_root,
        mark_mask: MarkMask::DEFAULT,
    })
}

#[test]
fn a_dead_agent_leaves_everything_in_force_and_the_next_adopts_it() {
    on_a_new_host(|lab| {
        lab.attach_all();
        lab.write_domains();
        lab.policy(1, TWO, 0);
        let one = ifindex("h1");
        lab.datapath().set_guard(one, true).unwrap();
        lab.datapath()
            .set_ingress(one, Some(arriving(TWO)))
            .unwrap();
        let mut child = Child::start(&lab.group("app", 1));
        let hooks = lab.hooks();
        lab.kill_agent();
        child.must(&["open s inet stream"]);
        assert_eq!(child.mark("s"), mark(TWO));
        let pinned = datapath::read_pinned(&lab.pins).unwrap().unwrap();
        assert_eq!(pinned.hooks, hooks);
        assert_eq!(pinned.guards, [one].into());
        assert_eq!(pinned.maps.unwrap().policies.entries().unwrap().len(), 1);
        lab.start_agent();
        // Its own programs are nowhere yet.
        assert!(lab.datapath().hooks().unwrap().is_empty());
        assert!(lab.datapath().guards().unwrap().is_empty());
        assert!(lab.datapath().ingress().unwrap().is_empty());
        child.must(&["open s inet stream"]);
        assert_eq!(child.mark("s"), mark(TWO));
        lab.attach_all();
        lab.datapath().set_guard(one, true).unwrap();
        lab.datapath()
            .set_ingress(one, Some(arriving(TWO)))
            .unwrap();
        lab.datapath().sweep().unwrap();
        assert_eq!(lab.datapath().hooks().unwrap(), hooks);
        assert_eq!(lab.datapath().guards().unwrap(), [one].into());
        assert_eq!(lab.datapath().ingress().unwrap(), [(one, arriving(TWO))]);
        child.must(&["open s inet stream"]);
        assert_eq!(child.mark("s"), mark(TWO));
    });
}

#[test]
fn programs_are_replaced_without_a_gap() {
    on_a_new_host(|lab| {
        lab.attach_all();
        lab.write_domains();
        lab.policy(1, TWO, 0);
        let group = lab.group("app", 1);
        let done = std::sync::atomic::AtomicBool::new(false);
        let mut child = Child::start(&group);
        let sockets = std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let mut sockets = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    child.must(&["open s inet stream"]);
                    assert_eq!(child.mark("s"), mark(TWO));
                    sockets += 1;
                }
                sockets
            });
            for _ in 0..5 {
                lab.kill_agent();
                lab.start_agent();
                lab.attach_all();
                lab.datapath().sweep().unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            worker.join().unwrap()
        });
        assert!(sockets > 10);
    });
}

#[test]
fn hooks_can_be_detached_and_attached_again() {
    on_a_new_host(|lab| {
        for hook in [lab.hooks(), lab.hooks()].into_iter().flatten() {
            lab.datapath().set_hook(hook, true).unwrap();
            lab.datapath().set_hook(hook, true).unwrap();
            assert_eq!(lab.datapath().hooks().unwrap(), [hook].into());
            lab.datapath().set_hook(hook, false).unwrap();
            lab.datapath().set_hook(hook, false).unwrap();
            assert!(lab.datapath().hooks().unwrap().is_empty());
        }
    });
}

#[test]
fn a_guard_ends_with_its_interface() {
    on_a_new_host(|lab| {
        let index = ifindex("h1");
        lab.datapath().set_guard(index, true).unwrap();
        crate::lab::ip("link del h1");
        assert!(lab.datapath().guards().unwrap().is_empty());
        lab.kill_agent();
        lab.start_agent();
        lab.datapath().sweep().unwrap();
        assert!(!lab.layout().join(format!("links/guard-{index}")).exists());
        assert!(lab.datapath().set_guard(index, true).is_err());
    });
}

#[test]
fn another_cgroup_root_is_attached_anew() {
    on_a_new_host(|lab| {
        lab.attach_all();
        lab.write_domains();
        lab.policy(1, TWO, 0);
        let root = lab.group("root", 1);
        let hooks = lab.hooks();
        lab.kill_agent();
        let mut datapath = open(&lab.pins, &root).unwrap();
        for hook in &hooks {
            datapath.set_hook(*hook, true).unwrap();
        }
        datapath.sweep().unwrap();
        assert_eq!(datapath.hooks().unwrap(), hooks);
        let outside = lab.cgroup.join("outside");
        fs::create_dir(&outside).unwrap();
        let policy = CgroupEntry {
            policy: 1,
            flags: 0,
            place: 0,
        };
        datapath
            .maps
            .cgroups
            .set(&crate::lab::id(&outside), &policy)
            .unwrap();
        for (group, expected) in [(&root, mark(TWO)), (&outside, 0)] {
            let mut child = Child::start(group);
            child.must(&["open s inet stream"]);
            assert_eq!(child.mark("s"), expected);
        }
    });
}

#[test]
fn only_one_agent_at_a_time() {
    on_a_new_host(|lab| {
        assert!(matches!(
            open(&lab.pins, &lab.cgroup),
            Err(Error::Locked { .. })
        ));
        assert!(matches!(
            datapath::detach(&lab.pins),
            Err(Error::Locked { .. })
        ));
    });
}

#[test]
fn detach_leaves_nothing() {
    on_a_new_host(|lab| {
        lab.attach_all();
        lab.write_domains();
        lab.policy(1, TWO, 0);
        lab.datapath().set_guard(ifindex("h1"), true).unwrap();
        let mut child = Child::start(&lab.group("app", 1));
        let links = lab.hooks().len() + 1;
        let maps = fs::read_dir(lab.layout().join("maps")).unwrap().count();
        lab.kill_agent();
        // Another version's directory, and what is left of an agent that died while beginning.
        fs::create_dir_all(lab.pins.join("v7/links")).unwrap();
        fs::create_dir_all(lab.pins.join("new-1/maps")).unwrap();
        let detached = datapath::detach(&lab.pins).unwrap();
        let removed = detached.removed;
        assert_eq!((removed.links, removed.maps), (links, maps));
        assert!(matches!(
            open(&lab.pins, &lab.cgroup),
            Err(Error::Locked { .. })
        ));
        detached.finish().unwrap();
        assert!(!lab.pins.exists());
        child.must(&["open s inet stream"]);
        assert_eq!(child.mark("s"), 0);
        let again = datapath::detach(&lab.pins).unwrap();
        assert_eq!(again.removed, datapath::Removed::default());
        again.finish().unwrap();
        assert!(datapath::read_pinned(&lab.pins).unwrap().is_none());
    });
}

#[test]
fn maps_of_another_build_are_refused() {
    on_a_new_host(|lab| {
        lab.kill_agent();
        let maps = lab.layout().join("maps");
        fs::remove_file(maps.join("POLICIES")).unwrap();
        let other = aya::maps::MapData::from_pin(maps.join("DOMAINS")).unwrap();
        other.pin(maps.join("POLICIES")).unwrap();
        assert!(matches!(
            open(&lab.pins, &lab.cgroup),
            Err(Error::MapDiffers { .. })
        ));
        datapath::detach(&lab.pins).unwrap().finish().unwrap();
        lab.start_agent();
    });
}

#[test]
fn places_that_cannot_work_are_named() {
    on_a_new_host(|lab| {
        let plain = tempfile::tempdir().unwrap();
        let error = open(&plain.path().join("steer"), &lab.cgroup)
            .err()
            .unwrap();
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        lab.kill_agent();
        let error = open(&lab.pins, plain.path()).err().unwrap();
        assert!(matches!(error, Error::NotCgroup2 { .. }), "{error}");
        lab.start_agent();
    });
}

#[test]
fn a_hundred_thousand_policies_are_written_and_read_back() {
    on_a_new_host(|lab| {
        let maps = lab.maps();
        let policies: Vec<_> = (1..=100_000)
            .map(|index| {
                (
                    index,
                    PolicyEntry {
                        choice: index,
                        flags: 0,
                        rules: 0,
                    },
                )
            })
            .collect();
        let cgroups: Vec<_> = (1..=100_000)
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
        let start = Instant::now();
        maps.policies.set_all(&policies).unwrap();
        maps.cgroups.set_all(&cgroups).unwrap();
        println!("set_all: {:?}", start.elapsed());
        let start = Instant::now();
        let mut found = maps.cgroups.entries().unwrap();
        found.sort_unstable_by_key(|(id, _)| *id);
        assert!(found == cgroups);
        assert!(maps.policies.entries().unwrap() == policies);
        println!("entries: {:?}", start.elapsed());
    });
}
