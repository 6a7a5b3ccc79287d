//! Calls as they should be, and the socket that they come by.

use std::fs;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use serde_json::json;
use steer::api::INTERFACE;
use steer::api::client::{self, Client, Parts};
use steer::api::error::ApiError;
use steer::api::methods::{
    ListDomains, ListPolicies, Reply, Request, Run, SetPolicy, ShowDomain, ShowPolicy, Status,
    UnsetPolicy, Watch, WatchReply,
};
use steer::api::server::{self, Server};
use steer::api::types::Otherwise;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::fake::{
    Agent, DEADLINE, agreeable, as_user, candidate, domain, policy, run_reply, status,
};

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
    assert_eq!(
        (answer.name.as_str(), answer.use_),
        ("web", vec!["lte".to_owned()])
    );

    let name = || "web".to_owned();
    client
        .call(&UnsetPolicy {
            name: name(),
            save: Some(true),
        })
        .unwrap();
    assert_eq!(
        client.call(&ShowPolicy { name: name() }).unwrap().policy,
        policy("web")
    );
    assert_eq!(
        client.call(&ShowDomain { name: name() }).unwrap().domain,
        domain("web")
    );
    assert_eq!(client.call(&Status {}).unwrap().status, status());

    let run = Run {
        via: vec!["lte".to_owned()],
        command: "curl".to_owned(),
        ..Run::default()
    };
    let answer = client.call(&run).unwrap();
    assert_eq!(
        (answer.policy.as_str(), answer.domain.as_deref()),
        ("curl", Some("lte"))
    );

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
        ApiError::NoDomainFits {
            policy: None,
            reason: reason(),
            candidates: Vec::new(),
        },
        ApiError::NoSuchPolicy {
            name: name(),
            meant: None,
        },
        ApiError::NoSuchDomain {
            name: name(),
            meant: Some(name()),
        },
        ApiError::InvalidArgument {
            field: name(),
            reason: reason(),
        },
        ApiError::NotPermitted { reason: reason() },
        ApiError::Failed { reason: reason() },
        ApiError::Busy { reason: reason() },
    ];
    let mut left = errors.clone().into_iter();
    let agent = Agent::start(move |call| {
        call.reply.end(Err(left.next().unwrap()));
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
fn a_long_answer_arrives_whole_and_fast() {
    let agent = Agent::start(|call| {
        let many = (0..20_000).map(|i| policy(&format!("{i:05}"))).collect();
        call.reply.end(Ok(Reply::Policies(many)));
    });
    let policies = agent.client().call(&ListPolicies {}).unwrap().policies;
    assert_eq!(policies.len(), 20_000);
}

#[test]
fn everybody_is_served_and_known() {
    let (tell, told) = std_mpsc::channel();
    let agent = Agent::start(move |call| {
        tell.send(call.caller.clone()).unwrap();
        agreeable(call);
    });
    fs::set_permissions(agent.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let own = i32::try_from(std::process::id()).unwrap();
    // More groups than fit at first.
    const MANY: &[u32] = &{
        let mut groups = [5000; 300];
        let mut at = 1;
        while at < groups.len() {
            groups[at] = groups[at - 1] + 1;
            at += 1;
        }
        groups
    };
    for (uid, groups) in [(0, &[][..]), (4711, &[27, 28]), (4712, &[]), (4713, MANY)] {
        let path = agent.path();
        as_user(uid, groups, move || {
            Client::connect(&path).unwrap().call(&Status {}).unwrap();
        });
        let caller = told.recv_timeout(DEADLINE).unwrap();
        assert_eq!((caller.pid, caller.uid), (own, uid));
        let mut expected = groups.to_vec();
        expected.push(uid);
        assert_eq!(caller.gids, expected);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&*caller.pidfd);
        let about = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
        assert!(about.contains(&format!("Pid:\t{own}\n")), "{about}");
    }
}

#[test]
fn parts_of_an_answer_come_as_they_are_sent() {
    let agent = Agent::start(|call| {
        let Request::Run(run) = &call.request else {
            return agreeable(call);
        };
        for reason in ["no carrier", "no address"] {
            let mut part = run_reply("run-1".to_owned(), run.via.clone());
            part.waits = Some(reason.to_owned());
            call.reply.part(Reply::Run(part)).unwrap();
        }
        agreeable(call);
    });
    let run = Run {
        via: vec!["lte".to_owned()],
        command: "curl".to_owned(),
        ..Run::default()
    };
    let mut waits = Vec::new();
    let mut client = Client::connect(&agent.path()).unwrap();
    let end = client
        .call_in_parts(&run, Some(DEADLINE), |part| waits.extend(part.waits))
        .unwrap();
    assert_eq!(waits, ["no carrier", "no address"]);
    assert_eq!(end.waits, None);
    // Who does not ask for parts gets none.
    assert_eq!(client.call(&run).unwrap(), end);
    client.call(&Status {}).unwrap();
}

#[test]
fn who_watches_waits_for_ever_once_it_was_answered() {
    let agent = Agent::start(|call| {
        call.reply
            .part(Reply::Watch(WatchReply::default()))
            .unwrap();
        agreeable(call);
    });
    let mut client = Client::connect(&agent.path()).unwrap();
    let mut parts = client.parts(&Watch {}, Some(DEADLINE)).unwrap();
    let patience = |parts: &Parts<'_, Watch>| {
        let patience = getsockopt(&parts.as_fd(), sockopt::ReceiveTimeout).unwrap();
        Duration::from_secs(patience.tv_sec().try_into().unwrap())
    };
    assert_eq!(patience(&parts), DEADLINE);
    let (_, continues) = parts.receive().unwrap();
    assert!(continues);
    parts.wait_for_ever().unwrap();
    assert_eq!(patience(&parts), Duration::ZERO, "without an end");
    let (_, continues) = parts.receive().unwrap();
    assert!(!continues);
}

#[test]
fn who_does_not_take_the_parts_is_told_no_more() {
    let (tell, told) = std_mpsc::channel();
    let agent = Agent::start(move |call| {
        if !matches!(call.request, Request::Run(_)) {
            return agreeable(call);
        }
        let mut part = run_reply("x".repeat(64 << 10), Vec::new());
        part.waits = Some(String::new());
        // Nobody else has a turn meanwhile: what fits waits, and the rest is refused.
        let slow = (0..1000).find_map(|_| call.reply.part(Reply::Run(part.clone())).err());
        tell.send(slow.is_some()).unwrap();
    });
    let mut peer = agent.peer();
    let call = json!({"method": format!("{INTERFACE}.Run"), "more": true,
                      "parameters": {"via": ["lte"], "command": "curl"}});
    peer.send(format!("{call}\0").as_bytes());
    assert!(told.recv_timeout(DEADLINE).unwrap());
    agent.assert_serves();
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
    let reply = told.recv_timeout(DEADLINE).unwrap();
    agent.assert_serves();
    assert!(!reply.is_closed());
    drop(peer);
    let start = Instant::now();
    while !reply.is_closed() {
        assert!(start.elapsed() < DEADLINE);
        agent.assert_serves();
    }
}

#[test]
fn calls_in_one_write_are_answered_in_order_and_after_a_half_close() {
    let agent = Agent::start(agreeable);
    let mut peer = agent.peer();
    let show = |name: &str| {
        format!(
            "{{\"method\":\"{INTERFACE}.ShowPolicy\",\"parameters\":{{\"name\":\"{name}\"}}}}\0"
        )
    };
    peer.send(format!("{}{}{}", show("a"), show("b"), show("c")).as_bytes());
    peer.0.get_ref().shutdown(Shutdown::Write).unwrap();
    for name in ["a", "b", "c"] {
        assert_eq!(
            peer.answer().unwrap()["parameters"]["policy"]["name"],
            json!(name)
        );
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut connection = zlink::tokio::unix::connect(agent.path()).await.unwrap();
        let info = connection.get_info().await.unwrap().unwrap();
        assert_eq!(info.product, "steer");
        assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
        assert!(info.interfaces.iter().any(|i| *i == INTERFACE));

        let name = || INTERFACE.try_into().unwrap();
        let told = connection
            .get_interface_description(name())
            .await
            .unwrap()
            .unwrap();
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src/api/net.steer.Agent.varlink"
        );
        if std::env::var_os("STEER_WRITE_DOCS").is_some() {
            fs::write(path, told.as_raw().unwrap()).unwrap();
        }
        assert_eq!(
            told.as_raw().unwrap(),
            fs::read_to_string(path).unwrap(),
            "net.steer.Agent.varlink is not what is served: run \
             `STEER_WRITE_DOCS=1 cargo test -p steer --test api`"
        );
        let interface = told.parse().unwrap();
        let methods = told.as_raw().unwrap().matches("\nmethod ").count();
        assert_eq!(interface.methods().count(), methods);
        assert_eq!(interface.errors().count(), 8);

        let own = "org.varlink.service".try_into().unwrap();
        let told = connection
            .get_interface_description(own)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(told.parse().unwrap().methods().count(), 2);
        let other = "org.example.nothing".try_into().unwrap();
        let refused = connection.get_interface_description(other).await;
        assert!(
            matches!(refused, Err(zlink::Error::VarlinkService(_))),
            "{refused:?}"
        );
    });
}

#[test]
fn two_agents_do_not_share_a_socket_and_a_dead_one_leaves_none_behind() {
    let bind = |path: &Path| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
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
fn what_an_ended_agent_left_is_removed_and_nothing_else() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("agent.sock");
    let lock = directory.path().join("agent.lock");
    assert!(server::remove_leftovers(&path).unwrap().is_empty());

    drop(UnixListener::bind(&path).unwrap());
    fs::write(&lock, "").unwrap();
    assert_eq!(
        server::remove_leftovers(&path).unwrap(),
        [path.clone(), lock]
    );
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

    fs::write(&path, "precious").unwrap();
    assert!(matches!(
        server::remove_leftovers(&path),
        Err(server::Error::NoSocket(_))
    ));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

    let agent = Agent::start(agreeable);
    assert!(matches!(
        server::remove_leftovers(&agent.path()),
        Err(server::Error::Taken(_))
    ));
    agent.assert_serves();
}

#[test]
fn an_agent_that_is_not_there_is_told_from_one_that_fails() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("agent.sock");
    assert!(matches!(
        Client::connect(&path),
        Err(client::Error::NotRunning(_))
    ));
    let listener = UnixListener::bind(&path).unwrap();
    drop(listener);
    assert!(matches!(
        Client::connect(&path),
        Err(client::Error::NotRunning(_))
    ));

    let agent = Agent::start(drop);
    match agent.client().call(&Status {}) {
        Err(client::Error::Api(ApiError::Failed { .. })) => {}
        other => panic!("{other:?}"),
    }
}
