//! Sentences that many scenarios say.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cgroup::LabCgroup;
use crate::lab::Lab;
use crate::packet::Direction;
use crate::probe::{Family, Kind, Probe, Session};
use crate::report::{ECHO_PORT, Report};
use crate::wait;

impl Lab {
    /// All policies, as root sees them.
    ///
    /// # Errors
    /// If the agent does not tell.
    pub fn policies(&self) -> Result<Vec<Value>> {
        let list = self.steer(&["policy", "list", "--json"])?.json()?;
        let policies = list.as_array().cloned();
        policies.with_context(|| format!("no list of policies: {list}"))
    }

    /// Waits until no policy is left, and no cgroup below `cgroup`.
    ///
    /// # Errors
    /// If some are at the deadline.
    pub fn nothing_left(&self, cgroup: &LabCgroup) -> Result<()> {
        wait::until("policies and places to be gone", || {
            Ok((self.policies()?.is_empty() && cgroup.descendants()?.is_empty()).then_some(()))
        })
    }

    /// Connects a probe that runs already to a fresh IPv4 target, sends, and asserts that it left by `uplink`
    /// alone.
    ///
    /// # Errors
    /// If it failed, or left by another uplink.
    pub fn connects_by(&self, session: &mut Session, uplink: &str) -> Result<()> {
        let target = Family::V4.target(self);
        session.succeed(&format!("connect {}", SocketAddr::new(target, ECHO_PORT)))?;
        session.succeed("send token")?;
        self.assert_only_by(uplink, target).map(drop)
    }

    /// A complete flow from `cgroup`: it succeeds, and all of it leaves by `uplink` with its address.
    ///
    /// # Errors
    /// If not, with what was captured.
    pub fn flow_leaves_by(
        &self,
        cgroup: &LabCgroup,
        uplink: &str,
        kind: Kind,
        family: Family,
    ) -> Result<Report> {
        let flow = || {
            let target = family.target(self);
            let report = Probe::flow(kind, family, target).succeed(self, cgroup)?;
            if kind.is_answered_by_server() {
                ensure!(
                    report.uplink.as_deref() == Some(uplink),
                    "another answered: {report:?}"
                );
            }
            self.assert_only_by(uplink, target)?;
            Ok(report)
        };
        flow().with_context(|| format!("{kind:?} {family:?} should leave by {uplink}"))
    }

    /// [`Lab::flow_leaves_by`] for every kind and family.
    ///
    /// # Errors
    /// If one does not, with what was captured.
    pub fn matrix_leaves_by(&self, cgroup: &LabCgroup, uplink: &str) -> Result<()> {
        for (kind, family) in matrix() {
            self.flow_leaves_by(cgroup, uplink, kind, family)?;
        }
        Ok(())
    }

    /// A flow of every kind and family from `cgroup` is refused, and nothing of it is sent. Where
    /// `errno_name` is given it is what the program sees.
    ///
    /// # Errors
    /// If one is not, with its reports or what was captured.
    pub fn matrix_is_refused(&self, cgroup: &LabCgroup, errno_name: Option<&str>) -> Result<()> {
        for (kind, family) in matrix() {
            let target = family.target(self);
            // A flow that is dropped instead of refused is not waited for long.
            let reports = Probe::flow(kind, family, target)
                .first("set timeout=300")
                .run(self, cgroup)?;
            let refused = reports.iter().find(|report| !report.ok);
            ensure!(
                refused.is_some_and(|r| errno_name.is_none_or(|name| r.errno_name == name)),
                "{kind:?} {family:?} should be refused with {errno_name:?}: {reports:?}"
            );
            self.assert_silent(target)
                .with_context(|| format!("{kind:?} {family:?}"))?;
        }
        Ok(())
    }

    /// Waits until the decision of `policy` has `wanted` under `key` (`domain`, `verdict`, ..).
    ///
    /// # Errors
    /// If it has not in time.
    pub fn wait_decision(&self, policy: &str, key: &str, wanted: &str) -> Result<()> {
        wait::until(&format!("policy {policy} to have {key} {wanted}"), || {
            let shown = self.steer(&["policy", "show", policy, "--json"])?.json()?;
            let value = shown
                .get("decision")
                .and_then(|d| d.get(key))
                .and_then(Value::as_str);
            Ok((value == Some(wanted)).then_some(()))
        })
    }

    /// Asserts that IP packets about `target` crossed no uplink but `uplink`, where there may be some, and
    /// that those the host sent bore one of its addresses. (An ARP request is the kernel's own, without a
    /// socket; it precedes a packet that a guard then drops.)
    ///
    /// # Errors
    /// If one did, with it.
    pub fn assert_at_most_by(&self, uplink: &str, target: IpAddr) -> Result<()> {
        self.drain()?;
        let own = self.uplink(uplink)?.addresses();
        let strays = self.capture().packets(|p| {
            let foreign = |source| !is_link_scoped(source) && !own.contains(&source);
            p.is_about(target)
                && p.is_ip()
                && p.target.is_none()
                && (p.uplink != uplink
                    || p.direction == Direction::FromHost && p.source.is_some_and(foreign))
        });
        let list: Vec<_> = strays.iter().map(ToString::to_string).collect();
        ensure!(
            strays.is_empty(),
            "only {uplink} may see {target}, with its own addresses:\n{}",
            list.join("\n")
        );
        Ok(())
    }

    /// Asserts that every IP packet that the host sent about anything since `position` bears an
    /// address of the uplink it left by. Link-local sources, which every interface may use for neighbour
    /// discovery and the like, are left out, and so is the unspecified address.
    ///
    /// # Errors
    /// If one does not.
    pub fn assert_sources_match(&self, position: usize) -> Result<()> {
        self.drain()?;
        for name in self.uplink_names() {
            let own = self.uplink(name)?.addresses();
            let strays = self.capture().since(position, |p| {
                p.uplink == name
                    && p.direction == Direction::FromHost
                    && p.is_ip()
                    && p.source
                        .is_some_and(|source| !is_link_scoped(source) && !own.contains(&source))
            });
            let list: Vec<_> = strays.iter().map(ToString::to_string).collect();
            ensure!(
                strays.is_empty(),
                "foreign sources left by {name}:\n{}",
                list.join("\n")
            );
        }
        Ok(())
    }
}

fn is_link_scoped(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

/// Every kind with every family that suits it.
pub fn matrix() -> impl Iterator<Item = (Kind, Family)> {
    Kind::ALL.into_iter().flat_map(|kind| {
        Family::ALL
            .into_iter()
            .filter(move |family| family.suits(kind))
            .map(move |f| (kind, f))
    })
}
