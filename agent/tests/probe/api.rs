//! The API of RFC 8908.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use steer::probe::run;
use steer_core::probe::{Outcome, Probe};
use steer_tests::Lab;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::bed::{
    http, http_target, in_lab, nobody, only_by_uplink, probe, say, serve, short, targets,
};
use crate::dns::{NAME, knowing};

/// Where the host keeps the certificates that it trusts.
const TRUST: &str = "/etc/ssl";
const CAPTIVE: &str = r#"{"captive":true,"user-portal-url":"https://portal.example/in"}"#;

/// An authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(parameters, key).expect("an authority"))
    }

    /// Makes the host of the laboratory trust it and nobody else. The mount is the laboratory's own.
    fn is_trusted(&self) {
        let none = None::<&str>;
        mount(none, TRUST, Some("tmpfs"), MsFlags::empty(), none)
            .expect("mount on /etc/ssl, which has to be there");
        let certificates = Path::new(TRUST).join("certs");
        fs::create_dir(&certificates).expect("a directory");
        fs::write(certificates.join("ca-certificates.crt"), self.0.pem()).expect("a file");
    }

    /// What a server needs that calls itself `name`.
    fn acceptor(&self, name: &str) -> TlsAcceptor {
        let key = KeyPair::generate().expect("a key");
        let parameters = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = parameters.signed_by(&key, &self.0).expect("a certificate");
        let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let configuration = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .expect("a certificate with its key");
        TlsAcceptor::from(Arc::new(configuration))
    }
}

/// An HTTPS server at `ip` with a certificate for `name` that answers with `answer`.
fn https(
    lab: &Lab,
    authority: &Authority,
    ip: IpAddr,
    name: &str,
    answer: impl Into<Vec<u8>>,
) -> SocketAddr {
    let acceptor = authority.acceptor(name);
    let answer = answer.into();
    serve(lab, ip, move |stream| {
        let (acceptor, answer) = (acceptor.clone(), answer.clone());
        async move {
            // A client that does not trust it goes away.
            let Ok(mut stream) = acceptor.accept(stream).await else {
                return;
            };
            let mut read = Vec::new();
            while !read.ends_with(b"\r\n\r\n") {
                read.push(stream.read_u8().await.expect("a request"));
            }
            let read = String::from_utf8(read).expect("text").to_ascii_lowercase();
            assert!(read.starts_with("get /captive?a=b http/1.1\r\n"), "{read}");
            assert!(
                read.contains("\r\naccept: application/captive+json\r\n"),
                "{read}"
            );
            if say(&mut stream, &answer).await {
                stream.shutdown().await.expect("closed");
            }
        }
    })
}

fn saying(json: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/captive+json\r\n\r\n{json}")
}

/// `probe` in a network that names the API at `server`.
fn named(probe: Probe, server: impl std::fmt::Display) -> Probe {
    Probe {
        portal_api: Some(format!("https://{server}/captive?a=b")),
        ..probe
    }
}

#[test]
fn a_captive_network_is_a_portal_with_its_page() {
    in_lab(async |lab| {
        let authority = Authority::new();
        authority.is_trusted();
        for target in targets(lab) {
            let name = target.to_string();
            let server = https(lab, &authority, target, &name, saying(CAPTIVE));
            let report = run(&named(probe(lab), server)).await;
            let page = Some("https://portal.example/in".to_owned());
            assert_eq!(report.outcome, Outcome::Portal(page));
            // It is no question about the path.
            assert_eq!((report.asked, report.lost, report.rtt), (0, 0, None));
            only_by_uplink(lab, target);
        }
    });
}

#[test]
fn an_api_with_a_name_is_looked_up_over_the_domain_and_has_to_prove_it() {
    in_lab(async |lab| {
        let authority = Authority::new();
        authority.is_trusted();
        let (dns, target) = (lab.target4(), lab.target4());
        let server = https(lab, &authority, target, NAME, saying(CAPTIVE));
        let mut probe = named(probe(lab), format_args!("{NAME}:{}", server.port()));
        probe.servers = vec![knowing(lab, dns, &[target])];
        let page = Some("https://portal.example/in".to_owned());
        assert_eq!(run(&probe).await.outcome, Outcome::Portal(page));
        only_by_uplink(lab, dns);
        only_by_uplink(lab, target);
    });
}

#[test]
fn what_the_api_does_not_say_changes_nothing() {
    in_lab(async |lab| {
        let authority = Authority::new();
        authority.is_trusted();
        let target = lab.target4();
        let name = target.to_string();
        let plain = CAPTIVE.len();
        for answer in [
            saying(r#"{"captive":false}"#),
            saying("{"),
            saying(&" ".repeat(70_000)),
            format!("HTTP/1.1 200 OK\r\nContent-Length: {plain}\r\n\r\n{CAPTIVE}"),
            format!("HTTP/1.1 404 Not Found\r\nContent-Length: {plain}\r\n\r\n{CAPTIVE}"),
            "HTTP/1.1 302 Found\r\nLocation: https://portal.example/\r\n\r\n".to_owned(),
            "nonsense".to_owned(),
        ] {
            let server = https(lab, &authority, target, &name, answer.clone());
            let report = run(&named(probe(lab), server)).await;
            assert_eq!(report.outcome, Outcome::Passed, "{answer:.100}");
        }
        let silent = SocketAddr::new(nobody(), 443);
        assert_eq!(
            run(&named(short(lab), silent)).await.outcome,
            Outcome::Passed
        );
    });
}

#[test]
fn an_api_that_does_not_prove_who_it_is_is_not_believed() {
    in_lab(async |lab| {
        let authority = Authority::new();
        authority.is_trusted();
        let target = lab.target4();
        let other_name = https(lab, &authority, target, "api.example", saying(CAPTIVE));
        assert_eq!(
            run(&named(probe(lab), other_name)).await.outcome,
            Outcome::Passed
        );
        let other = Authority::new();
        let untrusted = https(lab, &other, target, &target.to_string(), saying(CAPTIVE));
        assert_eq!(
            run(&named(probe(lab), untrusted)).await.outcome,
            Outcome::Passed
        );
    });
}

#[test]
fn an_api_that_is_not_at_an_https_address_is_not_asked() {
    in_lab(async |lab| {
        let target = lab.target4();
        let server = http(lab, target, saying(CAPTIVE));
        for api in [
            format!("http://{server}/"),
            "urn:x".to_owned(),
            String::new(),
        ] {
            let probe = Probe {
                portal_api: Some(api),
                ..probe(lab)
            };
            assert_eq!(run(&probe).await.outcome, Outcome::Passed);
        }
        lab.assert_silent(target).expect("nothing sent");
    });
}

#[test]
fn a_broken_api_hides_nothing_that_the_check_says() {
    in_lab(async |lab| {
        let redirects = "HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n";
        let mut probe = named(short(lab), SocketAddr::new(nobody(), 443));
        probe.check.http = vec![http_target(http(lab, lab.target4(), redirects))];
        let page = Some("http://portal.example/".to_owned());
        assert_eq!(run(&probe).await.outcome, Outcome::Portal(page));
    });
}
