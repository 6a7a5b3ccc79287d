//! Reading what a policy wants of its domains: `require`, `prefer`, `margin`, `family`.

use super::MAX_COST;
use super::keys;
use super::read::{Reader, Table};
use super::sections::{SECURITIES, kind, number, time, without_places};
use crate::criteria::{Criteria, Criterion, Require};
use crate::name::{Name, Shown};
use crate::plan::Family;

pub(super) const FAMILIES: [(&str, Family); 2] = [("ipv4", Family::Ipv4), ("ipv6", Family::Ipv6)];

const CRITERIA: [Criterion; 9] = [
    Criterion::Cost,
    Criterion::Latency,
    Criterion::Loss,
    Criterion::Bandwidth,
    Criterion::Stability,
    Criterion::Security,
    Criterion::Metric,
    Criterion::LastGood,
    Criterion::FirstGood,
];

pub(super) fn read(reader: &mut Reader<'_>, policy: Table<'_>) -> Criteria {
    Criteria {
        require: Require {
            family: reader.word(policy, "family", &FAMILIES),
            ..read_require(reader, policy)
        },
        prefer: without_places(reader.strings(policy, "prefer", criterion)),
        margin: reader
            .quantity(policy, "margin", "%", str::parse)
            .unwrap_or_default(),
    }
}

fn read_require(reader: &mut Reader<'_>, policy: Table<'_>) -> Require {
    let title = format!("`require` of {}", policy.title);
    let Some(value) = policy.entries.get("require") else {
        return Require::default();
    };
    let Some(table) = reader.table(&title, value) else {
        return Require::default();
    };
    reader.known_keys(table, keys::REQUIRE);
    Require {
        kind: without_places(reader.strings(table, "kind", kind)),
        min_bandwidth: reader.quantity(table, "min-bandwidth", "M", str::parse),
        max_latency: reader.quantity(table, "max-latency", "ms", time),
        max_loss: reader.quantity(table, "max-loss", "%", str::parse),
        max_cost: number(reader, table, "max-cost", 0, MAX_COST.into()),
        metered: reader.boolean(table, "metered"),
        security: reader.word(table, "security", &SECURITIES),
        profile: reader.string(table, "profile", Name::new),
        family: None,
    }
}

fn criterion(text: &str) -> Result<Criterion, String> {
    let found = CRITERIA.iter().find(|one| one.to_string() == text);
    found.copied().ok_or_else(|| {
        let known = CRITERIA.map(|one| one.to_string());
        format!(
            "{} is nothing that domains are compared by: known are {}",
            Shown::new(text),
            known.join(", ")
        )
    })
}
