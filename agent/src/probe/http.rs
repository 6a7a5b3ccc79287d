//! HTTP: whether the target itself answers, or a portal in its place.

use std::io;
use std::net::IpAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{
    ACCEPT, CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT,
};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use steer_core::probe::{Host, HttpTarget, Outcome};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use url::Url;

use super::answer::{Body, Head, judge_body, judge_head};
use super::question::{Asker, Miss, place};

/// Bytes of an answer's body at most.
const BODY: usize = 64 << 10;
/// Bytes of an answer's head at most.
const HEAD: usize = 16 << 10;
/// Bytes that are read from one connection at most: also what is no answer's, like interim answers
/// without end.
const CONNECTION_BYTES: u64 = 256 << 10;
/// Fields of an answer's head at most.
const FIELDS: usize = 100;

/// Asks for `target`, and judges the answer.
pub(super) async fn ask(asker: &Asker<'_>, target: &HttpTarget) -> Outcome {
    asker
        .reach(&target.host, async |ip| {
            let answer = asker.in_time(exchange(asker, target, ip)).await;
            answer.unwrap_or_else(|miss| {
                let what = match &target.host {
                    Host::Ip(_) => format!("HTTP {target}"),
                    _ => format!("HTTP {target} at {}", place(&Host::Ip(ip), ip, None)),
                };
                Outcome::Failed(asker.sentence(&what, miss))
            })
        })
        .await
}

async fn exchange(asker: &Asker<'_>, target: &HttpTarget, ip: IpAddr) -> Result<Outcome, Miss> {
    let host = match &target.host {
        Host::Name(name) => Host::Name(name.clone()),
        Host::Gateway | Host::Ip(_) => Host::Ip(ip),
    };
    let asked = HttpTarget {
        host,
        ..target.clone()
    };
    let asked = Url::parse(&asked.to_string()).map_err(|error| Miss::Unasked(error.to_string()))?;
    let stream = bounded(asker.connect(ip, target.port).await?);
    let expect = &asker.probe.check.expect;
    let judged = |head: &Head| judge_head(expect, &asked, head);
    let (head, body) = get(stream, &asked, None, |head| judged(head).is_none()).await?;
    Ok(match body {
        Some(body) => judge_body(expect, &head, &body),
        None => judged(&head).unwrap_or(Outcome::Portal(None)),
    })
}

/// `stream`, of which no more is read than one answer may take.
pub(super) fn bounded(stream: TcpStream) -> impl AsyncRead + AsyncWrite + Unpin + Send {
    let (read, write) = stream.into_split();
    tokio::io::join(read.take(CONNECTION_BYTES), write)
}

/// Asks for `address` over `stream`: the head of the answer, and its body where `wanted` says so.
pub(super) async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    address: &Url,
    accept: Option<&'static str>,
    wanted: impl FnOnce(&Head) -> bool,
) -> Result<(Head, Option<Body>), Miss> {
    let request = request(address, accept)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD)
        .max_headers(FIELDS)
        .handshake(TokioIo::new(stream))
        .await?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let head = head(&answer);
        let body = match wanted(&head) {
            true => Some(body(answer.into_body()).await?),
            false => None,
        };
        Ok((head, body))
    };
    // The exchange goes on while the connection is driven, and hears of its end.
    let driven = async {
        if let Err(error) = connection.await {
            tracing::trace!(%error, "the connection of a probe ended");
        }
        std::future::pending().await
    };
    tokio::select! {
        answer = exchange => answer,
        never = driven => never,
    }
}

fn request(address: &Url, accept: Option<&'static str>) -> Result<Request<Empty<Bytes>>, Miss> {
    let host = match (address.host_str(), address.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    };
    let path = &address[url::Position::BeforePath..url::Position::AfterQuery];
    let mut request = Request::get(path)
        .header(HOST, host)
        .header(CONNECTION, "close")
        .header(USER_AGENT, concat!("steer/", env!("CARGO_PKG_VERSION")));
    if let Some(accept) = accept {
        request = request.header(ACCEPT, accept);
    }
    let request = request.body(Empty::new());
    request.map_err(|error| Miss::Unasked(error.to_string()))
}

fn head(answer: &Response<Incoming>) -> Head {
    let field = |name: HeaderName| answer.headers().get(name).map(HeaderValue::as_bytes);
    Head {
        status: answer.status().as_u16(),
        location: field(LOCATION).map(<[u8]>::to_vec),
        media_type: field(CONTENT_TYPE)
            .and_then(|kind| std::str::from_utf8(kind).ok())
            .map(str::to_owned),
    }
}

async fn body(incoming: Incoming) -> Result<Body, Miss> {
    match Limited::new(incoming, BODY).collect().await {
        Ok(body) => Ok(Body::Whole(body.to_bytes().to_vec())),
        Err(error) if error.is::<LengthLimitError>() => Ok(Body::TooLong),
        Err(error) => Err(broken(&*error)),
    }
}

fn broken(error: &dyn std::error::Error) -> Miss {
    let cause = error.source();
    // What the kernel said is plainer than who passes it on.
    match cause.and_then(|cause| cause.downcast_ref::<io::Error>()) {
        Some(cause) => Miss::Bad(format!("broken answer: {}", cause.kind())),
        None => Miss::Bad(format!("broken answer: {error}")),
    }
}

impl From<hyper::Error> for Miss {
    fn from(error: hyper::Error) -> Self {
        broken(&error)
    }
}
