//! What a name in `use` stands for: a domain, a group of the files, or one of the groups that are always
//! there.

use crate::config::Config;
use crate::domains::{Domain, Domains};
use crate::name::Name;
use crate::network::LinkKind;
use crate::plan::Family;

/// Groups that are always there, with the kinds of their members; none: all.
pub const BUILT_IN: [(&str, &[LinkKind]); 6] = [
    ("any", &[]),
    ("any-wired", &[LinkKind::Wired]),
    ("any-wlan", &[LinkKind::Wlan]),
    ("any-cellular", &[LinkKind::Cellular]),
    ("any-wireless", &[LinkKind::Wlan, LinkKind::Cellular]),
    ("any-vpn", &[LinkKind::Vpn]),
];

/// The kinds of a group that is always there; `None`: it is none. Empty: all kinds.
pub fn built_in(name: &str) -> Option<&'static [LinkKind]> {
    let mut groups = BUILT_IN.iter();
    groups
        .find(|(group, _)| *group == name)
        .map(|(_, kinds)| *kinds)
}

/// Whether a name is that of a group, and so stands for domains that nobody named one by one.
pub fn is_group(config: &Config, name: &Name) -> bool {
    config.groups.contains_key(name) || built_in(name.as_str()).is_some()
}

/// The domains that a name stands for, by their own names; first those that come first by the host's order
/// where the name itself says none.
pub fn members(config: &Config, domains: &Domains, name: &Name) -> Vec<Name> {
    if let Some(group) = config.groups.get(name) {
        return group.iter().map(|name| own(domains, name)).collect();
    }
    let Some(kinds) = built_in(name.as_str()) else {
        return vec![own(domains, name)];
    };
    let fits = |domain: &&Domain| kinds.is_empty() || kinds.contains(&domain.kind);
    let mut members: Vec<&Domain> = domains.iter().filter(fits).collect();
    members.sort_by_key(|domain| rank(config, domain));
    members
        .into_iter()
        .map(|domain| domain.name.clone())
        .collect()
}

/// Names by which a domain may be among the inputs of a choice that it matters to.
pub(crate) fn names_of(config: &Config, name: &Name) -> Vec<Name> {
    match config.groups.get(name) {
        Some(group) => group.clone(),
        None => vec![name.clone()],
    }
}

/// The host's order (`order` and `primary` of `[agent]`): primary domains first, then by kind, then by the
/// metric of the default route, then by cost, then by name.
fn rank<'a>(config: &Config, domain: &'a Domain) -> (usize, usize, u32, u32, &'a Name) {
    let agent = &config.agent;
    let is = |name: &Name| domain.name == *name || domain.alias.as_ref() == Some(name);
    let place = |at: Option<usize>| at.unwrap_or(usize::MAX);
    (
        place(agent.primary.iter().position(is)),
        place(agent.order.iter().position(|kind| *kind == domain.kind)),
        metric(domain),
        domain.cost,
        &domain.name,
    )
}

/// Lowest metric of a domain's default routes.
pub(crate) fn metric(domain: &Domain) -> u32 {
    let default = |family: Family| {
        let any = family.any();
        let routes = domain.routes.iter();
        let metrics = routes.filter(move |route| route.destination == any);
        metrics.map(|route| route.metric).min()
    };
    let metrics = Family::BOTH.into_iter().filter_map(default);
    metrics.min().unwrap_or(u32::MAX)
}

fn own(domains: &Domains, name: &Name) -> Name {
    let domain = domains.get(name.as_str());
    domain.map_or_else(|| name.clone(), |domain| domain.name.clone())
}
