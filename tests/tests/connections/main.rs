//! Connections of NetworkManager and modems of ModemManager: domains that are known by them.

mod managers;

use anyhow::{Result, ensure};
use serde_json::json;
use steer_tests::{Family, Kind, Lab};

use managers::Managers;

#[test]
fn a_domain_is_on_the_interface_that_its_connection_is_up_on() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let file = format!(
        "[domain.work]\nmatch.connection = \"Work\"\n\
         [policy.app]\nmatch.cgroup = \"{}\"\nuse = [\"work\"]\nstrict = true\n",
        app.name()
    );
    lab.configure_agent("check = \"none\"\n", &file)?;
    let managers = Managers::start(&lab)?;
    let mut agent = lab.start_agent()?;
    lab.wait_state("work", "absent")?;
    lab.matrix_is_refused(&app, Some("ENETUNREACH"))?;
    for (interface, restart) in [("eth0", false), ("wlan0", true)] {
        managers.connected(&[("Home", "wwan0"), ("Work", interface)])?;
        let shown = lab.wait_domain("work", &format!("be on {interface}"), |shown| {
            shown["interface"] == interface
        })?;
        ensure!(
            shown["state"] == "up" && shown["connection"] == "Work",
            "{shown:#}"
        );
        lab.flow_leaves_by(&app, interface, Kind::Tcp, Family::V4)?;
        if restart {
            // What was said holds until something else is: no flow is refused meanwhile.
            agent.restart_after_kill()?;
            lab.flow_leaves_by(&app, interface, Kind::UdpConnected, Family::V6)?;
            let shown = lab.steer(&["domain", "show", "work", "--json"])?.json()?;
            ensure!(shown["interface"] == interface, "{shown:#}");
        }
    }
    managers.connected(&[("Home", "wwan0")])?;
    lab.wait_state("work", "absent")?;
    lab.matrix_is_refused(&app, Some("ENETUNREACH"))?;
    Ok(())
}

#[test]
fn a_modem_is_told_by_its_operator_and_its_signal() -> Result<()> {
    let lab = Lab::new()?;
    let app = lab.cgroup().child("app")?;
    let file = format!(
        "[domain.wwan0]\nkind = \"cellular\"\n\
         [policy.app]\nmatch.cgroup = \"{}\"\nuse = [\"wwan0\"]\n",
        app.name()
    );
    lab.configure_agent("check = \"none\"\n", &file)?;
    let managers = Managers::start(&lab)?;
    managers.heard("wwan0", "Tel\u{1b}co", 71)?;
    let _agent = lab.start_agent()?;
    let shown = lab.wait_domain("wwan0", "have a signal", |shown| {
        shown["measured"]["signal_percent"] == json!(71)
    })?;
    ensure!(
        shown["connection"] == "Tel\\x1bco" && shown["network"] == "connection Tel\\x1bco",
        "{shown:#}"
    );
    managers.heard("wwan0", "Tel\u{1b}co", 20)?;
    lab.wait_domain("wwan0", "be heard less well", |shown| {
        shown["measured"]["signal_percent"] == json!(20)
    })?;
    Ok(())
}
