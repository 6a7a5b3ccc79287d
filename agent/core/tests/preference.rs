//! What `steer domain prefer` does to a policy: another first choice among those that it has.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use steer_core::engine::{Engine, Rejected};
use steer_core::name::Name;
use steer_core::select::Decision;
use steer_core::state::Event;
use support::{carrier, config, engine_with, name, policy, strict};

const FILE: &str = "[group.internet]\ndomains = [\"eth0\", \"wlan0\", \"lte0\"]\n\
                    [domain.lte]\nmatch.interface = \"lte0\"\n\
                    [policy.default]\nuse = [\"internet\"]\n";

fn prefer(engine: &mut Engine, policy: &str, domain: Option<&str>) -> Result<(), Rejected> {
    let taken = engine.apply(Event::Prefer {
        policy: name(policy),
        domain: domain.map(name),
    });
    engine.settle();
    taken
}

fn decision(engine: &Engine, policy: &str) -> Decision {
    engine.decision(policy).unwrap()
}

fn looked_at(decision: &Decision) -> Vec<&str> {
    let candidates = decision.candidates.iter();
    candidates
        .map(|candidate| candidate.domain.as_str())
        .collect()
}

#[test]
fn a_preferred_domain_comes_before_the_others() {
    let mut engine = engine_with(FILE);
    let first = decision(&engine, "default");
    assert_eq!(first.domain(), Some(&name("wlan0")));
    assert_eq!(first.reason, "wlan0 is the first that fits");

    // A member of a group, by its interface's name.
    prefer(&mut engine, "default", Some("lte0")).unwrap();
    let preferred = decision(&engine, "default");
    assert_eq!(preferred.domain(), Some(&name("lte")));
    assert_eq!(
        preferred.reason,
        "lte is preferred (steer domain prefer) and fits"
    );

    // When it goes, the policy's own order holds, and comes back behind it.
    let down = carrier(&engine.state().network, 3, false);
    engine.apply(down).unwrap();
    engine.settle();
    let next = decision(&engine, "default");
    assert_eq!(looked_at(&next), ["lte", "eth0", "wlan0"]);
    assert_eq!(next.domain(), Some(&name("wlan0")));
    assert_eq!(next.reason, "wlan0 is the first that fits");

    prefer(&mut engine, "default", None).unwrap();
    assert_eq!(
        looked_at(&decision(&engine, "default")),
        ["eth0", "wlan0", "lte"]
    );
}

#[test]
fn a_preference_never_adds_a_domain() {
    let mut engine = engine_with(FILE);
    let narrow = strict(policy("narrow", "a", &["wlan0"]));
    engine.apply(Event::SetPolicy(narrow)).unwrap();
    engine.settle();
    let rejected = prefer(&mut engine, "narrow", Some("lte")).unwrap_err();
    assert_eq!(
        rejected.to_string(),
        "policy `narrow` cannot use `lte`, only `wlan0`: a preference adds nothing to `use`"
    );
    assert!(engine.state().preferred.is_empty());

    // Nor when the policy is narrowed later.
    let both = strict(policy("narrow", "a", &["wlan0", "lte"]));
    engine.apply(Event::SetPolicy(both)).unwrap();
    prefer(&mut engine, "narrow", Some("lte")).unwrap();
    assert_eq!(decision(&engine, "narrow").domain(), Some(&name("lte")));
    let narrow = strict(policy("narrow", "a", &["wlan0"]));
    engine.apply(Event::SetPolicy(narrow)).unwrap();
    engine.settle();
    assert_eq!(looked_at(&decision(&engine, "narrow")), ["wlan0"]);

    let unknown = prefer(&mut engine, "narow", Some("lte")).unwrap_err();
    assert!(unknown.to_string().contains("did you mean `narrow`?"));
}

#[test]
fn a_preference_ends_with_its_policy_and_not_before() {
    let mut engine = engine_with(FILE);
    let web = policy("web", "a", &["wlan0", "lte"]);
    engine.apply(Event::SetPolicy(web.clone())).unwrap();
    prefer(&mut engine, "web", Some("lte")).unwrap();
    prefer(&mut engine, "default", Some("lte")).unwrap();
    // The files are read again.
    engine.apply(Event::Config(Box::new(config(FILE)))).unwrap();
    engine.settle();
    let kept: Vec<&Name> = engine.state().preferred.keys().collect();
    assert_eq!(kept, [&name("default"), &name("web")]);

    engine.apply(Event::UnsetPolicy(name("web"))).unwrap();
    engine.apply(Event::SetPolicy(web)).unwrap();
    engine.settle();
    assert_eq!(decision(&engine, "web").domain(), Some(&name("wlan0")));
    engine.apply(Event::Config(Box::new(config("")))).unwrap();
    assert!(engine.state().preferred.is_empty());
}
