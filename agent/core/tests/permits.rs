//! What plain users may have steered: each key of a permit, and what holds without one.

mod support;

use steer_core::domains::Domains;
use steer_core::name::Name;
use steer_core::permission::{Denied, Full, MAX_OF_USERS, MAX_OWN, Wish, check, names, room};
use steer_core::permit::{Accounts, User};
use support::{config, name, two_uplinks};

const ALICE: u32 = 1000;

/// What alice, who is in the group 27, is told.
fn ask(text: &str, use_: &[&str], strict: bool, cgroup: Option<&str>) -> Result<(), Denied> {
    let config = config(text);
    let domains = Domains::new(&config, &two_uplinks());
    let accounts = Accounts {
        users: [("alice".into(), ALICE), ("bob".into(), 1001)].into(),
        groups: [("net".into(), 27)].into(),
    };
    let user = User {
        uid: ALICE,
        gids: vec![1000, 27],
    };
    let use_: Vec<Name> = use_.iter().copied().map(name).collect();
    let wish = Wish {
        use_: &use_,
        strict,
        cgroup,
    };
    check(&config, &domains, &accounts, &user, wish)
}

const LTE: &str = "[domain.mobile]\nmatch.interface = \"lte0\"\n\
                   [group.both]\ndomains = [\"wlan0\", \"mobile\"]\n";

#[test]
fn without_a_permit_a_user_may_use_what_was_found_and_nothing_of_the_files() {
    assert_eq!(ask("", &["wlan0", "lte0"], true, None), Ok(()));
    // The interface's name is an alias of the file's domain, and a group contains it.
    for via in ["mobile", "lte0", "both"] {
        let domain = name("mobile");
        let denied = Denied::Domain { uid: ALICE, domain };
        assert_eq!(ask(LTE, &["wlan0", via], false, None), Err(denied), "{via}");
    }
    assert_eq!(ask(LTE, &["wlan0"], false, None), Ok(()));
    assert!(matches!(
        ask("", &["wlan0"], false, Some("system.slice/x.service")),
        Err(Denied::Cgroup { .. })
    ));
}

#[test]
fn with_a_permit_for_somebody_else_a_user_may_do_nothing() {
    for who in [
        "users = \"bob\"",
        "users = \"1001\"",
        "users = [\"carol\", \"1001\"]",
        "groups = [\"wheel\", \"28\"]",
    ] {
        let told = ask(&format!("[permit.x]\n{who}"), &["wlan0"], false, None);
        assert_eq!(told, Err(Denied::Nobody(ALICE)), "{who}");
    }
}

#[test]
fn a_permit_is_for_users_and_for_members_of_groups() {
    for who in [
        "users = \"alice\"",
        "users = [\"bob\", \"1000\"]",
        "users = \"*\"",
        "groups = \"net\"",
        "groups = [\"27\"]",
        "users = \"bob\"\ngroups = \"net\"",
    ] {
        let text = format!("[permit.x]\n{who}");
        assert_eq!(ask(&text, &["wlan0"], true, None), Ok(()), "{who}");
    }
}

#[test]
fn each_key_limits_or_gives() {
    let permit = |keys: &str| format!("{LTE}[permit.x]\nusers = \"alice\"\n{keys}");
    let denied = |domain: &str| {
        let domain = name(domain);
        Err(Denied::Domain { uid: ALICE, domain })
    };
    assert_eq!(
        ask(&permit("domains = \"mobile\""), &["lte0"], true, None),
        Ok(())
    );
    assert_eq!(
        ask(
            &permit("domains = \"both\""),
            &["mobile", "wlan0"],
            true,
            None
        ),
        Ok(())
    );
    assert_eq!(
        ask(&permit("domains = \"mobile\""), &["both"], true, None),
        denied("wlan0")
    );
    assert_eq!(ask(&permit(""), &["mobile"], true, None), denied("mobile"));

    let lax = permit("strict = false");
    assert_eq!(
        ask(&lax, &["wlan0"], true, None),
        Err(Denied::Strict(ALICE))
    );
    assert_eq!(ask(&lax, &["wlan0"], false, None), Ok(()));

    let cgroups = permit("cgroups = [\"app.slice/*\"]");
    assert_eq!(
        ask(&cgroups, &["wlan0"], false, Some("app.slice/web")),
        Ok(())
    );
    for outside in ["app.slice", "app.slice/web/inner", "system.slice/web"] {
        let path = outside.to_owned();
        assert_eq!(
            ask(&cgroups, &["wlan0"], false, Some(outside)),
            Err(Denied::Cgroup { uid: ALICE, path })
        );
    }

    let limited = permit("destinations = [\"10.0.0.0/8\"]");
    assert_eq!(
        ask(&limited, &["wlan0"], false, None),
        Err(Denied::Destinations(name("x")))
    );
}

#[test]
fn one_permit_must_give_all_of_a_wish() {
    let text = format!(
        "{LTE}[permit.a]\nusers = \"alice\"\ndomains = \"mobile\"\nstrict = false\n\
         [permit.b]\nusers = \"alice\"\ndomains = \"wlan0\"\n"
    );
    assert_eq!(ask(&text, &["mobile"], false, None), Ok(()));
    assert_eq!(ask(&text, &["wlan0"], true, None), Ok(()));
    assert!(ask(&text, &["mobile"], true, None).is_err());
    assert!(ask(&text, &["mobile", "wlan0"], false, None).is_err());
}

#[test]
fn only_names_are_looked_up() {
    let config = config(
        "[permit.a]\nusers = [\"alice\", \"7\", \"*\"]\ngroups = \"net\"\n[permit.b]\nusers = \"bob\"",
    );
    assert_eq!(names(&config), (vec!["alice", "bob"], vec!["net"]));
}

#[test]
fn a_user_has_an_end_of_policies_and_so_have_all_users_together() {
    let own = |count| std::iter::repeat_n(ALICE, count);
    assert_eq!(room(own(MAX_OWN - 1), ALICE), Ok(()));
    assert_eq!(room(own(MAX_OWN), ALICE), Err(Full::Own(ALICE)));
    assert_eq!(room(own(MAX_OWN), ALICE + 1), Ok(()));
    // One user with many ids.
    let ids = |count: usize| (0..).flat_map(|uid| [uid; MAX_OWN]).take(count);
    assert_eq!(room(ids(MAX_OF_USERS - 1), u32::MAX), Ok(()));
    assert_eq!(room(ids(MAX_OF_USERS), u32::MAX), Err(Full::All));
}
