//! A host on a clock that is told, whose checks come out as the test says.

use std::time::Duration;

use steer_core::domains::DomainState;
use steer_core::engine::Engine;
use steer_core::health::{Counted, Now, Probed};
use steer_core::probe::{Outcome, Probe, Report};
use steer_core::select::Verdict;
use steer_core::state::Event;

use super::{engine_with, name};

/// A check that had no answer.
pub(crate) fn failed() -> Outcome {
    Outcome::Failed("no answer".to_owned())
}

/// An engine and its clock.
pub(crate) struct Host {
    pub(crate) engine: Engine,
    pub(crate) now: Duration,
}

impl Host {
    pub(crate) fn new(file: &str) -> Self {
        Self {
            engine: engine_with(file),
            now: Duration::ZERO,
        }
    }

    pub(crate) fn at(&mut self, now: Duration) {
        assert!(now >= self.now, "time goes on");
        self.now = now;
        let wall = 1_000_000 + now.as_secs();
        self.apply(Event::Now(Now { boot: now, wall }));
    }

    pub(crate) fn apply(&mut self, event: Event) {
        self.engine.apply(event).unwrap();
        self.engine.settle();
    }

    pub(crate) fn carrier(&mut self, index: u32, carrier: bool) {
        let event = super::carrier(&self.engine.state().network, index, carrier);
        self.apply(event);
    }

    pub(crate) fn probe(&self, domain: &str) -> Option<Probe> {
        let probes = self.engine.probes();
        probes
            .into_iter()
            .find(|probe| probe.domain.as_str() == domain)
    }

    /// The next check of a domain, when it is due, and what comes of it.
    pub(crate) fn check(&mut self, domain: &str, outcome: Outcome) {
        let probe = self.probe(domain).unwrap();
        self.at(probe.due.max(self.now));
        self.report(domain, probe.epoch, outcome);
    }

    pub(crate) fn report(&mut self, domain: &str, epoch: u64, outcome: Outcome) {
        self.report_of(domain, epoch, self.now, outcome);
    }

    pub(crate) fn report_of(
        &mut self,
        domain: &str,
        epoch: u64,
        began: Duration,
        outcome: Outcome,
    ) {
        let lost = u32::from(matches!(outcome, Outcome::Failed(_)));
        self.apply(Event::Probed(Probed {
            domain: name(domain),
            epoch,
            began,
            report: Report {
                rtt: (lost == 0).then_some(Duration::from_millis(10)),
                outcome,
                asked: 1,
                lost,
            },
            gateway: Some([2, 0, 0, 0, 0, 9]),
            counted: None,
        }));
    }

    /// A check that passed, with what it measured: `lost` of a hundred questions.
    pub(crate) fn measure(&mut self, domain: &str, epoch: u64, rtt: Duration, lost: u32) {
        self.apply(Event::Probed(Probed {
            domain: name(domain),
            epoch,
            began: self.now,
            report: Report {
                outcome: Outcome::Passed,
                rtt: Some(rtt),
                asked: 100,
                lost,
            },
            gateway: None,
            counted: None,
        }));
    }

    /// A check that passed, when so much had gone over the domain's interface.
    pub(crate) fn carried(&mut self, domain: &str, received: u64, sent: u64) {
        let epoch = self.probe(domain).unwrap().epoch;
        self.apply(Event::Probed(Probed {
            domain: name(domain),
            epoch,
            began: self.now,
            report: Report {
                outcome: Outcome::Passed,
                rtt: None,
                asked: 1,
                lost: 0,
            },
            gateway: None,
            counted: Some(Counted { received, sent }),
        }));
    }

    pub(crate) fn state(&self, domain: &str) -> DomainState {
        let domain = self.engine.domains().get(domain).unwrap();
        domain.state_with(self.engine.health())
    }

    pub(crate) fn chosen(&self) -> String {
        let decision = self.engine.decision("default").unwrap();
        match decision.verdict {
            Verdict::Steer(domain) => domain.to_string(),
            Verdict::Block | Verdict::Pass => "none".to_owned(),
        }
    }
}
