//! Ten thousand rules of one policy, which is as many as it can have.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::load::{Load, Way};
use steer_tests::{Family, Kind, Lab, LabCgroup};

use super::bed::{self, Flow, Place, policy};

const MANY: usize = 10_000;

/// Rules that fit nothing which is sent here, then one for what [`Load`] sends, by `wwan0`, and one for a
/// place, by `eth0`.
fn many(app: &LabCgroup, lines: &str) -> String {
    let mut rules: Vec<String> = (0..MANY - 2)
        .map(|number| {
            let (high, low) = (64 + number / 256, number % 256);
            let uplink = ["eth0", "wlan0", "wwan0"][number % 3];
            format!("destination=\"100.{high}.{low}.0/24\"\nuse=\"{uplink}\"")
        })
        .collect();
    rules.push(
        "destination = [\"198.18.0.0/16\", \"2001:db8:ffff:0:0::/80\"]\nuse = \"wwan0\"".to_owned(),
    );
    rules.push(bed::to(Place(1), "eth0", ""));
    policy("app", app, &format!("use = \"wlan0\"\n{lines}"), &rules)
}

fn explain(lab: &Lab, app: &LabCgroup, to: &str) -> Result<Value> {
    lab.steer(&["explain", "--json", "--cgroup", app.name(), to])?
        .json()
}

/// What `explain` says decides a flow: the rule's number, and the domain.
fn decides(lab: &Lab, app: &LabCgroup, to: &str, rule: Option<usize>, domain: &str) -> Result<()> {
    let explained = explain(lab, app, to)?;
    let flow = &explained["flow"];
    let rules = flow["decided_by"].as_array().context("decided_by")?;
    let is_named = match (rule, rules.as_slice()) {
        (None, []) => true,
        (Some(number), [Value::String(one)]) => one.starts_with(&format!("app rule {number}: ")),
        _ => false,
    };
    ensure!(
        is_named && flow["domain"] == domain && flow["outcome"] == "steered",
        "{to}: {explained:#}"
    );
    ensure!(
        explained["warnings"].as_array().is_some_and(Vec::is_empty),
        "{explained:#}"
    );
    Ok(())
}

#[test]
fn ten_thousand_rules_are_in_force_shown_and_explained() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    lab.configure(&many(&app, ""))?;
    let _agent = lab.start_agent()?;
    bed::flows_leave_by(&lab, &app, Some(Place(1)), "eth0")?;
    for kind in bed::KINDS {
        Flow::new(kind, Family::V4, lab.target4()).leaves_by(&lab, &app, "wwan0")?;
    }
    bed::flows_leave_by(&lab, &app, Some(Place(2)), "wlan0")?;

    let shown = bed::shown(&lab, "app")?;
    ensure!(shown["rules"] == MANY, "{}", shown["rules"]);
    let decisions = shown["rule_decisions"].as_array().context("decisions")?;
    ensure!(decisions.len() == 1_000, "{}", decisions.len());
    let first = &decisions[0];
    ensure!(
        first["number"] == 1
            && first["domain"] == "eth0"
            && first["text"] == "destination 100.64.0.0/24 -> eth0",
        "{first:#}"
    );
    let text = lab.steer(&["policy", "show", "app"])?.unwrapped();
    ensure!(
        text.contains("wlan0 10000 rules") && text.contains("more rules: steer policy show --json"),
        "{text}"
    );

    decides(&lab, &app, "100.64.0.9", Some(1), "eth0")?;
    decides(&lab, &app, "100.102.255.1", Some(38 * 256 + 256), "wwan0")?;
    decides(&lab, &app, "198.18.0.1:443", Some(MANY - 1), "wwan0")?;
    decides(&lab, &app, "198.51.100.17:443", Some(MANY), "eth0")?;
    decides(&lab, &app, "198.51.100.33:443", None, "wlan0")?;
    let text = lab.steer(&["explain", "--cgroup", app.name(), "198.18.0.1"])?;
    let text = text.unwrapped();
    ensure!(
        text.contains("app rule 9999: destination 198.18.0.0/16"),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_killed_agent_adopts_ten_thousand_rules_and_nothing_is_lost_or_leaks() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let app = lab.cgroup().child("app")?;
    lab.configure(&many(&app, "strict = true"))?;
    let mut agent = lab.start_agent()?;
    let ways = [
        Way::Connections,
        Way::Connection,
        Way::Connected,
        Way::Unconnected,
        Way::Datagrams,
    ];
    let load = Load::start(&lab, &app, &ways)?;
    let sets = lab.rulesets()?;
    ensure!(sets.len() == 1, "one policy has rules: {sets:?}");
    for round in 0..3 {
        agent
            .restart_after_kill()
            .with_context(|| format!("round {round}"))?;
        let now = lab.rulesets()?;
        ensure!(
            now == sets,
            "round {round}: {sets:?} was replaced by {now:?}"
        );
        decides(&lab, &app, "198.18.0.1:443", Some(MANY - 1), "wwan0")?;
    }
    // What does not change stays when files are read again, and what does is replaced.
    lab.steer(&["reload"])?.success()?;
    ensure!(lab.rulesets()? == sets, "reload without a change");
    bed::reload(
        &lab,
        &many(&app, "strict = true").replace("100.64.0.0/24", "100.63.0.0/24"),
    )?;
    let now = lab.rulesets()?;
    ensure!(now.len() == 1 && now != sets, "{sets:?}, then {now:?}");
    lab.drain()?;
    let own = lab.uplink("wwan0")?.addresses().into_iter().collect();
    load.assert_only_by(&lab, 0.., &[("wwan0".to_owned(), own)].into())?;
    load.finish_complete(&lab, "wwan0")
}

#[test]
fn check_tells_of_a_rule_that_is_never_reached() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let rules = [
        "destination = \"198.51.100.0/24\"\nuse = \"wwan0\"",
        "destination = \"198.51.100.16/28\"\nprotocol = \"tcp\"\nuse = \"eth0\"",
        "protocol = \"udp\"\nuse = \"eth0\"",
    ];
    let rules = rules.map(str::to_owned);
    lab.configure(&policy("app", &app, "use = \"wlan0\"", &rules))?;
    let output = lab.steer(&["check", "--json"])?;
    let found = output.json()?;
    let found = found.as_array().context("a list")?;
    let message = "rule 2 of policy `app` never applies: rule 1 fits everything that it fits";
    let told: Vec<_> = found
        .iter()
        .filter(|one| one["message"] == message)
        .collect();
    ensure!(
        told.len() == 1 && told[0]["kind"] == "unreachable" && found.len() == 1,
        "{found:#?}"
    );
    let text = lab.steer(&["check"])?;
    ensure!(
        text.success()?
            .contains("remove it, or put it before rule 1"),
        "{text:?}"
    );
    // So it is: the first has its flows.
    let _agent = lab.start_agent()?;
    Flow::new(Kind::Tcp, Family::V4, Place(1).at(Family::V4, 1)).leaves_by(&lab, &app, "wwan0")?;
    decides(&lab, &app, "198.51.100.17:443", Some(1), "wwan0")
}
