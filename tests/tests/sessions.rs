//! Live flows when their decision changes: kept, moved or ended as the policy says, and what
//! application and peer see of it.

use std::net::{IpAddr, SocketAddr};
use std::thread;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use steer_tests::report::{DISCARD_PORT, ECHO_PORT};
use steer_tests::{
    Agent, Direction, Family, Kind, Lab, LabCgroup, Probe, Session, conformance, wait,
};

/// Kinds of flows that have a peer, with their family.
const FLOWS: [(Kind, Family); 6] = [
    (Kind::Tcp, Family::V4),
    (Kind::Tcp, Family::V6),
    (Kind::Tcp, Family::Mapped),
    (Kind::UdpConnected, Family::V4),
    (Kind::UdpConnected, Family::V6),
    (Kind::UdpConnected, Family::Mapped),
];

/// A flow that is open.
struct Flow {
    session: Session,
    target: IpAddr,
    kind: Kind,
}

impl Flow {
    /// Opens one, which leaves by `uplink`.
    fn open(lab: &Lab, cgroup: &LabCgroup, flow: (Kind, Family), uplink: &str) -> Result<Self> {
        let (kind, family) = flow;
        let target = family.target(lab);
        let mut session = Probe::new(kind, family).start(lab, cgroup)?;
        session.succeed("set timeout=20000")?;
        session.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
        let report = session.succeed("send before")?;
        ensure!(
            report.uplink.as_deref() == Some(uplink),
            "{flow:?}: {report:?}"
        );
        Ok(Self {
            session,
            target,
            kind,
        })
    }

    /// It still is where it was.
    fn goes_on_by(&mut self, uplink: &str) -> Result<()> {
        let report = self.session.succeed("send after")?;
        ensure!(report.uplink.as_deref() == Some(uplink), "{report:?}");
        Ok(())
    }

    /// The application waits on it, is told at once, and connects again by `uplink`.
    fn ends_and_connects_again(&mut self, lab: &Lab, uplink: &str) -> Result<()> {
        let told = self.session.read()?;
        ensure!(
            told.errno_name == "ECONNABORTED",
            "{:?}: {told:?}",
            self.kind
        );
        self.connects_again(lab, uplink)
    }

    fn connects_again(&mut self, lab: &Lab, uplink: &str) -> Result<()> {
        let (kind, family) = (self.kind, if self.target.is_ipv4() { "4" } else { "6" });
        let to = SocketAddr::new(self.target, ECHO_PORT);
        // A datagram socket may be used again as it is.
        if kind == Kind::Tcp {
            self.session.succeed(&format!("open tcp {family}"))?;
        }
        let position = lab.position()?;
        self.session.succeed(&format!("connect {to}"))?;
        let report = self.session.succeed("send again")?;
        ensure!(report.uplink.as_deref() == Some(uplink), "{report:?}");
        lab.drain()?;
        let about = lab.capture().since(position, |p| p.is_about(self.target));
        let strays: Vec<_> = about.iter().filter(|p| p.uplink != uplink).collect();
        ensure!(!about.is_empty() && strays.is_empty(), "{strays:?}");
        Ok(())
    }
}

fn open_all(lab: &Lab, cgroup: &LabCgroup, uplink: &str) -> Result<Vec<Flow>> {
    let flows = FLOWS.into_iter();
    flows
        .map(|flow| Flow::open(lab, cgroup, flow, uplink))
        .collect()
}

fn wait_all(flows: &mut [Flow]) -> Result<()> {
    flows
        .iter_mut()
        .try_for_each(|flow| flow.session.ask("wait"))
}

/// What became of a policy's flows: kept, moved, reset, failed.
fn counts(policy: &Value) -> Result<[u64; 4]> {
    let sessions = policy.get("sessions").context("no sessions")?;
    let count = |name: &str| {
        sessions[name]
            .as_u64()
            .with_context(|| format!("{policy:#}"))
    };
    Ok([
        count("kept")?,
        count("moved")?,
        count("reset")?,
        count("failed")?,
    ])
}

fn counted(lab: &Lab) -> Result<[u64; 4]> {
    counts(&lab.steer(&["policy", "show", "app", "--json"])?.json()?)
}

fn wait_counted(lab: &Lab, wanted: [u64; 4]) -> Result<()> {
    wait::until(&format!("live flows {wanted:?}"), || {
        Ok((counted(lab)? == wanted).then_some(()))
    })
}

/// A policy of the files for a new cgroup `app`, with these lines.
fn start<'lab>(lab: &'lab Lab, lines: &str) -> Result<(Agent<'lab>, LabCgroup)> {
    let app = lab.cgroup().child("app")?;
    let cgroup = app.name();
    lab.configure(&format!(
        "[policy.app]\nmatch.cgroup = \"{cgroup}\"\nuse = [\"wlan0\", \"wwan0\"]\n{lines}\n"
    ))?;
    Ok((lab.start_agent()?, app))
}

#[test]
fn flows_older_than_their_policy_are_kept_and_counted() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    let mut flows = open_all(&lab, &app, "eth0")?;
    let policy = lab.set_policy("app", &app, "wlan0", &[])?;
    ensure!(counts(&policy)? == [6, 0, 0, 0], "{policy:#}");
    for flow in &mut flows {
        flow.goes_on_by("eth0")?;
    }
    lab.flow_leaves_by(&app, "wlan0", Kind::Tcp, Family::V4)?;
    drop(flows);
    let unset = lab.steer(&["policy", "unset", "app", "--json"])?.json()?;
    ensure!(
        unset["removed"] == "app" && unset["sessions"].is_object(),
        "{unset:#}"
    );
    conformance::row(
        "P-4.4-3",
        "flows that run when a better domain is chosen stay where they are, and new ones go there",
    )
}

#[test]
fn flows_of_a_worse_domain_stay_or_end_as_the_policy_says() -> Result<()> {
    for wish in ["keep", "reset"] {
        let lab = Lab::new()?;
        let (_agent, app) = start(&lab, &format!("sessions.on-better = \"{wish}\""))?;
        lab.carrier_down("wlan0")?;
        lab.wait_decision("app", "domain", "wwan0")?;
        let mut flows = open_all(&lab, &app, "wwan0")?;
        wait_all(&mut flows)?;
        let position = lab.position()?;
        lab.carrier_up("wlan0")?;
        lab.wait_decision("app", "domain", "wlan0")?;
        if wish == "keep" {
            wait_counted(&lab, [6, 0, 0, 0])?;
            // What it waits for is the answer.
            for flow in &mut flows {
                flow.session.ask("send after")?;
                ensure!(flow.session.finish()?.iter().all(|report| report.ok));
            }
            continue;
        }
        wait_counted(&lab, [0, 0, 6, 0])?;
        for flow in &mut flows {
            flow.ends_and_connects_again(&lab, "wlan0")?;
        }
        lab.drain()?;
        for flow in flows.iter().filter(|flow| flow.kind == Kind::Tcp) {
            let resets = lab.capture().since(position, |p| {
                p.is_about(flow.target)
                    && p.direction == Direction::FromHost
                    && p.tcp_flags & 4 != 0
            });
            let own = |p: &steer_tests::Packet| {
                let uplink = lab.uplink("wwan0")?;
                let own = if flow.target.is_ipv4() {
                    uplink.address4()
                } else {
                    uplink.address6()
                };
                Ok::<_, anyhow::Error>(p.uplink == "wwan0" && p.source == own)
            };
            ensure!(!resets.is_empty(), "the peer does not hear of it");
            for reset in &resets {
                ensure!(own(reset)?, "{reset}");
            }
        }
    }
    conformance::row(
        "P-4.4-3",
        "flows of a domain that is worse now end, where the policy says so: the peer hears of it, and the application connects again by the better one",
    )
}

#[test]
fn flows_of_a_worse_domain_move_where_they_can() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    let lines = "repair = true\nsessions.on-better = \"move\"";
    let (_agent, app) = start(&lab, lines)?;
    lab.carrier_down("wlan0")?;
    lab.wait_decision("app", "domain", "wwan0")?;
    let mut flows = open_all(&lab, &app, "wwan0")?;
    let position = lab.position()?;
    lab.carrier_up("wlan0")?;
    lab.wait_decision("app", "domain", "wlan0")?;
    // A connection cannot have another address.
    wait_counted(&lab, [0, 3, 3, 0])?;
    for flow in &mut flows {
        if flow.kind == Kind::Tcp {
            flow.session.ask("wait")?;
            flow.ends_and_connects_again(&lab, "wlan0")?;
            continue;
        }
        flow.goes_on_by("wlan0")?;
        lab.drain()?;
        let after = lab
            .capture()
            .since(position, |p| p.is_about(flow.target) && p.carries("after"));
        let own = lab.uplink("wlan0")?.addresses();
        ensure!(
            after.iter().any(|p| p.direction == Direction::FromHost)
                && after.iter().all(|p| p.uplink == "wlan0"
                    && (p.direction == Direction::ToHost
                        || p.source.is_some_and(|source| own.contains(&source)))),
            "{after:?}"
        );
    }
    conformance::row(
        "P-4.4-3",
        "flows of a domain that is worse now move to the better one, where the policy says so and they can",
    )
}

#[test]
fn a_lost_carrier_ends_flows_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "")?;
    let mut flows = open_all(&lab, &app, "wlan0")?;
    wait_all(&mut flows)?;
    lab.carrier_down("wlan0")?;
    for flow in &mut flows {
        flow.ends_and_connects_again(&lab, "wwan0")?;
    }
    wait_counted(&lab, [0, 0, 6, 0])?;
    let status = lab.steer(&["status", "--json"])?.json()?;
    ensure!(status["sessions"]["reset"] == 6, "{status:#}");
    ensure!(status["sessions"]["changed"].is_string(), "{status:#}");
    conformance::row(
        "S60-9",
        "when its domain is lost an application sees the error at once, and connects again by the next",
    )
}

#[test]
fn an_address_that_goes_ends_its_flows() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "")?;
    let flows = [(Kind::Tcp, Family::V4), (Kind::UdpConnected, Family::V4)];
    let mut flows: Vec<Flow> = flows
        .into_iter()
        .map(|flow| Flow::open(&lab, &app, flow, "wlan0"))
        .collect::<Result<_>>()?;
    wait_all(&mut flows)?;
    lab.remove_address("wlan0", "10.2.0.2/24")?;
    for flow in &mut flows {
        let told = flow.session.read()?;
        ensure!(told.errno_name == "ECONNABORTED", "{told:?}");
    }
    Ok(())
}

#[test]
fn flows_of_a_lost_domain_linger_and_then_end_also_over_the_agents_death() -> Result<()> {
    let lab = Lab::new()?;
    let (mut agent, app) = start(&lab, "sessions.on-loss = \"keep\"\nlinger = \"3s\"")?;
    let mut flows = open_all(&lab, &app, "wlan0")?;
    lab.carrier_down("wlan0")?;
    lab.wait_decision("app", "domain", "wwan0")?;
    wait_counted(&lab, [6, 0, 0, 0])?;
    wait_all(&mut flows)?;
    agent.kill()?;
    agent.start()?;
    wait_counted(&lab, [0, 0, 6, 0])?;
    for flow in &mut flows {
        flow.ends_and_connects_again(&lab, "wwan0")?;
    }
    Ok(())
}

#[test]
fn flows_that_linger_go_on_when_their_domain_comes_back() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "sessions.on-loss = \"keep\"\nlinger = \"1h\"")?;
    let mut flows = open_all(&lab, &app, "wlan0")?;
    lab.carrier_down("wlan0")?;
    wait_counted(&lab, [6, 0, 0, 0])?;
    lab.carrier_up("wlan0")?;
    wait_counted(&lab, [0, 0, 0, 0])?;
    for flow in &mut flows {
        flow.goes_on_by("wlan0")?;
    }
    Ok(())
}

#[test]
fn what_happened_while_no_agent_ran_is_made_up_for() -> Result<()> {
    let lab = Lab::new()?;
    let (mut agent, app) = start(&lab, "")?;
    let mut flows = open_all(&lab, &app, "wlan0")?;
    wait_all(&mut flows)?;
    agent.kill()?;
    lab.carrier_down("wlan0")?;
    agent.start()?;
    for flow in &mut flows {
        flow.ends_and_connects_again(&lab, "wwan0")?;
    }
    Ok(())
}

#[test]
fn a_strict_policy_ends_the_flows_of_a_running_application_and_nothing_leaks() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let (app, other) = (lab.cgroup().child("app")?, lab.cgroup().child("other")?);
    let mut flows = open_all(&lab, &app, "eth0")?;
    let mut others = open_all(&lab, &other, "eth0")?;
    // Of another network namespace, in the same cgroup.
    let mut foreign = Probe::new(Kind::Tcp, Family::V4).start_in(lab.peer("eth0")?)?;
    app.adopt(foreign.pid())?;
    let own = lab.target4();
    foreign.succeed(&format!("connect {own}:{ECHO_PORT}"))?;
    wait_all(&mut flows)?;
    lab.drain()?;
    let position = lab.position()?;
    let policy = lab.set_policy("app", &app, "wlan0", &["--strict"])?;
    ensure!(counts(&policy)? == [0, 0, 6, 0], "{policy:#}");
    for flow in &mut flows {
        flow.ends_and_connects_again(&lab, "wlan0")?;
    }
    lab.drain()?;
    let strays: Vec<String> = flows
        .iter()
        .flat_map(|flow| {
            lab.capture().since(position, |p| {
                p.is_about(flow.target)
                    && p.is_ip()
                    && p.target.is_none()
                    && p.direction == Direction::FromHost
                    && p.uplink != "wlan0"
            })
        })
        .map(|p| p.to_string())
        .collect();
    ensure!(strays.is_empty(), "{}", strays.join("\n"));
    for flow in &mut others {
        flow.goes_on_by("eth0")?;
    }
    foreign.succeed("send after")?;
    Ok(())
}

#[test]
fn listeners_and_what_they_accepted_outlive_a_change() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "sessions.on-better = \"reset\"")?;
    lab.carrier_down("wlan0")?;
    lab.wait_decision("app", "domain", "wwan0")?;
    for (port, (kind, family, own)) in (5000..).zip([
        (Kind::Tcp, Family::V4, lab.uplink("wwan0")?.address4()),
        (Kind::Tcp, Family::V6, lab.uplink("wwan0")?.address6()),
        (
            Kind::UdpUnconnected,
            Family::V4,
            lab.uplink("wwan0")?.address4(),
        ),
    ]) {
        let own = own.context("an address")?;
        let mut server = Probe::new(kind, family).start(&lab, &app)?;
        let any = match kind {
            Kind::Tcp if family == Family::V4 => "0.0.0.0".to_owned(),
            Kind::Tcp => "::".to_owned(),
            _ => own.to_string(),
        };
        server.succeed(&format!("bind [{any}]:{port}"))?;
        if kind == Kind::Tcp {
            server.succeed("listen")?;
        }
        let client = family.target(&lab);
        let asking = if kind == Kind::Tcp {
            kind
        } else {
            Kind::UdpConnected
        };
        let mut client_session = Probe::new(asking, family).start_in(lab.peer("wwan0")?)?;
        client_session.succeed(&format!("bind {client}"))?;
        client_session.succeed(&format!("connect {}", SocketAddr::new(own, port)))?;
        lab.carrier_up("wlan0")?;
        lab.wait_decision("app", "domain", "wlan0")?;
        // Everything is looked at once more with the answer to this.
        lab.set_policy("again", &lab.cgroup().child("again")?, "eth0", &[])?;
        ensure!(counted(&lab)? == [0, 0, 0, 0], "{kind:?}");
        server.ask("serve")?;
        client_session.succeed("send hello")?;
        ensure!(server.read()?.ok);
        lab.assert_only_by("wwan0", client)?;
        lab.carrier_down("wlan0")?;
        lab.wait_decision("app", "domain", "wwan0")?;
    }
    Ok(())
}

#[test]
fn a_datagram_that_nobody_answers_is_no_reason_to_wait() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "")?;
    let target = Family::V4.target(&lab);
    let mut session = Probe::new(Kind::UdpConnected, Family::V4).start(&lab, &app)?;
    session.succeed("set timeout=20000")?;
    session.succeed(&format!(
        "connect {}",
        SocketAddr::new(target, DISCARD_PORT)
    ))?;
    session.ask("send unanswered")?;
    lab.capture()
        .wait_for("the datagram", |p| p.carries("unanswered"))?;
    lab.carrier_down("wlan0")?;
    let told = session.read()?;
    ensure!(told.errno_name == "ECONNABORTED", "{told:?}");
    // Who goes on sending without a look learns that there is no peer.
    let told = session.perform("post more")?;
    ensure!(told.errno_name == "EDESTADDRREQ", "{told:?}");
    Ok(())
}

#[test]
fn a_thousand_flows_end_in_one_go() -> Result<()> {
    const MANY: u64 = 1000;
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    let target = lab.target4();
    let _server = Probe::new(Kind::Tcp, Family::V4)
        .then(&format!("bind {target}:5000"))
        .then("listen")
        .start_in(lab.peer("eth0")?)?;
    let mut session = Probe::new(Kind::Tcp, Family::V4).start(&lab, &app)?;
    session.succeed(&format!("many {MANY} {target}:5000"))?;
    let policy = lab.set_policy("app", &app, "wlan0", &["--strict"])?;
    ensure!(counts(&policy)? == [0, 0, MANY, 0], "{policy:#}");
    let ended = session.succeed("ended")?;
    ensure!((ended.tried, ended.failed) == (MANY, MANY), "{ended:?}");
    Ok(())
}

#[test]
fn a_flow_that_cannot_end_yet_keeps_nobody_waiting() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    let mut flow = Flow::open(&lab, &app, (Kind::Tcp, Family::V4), "eth0")?;
    // The kernel closes no socket that it works at.
    flow.session.succeed("hold")?;
    let policy = thread::scope(|scope| {
        let set = scope.spawn(|| lab.set_policy("app", &app, "wlan0,wwan0", &["--strict"]));
        // Commands have a deadline of their own.
        let is_set = wait::until("policy app", || {
            let policies = lab.policies()?;
            let set = policies.iter().any(|policy| policy["name"] == "app");
            Ok(set.then_some(()))
        });
        let in_time = is_set.and_then(|()| {
            lab.wait_decision("app", "domain", "wlan0")?;
            lab.carrier_down("wlan0")?;
            lab.wait_decision("app", "domain", "wwan0")?;
            ensure!(counted(&lab)? == [0; 4] && !set.is_finished());
            Ok(())
        });
        flow.session.succeed("release")?;
        in_time?;
        set.join().expect("no panic")
    })?;
    ensure!(counts(&policy)? == [0, 0, 1, 0], "{policy:#}");
    lab.flow_leaves_by(&app, "wwan0", Kind::Tcp, Family::V4)?;
    Ok(())
}

#[test]
fn flows_are_kept_in_each_cgroup_of_a_policy_whichever_was_looked_at_last() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    let (one, two) = (app.child("one")?, app.child("two")?);
    let open = |cgroup| Flow::open(&lab, cgroup, (Kind::Tcp, Family::V4), "eth0");
    let _flows = [open(&one)?, open(&two)?, open(&two)?];
    let policy = lab.set_policy("app", &app, "wlan0", &[])?;
    ensure!(counts(&policy)? == [3, 0, 0, 0], "{policy:#}");
    for _ in 0..2 {
        let own = lab.set_policy("one", &one, "wlan0", &["--priority", "1"])?;
        ensure!(counts(&own)? == [1, 0, 0, 0], "{own:#}");
        ensure!(counted(&lab)? == [2, 0, 0, 0]);
        let unset = lab.steer(&["policy", "unset", "one", "--json"])?.json()?;
        ensure!(counts(&unset)? == [1, 0, 0, 0], "{unset:#}");
        ensure!(counted(&lab)? == [3, 0, 0, 0]);
    }
    let status = lab.steer(&["status", "--json"])?.json()?;
    ensure!(counts(&status)? == [3, 0, 0, 0], "{status:#}");
    // The same once more: nothing changes.
    let policy = lab.set_policy("app", &app, "wlan0", &[])?;
    ensure!(counts(&policy)? == [3, 0, 0, 0], "{policy:#}");
    Ok(())
}

#[test]
fn a_process_that_is_moved_takes_its_flows_along() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.start_agent()?;
    let app = lab.cgroup().child("app")?;
    for (more, expected) in [(&[][..], [1, 0, 0, 0]), (&["--strict"][..], [0, 0, 1, 0])] {
        let mut flow = Flow::open(&lab, &app, (Kind::Tcp, Family::V4), "eth0")?;
        let mut brother = Flow::open(&lab, &app, (Kind::Tcp, Family::V4), "eth0")?;
        let pid = flow.session.pid().to_string();
        let mut args = vec!["move", &pid, "--via", "wlan0", "--json"];
        args.extend(more);
        let moved = lab.steer(&args)?.json()?;
        ensure!(counts(&moved)? == expected, "{moved:#}");
        if more.is_empty() {
            flow.goes_on_by("eth0")?;
        } else {
            flow.session.ask("wait")?;
            flow.ends_and_connects_again(&lab, "wlan0")?;
        }
        brother.goes_on_by("eth0")?;
    }
    Ok(())
}

#[test]
fn a_preferred_domain_ends_flows_where_the_policy_says_so() -> Result<()> {
    let lab = Lab::new()?;
    let (_agent, app) = start(&lab, "sessions.on-better = \"reset\"")?;
    let mut flow = Flow::open(&lab, &app, (Kind::Tcp, Family::V4), "wlan0")?;
    let preferred = lab
        .steer(&["domain", "prefer", "wwan0", "--json"])?
        .json()?;
    ensure!(counts(&preferred[0])? == [0, 0, 1, 0], "{preferred:#}");
    flow.session.ask("wait")?;
    flow.ends_and_connects_again(&lab, "wwan0")
}
