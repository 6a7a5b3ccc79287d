//! Preferences: which of a policy's domains is to come first. They never add one.

use super::Engine;
use super::rejected::Rejected;
use crate::name::Name;
use crate::suggest::nearest;

impl Engine {
    /// The domains that these names stand for: groups replaced by their domains, and aliases by the
    /// domains' own names, each once.
    pub fn expand<'n>(&self, names: impl IntoIterator<Item = &'n Name>) -> Vec<Name> {
        self.world().expand(names)
    }

    /// Why a domain cannot be chosen by any policy; `None`: it can.
    pub(crate) fn unfit(&self, name: &Name) -> Option<String> {
        self.world().unfit(name)
    }

    pub(super) fn prefer(&mut self, name: &Name, domain: Option<&Name>) -> Result<(), Rejected> {
        let Some(policy) = self.state.policy(name.as_str()) else {
            let known = self.state.policies().map(|policy| policy.name.as_str());
            return Err(Rejected::NoPolicy {
                name: name.clone(),
                meant: nearest(name.as_str(), known).and_then(|name| Name::new(name).ok()),
            });
        };
        if let Some(domain) = domain {
            let world = self.world();
            let usable = world.expand(policy.names());
            if world.among(&usable, domain).is_none() {
                return Err(Rejected::NotUsed {
                    policy: name.clone(),
                    name: domain.clone(),
                    usable,
                });
            }
        }
        let policy = policy.clone();
        let before = match domain.cloned() {
            Some(domain) => self.state.preferred.insert(policy.name.clone(), domain),
            None => self.state.preferred.remove(name),
        };
        if before.as_ref() != domain {
            // What is chosen where it is in force, or behind another that is.
            self.touch_matches(&policy);
        }
        Ok(())
    }

    /// Drops the preferences of policies that are no more. One in quarantine keeps its own.
    pub(super) fn drop_preferences(&mut self) {
        let (config, api) = (&self.state.config, &self.state.api_policies);
        let there = |name: &Name| config.defines(name.as_str()) || api.contains_key(name);
        self.state.preferred.retain(|name, _| there(name));
    }
}
