//! `steer domain`: the ways out of the host.

use std::path::Path;

use steer_core::criteria::{Bandwidth, Loss};

use super::output::{Cell, Look, Page, print_json, traffic};
use super::{call, list as joined};
use crate::api::methods::{ListDomains, ShowDomain};
use crate::api::types::{DomainView, HostModelView, MeasuredView};

pub(super) fn list(socket: &Path, json: bool) -> anyhow::Result<()> {
    let domains = call(socket, &ListDomains {})?.domains;
    if json {
        return print_json(&domains);
    }
    let mut page = Page::new();
    if domains.is_empty() {
        page.line(NONE, Look::Plain);
    } else {
        table(&mut page, &domains);
    }
    page.print()
}

pub(super) fn show(socket: &Path, name: String, json: bool) -> anyhow::Result<()> {
    let domain = call(socket, &ShowDomain { name })?.domain;
    if json {
        return print_json(&domain);
    }
    let mut page = Page::new();
    let state = format!("{}: {}", domain.state, domain.reason);
    let number = |number: Option<u32>| number.map(|n| n.to_string()).unwrap_or_default();
    let mark = domain.mark.as_deref().unwrap_or_default();
    let sent = domain
        .traffic
        .as_ref()
        .map(traffic::words)
        .unwrap_or_default();
    page.facts(vec![
        ("domain", domain.name.as_str().into()),
        ("alias", domain.alias.as_deref().unwrap_or_default().into()),
        (
            "origin",
            format!("{:?}", domain.origin).to_lowercase().into(),
        ),
        ("interface", interface(&domain).into()),
        ("kind", domain.kind.as_str().into()),
        ("cost", domain.cost.to_string().into()),
        ("metered", if domain.metered { "yes" } else { "no" }.into()),
        ("security", domain.security.as_str().into()),
        (
            "profile",
            domain.profile.as_deref().unwrap_or_default().into(),
        ),
        ("state", Cell::new(&state, look(&domain))),
        ("since", domain.since.as_deref().unwrap_or_default().into()),
        (
            "log in at",
            domain.portal.as_deref().unwrap_or_default().into(),
        ),
        ("checked by", joined(&domain.check).into()),
        ("bandwidth", bandwidth(&domain).into()),
        ("latency", latency(&domain.measured).into()),
        ("loss", loss(&domain.measured).into()),
        ("stability", stability(&domain.measured).into()),
        ("link", link(&domain.measured).into()),
        ("WLAN", domain.ssid.as_deref().unwrap_or_default().into()),
        (
            "connection",
            domain.connection.as_deref().unwrap_or_default().into(),
        ),
        (
            "network",
            domain.network.as_deref().unwrap_or_default().into(),
        ),
        ("was well", history(&domain).into()),
        ("name servers", joined(&domain.servers).into()),
        ("addresses", joined(&domain.addresses).into()),
        ("gateways", joined(&domain.gateways).into()),
        ("index", number(domain.index).into()),
        ("mark", mark.into()),
        ("table", number(domain.table).into()),
        ("sent", sent.into()),
        ("host model", host_model(&domain).into()),
    ]);
    page.print()
}

fn bandwidth(domain: &DomainView) -> String {
    let nominal = domain.bandwidth.map(Bandwidth);
    let nominal = nominal.map(|bits| format!("{bits} bit/s, as configured"));
    let carried = domain.measured.bandwidth;
    let carried = carried.map(|bits| format!("{} at least, measured", rate(bits)));
    let words: Vec<String> = nominal.into_iter().chain(carried).collect();
    words.join("; ")
}

/// How its link is, as far as its driver or modem says.
fn link(measured: &MeasuredView) -> String {
    let speed = measured.link_rate.map(rate);
    let strong = measured.signal_dbm.map(|dbm| format!("signal {dbm} dBm"));
    let well = measured
        .signal_percent
        .map(|percent| format!("signal {percent} %"));
    let words: Vec<String> = speed.into_iter().chain(strong).chain(well).collect();
    words.join(", ")
}

/// Bits a second, with two or three digits.
fn rate(bits: u64) -> String {
    match bits {
        0..1_000 => format!("{bits} bit/s"),
        1_000..1_000_000 => format!("{} kbit/s", bits / 1_000),
        _ => format!("{} Mbit/s", bits / 1_000_000),
    }
}

fn latency(measured: &MeasuredView) -> String {
    let ms = |micros: u64| format!("{}.{} ms", micros / 1_000, micros / 100 % 10);
    match (measured.latency_us, measured.jitter_us) {
        (Some(latency), Some(jitter)) => {
            format!("{}, varying by {}, measured", ms(latency), ms(jitter))
        }
        (Some(latency), None) => format!("{}, measured", ms(latency)),
        (None, _) => "not measured".to_owned(),
    }
}

fn loss(measured: &MeasuredView) -> String {
    let permille = measured
        .loss_permille
        .and_then(|loss| u16::try_from(loss).ok());
    permille.map_or_else(
        || "not measured".to_owned(),
        |permille| format!("{}, measured", Loss(permille)),
    )
}

fn stability(measured: &MeasuredView) -> String {
    match measured.losses {
        0 => "not lost in the last ten minutes".to_owned(),
        1 => "lost once in the last ten minutes".to_owned(),
        losses => format!("lost {losses} times in the last ten minutes"),
    }
}

/// When the domain's network was well.
fn history(domain: &DomainView) -> String {
    let Some(history) = &domain.history else {
        return String::new();
    };
    let known = match (&history.first_good, &history.last_good) {
        (Some(first), Some(last)) => format!("first {first}, last {last}"),
        _ => "never".to_owned(),
    };
    match history.failures {
        0 => known,
        failures => format!("{known}; failed {failures} times since"),
    }
}

fn host_model(domain: &DomainView) -> String {
    let Some(host) = &domain.host_model else {
        return String::new();
    };
    let did = match host.model.as_str() {
        "strong" => "dropped",
        "count" => "would drop",
        model => return model.to_owned(),
    };
    let HostModelView {
        model,
        received,
        asked,
        sent,
    } = host;
    format!("{model}: {did} {received} received, {asked} ARP requests, {sent} sent")
}

/// What is said when there are none.
pub(super) const NONE: &str = "no domains: no interface has a default route or a global address";

/// All domains, one a line.
pub(super) fn table(page: &mut Page, domains: &[DomainView]) {
    let rows = domains.iter().map(|domain| {
        let about = if is_up(domain) {
            joined(&domain.addresses)
        } else {
            domain.reason.clone()
        };
        vec![
            domain.name.as_str().into(),
            Cell::name(domain.interface.as_deref().unwrap_or("-")),
            domain.kind.as_str().into(),
            Cell::new(&domain.state, look(domain)),
            rtt(&domain.measured).into(),
            about.into(),
        ]
    });
    page.table(
        &["DOMAIN", "INTERFACE", "KIND", "STATE", "RTT", "ADDRESSES"],
        rows.collect(),
    );
}

/// Round-trip time in milliseconds, as far as it was measured.
fn rtt(measured: &MeasuredView) -> String {
    measured.latency_us.map_or_else(
        || "-".to_owned(),
        |micros| format!("{}.{}", micros / 1_000, micros / 100 % 10),
    )
}

fn is_up(domain: &DomainView) -> bool {
    matches!(domain.state.as_str(), "up" | "validated")
}

fn look(domain: &DomainView) -> Look {
    if is_up(domain) { Look::Good } else { Look::Bad }
}

fn interface(domain: &DomainView) -> String {
    match (&domain.interface, domain.ifindex) {
        (Some(name), Some(index)) => format!("{name} ({index})"),
        (Some(name), None) => name.clone(),
        (None, _) => "none".to_owned(),
    }
}
