//! Time and checks: what they say of domains, and which are due.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use super::Engine;
use crate::domains::{Domain, DomainState};
use crate::groups::BUILT_IN;
use crate::health::{Condition, Health, Learned, Now, Probed, check_of};
use crate::name::Name;
use crate::probe::{Check, Probe};
use crate::rules::Flow;
use crate::select::{Decision, Stage, World, select};

/// After this time a name counts as not found.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Port of DNS.
const DNS: u16 = 53;

impl Engine {
    /// How domains are.
    pub fn health(&self) -> &Health {
        &self.state.health
    }

    /// When time alone changes something next, since boot.
    pub fn deadline(&self) -> Option<Duration> {
        let state = &self.state;
        state.health.deadline(&state.config, &self.domains)
    }

    /// What is chosen for `inputs` now.
    pub(super) fn select(&self, inputs: &[Stage]) -> Decision {
        select(inputs, self.world(), self.in_use(inputs))
    }

    /// What would be chosen in a cgroup with these policies if a domain were not there, for a flow or for what
    /// no rule fits.
    pub fn decide_without(&self, chain: &[Name], flow: Option<&Flow>, gone: &Name) -> Decision {
        if let Some(decision) = self.overruled(chain) {
            return decision;
        }
        let inputs = match flow {
            Some(flow) => self.ask(chain, flow).inputs,
            None => self.inputs(chain),
        };
        let world = World {
            without: Some(gone),
            ..self.world()
        };
        select(&inputs, world, self.in_use(&inputs))
    }

    pub(super) fn pass_time(&mut self, now: Now) {
        self.state.now = now;
        let state = &mut self.state;
        let changed = state
            .health
            .tick(&state.config, &self.domains, &mut state.history, now);
        self.touch_domains(changed);
    }

    pub(super) fn take_report(&mut self, probed: &Probed) {
        let state = &mut self.state;
        let learned = state.health.report(
            &state.config,
            &self.domains,
            &mut state.history,
            probed,
            state.now,
        );
        match learned {
            Learned::Nothing => {}
            Learned::Measured => {
                // Checks are many, and choices may be: those that compare nothing measured are as they were.
                let choices = &self.measured;
                self.dirty.choices.extend(choices);
            }
            Learned::Standing => self.touch_domains([probed.domain.clone()]),
        }
    }

    pub(super) fn take_stall(&mut self, name: &Name) {
        if let Some(domain) = self.domains.get(name.as_str()) {
            let check = check_of(&self.state.config, domain);
            self.state.health.stalled(name, &check, self.state.now);
        }
    }

    pub(super) fn recheck(&mut self, name: &Name) {
        if let Some(domain) = self.domains.get(name.as_str()) {
            let check = check_of(&self.state.config, domain);
            self.state.health.recheck(name, &check, self.state.now);
        }
    }

    /// Domains are different: choices among them are to be made again.
    pub(super) fn touch_domains(&mut self, changed: impl IntoIterator<Item = Name>) {
        let mut any = false;
        for name in changed {
            any = true;
            let domain = self.domains.get(name.as_str());
            let alias = domain.and_then(|domain| domain.alias.clone());
            self.touch_choices_of(&name);
            alias.iter().for_each(|alias| self.touch_choices_of(alias));
        }
        if any {
            for (group, _) in BUILT_IN {
                if let Some(choices) = self.choices_by_name.get(group) {
                    self.dirty.choices.extend(choices);
                }
            }
        }
    }

    /// The checks of all domains that policies can choose and that are up, with the time when each is due.
    pub fn probes(&self) -> Vec<Probe> {
        let installed = self.installed.iter();
        let probes = installed.filter_map(|(name, index)| {
            let domain = self.domains.get(name.as_str())?;
            let condition = self.state.health.get(name)?;
            self.probe(domain, condition, index.0)
        });
        probes.collect()
    }

    fn probe(&self, domain: &Domain, condition: &Condition, index: u16) -> Option<Probe> {
        let check = check_of(&self.state.config, domain);
        if domain.state != DomainState::Up || !check.asks() {
            return None;
        }
        self.asking(domain, condition, index, check)
    }

    /// What it takes to look names up over a domain.
    ///
    /// # Errors
    /// Why that cannot be, as a sentence without a full stop.
    pub fn lookup(&self, domain: &Domain) -> Result<Probe, String> {
        let name = &domain.name;
        if domain.state != DomainState::Up {
            return Err(domain.reason_with(&self.state.health));
        }
        let index = self.state.memory.indices.get(name);
        let index = index.ok_or_else(|| format!("{name} has no mark: no policy can choose it"))?;
        let condition = self.state.health.get(name);
        let probe = condition.and_then(|condition| {
            let check = Check {
                interval: LOOKUP_TIMEOUT,
                fall: 1,
                ..Check::default()
            };
            self.asking(domain, condition, index.0, check)
        });
        let probe = probe.ok_or_else(|| format!("{name} is not there"))?;
        if probe.servers.is_empty() {
            return Err(format!(
                "{name} has no name server: name some as `servers` in [domain.{name}.dns]"
            ));
        }
        Ok(probe)
    }

    fn asking(
        &self,
        domain: &Domain,
        condition: &Condition,
        index: u16,
        check: Check,
    ) -> Option<Probe> {
        let state = &self.state;
        let interface = domain.interface?;
        let mask = state.config.agent.mark_mask;
        Some(Probe {
            domain: domain.name.clone(),
            epoch: condition.epoch(),
            due: condition.next(),
            mark: mask.encode(index)?,
            mask: mask.bits(),
            interface,
            ifname: domain.ifname.clone()?,
            source4: domain.sources4.first().copied(),
            source6: domain.sources6.first().copied(),
            gateways: domain.gateways.clone(),
            servers: self.servers_of(domain),
            portal_api: state.network.portals.get(&interface).cloned(),
            timeout: check.timeout(),
            check,
        })
    }

    /// A domain's name servers: those of the files; else those that routers announce on its link, and those
    /// of the host that are on its link.
    pub fn servers_of(&self, domain: &Domain) -> Vec<SocketAddr> {
        let state = &self.state;
        let own = state.config.domains.get(&domain.name).map(|d| &d.servers);
        let at = |ip: &IpAddr| match (*ip, domain.interface) {
            (IpAddr::V6(ip), Some(interface)) if ip.is_unicast_link_local() => {
                SocketAddr::V6(SocketAddrV6::new(ip, DNS, 0, interface.0))
            }
            (ip, _) => SocketAddr::new(ip, DNS),
        };
        let mut servers: Vec<SocketAddr> = own.into_iter().flatten().map(at).collect();
        if servers.is_empty() {
            let interface = domain.interface;
            let announced = interface.and_then(|index| state.network.servers.get(&index));
            let now = state.now.boot;
            let valid = announced.into_iter().flatten();
            let valid = valid.filter(|(_, until)| **until > now);
            servers.extend(valid.map(|(server, _)| at(server)));
            let near = |server: &&SocketAddr| {
                let ip = server.ip();
                let scope = match server {
                    SocketAddr::V6(server) => server.scope_id(),
                    SocketAddr::V4(_) => 0,
                };
                domain.gateways.contains(&ip)
                    || domain.on_link().any(|(net, _)| net.contains(&ip))
                    || scope != 0 && interface.is_some_and(|index| index.0 == scope)
            };
            servers.extend(state.name_servers.iter().filter(near));
        }
        let mut seen = BTreeSet::new();
        servers.retain(|server| seen.insert(*server));
        servers
    }
}
