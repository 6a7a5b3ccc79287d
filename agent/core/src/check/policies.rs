//! Policies that compete: at one cgroup, or one below the other.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::{Finding, Kind};
use crate::config::{Parsed, Place};
use crate::name::Name;
use crate::pattern::Walk;
use crate::policy::{Match, Otherwise, Policy};

/// Most pairs of matches that are compared.
const MOST_PAIRS: usize = 1_000_000;

/// A match of a policy.
struct Side<'a> {
    policy: &'a Policy,
    walk: Walk<'a>,
    /// Its levels before the first with a wildcard.
    literal: &'a str,
    exact: bool,
    place: &'a Place,
}

/// How two policies meet.
enum Meeting<'a> {
    /// Both match this path.
    Here(String, &'a Side<'a>, &'a Side<'a>),
    /// The first matches what the second is above, this path for instance.
    Below(String, &'a Side<'a>, &'a Side<'a>),
}

/// Says which policies are shadowed or overlap, and whether all were compared.
pub(super) fn check(parsed: &Parsed, findings: &mut Vec<Finding>) -> bool {
    let sides = sides(parsed);
    let (pairs, complete) = pairs(&sides);
    let shadows = shadows(&sides, &pairs);
    for (name, by) in &shadows {
        if let Some(places) = parsed.places.policies.get(*name) {
            findings.push(shadowed(name, by, &places.name));
        }
    }
    let mut meetings: BTreeMap<(&Name, &Name), Meeting<'_>> = BTreeMap::new();
    for &(one, two) in &pairs {
        let (one, two) = (&sides[one], &sides[two]);
        let (a, b) = (&one.policy.name, &two.policy.name);
        if shadows.contains_key(a) || shadows.contains_key(b) {
            continue;
        }
        let pair = if a < b { (a, b) } else { (b, a) };
        if let Some(Meeting::Here(..)) = meetings.get(&pair) {
            continue;
        }
        if let Some(path) = one.walk.meet(&two.walk) {
            meetings.insert(pair, Meeting::Here(path, one, two));
        } else if let Some(path) = one.walk.meet(&two.walk.below()) {
            meetings
                .entry(pair)
                .or_insert(Meeting::Below(path, one, two));
        } else if let Some(path) = two.walk.meet(&one.walk.below()) {
            meetings
                .entry(pair)
                .or_insert(Meeting::Below(path, two, one));
        }
    }
    findings.extend(meetings.values().map(overlapping));
    complete
}

/// All matches of policies that are in force.
fn sides(parsed: &Parsed) -> Vec<Side<'_>> {
    let config = &parsed.config;
    let policies = config.policies.values();
    let good = policies.filter(|policy| !config.quarantined.contains_key(&policy.name));
    good.filter_map(|policy| Some((policy, parsed.places.policies.get(&policy.name)?)))
        .flat_map(|(policy, places)| {
            let matches = policy.matches.iter().zip(&places.matches);
            matches.filter_map(move |(wanted, place)| {
                Some(Side {
                    policy,
                    walk: Walk::of(wanted)?,
                    literal: literal(wanted),
                    exact: wanted.is_exact(),
                    place,
                })
            })
        })
        .collect()
}

fn literal(wanted: &Match) -> &str {
    match wanted {
        Match::Cgroup(pattern) => pattern.literal(),
        Match::Unit(_) | Match::CgroupId(_) => "",
    }
}

/// Matches of different policies that may have to do with each other, since the path before the first
/// wildcard of one leads to that of the other; and whether these are all.
fn pairs(sides: &[Side<'_>]) -> (Vec<(usize, usize)>, bool) {
    let mut by_literal: HashMap<&str, Vec<usize>> = HashMap::new();
    let mut literals = Vec::with_capacity(sides.len());
    for (at, side) in sides.iter().enumerate() {
        let literal = side.literal;
        by_literal.entry(literal).or_default().push(at);
        literals.push(literal);
    }
    let mut pairs = Vec::new();
    for (at, literal) in literals.iter().enumerate() {
        let ends = literal.match_indices('/').map(|(end, _)| end);
        let above = std::iter::once(0).chain(ends).chain([literal.len()]);
        let mut last = None;
        for end in above {
            if last.replace(end) == Some(end) {
                continue;
            }
            for &other in by_literal.get(&literal[..end]).into_iter().flatten() {
                // Of two with the same literal each pair once.
                if end == literal.len() && other >= at {
                    continue;
                }
                if sides[at].policy.name != sides[other].policy.name {
                    if pairs.len() == MOST_PAIRS {
                        return (pairs, false);
                    }
                    pairs.push((at, other));
                }
            }
        }
    }
    (pairs, true)
}

impl Side<'_> {
    /// What decides between two at one cgroup, the first holds.
    fn key(&self) -> impl Ord + '_ {
        let policy = self.policy;
        (
            Reverse(policy.priority),
            !self.exact,
            Reverse((policy.is_closed(), policy.strict)),
            &policy.name,
        )
    }

    /// Why it holds rather than `other` at a cgroup that both match.
    fn because(&self, other: &Self) -> String {
        let (policy, than) = (self.policy, other.policy);
        if policy.priority != than.priority {
            format!(
                "its priority is higher ({} over {})",
                policy.priority, than.priority
            )
        } else if self.exact != other.exact {
            "it names the cgroup by its path, and the other by a pattern or unit".to_owned()
        } else if policy.is_closed() != than.is_closed() {
            "it lets nothing through, and nothing else decides between them".to_owned()
        } else if policy.strict != than.strict {
            "it is strict, and nothing else decides between them".to_owned()
        } else {
            "its name comes first, and nothing else decides between them".to_owned()
        }
    }
}

/// A match, and one that always comes before it and asks nobody else.
type Shadow<'a> = (&'a Side<'a>, &'a Side<'a>);

/// Policies each of whose matches has a shadow.
fn shadows<'a>(
    sides: &'a [Side<'a>],
    pairs: &[(usize, usize)],
) -> BTreeMap<&'a Name, Vec<Shadow<'a>>> {
    let order = |one: usize, two: usize| {
        if sides[one].key() < sides[two].key() {
            (one, two)
        } else {
            (two, one)
        }
    };
    // Where two are equal, the later does not apply at all, and casts no shadow.
    let mut displaced = vec![false; sides.len()];
    for &(one, two) in pairs {
        let (first, later) = order(one, two);
        let (a, b) = (&sides[first], &sides[later]);
        let equal = a.policy.priority == b.policy.priority && a.exact == b.exact;
        displaced[later] |= equal && a.walk.meet(&b.walk).is_some();
    }
    let mut over: Vec<Option<&Side<'_>>> = vec![None; sides.len()];
    for &(one, two) in pairs {
        let (first, later) = order(one, two);
        let last_word = sides[first].policy.otherwise != Otherwise::Next && !displaced[first];
        if last_word && over[later].is_none() && sides[first].walk.holds(&sides[later].walk) {
            over[later] = Some(&sides[first]);
        }
    }
    let mut shadows: BTreeMap<&Name, Option<Vec<Shadow<'_>>>> = BTreeMap::new();
    for (side, first) in sides.iter().zip(over) {
        let by = shadows.entry(&side.policy.name).or_insert(Some(Vec::new()));
        match (first, by.as_mut()) {
            (Some(first), Some(by)) => by.push((side, first)),
            _ => *by = None,
        }
    }
    let all = shadows.into_iter();
    all.filter_map(|(name, by)| Some((name, by?))).collect()
}

fn shadowed(name: &Name, by: &[Shadow<'_>], place: &Place) -> Finding {
    let mut reasons: Vec<String> = Vec::new();
    for (side, first) in by {
        let reason = format!(
            "`{}` ({}) holds there, since {}",
            first.policy.name,
            first.place,
            first.because(side)
        );
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    Finding {
        kind: Kind::Shadowed,
        place: place.clone(),
        message: format!(
            "policy `{name}` can never be in force: wherever it matches, {}",
            reasons.join(", or ")
        ),
        label: Some("never in force".to_owned()),
        help: Some(
            "give it a higher `priority`, have the other match less, or remove it".to_owned(),
        ),
    }
}

fn overlapping(meeting: &Meeting<'_>) -> Finding {
    match meeting {
        Meeting::Here(path, one, two) => {
            let (first, later) = if one.key() < two.key() {
                (one, two)
            } else {
                (two, one)
            };
            let undecided =
                (first.policy.priority, first.exact) == (later.policy.priority, later.exact);
            Finding {
                kind: Kind::Overlapping,
                place: later.place.clone(),
                message: format!(
                    "policies `{}` and `{}` ({}) can match one cgroup, {path} for instance: `{}` holds \
                     there, since {}",
                    later.policy.name,
                    first.policy.name,
                    first.place,
                    first.policy.name,
                    first.because(later)
                ),
                label: Some(format!("`{}` holds where both match", first.policy.name)),
                help: undecided.then(|| "give one of them another `priority`".to_owned()),
            }
        }
        Meeting::Below(path, deeper, upper) => Finding {
            kind: Kind::Overlapping,
            place: deeper.place.clone(),
            message: format!(
                "policy `{}` can match below what `{}` ({}) matches, {path} for instance: `{}` holds \
                 there, since its cgroup is deeper",
                deeper.policy.name, upper.policy.name, upper.place, deeper.policy.name
            ),
            label: Some(format!("below `{}`", upper.policy.name)),
            help: None,
        },
    }
}
