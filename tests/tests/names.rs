//! `steer explain --name`: a name means what the name servers of the chosen domain say, asked over that domain alone.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use steer_tests::checks::{DNS_PORT, Dns, HOST_NAME, HOST4, HOST6, PORTAL4, PORTAL6};
use steer_tests::{Caller, Direction, Lab, LabCgroup, Output, User};

const ALICE: u32 = 4711;

const SERVERS: &str = "[domain.wlan0]\ndns.servers = [\"10.2.0.1\"]\n\
                       [domain.wwan0]\ndns.servers = [\"10.3.0.1\"]\n";

fn explain(lab: &Lab, cgroup: &LabCgroup, more: &[&str]) -> Result<Output> {
    let mut args = vec!["explain", "--json", "--cgroup", cgroup.name()];
    args.extend(more);
    lab.steer(&args)
}

/// Of each explanation of a flow: where to, what becomes of it, and by which interface.
fn flows(answer: &Value) -> Result<Vec<[&str; 3]>> {
    let explanations = answer["explanations"].as_array().context("no list")?;
    Ok(explanations
        .iter()
        .map(|one| {
            ["destination", "outcome", "interface"]
                .map(|key| one["flow"][key].as_str().unwrap_or_default())
        })
        .collect())
}

/// The uplinks by which name servers were asked since then.
fn asked_by(lab: &Lab, position: usize) -> Result<Vec<String>> {
    lab.drain()?;
    let questions = lab.capture().since(position, |packet| {
        packet.direction == Direction::FromHost && packet.destination_port == Some(DNS_PORT)
    });
    let mut uplinks: Vec<String> = questions.into_iter().map(|packet| packet.uplink).collect();
    uplinks.sort();
    uplinks.dedup();
    Ok(uplinks)
}

#[test]
fn a_name_means_what_the_name_servers_of_the_chosen_domain_say() -> Result<()> {
    let lab = Lab::new()?;
    lab.serve_dns("wwan0", Dns::Portal)?;
    let (near, far) = (lab.cgroup().child("near")?, lab.cgroup().child("far")?);
    let policies = format!(
        "{SERVERS}[policy.near]\nmatch.cgroup = \"{}\"\nuse = [\"wlan0\"]\n\
         [policy.far]\nmatch.cgroup = \"{}\"\nuse = [\"wwan0\"]\n",
        near.name(),
        far.name()
    );
    lab.configure_agent("check = \"none\"\n", &policies)?;
    let _agent = lab.start_agent()?;
    for (cgroup, domain, [v6, v4]) in [
        (&near, "wlan0", [HOST6, HOST4]),
        (&far, "wwan0", [PORTAL6, PORTAL4]),
    ] {
        let position = lab.position()?;
        let name = format!("{HOST_NAME}:443");
        let answer = explain(&lab, cgroup, &["--name", &name])?.json()?;
        ensure!(asked_by(&lab, position)? == [domain], "{answer:#}");
        lab.assert_sources_match(position)?;
        ensure!(answer["domain"] == domain, "{answer:#}");
        ensure!(
            answer["addresses"] == json!([v6.to_string(), v4.to_string()]),
            "{answer:#}"
        );
        let (v6, v4) = (v6.to_string(), v4.to_string());
        let expected = [[&*v6, "steered", domain], [&*v4, "steered", domain]];
        ensure!(flows(&answer)? == expected, "{answer:#}");
        let answer = explain(&lab, cgroup, &["-4", "--name", &name])?.json()?;
        ensure!(flows(&answer)? == [[&*v4, "steered", domain]], "{answer:#}");
    }
    Ok(())
}

#[test]
fn a_name_without_an_address_is_told_with_the_reason() -> Result<()> {
    let lab = Lab::new()?;
    let (app, shut) = (lab.cgroup().child("app")?, lab.cgroup().child("shut")?);
    let policies = format!(
        "{SERVERS}[policy.app]\nmatch.cgroup = \"{}\"\nuse = [\"wlan0\"]\n\
         [policy.shut]\nmatch.cgroup = \"{}\"\n",
        app.name(),
        shut.name()
    );
    lab.configure_agent("check = \"none\"\n", &policies)?;
    let _agent = lab.start_agent()?;
    let failures = |cgroup: &LabCgroup, name: &str| -> Result<String> {
        let answer = explain(&lab, cgroup, &["--name", name])?.json()?;
        ensure!(answer["addresses"] == json!([]), "{answer:#}");
        ensure!(flows(&answer)? == [[""; 3]], "in general: {answer:#}");
        Ok(answer["failures"].to_string())
    };
    let unknown = failures(&app, "nowhere.example")?;
    ensure!(unknown.contains("Non-Existent Domain"), "{unknown}");
    let blocked = failures(&shut, HOST_NAME)?;
    ensure!(blocked.contains("no domain is chosen"), "{blocked}");
    lab.serve_dns("wlan0", Dns::Silent)?;
    let silent = failures(&app, HOST_NAME)?;
    ensure!(silent.contains("10.2.0.1"), "{silent}");
    for (name, words) in [
        ("printer.local", "RFC 6762"),
        ("a b.example", "is not a host"),
    ] {
        let refused = explain(&lab, &app, &["--name", name])?;
        ensure!(refused.failure(1)?.contains(words), "{refused:?}");
    }
    Ok(())
}

#[test]
fn a_user_asks_by_its_own_domain_and_by_none_that_it_may_not_use() -> Result<()> {
    let lab = Lab::new()?;
    let (own, other) = (lab.cgroup().child("own")?, lab.cgroup().child("other")?);
    let mute = lab.cgroup().child("mute")?;
    let policies = format!(
        "{SERVERS}[permit.none]\nusers = [\"nobody\"]\ndomains = [\"wlan0\", \"wwan0\"]\n\
         [policy.own]\nmatch.cgroup = \"{}\"\nuse = [\"wlan0\"]\n\
         [policy.mute]\nmatch.cgroup = \"{}\"\nuse = [\"wlan0\"]\n\
         [[policy.mute.rule]]\nprotocol = \"udp\"\nports = 53\notherwise = \"block\"\n\
         [policy.other]\nmatch.cgroup = \"{}\"\nuse = [\"wwan0\"]\n",
        own.name(),
        mute.name(),
        other.name()
    );
    lab.configure_agent("check = \"none\"\n", &policies)?;
    let _agent = lab.start_agent()?;
    let alice = User::new(ALICE);
    let name = ["explain", "--json", "--name", HOST_NAME];
    let answer = lab.steer_as(&alice, &own, &name)?.json()?;
    ensure!(answer["domain"] == "wlan0", "{answer:#}");
    ensure!(flows(&answer)?.len() == 2, "{answer:#}");
    let of_other = [&name[..], &["--cgroup", other.name()]].concat();
    let refused = lab.steer_as(&alice, &own, &of_other)?;
    ensure!(refused.failure(1)?.contains("not yours"), "{refused:?}");
    let mut caller = Caller::start(&lab, &alice, &own)?;
    let asked = |domain: &str| json!({"name": HOST_NAME, "domain": domain});
    let position = lab.position()?;
    let refused = caller.call("Resolve", &asked("wwan0"))?;
    ensure!(
        refused["error"] == "net.steer.Agent.NotPermitted",
        "{refused}"
    );
    // What may not ask name servers itself, by its policy's rules or since it has no network, asks none by this.
    let refused = Caller::start(&lab, &alice, &mute)?.call("Resolve", &asked("wlan0"))?;
    ensure!(
        refused["error"] == "net.steer.Agent.NotPermitted",
        "{refused}"
    );
    let steer = lab.steer_command(&alice, &own, &name)?;
    let mut command = lab.command("unshare", &own)?;
    command
        .args(["-r", "-n"])
        .arg(steer.get_program())
        .args(steer.get_args());
    alice.become_by(&mut command);
    let alone = Output::of(&mut command, &name)?;
    ensure!(alone.failure(1)?.contains("no [permit.x]"), "{alone:?}");
    ensure!(asked_by(&lab, position)?.is_empty(), "{refused}");
    // What is asked ends with who asked, and the agent goes on.
    lab.serve_dns("wlan0", Dns::Silent)?;
    for _ in 0..50 {
        let mut one = Caller::start(&lab, &alice, &own)?;
        one.ask("Resolve", &asked("wlan0"), false)?;
    }
    lab.serve_dns("wlan0", Dns::Right)?;
    let found = Caller::start(&lab, &alice, &own)?.call("Resolve", &asked("wlan0"))?;
    ensure!(
        found["parameters"]["addresses"] == json!([HOST6.to_string(), HOST4.to_string()]),
        "{found}"
    );
    Ok(())
}
