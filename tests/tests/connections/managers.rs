//! Doubles of NetworkManager and ModemManager on a system bus of the laboratory's host. They say what the API of
//! each says of connections that are up and modems that are connected, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};
use steer_tests::Lab;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use zbus::fdo::ObjectManager;
use zbus::zvariant::OwnedObjectPath;
use zbus::{Connection, connection, interface};

const DIRECTORY: &str = "/run/dbus";
const ADDRESS: &str = "unix:path=/run/dbus/system_bus_socket";

const NETWORKS: &str = "/org/freedesktop/NetworkManager";
const MODEMS: &str = "/org/freedesktop/ModemManager1";

/// `NM_ACTIVE_CONNECTION_STATE_ACTIVATED`.
const ACTIVATED: u32 = 2;
/// `NMActivationStateFlags` of a connection that is up.
const READY: u32 = 0x5c;

/// Both managers, which end with this.
pub(crate) struct Managers {
    say: Option<UnboundedSender<Say>>,
    serving: Option<JoinHandle<Result<()>>>,
    _bus: Bus,
}

/// What they are to say from now on.
enum Say {
    /// These connections are up, by their interfaces.
    Connected(BTreeMap<String, String>),
    /// The modem with this interface hears this operator so well.
    Heard(String, String, u32),
}

impl Managers {
    /// Starts both on a bus of their own, where they know of nothing.
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let bus = Bus::start(lab)?;
        let (say, said) = unbounded_channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let host = lab.host().clone();
        let serving = std::thread::spawn(move || {
            host.run(|| {
                let runtime = Builder::new_current_thread().enable_all().build();
                let runtime = runtime.context("make a runtime")?;
                runtime.block_on(async {
                    let connection = serve().await?;
                    ready.send(()).context("tell that it serves")?;
                    follow(&connection, said).await
                })
            })
        });
        let mut managers = Self {
            say: Some(say),
            serving: Some(serving),
            _bus: bus,
        };
        if is_ready.recv().is_err() {
            managers.end()?;
        }
        Ok(managers)
    }

    /// These connections are up on these interfaces, and no others.
    pub(crate) fn connected(&self, connections: &[(&str, &str)]) -> Result<()> {
        let connections = connections.iter();
        let by_interface =
            connections.map(|(name, interface)| ((*interface).to_owned(), (*name).to_owned()));
        self.say(Say::Connected(by_interface.collect()))
    }

    /// The modem with this interface hears this operator so well, percent.
    pub(crate) fn heard(&self, interface: &str, operator: &str, percent: u32) -> Result<()> {
        self.say(Say::Heard(
            interface.to_owned(),
            operator.to_owned(),
            percent,
        ))
    }

    fn say(&self, what: Say) -> Result<()> {
        let say = self.say.as_ref().context("they have ended")?;
        say.send(what).map_err(|_| anyhow!("they have ended"))
    }

    fn end(&mut self) -> Result<()> {
        self.say = None;
        match self.serving.take().map(JoinHandle::join) {
            Some(ended) => ended.map_err(|_| anyhow!("the managers panicked"))?,
            None => Ok(()),
        }
    }
}

impl Drop for Managers {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("managers: {error:#}");
        }
    }
}

async fn serve() -> Result<Connection> {
    let builder = connection::Builder::address(ADDRESS)?
        .serve_at(NETWORKS, Networks::default())?
        .serve_at(MODEMS, ObjectManager)?
        .name("org.freedesktop.NetworkManager")?
        .name("org.freedesktop.ModemManager1")?;
    builder.build().await.context("serve on the bus")
}

/// Says what is to be said until nothing more comes.
async fn follow(connection: &Connection, mut said: UnboundedReceiver<Say>) -> Result<()> {
    let objects = connection.object_server();
    let mut number = 0_u32;
    while let Some(say) = said.recv().await {
        match say {
            Say::Connected(by_interface) => {
                let mut active = Vec::new();
                for (interface, id) in by_interface {
                    number += 1;
                    let device = path(&format!("{NETWORKS}/Devices/{number}"))?;
                    let connection = path(&format!("{NETWORKS}/ActiveConnection/{number}"))?;
                    objects.at(&device, Device { interface }).await?;
                    let up = Active {
                        id,
                        devices: vec![device],
                    };
                    objects.at(&connection, up).await?;
                    active.push(connection);
                }
                let networks = objects.interface::<_, Networks>(NETWORKS).await?;
                networks.get_mut().await.active = active;
                let emitter = networks.signal_emitter();
                networks
                    .get()
                    .await
                    .active_connections_changed(emitter)
                    .await?;
            }
            Say::Heard(interface, operator, percent) => {
                let at = format!("{MODEMS}/Modem/0");
                let bearer = path(&format!("{MODEMS}/Bearer/0"))?;
                objects.at(&bearer, Bearer { interface }).await?;
                objects.at(&*at, Operator { name: operator }).await?;
                let quality = (percent, true);
                let bearers = vec![bearer];
                if !objects.at(&*at, Modem { quality, bearers }).await? {
                    let modem = objects.interface::<_, Modem>(&*at).await?;
                    modem.get_mut().await.quality = quality;
                    let emitter = modem.signal_emitter();
                    modem.get().await.signal_quality_changed(emitter).await?;
                }
            }
        }
    }
    Ok(())
}

fn path(text: &str) -> Result<OwnedObjectPath> {
    OwnedObjectPath::try_from(text).with_context(|| format!("the path {text}"))
}

#[derive(Default)]
struct Networks {
    active: Vec<OwnedObjectPath>,
}

#[interface(name = "org.freedesktop.NetworkManager")]
impl Networks {
    #[zbus(property)]
    fn active_connections(&self) -> Vec<OwnedObjectPath> {
        self.active.clone()
    }
}

struct Active {
    id: String,
    devices: Vec<OwnedObjectPath>,
}

#[interface(name = "org.freedesktop.NetworkManager.Connection.Active")]
impl Active {
    #[zbus(property)]
    fn id(&self) -> &str {
        &self.id
    }

    #[zbus(property)]
    fn devices(&self) -> Vec<OwnedObjectPath> {
        self.devices.clone()
    }

    #[zbus(property)]
    fn state(&self) -> u32 {
        ACTIVATED
    }

    #[zbus(property)]
    fn state_flags(&self) -> u32 {
        READY
    }

    #[zbus(property)]
    fn vpn(&self) -> bool {
        false
    }
}

struct Device {
    interface: String,
}

#[interface(name = "org.freedesktop.NetworkManager.Device")]
impl Device {
    #[zbus(property)]
    fn ip_interface(&self) -> &str {
        &self.interface
    }
}

struct Modem {
    quality: (u32, bool),
    bearers: Vec<OwnedObjectPath>,
}

#[interface(name = "org.freedesktop.ModemManager1.Modem")]
impl Modem {
    #[zbus(property)]
    fn signal_quality(&self) -> (u32, bool) {
        self.quality
    }

    #[zbus(property)]
    fn bearers(&self) -> Vec<OwnedObjectPath> {
        self.bearers.clone()
    }
}

struct Operator {
    name: String,
}

#[interface(name = "org.freedesktop.ModemManager1.Modem.Modem3gpp")]
impl Operator {
    #[zbus(property)]
    fn operator_name(&self) -> &str {
        &self.name
    }
}

struct Bearer {
    interface: String,
}

#[interface(name = "org.freedesktop.ModemManager1.Bearer")]
impl Bearer {
    #[zbus(property)]
    fn connected(&self) -> bool {
        true
    }

    #[zbus(property)]
    fn interface(&self) -> &str {
        &self.interface
    }
}

/// A system bus, which ends with this.
struct Bus(Child);

impl Bus {
    fn start(lab: &Lab) -> Result<Self> {
        let config = format!("{DIRECTORY}/config");
        let text = format!(
            "<busconfig><type>system</type><listen>{ADDRESS}</listen><auth>EXTERNAL</auth>\
             <policy context='default'><allow user='*'/><allow own='*'/><allow send_destination='*'/>\
             <allow receive_sender='*'/></policy></busconfig>"
        );
        let mut command: Command = lab.host().command("dbus-daemon");
        lab.host().run(|| {
            fs::create_dir_all(DIRECTORY).context("make the bus's directory")?;
            fs::write(&config, text).context("write the bus's file")
        })?;
        command
            .arg(format!("--config-file={config}"))
            .args(["--nofork", "--nopidfile", "--nosyslog", "--print-address"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // It cannot raise its limit of files everywhere, and says so.
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .context("start dbus-daemon: run cargo xtask setup")?;
        let mut bus = Self(child);
        let printed = bus.0.stdout.take().context("its output")?;
        let mut line = String::new();
        BufReader::new(printed).read_line(&mut line)?;
        ensure!(line.starts_with(ADDRESS), "the bus listens at {line:?}");
        Ok(bus)
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
