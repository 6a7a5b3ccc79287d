//! WLANs in the air of a virtual machine, whose radios the kernel's `mac80211_hwsim` makes: access points, each in a
//! network namespace of its own, and a station at the laboratory's host.
//!
//! Radio N is `phyN` with the interface `wlanN`; all hear each other. Addresses are given by hand: the network of
//! radio N is `10.N.0.0/24`, in which the access point has `.1` and the station `.2`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::ip::ip_batch;
use crate::lab::Lab;
use crate::link;
use crate::mounts;
use crate::namespace::Namespace;
use crate::wait;

/// The module that makes the radios, and those that WPA2 asks for.
pub const MODULES: [&str; 4] = ["mac80211_hwsim", "ccm", "cmac", "ctr"];
/// What scenarios call.
pub const PROGRAMS: [&str; 5] = ["hostapd", "hostapd_cli", "iw", "wpa_cli", "wpa_supplicant"];

/// How long a connection may take: the scan, the keys, and an emulated processor.
const CONNECTED: Duration = Duration::from_secs(30);
/// What radios send by, in dBm.
const POWER: i64 = 20;

/// An address that every access point has.
pub const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// The port at which it takes datagrams.
pub const SERVER_PORT: u16 = 7_777;

/// A network that an access point offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wlan {
    /// Its name; plain words only, for it is written into files of several formats.
    pub ssid: &'static str,
    /// What WPA2 wants to hear; none if it is open.
    pub passphrase: Option<&'static str>,
    /// The radio of its access point.
    pub radio: u8,
}

/// What the kernel says of a station that is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Name of the network.
    pub ssid: String,
    /// How it is heard, in dBm.
    pub signal: i32,
}

/// An access point with its network; it goes when this is dropped.
#[derive(Debug)]
pub struct AccessPoint {
    wlan: Wlan,
    namespace: Namespace,
    daemon: Option<Daemon>,
}

/// A radio at the laboratory's host that connects to networks.
#[derive(Debug)]
pub struct Station<'lab> {
    lab: &'lab Lab,
    interface: String,
    /// In the order in which wpa_supplicant counts them.
    known: Vec<Wlan>,
    daemon: Daemon,
}

/// Makes so many radios.
///
/// # Errors
/// If the kernel has no module for it.
pub fn make_radios(count: u8) -> Result<()> {
    let count = format!("radios={count}");
    printed(Command::new("modprobe").args(["mac80211_hwsim", &count])).map(drop)
}

impl Wlan {
    /// The address that it gives the station.
    pub fn address(&self) -> String {
        format!("10.{}.0.2", self.radio)
    }

    /// The access point's own.
    fn gateway(&self) -> String {
        format!("10.{}.0.1", self.radio)
    }

    /// Channel 1, 6 and so on, which do not disturb each other.
    fn channel(&self) -> u32 {
        5 * u32::from(self.radio) - 4
    }

    fn frequency(&self) -> u32 {
        2407 + 5 * self.channel()
    }

    fn interface(&self) -> String {
        format!("wlan{}", self.radio)
    }
}

impl AccessPoint {
    /// Takes the network's radio and offers it.
    ///
    /// # Errors
    /// If there is no such radio, or hostapd does not come up; with its log.
    pub fn start(wlan: Wlan) -> Result<Self> {
        let namespace = Namespace::new()?;
        give_away(wlan.radio, &namespace)?;
        let mut point = Self {
            wlan,
            namespace,
            daemon: None,
        };
        point.offer()?;
        let (address, interface) = (wlan.gateway(), wlan.interface());
        let lines = [
            format!("address add {address}/24 dev {interface}"),
            format!("address add {SERVER} dev lo"),
            "link set lo up".to_owned(),
        ];
        ip_batch(&point.namespace, &lines)?;
        Ok(point)
    }

    /// Offers the network (again).
    ///
    /// # Errors
    /// If hostapd does not come up; with its log.
    pub fn offer(&mut self) -> Result<()> {
        ensure!(
            self.daemon.is_none(),
            "{} is offered already",
            self.wlan.ssid
        );
        let (ssid, interface) = (self.wlan.ssid, self.wlan.interface());
        let mut text = format!(
            "driver=nl80211\ninterface={interface}\nssid={ssid}\nhw_mode=g\nchannel={}\n\
             ctrl_interface={CONTROL}\n",
            self.wlan.channel()
        );
        if let Some(passphrase) = self.wlan.passphrase {
            text += "wpa=2\nwpa_key_mgmt=WPA-PSK\nrsn_pairwise=CCMP\n";
            text += &format!("wpa_passphrase={passphrase}\n");
        }
        let mut daemon = Daemon::start(&self.namespace, "hostapd", &text, |command, file| {
            command.arg(file);
        })?;
        daemon.wait(&format!("{ssid} to be in the air"), || {
            self.namespace.run(|| link::is_running(&interface))
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Goes without a word: what is connected has to notice.
    ///
    /// # Errors
    /// If it was not there.
    pub fn vanish(&mut self) -> Result<()> {
        let daemon = self.daemon.take();
        daemon.map(drop).context("no network is offered")
    }

    /// Is the gateway of another network too, as whoever copies that may be.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn pass_for(&self, other: &Wlan) -> Result<()> {
        let line = format!(
            "address add {}/24 dev {}",
            other.gateway(),
            self.wlan.interface()
        );
        ip_batch(&self.namespace, &[line])
    }

    /// Takes datagrams to [`SERVER`] that come by it.
    ///
    /// # Errors
    /// If the kernel gives no socket.
    pub fn serve(&self) -> Result<UdpSocket> {
        self.namespace.run(|| {
            let socket = UdpSocket::bind(SocketAddr::new(SERVER, SERVER_PORT));
            let socket = socket.context("serve datagrams")?;
            socket.set_nonblocking(true).context("serve datagrams")?;
            Ok(socket)
        })
    }

    /// Has stations hear it by this, from -80 to 0 dBm, from the next beacon on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_signal(&self, dbm: i64) -> Result<()> {
        let path = format!(
            "/sys/kernel/debug/ieee80211/phy{}/hwsim/rx_rssi",
            self.wlan.radio
        );
        // The kernel adds what is sent by. It reads no sign, and takes what comes as two's complement.
        let number = (dbm - POWER).cast_unsigned();
        fs::write(&path, number.to_string()).with_context(|| format!("set {path} for {dbm} dBm"))
    }
}

impl Lab {
    /// Takes radio 0 to the host, as `wlan0`, and has it know these networks. It connects to none.
    ///
    /// # Errors
    /// If there is no such radio, or wpa_supplicant does not come up; with its log.
    pub fn station(&self, known: &[Wlan]) -> Result<Station<'_>> {
        give_away(0, self.host())?;
        self.host()
            .run(|| mounts::show_devices("devices/virtual/mac80211_hwsim"))?;
        let interface = "wlan0".to_owned();
        let networks: String = known.iter().map(network).collect();
        let text = format!("ctrl_interface={CONTROL}\n{networks}");
        let mut daemon = Daemon::start(self.host(), "wpa_supplicant", &text, |command, file| {
            command
                .args(["-D", "nl80211", "-i", &interface, "-c"])
                .arg(file);
        })?;
        let control = Path::new(CONTROL).join(&interface);
        daemon.wait("wpa_supplicant to listen", || {
            self.host().run(|| Ok(control.exists()))
        })?;
        Ok(Station {
            lab: self,
            interface,
            known: known.to_vec(),
            daemon,
        })
    }
}

impl Station<'_> {
    /// Connects to the network, and to no other any more, and takes the address and the default route that it gives.
    ///
    /// # Errors
    /// If it cannot in time; with the log.
    pub fn join(&mut self, wlan: &Wlan) -> Result<()> {
        let number = self.known.iter().position(|known| known == wlan);
        let number = number.with_context(|| format!("{} is not known", wlan.ssid))?;
        self.control(&["select_network", &number.to_string()])?;
        let (lab, interface) = (self.lab, self.interface.clone());
        self.daemon
            .wait(&format!("{} to be joined", wlan.ssid), || {
                let connection = connection(lab, &interface)?;
                let running = || lab.host().run(|| link::is_running(&interface));
                Ok(connection.is_some_and(|connection| connection.ssid == wlan.ssid) && running()?)
            })?;
        let (address, gateway) = (wlan.address(), wlan.gateway());
        let lines = [
            format!("address flush dev {interface}"),
            format!("address add {address}/24 dev {interface}"),
            format!("route add default via {gateway} dev {interface}"),
        ];
        ip_batch(lab.host(), &lines)
    }

    /// Leaves the network that it is connected to, for none.
    ///
    /// # Errors
    /// If wpa_supplicant does not take it.
    pub fn leave(&self) -> Result<()> {
        self.control(&["disconnect"])
    }

    /// What the kernel says of it now; nothing if it is not connected.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub fn connection(&self) -> Result<Option<Connection>> {
        connection(self.lab, &self.interface)
    }

    fn control(&self, args: &[&str]) -> Result<()> {
        let to = ["-p", CONTROL, "-i", &self.interface];
        let answer = ask(self.lab.host(), "wpa_cli", &[&to, args].concat())?;
        ensure!(
            answer.trim() == "OK",
            "wpa_cli {}: {answer}",
            args.join(" ")
        );
        Ok(())
    }
}

/// Where daemons are asked. Each has an interface of its own name.
const CONTROL: &str = "/tmp/wlan";

/// The section of wpa_supplicant's file. It looks at the one channel, for a scan of all takes seconds.
fn network(wlan: &Wlan) -> String {
    let keys = wlan.passphrase.map_or_else(
        || "key_mgmt=NONE".to_owned(),
        |passphrase| format!("psk=\"{passphrase}\""),
    );
    format!(
        "network={{\n ssid=\"{}\"\n scan_freq={}\n {keys}\n disabled=1\n}}\n",
        wlan.ssid,
        wlan.frequency()
    )
}

/// Moves a radio, with its interface, into a network namespace.
fn give_away(radio: u8, to: &Namespace) -> Result<()> {
    let path = to.path();
    let mut command = Command::new("iw");
    command
        .args(["phy", &format!("phy{radio}"), "set", "netns", "name"])
        .arg(path);
    printed(&mut command).map(drop)
}

fn connection(lab: &Lab, interface: &str) -> Result<Option<Connection>> {
    parse_link(&ask(lab.host(), "iw", &["dev", interface, "link"])?)
}

/// Reads what `iw dev INTERFACE link` prints. Between the join and the first frame there is no signal.
fn parse_link(printed: &str) -> Result<Option<Connection>> {
    let after = |key: &str| {
        let mut lines = printed.lines();
        lines.find_map(|line| line.trim().strip_prefix(key))
    };
    let (Some(ssid), Some(signal)) = (after("SSID: "), after("signal: ")) else {
        return Ok(None);
    };
    let signal = signal.trim_end_matches(" dBm").parse();
    Ok(Some(Connection {
        ssid: ssid.to_owned(),
        signal: signal.with_context(|| format!("no signal in {printed:?}"))?,
    }))
}

fn ask(namespace: &Namespace, program: &str, args: &[&str]) -> Result<String> {
    printed(namespace.command(program).args(args))
}

fn printed(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("start {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {text}{complaint}", output.status);
    }
    Ok(text)
}

/// A program that runs until this is dropped, with its file and its log.
#[derive(Debug)]
struct Daemon {
    child: Child,
    directory: TempDir,
}

impl Daemon {
    /// Starts `program` in the namespace with a file that says `text`, whose path `arguments` adds.
    fn start(
        namespace: &Namespace,
        program: &str,
        text: &str,
        arguments: impl FnOnce(&mut Command, &Path),
    ) -> Result<Self> {
        let directory = tempfile::tempdir().with_context(|| format!("{program}'s directory"))?;
        let file = directory.path().join("configuration");
        fs::write(&file, text).with_context(|| format!("write {program}'s file"))?;
        let mut command = namespace.command(program);
        arguments(&mut command, &file);
        command.arg("-f").arg(directory.path().join("log"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self {
            child: child.with_context(|| format!("start {program}"))?,
            directory,
        })
    }

    /// Waits until `condition` holds.
    fn wait(&mut self, what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
        let waited = wait::until_within(CONNECTED, what, || {
            if let Some(status) = self.child.try_wait().context("look after a daemon")? {
                bail!("it ended: {status}");
            }
            Ok(condition()?.then_some(()))
        });
        waited.with_context(|| {
            let log = fs::read_to_string(self.directory.path().join("log"));
            format!("its log:\n{}", log.unwrap_or_default())
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_read_from_iws_words() -> Result<()> {
        let printed = "Connected to 02:00:00:00:01:00 (on wlan0)\n\tSSID: cafe\n\tfreq: 2412\n\
                       \tRX: 2307 bytes (44 packets)\n\tsignal: -30 dBm\n";
        let cafe = Connection {
            ssid: "cafe".to_owned(),
            signal: -30,
        };
        assert_eq!(parse_link(printed)?, Some(cafe));
        assert_eq!(parse_link("Not connected.\n")?, None);
        Ok(())
    }

    #[test]
    fn networks_have_channels_of_their_own() {
        let wlan = |radio| Wlan {
            ssid: "cafe",
            passphrase: None,
            radio,
        };
        assert_eq!((wlan(1).channel(), wlan(1).frequency()), (1, 2412));
        assert_eq!((wlan(2).channel(), wlan(2).frequency()), (6, 2437));
    }
}
