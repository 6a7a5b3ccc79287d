//! Reading how domains are checked: `check` of `[agent]` and of `[domain.x]`.

use std::net::IpAddr;
use std::time::Duration;

use toml::de::DeValue;

use super::keys;
use super::read::{Reader, Table};
use super::sections::{number, time, without_places};
use crate::name::Shown;
use crate::probe::{Check, DnsTarget, Expect, Host, HttpTarget, host_name};

/// Shortest and longest `interval`.
const INTERVALS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(3600)];

/// Most targets of a kind.
const MOST_TARGETS: usize = 8;

/// Longest path and query.
const MAX_PATH: usize = 1_024;

/// `check = "none"`, or a table.
pub(super) fn read(reader: &mut Reader<'_>, section: Table<'_>) -> Option<Check> {
    let value = section.entries.get("check")?;
    let title = format!("`check` of {}", section.title);
    if let DeValue::String(text) = value.get_ref() {
        if text == "none" {
            return Some(Check::default());
        }
        let message = format!(
            "{title} must be a table or \"none\", not {}",
            Shown::new(text)
        );
        reader.labelled(&value.span(), message, "no such word", None);
        return None;
    }
    let table = reader.table(&title, value)?;
    let before = reader.errors.len();
    reader.known_keys(table, keys::CHECK);
    let default = Check::default();
    let check = Check {
        http: targets(reader, table, "http", http),
        dns: targets(reader, table, "dns", dns),
        tcp: targets(reader, table, "tcp", tcp),
        icmp: targets(reader, table, "icmp", host),
        expect: reader
            .string(table, "expect", expect)
            .unwrap_or(default.expect),
        interval: reader
            .quantity(table, "interval", "s", interval)
            .unwrap_or(default.interval),
        fall: number(reader, table, "fall", 1, 100).unwrap_or(default.fall),
        rise: number(reader, table, "rise", 1, 100).unwrap_or(default.rise),
        implied: false,
    };
    if !check.asks() && reader.errors.len() == before {
        let help = "give it `http`, `dns`, `tcp` or `icmp` (for the gateway, as without it: `icmp = \"gateway\"`), \
                    or say `check = \"none\"`";
        reader.labelled(
            &value.span(),
            format!("{title} asks nothing"),
            "no target",
            Some(help.to_owned()),
        );
    }
    Some(check)
}

fn targets<T>(
    reader: &mut Reader<'_>,
    table: Table<'_>,
    key: &str,
    make: fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let targets = reader.strings(table, key, make);
    if let Some((_, span)) = targets.as_ref().and_then(|all| all.get(MOST_TARGETS)) {
        let message = format!("`{key}` has more than {MOST_TARGETS} targets");
        reader.labelled(span, message, "one too many", None);
    }
    without_places(targets)
}

/// An address, a host name, or `gateway`.
fn host(text: &str) -> Result<Host, String> {
    if text == "gateway" {
        return Ok(Host::Gateway);
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    if let Ok(ip) = bare.unwrap_or(text).parse::<IpAddr>() {
        return Ok(Host::Ip(ip));
    }
    host_name(text).map(Host::Name)
}

/// A host and a port behind a colon.
fn with_port(text: &str) -> Option<(Host, u16)> {
    let (at, port) = text.rsplit_once(':')?;
    // An IPv6 address stands in brackets where a port follows.
    let bare = at.contains(':') && !at.starts_with('[');
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let host = host(at).ok().filter(|_| !bare)?;
    Some((host, port))
}

fn tcp(text: &str) -> Result<(Host, u16), String> {
    with_port(text).ok_or_else(|| {
        format!(
            "{} is not a host and a port like 192.0.2.1:443",
            Shown::new(text)
        )
    })
}

fn dns(text: &str) -> Result<DnsTarget, String> {
    let (asked, address) = match text.split_once('=') {
        Some((asked, address)) => (asked, Some(super::sections::ip(address)?)),
        None => (text, None),
    };
    Ok(DnsTarget {
        name: host_name(asked)?,
        address,
    })
}

/// Plain HTTP alone: what a portal answers in place of another is seen there, and nowhere else.
fn http(text: &str) -> Result<HttpTarget, String> {
    let error = || {
        format!(
            "{} is not an address like http://host/path",
            Shown::new(text)
        )
    };
    if text.starts_with("https:") {
        return Err(format!(
            "{} is not asked: a portal can answer plain `http://` alone",
            Shown::new(text)
        ));
    }
    let rest = text.strip_prefix("http://").ok_or_else(error)?;
    let (at, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    let plain = path
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !plain || path.len() > MAX_PATH {
        return Err(error());
    }
    let (host, port) = match host(at) {
        Ok(host) => (host, 80),
        Err(_) => with_port(at).ok_or_else(error)?,
    };
    Ok(HttpTarget {
        host,
        port,
        path: path.to_owned(),
    })
}

/// A status, or the begin of a body.
fn expect(text: &str) -> Result<Expect, String> {
    let status = text.parse::<u16>().ok().filter(|_| text.len() == 3);
    match status {
        Some(status @ 200..=299) => Ok(Expect::Status(status)),
        Some(_) => Err(format!("{} is no status of success", Shown::new(text))),
        None if (1..=256).contains(&text.len()) => Ok(Expect::Body(text.to_owned())),
        None => Err("`expect` has from 1 to 256 bytes".to_owned()),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    let [shortest, longest] = INTERVALS;
    if (shortest..=longest).contains(&time) {
        Ok(time)
    } else {
        Err(format!("{} is not from 100ms to 1h", Shown::new(text)))
    }
}
