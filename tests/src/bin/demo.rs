//! The main job shown: a small internet of network namespaces, the real agent, real programs steered,
//! and what left by which interface, as captured on the wire. Fails if reality differs from the story.
//!
//! Everything happens in namespaces and a cgroup of the demo's own, and goes with it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{SigSet, Signal};
use serde_json::Value;
use steer_tests::report::{ECHO_PORT, HTTP_PORT};
use steer_tests::{
    Agent, Direction, Family, Kind, Lab, LabCgroup, Output, Probe, SERVER4, SERVER6, Snapshot,
};

/// Set when a signal has begun to clean up: the story then says nothing more.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Exit status when nobody reads the story any more: what a shell says of a program that SIGPIPE ended.
const UNHEARD: u8 = 128 + 13;

/// Prints a line of the story. Unlike `println!` it returns an error where nobody reads it any more
/// (`| head`), so that everything is cleaned up.
macro_rules! say {
    ($($words:tt)*) => {
        say(format_args!($($words)*))?
    };
}

fn main() -> ExitCode {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Before any thread is made, so that all inherit it. The laboratory's programs begin with none blocked.
    if let Err(error) = signals.thread_block() {
        eprintln!("demo: block signals: {error}");
        return ExitCode::FAILURE;
    }
    let failed = show(signals).err();
    if INTERRUPTED.load(Ordering::SeqCst) {
        loop {
            std::thread::park();
        }
    }
    match failed {
        None => ExitCode::SUCCESS,
        Some(Failure::Story(error)) if error.is::<Unheard>() => ExitCode::from(UNHEARD),
        Some(failure) => {
            eprintln!("\ndemo: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Why there was no demo, or why it ended early.
enum Failure {
    /// Nothing was shown yet.
    SetUp(anyhow::Error),
    /// Something was not as the story has it.
    Story(anyhow::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetUp(error) => write!(f, "cannot begin: {error:#}"),
            Self::Story(error) => write!(f, "reality differs: {error:?}"),
        }
    }
}

/// Makes the small internet, tells the story, and takes everything away again.
fn show(signals: SigSet) -> Result<(), Failure> {
    let lab = set_up().map_err(Failure::SetUp)?;
    clean_up_on(signals, lab.cgroup().share());
    let story = Story {
        lab: &lab,
        chapter: 0,
    };
    story.tell().map_err(Failure::Story)
}

fn set_up() -> Result<Lab> {
    let demo = std::env::current_exe().context("find the running program")?;
    let probe = demo.with_file_name("steer-probe");
    ensure!(
        probe.exists(),
        "{} is missing: run: cargo xtask demo",
        probe.display()
    );
    Lab::builder().rp_filter(1).build()
}

/// Nobody reads what is printed any more.
#[derive(Debug)]
struct Unheard;

impl fmt::Display for Unheard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the story any more")
    }
}

impl std::error::Error for Unheard {}

fn say(words: fmt::Arguments<'_>) -> Result<()> {
    writeln!(io::stdout(), "{words}").map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Unheard.into(),
        _ => anyhow::Error::from(error).context("print the story"),
    })
}

/// On a signal: kills what the demo started and removes its cgroup; the namespaces go with the process.
fn clean_up_on(signals: SigSet, cgroup: LabCgroup) {
    std::thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        INTERRUPTED.store(true, Ordering::SeqCst);
        eprintln!("\ndemo: {signal}: cleaning up");
        if let Err(error) = cgroup.remove() {
            eprintln!("demo: {error:#}");
        }
        leave(128 + signal as i32);
    });
}

#[expect(
    clippy::exit,
    reason = "a signal ends the process from a thread that is not main's"
)]
fn leave(code: i32) -> ! {
    std::process::exit(code)
}

struct Story<'lab> {
    lab: &'lab Lab,
    chapter: u32,
}

impl Story<'_> {
    fn tell(mut self) -> Result<()> {
        self.picture()?;
        let before = Snapshot::take(self.lab)?;
        let mut agent = self.lab.start_agent()?;
        self.unsteered()?;
        self.run_curl()?;
        self.run_ping()?;
        let app = self.lab.cgroup().child("app")?;
        self.failover(&app)?;
        self.killed(&mut agent, &app)?;
        self.strict(&app)?;
        self.detached(&mut agent, &before, &app)
    }

    fn title(&mut self, text: &str) -> Result<()> {
        self.chapter += 1;
        say!("\n{}. {text}", self.chapter);
        Ok(())
    }

    fn picture(&self) -> Result<()> {
        say!("A small internet in network namespaces of its own:\n");
        for name in self.lab.uplink_names() {
            let uplink = self.lab.uplink(name)?;
            let show = |address: Option<IpAddr>| address.map(|a| a.to_string()).unwrap_or_default();
            say!(
                "  host -- {name:<6} {:<9} {:<14} -- router -- server {SERVER4}, {SERVER6}",
                show(uplink.address4()),
                show(uplink.address6()),
            );
        }
        say!(
            "\nThree servers with the same addresses; each answers with the address that it saw.\n\
             The host's default route is eth0's, its reverse path filter is strict."
        );
        Ok(())
    }

    fn unsteered(&mut self) -> Result<()> {
        self.title("Without a policy, everything leaves by the default route")?;
        let other = self.lab.cgroup().child("other")?;
        let start = self.lab.capture().position();
        for (family, server) in [(Family::V4, SERVER4), (Family::V6, SERVER6)] {
            Probe::flow(Kind::Tcp, family, server).succeed(self.lab, &other)?;
            self.left_by("eth0", server, start)?;
        }
        Ok(())
    }

    fn run_curl(&mut self) -> Result<()> {
        self.title("steer run: one command by one interface")?;
        for via in ["wlan0", "wwan0"] {
            for server in [SERVER4, SERVER6] {
                let start = self.lab.capture().position();
                let url = format!("http://{}/", SocketAddr::new(server, HTTP_PORT));
                let output = self.steer(&["run", "--via", via, "--", "curl", "-gsm9", &url])?;
                let answer: Value = output.json().context("is curl installed?")?;
                let text = |key| answer.get(key).and_then(Value::as_str).unwrap_or_default();
                say!(
                    "   the server behind {} saw {}",
                    text("uplink"),
                    text("seen")
                );
                let seen: SocketAddr = text("seen").parse().context("what the server saw")?;
                let own = self.lab.uplink(via)?.addresses();
                ensure!(
                    text("uplink") == via && own.contains(&seen.ip()),
                    "{answer}"
                );
                self.left_by(via, server, start)?;
            }
        }
        Ok(())
    }

    fn run_ping(&mut self) -> Result<()> {
        self.title("ping makes no connection; it is steered all the same")?;
        for server in [SERVER4, SERVER6] {
            let start = self.lab.capture().position();
            let address = server.to_string();
            let args = [
                "run", "--via", "wlan0", "--", "ping", "-nqc1", "-W9", &address,
            ];
            self.steer(&args)?.success().context("is ping installed?")?;
            self.left_by("wlan0", server, start)?;
        }
        Ok(())
    }

    fn failover(&mut self, app: &LabCgroup) -> Result<()> {
        self.title("A policy with two interfaces, and the first is unplugged")?;
        self.steer(&[
            "policy",
            "set",
            "app",
            "--cgroup",
            app.name(),
            "--via",
            "wlan0,wwan0",
        ])?
        .success()?;
        self.flows(app, "wlan0")?;
        say!("   wlan0 loses its carrier");
        let moment = Instant::now();
        self.lab.carrier_down("wlan0")?;
        self.lab.wait_decision("app", "domain", "wwan0")?;
        say!(
            "   the decision is wwan0, {} ms later",
            moment.elapsed().as_millis()
        );
        self.flows(app, "wwan0")?;
        say!("   wlan0 has carrier again");
        self.lab.carrier_up("wlan0")?;
        self.lab.wait_decision("app", "domain", "wlan0")?;
        self.flows(app, "wlan0")
    }

    fn killed(&mut self, agent: &mut Agent<'_>, app: &LabCgroup) -> Result<()> {
        self.title("The agent is killed; its last decisions stay in force")?;
        agent.kill()?;
        say!("   no agent runs");
        self.flows(app, "wlan0")?;
        agent.start()?;
        say!("   the agent runs again and has adopted what it found");
        self.flows(app, "wlan0")
    }

    fn strict(&mut self, app: &LabCgroup) -> Result<()> {
        self.title("A strict policy: by wlan0 or not at all")?;
        let args = [
            "policy",
            "set",
            "app",
            "--cgroup",
            app.name(),
            "--via",
            "wlan0",
            "--strict",
        ];
        self.steer(&args)?.success()?;
        self.flows(app, "wlan0")?;
        say!("   wlan0 loses its carrier");
        self.lab.carrier_down("wlan0")?;
        self.lab.wait_decision("app", "verdict", "block")?;
        let target = self.lab.target4();
        let reports = Probe::flow(Kind::Tcp, Family::V4, target).run(self.lab, app)?;
        let refused = reports
            .iter()
            .find(|report| !report.ok)
            .context("the flow was not refused")?;
        say!("   connect to {target}: {}", refused.errno_name);
        self.lab.assert_silent(target)?;
        say!("   on the wire: nothing, by no interface");
        self.lab.carrier_up("wlan0")?;
        self.lab.wait_decision("app", "domain", "wlan0")
    }

    fn detached(
        &mut self,
        agent: &mut Agent<'_>,
        before: &Snapshot,
        app: &LabCgroup,
    ) -> Result<()> {
        self.title("steer detach: the host is as it was")?;
        agent.stop()?;
        self.steer(&["detach"])?.success()?;
        before.assert_same(&Snapshot::take(self.lab)?)?;
        say!("   rules, routes, settings and pins are those of the beginning");
        self.flows(app, "eth0")
    }

    /// A TCP flow of each family from `app`, to addresses not used before.
    fn flows(&self, app: &LabCgroup, uplink: &str) -> Result<()> {
        for family in [Family::V4, Family::V6] {
            let target = family.target(self.lab);
            let to = SocketAddr::new(target, ECHO_PORT);
            let start = self.lab.capture().position();
            Probe::new(Kind::Tcp, family)
                .then(&format!("connect {to}"))
                .then("send hello")
                .succeed(self.lab, app)?;
            self.left_by(uplink, target, start)?;
        }
        Ok(())
    }

    /// Prints what crossed which wire about `address` since `start`, and checks that it was `uplink`'s
    /// alone, with its source.
    fn left_by(&self, uplink: &str, address: IpAddr, start: usize) -> Result<()> {
        self.lab.drain()?;
        let mut sent: BTreeMap<(String, IpAddr), u32> = BTreeMap::new();
        let own = self.lab.uplink(uplink)?.addresses();
        for packet in self.lab.capture().since(start, |p| p.is_about(address)) {
            ensure!(packet.uplink == uplink, "not by {uplink}: {packet}");
            if packet.direction == Direction::FromHost
                && let Some(source) = packet.source
            {
                ensure!(own.contains(&source), "not {uplink}'s source: {packet}");
                *sent.entry((packet.uplink, source)).or_default() += 1;
            }
        }
        ensure!(!sent.is_empty(), "nothing was sent to {address}");
        for ((uplink, source), count) in sent {
            let packets = if count == 1 { "packet" } else { "packets" };
            say!("   on the wire: {count} {packets} to {address} left by {uplink} from {source}");
        }
        Ok(())
    }

    fn steer(&self, args: &[&str]) -> Result<Output> {
        say!("   $ steer {}", args.join(" "));
        self.lab.steer(args)
    }
}
