//! Reading the rules of a policy: `[[policy.x.rule]]`.

use std::ops::Range;

use toml::de::DeValue;

use super::keys;
use super::read::{Reader, Table};
use super::sections::{OTHERWISE, without_places};
use crate::name::Name;
use crate::policy::Otherwise;
use crate::rules::{Dscp, Ports, Protocol, Rule, RuleError, Rules, prefix};

/// Rules as they were read, with the place of each and of the names in its `use`.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) rules: Vec<Rule>,
    pub(super) spans: Vec<(Range<usize>, Vec<Range<usize>>)>,
}

/// Reads the rules of a policy that is `strict` or not.
pub(super) fn read(reader: &mut Reader<'_>, policy: Table<'_>, strict: bool) -> Read {
    let mut read = Read::default();
    let Some(value) = policy.entries.get("rule") else {
        return read;
    };
    let DeValue::Array(values) = value.get_ref() else {
        let what = format!("`rule` of {}", policy.title);
        reader.wrong_type(&what, "a list of tables, each [[policy.x.rule]]", value);
        return read;
    };
    if let Some(one_more) = values.get(Rules::MAX) {
        let message = format!(
            "{} has {} rules, more than the limit of {}",
            policy.title,
            values.len(),
            Rules::MAX
        );
        reader.labelled(&one_more.span(), message, "one too many", None);
        return read;
    }
    let mut items = 0;
    let mut enough = true;
    for (number, value) in (1..).zip(values.iter()) {
        let title = format!("rule {number} of {}", policy.title);
        let Some(table) = reader.table(&title, value) else {
            continue;
        };
        let before = reader.errors.len();
        let (rule, uses) = read_rule(reader, table);
        if let (Err(error), true) = (rule.check(strict), reader.errors.len() == before) {
            let span = place_of(&error, table);
            let label = label_of(&error);
            reader.labelled(&span, format!("{title} {error}"), label, None);
        }
        items += rule.items();
        if items > Rules::MAX_ITEMS && enough {
            enough = false;
            let message = format!(
                "the lists of the rules of {} have more than {} items",
                policy.title,
                Rules::MAX_ITEMS
            );
            reader.labelled(&table.span(), message, "too many with these", None);
        }
        read.rules.push(rule);
        read.spans.push((table.span(), uses));
    }
    read
}

fn read_rule(reader: &mut Reader<'_>, table: Table<'_>) -> (Rule, Vec<Range<usize>>) {
    reader.known_keys(table, keys::RULE);
    let uses = reader.strings(table, "use", Name::new).unwrap_or_default();
    let (use_, spans) = uses.into_iter().unzip();
    let otherwise: Option<Otherwise> = reader.word(table, "otherwise", &OTHERWISE);
    let rule = Rule {
        source: without_places(reader.strings(table, "source", prefix)),
        source_ports: without_places(reader.words(table, "source-ports", str::parse::<Ports>)),
        destination: without_places(reader.strings(table, "destination", prefix)),
        ports: without_places(reader.words(table, "ports", str::parse::<Ports>)),
        protocol: without_places(reader.words(table, "protocol", str::parse::<Protocol>)),
        dscp: without_places(reader.words(table, "dscp", str::parse::<Dscp>)),
        use_,
        otherwise,
    };
    (rule, spans)
}

/// What a mistake is about.
fn place_of(error: &RuleError, table: Table<'_>) -> Range<usize> {
    let key = match error {
        RuleError::Nothing => return table.span(),
        RuleError::NoPorts(_) => "protocol",
        RuleError::StrictOtherwise => "otherwise",
        RuleError::TooLong { key, .. } => key,
        RuleError::TooManyUses(_) => "use",
    };
    let value = table.entries.get(key);
    value.map_or(table.span(), |value| value.span())
}

fn label_of(error: &RuleError) -> &'static str {
    match error {
        RuleError::Nothing => "does nothing",
        RuleError::NoPorts(_) => "has no ports",
        RuleError::StrictOtherwise => "contradicts `strict = true`",
        RuleError::TooLong { .. } | RuleError::TooManyUses(_) => "too many",
    }
}
