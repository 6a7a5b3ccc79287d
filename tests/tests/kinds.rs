//! Domains by what they are: groups of the files and those that are always there, the host's order of kinds, and
//! what policies require.

use anyhow::{Context, Result, ensure};
use steer_tests::health::by_http;
use steer_tests::{Agent, Family, Kind, Lab, LabCgroup, Uplink, Way, conformance};

/// What the interfaces of the laboratory cannot tell.
const KINDS: &str = "[domain.eth0]\nkind = \"wired\"\n\
                     [domain.wlan0]\nkind = \"wlan\"\n\
                     [domain.wwan0]\nkind = \"cellular\"\n";

fn policy(app: &LabCgroup, lines: &str) -> String {
    let cgroup = app.name();
    format!("[policy.app]\nmatch.cgroup = \"{cgroup}\"\n{lines}\n")
}

fn start<'lab>(lab: &'lab Lab, more: &str, lines: &str) -> Result<(Agent<'lab>, LabCgroup)> {
    let app = lab.cgroup().child("app")?;
    let agent = format!("{}{more}\n", by_http());
    lab.configure_agent(&agent, &format!("{}{KINDS}", policy(&app, lines)))?;
    let running = lab.start_agent()?;
    for uplink in lab.uplink_names() {
        lab.wait_state(uplink, "validated")?;
    }
    Ok((running, app))
}

#[test]
fn any_takes_wired_then_wlan_then_cellular() -> Result<()> {
    // By names and metrics it would be the other way round.
    let lab = Lab::builder()
        .uplinks([
            Uplink::new("eth0", 1).metric(500),
            Uplink::new("wlan0", 2).metric(300),
            Uplink::new("wwan0", 3).metric(100),
        ])
        .build()?;
    let (_agent, app) = start(&lab, "", "use = \"any\"")?;
    lab.chooses("app", &app, "eth0")?;
    lab.carrier_down("eth0")?;
    lab.chooses("app", &app, "wlan0")?;
    lab.blackhole("wlan0", Way::Upstream)?;
    lab.chooses("app", &app, "wwan0")?;
    lab.heal("wlan0")?;
    lab.chooses("app", &app, "wlan0")?;
    lab.carrier_up("eth0")?;
    lab.chooses("app", &app, "eth0")?;
    conformance::row(
        "S60-2",
        "automatically: of all domains the best by the host's order that leads somewhere",
    )?;
    conformance::row("WP7-1", "the default order: wired, WLAN, cellular")
}

#[test]
fn the_order_of_kinds_is_a_setting() -> Result<()> {
    let lab = Lab::new()?;
    let order = "order = [\"cellular\", \"wlan\", \"wired\"]";
    let (_agent, app) = start(&lab, order, "use = \"any\"")?;
    lab.chooses("app", &app, "wwan0")?;
    lab.carrier_down("wwan0")?;
    lab.chooses("app", &app, "wlan0")?;
    lab.carrier_down("wlan0")?;
    lab.chooses("app", &app, "eth0")
}

#[test]
fn an_application_overrides_the_order_by_kind_by_speed_and_by_name() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let text = |lines: &str| {
        format!(
            "{}[domain.eth0]\nkind = \"wired\"\nbandwidth = \"10M\"\n\
             [domain.wlan0]\nkind = \"wlan\"\nbandwidth = \"50M\"\n\
             [domain.wwan0]\nkind = \"cellular\"\nbandwidth = \"100M\"\n",
            policy(&app, lines)
        )
    };
    lab.configure_agent(&by_http(), &text("use = \"any\""))?;
    let _agent = lab.start_agent()?;
    lab.chooses("app", &app, "eth0")?;
    for (lines, uplink) in [
        (
            "use = \"any\"\nrequire = { kind = [\"cellular\"] }",
            "wwan0",
        ),
        (
            "use = \"any\"\nrequire = { kind = [\"cellular\", \"wlan\"] }",
            "wlan0",
        ),
        (
            "use = \"any\"\nrequire = { min-bandwidth = \"20M\" }",
            "wlan0",
        ),
        (
            "use = \"any\"\nrequire = { min-bandwidth = \"60M\" }",
            "wwan0",
        ),
        ("use = \"wlan0\"", "wlan0"),
        ("use = [\"wwan0\", \"any\"]", "wwan0"),
    ] {
        lab.reload(&by_http(), &text(lines))?;
        lab.chooses("app", &app, uplink).context(lines)?;
    }
    let none = "use = \"any\"\nrequire = { min-bandwidth = \"1G\" }\nstrict = true";
    lab.reload(&by_http(), &text(none))?;
    lab.wait_decision("app", "verdict", "block")?;
    lab.matrix_is_refused(&app, None)?;
    conformance::row(
        "WP7-1",
        "an application overrides the order by kind, by a lowest bandwidth, and by name",
    )
}

#[test]
fn an_application_names_a_technology_or_a_group_of_them_a_family_and_a_profile() -> Result<()> {
    let lab = Lab::builder()
        .uplinks([
            Uplink::new("eth0", 1),
            Uplink::new("wlan0", 2).without_ipv6(),
            Uplink::new("wwan0", 3),
            Uplink::new("wwan1", 4).without_ipv4(),
        ])
        .build()?;
    let app = lab.cgroup().child("app")?;
    let text = |lines: &str| {
        format!(
            "{}{KINDS}profile = \"corp\"\n[domain.wwan1]\nkind = \"cellular\"\nprofile = \"guest\"\n",
            policy(&app, lines)
        )
    };
    // By the gateways, which are there in both families.
    let agent = steer_tests::health::checked("icmp = \"gateway\"");
    lab.configure_agent(&agent, &text("use = \"any\""))?;
    let _agent = lab.start_agent()?;
    for uplink in lab.uplink_names() {
        lab.wait_state(uplink, "validated")?;
    }
    for (lines, uplink, families) in [
        ("use = \"any-wired\"", "eth0", &[Family::V4, Family::V6][..]),
        ("use = \"any-wlan\"", "wlan0", &[Family::V4]),
        ("use = \"any-wireless\"", "wlan0", &[Family::V4]),
        ("use = \"any-cellular\"", "wwan0", &[Family::V4, Family::V6]),
        (
            "use = \"any-wireless\"\nfamily = \"ipv6\"",
            "wwan0",
            &[Family::V4, Family::V6],
        ),
        (
            "use = [\"wwan1\", \"wwan0\"]\nfamily = \"ipv4\"",
            "wwan0",
            &[Family::V4, Family::V6],
        ),
        (
            "use = [\"wwan1\", \"wwan0\"]\nfamily = \"ipv6\"",
            "wwan1",
            &[Family::V6],
        ),
        (
            "use = \"any\"\nrequire = { profile = \"guest\" }",
            "wwan1",
            &[Family::V6],
        ),
        (
            "use = \"any\"\nrequire = { profile = \"corp\" }",
            "wwan0",
            &[Family::V4, Family::V6],
        ),
    ] {
        lab.reload(&agent, &text(lines))?;
        let chosen = || {
            lab.wait_decision("app", "domain", uplink)?;
            for family in families {
                lab.flow_leaves_by(&app, uplink, Kind::Tcp, *family)?;
            }
            Ok::<_, anyhow::Error>(())
        };
        chosen().context(lines)?;
    }
    for lines in [
        "use = \"any-vpn\"",
        "use = \"any\"\nrequire = { profile = \"other\" }",
    ] {
        lab.reload(&agent, &text(&format!("{lines}\notherwise = \"block\"")))?;
        lab.wait_decision("app", "verdict", "block")
            .context(lines)?;
    }
    conformance::row(
        "AMSS-1",
        "a technology, a group of technologies, an IP version, a profile: each alone names the domain",
    )
}

#[test]
fn security_and_metering_are_required() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let text = |lines: &str| {
        format!(
            "{}[domain.eth0]\nkind = \"wired\"\nsecurity = \"protected\"\nmetered = true\n\
             [domain.wlan0]\nkind = \"wlan\"\nsecurity = \"open\"\nmetered = false\n\
             [domain.wwan0]\nkind = \"cellular\"\nsecurity = \"encrypted\"\nmetered = true\n",
            policy(&app, lines)
        )
    };
    lab.configure_agent(&by_http(), &text("use = \"any\""))?;
    let _agent = lab.start_agent()?;
    for (require, uplink) in [
        ("security = \"open\"", "eth0"),
        ("security = \"protected\"", "eth0"),
        ("security = \"encrypted\"", "wwan0"),
        ("metered = false", "wlan0"),
        ("metered = true, kind = [\"wlan\", \"cellular\"]", "wwan0"),
    ] {
        let lines = format!("use = \"any\"\nrequire = {{ {require} }}");
        lab.reload(&by_http(), &text(&lines))?;
        lab.chooses("app", &app, uplink)
            .with_context(|| require.to_owned())?;
    }
    let contradiction = "use = \"any\"\nrequire = { metered = false, security = \"protected\" }\notherwise = \"block\"";
    lab.reload(&by_http(), &text(contradiction))?;
    lab.wait_decision("app", "verdict", "block")?;
    for uplink in lab.uplink_names() {
        lab.candidate("app", uplink, false)?;
    }
    lab.reload(&by_http(), &text("use = \"any\"\nprefer = [\"security\"]"))?;
    lab.chooses("app", &app, "wwan0")?;
    conformance::row(
        "WM-1",
        "choice by security, and a lowest one that is required",
    )
}

#[test]
fn the_best_available_member_of_a_group_is_taken() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let text = |lines: &str| {
        format!(
            "{}[group.internet]\ndomains = [\"wlan0\", \"eth0\", \"wwan0\"]\n\
             [domain.eth0]\ncost = 5\n[domain.wlan0]\ncost = 20\n[domain.wwan0]\ncost = 10\n",
            policy(&app, lines)
        )
    };
    lab.configure_agent(&by_http(), &text("use = \"internet\""))?;
    let _agent = lab.start_agent()?;
    for uplink in lab.uplink_names() {
        lab.wait_state(uplink, "validated")?;
    }
    lab.chooses("app", &app, "wlan0")?;
    // Each of the three ways to be no longer available.
    lab.blackhole("wlan0", Way::Both)?;
    lab.chooses("app", &app, "eth0")?;
    lab.carrier_down("eth0")?;
    lab.chooses("app", &app, "wwan0")?;
    lab.heal("wlan0")?;
    lab.chooses("app", &app, "wlan0")?;
    lab.serve_http("wlan0", steer_tests::checks::Http::Login)?;
    lab.chooses("app", &app, "wwan0")?;
    for uplink in ["wlan0", "eth0"] {
        lab.candidate("app", uplink, false)?;
    }
    lab.carrier_up("eth0")?;
    lab.serve_http("wlan0", steer_tests::checks::Http::Right)?;
    lab.wait_state("wlan0", "validated")?;
    lab.reload(&by_http(), &text("use = \"internet\"\nprefer = [\"cost\"]"))?;
    lab.chooses("app", &app, "eth0")?;
    ensure!(lab.candidate("app", "wlan0", false)?.contains("eth0"));
    conformance::row(
        "S60-3",
        "a group: the best available member is taken, by its order or by what the policy prefers",
    )
}
