//! `steer domain`: the ways out of the host.

use std::path::Path;

use super::output::{Cell, Look, Page, print_json, traffic};
use super::{call, list as joined};
use crate::api::methods::{ListDomains, ShowDomain};
use crate::api::types::{DomainView, HostModelView};

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
        ("state", Cell::new(&state, look(&domain))),
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
            about.into(),
        ]
    });
    page.table(
        &["DOMAIN", "INTERFACE", "KIND", "STATE", "ADDRESSES"],
        rows.collect(),
    );
}

fn is_up(domain: &DomainView) -> bool {
    domain.state == "up"
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
