//! Writing a policy, or all that the files say, as a file says it.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use toml::Value;

use super::{AgentConfig, Config, Discover, DomainConfig, HostModel};
use crate::criteria::{Criteria, Margin};
use crate::ids::CgroupId;
use crate::name::Name;
use crate::permit::Permit;
use crate::policy::{
    LocalNetworks, Match, Origin, Otherwise, Policy, Rebind, Session, Sessions, Share,
};
use crate::probe::{Check, Expect, Host};
use crate::rules::Rule;

/// A policy that no file can hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSavable {
    /// It matches a cgroup by id, and ids do not outlive the cgroup.
    #[error(
        "policy `{name}` matches the cgroup with id {id}, which a file cannot name; give its path"
    )]
    Id {
        /// The policy.
        name: Name,
        /// The id.
        id: CgroupId,
    },
}

/// `policy` as text of a file. Read back it is the same policy, but for its origin, which is the
/// file's.
pub fn policy_to_toml(policy: &Policy) -> Result<String, NotSavable> {
    let mut cgroups = Vec::new();
    let mut units = Vec::new();
    for wanted in &policy.matches {
        match wanted {
            Match::Cgroup(pattern) => cgroups.push(pattern.as_str()),
            Match::Unit(unit) => units.push(unit.as_str()),
            Match::CgroupId(id) => {
                return Err(NotSavable::Id {
                    name: policy.name.clone(),
                    id: *id,
                });
            }
        }
    }
    let mut text = format!("[policy.{}]\n", key(policy.name.as_str()));
    let mut line = |key: &str, value: Value| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{key} = {value}");
    };
    for (key, values) in [("match.cgroup", cgroups), ("match.unit", units)] {
        match values.as_slice() {
            [] => {}
            [one] => line(key, Value::from(*one)),
            several => line(key, Value::from(several.to_vec())),
        }
    }
    if !policy.use_.is_empty() {
        let names: Vec<&str> = policy.use_.iter().map(Name::as_str).collect();
        line("use", Value::from(names));
    }
    if policy.strict {
        line("strict", Value::from(true));
    }
    line("otherwise", Value::from(otherwise(policy.otherwise)));
    let local = match policy.local_networks {
        LocalNetworks::Pass => "pass",
        LocalNetworks::Steer => "steer",
    };
    if policy.local_networks != LocalNetworks::default_for(policy.strict) {
        line("local-networks", Value::from(local));
    }
    if policy.repair {
        line("repair", Value::from(true));
    }
    if let Some(share) = policy.share {
        line(
            "share",
            Value::from(match share {
                Share::Flow => "flow",
                Share::Destination => "destination",
            }),
        );
    }
    if policy.rebind == Rebind::Datagram {
        line("rebind", Value::from("datagram"));
    }
    let Sessions { on_better, on_loss } = policy.sessions;
    if on_better != Sessions::default().on_better {
        line("sessions.on-better", Value::from(session(on_better)));
    }
    if on_loss != Sessions::default().on_loss {
        line("sessions.on-loss", Value::from(session(on_loss)));
    }
    if let Some(linger) = policy.linger {
        line("linger", Value::from(time(linger)));
    }
    for (key, value) in criteria(&policy.criteria) {
        line(key, value);
    }
    if let Some(preferred) = policy.prefer_family {
        line("prefer-family", Value::from(preferred.to_string()));
    }
    if policy.priority != 0 && policy.origin != Origin::Default {
        line("priority", Value::from(i64::from(policy.priority)));
    }
    for says in policy.rules.iter() {
        text.push('\n');
        text.push_str(&rule(&policy.name, says));
    }
    Ok(text)
}

/// What a policy wants of its domains, key by key.
fn criteria(says: &Criteria) -> Vec<(&'static str, Value)> {
    let Criteria {
        require,
        prefer,
        margin,
    } = says;
    let text = |key, value: Option<String>| value.map(|value| (key, Value::from(value)));
    let kinds: Vec<String> = require.kind.iter().map(ToString::to_string).collect();
    let prefer: Vec<String> = prefer.iter().map(ToString::to_string).collect();
    let family = require.family.map(|family| family.to_string());
    let margin = (*margin != Margin::default()).then(|| margin.to_string());
    [
        (!kinds.is_empty()).then(|| ("require.kind", Value::from(kinds))),
        text(
            "require.min-bandwidth",
            require.min_bandwidth.map(|least| least.to_string()),
        ),
        text("require.max-latency", require.max_latency.map(time)),
        text(
            "require.max-loss",
            require.max_loss.map(|most| most.to_string()),
        ),
        require
            .max_cost
            .map(|most| ("require.max-cost", Value::from(i64::from(most)))),
        require
            .metered
            .map(|metered| ("require.metered", Value::from(metered))),
        text(
            "require.security",
            require.security.map(|least| least.to_string()),
        ),
        text(
            "require.profile",
            require.profile.as_ref().map(ToString::to_string),
        ),
        text("family", family),
        (!prefer.is_empty()).then(|| ("prefer", Value::from(prefer))),
        text("margin", margin),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn rule(policy: &Name, says: &Rule) -> String {
    let section = Section {
        text: format!("[[policy.{}.rule]]\n", key(policy.as_str())),
    };
    section
        .list("source", &says.source)
        .list("source-ports", &says.source_ports)
        .list("destination", &says.destination)
        .list("ports", &says.ports)
        .list("protocol", &says.protocol)
        .list("dscp", &says.dscp)
        .list("use", &says.use_)
        .some("otherwise", says.otherwise.map(otherwise))
        .text
}

fn otherwise(otherwise: Otherwise) -> &'static str {
    match otherwise {
        Otherwise::Block => "block",
        Otherwise::Pass => "pass",
        Otherwise::Next => "next",
    }
}

/// All that `config` says as text of one file, every key of `[agent]` too. Read back it says the same; of
/// policies in quarantine it has what is in force in place of them.
pub fn to_toml(config: &Config) -> Result<String, NotSavable> {
    let mut sections = vec![agent(&config.agent)];
    sections.extend(config.domains.iter().map(|(name, says)| domain(name, says)));
    for (name, domains) in &config.groups {
        sections.push(Section::new("group", name).list("domains", domains).text);
    }
    for policy in config.policies.values() {
        sections.push(policy_to_toml(policy)?);
    }
    sections.extend(config.permits.iter().map(|(name, says)| permit(name, says)));
    Ok(sections.join("\n"))
}

/// A section's text so far.
struct Section {
    text: String,
}

impl Section {
    fn new(kind: &str, name: &Name) -> Self {
        Self {
            text: format!("[{kind}.{}]\n", key(name.as_str())),
        }
    }

    fn value(mut self, key: &str, value: impl Into<Value>) -> Self {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{key} = {}", value.into());
        self
    }

    fn some(self, key: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.value(key, value),
            None => self,
        }
    }

    fn check(self, check: Option<&Check>) -> Self {
        let Some(check) = check else { return self };
        if !check.asks() {
            return self.value("check", "none");
        }
        let port = |(host, port): &(Host, u16)| match host {
            Host::Ip(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
            host => format!("{host}:{port}"),
        };
        let tcp: Vec<String> = check.tcp.iter().map(port).collect();
        let expect = match &check.expect {
            Expect::Status(status) => status.to_string(),
            Expect::Body(text) => text.clone(),
        };
        self.list("check.http", &check.http)
            .list("check.dns", &check.dns)
            .list("check.tcp", &tcp)
            .list("check.icmp", &check.icmp)
            .value("check.expect", expect)
            .value("check.interval", time(check.interval))
            .value("check.fall", i64::from(check.fall))
            .value("check.rise", i64::from(check.rise))
    }

    /// A list, unless it is empty: that is what its absence says.
    fn list<T: ToString>(self, key: &str, values: &[T]) -> Self {
        if values.is_empty() {
            return self;
        }
        let values: Vec<String> = values.iter().map(ToString::to_string).collect();
        self.value(key, values)
    }
}

fn agent(says: &AgentConfig) -> String {
    let section = Section {
        text: "[agent]\n".to_owned(),
    };
    let section = section
        .some("cgroup-root", says.cgroup_root.as_deref())
        .value("mark-mask", format!("{:#010x}", says.mark_mask.bits()))
        .value("table-base", i64::from(says.table_base))
        .value("rule-base", i64::from(says.rule_base))
        .value("host-model", host_model(says.host_model))
        .value("linger", time(says.linger))
        .check(says.check.as_ref());
    let order: Vec<String> = says.order.iter().map(ToString::to_string).collect();
    let section = section.list("order", &order).list("primary", &says.primary);
    let section = match &says.discover {
        Discover::All => section.value("discover", true),
        Discover::None => section.value("discover", false),
        Discover::Globs(globs) => section.list("discover", globs),
    };
    section.text
}

fn domain(name: &Name, says: &DomainConfig) -> String {
    let mac = says.matches.mac.map(|mac| {
        let pairs = mac.map(|byte| format!("{byte:02x}"));
        pairs.join(":")
    });
    Section::new("domain", name)
        .some("match.interface", says.matches.interface.as_deref())
        .some("match.mac", mac)
        .some("match.kind", says.matches.kind.map(|kind| kind.to_string()))
        .some(
            "match.ssid",
            says.matches.ssid.as_ref().map(ToString::to_string),
        )
        .some(
            "match.connection",
            says.matches.connection.as_ref().map(ToString::to_string),
        )
        .some("kind", says.kind.map(|kind| kind.to_string()))
        .list("sources", &says.sources)
        .list("gateways", &says.gateways)
        .some("cost", Some(i64::from(says.cost)).filter(|cost| *cost != 0))
        .some("metered", says.metered.then_some(true))
        .some("weight", says.weight.map(i64::from))
        .some("host-model", says.host_model.map(host_model))
        .some("bandwidth", says.bandwidth.map(|bits| bits.to_string()))
        .some("security", says.security.map(|how| how.to_string()))
        .some("profile", says.profile.as_ref().map(ToString::to_string))
        .some("attach-timeout", says.attach_timeout.map(time))
        .list("dns.servers", &says.servers)
        .check(says.check.as_ref())
        .text
}

fn permit(name: &Name, says: &Permit) -> String {
    Section::new("permit", name)
        .list("users", &says.users)
        .list("groups", &says.groups)
        .list("cgroups", &says.cgroups)
        .list("domains", &says.domains)
        .list("destinations", &says.destinations)
        .some("strict", says.strict)
        .text
}

fn session(session: Session) -> &'static str {
    match session {
        Session::Keep => "keep",
        Session::Move => "move",
        Session::Reset => "reset",
    }
}

fn host_model(model: HostModel) -> &'static str {
    match model {
        HostModel::Kernel => "kernel",
        HostModel::Weak => "weak",
        HostModel::Strong => "strong",
        HostModel::Count => "count",
    }
}

fn time(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// A key, in quotes where it needs them. Names contain neither quotes nor backslashes.
fn key(name: &str) -> String {
    let bare = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if bare {
        name.to_owned()
    } else {
        format!("\"{name}\"")
    }
}
