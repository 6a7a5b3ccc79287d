//! What an application has without a choice of its own: the host's default interface, or the default
//! policy; and what it can learn of the domains that there are.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::{Family, Kind, Lab, User, conformance, wait};

#[test]
fn what_has_no_policy_leaves_by_the_default_route_as_without_steer() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let other = lab.cgroup().child("other")?;
    lab.matrix_leaves_by(&other, "eth0")
        .context("without steer")?;
    let _agent = lab.start_agent()?;
    lab.set_policy("app", &app, "wwan0", &[])?;
    lab.matrix_leaves_by(&other, "eth0")
        .context("beside a steered application")?;
    lab.matrix_leaves_by(&app, "wwan0")?;
    // The host chooses another default.
    lab.ip(&[
        "route", "replace", "default", "via", "10.2.0.1", "dev", "wlan0", "metric", "1",
    ])?;
    lab.ip(&[
        "-6",
        "route",
        "replace",
        "default",
        "via",
        "2001:db8:2::1",
        "dev",
        "wlan0",
        "metric",
        "1",
    ])?;
    lab.matrix_leaves_by(&other, "wlan0")
        .context("another default route")?;
    lab.matrix_leaves_by(&app, "wwan0")?;
    conformance::row(
        "BB-5",
        "what has no policy leaves by the interface of the host's default route, as without steer and \
         when that changes, while others are steered",
    )
}

#[test]
fn the_default_policy_holds_where_no_other_does_and_follows_the_networks() -> Result<()> {
    let lab = Lab::new()?;
    let own = lab.cgroup().child("own")?;
    let other = lab.cgroup().child("other/deep")?;
    // Neither is what the host's routing would choose.
    lab.configure(&format!(
        "[policy.default]\nuse = [\"wlan0\", \"wwan0\"]\n\
         [policy.own]\nmatch.cgroup = \"{}\"\nuse = \"eth0\"\n",
        own.name()
    ))?;
    let _agent = lab.start_agent()?;
    let goes_by = |uplink: &str| -> Result<()> {
        lab.wait_decision("default", "domain", uplink)?;
        lab.matrix_leaves_by(&other, uplink)
            .with_context(|| format!("by default {uplink}"))
    };
    goes_by("wlan0")?;
    lab.matrix_leaves_by(&own, "eth0")?;
    lab.carrier_down("wlan0")?;
    goes_by("wwan0")?;
    lab.delete_link("wwan0")?;
    lab.wait_decision("default", "verdict", "block")?;
    lab.matrix_is_refused(&other, Some("ENETUNREACH"))?;
    lab.flow_leaves_by(&own, "eth0", Kind::Tcp, Family::V4)?;
    lab.create_link("wwan0")?;
    goes_by("wwan0")?;
    lab.carrier_up("wlan0")?;
    goes_by("wlan0")?;
    conformance::row(
        "AMSS-5",
        "the default policy of the file steers what has no policy of its own, and chooses again when \
         networks go and come",
    )
}

#[test]
fn applications_list_the_domains_with_state_kind_and_addresses() -> Result<()> {
    let lab = Lab::new()?;
    lab.configure(
        "[domain.home]\nmatch = { interface = \"wlan0\" }\nkind = \"wlan\"\n\
         [domain.modem]\nmatch = { interface = \"wwan0\" }\nkind = \"cellular\"\n\
         [domain.corp]\nmatch = { interface = \"wg9\" }\nkind = \"vpn\"\n",
    )?;
    let _agent = lab.start_agent()?;
    lab.carrier_down("wlan0")?;
    lab.ip(&["address", "flush", "dev", "wwan0"])?;
    let list = || -> Result<Value> { lab.steer(&["domain", "list", "--json"])?.json() };
    let of = |list: &Value, name: &str, key: &str| {
        let mut domains = list.as_array().into_iter().flatten();
        let domain = domains.find(|domain| domain["name"] == name);
        domain.map_or(Value::Null, |domain| domain[key].clone())
    };
    let wanted = [
        ("corp", "absent", "vpn", Value::Null),
        ("eth0", "up", "other", "eth0".into()),
        ("home", "down", "wlan", "wlan0".into()),
        ("modem", "configuring", "cellular", "wwan0".into()),
    ];
    let listed = wait::until("the domains to be in these states", || {
        let list = list()?;
        let all = wanted
            .iter()
            .all(|(name, state, ..)| of(&list, name, "state") == *state);
        Ok(all.then_some(list))
    })?;
    ensure!(
        listed
            .as_array()
            .is_some_and(|list| list.len() == wanted.len()),
        "{listed}"
    );
    let text = lab.steer(&["domain", "list"])?;
    for (name, state, kind, interface) in &wanted {
        ensure!(of(&listed, name, "kind") == *kind, "{name}: {listed}");
        ensure!(
            of(&listed, name, "interface") == *interface,
            "{name}: {listed}"
        );
        let row = text.success()?.lines().find(|row| row.starts_with(name));
        let words: Vec<_> = row.context("no row")?.split_whitespace().collect();
        ensure!(
            words.contains(state) && words.contains(kind),
            "{name}: {words:?}"
        );
    }
    let addresses = of(&listed, "eth0", "addresses");
    ensure!(
        addresses == serde_json::json!(["10.1.0.2/24", "2001:db8:1::2/64"]),
        "{addresses}"
    );
    let gateways = of(&listed, "eth0", "gateways");
    ensure!(
        gateways == serde_json::json!(["10.1.0.1", "2001:db8:1::1"]),
        "{gateways}"
    );
    // A plain user sees the same.
    let user = User::new(4711);
    let own = lab.cgroup().child("user")?;
    for args in [&["domain", "list"][..], &["domain", "list", "--json"]] {
        let (root, plain) = (lab.steer(args)?, lab.steer_as(&user, &own, args)?);
        let (root, plain) = (root.success()?, plain.success()?);
        ensure!(root == plain, "{args:?}: {root} {plain}");
    }
    // What is listed follows the network.
    lab.carrier_up("wlan0")?;
    wait::until("the domain to be up", || {
        Ok((of(&list()?, "home", "state") == "up").then_some(()))
    })?;
    conformance::row(
        "AND-6",
        "applications of any user list the domains: up, down, configuring or absent, with kind, interface, addresses \
         and gateways, as text and as JSON",
    )
}
