//! The API over a real socket: a server, a stand-in for the agent's loop, and callers of every
//! kind, also ill-behaved ones. Needs root, as the API does.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use steer::api::client::{self, Client};
use steer::api::error::ApiError;
use steer::api::methods::{
    ListDomains, ListPolicies, Reply, Request, Run, RunReply, SetPolicy, ShowDomain, ShowPolicy,
    Status, UnsetPolicy,
};
use steer::api::server::{self, Call, Limits, Server};
use steer::api::types::{
    Candidate, DecisionView, DomainView, LocalNetworks, Origin, Otherwise, PolicyView, StatusView,
    Verdict,
};
use steer::api::{INTERFACE, MAX_REQUEST};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

/// Longest that anything here may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// A server whose calls are answered by a function.
struct Agent {
    directory: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    fn start(answer: impl FnMut(Call) + Send + 'static) -> Self {
        Self::start_with(Limits::default(), answer)
    }

    fn start_with(limits: Limits, mut answer: impl FnMut(Call) + Send + 'static) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the API serves root alone: run this as root");
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("agent.sock");
        let (stop, mut stopped) = oneshot::channel();
        let (ready, is_ready) = std_mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
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
        Self { directory, stop: Some(stop), thread: Some(thread) }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    fn client(&self) -> Client {
        Client::connect(&self.path()).unwrap()
    }

    fn peer(&self) -> Peer {
        Peer::connect(&self.path())
    }

    /// Asks something that must always work.
    fn assert_serves(&self) {
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
struct Peer(BufReader<UnixStream>);

impl Peer {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    /// The next answer; `None` when the server has closed the connection.
    fn answer(&mut self) -> Option<Value> {
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

    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        let call = json!({"method": format!("{INTERFACE}.{method}"), "parameters": parameters});
        let mut text = call.to_string().into_bytes();
        text.push(0);
        self.send(&text);
        self.answer().unwrap()
    }
}

fn policy(name: &str) -> PolicyView {
    PolicyView {
        name: name.to_owned(),
        origin: Origin::Admin,
        cgroup: vec!["app.slice/firefox.scope".to_owned()],
        unit: Vec::new(),
        use_: vec!["wifi".to_owned(), "lte".to_owned()],
        strict: true,
        otherwise: Otherwise::Block,
        local_networks: LocalNetworks::Steer,
        priority: -3,
        saved: false,
        cgroups: 2,
        decision: DecisionView {
            verdict: Verdict::Steer,
            domain: Some("wifi".to_owned()),
            interface: Some("wlan0".to_owned()),
            source4: Some("192.0.2.7".to_owned()),
            source6: None,
            reason: "the first of `use` that is up".to_owned(),
            candidates: vec![candidate("wifi", true)],
        },
        quarantined: None,
    }
}

fn candidate(domain: &str, taken: bool) -> Candidate {
    Candidate { domain: domain.to_owned(), taken, reason: "it has no address".to_owned() }
}

fn domain(name: &str) -> DomainView {
    DomainView {
        name: name.to_owned(),
        alias: Some("wlan0".to_owned()),
        origin: Origin::Default,
        interface: Some("wlan0".to_owned()),
        ifindex: Some(3),
        kind: "wlan".to_owned(),
        state: "up".to_owned(),
        reason: "it has carrier, an address and a route".to_owned(),
        addresses: vec!["192.0.2.7".to_owned()],
        gateways: vec!["192.0.2.1".to_owned()],
        index: Some(1),
        mark: Some("0x1000000".to_owned()),
        table: Some(5301),
    }
}

fn status() -> StatusView {
    StatusView {
        version: "0".to_owned(),
        agent_running: true,
        since: None,
        cgroup_root: "/sys/fs/cgroup".to_owned(),
        hooks: vec!["connect4".to_owned()],
        guards: Vec::new(),
        policies: vec![policy("web")],
        domains: vec![domain("wifi")],
        counters: BTreeMap::from([("steered".to_owned(), 7)]),
        warnings: Vec::new(),
    }
}

/// Answers everything as asked.
fn agreeable(call: Call) {
    let reply = match call.request {
        Request::SetPolicy(p) => {
            let use_ = p.use_;
            Reply::Policy(Box::new(PolicyView { use_, ..policy(&p.name) }))
        }
        Request::UnsetPolicy(_) => Reply::Done,
        Request::ListPolicies => Reply::Policies(vec![policy("web"), policy("mail")]),
        Request::ShowPolicy(p) => Reply::Policy(Box::new(policy(&p.name))),
        Request::ListDomains => Reply::Domains(vec![domain("wifi"), domain("lte")]),
        Request::ShowDomain(d) => Reply::Domain(Box::new(domain(&d.name))),
        Request::Status => Reply::Status(Box::new(status())),
        Request::Run(r) => Reply::Run(RunReply {
            cgroup: "/steer/run-1".to_owned(),
            policy: r.command,
            domain: r.via.into_iter().next(),
        }),
    };
    drop(call.reply.send(Ok(reply)));
}

fn service_error(answer: &Value) -> (&str, Option<&str>) {
    let error = answer["error"].as_str().unwrap_or_else(|| panic!("no error: {answer}"));
    let parameters = answer["parameters"].as_object().unwrap();
    (
        error.strip_prefix("org.varlink.service.").unwrap_or(error),
        parameters.values().next().and_then(Value::as_str),
    )
}

#[test]
fn every_method_makes_the_round_trip() {
    let agent = Agent::start(agreeable);
    let mut client = agent.client();

    let set = SetPolicy {
        name: "web".to_owned(),
        cgroup: vec!["a".to_owned()],
        use_: vec!["lte".to_owned()],
        otherwise: Some(Otherwise::Next),
        ..SetPolicy::default()
    };
    let answer = client.call(&set).unwrap().policy;
    assert_eq!((answer.name.as_str(), answer.use_), ("web", vec!["lte".to_owned()]));

    let name = || "web".to_owned();
    client.call(&UnsetPolicy { name: name(), save: Some(true) }).unwrap();
    assert_eq!(client.call(&ShowPolicy { name: name() }).unwrap().policy, policy("web"));
    assert_eq!(client.call(&ShowDomain { name: name() }).unwrap().domain, domain("web"));
    assert_eq!(client.call(&Status {}).unwrap().status, status());

    let run = Run { via: vec!["lte".to_owned()], command: "curl".to_owned(), ..Run::default() };
    let answer = client.call(&run).unwrap();
    assert_eq!((answer.policy.as_str(), answer.domain.as_deref()), ("curl", Some("lte")));

    let policies = client.call(&ListPolicies {}).unwrap().policies;
    assert_eq!(policies, [policy("mail"), policy("web")], "sorted by name");
    let domains = client.call(&ListDomains {}).unwrap().domains;
    assert_eq!(domains, [domain("lte"), domain("wifi")], "sorted by name");
}

#[test]
fn errors_arrive_as_they_were_sent() {
    let reason = || "because".to_owned();
    let name = || "web".to_owned();
    let errors = [
        ApiError::NoDomainFits {
            policy: Some(name()),
            reason: reason(),
            candidates: vec![candidate("wifi", false)],
        },
        ApiError::NoDomainFits { policy: None, reason: reason(), candidates: Vec::new() },
        ApiError::NoSuchPolicy { name: name() },
        ApiError::NoSuchDomain { name: name() },
        ApiError::InvalidArgument { field: name(), reason: reason() },
        ApiError::NotPermitted { reason: reason() },
        ApiError::Failed { reason: reason() },
        ApiError::Busy { reason: reason() },
    ];
    let mut left = errors.clone().into_iter();
    let agent = Agent::start(move |call| {
        drop(call.reply.send(Err(left.next().unwrap())));
    });
    let mut client = agent.client();
    for expected in errors {
        match client.call(&Status {}) {
            Err(client::Error::Api(error)) => assert_eq!(error, expected),
            other => panic!("{other:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn a_bad_call_is_answered_by_what_is_wrong_and_the_connection_goes_on() {
    let agent = Agent::start(agreeable);
    let mut peer = agent.peer();
    let good = json!({"name": "web", "cgroup": ["a"], "unit": [], "use": ["lte"]});
    let with = |key: &str, value: Value| {
        let mut call = good.clone();
        call[key] = value;
        call
    };
    let without = |key: &str| {
        let mut call = good.clone();
        call.as_object_mut().unwrap().remove(key);
        call
    };
    assert!(peer.call("SetPolicy", &good).get("error").is_none());
    for (parameters, wrong) in [
        (without("name"), "name"),
        (without("use"), "use"),
        (json!({}), "name"),
        (json!([]), "parameters"),
        (with("name", json!(5)), "name"),
        (with("name", Value::Null), "name"),
        (with("cgroup", json!("a")), "cgroup"),
        (with("use", json!(["lte", 1])), "use"),
        (with("pid", json!("1")), "pid"),
        (with("pid", json!(1.5)), "pid"),
        (with("strict", json!("yes")), "strict"),
        (with("otherwise", json!("perhaps")), "otherwise"),
        (with("stirct", json!(true)), "stirct"),
    ] {
        let answer = peer.call("SetPolicy", &parameters);
        assert_eq!(service_error(&answer), ("InvalidParameter", Some(wrong)), "{parameters}");
    }
    let answer = peer.call("SetPolicy", &with("pid", json!(-1)));
    assert_eq!(answer["error"], json!(format!("{INTERFACE}.InvalidArgument")));

    let answer = peer.call("Explode", &json!({}));
    let method = format!("{INTERFACE}.Explode");
    assert_eq!(service_error(&answer), ("MethodNotFound", Some(method.as_str())));
    peer.send(b"{\"method\":\"org.example.Nothing\"}\0");
    let answer = peer.answer().unwrap();
    assert_eq!(service_error(&answer), ("InterfaceNotFound", Some("org.example")));
    assert!(peer.call("SetPolicy", &good).get("error").is_none());

    // What is no call at all ends the connection, and only that.
    for nonsense in [&b"GET / HTTP/1.0\r\n\r\n\0"[..], b"\0", b"[]\0", b"{}\0", b"\xff\xfe\0"] {
        let mut peer = agent.peer();
        peer.send(nonsense);
        let answer = peer.answer().unwrap();
        assert_eq!(service_error(&answer), ("InvalidParameter", Some("message")));
        assert_eq!(peer.answer(), None);
    }
    agent.assert_serves();
}

#[test]
fn a_call_of_ten_megabytes_is_refused_and_costs_only_its_connection() {
    let agent = Agent::start(agreeable);
    let mut peer = agent.peer();
    // The server does not read it all.
    let sent = peer.0.get_mut().write_all(&vec![b'x'; 10 << 20]);
    assert_eq!(sent.unwrap_err().kind(), ErrorKind::BrokenPipe);
    let answer = peer.answer().unwrap();
    assert_eq!(answer["error"], json!(format!("{INTERFACE}.InvalidArgument")));
    assert_eq!(answer["parameters"]["field"], json!("message"));
    assert_eq!(peer.answer(), None);
    agent.assert_serves();
}

#[test]
fn the_largest_call_is_taken_and_one_byte_more_is_not() {
    let agent = Agent::start(agreeable);
    for (len, taken) in [(MAX_REQUEST, true), (MAX_REQUEST + 1, false)] {
        let mut call = format!("{{\"method\":\"{INTERFACE}.Status\"").into_bytes();
        call.resize(len - 1, b' ');
        call.extend_from_slice(b"}\0");
        let mut peer = agent.peer();
        peer.send(&call);
        assert_eq!(peer.answer().unwrap().get("error").is_none(), taken, "{len} bytes");
    }
}

#[test]
fn a_thousand_connections_do_not_keep_the_agent_from_serving() {
    let agent = Agent::start(agreeable);
    let mut peers: Vec<Peer> = (0..1000).map(|_| agent.peer()).collect();
    let mut served = 0;
    for peer in &mut peers {
        // One that was refused may find the connection closed already.
        drop(peer.0.get_mut().write_all(b"{\"method\":\"org.varlink.service.GetInfo\"}\0"));
        let answer = peer.answer().unwrap();
        match answer.get("error") {
            None => served += 1,
            Some(error) => assert_eq!(error, &json!(format!("{INTERFACE}.Busy"))),
        }
    }
    assert_eq!(served, 64);
    match agent.client().call(&Status {}) {
        Err(client::Error::Api(ApiError::Busy { .. })) => {}
        other => panic!("{other:?}"),
    }
    drop(peers);
    let start = Instant::now();
    loop {
        match agent.client().call(&Status {}) {
            Ok(_) => return,
            Err(client::Error::Api(ApiError::Busy { .. })) if start.elapsed() < DEADLINE => {}
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn a_caller_in_the_middle_of_a_call_blocks_no_one_and_is_dropped_in_time() {
    let limits = Limits { message: Duration::from_millis(300), ..Limits::default() };
    let agent = Agent::start_with(limits, agreeable);
    let mut slow = agent.peer();
    slow.send(b"{\"method\":\"org.varl");
    agent.assert_serves();
    assert_eq!(slow.answer(), None);
    agent.assert_serves();
}

#[test]
fn a_caller_that_says_nothing_is_dropped_in_time() {
    let limits = Limits { idle: Duration::from_millis(300), ..Limits::default() };
    let agent = Agent::start_with(limits, agreeable);
    assert_eq!(agent.peer().answer(), None);
    agent.assert_serves();
}

#[test]
fn a_caller_that_does_not_take_its_answer_is_dropped_in_time() {
    let limits = Limits { take: Duration::from_millis(300), ..Limits::default() };
    let agent = Agent::start_with(limits, |call| match call.request {
        Request::ListPolicies => {
            let many = (0..20_000).map(|i| policy(&i.to_string())).collect();
            drop(call.reply.send(Ok(Reply::Policies(many))));
        }
        _ => agreeable(call),
    });
    let mut peer = agent.peer();
    peer.send(format!("{{\"method\":\"{INTERFACE}.ListPolicies\"}}\0").as_bytes());
    agent.assert_serves();
    // The hang-up comes although nothing was read.
    let mut fds = [nix::poll::PollFd::new(
        std::os::fd::AsFd::as_fd(peer.0.get_ref()),
        nix::poll::PollFlags::empty(),
    )];
    assert_eq!(nix::poll::poll(&mut fds, 20_000u16).unwrap(), 1);
    let mut rest = Vec::new();
    drop(peer.0.read_to_end(&mut rest));
    assert!(!rest.ends_with(&[0]), "the answer was to be too long for the socket's buffer");
}

#[test]
fn a_long_answer_arrives_whole_and_fast() {
    let agent = Agent::start(|call| {
        let many = (0..20_000).map(|i| policy(&format!("{i:05}"))).collect();
        drop(call.reply.send(Ok(Reply::Policies(many))));
    });
    let policies = agent.client().call(&ListPolicies {}).unwrap().policies;
    assert_eq!(policies.len(), 20_000);
}

#[test]
fn only_root_is_served() {
    let agent = Agent::start(agreeable);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&agent.path()), 0o600);

    let connect_as_nobody = || {
        let path = agent.path();
        std::thread::spawn(move || {
            // SAFETY: three numbers; the raw call changes this thread's ids alone.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
            assert_eq!(changed, 0);
            Client::connect(&path).map(|mut client| client.call(&Status {}))
        })
        .join()
        .unwrap()
    };
    fs::set_permissions(agent.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(connect_as_nobody(), Err(client::Error::NotPermitted(_))));

    // Even if the file's mode lets it in.
    fs::set_permissions(agent.path(), fs::Permissions::from_mode(0o666)).unwrap();
    match connect_as_nobody() {
        Ok(Err(client::Error::Api(ApiError::NotPermitted { .. }))) => {}
        other => panic!("{other:?}"),
    }
    agent.assert_serves();
}

#[test]
fn the_agent_learns_who_calls() {
    let (tell, told) = std_mpsc::channel();
    let agent = Agent::start(move |call| {
        tell.send(call.caller.clone()).unwrap();
        agreeable(call);
    });
    agent.assert_serves();
    let caller = told.recv_timeout(DEADLINE).unwrap();
    let own = i32::try_from(std::process::id()).unwrap();
    assert_eq!((caller.pid, caller.uid, caller.gid), (own, 0, nix::unistd::getegid().as_raw()));
    let fd = std::os::fd::AsRawFd::as_raw_fd(&*caller.pidfd);
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    assert!(about.contains(&format!("Pid:\t{own}\n")), "{about}");
}

#[test]
fn the_agent_learns_that_a_caller_has_gone() {
    let (tell, told) = std_mpsc::channel();
    let agent = Agent::start(move |call| match call.request {
        Request::Run(_) => tell.send(call.reply).unwrap(),
        _ => agreeable(call),
    });
    let mut peer = agent.peer();
    let call = json!({"method": format!("{INTERFACE}.Run"),
                      "parameters": {"via": ["lte"], "command": "curl"}});
    peer.send(format!("{call}\0").as_bytes());
    let mut reply = told.recv_timeout(DEADLINE).unwrap();
    agent.assert_serves();
    assert!(!reply.is_closed());
    drop(peer);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, reply.closed()).await.unwrap() });
    agent.assert_serves();
}

#[test]
fn calls_in_one_write_are_answered_in_order_and_after_a_half_close() {
    let agent = Agent::start(agreeable);
    let mut peer = agent.peer();
    let show = |name: &str| {
        format!("{{\"method\":\"{INTERFACE}.ShowPolicy\",\"parameters\":{{\"name\":\"{name}\"}}}}\0")
    };
    peer.send(format!("{}{}{}", show("a"), show("b"), show("c")).as_bytes());
    peer.0.get_ref().shutdown(Shutdown::Write).unwrap();
    for name in ["a", "b", "c"] {
        assert_eq!(peer.answer().unwrap()["parameters"]["policy"]["name"], json!(name));
    }
    assert_eq!(peer.answer(), None);
}

#[test]
fn a_oneway_call_is_done_and_not_answered() {
    let agent = Agent::start(agreeable);
    let mut peer = agent.peer();
    peer.send(format!("{{\"method\":\"{INTERFACE}.Status\",\"oneway\":true}}\0").as_bytes());
    let answer = peer.call("ShowPolicy", &json!({"name": "web"}));
    assert_eq!(answer["parameters"]["policy"]["name"], json!("web"));
}

#[test]
fn the_interface_describes_itself_to_other_implementations() {
    use zlink::varlink_service::Proxy;

    let agent = Agent::start(agreeable);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = zlink::tokio::unix::connect(agent.path()).await.unwrap();
        let info = connection.get_info().await.unwrap().unwrap();
        assert_eq!(info.product, "steer");
        assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
        assert!(info.interfaces.iter().any(|i| *i == INTERFACE));

        let name = || INTERFACE.try_into().unwrap();
        let told = connection.get_interface_description(name()).await.unwrap().unwrap();
        let file = include_str!("../src/api/net.steer.Agent.varlink");
        assert_eq!(told.as_raw().unwrap(), file, "net.steer.Agent.varlink is not what is served");
        let interface = told.parse().unwrap();
        assert_eq!(interface.methods().count(), 8);
        assert_eq!(interface.errors().count(), 7);

        let own = "org.varlink.service".try_into().unwrap();
        let told = connection.get_interface_description(own).await.unwrap().unwrap();
        assert_eq!(told.parse().unwrap().methods().count(), 2);
        let other = "org.example.nothing".try_into().unwrap();
        let refused = connection.get_interface_description(other).await;
        assert!(matches!(refused, Err(zlink::Error::VarlinkService(_))), "{refused:?}");
    });
}

#[test]
fn two_agents_do_not_share_a_socket_and_a_dead_one_leaves_none_behind() {
    let bind = |path: &Path| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (calls, _called) = mpsc::channel(1);
        let bound = runtime.block_on(async { Server::bind(path, calls) });
        bound.map(drop)
    };
    let agent = Agent::start(agreeable);
    assert!(matches!(bind(&agent.path()), Err(server::Error::Taken(_))));
    agent.assert_serves();

    let directory = TempDir::new().unwrap();
    let path = directory.path().join("new/agent.sock");
    bind(&path).unwrap();
    assert!(!path.exists(), "the socket goes with the server");

    // Left by an agent that was killed: nobody listens.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    bind(&path).unwrap();

    // Somebody else's.
    let other = UnixListener::bind(&path).unwrap();
    assert!(matches!(bind(&path), Err(server::Error::Taken(_))));
    drop(other);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    assert!(matches!(bind(&path), Err(server::Error::NoSocket(_))));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn an_agent_that_is_not_there_is_told_from_one_that_fails() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("agent.sock");
    assert!(matches!(Client::connect(&path), Err(client::Error::NotRunning(_))));
    let listener = UnixListener::bind(&path).unwrap();
    drop(listener);
    assert!(matches!(Client::connect(&path), Err(client::Error::NotRunning(_))));

    let agent = Agent::start(drop);
    match agent.client().call(&Status {}) {
        Err(client::Error::Api(ApiError::Failed { .. })) => {}
        other => panic!("{other:?}"),
    }
}
