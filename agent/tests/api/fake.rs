//! A server, a stand-in for the agent's loop behind it, and a caller that speaks bytes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use steer::api::INTERFACE;
use steer::api::client::Client;
use steer::api::explain::{ExplanationView, SubjectView};
use steer::api::flows::{FlowsReply, HolderView, LiveFlowView, Whereabouts};
use steer::api::methods::{
    Reloaded, Reply, Request, ResolveReply, RunReply, Status, UnsetReply, WatchReply,
};
use steer::api::server::{Call, Limits, Server};
use steer::api::types::{
    Candidate, DecisionView, DomainView, LocalNetworks, MeasuredView, Origin, Otherwise,
    PolicyView, StatusView, Verdict,
};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

/// Longest that anything here may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A server whose calls are answered by a function.
pub(crate) struct Agent {
    pub(crate) directory: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    pub(crate) fn start(answer: impl FnMut(Call) + Send + 'static) -> Self {
        Self::start_with(Limits::default(), answer)
    }

    pub(crate) fn start_with(
        limits: Limits,
        mut answer: impl FnMut(Call) + Send + 'static,
    ) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "the API serves root alone: run this as root"
        );
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("agent.sock");
        let (stop, mut stopped) = oneshot::channel();
        let (ready, is_ready) = std_mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let (calls, mut called) = mpsc::channel(8);
                let server = Server::bind(&path, calls).unwrap().with_limits(limits);
                ready.send(()).unwrap();
                let mut serving = std::pin::pin!(server.run());
                loop {
                    tokio::select! {
                        () = &mut serving => unreachable!("the server ended"),
                        call = called.recv() => answer(call.unwrap()),
                        _ = &mut stopped => return,
                    }
                }
            });
        });
        is_ready.recv_timeout(DEADLINE).unwrap();
        Self {
            directory,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.path()).unwrap()
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer::connect(&self.path())
    }

    /// Asks something that must always work.
    pub(crate) fn assert_serves(&self) {
        let status = self.client().call(&Status {}).unwrap().status;
        assert!(status.agent_running);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// A caller that speaks bytes.
pub(crate) struct Peer(pub(crate) BufReader<UnixStream>);

impl Peer {
    pub(crate) fn connect(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).unwrap())
    }

    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self(BufReader::new(stream))
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    /// The next answer; `None` when the server has closed the connection.
    pub(crate) fn answer(&mut self) -> Option<Value> {
        let mut text = Vec::new();
        match self.0.read_until(0, &mut text) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return None,
            Err(e) => panic!("no answer: {e}"),
        }
        assert_eq!(text.pop(), Some(0), "an answer was cut off");
        Some(serde_json::from_slice(&text).unwrap())
    }

    pub(crate) fn call(&mut self, method: &str, parameters: &Value) -> Value {
        let call = json!({"method": format!("{INTERFACE}.{method}"), "parameters": parameters});
        let mut text = call.to_string().into_bytes();
        text.push(0);
        self.send(&text);
        self.answer().unwrap()
    }
}

pub(crate) fn policy(name: &str) -> PolicyView {
    PolicyView {
        name: name.to_owned(),
        origin: Origin::Admin,
        owner: None,
        cgroup: vec!["app.slice/firefox.scope".to_owned()],
        unit: Vec::new(),
        use_: vec!["wifi".to_owned(), "lte".to_owned()],
        domains: vec!["wifi".to_owned(), "lte".to_owned()],
        preferred: None,
        strict: true,
        otherwise: Some(Otherwise::Block),
        local_networks: LocalNetworks::Steer,
        share: None,
        rules: Some(0),
        rule_decisions: None,
        priority: Some(-3),
        saved: false,
        cgroups: 2,
        decision: DecisionView {
            verdict: Verdict::Steer,
            domain: Some("wifi".to_owned()),
            interface: Some("wlan0".to_owned()),
            source4: Some("192.0.2.7".to_owned()),
            source6: None,
            members: Vec::new(),
            reason: "the first of `use` that is up".to_owned(),
            since: Some("2026-01-02T03:04:05Z".to_owned()),
            candidates: vec![candidate("wifi", true)],
        },
        sessions: None,
        quarantined: None,
        traffic: None,
        question: None,
        note: None,
    }
}

pub(crate) fn candidate(domain: &str, taken: bool) -> Candidate {
    Candidate {
        domain: domain.to_owned(),
        taken,
        reason: "it has no address".to_owned(),
    }
}

pub(crate) fn domain(name: &str) -> DomainView {
    DomainView {
        name: name.to_owned(),
        alias: Some("wlan0".to_owned()),
        origin: Origin::Default,
        interface: Some("wlan0".to_owned()),
        ifindex: Some(3),
        kind: "wlan".to_owned(),
        cost: 0,
        metered: false,
        security: "open".to_owned(),
        bandwidth: None,
        profile: None,
        state: "up".to_owned(),
        reason: "it has carrier, an address and a route".to_owned(),
        since: None,
        portal: None,
        check: vec!["icmp gateway".to_owned()],
        measured: MeasuredView::default(),
        ssid: None,
        connection: None,
        network: None,
        history: None,
        servers: Vec::new(),
        addresses: vec!["192.0.2.7".to_owned()],
        gateways: vec!["192.0.2.1".to_owned()],
        index: Some(1),
        mark: Some("0x1000000".to_owned()),
        table: Some(5301),
        traffic: None,
        host_model: None,
    }
}

pub(crate) fn status() -> StatusView {
    StatusView {
        version: "0".to_owned(),
        agent_running: true,
        since: None,
        last_seen: None,
        cgroup_root: "/sys/fs/cgroup".to_owned(),
        hooks: vec!["connect4".to_owned()],
        guards: Vec::new(),
        policies: vec![policy("web")],
        domains: vec![domain("wifi")],
        sessions: None,
        counters: BTreeMap::from([("steered".to_owned(), 7)]),
        warnings: Vec::new(),
    }
}

pub(crate) fn explanation() -> ExplanationView {
    ExplanationView {
        summary: "this process: by wifi".to_owned(),
        subject: SubjectView {
            pid: Some(7),
            command: Some("sh".to_owned()),
            uid: Some(0),
            caller: true,
            unit: None,
        },
        cgroup: "/app.slice".to_owned(),
        cgroup_id: Some(9),
        unmanaged: None,
        policy: Some("web".to_owned()),
        contenders: Vec::new(),
        chain: vec!["web".to_owned(), "default".to_owned()],
        decision: Some(policy("web").decision),
        domain: Some(domain("wifi")),
        paths: Vec::new(),
        strict: true,
        forbids: Vec::new(),
        flow: None,
        without: None,
        maps: None,
        notes: Vec::new(),
        warnings: Vec::new(),
    }
}

/// A flow of each kind.
pub(crate) fn flows() -> FlowsReply {
    let steered = LiveFlowView {
        id: "1a".to_owned(),
        protocol: "tcp".to_owned(),
        state: "open".to_owned(),
        processes: vec![HolderView {
            pid: 7,
            command: "curl".to_owned(),
        }],
        uid: 0,
        cgroup: Some("/app.slice/web.scope".to_owned()),
        policy: Some("web".to_owned()),
        whereabouts: Whereabouts::Steered,
        domain: Some("wifi".to_owned()),
        wrong: None,
        interface: Some("wlan0".to_owned()),
        source: Some("192.0.2.7".to_owned()),
        source_port: Some(50_000),
        destination: Some("198.51.100.1".to_owned()),
        destination_port: Some(443),
        sent_bytes: Some(1_234),
        sent_packets: Some(9),
        received_bytes: Some(5_678_901),
        received_packets: Some(4_000),
        counted_since: None,
        age: 75,
        age_exact: true,
    };
    let wrong = LiveFlowView {
        id: "1b".to_owned(),
        protocol: "udp".to_owned(),
        state: "unconnected".to_owned(),
        processes: Vec::new(),
        whereabouts: Whereabouts::Wrong,
        wrong: Some("leaves by eth0, not by wifi".to_owned()),
        destination: Some("2001:db8::1".to_owned()),
        sent_bytes: None,
        age: 3,
        age_exact: false,
        ..steered.clone()
    };
    FlowsReply {
        flows: vec![steered, wrong],
        omitted: 0,
        notes: Vec::new(),
    }
}

/// Answers everything as asked.
pub(crate) fn agreeable(call: Call) {
    let reply = match call.request {
        Request::SetPolicy(p) => {
            let use_ = p.use_;
            Reply::Policy(Box::new(PolicyView {
                use_,
                ..policy(&p.name)
            }))
        }
        Request::UnsetPolicy(_) => Reply::Unset(UnsetReply::default()),
        Request::ListPolicies => Reply::Policies(vec![policy("web"), policy("mail")]),
        Request::ShowPolicy(p) => Reply::Policy(Box::new(policy(&p.name))),
        Request::ListDomains => Reply::Domains(vec![domain("wifi"), domain("lte")]),
        Request::ShowDomain(d) => Reply::Domain(Box::new(domain(&d.name))),
        Request::Watch => Reply::Watch(WatchReply::default()),
        Request::Resolve(asked) => Reply::Resolved(ResolveReply {
            name: asked.name,
            domain: asked.domain,
            addresses: vec!["192.0.2.1".to_owned()],
            failures: Vec::new(),
        }),
        Request::CheckDomain(d) => Reply::Domain(Box::new(domain(&d.name))),
        Request::Status => Reply::Status(Box::new(status())),
        Request::Reload => Reply::Reloaded(Reloaded::default()),
        Request::Explain(_) => Reply::Explanation(Box::new(explanation())),
        Request::ListFlows(_) => Reply::Flows(flows()),
        Request::Run(r) => Reply::Run(run_reply(r.command, r.via)),
        Request::Prefer(p) => Reply::Policies(p.policy.iter().map(|name| policy(name)).collect()),
        Request::Move(m) => Reply::Run(run_reply(format!("run-{}", m.pid), m.via)),
    };
    call.reply.end(Ok(reply));
}

pub(crate) fn run_reply(policy: String, via: Vec<String>) -> RunReply {
    RunReply {
        cgroup: Some("/steer/run-1".to_owned()),
        policy,
        domain: via.into_iter().next(),
        waits: None,
        question: None,
        sessions: None,
    }
}

/// What a call sees on a thread that is another user.
pub(crate) fn as_user<T: Send + 'static>(
    uid: u32,
    groups: &'static [u32],
    act: impl FnOnce() -> T + Send + 'static,
) -> T {
    std::thread::spawn(move || {
        // SAFETY: the array outlives the call, which changes this thread's groups alone.
        let groups = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
        // SAFETY: three numbers; the raw call changes this thread's ids alone.
        let gid = unsafe { libc::syscall(libc::SYS_setresgid, uid, uid, uid) };
        // SAFETY: as before.
        let uid = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!((groups, gid, uid), (0, 0, 0));
        act()
    })
    .join()
    .unwrap()
}
