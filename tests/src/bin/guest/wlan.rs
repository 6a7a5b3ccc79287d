//! A station between two WLANs, and what the agent says of it.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use steer_tests::health::checked;
use steer_tests::wlan::{AccessPoint, Station, Wlan, make_radios};
use steer_tests::{Lab, Uplink, wait};

const CAFE: Wlan = Wlan {
    ssid: "cafe",
    passphrase: None,
    radio: 1,
};
const OFFICE: Wlan = Wlan {
    ssid: "office",
    passphrase: Some("correct horse"),
    radio: 2,
};

/// How an access point is heard that is as strong as the kernel makes it.
const STRONG: i32 = -30;
/// How one is heard that is far away.
const WEAK: i32 = -75;

/// The domain, which is named as its interface.
const DOMAIN: &str = "wlan0";

pub(crate) fn run() -> Result<()> {
    make_radios(3)?;
    let lab = Lab::builder().uplinks([Uplink::new("eth0", 3)]).build()?;
    let cafe = AccessPoint::start(CAFE)?;
    let mut office = AccessPoint::start(OFFICE)?;
    let mut station = lab.station(&[CAFE, OFFICE])?;
    let app = lab.cgroup().child("app")?;
    let policy = format!(
        "[policy.app]\nmatch.cgroup = \"{}\"\nuse = [\"{DOMAIN}\", \"eth0\"]\n",
        app.name()
    );
    lab.configure_agent(&checked("icmp = \"gateway\""), &policy)?;
    let agent = lab.start_agent()?;
    let told = lab.steer(&["doctor", "--json"])?.json()?;
    println!("{}", told["findings"]);
    ensure!(told["summary"]["problems"] == 0, "the host is not fit");

    station.join(&CAFE)?;
    is_attached(&lab, &station, &CAFE).context("in the cafe")?;
    is_heard(&station, STRONG)?;

    cafe.set_signal(WEAK.into())?;
    is_heard(&station, WEAK).context("from far away")?;

    station.join(&OFFICE)?;
    is_attached(&lab, &station, &OFFICE).context("in the office")?;
    is_heard(&station, STRONG)?;

    office.vanish()?;
    is_lost(&lab, &station).context("when the access point has gone")?;
    office.offer()?;
    station.join(&OFFICE)?;
    is_attached(&lab, &station, &OFFICE).context("when it has come back")?;

    station.leave()?;
    is_lost(&lab, &station).context("when the station has left")?;
    drop(agent);
    Ok(())
}

/// The domain is there by the network, with its address alone, and passes its checks.
fn is_attached(lab: &Lab, station: &Station<'_>, wlan: &Wlan) -> Result<()> {
    let addresses = json!([format!("{}/24", wlan.address())]);
    let shown = lab.wait_domain(DOMAIN, &format!("be validated by {addresses}"), |shown| {
        shown["state"] == "validated" && shown["addresses"] == addresses
    })?;
    ensure!(shown["kind"] == "wlan", "{shown:#}");
    is_named(station, wlan)
}

/// The network is known by its name.
fn is_named(station: &Station<'_>, wlan: &Wlan) -> Result<()> {
    let connection = station
        .connection()?
        .context("the station is not connected")?;
    ensure!(connection.ssid == wlan.ssid, "{connection:?}");
    Ok(())
}

/// The network is heard by so many dBm.
fn is_heard(station: &Station<'_>, dbm: i32) -> Result<()> {
    wait::until(&format!("{dbm} dBm"), || {
        let connection = station
            .connection()?
            .context("the station is not connected")?;
        Ok((connection.signal == dbm).then_some(()))
    })
}

/// The domain is down, and the station connected to nothing.
fn is_lost(lab: &Lab, station: &Station<'_>) -> Result<()> {
    lab.wait_state(DOMAIN, "down")?;
    let connection = station.connection()?;
    ensure!(connection.is_none(), "{connection:?}");
    Ok(())
}
