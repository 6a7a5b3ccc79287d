//! What the network part of the plan is made of.

use std::collections::BTreeMap;

use steer_common::MarkMask;

use crate::config::Config;
use crate::domains::{Domain, Domains};
use crate::ids::{DomainIndex, TableId};
use crate::name::Name;
use crate::network::Network;

/// What the network part is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) config: &'a Config,
    pub(crate) network: &'a Network,
    pub(crate) domains: &'a Domains,
    /// Domains that a policy in force can choose, present or not.
    pub(crate) installed: &'a BTreeMap<Name, DomainIndex>,
    /// Every domain that has an index: flows may still bear the mark of one that no policy can choose
    /// any more.
    pub(crate) indexed: &'a BTreeMap<Name, DomainIndex>,
    /// A policy does more than pass.
    pub(crate) acts: bool,
    /// A policy is strict.
    pub(crate) strict: bool,
    /// Flows of a policy are repaired.
    pub(crate) repairs: bool,
}

/// A domain with an index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Installed<'a> {
    pub(crate) index: DomainIndex,
    pub(crate) mark: u32,
    pub(crate) table: TableId,
    /// `None`: it is not there, and its table is empty.
    pub(crate) domain: Option<&'a Domain>,
}

impl<'a> Inputs<'a> {
    /// Installed domains in the order of their indices.
    pub(crate) fn installed(&self) -> Vec<Installed<'a>> {
        self.with_index(self.installed.iter())
    }

    /// Domains that no policy can choose now, but whose mark flows may bear: those go on by them.
    pub(super) fn lingering(&self) -> Vec<Installed<'a>> {
        let indexed = self.indexed.iter();
        self.with_index(indexed.filter(|(name, _)| !self.installed.contains_key(*name)))
    }

    fn with_index<'n>(
        &self,
        names: impl Iterator<Item = (&'n Name, &'n DomainIndex)>,
    ) -> Vec<Installed<'a>> {
        let agent = &self.config.agent;
        let mut domains: Vec<_> = names
            .filter_map(|(name, index)| {
                Some(Installed {
                    index: *index,
                    mark: agent.mark_mask.encode(index.0)?,
                    table: TableId(agent.table_base.checked_add(index.0.into())?),
                    domain: self.domains.get(name.as_str()),
                })
            })
            .collect();
        domains.sort_unstable_by_key(|domain| domain.index);
        domains
    }

    pub(crate) fn mask(&self) -> MarkMask {
        self.config.agent.mark_mask
    }
}
