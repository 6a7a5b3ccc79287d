//! What the API shows of domains.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use steer_core::config::HostModel;
use steer_core::domains::{Domain, DomainOrigin};
use steer_core::health::{Condition, Measured, Record, Standing, check_of};
use steer_core::ids::{DomainIndex, IfIndex};
use steer_core::network::LinkKind;
use steer_core::plan::host;

use super::decided::timestamp;
use super::{Daemon, clock, sysfs};
use crate::api::types::{DomainView, HostModelView, MeasuredView, NetworkView, Origin};

impl Daemon {
    pub(super) fn domain_view(&self, domain: &Domain) -> DomainView {
        let state = self.engine.state();
        let index = state.memory.indices.get(&domain.name).copied();
        let agent = &state.config.agent;
        let mark = index.and_then(|DomainIndex(index)| agent.mark_mask.encode(index));
        let health = self.engine.health();
        let condition = health.get(&domain.name);
        let network = condition.and_then(Condition::network);
        DomainView {
            name: domain.name.to_string(),
            alias: domain.alias.as_ref().map(ToString::to_string),
            origin: match domain.origin {
                DomainOrigin::File => Origin::Admin,
                DomainOrigin::Discovered => Origin::Default,
            },
            interface: domain.ifname.clone(),
            ifindex: domain.interface.map(|IfIndex(index)| index),
            kind: domain.kind.to_string(),
            cost: domain.cost,
            metered: domain.metered,
            security: domain.security.to_string(),
            bandwidth: domain.bandwidth.map(|bits| bits.0),
            profile: domain.profile.as_ref().map(ToString::to_string),
            state: domain.state_with(health).to_string(),
            reason: domain.reason_with(health),
            since: condition.map(|condition| timestamp(clock::wall(condition.since()))),
            portal: condition.and_then(|condition| self.portal(domain, condition)),
            check: check_of(&state.config, domain).targets(),
            measured: self.measured(domain, condition),
            ssid: domain.wlan.as_ref().map(|wlan| wlan.ssid.to_string()),
            connection: domain.connection.as_ref().map(ToString::to_string),
            network: network.map(ToString::to_string),
            history: network
                .and_then(|network| state.history.get(network))
                .map(remembered),
            servers: self
                .engine
                .servers_of(domain)
                .iter()
                .map(|server| server.ip().to_string())
                .collect(),
            addresses: domain
                .addresses
                .iter()
                .map(|a| format!("{}/{}", a.ip, a.prefix_len))
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            gateways: domain.gateways.iter().map(ToString::to_string).collect(),
            index: index.map(|DomainIndex(index)| u32::from(index)),
            mark: mark.map(|mark| format!("{mark:#010x}")),
            table: index.map(|DomainIndex(index)| agent.table_base + u32::from(index)),
            traffic: None,
            host_model: domain
                .interface
                .map(|interface| self.host_model_view(interface)),
        }
    }

    /// Where to log in at a domain: what its portal said, else what it answered in place of.
    fn portal(&self, domain: &Domain, condition: &Condition) -> Option<String> {
        let Standing::Portal(page) = condition.standing() else {
            return None;
        };
        let check = check_of(&self.engine.state().config, domain);
        let asked = || check.http.first().map(ToString::to_string);
        page.clone().or_else(asked)
    }

    /// [`Daemon::domain_view`] with what the kernel is to be asked for.
    pub(super) fn full_domain_view(&self, domain: &Domain) -> DomainView {
        let mut view = self.domain_view(domain);
        if let (LinkKind::Wired, Some(name)) = (domain.kind, &domain.ifname) {
            view.measured.link_rate = sysfs::speed(Path::new(sysfs::INTERFACES), name);
        }
        view
    }

    fn measured(&self, domain: &Domain, condition: Option<&Condition>) -> MeasuredView {
        let network = &self.engine.state().network;
        let name = domain.ifname.as_deref().unwrap_or_default();
        let station = network.stations.get(name);
        let modem = network.managed.get(name);
        let measured = condition.map(Condition::measured);
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        MeasuredView {
            latency_us: measured.and_then(Measured::latency).map(micros),
            jitter_us: measured.and_then(Measured::jitter).map(micros),
            loss_permille: measured
                .and_then(Measured::loss)
                .map(|loss| u64::from(loss.0)),
            bandwidth: measured.and_then(Measured::bandwidth).map(|bits| bits.0),
            link_rate: station.and_then(|station| station.bitrate),
            signal_dbm: station.and_then(|station| station.signal).map(i64::from),
            signal_percent: modem.and_then(|modem| modem.signal).map(u64::from),
            losses: condition.map_or(0, |condition| {
                u64::try_from(condition.losses()).unwrap_or(u64::MAX)
            }),
        }
    }

    fn host_model_view(&self, interface: IfIndex) -> HostModelView {
        let config = &self.engine.state().config;
        let model = host::model_of(config, self.engine.domains(), interface);
        let counts = self.reconciler.host_counts(interface);
        HostModelView {
            model: match model {
                HostModel::Kernel => "kernel",
                HostModel::Weak => "weak",
                HostModel::Strong => "strong",
                HostModel::Count => "count",
            }
            .to_owned(),
            received: counts.received,
            asked: counts.asked,
            sent: counts.sent,
        }
    }

    pub(super) fn domain_views(&self) -> Vec<DomainView> {
        let domains = self.engine.domains().iter();
        domains.map(|domain| self.domain_view(domain)).collect()
    }
}

fn remembered(record: &Record) -> NetworkView {
    let time = |seconds: u64| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
    NetworkView {
        first_good: record.first_good.map(time),
        last_good: record.last_good.map(time),
        failures: record.failures.into(),
    }
}
