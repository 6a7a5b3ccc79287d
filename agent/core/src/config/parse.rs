//! Parsing and merging files.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use toml::de::DeTable;

use super::error::{ConfigError, MAX_FILE_BYTES, Place, Source};
use super::read::{Reader, Table};
use super::{AgentConfig, Awaited, Config, DomainConfig, Quarantine, keys};
use crate::groups::{BUILT_IN, built_in};
use crate::name::{Name, interface_name};
use crate::permit::Permit;
use crate::policy::{Match, Policy};
use crate::suggest::nearest;

/// What the files say, and where they say it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// What they say.
    pub config: Config,
    /// Where.
    pub places: Places,
}

/// Where the files say what they say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// `[domain.x]`: its name.
    pub domains: BTreeMap<Name, Place>,
    /// `[group.x]`: its name, and each of its domains.
    pub groups: BTreeMap<Name, (Place, Vec<Place>)>,
    /// `[policy.x]`.
    pub policies: BTreeMap<Name, PolicyPlaces>,
    /// Sections that a later file replaced.
    pub replaced: Vec<Replaced>,
}

/// Where a file says what a policy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyPlaces {
    /// Its name.
    pub name: Place,
    /// Each name in `use`.
    pub uses: Vec<Place>,
    /// Each match.
    pub matches: Vec<Place>,
    /// Each rule.
    pub rules: Vec<RulePlaces>,
    /// How its flows are shared.
    pub share: Option<Place>,
}

/// Where a file says what a rule is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulePlaces {
    /// Where it begins.
    pub place: Place,
    /// Each name in `use`.
    pub uses: Vec<Place>,
}

/// A section that a later file replaced whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The section, as `[policy.x]`.
    pub section: String,
    /// Where it was.
    pub earlier: Place,
    /// What replaces it.
    pub later: Place,
    /// What was wrong with it, where that does not make the file bad: it counts no more.
    pub mistakes: Vec<ConfigError>,
}

/// Parses files, given as name and text, and merges them in their order: a later `[policy.x]`,
/// `[domain.x]`, `[group.x]` or `[permit.x]` replaces an earlier one whole, `[agent]` merges key by key.
///
/// All mistakes of all files are found at once. A policy that is bad in itself, and whose match can be
/// read, is put into [`Config::quarantined`]. On any other mistake nothing of the files is taken.
pub fn parse(files: &[(&str, &str)]) -> Result<Config, Vec<ConfigError>> {
    Merged::of(files).map(Merged::config)
}

/// As [`parse`], with the places.
pub fn parse_with_places(files: &[(&str, &str)]) -> Result<Parsed, Vec<ConfigError>> {
    let mut merged = Merged::of(files)?;
    let places = merged.take_places();
    Ok(Parsed {
        config: merged.config(),
        places,
    })
}

/// What was read so far, with places for checks across files.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub(super) agent: AgentConfig,
    pub(super) agent_places: BTreeMap<&'static str, Place>,
    pub(super) domains: BTreeMap<Name, (DomainConfig, Place)>,
    pub(super) groups: BTreeMap<Name, (Vec<(Name, Place)>, Place)>,
    /// In the order of their names once all are read. In one piece, for there may be many, of which most is
    /// gone once they are checked: pieces of it would leave gaps between what stays.
    policies: Vec<PolicyAt>,
    /// Where each of them is while they are read.
    policy_index: HashMap<Name, usize>,
    pub(super) permits: BTreeMap<Name, PermitAt>,
    replaced: Vec<Replaced>,
    awaited: Vec<Awaited>,
}

#[derive(Debug)]
pub(super) struct PolicyAt {
    pub(super) policy: Policy,
    pub(super) uses: Vec<Place>,
    pub(super) rules: Vec<RulePlaces>,
    pub(super) share: Option<Place>,
    pub(super) matches: Vec<Place>,
    pub(super) place: Place,
    /// What is wrong with it alone.
    pub(super) mistakes: Vec<ConfigError>,
}

#[derive(Debug)]
pub(super) struct PermitAt {
    pub(super) permit: Permit,
    pub(super) domains: Vec<Place>,
    pub(super) place: Place,
}

impl Merged {
    /// Reads and checks files.
    fn of(files: &[(&str, &str)]) -> Result<Self, Vec<ConfigError>> {
        let mut merged = Self::default();
        let mut errors = Vec::new();
        for (file, text) in files {
            let mut reader = Reader {
                source: Source::new(file, text),
                errors: Vec::new(),
            };
            merged.read(&mut reader);
            errors.extend(reader.errors);
        }
        merged.policy_index = HashMap::new();
        let by_name = |a: &PolicyAt, b: &PolicyAt| a.policy.name.cmp(&b.policy.name);
        merged.policies.sort_unstable_by(by_name);
        // Without all definitions, what refers to them would be refused wrongly.
        if errors.is_empty() {
            merged.check(&mut errors);
        }
        if errors.is_empty() {
            return Ok(merged);
        }
        let policies = merged.policies.into_iter();
        errors.extend(policies.flat_map(|at| at.mistakes));
        let order = |error: &ConfigError| {
            let file = files
                .iter()
                .position(|(name, _)| **name == *error.place.file);
            (file, error.place.start)
        };
        errors.sort_by_key(order);
        Err(errors)
    }

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

    /// Takes a policy that was read, in place of an earlier one of its name, which is returned.
    pub(super) fn insert_policy(&mut self, at: PolicyAt) -> Option<PolicyAt> {
        let next = self.policies.len();
        let index = *self
            .policy_index
            .entry(at.policy.name.clone())
            .or_insert(next);
        if index == next {
            self.policies.push(at);
            return None;
        }
        Some(std::mem::replace(&mut self.policies[index], at))
    }

    /// Notes that a section took the place of an earlier one.
    pub(super) fn note(
        &mut self,
        earlier: Option<(Place, Vec<ConfigError>)>,
        section: &str,
        later: &Place,
    ) {
        if let Some((earlier, mistakes)) = earlier {
            self.replaced.push(Replaced {
                section: section.to_owned(),
                earlier,
                later: later.clone(),
                mistakes,
            });
        }
    }

    /// Checks what refers to other things: names in `use` and in groups, and equal matches.
    fn check(&mut self, errors: &mut Vec<ConfigError>) {
        let domains = self.domains.iter().map(|(name, (_, place))| (name, place));
        let named = self.groups.iter().map(|(name, (_, place))| (name, place));
        for (name, place) in domains.chain(named) {
            if built_in(name.as_str()).is_some() {
                let message = format!("`{name}` is the name of a group that is always there");
                let help = "give it another name".to_owned();
                errors.push(place.error(message).label("cannot be another").help(help));
            }
        }
        for (name, (_, place)) in &self.groups {
            if let Some((_, domain)) = self.domains.get(name) {
                let message = format!("`{name}` is both a group and the domain in {domain}");
                let help = "give one of them another name".to_owned();
                let error = place.error(message).label("the group").help(help);
                errors.push(error);
            }
        }
        let mut awaited = BTreeMap::new();
        for (group, (domains, _)) in &self.groups {
            for (name, place) in domains {
                if self.is_group(name) {
                    let message = format!("[group.{group}] contains the group `{name}`");
                    let help = "a group is made of domains".to_owned();
                    errors.push(place.error(message).label("a group").help(help));
                } else {
                    let title = format!("[group.{group}]");
                    errors.extend(self.check_name(name, place, &title, &mut awaited));
                }
            }
        }
        if let Some(place) = self.agent_places.get("primary") {
            for name in &self.agent.primary {
                if self.is_group(name) {
                    let message = format!("`primary` of [agent] contains the group `{name}`");
                    let help = "name its domains".to_owned();
                    errors.push(place.error(message).label("a group").help(help));
                } else {
                    errors.extend(self.check_name(
                        name,
                        place,
                        "`primary` of [agent]",
                        &mut awaited,
                    ));
                }
            }
        }
        for (permit, at) in &self.permits {
            for (name, place) in at.permit.domains.iter().zip(&at.domains) {
                if !self.is_group(name) {
                    let title = format!("[permit.{permit}]");
                    errors.extend(self.check_name(name, place, &title, &mut awaited));
                }
            }
        }
        let mut mistakes: BTreeMap<Name, Vec<ConfigError>> = BTreeMap::new();
        for at in &self.policies {
            let policy = &at.policy.name;
            let of_rules = at.rules.iter().flat_map(|rule| &rule.uses);
            for (name, place) in at.policy.names().zip(at.uses.iter().chain(of_rules)) {
                if !self.is_group(name) {
                    let title = format!("[policy.{policy}]");
                    if let Some(error) = self.check_name(name, place, &title, &mut awaited) {
                        mistakes.entry(policy.clone()).or_default().push(error);
                    }
                }
            }
        }
        self.check_matches(&mut mistakes);
        for at in &mut self.policies {
            at.mistakes
                .extend(mistakes.remove(&at.policy.name).unwrap_or_default());
        }
        self.awaited = awaited.into_values().collect();
    }

    fn is_group(&self, name: &Name) -> bool {
        self.groups.contains_key(name) || built_in(name.as_str()).is_some()
    }

    /// What is wrong with a name of a domain, if that is sure; else notes it as awaited.
    fn check_name(
        &self,
        name: &Name,
        place: &Place,
        title: &str,
        awaited: &mut BTreeMap<Name, Awaited>,
    ) -> Option<ConfigError> {
        // Said once for each name: many policies may share one.
        if self.domains.contains_key(name) || awaited.contains_key(name) {
            return None;
        }
        let mut interfaces = self
            .domains
            .values()
            .filter_map(|(d, _)| d.matches.interface.as_deref());
        let alias = interfaces.any(|interface| interface == name.as_str());
        let known = self
            .domains
            .keys()
            .chain(self.groups.keys())
            .map(Name::as_str)
            .chain(BUILT_IN.map(|(name, _)| name));
        let help = match nearest(name.as_str(), known) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "define it by [domain.x] or [group.x], or name an interface".to_owned(),
        };
        let error = place
            .error(format!("unknown domain `{name}` in {title}"))
            .label("no domain, group or interface has this name")
            .help(help);
        let may_come = self.agent.discover.covers(name.as_str())
            && interface_name(name.as_str(), false).is_ok();
        if alias || may_come {
            let awaits = Awaited {
                name: name.clone(),
                error,
            };
            awaited.insert(name.clone(), awaits);
            return None;
        }
        Some(error)
    }

    /// Two policies of one priority that name one cgroup or unit: the one that comes later by name is
    /// refused, so the order of files does not matter.
    fn check_matches(&self, mistakes: &mut BTreeMap<Name, Vec<ConfigError>>) {
        let mut seen: BTreeMap<(&Match, i32), (&Name, &Place)> = BTreeMap::new();
        for at in &self.policies {
            let name = &at.policy.name;
            // One that is in quarantine competes with none.
            if !at.mistakes.is_empty() || mistakes.contains_key(name) {
                continue;
            }
            let wanted = || at.policy.matches.iter().zip(&at.matches);
            let priority = at.policy.priority;
            let rivals = wanted().filter_map(|(wanted, place)| {
                let (other, there) = seen.get(&(wanted, priority))?;
                let message = format!(
                    "[policy.{name}] and [policy.{other}] ({there}) have the same origin and \
                     priority on one cgroup"
                );
                let error = place.error(message).label(format!("also `{other}`'s"));
                Some(error.help("give one of them another `priority`".to_owned()))
            });
            let rivals: Vec<ConfigError> = rivals.collect();
            if rivals.is_empty() {
                seen.extend(wanted().map(|(w, place)| ((w, priority), (name, place))));
            } else {
                mistakes.insert(name.clone(), rivals);
            }
        }
    }

    /// Takes out where everything is.
    fn take_places(&mut self) -> Places {
        let domains = self.domains.iter();
        let groups = self.groups.iter();
        let policies = self.policies.iter_mut().map(|at| {
            let places = PolicyPlaces {
                name: at.place.clone(),
                uses: std::mem::take(&mut at.uses),
                matches: std::mem::take(&mut at.matches),
                rules: std::mem::take(&mut at.rules),
                share: at.share.take(),
            };
            (at.policy.name.clone(), places)
        });
        Places {
            domains: domains
                .map(|(name, (_, place))| (name.clone(), place.clone()))
                .collect(),
            groups: groups
                .map(|(name, (domains, place))| {
                    let uses = domains.iter().map(|(_, place)| place.clone());
                    (name.clone(), (place.clone(), uses.collect()))
                })
                .collect(),
            policies: policies.collect(),
            replaced: std::mem::take(&mut self.replaced),
        }
    }

    fn config(self) -> Config {
        let mut quarantined = BTreeMap::new();
        let policies = self.policies.into_iter().filter_map(|at| {
            let name = at.policy.name.clone();
            if at.mistakes.is_empty() {
                return Some((name, at.policy));
            }
            let closed = at.policy.strict.then(|| at.policy.closed());
            let quarantine = Quarantine {
                policy: at.policy,
                mistakes: at.mistakes,
            };
            quarantined.insert(name.clone(), quarantine);
            closed.map(|policy| (name, policy))
        });
        let policies = policies.collect();
        let domains = self.domains.into_iter();
        let groups = self.groups.into_iter().map(|(name, (domains, _))| {
            let domains = domains.into_iter().map(|(domain, _)| domain);
            (name, domains.collect())
        });
        let permits = self.permits.into_iter();
        Config {
            agent: self.agent,
            domains: domains.map(|(name, (domain, _))| (name, domain)).collect(),
            groups: groups.collect(),
            policies,
            permits: permits.map(|(name, at)| (name, at.permit)).collect(),
            quarantined,
            agent_places: self.agent_places,
            awaited: self.awaited,
        }
    }
}

pub(super) fn place(reader: &Reader<'_>, span: &Range<usize>) -> Place {
    reader.source.place(span)
}
