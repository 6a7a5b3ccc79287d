//! Parsing and merging files.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::DeTable;

use super::error::{ConfigError, MAX_FILE_BYTES, Note, Source};
use super::read::{Reader, Table};
use super::{AgentConfig, Awaited, Config, DomainConfig, keys};
use crate::name::{Name, interface_name};
use crate::permit::Permit;
use crate::policy::{Match, Policy};
use crate::suggest::nearest;

/// Parses files, given as name and text, and merges them in their order: a later `[policy.x]`,
/// `[domain.x]` or `[group.x]` replaces an earlier one whole, `[agent]` merges key by key.
///
/// All mistakes of all files are found at once. On any, nothing of the files is taken.
pub fn parse(files: &[(&str, &str)]) -> Result<Config, Vec<ConfigError>> {
    let mut merged = Merged::default();
    let mut errors = Vec::new();
    for (file, text) in files {
        let mut reader = Reader {
            source: Source::new(file, text),
            errors: Vec::new(),
        };
        merged.read(&mut reader);
        errors.extend(reader.errors);
    }
    // Without all definitions, what refers to them would be refused wrongly.
    if errors.is_empty() {
        merged.check(&mut errors);
    }
    if errors.is_empty() {
        Ok(merged.config())
    } else {
        Err(errors)
    }
}

/// What was read so far, with places for checks across files.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub(super) agent: AgentConfig,
    pub(super) domains: BTreeMap<Name, (DomainConfig, Place)>,
    pub(super) groups: BTreeMap<Name, (Vec<(Name, Place)>, Place)>,
    pub(super) policies: BTreeMap<Name, PolicyAt>,
    pub(super) permits: BTreeMap<Name, PermitAt>,
    notes: Vec<Note>,
    awaited: Vec<Awaited>,
}

/// A place in a file, as an error that has no message yet.
pub(super) type Place = ConfigError;

#[derive(Debug)]
pub(super) struct PolicyAt {
    pub(super) policy: Policy,
    pub(super) uses: Vec<Place>,
    pub(super) matches: Vec<Place>,
    pub(super) place: Place,
}

#[derive(Debug)]
pub(super) struct PermitAt {
    pub(super) permit: Permit,
    pub(super) domains: Vec<Place>,
    pub(super) place: Place,
}

impl Merged {
    fn read(&mut self, reader: &mut Reader<'_>) {
        if reader.source.text.len() > MAX_FILE_BYTES {
            let message = format!(
                "the file has {} bytes, more than the limit of {MAX_FILE_BYTES}",
                reader.source.text.len()
            );
            reader.error(0..0, message, None);
            return;
        }
        let (document, errors) = DeTable::parse_recoverable(reader.source.text);
        for error in &errors {
            reader.error(error.span().unwrap_or(0..0), error.message(), None);
        }
        if !errors.is_empty() {
            return;
        }
        let top = Table {
            entries: document.get_ref(),
            span_start: 0,
            span_end: reader.source.text.len(),
            title: "the file",
        };
        reader.known_keys(top, keys::FILE);
        if let Some(value) = top.entries.get("agent")
            && let Some(table) = reader.table("[agent]", value)
        {
            self.read_agent(reader, table);
        }
        self.each(reader, top, "domain", Self::read_domain);
        self.each(reader, top, "group", Self::read_group);
        self.each(reader, top, "policy", Self::read_policy);
        self.each(reader, top, "permit", Self::read_permit);
    }

    /// Reads each table of `[section.name]`.
    fn each(
        &mut self,
        reader: &mut Reader<'_>,
        top: Table<'_>,
        section: &str,
        read: fn(&mut Self, &mut Reader<'_>, Name, Table<'_>),
    ) {
        let Some(value) = top.entries.get(section) else {
            return;
        };
        let title = format!("[{section}]");
        let Some(table) = reader.table(&title, value) else {
            return;
        };
        for (key, value) in table.entries {
            let Some(name) = reader.name(key.get_ref(), key.span()) else {
                continue;
            };
            let title = format!("[{section}.{name}]");
            if let Some(mut table) = reader.table(&title, value) {
                // A message about the whole stands at its name.
                (table.span_start, table.span_end) = (key.span().start, key.span().end);
                read(self, reader, name, table);
            }
        }
    }

    pub(super) fn note(&mut self, earlier: Option<Place>, title: &str, here: &Place) {
        if let Some(earlier) = earlier {
            self.notes.push(Note {
                file: here.file.clone(),
                line: here.line,
                message: format!(
                    "{title} replaces the one in {}:{}",
                    earlier.file, earlier.line
                ),
            });
        }
    }

    /// Checks what refers to other things: names in `use` and in groups, and equal matches.
    fn check(&mut self, errors: &mut Vec<ConfigError>) {
        for (name, (_, place)) in &self.groups {
            if let Some((_, domain)) = self.domains.get(name) {
                let at = format!("{}:{}", domain.file, domain.line);
                let message = format!("`{name}` is both a group and the domain in {at}");
                errors.push(say(place, message, None));
            }
        }
        let mut awaited = BTreeMap::new();
        for (group, (domains, _)) in &self.groups {
            for (name, place) in domains {
                if self.groups.contains_key(name) {
                    let message = format!("[group.{group}] contains the group `{name}`");
                    let help = "a group is made of domains".to_owned();
                    errors.push(say(place, message, Some(help)));
                } else {
                    self.check_name(
                        name,
                        place,
                        &format!("[group.{group}]"),
                        errors,
                        &mut awaited,
                    );
                }
            }
        }
        for (policy, at) in &self.policies {
            for (name, place) in at.policy.use_.iter().zip(&at.uses) {
                if !self.groups.contains_key(name) {
                    let title = format!("[policy.{policy}]");
                    self.check_name(name, place, &title, errors, &mut awaited);
                }
            }
        }
        for (permit, at) in &self.permits {
            for (name, place) in at.permit.domains.iter().zip(&at.domains) {
                if !self.groups.contains_key(name) {
                    let title = format!("[permit.{permit}]");
                    self.check_name(name, place, &title, errors, &mut awaited);
                }
            }
        }
        self.check_matches(errors);
        self.awaited = awaited.into_values().collect();
    }

    fn check_name(
        &self,
        name: &Name,
        place: &Place,
        title: &str,
        errors: &mut Vec<ConfigError>,
        awaited: &mut BTreeMap<Name, Awaited>,
    ) {
        // Said once for each name: many policies may share one.
        if self.domains.contains_key(name) || awaited.contains_key(name) {
            return;
        }
        let interfaces = self
            .domains
            .values()
            .filter_map(|(d, _)| d.matches.interface.as_deref());
        let alias = interfaces
            .clone()
            .any(|interface| interface == name.as_str());
        let known = self
            .domains
            .keys()
            .chain(self.groups.keys())
            .map(Name::as_str);
        let help = match nearest(name.as_str(), known) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "define it by [domain.x] or [group.x], or name an interface".to_owned(),
        };
        let message = format!("unknown domain `{name}` in {title}");
        let error = say(place, message, Some(help));
        let may_come = self.agent.discover.covers(name.as_str())
            && interface_name(name.as_str(), false).is_ok();
        if alias || may_come {
            let awaits = Awaited {
                name: name.clone(),
                error,
            };
            awaited.insert(name.clone(), awaits);
        } else {
            errors.push(error);
        }
    }

    /// Two policies of one priority that name one cgroup or unit: the one that comes later by name is
    /// refused, so the order of files does not matter.
    fn check_matches(&self, errors: &mut Vec<ConfigError>) {
        let mut seen: BTreeMap<(&Match, i32), (&Name, &Place)> = BTreeMap::new();
        for (name, at) in &self.policies {
            for (wanted, place) in at.policy.matches.iter().zip(&at.matches) {
                let earlier = seen.insert((wanted, at.policy.priority), (name, place));
                if let Some((other, there)) = earlier.filter(|(other, _)| *other != name) {
                    let message = format!(
                        "[policy.{name}] and [policy.{other}] ({}:{}) have the same origin and \
                         priority on one cgroup",
                        there.file, there.line
                    );
                    let help = "give one of them another `priority`".to_owned();
                    errors.push(say(place, message, Some(help)));
                }
            }
        }
    }

    fn config(self) -> Config {
        Config {
            agent: self.agent,
            domains: self
                .domains
                .into_iter()
                .map(|(name, (domain, _))| (name, domain))
                .collect(),
            groups: self
                .groups
                .into_iter()
                .map(|(name, (domains, _))| {
                    (name, domains.into_iter().map(|(name, _)| name).collect())
                })
                .collect(),
            policies: self
                .policies
                .into_iter()
                .map(|(name, at)| (name, at.policy))
                .collect(),
            permits: self
                .permits
                .into_iter()
                .map(|(name, at)| (name, at.permit))
                .collect(),
            notes: self.notes,
            awaited: self.awaited,
        }
    }
}

pub(super) fn place(reader: &Reader<'_>, span: Range<usize>) -> Place {
    reader.source.error(span, String::new())
}

fn say(place: &Place, message: String, help: Option<String>) -> ConfigError {
    ConfigError {
        message,
        help,
        ..place.clone()
    }
}
