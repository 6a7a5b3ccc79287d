//! Callers that say too much, too little, nothing, or the wrong thing.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use steer::api::client;
use steer::api::error::ApiError;
use steer::api::methods::{Reply, Request, Status};
use steer::api::server::Limits;
use steer::api::{INTERFACE, MAX_REQUEST};

use crate::fake::{Agent, DEADLINE, Peer, agreeable, as_user, policy};

fn service_error(answer: &Value) -> (&str, Option<&str>) {
    let error = answer["error"]
        .as_str()
        .unwrap_or_else(|| panic!("no error: {answer}"));
    let parameters = answer["parameters"].as_object().unwrap();
    (
        error.strip_prefix("org.varlink.service.").unwrap_or(error),
        parameters.values().next().and_then(Value::as_str),
    )
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
        assert_eq!(
            service_error(&answer),
            ("InvalidParameter", Some(wrong)),
            "{parameters}"
        );
    }
    let answer = peer.call("SetPolicy", &with("pid", json!(-1)));
    assert_eq!(
        answer["error"],
        json!(format!("{INTERFACE}.InvalidArgument"))
    );
    assert_eq!(answer["parameters"]["field"], json!("pid"));

    let answer = peer.call("Explode", &json!({}));
    let method = format!("{INTERFACE}.Explode");
    assert_eq!(
        service_error(&answer),
        ("MethodNotFound", Some(method.as_str()))
    );
    peer.send(b"{\"method\":\"org.example.Nothing\"}\0");
    let answer = peer.answer().unwrap();
    assert_eq!(
        service_error(&answer),
        ("InterfaceNotFound", Some("org.example"))
    );
    assert!(peer.call("SetPolicy", &good).get("error").is_none());

    // What is no call at all ends the connection, and only that.
    for nonsense in [
        &b"GET / HTTP/1.0\r\n\r\n\0"[..],
        b"\0",
        b"[]\0",
        b"{}\0",
        b"\xff\xfe\0",
    ] {
        let mut peer = agent.peer();
        peer.send(nonsense);
        let answer = peer.answer().unwrap();
        assert_eq!(
            service_error(&answer),
            ("InvalidParameter", Some("message"))
        );
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
    assert_eq!(
        answer["error"],
        json!(format!("{INTERFACE}.InvalidArgument"))
    );
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
        assert_eq!(
            peer.answer().unwrap().get("error").is_none(),
            taken,
            "{len} bytes"
        );
    }
}

#[test]
fn a_thousand_connections_do_not_keep_the_agent_from_serving() {
    // Both ends are in this process.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let agent = Agent::start(agreeable);
    let mut peers: Vec<Peer> = (0..1000).map(|_| agent.peer()).collect();
    let mut served = 0;
    for peer in &mut peers {
        // One that was refused may find the connection closed already.
        drop(
            peer.0
                .get_mut()
                .write_all(b"{\"method\":\"org.varlink.service.GetInfo\"}\0"),
        );
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
fn a_user_has_eight_connections_and_takes_none_of_anybody_else() {
    let agent = Agent::start(agreeable);
    fs::set_permissions(agent.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let connect = |uid, count| {
        let path = agent.path();
        let connected = as_user(uid, &[], move || {
            let streams = (0..count).map(|_| UnixStream::connect(&path).unwrap());
            streams.collect::<Vec<_>>()
        });
        connected.into_iter().map(Peer::new).collect::<Vec<_>>()
    };
    let served = |peers: &mut [Peer]| {
        let is_served = |peer: &mut Peer| {
            // One that was refused may find the connection closed already.
            drop(
                peer.0
                    .get_mut()
                    .write_all(b"{\"method\":\"org.varlink.service.GetInfo\"}\0"),
            );
            peer.answer().unwrap().get("error").is_none()
        };
        peers
            .iter_mut()
            .filter_map(|peer| is_served(peer).then_some(()))
            .count()
    };
    let mut first = connect(4711, 20);
    assert_eq!(served(&mut first), 8);
    let mut others: Vec<Peer> = (5000..5010).flat_map(|uid| connect(uid, 8)).collect();
    assert_eq!(served(&mut others), 40, "16 of 64 are left to root");
    let mut root: Vec<Peer> = (0..20).map(|_| agent.peer()).collect();
    assert_eq!(served(&mut root), 16);
}

#[test]
fn a_caller_in_the_middle_of_a_call_blocks_no_one_and_is_dropped_in_time() {
    let limits = Limits {
        message: Duration::from_millis(300),
        ..Limits::default()
    };
    let agent = Agent::start_with(limits, agreeable);
    let mut slow = agent.peer();
    slow.send(b"{\"method\":\"org.varl");
    agent.assert_serves();
    assert_eq!(slow.answer(), None);
    agent.assert_serves();
}

#[test]
fn a_caller_that_says_nothing_is_dropped_in_time() {
    let limits = Limits {
        idle: Duration::from_millis(300),
        ..Limits::default()
    };
    let agent = Agent::start_with(limits, agreeable);
    assert_eq!(agent.peer().answer(), None);
    agent.assert_serves();
}

#[test]
fn a_caller_that_does_not_take_its_answer_is_dropped_in_time() {
    let limits = Limits {
        take: Duration::from_millis(300),
        ..Limits::default()
    };
    let agent = Agent::start_with(limits, |call| match call.request {
        Request::ListPolicies => {
            let many = (0..20_000).map(|i| policy(&i.to_string())).collect();
            call.reply.end(Ok(Reply::Policies(many)));
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
    assert!(
        !rest.ends_with(&[0]),
        "the answer was to be too long for the socket's buffer"
    );
}
