//! How one domain is.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::history::{History, NetworkId, Record};
use super::measured::Measured;
use super::{Counted, Grade, Now};
use crate::criteria::Bandwidth;
use crate::domains::{Domain, DomainState};
use crate::ids::IfIndex;
use crate::name::Name;
use crate::probe::{Check, Outcome, Report};

/// Losses are remembered for this long.
const WINDOW: Duration = Duration::from_secs(600);

/// Most losses that are remembered.
const MOST_LOSSES: usize = 32;

/// Longest pause between checks of a domain that fails them.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Longest pause that anything is waited for: `interval` and `attach-timeout` are an hour at most, and an
/// eighth is added.
const LONGEST_WAIT: Duration = Duration::from_secs(2 * 3600);

/// Time between checks that somebody asks for.
const RECHECK_PAUSE: Duration = Duration::from_secs(1);

/// What its checks say of a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Nothing: it is not checked, or not yet.
    #[default]
    Unknown,
    /// It leads where it should.
    Validated,
    /// A portal answers in place of others; the address of its page, if it said one.
    Portal(Option<String>),
    /// It does not lead there; why, as a sentence without a full stop.
    Limited(String),
}

/// What a verdict is about: with another attachment it is out of date.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Attachment {
    up: bool,
    /// What is asked: a verdict is about that, too.
    asked: Asked,
    interface: Option<IfIndex>,
    gateways: Vec<IpAddr>,
    source4: Option<Ipv4Addr>,
    source6: Option<Ipv6Addr>,
}

/// What a check asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Asked(Vec<String>);

impl Asked {
    fn of(check: &Check) -> Self {
        let mut asked = check.targets();
        asked.push(format!("{:?} {}", check.expect, check.implied));
        Self(asked)
    }
}

/// How one domain is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Condition {
    link: Option<DomainState>,
    /// Since when `link` is what it is.
    link_since: Duration,
    attachment: Attachment,
    epoch: u64,
    standing: Standing,
    /// Since when it is in its state.
    since: Duration,
    /// Its check has passed since it is attached.
    proven: bool,
    passed: u32,
    failed: u32,
    /// When it is to be checked next.
    next: Duration,
    pause: Duration,
    checks: u64,
    /// When the last check ended.
    checked_at: Option<Duration>,
    /// When the first check of this attachment ended.
    first_checked: Option<Duration>,
    /// When it was asked that it be checked at once: what a check says that began before is not all.
    asked_at: Option<Duration>,
    measured: Measured,
    /// When it was lost, not long ago.
    losses: VecDeque<Duration>,
    /// From when on it counts as settled.
    settled_at: Duration,
    /// It took too long to become usable.
    timed_out: bool,
    /// Attempts to become usable that took too long, since it was well last.
    attempts: u32,
    network: Option<NetworkId>,
    /// The same, where it bears a name: that is known before anything is asked.
    named: Option<NetworkId>,
    /// What was known of the network when it was attached.
    before: Record,
}

/// How long a domain must have been there before it counts as settled, after so many losses in the last ten
/// minutes: the first two cost nothing, then it is 1, 2, 4 seconds and so on up to a minute.
pub fn hold(losses: usize) -> Duration {
    let doublings = u32::try_from(losses.saturating_sub(3)).unwrap_or(u32::MAX);
    match losses {
        0..=2 => Duration::ZERO,
        _ => Duration::from_secs(1_u64.checked_shl(doublings.min(6)).unwrap_or(60).min(60)),
    }
}

impl Condition {
    /// What its checks say.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Since when it is in its state, since boot.
    pub fn since(&self) -> Duration {
        self.since
    }

    /// Which attachment what is known is about.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Its check has passed since it is attached.
    pub fn proven(&self) -> bool {
        self.proven
    }

    /// When it is to be checked next.
    pub fn next(&self) -> Duration {
        self.next
    }

    /// What it carries: what the files say, or what it was seen to carry, if that is more.
    pub fn bandwidth(&self, domain: &Domain) -> Option<Bandwidth> {
        domain.bandwidth.max(self.measured.bandwidth())
    }

    /// What was measured of it.
    pub fn measured(&self) -> &Measured {
        &self.measured
    }

    /// How often it was lost in the last ten minutes.
    pub fn losses(&self) -> usize {
        self.losses.len()
    }

    /// The network that it is attached to, once that is known.
    pub fn network(&self) -> Option<&NetworkId> {
        self.network.as_ref()
    }

    /// Its network bears a name.
    pub(super) fn is_named(&self) -> bool {
        self.named.is_some()
    }

    /// What was known of its network when it was attached.
    pub fn before(&self) -> &Record {
        &self.before
    }

    /// It took longer than `attach-timeout` to become usable, and is not yet.
    pub fn timed_out(&self) -> bool {
        self.timed_out
    }

    /// What matters to every choice that has it among its candidates.
    pub(super) fn standing_for_all(&self) -> impl PartialEq + use<> {
        (
            std::mem::discriminant(&self.standing),
            (self.proven, self.attempts, self.before),
            (self.losses.len(), self.settled_at, self.fails_again()),
        )
    }

    /// The address of the portal's page.
    pub fn portal(&self) -> Option<&str> {
        match &self.standing {
            Standing::Portal(page) => page.as_deref(),
            _ => None,
        }
    }

    /// How good it is. The domain that is in use counts as settled and proven: what is not known yet is no
    /// reason to leave it, unless it fails where it failed last time.
    pub fn grade(&self, check: &Check, in_use: bool, now: Duration) -> Grade {
        match self.standing {
            Standing::Portal(_) => Grade::Portal,
            Standing::Limited(_) => Grade::Limited,
            _ if in_use && !self.fails_again() => Grade::Well,
            Standing::Unknown if self.is_unproven(check) => Grade::Unproven,
            _ if now < self.settled_at => Grade::Settling,
            _ => Grade::Well,
        }
    }

    /// It fails where it failed last time.
    fn fails_again(&self) -> bool {
        self.before.failed() && self.failed > 0
    }

    fn is_unproven(&self, check: &Check) -> bool {
        check.asks()
            && (!check.implied || !self.proven && (self.attempts > 0 || self.before.failed()))
    }

    /// Why it is in its state, where that is not what its interface says.
    pub(super) fn reason(&self, name: &Name) -> Option<String> {
        match &self.standing {
            Standing::Unknown => None,
            Standing::Validated => Some(format!("{name} passes its check")),
            Standing::Portal(None) => Some(format!(
                "a portal answers on {name}: log in with `steer domain login {name}`"
            )),
            Standing::Portal(Some(page)) => Some(format!(
                "a portal answers on {name} ({page}): log in with `steer domain login {name}`"
            )),
            Standing::Limited(why) => Some(why.clone()),
        }
    }

    /// Whether all times in it are such that they were known at `now`, or are waited for since.
    pub(super) fn is_until(&self, now: Duration) -> bool {
        let past = [self.link_since, self.since].into_iter();
        let mut past = past
            .chain(self.checked_at)
            .chain(self.first_checked)
            .chain(self.asked_at)
            .chain(self.losses.iter().copied());
        let mut waited_for = [self.next, self.settled_at].into_iter();
        let soon = now.saturating_add(LONGEST_WAIT);
        past.all(|at| at <= now)
            && waited_for.all(|at| at <= soon)
            && self.pause <= LONGEST_WAIT
            && self.losses.len() <= MOST_LOSSES
            && self.measured.is_sane()
    }

    /// Takes in what the kernel says of the domain; returns whether that is different.
    pub(super) fn observe(
        &mut self,
        domain: &Domain,
        check: &Check,
        history: &History,
        now: Duration,
    ) -> bool {
        let attachment = Attachment {
            up: domain.state == DomainState::Up,
            asked: Asked::of(check),
            interface: domain.interface,
            gateways: domain.gateways.clone(),
            source4: domain.sources4.first().copied(),
            source6: domain.sources6.first().copied(),
        };
        let named = NetworkId::named(domain);
        let other = named.is_some() && self.named.is_some() && named != self.named;
        let new = self.link.is_none();
        let mut changed = self.link != Some(domain.state);
        if changed {
            self.link = Some(domain.state);
            self.link_since = now;
            self.since = now;
            self.timed_out = false;
        }
        if attachment == self.attachment && !new && !other {
            if let (Some(name), None) = (named, &self.named) {
                self.named = Some(name.clone());
                self.attached_to(name, history);
                changed = true;
            }
            return changed;
        }
        // What is not known is no other network, as long as it stays attached.
        let stays = self.attachment.up && attachment.up;
        self.named = named.or(self.named.take().filter(|_| stays));
        changed = true;
        self.forget_old_losses(now);
        match (self.attachment.up, attachment.up) {
            (true, false) => self.lost(now),
            (false, true) => self.settle_from(now),
            _ => {}
        }
        self.attachment = attachment;
        self.epoch += 1;
        self.set(Standing::Unknown, now);
        self.proven = false;
        self.passed = 0;
        self.failed = 0;
        self.next = now;
        self.pause = check.interval;
        self.first_checked = None;
        self.asked_at = None;
        self.timed_out &= !self.attachment.up;
        self.measured = Measured::default();
        self.network = None;
        self.before = Record::default();
        if let Some(name) = self.named.clone() {
            self.attached_to(name, history);
        }
        changed
    }

    /// It is known now which network it is attached to.
    pub(super) fn attached_to(&mut self, network: NetworkId, history: &History) {
        if self.network.as_ref() != Some(&network) {
            self.before = history.get(&network).copied().unwrap_or_default();
            self.network = Some(network);
        }
    }

    /// Takes in what went over its interface.
    pub(super) fn count(&mut self, counted: Counted, now: Duration) {
        self.measured.count(counted, now);
    }

    /// Takes in what came of a check.
    pub(super) fn report(
        &mut self,
        name: &Name,
        check: &Check,
        report: &Report,
        began: Duration,
        history: &mut History,
        now: Now,
    ) {
        let silent = matches!(report.outcome, Outcome::Failed(_)) && check.implied && !self.proven;
        if !silent {
            self.measured.note(report);
        }
        self.checks += 1;
        self.checked_at = Some(now.boot);
        self.first_checked.get_or_insert(now.boot);
        let suspected =
            self.asked_at.take_if(|at| *at <= began).is_none() && self.asked_at.is_some();
        let before = self.failed;
        let wait = match &report.outcome {
            Outcome::Passed => self.passed(check, history, now),
            Outcome::Portal(page) => self.portal_found(page.clone(), check, now.boot),
            Outcome::Failed(why) => self.failed(why, check, history, now),
        };
        self.next = now.boot + self.spread(name, wait);
        if suspected {
            // It began before it was asked for: another one follows, and what is suspected stays so until then.
            self.failed = self.failed.max(before);
            self.next = self.next.min(now.boot + RECHECK_PAUSE);
        }
    }

    fn passed(&mut self, check: &Check, history: &mut History, now: Now) -> Duration {
        self.failed = 0;
        self.passed = self.passed.saturating_add(1);
        let known = matches!(self.standing, Standing::Unknown | Standing::Validated);
        if known || self.passed >= check.rise {
            if !known {
                // It is back: from now on it has to stay.
                self.forget_old_losses(now.boot);
                self.settle_from(now.boot);
            }
            self.proven = true;
            self.attempts = 0;
            let standing = if check.implied {
                Standing::Unknown
            } else {
                Standing::Validated
            };
            self.set(standing, now.boot);
            if let Some(network) = &self.network {
                history.good(network, now.wall);
            }
        }
        self.pause = check.interval;
        check.interval
    }

    fn portal_found(&mut self, page: Option<String>, check: &Check, now: Duration) -> Duration {
        self.passed = 0;
        self.failed = 0;
        if self.standing == Standing::Validated {
            self.lost(now);
        }
        self.set(Standing::Portal(page), now);
        self.pause = check.interval;
        check.interval
    }

    fn failed(&mut self, why: &str, check: &Check, history: &mut History, now: Now) -> Duration {
        self.passed = 0;
        self.failed = self.failed.saturating_add(1);
        if check.implied && !self.proven {
            // Who never answered may be one who does not.
            self.attempts = 0;
            return check.interval;
        }
        if let Standing::Limited(_) = self.standing {
            self.set(Standing::Limited(why.to_owned()), now.boot);
            let longest = LONGEST_PAUSE.max(check.interval);
            self.pause = (self.pause * 2).clamp(check.interval, longest);
            return self.pause;
        }
        if self.failed >= check.fall {
            self.give_up(why.to_owned(), history, now);
            return self.pause;
        }
        check.repeat()
    }

    fn give_up(&mut self, why: String, history: &mut History, now: Now) {
        self.lost(now.boot);
        self.set(Standing::Limited(why), now.boot);
        if let Some(network) = &self.network {
            history.failed(network, now.wall);
        }
    }

    /// None of its packets come back.
    pub(super) fn stalled(&mut self, check: &Check, now: Duration) {
        let well = matches!(self.standing, Standing::Unknown | Standing::Validated);
        let says = check.asks() && (self.proven || !check.implied);
        // Anybody may send to where nothing answers: a check that just passed says more.
        let recent = self.failed == 0
            && self
                .checked_at
                .is_some_and(|at| now < at + check.interval / 4);
        if well && says && self.attachment.up && !recent {
            self.failed = self.failed.max(check.fall.saturating_sub(1));
            self.next = self.next.min(now);
            self.asked_at = Some(now);
        }
    }

    /// It is to be checked at once; not more often than every second, whoever asks.
    pub(super) fn recheck(&mut self, check: &Check, now: Duration) {
        let earliest = match self.checked_at {
            Some(at) => now.max(at + RECHECK_PAUSE),
            None => now,
        };
        self.next = self.next.min(earliest);
        self.pause = check.interval;
        self.asked_at = Some(now);
    }

    /// Takes in that time has passed; returns whether the domain is different by it.
    pub(super) fn tick(
        &mut self,
        check: &Check,
        timeout: Duration,
        history: &mut History,
        now: Now,
    ) -> bool {
        let losses = self.losses.len();
        self.forget_old_losses(now.boot);
        let mut changed = losses != self.losses.len();
        if self.settled_at != Duration::ZERO && now.boot >= self.settled_at {
            self.settled_at = Duration::ZERO;
            changed = true;
        }
        let since = self.awaited_since(check);
        if since.is_some_and(|since| now.boot >= since.saturating_add(timeout)) {
            self.timed_out = true;
            self.attempts = self.attempts.saturating_add(1);
            if self.link == Some(DomainState::Up) {
                let seconds = timeout.as_secs_f32();
                let why = format!("its check did not pass within {seconds} s (`attach-timeout`)");
                self.give_up(why, history, now);
            } else if let Some(network) = &self.network {
                history.failed(network, now.wall);
            }
            changed = true;
        }
        changed
    }

    /// Since when it is on its way to become usable: it has carrier, or is checked.
    fn awaited_since(&self, check: &Check) -> Option<Duration> {
        match self.link {
            _ if self.timed_out => None,
            Some(DomainState::Configuring) => Some(self.link_since),
            Some(DomainState::Up) if self.standing == Standing::Unknown && !check.implied => {
                self.first_checked.filter(|_| check.asks())
            }
            _ => None,
        }
    }

    /// When [`Condition::tick`] finds something next.
    pub(super) fn deadline(&self, timeout: Duration, check: &Check) -> Option<Duration> {
        let settled = (self.settled_at != Duration::ZERO).then_some(self.settled_at);
        let attached = self.awaited_since(check);
        let attached = attached.map(|since| since.saturating_add(timeout));
        let forgotten = self.losses.front().map(|lost| *lost + WINDOW);
        [settled, attached, forgotten].into_iter().flatten().min()
    }

    fn set(&mut self, standing: Standing, now: Duration) {
        let same = std::mem::discriminant(&standing) == std::mem::discriminant(&self.standing);
        if !same {
            self.since = now;
        }
        self.standing = standing;
    }

    fn lost(&mut self, now: Duration) {
        if self.losses.len() == MOST_LOSSES {
            self.losses.pop_front();
        }
        self.losses.push_back(now);
        self.settle_from(now);
    }

    fn settle_from(&mut self, now: Duration) {
        self.settled_at = match hold(self.losses.len()) {
            Duration::ZERO => Duration::ZERO,
            hold => now + hold,
        };
    }

    fn forget_old_losses(&mut self, now: Duration) {
        while self
            .losses
            .front()
            .is_some_and(|lost| *lost + WINDOW <= now)
        {
            self.losses.pop_front();
        }
    }

    /// A time up to an eighth longer or shorter, so that checks of many domains and hosts do not coincide.
    fn spread(&self, name: &Name, wait: Duration) -> Duration {
        let mut hasher = DefaultHasher::new();
        (name, self.checks).hash(&mut hasher);
        let sixteenths = u32::try_from(hasher.finish() % 5).unwrap_or(0);
        wait * (14 + sixteenths) / 16
    }
}
