//! Reading what is in each section: `[agent]`, `[domain.x]`, `[group.x]`, `[policy.x]`.

use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use ipnet::IpNet;
use steer_common::MarkMask;
use toml::de::DeValue;

use super::parse::{Merged, PermitAt, PolicyAt, RulePlaces, place};
use super::read::{Reader, Table, Value};
use super::{
    Discover, DomainConfig, DomainMatch, HostModel, MAX_COST, MAX_WEIGHT, checks, criteria, keys,
    rules,
};
use crate::criteria::Security;
use crate::name::{Name, Shown, interface_name};
use crate::network::LinkKind;
use crate::pattern::{CgroupPattern, UnitName};
use crate::permit::{Account, Permit};
use crate::plan::rules::offset;
use crate::policy::{
    LocalNetworks, Match, Origin, Otherwise, Policy, PolicyError, Rebind, Session, Sessions, Share,
};
use crate::suggest::nearest;

const KINDS: [(&str, LinkKind); 5] = [
    ("wired", LinkKind::Wired),
    ("wlan", LinkKind::Wlan),
    ("cellular", LinkKind::Cellular),
    ("vpn", LinkKind::Vpn),
    ("other", LinkKind::Other),
];

pub(super) const OTHERWISE: [(&str, Otherwise); 3] = [
    ("block", Otherwise::Block),
    ("pass", Otherwise::Pass),
    ("next", Otherwise::Next),
];

const LOCAL_NETWORKS: [(&str, LocalNetworks); 2] = [
    ("pass", LocalNetworks::Pass),
    ("steer", LocalNetworks::Steer),
];

const HOST_MODELS: [(&str, HostModel); 4] = [
    ("kernel", HostModel::Kernel),
    ("weak", HostModel::Weak),
    ("strong", HostModel::Strong),
    ("count", HostModel::Count),
];

pub(super) const SECURITIES: [(&str, Security); 3] = [
    ("open", Security::Open),
    ("protected", Security::Protected),
    ("encrypted", Security::Encrypted),
];

const SHARES: [(&str, Share); 2] = [("flow", Share::Flow), ("destination", Share::Destination)];

const REBINDS: [(&str, Rebind); 2] = [("flow", Rebind::Flow), ("datagram", Rebind::Datagram)];

const SESSIONS: [(&str, Session); 3] = [
    ("keep", Session::Keep),
    ("move", Session::Move),
    ("reset", Session::Reset),
];

impl Merged {
    pub(super) fn read_agent(&mut self, reader: &mut Reader<'_>, table: Table<'_>) {
        reader.known_keys(table, keys::AGENT);
        for key in keys::AGENT.names() {
            if let Some(value) = table.entries.get(key) {
                self.agent_places.insert(key, place(reader, &value.span()));
            }
        }
        let root = reader.string(table, "cgroup-root", |text| {
            let relative = text.trim_start_matches('/');
            let fits = relative
                .split('/')
                .all(|level| !matches!(level, "" | "." | ".."));
            if text == "/" || fits {
                Ok(text.to_owned())
            } else {
                Err(format!(
                    "`cgroup-root` is no path of a cgroup: {}",
                    Shown::new(text)
                ))
            }
        });
        if root.is_some() {
            self.agent.cgroup_root = root;
        }
        if let Some(mask) = mark_mask(reader, table) {
            self.agent.mark_mask = mask;
        }
        let last = i64::from(u32::MAX) - 256;
        if let Some(base) = number(reader, table, "table-base", 256, last) {
            self.agent.table_base = base;
        }
        // Behind the main table's rule (32766), rules would never be asked.
        let last = 32_765 - i64::from(offset::COUNT);
        if let Some(base) = number(reader, table, "rule-base", 1, last) {
            self.agent.rule_base = base;
        }
        if let Some(model) = reader.word(table, "host-model", &HOST_MODELS) {
            self.agent.host_model = model;
        }
        if let Some(linger) = reader.quantity(table, "linger", "s", linger) {
            self.agent.linger = linger;
        }
        if let Some(check) = checks::read(reader, table) {
            self.agent.check = Some(check);
        }
        if let Some(kinds) = reader.strings(table, "order", kind) {
            self.agent.order = kinds.into_iter().map(|(kind, _)| kind).collect();
        }
        if let Some(names) = reader.strings(table, "primary", Name::new) {
            self.agent.primary = names.into_iter().map(|(name, _)| name).collect();
        }
        match table.entries.get("discover").map(|value| value.get_ref()) {
            None => {}
            Some(DeValue::Boolean(all)) => {
                self.agent.discover = if *all { Discover::All } else { Discover::None };
            }
            Some(DeValue::Array(_) | DeValue::String(_)) => {
                let globs = reader.strings(table, "discover", |text| interface_name(text, true));
                let globs = globs.unwrap_or_default().into_iter().map(|(glob, _)| glob);
                self.agent.discover = Discover::Globs(globs.collect());
            }
            Some(_) => {
                if let Some(value) = table.entries.get("discover") {
                    reader.wrong_type("`discover`", "true, false or a list of patterns", value);
                }
            }
        }
    }

    pub(super) fn read_domain(&mut self, reader: &mut Reader<'_>, name: Name, table: Table<'_>) {
        reader.known_keys(table, keys::DOMAIN);
        let mut domain = DomainConfig::default();
        if let Some(value) = table.entries.get("match") {
            let title = format!("`match` of {}", table.title);
            if let Some(found) = reader.table(&title, value) {
                domain.matches = read_match(reader, found);
            }
        }
        domain.kind = reader.word(table, "kind", &KINDS);
        domain.sources = without_places(reader.strings(table, "sources", net));
        domain.gateways = without_places(reader.strings(table, "gateways", ip));
        domain.cost = number(reader, table, "cost", 0, MAX_COST.into()).unwrap_or(0);
        domain.metered = reader.boolean(table, "metered").unwrap_or(false);
        domain.weight = number(reader, table, "weight", 0, MAX_WEIGHT.into())
            .and_then(|weight| u16::try_from(weight).ok());
        domain.host_model = reader.word(table, "host-model", &HOST_MODELS);
        domain.check = checks::read(reader, table);
        domain.bandwidth = reader.quantity(table, "bandwidth", "M", str::parse);
        domain.security = reader.word(table, "security", &SECURITIES);
        domain.profile = reader.string(table, "profile", Name::new);
        domain.attach_timeout = reader.quantity(table, "attach-timeout", "s", attach_timeout);
        domain.servers = read_servers(reader, table);
        let place = place(reader, &table.span());
        let earlier = self.domains.insert(name, (domain, place.clone()));
        self.note(
            earlier.map(|(_, earlier)| (earlier, Vec::new())),
            table.title,
            &place,
        );
    }

    pub(super) fn read_group(&mut self, reader: &mut Reader<'_>, name: Name, table: Table<'_>) {
        reader.known_keys(table, keys::GROUP);
        if !table.entries.contains_key("domains") {
            let message = format!("{} has no `domains`", table.title);
            reader.error(table.span(), message, None);
        }
        let domains = reader
            .strings(table, "domains", Name::new)
            .unwrap_or_default();
        let domains = domains
            .into_iter()
            .map(|(name, span)| (name, place(reader, &span)))
            .collect();
        let place = place(reader, &table.span());
        let earlier = self.groups.insert(name, (domains, place.clone()));
        self.note(
            earlier.map(|(_, earlier)| (earlier, Vec::new())),
            table.title,
            &place,
        );
    }

    /// Reads a policy. What is wrong with it alone is noted with it, once its match could be read: then it
    /// is known which cgroups are to be closed, if it is strict.
    pub(super) fn read_policy(&mut self, reader: &mut Reader<'_>, name: Name, table: Table<'_>) {
        let default = name.as_str() == Name::DEFAULT_POLICY;
        let before = reader.errors.len();
        let matches = match table.entries.get("match") {
            Some(value) if !default => read_policy_match(reader, table, value),
            _ => Vec::new(),
        };
        if !default && !table.entries.contains_key("match") {
            let message = format!("{} has no match", table.title);
            let help = "give it `match.cgroup` or `match.unit`";
            reader.labelled(
                &table.span(),
                message,
                "matches nothing",
                Some(help.to_owned()),
            );
        }
        let readable = reader.errors.len() == before;
        let (mut matches, spans): (Vec<_>, Vec<_>) = matches.into_iter().unzip();
        matches.shrink_to_fit();
        let Wishes {
            policy,
            uses,
            rules,
        } = read_wishes(reader, name, matches, table);
        let mistakes = if readable {
            reader.errors.split_off(before)
        } else {
            Vec::new()
        };
        let places = |spans: Vec<Range<usize>>| spans.iter().map(|s| place(reader, s)).collect();
        let rules = rules.into_iter().map(|(rule, uses)| RulePlaces {
            place: place(reader, &rule),
            uses: places(uses),
        });
        let share = table.entries.get("share");
        let at = PolicyAt {
            policy,
            uses: places(uses),
            rules: rules.collect(),
            share: share.map(|value| place(reader, &value.span())),
            matches: places(spans),
            place: place(reader, &table.span()),
            mistakes,
        };
        let here = at.place.clone();
        let earlier = self.insert_policy(at);
        let earlier = earlier.map(|at| (at.place, at.mistakes));
        self.note(earlier, table.title, &here);
    }

    pub(super) fn read_permit(&mut self, reader: &mut Reader<'_>, name: Name, table: Table<'_>) {
        reader.known_keys(table, keys::PERMIT);
        let users = reader.strings(table, "users", Account::new);
        let groups = reader.strings(table, "groups", Account::new);
        if users.is_none() && groups.is_none() {
            let message = format!("{} has neither `users` nor `groups`", table.title);
            let help = "say whom it is for; `users = \"*\"` is everybody";
            reader.error(table.span(), message, Some(help.to_owned()));
        }
        let domains = reader.strings(table, "domains", Name::new);
        let (domains, spans): (Vec<_>, Vec<_>) = domains.unwrap_or_default().into_iter().unzip();
        let permit = Permit {
            users: without_places(users),
            groups: without_places(groups),
            cgroups: without_places(reader.strings(table, "cgroups", CgroupPattern::new)),
            domains,
            destinations: without_places(reader.strings(table, "destinations", net)),
            strict: reader.boolean(table, "strict"),
        };
        let here = place(reader, &table.span());
        let at = PermitAt {
            permit,
            domains: spans.iter().map(|span| place(reader, span)).collect(),
            place: here.clone(),
        };
        let earlier = self.permits.insert(name, at);
        self.note(earlier.map(|at| (at.place, Vec::new())), table.title, &here);
    }
}

/// A policy as it was read, with the places of the names in `use`, and of its rules and theirs.
struct Wishes {
    policy: Policy,
    uses: Vec<Range<usize>>,
    rules: Vec<(Range<usize>, Vec<Range<usize>>)>,
}

/// Reads all of a policy but its match.
///
/// What cannot be read counts as what is safe: strict where that is not said clearly, and before all
/// others where its priority is not.
fn read_wishes(
    reader: &mut Reader<'_>,
    name: Name,
    matches: Vec<Match>,
    table: Table<'_>,
) -> Wishes {
    let before = reader.errors.len();
    let default = name.as_str() == Name::DEFAULT_POLICY;
    let known = if default {
        keys::DEFAULT_POLICY
    } else {
        keys::POLICY
    };
    reader.known_keys(table, known);
    let misspelt = table.entries.keys().any(|key| {
        let key: &str = key.get_ref().as_ref();
        known.names().all(|known| known != key) && nearest(key, known.names()) == Some("strict")
    });
    let uses = reader.strings(table, "use", Name::new);
    let otherwise = reader.word(table, "otherwise", &OTHERWISE);
    let strict = reader.boolean(table, "strict");
    if uses.is_none() && otherwise.is_none() && strict.is_none() && reader.errors.len() == before {
        let message = format!("{} has no `use`", table.title);
        let help = "name domains or groups, or say `otherwise = \"block\"` or `\"pass\"`";
        reader.labelled(
            &table.span(),
            message,
            "does nothing",
            Some(help.to_owned()),
        );
    }
    let unclear = misspelt || table.entries.contains_key("strict");
    let strict = strict.unwrap_or(unclear);
    let local = reader.word(table, "local-networks", &LOCAL_NETWORKS);
    // The host's default has none: there it is an unknown key.
    let unclear = !default && table.entries.contains_key("priority");
    let priority = if unclear {
        reader
            .integer(table, "priority", i32::MIN.into(), i32::MAX.into())
            .and_then(|priority| i32::try_from(priority).ok())
    } else {
        None
    };
    let (mut uses, use_spans): (Vec<_>, Vec<_>) = uses.unwrap_or_default().into_iter().unzip();
    uses.shrink_to_fit();
    let rules = rules::read(reader, table, strict);
    let policy = Policy {
        origin: if default {
            Origin::Default
        } else {
            Origin::Admin
        },
        otherwise: otherwise.unwrap_or(Otherwise::default_for(strict)),
        local_networks: local.unwrap_or(LocalNetworks::default_for(strict)),
        priority: priority.unwrap_or(if unclear { i32::MAX } else { 0 }),
        repair: reader.boolean(table, "repair").unwrap_or(false),
        share: reader.word(table, "share", &SHARES),
        rebind: reader.word(table, "rebind", &REBINDS).unwrap_or_default(),
        sessions: read_sessions(reader, table),
        linger: reader.quantity(table, "linger", "s", linger),
        criteria: criteria::read(reader, table),
        prefer_family: reader.word(table, "prefer-family", &criteria::FAMILIES),
        rules: rules.rules.into(),
        ..Policy::new(name, Origin::Admin, matches, uses, strict)
    };
    // Where nothing else is wrong with it: a match that could not be read is none.
    if let (Err(error), true) = (policy.check(), reader.errors.len() == before)
        && (default || !policy.matches.is_empty())
    {
        let key = match error {
            PolicyError::StrictOtherwise(_) => "otherwise",
            PolicyError::Rules { .. } => "rule",
            _ => "use",
        };
        let value = table.entries.get(key);
        let span = value.map_or(table.span(), |value| value.span());
        let label = match error {
            PolicyError::StrictOtherwise(_) => "contradicts `strict = true`",
            _ => "too many",
        };
        reader.labelled(&span, error, label, None);
    }
    Wishes {
        policy,
        uses: use_spans,
        rules: rules.spans,
    }
}

fn read_sessions(reader: &mut Reader<'_>, policy: Table<'_>) -> Sessions {
    let mut sessions = Sessions::default();
    let title = format!("`sessions` of {}", policy.title);
    let Some(value) = policy.entries.get("sessions") else {
        return sessions;
    };
    let Some(table) = reader.table(&title, value) else {
        return sessions;
    };
    reader.known_keys(table, keys::SESSIONS);
    if let Some(session) = reader.word(table, "on-better", &SESSIONS) {
        sessions.on_better = session;
    }
    if let Some(session) = reader.word(table, "on-loss", &SESSIONS) {
        sessions.on_loss = session;
    }
    sessions
}

/// `dns` of a domain.
fn read_servers(reader: &mut Reader<'_>, domain: Table<'_>) -> Vec<IpAddr> {
    let title = format!("`dns` of {}", domain.title);
    let Some(value) = domain.entries.get("dns") else {
        return Vec::new();
    };
    let Some(table) = reader.table(&title, value) else {
        return Vec::new();
    };
    reader.known_keys(table, keys::DNS);
    without_places(reader.strings(table, "servers", ip))
}

fn attach_timeout(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    if (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&time) {
        Ok(time)
    } else {
        Err(format!("{} is not from 100ms to 1h", Shown::new(text)))
    }
}

/// A kind by its name.
pub(super) fn kind(text: &str) -> Result<LinkKind, String> {
    let known = KINDS.iter().find(|(name, _)| *name == text);
    known.map(|(_, kind)| *kind).ok_or_else(|| {
        let names = KINDS.map(|(name, _)| name);
        format!(
            "{} is no kind: known are {}",
            Shown::new(text),
            names.join(", ")
        )
    })
}

/// A time with its unit.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("{} is not a time like 30s or 5m", Shown::new(text)))
}

/// An address.
pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| format!("{} is not an address", Shown::new(text)))
}

/// A time with its unit, at most [`Policy::MAX_LINGER`].
fn linger(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    if time > Policy::MAX_LINGER {
        return Err(format!("{} is longer than a day", Shown::new(text)));
    }
    Ok(time)
}

fn net(text: &str) -> Result<IpNet, String> {
    let ip = text.parse::<IpAddr>().map(IpNet::from);
    ip.or_else(|_| text.parse::<IpNet>())
        .map_err(|_| format!("{} is neither an address nor a prefix", Shown::new(text)))
}

pub(super) fn without_places<T>(values: Option<Vec<(T, Range<usize>)>>) -> Vec<T> {
    values
        .unwrap_or_default()
        .into_iter()
        .map(|(value, _)| value)
        .collect()
}

pub(super) fn number(
    reader: &mut Reader<'_>,
    table: Table<'_>,
    key: &str,
    low: i64,
    high: i64,
) -> Option<u32> {
    let number = reader.integer(table, key, low, high)?;
    u32::try_from(number).ok()
}

/// `mark-mask`: an integer or a string in hexadecimal.
fn mark_mask(reader: &mut Reader<'_>, table: Table<'_>) -> Option<MarkMask> {
    let value = table.entries.get("mark-mask")?;
    let bits = match value.get_ref() {
        DeValue::Integer(integer) => u32::from_str_radix(integer.as_str(), integer.radix()).ok(),
        DeValue::String(text) => match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        },
        _ => {
            reader.wrong_type(
                "`mark-mask`",
                "an integer or a string like \"0x77000000\"",
                value,
            );
            return None;
        }
    };
    let Some(bits) = bits else {
        reader.error(value.span(), "`mark-mask` is not a number of 32 bits", None);
        return None;
    };
    MarkMask::new(bits)
        .map_err(|error| reader.error(value.span(), error, None))
        .ok()
}

fn read_match(reader: &mut Reader<'_>, table: Table<'_>) -> DomainMatch {
    reader.known_keys(table, keys::DOMAIN_MATCH);
    if table.entries.is_empty() {
        reader.error(table.span(), format!("{} is empty", table.title), None);
    }
    DomainMatch {
        interface: reader.string(table, "interface", |text| interface_name(text, false)),
        mac: reader.string(table, "mac", mac),
        kind: reader.word(table, "kind", &KINDS),
        ssid: reader.string(table, "ssid", str::parse),
        connection: reader.string(table, "connection", str::parse),
    }
}

/// Six pairs of hexadecimal digits with colons.
fn mac(text: &str) -> Result<[u8; 6], String> {
    let error = || {
        format!(
            "{} is not a hardware address like 02:00:5e:10:00:01",
            Shown::new(text)
        )
    };
    let mut address = [0; 6];
    let mut pairs = text.split(':');
    for byte in &mut address {
        let pair = pairs
            .next()
            .filter(|pair| pair.len() == 2 && !pair.starts_with('+'));
        *byte = u8::from_str_radix(pair.ok_or_else(error)?, 16).map_err(|_| error())?;
    }
    if pairs.next().is_some() {
        Err(error())
    } else {
        Ok(address)
    }
}

fn read_policy_match(
    reader: &mut Reader<'_>,
    policy: Table<'_>,
    value: &Value<'_>,
) -> Vec<(Match, Range<usize>)> {
    let title = format!("`match` of {}", policy.title);
    let Some(table) = reader.table(&title, value) else {
        return Vec::new();
    };
    reader.known_keys(table, keys::POLICY_MATCH);
    if table.entries.is_empty() {
        reader.error(policy.span(), format!("{title} is empty"), None);
    }
    let cgroups = reader
        .strings(table, "cgroup", CgroupPattern::new)
        .unwrap_or_default();
    let units = reader
        .strings(table, "unit", UnitName::new)
        .unwrap_or_default();
    let cgroups = cgroups
        .into_iter()
        .map(|(pattern, span)| (Match::Cgroup(pattern), span));
    let units = units
        .into_iter()
        .map(|(unit, span)| (Match::Unit(unit), span));
    cgroups.chain(units).collect()
}
