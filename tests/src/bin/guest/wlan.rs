//! A station between two WLANs, and what the agent says of it.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use steer_tests::health::checked;
use steer_tests::wlan::{AccessPoint, SERVER, SERVER_PORT, Station, Wlan, make_radios};
use steer_tests::{Family, Kind, Lab, Probe, Session, Uplink, wait};

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

/// How long it may take until it is told how an access point is heard: it is looked at every ten seconds.
const HEARD: Duration = Duration::from_secs(40);

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
    is_heard(&lab, &station, STRONG)?;

    cafe.set_signal(WEAK.into())?;
    is_heard(&lab, &station, WEAK).context("from far away")?;

    station.join(&OFFICE)?;
    is_attached(&lab, &station, &OFFICE).context("in the office")?;
    is_heard(&lab, &station, STRONG)?;

    office.vanish()?;
    is_lost(&lab, &station).context("when the access point has gone")?;
    office.offer()?;
    station.join(&OFFICE)?;
    is_attached(&lab, &station, &OFFICE).context("when it has come back")?;

    station.leave()?;
    is_lost(&lab, &station).context("when the station has left")?;
    strict_stays_with_its_wlan(&lab, &cafe, &office, &mut station)
        .context("a policy for one WLAN")?;
    drop(agent);
    Ok(())
}

/// What may leave by one WLAN alone, known by its name, does not leave by another: not while the station changes, and
/// not where that one passes for the first.
fn strict_stays_with_its_wlan(
    lab: &Lab,
    cafe: &AccessPoint,
    office: &AccessPoint,
    station: &mut Station<'_>,
) -> Result<()> {
    let secret = lab.cgroup().child("secret")?;
    let policy = format!(
        "[domain.cafe]\nmatch.ssid = \"{}\"\n\
         [policy.secret]\nmatch.cgroup = \"{}\"\nuse = [\"cafe\"]\nstrict = true\n",
        CAFE.ssid,
        secret.name()
    );
    lab.configure_agent(&checked("icmp = \"gateway\""), &policy)?;
    lab.steer(&["reload"])?.success()?;
    office.pass_for(&CAFE)?;
    let (right, wrong) = (cafe.serve()?, office.serve()?);
    let session = Probe::new(Kind::UdpUnconnected, Family::V4).start(lab, &secret)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send_until(session, &stop));
        let mut changes = || {
            for _ in 0..3 {
                station.join(&CAFE)?;
                received(&right)?;
                wait::until("datagrams in the cafe", || {
                    Ok((received(&right)? > 0).then_some(()))
                })?;
                station.join(&OFFICE)?;
                lab.wait_domain("cafe", "be absent", |shown| shown["state"] == "absent")?;
            }
            Ok(())
        };
        let changed = changes();
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        changed.and(sent)
    })?;
    let leaked = received(&wrong)?;
    ensure!(leaked == 0, "{leaked} datagrams left by the other WLAN");
    Ok(())
}

/// Sends datagrams without a pause, whatever comes of it.
fn send_until(mut session: Session, stop: &AtomicBool) -> Result<()> {
    let send = format!("send secret {}", SocketAddr::new(SERVER, SERVER_PORT));
    while !stop.load(Ordering::Relaxed) {
        // It is refused while there is no domain.
        session.perform(&send)?;
    }
    Ok(())
}

/// Datagrams that came since this was asked last.
fn received(socket: &UdpSocket) -> Result<usize> {
    let mut count = 0;
    loop {
        match socket.recv(&mut [0; 64]) {
            Ok(_) => count += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(count),
            Err(error) => return Err(error).context("take datagrams"),
        }
    }
}

/// The domain is there by the network, with its address alone, and passes its checks.
fn is_attached(lab: &Lab, station: &Station<'_>, wlan: &Wlan) -> Result<()> {
    let addresses = json!([format!("{}/24", wlan.address())]);
    let shown = lab.wait_domain(DOMAIN, &format!("be validated by {addresses}"), |shown| {
        shown["state"] == "validated" && shown["addresses"] == addresses
    })?;
    ensure!(shown["kind"] == "wlan", "{shown:#}");
    is_named(&shown, station, wlan)
}

/// The network is known by its name, and by whether it is encrypted.
fn is_named(shown: &Value, station: &Station<'_>, wlan: &Wlan) -> Result<()> {
    let connection = station
        .connection()?
        .context("the station is not connected")?;
    ensure!(connection.ssid == wlan.ssid, "{connection:?}");
    let (security, network) = match wlan.passphrase {
        Some(_) => ("protected", format!("WLAN {}", wlan.ssid)),
        None => ("open", format!("open WLAN {}", wlan.ssid)),
    };
    ensure!(
        shown["ssid"] == wlan.ssid && shown["network"] == network && shown["security"] == security,
        "{shown:#}"
    );
    Ok(())
}

/// The network is heard by so many dBm; the agent tells the average, and at which rate it is sent to.
fn is_heard(lab: &Lab, station: &Station<'_>, dbm: i32) -> Result<()> {
    wait::until(&format!("{dbm} dBm"), || {
        let connection = station
            .connection()?
            .context("the station is not connected")?;
        Ok((connection.signal == dbm).then_some(()))
    })?;
    wait::until_within(HEARD, &format!("{dbm} dBm to be told"), || {
        let shown = lab.steer(&["domain", "show", "--json", DOMAIN])?.json()?;
        let told = shown["measured"]["signal_dbm"].as_i64();
        let near = told.is_some_and(|told| (told - i64::from(dbm)).abs() <= 3);
        let rate = shown["measured"]["link_rate"].as_u64();
        Ok((near && rate >= Some(1_000_000)).then_some(()))
    })
}

/// The domain is down, and the station connected to nothing.
fn is_lost(lab: &Lab, station: &Station<'_>) -> Result<()> {
    lab.wait_state(DOMAIN, "down")?;
    let connection = station.connection()?;
    ensure!(connection.is_none(), "{connection:?}");
    Ok(())
}
