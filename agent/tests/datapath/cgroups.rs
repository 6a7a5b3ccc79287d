//! New and removed cgroups.

use std::fs;

use steer::datapath::Event;
use steer_common::{CgroupEntry, NAME_LEN, NameKey, cgroup_flags};

use crate::{
    child::Child,
    lab::{TWO, id, mark, on_a_new_host, remove_cgroup},
    peer::eventually,
};

#[test]
fn a_new_cgroup_has_its_parents_policy_before_its_first_process() {
    on_a_new_host(|lab| {
        lab.attach_all();
        lab.write_domains();
        lab.policy(1, TWO, 0);
        let deep = lab.group("app", 1).join("one").join("two");
        fs::create_dir_all(&deep).unwrap();
        let expected = CgroupEntry {
            policy: 1,
            flags: 0,
            place: 0,
        };
        assert_eq!(lab.maps().cgroups.get(&id(&deep)).unwrap(), Some(expected));
        let mut child = Child::start(&deep);
        child.must(&["open s inet stream"]);
        assert_eq!(child.mark("s"), mark(TWO));
    });
}

#[test]
fn a_removed_cgroup_leaves_nothing() {
    on_a_new_host(|lab| {
        lab.attach_all();
        let group = lab.group("app", 1);
        let number = id(&group);
        assert!(lab.maps().cgroups.get(&number).unwrap().is_some());
        remove_cgroup(&group);
        assert_eq!(lab.maps().cgroups.get(&number).unwrap(), None);
        assert_eq!(lab.maps().cgroups.entries().unwrap(), []);
    });
}

#[test]
fn flags_say_what_children_inherit() {
    use cgroup_flags::{CHILDREN_UNDECIDED, DESCENDANTS_UNDECIDED, EXEMPT, UNDECIDED};
    on_a_new_host(|lab| {
        lab.attach_all();
        let entry = |policy, flags| {
            Some(CgroupEntry {
                policy,
                flags,
                place: 0,
            })
        };
        for (name, parent, child, grandchild) in [
            ("plain", (1, 0), entry(1, 0), entry(1, 0)),
            ("exempt", (1, EXEMPT), None, None),
            (
                "children",
                (1, CHILDREN_UNDECIDED),
                entry(1, UNDECIDED),
                entry(1, UNDECIDED),
            ),
            (
                "descendants",
                (0, DESCENDANTS_UNDECIDED),
                entry(0, DESCENDANTS_UNDECIDED | UNDECIDED),
                entry(0, DESCENDANTS_UNDECIDED | UNDECIDED),
            ),
            (
                "undecided",
                (2, UNDECIDED),
                entry(2, UNDECIDED),
                entry(2, UNDECIDED),
            ),
        ] {
            let path = lab.group(name, 0);
            lab.give(&path, parent.0, parent.1);
            let below = path.join("a").join("b");
            fs::create_dir_all(&below).unwrap();
            let found = |path| lab.maps().cgroups.get(&id(path)).unwrap();
            assert_eq!(found(below.parent().unwrap()), child, "{name}");
            assert_eq!(found(&below), grandchild, "{name}");
        }
        // Once the agent has decided for a child, its children are not undecided any more.
        let path = lab.cgroup.join("children/a");
        lab.give(&path, 3, 0);
        fs::create_dir(path.join("c")).unwrap();
        assert_eq!(
            lab.maps().cgroups.get(&id(&path.join("c"))).unwrap(),
            entry(3, 0)
        );
    });
}

#[test]
fn a_new_cgroup_gets_the_entry_of_its_name_or_its_parents() {
    use cgroup_flags::{UNDECIDED, UNITS_UNDECIDED};
    on_a_new_host(|lab| {
        lab.attach_all();
        let entry = |policy, flags, place| CgroupEntry {
            policy,
            flags,
            place,
        };
        let longest = "n".repeat(255);
        let names = [
            (1, "known", entry(7, 0, 2)),
            (2, "deep", entry(8, 0, 0)),
            (1, &longest, entry(9, 0, 0)),
            (0, "unit.service", entry(0, UNDECIDED, 0)),
        ];
        for (place, name, entry) in names {
            let mut key = NameKey {
                place,
                name: [0; NAME_LEN],
            };
            key.name[..name.len()].copy_from_slice(name.as_bytes());
            lab.maps().names.set(&key, &entry).unwrap();
        }
        let top = lab.group("top", 0);
        let parent = entry(1, UNITS_UNDECIDED, 1);
        lab.maps().cgroups.set(&id(&top), &parent).unwrap();
        let inherited = entry(1, UNITS_UNDECIDED, 0);
        let closed = entry(1, UNITS_UNDECIDED | UNDECIDED, 0);
        for (path, expected) in [
            ("known", entry(7, 0, 2)),
            ("known/deep", entry(8, 0, 0)),
            ("known/deep/deep", entry(8, 0, 0)),
            ("known/known", entry(7, 0, 0)),
            (&longest, entry(9, 0, 0)),
            ("know", inherited),
            ("knowns", inherited),
            ("deep", inherited),
            ("other/known", inherited),
            ("other/unit.service", closed),
            ("unit.service", closed),
        ] {
            let path = top.join(path);
            fs::create_dir_all(&path).unwrap();
            let found = lab.maps().cgroups.get(&id(&path)).unwrap();
            assert_eq!(found, Some(expected), "{}", path.display());
        }
    });
}

#[test]
fn the_agent_is_told_of_every_cgroup() {
    on_a_new_host(|lab| {
        lab.attach_all();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut events = {
            let _inside = runtime.enter();
            lab.datapath().events().unwrap()
        };
        let group = lab.group("told", 0);
        let [number, parent] = [id(&group), id(&lab.cgroup)];
        // The tracepoints see the whole machine: other tests make cgroups too.
        let made = Event::CgroupMade {
            id: number,
            parent,
            name: "told".to_owned(),
        };
        let removed = Event::CgroupRemoved { id: number };
        runtime.block_on(async { while events.next().await.unwrap() != made {} });
        remove_cgroup(&group);
        eventually("the removal is told", || {
            events.try_next() == Some(removed.clone())
        });
    });
}
