//! What a policy requires of a domain.

use std::time::Duration;

use crate::criteria::{Criteria, Margin};
use crate::domains::Domain;
use crate::health::Condition;
use crate::plan::Family;

/// Whether a domain is what is required. The domain in use may be worse by the margin in what is measured, so
/// that none comes and goes at the limit.
///
/// # Errors
/// It is not; why, as a sentence without a full stop.
pub(super) fn check(
    criteria: &Criteria,
    domain: &Domain,
    condition: Option<&Condition>,
    in_use: bool,
) -> Result<(), String> {
    let require = &criteria.require;
    let name = &domain.name;
    let measured = condition.map(Condition::measured);
    let slack = if in_use { criteria.margin } else { Margin(0) };
    let allowed = |limit: u128| limit * u128::from(100 + slack.0) / 100;
    if !require.kind.is_empty() && !require.kind.contains(&domain.kind) {
        return Err(format!("{name} is of another kind than required"));
    }
    if let Some(family) = require.family
        && !domain.has(family)
    {
        let family = match family {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        };
        return Err(format!("{name} has no {family} address with a route"));
    }
    if let Some(most) = require.max_cost
        && domain.cost > most
    {
        let cost = domain.cost;
        return Err(format!("{name} costs {cost}, more than {most}"));
    }
    match (require.metered, domain.metered) {
        (Some(false), true) => return Err(format!("{name} is metered")),
        (Some(true), false) => return Err(format!("{name} is not metered")),
        _ => {}
    }
    if let Some(least) = require.security
        && domain.security < least
    {
        let security = domain.security;
        return Err(format!("{name} is {security}, not {least}"));
    }
    if let Some(profile) = &require.profile
        && domain.profile.as_ref() != Some(profile)
    {
        return Err(match &domain.profile {
            Some(other) => format!("{name} has the profile {other}, not {profile}"),
            None => format!("{name} has no profile"),
        });
    }
    if let Some(least) = require.min_bandwidth {
        let bandwidth = condition.map_or(domain.bandwidth, |known| known.bandwidth(domain));
        match bandwidth {
            Some(bandwidth) if bandwidth < least => {
                return Err(format!(
                    "{name} carries {bandwidth} bit/s, less than {least}"
                ));
            }
            Some(_) => {}
            None => {
                return Err(format!(
                    "the bandwidth of {name} is not known: give it `bandwidth`, or use it"
                ));
            }
        }
    }
    if let Some(most) = require.max_latency {
        match measured.and_then(|measured| measured.latency()) {
            Some(rtt) if rtt.as_micros() > allowed(most.as_micros()) => {
                return Err(format!(
                    "the latency of {name} is {}, more than {}",
                    milliseconds(rtt),
                    milliseconds(most)
                ));
            }
            Some(_) => {}
            None => return Err(unmeasured("latency", domain)),
        }
    }
    if let Some(most) = require.max_loss {
        match measured.and_then(|measured| measured.loss()) {
            Some(loss) if u128::from(loss.0) > allowed(most.0.into()) => {
                return Err(format!("{name} loses {loss}, more than {most}"));
            }
            Some(_) => {}
            None => return Err(unmeasured("loss", domain)),
        }
    }
    Ok(())
}

fn unmeasured(what: &str, domain: &Domain) -> String {
    format!(
        "the {what} of {} is not known: no check has measured it yet",
        domain.name
    )
}

/// A time in milliseconds, for people.
pub(super) fn milliseconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1_000.0;
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}
