//! Two rules' conditions against each other: what fits both, and whether one fits all that the other does.

use ipnet::IpNet;

use super::{Dscp, Ports, Protocol, Rule};

impl Rule {
    /// The condition that fits what both fit, without anything to do. `None`: nothing fits both.
    pub fn both(&self, other: &Self) -> Option<Self> {
        Some(Self {
            source: meet(&self.source, &other.source, narrower)?,
            source_ports: meet(&self.source_ports, &other.source_ports, common)?,
            destination: meet(&self.destination, &other.destination, narrower)?,
            ports: meet(&self.ports, &other.ports, common)?,
            protocol: meet(&self.protocol, &other.protocol, equal)?,
            dscp: meet(&self.dscp, &other.dscp, equal)?,
            ..Self::default()
        })
    }

    /// Whether it fits all that `other` does, as far as single items tell: several that only together
    /// cover one of `other` do not count.
    pub fn holds(&self, other: &Self) -> bool {
        let net = |own: &IpNet, net: &IpNet| own.contains(net);
        let ports =
            |own: &Ports, ports: &Ports| own.contains(ports.first()) && own.contains(ports.last());
        let protocol = |own: &Protocol, protocol: &Protocol| own == protocol;
        let dscp = |own: &Dscp, dscp: &Dscp| own == dscp;
        covers(&self.source, &other.source, net)
            && covers(&self.source_ports, &other.source_ports, ports)
            && covers(&self.destination, &other.destination, net)
            && covers(&self.ports, &other.ports, ports)
            && covers(&self.protocol, &other.protocol, protocol)
            && covers(&self.dscp, &other.dscp, dscp)
    }

    /// How many pairs of items [`Self::both`] or [`Self::holds`] looks at, at most, or copies.
    pub fn effort(&self, other: &Self) -> usize {
        let pairs = |one: usize, two: usize| one.max(1) * two.max(1);
        let lists = self.lists().into_iter().zip(other.lists());
        lists.map(|((_, one), (_, two))| pairs(one, two)).sum()
    }
}

/// Items that are in both lists; an empty one has all. `None`: there are none.
fn meet<T: Copy + Ord>(one: &[T], two: &[T], both: impl Fn(T, T) -> Option<T>) -> Option<Vec<T>> {
    if one.is_empty() || two.is_empty() {
        return Some([one, two].concat());
    }
    let pairs = one.iter().flat_map(|a| two.iter().map(|b| (*a, *b)));
    let mut items: Vec<T> = pairs.filter_map(|(a, b)| both(a, b)).collect();
    items.sort_unstable();
    items.dedup();
    (!items.is_empty()).then_some(items)
}

/// Prefixes nest, or have nothing in common.
fn narrower(one: IpNet, two: IpNet) -> Option<IpNet> {
    if one.contains(&two) {
        Some(two)
    } else {
        two.contains(&one).then_some(one)
    }
}

fn common(one: Ports, two: Ports) -> Option<Ports> {
    Ports::new(one.first().max(two.first()), one.last().min(two.last()))
}

fn equal<T: Copy + PartialEq>(one: T, two: T) -> Option<T> {
    (one == two).then_some(one)
}

/// Whether every item of `other` is within one of `own`; an empty list has all.
fn covers<T>(own: &[T], other: &[T], within: impl Fn(&T, &T) -> bool) -> bool {
    own.is_empty()
        || !other.is_empty()
            && other
                .iter()
                .all(|item| own.iter().any(|own| within(own, item)))
}
