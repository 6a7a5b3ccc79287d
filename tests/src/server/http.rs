//! HTTP as the servers answer it: their own answer, a check's, or a portal's.

use std::net::IpAddr;

use crate::checks::{Answers, Dns, HOST4, HOST6, Http, LOGIN, PORTAL4, PORTAL6};

/// What a request gets.
pub(super) enum Reply {
    /// It is not all there yet.
    NotYet,
    /// Nothing, and the connection stays open.
    Nothing,
    /// These bytes, which end the connection.
    Bytes(Vec<u8>),
}

/// Whether `bytes` begin a request.
pub(super) fn is_request(bytes: &[u8]) -> bool {
    ["GET ", "HEAD ", "POST "]
        .iter()
        .any(|method| bytes.starts_with(method.as_bytes()))
}

/// Answers what has come of a request to `asked`. `own` is the answer of a server that nobody keeps from it.
pub(super) fn answer(request: &[u8], asked: IpAddr, answers: &Answers, own: &[u8]) -> Reply {
    if !is_whole(request) {
        return Reply::NotYet;
    }
    if [PORTAL4, PORTAL6].contains(&asked) {
        if request.starts_with(b"POST ") {
            answers.change(|now| *now = (Http::Right, Dns::Right));
            return reply("200 OK", "Content-Type: text/html\r\n", b"<p>Welcome</p>\n");
        }
        return page();
    }
    match answers.now().0 {
        Http::Right if [HOST4, HOST6].contains(&asked) => reply("204 No Content", "", b""),
        Http::Right => reply("200 OK", "Content-Type: application/json\r\n", own),
        Http::Login => reply("302 Found", &format!("Location: {LOGIN}\r\n"), b""),
        Http::Page => page(),
        Http::Silent => Reply::Nothing,
        Http::Garbage => Reply::Bytes(b"\x15\x03\x01\x00\x02\x02\x16 no protocol\n".to_vec()),
    }
}

/// Whether the head is there, and as much of a body as it says.
fn is_whole(request: &[u8]) -> bool {
    let Some(end) = request.windows(4).position(|w| w == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    request.len() - end - 4 >= length.unwrap_or(0)
}

fn page() -> Reply {
    let page = format!("<form method=post action=\"{LOGIN}\"><button>Log in</button></form>\n");
    reply("200 OK", "Content-Type: text/html\r\n", page.as_bytes())
}

fn reply(status: &str, more: &str, body: &[u8]) -> Reply {
    let head = format!(
        "HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    Reply::Bytes([head.as_bytes(), body].concat())
}
