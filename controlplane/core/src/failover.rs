//! When a region or a runtime is left, and what becomes of its sessions (F-096, F-111..F-113).

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use rspp_proto::{Monotonic, Region, RuntimeId, SessionId};
use serde::{Deserialize, Serialize};

use crate::{
    authority::{Holder, Placement, Revoke, Standing, WhyRevoked},
    fleet::{Duty, Presence, Sight},
    retention::Vigil,
};

/// What becomes of the sessions of a place that is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailoverMode {
    /// They end where they are; only new ones go elsewhere.
    #[default]
    Drain,
    /// They move, each with its id.
    Migrate,
}

impl FailoverMode {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Migrate => "migrate",
        }
    }
}

/// What is wanted of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionDuty {
    /// It serves.
    Serving,
    /// It takes nothing new.
    Leaving(FailoverMode),
}

impl RegionDuty {
    /// Whether new sessions may go there.
    pub fn takes_new(self) -> bool {
        match self {
            Self::Serving => true,
            Self::Leaving(_) => false,
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Leaving(FailoverMode::Drain) => "draining",
            Self::Leaving(FailoverMode::Migrate) => "migrating",
        }
    }
}

/// When a region counts as ill, and what is done then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegionPolicy {
    /// Share of the runtimes expected there that are dead, suspect or not ready from which on it is ill, in
    /// percent.
    pub ill_percent: u8,
    /// Share below which it is well again: less, so that it does not flap.
    pub well_percent: u8,
    /// Runtimes that have to be expected there for a share to say anything.
    pub min_runtimes: u32,
    /// What becomes of its sessions.
    pub mode: FailoverMode,
    /// For how long it has to be ill without a break before it is left. Single runtimes that fall ill get no new
    /// sessions at once, so that this may take its time. Like the two that follow it is only written once somebody
    /// has decided it: builds that do not know it yet read all other rules meanwhile.
    #[serde(skip_serializing_if = "is_default_ill_after")]
    pub ill_after_seconds: u32,
    /// For how long it has to be well without a break before it serves again.
    #[serde(skip_serializing_if = "is_default_well_after")]
    pub well_after_seconds: u32,
    /// For how long a dead runtime is still expected back; then it is gone, and no longer part of any share.
    #[serde(skip_serializing_if = "is_default_gone_after")]
    pub gone_after_seconds: u32,
}

/// Longer than a store that elects a leader or waits for a disk takes to let runtimes renew again.
const ILL_AFTER_SECONDS: u32 = 10;
const WELL_AFTER_SECONDS: u32 = 30;
/// Longer than a process takes to be started anew.
const GONE_AFTER_SECONDS: u32 = 60;
/// Longest that any of the three may be.
const MAX_SECONDS: u32 = 24 * 60 * 60;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
fn is_default_ill_after(seconds: &u32) -> bool {
    *seconds == ILL_AFTER_SECONDS
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
fn is_default_well_after(seconds: &u32) -> bool {
    *seconds == WELL_AFTER_SECONDS
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
fn is_default_gone_after(seconds: &u32) -> bool {
    *seconds == GONE_AFTER_SECONDS
}

impl Default for RegionPolicy {
    fn default() -> Self {
        Self {
            ill_percent: 60,
            well_percent: 25,
            min_runtimes: 2,
            mode: FailoverMode::Drain,
            ill_after_seconds: ILL_AFTER_SECONDS,
            well_after_seconds: WELL_AFTER_SECONDS,
            gone_after_seconds: GONE_AFTER_SECONDS,
        }
    }
}

impl RegionPolicy {
    /// Refuses what cannot be meant: where, and why.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if !(1..=100).contains(&self.ill_percent) {
            let what = format!("{} is no share from 1 to 100 %", self.ill_percent);
            return Err(("regions.ill_percent", what));
        }
        if self.well_percent >= self.ill_percent {
            let what = format!(
                "{} is not below ill_percent, {}: regions would flap",
                self.well_percent, self.ill_percent
            );
            return Err(("regions.well_percent", what));
        }
        for (rule, seconds) in [
            ("regions.ill_after_seconds", self.ill_after_seconds),
            ("regions.well_after_seconds", self.well_after_seconds),
            ("regions.gone_after_seconds", self.gone_after_seconds),
        ] {
            if seconds > MAX_SECONDS {
                return Err((rule, format!("{seconds} s is more than a day")));
            }
        }
        if self.gone_after_seconds <= self.ill_after_seconds {
            let what = format!(
                "{} is not above ill_after_seconds, {}: a region that dies would be forgotten before it is left",
                self.gone_after_seconds, self.ill_after_seconds
            );
            return Err(("regions.gone_after_seconds", what));
        }
        Ok(())
    }
}

/// What is wanted of regions, by whom it was decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Duties {
    /// By their health; absent is serving.
    pub judged: BTreeMap<Region, RegionDuty>,
    /// By operators; their health does not matter.
    pub decided: BTreeMap<Region, RegionDuty>,
}

impl Duties {
    fn of(&self, region: &Region) -> RegionDuty {
        let duty = self.decided.get(region).or(self.judged.get(region));
        duty.copied().unwrap_or(RegionDuty::Serving)
    }
}

/// When regions are looked at, and how well they can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// When, on the looker's clock.
    pub at: Monotonic,
    /// How old what is shown of the fleet is.
    pub age: Duration,
    /// How long the store waits for a renewal.
    pub lease: Duration,
}

/// What whoever judges regions remembers of them. Another one begins to count anew.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    looked: Option<Monotonic>,
    deaf_until: Monotonic,
    dead: Vigil<Holder>,
    ill: Since,
    well: Since,
}

/// Since when something has been so of a region without a break.
#[derive(Clone, Debug, Default)]
struct Since(BTreeMap<Region, Monotonic>);

impl Since {
    /// For how long it has been so; `None` if it is not.
    fn is(&mut self, region: &Region, is_so: bool, now: Monotonic) -> Option<Duration> {
        if !is_so {
            self.0.remove(region);
            return None;
        }
        let since = *self.0.entry(region.clone()).or_insert(now);
        Some(now.since(since))
    }
}

impl Watch {
    /// Whether nobody may be judged by their silence yet. Who was asleep, or cut off from the store, has heard
    /// nobody, and nobody could renew with it: a lease's term later those who live have. When nobody at all is
    /// heard it is more likely to be us as well.
    fn is_deaf(&mut self, look: Look, hears_any: bool) -> bool {
        let slept = self.looked.is_none_or(|last| {
            // Those who renew do so twice in that time.
            look.at.since(last) > look.lease / 2
        });
        self.looked = Some(look.at);
        if slept || look.age > look.lease / 2 || !hears_any {
            self.deaf_until = look.at + look.lease;
        }
        look.at < self.deaf_until
    }
}

/// How the runtimes of a region fare.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    /// Those that should serve.
    expected: u32,
    /// Those of them that do not.
    ill: u32,
    /// Those that can take a new session on.
    takers: u32,
}

impl Count {
    fn ill_percent(self) -> u32 {
        (self.ill * 100).checked_div(self.expected).unwrap_or(0)
    }
}

/// Who left in order, is being emptied, or has been dead for too long to be expected back says nothing of a
/// region's health.
fn counts<'a>(
    fleet: impl IntoIterator<Item = &'a Sight>,
    dead: &mut Vigil<Holder>,
    policy: &RegionPolicy,
    now: Monotonic,
) -> BTreeMap<Region, Count> {
    let gone_after = Duration::from_secs(u64::from(policy.gone_after_seconds));
    let mut counts = BTreeMap::<Region, Count>::new();
    for sight in fleet {
        let runtime = &sight.runtime;
        let is_expected = match sight.presence {
            Presence::Alive | Presence::Suspect => true,
            Presence::Dead => dead.saw(runtime.holder.clone(), now) < gone_after,
            Presence::Left => false,
        };
        if !is_expected || runtime.duty == Duty::Draining {
            continue;
        }
        let count = counts.entry(runtime.description.region.clone());
        let count = count.or_default();
        let takes = sight.presence == Presence::Alive && sight.load.ready;
        count.expected += 1;
        count.ill += u32::from(!takes);
        count.takers += u32::from(takes);
    }
    dead.passed();
    counts
}

/// What should be wanted of each region now, of those about which no operator decided.
///
/// As long as anybody anywhere can take a session on, somebody does: the last such region is not left for its
/// health, and one that was left is taken back at once when there is no other any more. Ill is better than nowhere.
pub fn judge_regions<'a>(
    fleet: impl IntoIterator<Item = &'a Sight> + Clone,
    before: &Duties,
    watch: &mut Watch,
    policy: &RegionPolicy,
    look: Look,
) -> BTreeMap<Region, RegionDuty> {
    let mut sights = fleet.clone().into_iter();
    let hears_any = sights.any(|it| it.presence == Presence::Alive);
    let deaf = watch.is_deaf(look, hears_any);
    let counts = counts(fleet, &mut watch.dead, policy, look.at);
    let count_of = |region: &Region| counts.get(region).copied().unwrap_or_default();
    let of_seconds = |seconds| Duration::from_secs(u64::from(seconds));
    let ill_after = of_seconds(policy.ill_after_seconds);
    let well_after = of_seconds(policy.well_after_seconds);
    let mut duties = BTreeMap::new();
    for region in counts.keys().chain(before.judged.keys()) {
        if before.decided.contains_key(region) {
            continue;
        }
        let count = count_of(region);
        let percent = count.ill_percent();
        let is_ill =
            count.expected >= policy.min_runtimes && percent >= u32::from(policy.ill_percent);
        let is_well = percent < u32::from(policy.well_percent);
        // As long as nobody else serves it is not left, and not at once as soon as somebody does.
        let others_serve = counts.iter().any(|(other, count)| {
            other != region && count.takers > 0 && before.of(other).takes_new()
        });
        let ill_for = watch
            .ill
            .is(region, is_ill && others_serve && !deaf, look.at);
        let well_for = watch.well.is(region, is_well && !deaf, look.at);
        let duty = match before.of(region) {
            RegionDuty::Serving if ill_for.is_some_and(|it| it >= ill_after) => {
                RegionDuty::Leaving(policy.mode)
            }
            RegionDuty::Leaving(_) if well_for.is_some_and(|it| it >= well_after) => {
                RegionDuty::Serving
            }
            was @ (RegionDuty::Serving | RegionDuty::Leaving(_)) => was,
        };
        duties.insert(region.clone(), duty);
    }
    let duty_of = |region: &Region| duties.get(region).copied().unwrap_or(before.of(region));
    let can = || counts.iter().filter(|(_, count)| count.takers > 0);
    if can().any(|(region, _)| duty_of(region).takes_new()) {
        return duties;
    }
    let able: Vec<_> = can()
        .filter(|(region, _)| duties.contains_key(*region))
        .collect();
    let mut kept: Vec<_> = able
        .iter()
        .filter(|(region, _)| before.of(region).takes_new())
        .map(|(region, _)| (*region).clone())
        .collect();
    if kept.is_empty() {
        let best = able
            .iter()
            .min_by_key(|(_, count)| (count.ill_percent(), Reverse(count.takers)));
        kept.extend(best.map(|(region, _)| (*region).clone()));
    }
    for region in kept {
        watch.ill.0.remove(&region);
        duties.insert(region, RegionDuty::Serving);
    }
    duties
}

/// The orders that a place's leaving asks for: which of its sessions have to be let go. Those that are
/// being let go already are left out.
pub fn orders<'a>(
    placements: impl IntoIterator<Item = &'a Placement>,
    leaving: impl Fn(&RuntimeId) -> Option<WhyRevoked>,
    finish_within: Duration,
    most: usize,
) -> Vec<(SessionId, Revoke)> {
    placements
        .into_iter()
        .filter_map(|placement| match &placement.standing {
            Standing::Held { by } => {
                let why = leaving(&by.runtime)?;
                let order = Revoke {
                    why,
                    finish_within,
                    to: None,
                };
                Some((placement.session.clone(), order))
            }
            Standing::Revoking { .. } | Standing::Vacant { .. } | Standing::Ended { .. } => None,
        })
        .take(most)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rspp_proto::WallClock;

    use super::*;
    use crate::fleet::{Load, register, tests::description};

    const LEASE: Duration = Duration::from_secs(5);

    fn region(name: &str) -> Region {
        Region::new(name).unwrap()
    }

    /// A runtime by one letter: well, not ready, suspect, dead, left, drained.
    fn sight(region: &str, index: usize, how: char) -> Sight {
        let id = RuntimeId::new(format!("{region}-{index}")).unwrap();
        let mut runtime = register(None, None, id, description(region, 10), WallClock(0)).unwrap();
        if how == 'e' {
            runtime.duty = Duty::Draining;
        }
        Sight {
            runtime,
            load: Load {
                ready: how != 'n',
                ..Load::default()
            },
            presence: match how {
                'w' | 'n' | 'e' => Presence::Alive,
                's' => Presence::Suspect,
                'd' => Presence::Dead,
                'l' => Presence::Left,
                other => panic!("{other}"),
            },
        }
    }

    fn fleet(regions: &[(&str, &str)]) -> Vec<Sight> {
        let each = regions.iter().flat_map(|(region, runtimes)| {
            let runtimes = runtimes.chars().enumerate();
            runtimes.map(|(index, how)| sight(region, index, how))
        });
        each.collect()
    }

    /// A leader that looks twice a second, and what it decided.
    struct Leader {
        watch: Watch,
        duties: Duties,
        policy: RegionPolicy,
        now: Monotonic,
        changes: usize,
    }

    impl Leader {
        /// It has had the duties for long enough to judge.
        fn new(policy: RegionPolicy) -> Self {
            let mut this = Self {
                watch: Watch::default(),
                duties: Duties::default(),
                policy,
                now: Monotonic::from_millis(1_000_000),
                changes: 0,
            };
            this.sees(&[("quiet", "w")], LEASE);
            this
        }

        fn look(&mut self, sights: &[Sight], age: Duration) {
            let look = Look {
                at: self.now,
                age,
                lease: LEASE,
            };
            let after = judge_regions(sights, &self.duties, &mut self.watch, &self.policy, look);
            for (region, duty) in &after {
                self.changes += usize::from(self.duties.of(region) != *duty);
            }
            self.duties.judged = after;
        }

        /// The fleet is like this for so long.
        fn sees(&mut self, regions: &[(&str, &str)], lasting: Duration) {
            let (sights, until) = (fleet(regions), self.now + lasting);
            loop {
                self.look(&sights, Duration::ZERO);
                if self.now >= until {
                    return;
                }
                self.now = self.now + Duration::from_millis(500);
            }
        }

        fn sleeps(&mut self, lasting: Duration) {
            self.now = self.now + lasting;
        }

        #[track_caller]
        fn has_left(&self, expected: &[&str]) {
            let judged = self.duties.judged.iter();
            let left = judged.filter(|(_, duty)| !duty.takes_new());
            let left: Vec<_> = left.map(|(region, _)| region.as_str()).collect();
            assert_eq!(left, expected);
        }
    }

    const SECOND: Duration = Duration::from_secs(1);
    const LONG: Duration = Duration::from_secs(45);

    /// F-096, F-112: a region is left when most of it has been ill for a while, and not taken back at once.
    #[test]
    fn an_ill_region_is_left_and_taken_back_when_it_is_well() {
        #[track_caller]
        fn check(left_before: bool, eu: &str, expected: &[&str]) {
            let mut leader = Leader::new(RegionPolicy::default());
            if left_before {
                leader.sees(&[("eu", "nnn"), ("us", "www")], LONG);
                leader.has_left(&["eu"]);
            }
            leader.sees(&[("eu", eu), ("us", "www")], LONG);
            leader.has_left(expected);
        }
        check(false, "www", &[]);
        check(false, "wwn", &[]);
        check(false, "wnn", &["eu"]);
        check(false, "wsn", &["eu"]);
        check(false, "wds", &["eu"]);
        check(true, "wwn", &["eu"]);
        check(true, "www", &[]);
        // One runtime is no region's health.
        check(false, "n", &[]);
    }

    /// F-096: the time that it takes, both ways; what passes sooner changes nothing.
    #[test]
    fn what_passes_soon_changes_nothing() {
        let mut leader = Leader::new(RegionPolicy::default());
        let (well, ill) = (
            [("eu", "www"), ("us", "www")],
            [("eu", "nnn"), ("us", "www")],
        );
        for _ in 0..5 {
            leader.sees(&ill, SECOND * 9);
            leader.sees(&well, SECOND);
        }
        assert_eq!(leader.changes, 0);
        leader.sees(&ill, SECOND * 10);
        leader.has_left(&["eu"]);
        for _ in 0..5 {
            leader.sees(&well, SECOND * 29);
            leader.sees(&ill, SECOND);
        }
        assert_eq!(leader.changes, 1);
        leader.sees(&well, SECOND * 30);
        leader.has_left(&[]);
    }

    /// F-096: whether a region serves is whether anybody there can take a session: one whose runtimes are all dead
    /// does not count, and the other, ill as it is, takes over at once.
    #[test]
    fn a_dead_region_is_no_reason_to_leave_the_last_that_lives() {
        let mut leader = Leader::new(RegionPolicy::default());
        leader.sees(&[("eu", "w"), ("us", "wnn")], LONG);
        leader.has_left(&["us"]);
        leader.sees(&[("eu", "s"), ("us", "wnn")], Duration::ZERO);
        leader.has_left(&[]);
        leader.sees(&[("eu", "d"), ("us", "wnn")], LONG);
        leader.has_left(&[]);
        // It is left again, but not at once.
        leader.sees(&[("eu", "w"), ("us", "wnn")], SECOND * 9);
        leader.has_left(&[]);
        leader.sees(&[("eu", "w"), ("us", "wnn")], SECOND * 2);
        leader.has_left(&["us"]);
        // Of several that are ill, the one that is least.
        let mut leader = Leader::new(RegionPolicy::default());
        leader.sees(&[("eu", "w"), ("us", "wnn"), ("asia", "wnnn")], LONG);
        leader.has_left(&["asia", "us"]);
        leader.sees(&[("eu", "d"), ("us", "wnn"), ("asia", "wnnn")], LONG);
        leader.has_left(&["asia"]);
        // All that serve fall ill together: none is left.
        let mut leader = Leader::new(RegionPolicy::default());
        leader.sees(&[("eu", "wnn"), ("us", "wnn")], LONG);
        leader.has_left(&[]);
        // An operator wants the other to serve, and it can: this one may be left.
        let mut leader = Leader::new(RegionPolicy::default());
        leader
            .duties
            .decided
            .insert(region("eu"), RegionDuty::Serving);
        leader.sees(&[("eu", "wnn"), ("us", "wnn")], LONG);
        leader.has_left(&["us"]);
        // An operator has emptied the other: this one stays.
        let mut leader = Leader::new(RegionPolicy::default());
        let left = RegionDuty::Leaving(FailoverMode::Drain);
        leader.duties.decided.insert(region("eu"), left);
        leader.sees(&[("eu", "www"), ("us", "wnn")], LONG);
        leader.has_left(&[]);
    }

    /// F-096: one that stays dead is gone after a while, and its region is well without it.
    #[test]
    fn who_stays_dead_is_not_expected_any_more() {
        let mut leader = Leader::new(RegionPolicy::default());
        leader.sees(&[("eu", "w"), ("us", "wnd")], SECOND * 20);
        leader.has_left(&["us"]);
        leader.sees(&[("eu", "w"), ("us", "wwd")], SECOND * 35);
        leader.has_left(&["us"]);
        leader.sees(&[("eu", "w"), ("us", "wwd")], SECOND * 40);
        leader.has_left(&[]);
        // Nobody is expected where all are gone: nothing is ill there.
        leader.sees(&[("eu", "w"), ("us", "ddd")], SECOND * 20);
        leader.has_left(&["us"]);
        leader.sees(&[("eu", "w"), ("us", "ddd")], SECOND * 100);
        leader.has_left(&[]);
    }

    /// F-103, F-106: runtimes that leave in order, or that operators empty, are not ill.
    #[test]
    fn scaling_in_is_no_illness() {
        let mut leader = Leader::new(RegionPolicy::default());
        for us in ["wwe", "wee", "wel", "wll", "ll"] {
            leader.sees(&[("eu", "w"), ("us", us)], LONG);
        }
        assert_eq!(leader.changes, 0);
    }

    /// F-159: a control plane that slept, that was cut off from its store, or that hears nobody at all leaves no
    /// region before all had the time to renew.
    #[test]
    fn who_was_deaf_judges_nobody() {
        let policy = RegionPolicy {
            ill_after_seconds: 0,
            ..RegionPolicy::default()
        };
        let (well, silent) = ([("eu", "w"), ("us", "www")], [("eu", "w"), ("us", "ddd")]);
        // With nothing in the way it is left at once.
        let mut leader = Leader::new(policy);
        leader.sees(&silent, Duration::ZERO);
        leader.has_left(&["us"]);
        // It slept.
        let mut leader = Leader::new(policy);
        leader.sees(&well, SECOND);
        leader.sleeps(SECOND * 8);
        leader.sees(&silent, SECOND * 4);
        leader.sees(&well, LONG);
        assert_eq!(leader.changes, 0);
        // Its store did not answer.
        let mut leader = Leader::new(policy);
        leader.look(&fleet(&silent), SECOND * 3);
        leader.sees(&silent, SECOND * 4);
        leader.sees(&well, LONG);
        assert_eq!(leader.changes, 0);
        // Nobody's heartbeats were written.
        let mut leader = Leader::new(policy);
        leader.sees(&[("eu", "s"), ("us", "sss")], SECOND * 10);
        leader.sees(&silent, SECOND * 4);
        leader.sees(&well, LONG);
        assert_eq!(leader.changes, 0);
        // It has only just come to these duties.
        let mut leader = Leader::new(policy);
        leader.watch = Watch::default();
        leader.sees(&silent, SECOND * 4);
        leader.has_left(&[]);
        // Who is dead is found to be so afterwards.
        leader.sees(&silent, SECOND * 2);
        leader.has_left(&["us"]);
    }

    #[test]
    fn policies_that_cannot_be_meant_are_refused() {
        let refused = |alter: fn(&mut RegionPolicy)| {
            let mut policy = RegionPolicy::default();
            alter(&mut policy);
            policy.check().unwrap_err()
        };
        assert_eq!(RegionPolicy::default().check(), Ok(()));
        assert_eq!(
            refused(|it| it.well_after_seconds = 86_401),
            (
                "regions.well_after_seconds",
                "86401 s is more than a day".to_owned()
            )
        );
        let (rule, what) = refused(|it| it.ill_after_seconds = 60);
        assert_eq!(rule, "regions.gone_after_seconds");
        assert!(what.starts_with("60 is not above ill_after_seconds, 60"));
    }

    /// Builds that know nothing of the times read rules in which nobody has decided them.
    #[test]
    fn times_are_written_once_somebody_decides_them() {
        let written = serde_json::to_value(RegionPolicy::default()).unwrap();
        assert_eq!(written.as_object().unwrap().len(), 4, "{written}");
        let policy = RegionPolicy {
            well_after_seconds: 5,
            ..RegionPolicy::default()
        };
        let written = serde_json::to_value(policy).unwrap();
        assert_eq!(
            serde_json::from_value::<RegionPolicy>(written).unwrap(),
            policy
        );
    }

    /// One look of a history: what each runtime of three regions is like, what operators want, how long ago the
    /// last look was, and how old what is seen is.
    type Step = (Vec<(u8, u8)>, Vec<Option<bool>>, u64, u64);

    fn history() -> impl Strategy<Value = Vec<Step>> {
        let runtimes = proptest::collection::vec((0..3u8, 0..6u8), 0..8);
        let operators =
            proptest::collection::vec(proptest::option::weighted(0.1, any::<bool>()), 3);
        let gap = prop_oneof![4 => Just(500), 1 => 0..20_000u64];
        let age = prop_oneof![6 => Just(0), 1 => 0..10_000u64];
        proptest::collection::vec((runtimes, operators, gap, age), 1..60)
    }

    proptest! {
        /// F-096, F-110: whatever the history of what was seen, while any runtime anywhere is alive, ready and not
        /// drained by an operator, somebody takes new sessions; and no region that came back is left before it has
        /// been ill for as long as the rules say.
        #[test]
        fn somebody_takes_new_sessions(
            history in history(),
            ill_after_seconds in 0..12u32,
            well_after_seconds in 0..12u32,
            min_runtimes in 0..3u32,
        ) {
            const REGIONS: [&str; 3] = ["asia", "eu", "us"];
            let mut leader = Leader::new(RegionPolicy {
                ill_after_seconds,
                well_after_seconds,
                gone_after_seconds: 15,
                min_runtimes,
                ..RegionPolicy::default()
            });
            let ill_after = Duration::from_secs(u64::from(ill_after_seconds));
            let mut served_since = BTreeMap::<Region, Monotonic>::new();
            for (runtimes, operators, gap, age) in history {
                leader.sleeps(Duration::from_millis(gap));
                leader.duties.decided = operators
                    .iter()
                    .zip(REGIONS)
                    .filter_map(|(serves, name)| {
                        let duty = if (*serves)? {
                            RegionDuty::Serving
                        } else {
                            RegionDuty::Leaving(FailoverMode::Drain)
                        };
                        Some((region(name), duty))
                    })
                    .collect();
                let runtimes = runtimes.iter().enumerate();
                let sights: Vec<_> = runtimes
                    .map(|(index, (where_, how))| {
                        let how = ['w', 'n', 's', 'd', 'l', 'e'][usize::from(*how)];
                        sight(REGIONS[usize::from(*where_)], index, how)
                    })
                    .collect();
                let before = leader.duties.clone();
                leader.look(&sights, Duration::from_millis(age));
                let place = |it: &Sight| it.runtime.description.region.clone();
                let drained = |it: &Sight| {
                    let decided = leader.duties.decided.get(&place(it));
                    decided.is_some_and(|duty| !duty.takes_new())
                };
                let mut able = sights.iter().filter(|it| {
                    it.presence == Presence::Alive
                        && it.load.ready
                        && it.runtime.duty == Duty::Serving
                        && !drained(it)
                }).peekable();
                if able.peek().is_some() {
                    prop_assert!(
                        able.any(|it| leader.duties.of(&place(it)).takes_new()),
                        "{:?}", leader.duties
                    );
                }
                for (region, duty) in &leader.duties.judged {
                    let was = before.judged.get(region).is_none_or(|duty| duty.takes_new());
                    match (was, duty.takes_new()) {
                        (false, true) => {
                            served_since.insert(region.clone(), leader.now);
                        }
                        (true, false) => if let Some(since) = served_since.get(region) {
                            prop_assert!(leader.now.since(*since) >= ill_after);
                        }
                        (true, true) | (false, false) => {}
                    }
                }
            }
        }
    }
}
