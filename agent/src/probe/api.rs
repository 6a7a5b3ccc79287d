//! The API of RFC 8908, by which a network says itself whether it holds its guests captive.

use std::net::IpAddr;
use std::sync::{Arc, Weak};

use steer_core::probe::{Host, Outcome, Probe};
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use url::Url;

use super::answer::{captive, is_captive_json, secure};
use super::http::{bounded, get};
use super::question::{Asker, Miss};

/// Asks the API that the network named. It only ever tells a portal: a network whose API is out of
/// order may work all the same, so nothing fails because of it, and nothing is counted.
pub(super) async fn ask(probe: &Probe) -> Outcome {
    let Some(told) = &probe.portal_api else {
        return Outcome::Passed;
    };
    let Some(address) = secure(told) else {
        tracing::debug!(domain = %probe.domain, "the network names an API that is not at an https address");
        return Outcome::Passed;
    };
    match over(&Asker::new(probe), &address).await {
        Outcome::Failed(reason) => {
            tracing::debug!(domain = %probe.domain, reason, "the network's API says nothing");
            Outcome::Passed
        }
        said => said,
    }
}

async fn over(asker: &Asker<'_>, address: &Url) -> Outcome {
    let host = match address.host() {
        Some(url::Host::Ipv4(ip)) => Host::Ip(ip.into()),
        Some(url::Host::Ipv6(ip)) => Host::Ip(ip.into()),
        Some(url::Host::Domain(name)) => Host::Name(name.to_owned()),
        None => return Outcome::Passed,
    };
    asker
        .reach(&host, async |ip| {
            let answer = asker.in_time(exchange(asker, address, ip)).await;
            answer.unwrap_or_else(|miss| Outcome::Failed(asker.sentence(address.as_str(), miss)))
        })
        .await
}

async fn exchange(asker: &Asker<'_>, address: &Url, ip: IpAddr) -> Result<Outcome, Miss> {
    let host = address.host_str().unwrap_or_default();
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let name = ServerName::try_from(host).map_err(|error| Miss::Unasked(error.to_string()))?;
    let stream = asker.connect(ip, address.port().unwrap_or(443)).await?;
    let connector = TlsConnector::from(configuration().await?);
    let stream = connector.connect(name, bounded(stream)).await?;
    let accept = Some("application/captive+json");
    let (_, body) = get(stream, address, accept, is_captive_json).await?;
    match body {
        Some(body) => Ok(captive(&body)),
        None => Err(Miss::Bad("no answer as RFC 8908 has it".to_owned())),
    }
}

thread_local! {
    /// What the probes of a thread that are under way share. It is large, and free again after the last of
    /// them.
    static SHARED: Arc<Mutex<Weak<ClientConfig>>> = Arc::default();
}

/// Trust in whom the host trusts.
async fn configuration() -> Result<Arc<ClientConfig>, Miss> {
    let shared = SHARED.with(Arc::clone);
    // Who waits for another's reading has it sooner than by reading itself.
    let mut shared = shared.lock().await;
    if let Some(configuration) = shared.upgrade() {
        return Ok(configuration);
    }
    let configuration = Arc::new(read_configuration().await?);
    *shared = Arc::downgrade(&configuration);
    Ok(configuration)
}

async fn read_configuration() -> Result<ClientConfig, Miss> {
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs)
        .await
        .map_err(|error| Miss::Unasked(error.to_string()))?;
    for error in &found.errors {
        tracing::debug!(%error, "a certificate of the host's cannot be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Miss::Unasked(error.to_string()))?;
    let mut configuration = builder.with_root_certificates(roots).with_no_client_auth();
    // A session that is gone on with over another domain would tell its network who this is.
    configuration.resumption = Resumption::disabled();
    Ok(configuration)
}
