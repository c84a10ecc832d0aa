//! Tokens that tenants use here, for the fleet to count, and what the fleet says stands against more (F-050, F-098).
//!
//! Counted by tenant and pipeline and told in batches, each at most once. A limit is of a minute: what could not be
//! told within one is in nobody's way any more, and is given up and counted as that.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use rspp_proto::{Monotonic, PipelineVersion, TenantId, spec::OverLimit};

use crate::reading::Heard;

/// What is older is of no minute any more.
const KEPT: Duration = Duration::from_mins(1);
/// What is used within this counts as used at once.
const STEP: Duration = Duration::from_secs(5);
/// How often it is asked whether what stands against a tenant still does.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Most tenants and pipelines that are counted apart.
const MAX_ACCOUNTS: usize = 4_096;

/// Whose, and with which pipeline.
type Whose = (TenantId, PipelineVersion);

/// What the fleet is to count: tokens, or none, to hear how things stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenReport {
    /// Whose they are.
    pub tenant: TenantId,
    /// The pipeline that used them.
    pub pipeline: PipelineVersion,
    /// How many.
    pub tokens: u64,
    /// Names the report within this process.
    pub number: u64,
}

/// What stands against more turns of a tenant: what is done about them, and for how long.
pub type Beyond = (OverLimit, Duration);

#[derive(Debug, Default)]
struct Account {
    /// By when it was used, oldest first.
    used: VecDeque<(Monotonic, u64)>,
    /// What is told until it is known to be counted, and when the last of it was used.
    report: Option<(TokenReport, Monotonic)>,
    is_told: bool,
    beyond: Option<(OverLimit, Monotonic)>,
    heard_at: Option<Monotonic>,
}

impl Account {
    /// Forgets what is of no minute any more; how much that was.
    fn age(&mut self, now: Monotonic) -> u64 {
        let is_old = |at: Monotonic| now.since(at) >= KEPT;
        let mut given_up = 0;
        // What is under way may still be counted: that is known when it is answered.
        if let Some((report, _)) = self.report.take_if(|(_, at)| !self.is_told && is_old(*at)) {
            given_up += report.tokens;
        }
        while let Some((_, tokens)) = self.used.front().filter(|(at, _)| is_old(*at)) {
            given_up += tokens;
            self.used.pop_front();
        }
        if self.beyond.is_some_and(|(_, until)| until <= now) {
            self.beyond = None;
        }
        given_up
    }

    fn is_idle(&self) -> bool {
        self.used.is_empty() && self.report.is_none() && self.beyond.is_none()
    }

    fn is_due(&self, now: Monotonic) -> bool {
        let is_old = |at: Monotonic| now.since(at) >= ASK_AGAIN;
        let asks = self.beyond.is_some() && self.heard_at.is_none_or(is_old);
        !self.is_told && (self.report.is_some() || !self.used.is_empty() || asks)
    }
}

/// What is not counted by the fleet yet, and what it says.
#[derive(Debug, Default)]
pub struct FleetUsage {
    /// Whether there is a fleet.
    joined: bool,
    accounts: BTreeMap<Whose, Account>,
    /// Who was told last: the next is who comes after.
    last: Option<Whose>,
    number: u64,
    given_up: u64,
}

impl FleetUsage {
    /// There is a fleet: what is used from now on is told.
    pub fn join(&mut self) {
        self.joined = true;
    }

    /// A tenant's language models have read and written so many tokens.
    pub fn spend(
        &mut self,
        now: Monotonic,
        tenant: &TenantId,
        pipeline: &PipelineVersion,
        tokens: u64,
    ) {
        if !self.joined || tokens == 0 {
            return;
        }
        let whose = (tenant.clone(), pipeline.clone());
        if self.accounts.len() >= MAX_ACCOUNTS && !self.accounts.contains_key(&whose) {
            self.age(now);
            if self.accounts.len() >= MAX_ACCOUNTS {
                self.given_up += tokens;
                return;
            }
        }
        let account = self.accounts.entry(whose).or_default();
        self.given_up += account.age(now);
        match account.used.back_mut() {
            Some((at, used)) if now.since(*at) < STEP => *used = used.saturating_add(tokens),
            Some(_) | None => account.used.push_back((now, tokens)),
        }
    }

    fn age(&mut self, now: Monotonic) {
        let given_up = &mut self.given_up;
        self.accounts.retain(|_, account| {
            *given_up += account.age(now);
            !account.is_idle()
        });
    }

    /// What is to be told now, at most so many reports; each of an account at a time.
    pub fn tell(&mut self, now: Monotonic, most: usize) -> Vec<TokenReport> {
        self.age(now);
        let due = self.accounts.iter().filter(|(_, it)| it.is_due(now));
        let mut due: Vec<_> = due.map(|(whose, _)| whose.clone()).collect();
        // In turn, where not all are told at once.
        let after = due.partition_point(|it| self.last.as_ref().is_some_and(|last| it <= last));
        due.rotate_left(after);
        due.truncate(most);
        self.last = due.last().cloned().or(self.last.take());
        let mut reports = Vec::with_capacity(due.len());
        for whose in due {
            let account = self.accounts.get_mut(&whose).expect("it was found there");
            let (report, _) = account.report.get_or_insert_with(|| {
                self.number += 1;
                let newest = account.used.back().map_or(now, |(at, _)| *at);
                let tokens = account.used.drain(..).map(|(_, tokens)| tokens).sum();
                let report = TokenReport {
                    tenant: whose.0.clone(),
                    pipeline: whose.1.clone(),
                    tokens,
                    number: self.number,
                };
                (report, newest)
            });
            account.is_told = true;
            reports.push(report.clone());
        }
        reports
    }

    /// What became of a report, and what the fleet says with it.
    pub fn heard(
        &mut self,
        now: Monotonic,
        report: &TokenReport,
        heard: Heard,
        beyond: Option<Beyond>,
    ) {
        let whose = (report.tenant.clone(), report.pipeline.clone());
        let Some(account) = self.accounts.get_mut(&whose) else {
            return;
        };
        account.is_told = false;
        match heard {
            // Nobody knows whether it was counted. Asking how things stand loses nothing.
            Heard::NotNow => {}
            Heard::Counted => {
                account.report = None;
                account.heard_at = Some(now);
                account.beyond = beyond.map(|(over, wait)| (over, now + wait));
            }
            Heard::Refused => {
                account.report = None;
                self.given_up += report.tokens;
            }
        }
    }

    /// What stands against one more turn.
    pub fn beyond(
        &self,
        now: Monotonic,
        tenant: &TenantId,
        pipeline: &PipelineVersion,
    ) -> Option<Beyond> {
        if self.accounts.is_empty() {
            return None;
        }
        let account = self.accounts.get(&(tenant.clone(), pipeline.clone()))?;
        let (over, until) = account.beyond.filter(|(_, until)| *until > now)?;
        Some((over, until.since(now)))
    }

    /// Whether reports are under way.
    pub fn is_told(&self) -> bool {
        self.accounts.values().any(|account| account.is_told)
    }

    /// Whoever was told will not answer any more.
    pub fn nobody_answers(&mut self) {
        for account in self.accounts.values_mut() {
            account.is_told = false;
        }
    }

    /// Tokens that the fleet will never count.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_millis(seconds * 1_000)
    }

    fn acme() -> (TenantId, PipelineVersion) {
        named("acme")
    }

    fn named(tenant: &str) -> (TenantId, PipelineVersion) {
        let pipeline = PipelineVersion::new("desk-1").unwrap();
        (TenantId::new(tenant).unwrap(), pipeline)
    }

    fn joined() -> FleetUsage {
        let mut usage = FleetUsage::default();
        usage.join();
        usage
    }

    fn spend(usage: &mut FleetUsage, second: u64, tokens: u64) {
        let (tenant, pipeline) = acme();
        usage.spend(at(second), &tenant, &pipeline, tokens);
    }

    fn told(usage: &mut FleetUsage, second: u64) -> Vec<(u64, u64)> {
        let reports = usage.tell(at(second), 10);
        reports.iter().map(|it| (it.number, it.tokens)).collect()
    }

    fn hear(usage: &mut FleetUsage, second: u64, heard: Heard, beyond: Option<Beyond>) {
        let (tenant, pipeline) = acme();
        let report = TokenReport {
            tenant,
            pipeline,
            tokens: 30,
            number: 1,
        };
        usage.heard(at(second), &report, heard, beyond);
    }

    /// F-050: what is told is told under the same name until it is known to be counted, and never under two.
    #[test]
    fn tokens_are_told_once() {
        let mut alone = FleetUsage::default();
        spend(&mut alone, 0, 7);
        assert_eq!(told(&mut alone, 1), [], "there is nobody to tell");
        let mut usage = joined();
        spend(&mut usage, 0, 10);
        spend(&mut usage, 1, 20);
        assert_eq!(told(&mut usage, 1), [(1, 30)]);
        spend(&mut usage, 2, 5);
        assert_eq!(told(&mut usage, 2), [], "one at a time");
        hear(&mut usage, 3, Heard::NotNow, None);
        assert_eq!(told(&mut usage, 3), [(1, 30)], "as it was");
        hear(&mut usage, 4, Heard::Counted, None);
        assert_eq!(told(&mut usage, 4), [(2, 5)]);
        hear(&mut usage, 5, Heard::Counted, None);
        assert_eq!(told(&mut usage, 5), []);
        assert_eq!(usage.given_up(), 0);
    }

    /// F-050: while nobody counts, what is used is kept for a minute, and given up by number then; what came within
    /// the last minute is told.
    #[test]
    fn what_cannot_be_told_within_its_minute_is_given_up() {
        let mut usage = joined();
        spend(&mut usage, 0, 30);
        assert_eq!(told(&mut usage, 1), [(1, 30)]);
        hear(&mut usage, 2, Heard::NotNow, None);
        for second in (10..100).step_by(10) {
            spend(&mut usage, second, 1);
        }
        assert_eq!(told(&mut usage, 100), [(2, 5)], "of 50, 60, 70, 80 and 90");
        assert_eq!(usage.given_up(), 30 + 4);
        // What is refused for good is too.
        hear(&mut usage, 101, Heard::Refused, None);
        assert_eq!(usage.given_up(), 30 + 4 + 30);
    }

    /// F-050, F-098: what the fleet says holds for as long as it says, and is asked about meanwhile: somebody may
    /// have raised the limit.
    #[test]
    fn what_stands_against_a_tenant_is_asked_about() {
        let mut usage = joined();
        let (tenant, pipeline) = acme();
        let beyond = |usage: &FleetUsage, second| usage.beyond(at(second), &tenant, &pipeline);
        spend(&mut usage, 0, 30);
        assert_eq!(told(&mut usage, 1), [(1, 30)]);
        assert_eq!(beyond(&usage, 1), None);
        let minute = Duration::from_mins(1);
        hear(
            &mut usage,
            1,
            Heard::Counted,
            Some((OverLimit::Reject, minute)),
        );
        let left = |seconds| Some((OverLimit::Reject, Duration::from_secs(seconds)));
        assert_eq!(beyond(&usage, 11), left(50));
        assert_eq!(told(&mut usage, 4), []);
        assert_eq!(told(&mut usage, 6), [(2, 0)]);
        hear(&mut usage, 7, Heard::NotNow, None);
        assert_eq!(beyond(&usage, 11), left(50), "nobody said otherwise");
        assert_eq!(told(&mut usage, 12), [(2, 0)]);
        hear(&mut usage, 12, Heard::Counted, None);
        assert_eq!(beyond(&usage, 12), None);
        assert_eq!(told(&mut usage, 20), []);
        let others = named("other");
        assert_eq!(usage.beyond(at(5), &others.0, &others.1), None);
    }

    /// NF-004, F-050: many tenants are told in turn, and more than there is room for are counted as given up.
    #[test]
    fn many_tenants_have_their_turn_and_an_end() {
        let mut usage = joined();
        for number in 0..25 {
            let (tenant, pipeline) = named(&format!("t-{number:02}"));
            usage.spend(at(0), &tenant, &pipeline, 1);
        }
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..3 {
            for report in usage.tell(at(1), 10) {
                usage.heard(at(1), &report, Heard::NotNow, None);
                seen.insert(report.tenant);
            }
        }
        assert_eq!(seen.len(), 25);
        for number in 0..MAX_ACCOUNTS + 10 {
            let (tenant, pipeline) = named(&format!("n-{number}"));
            usage.spend(at(2), &tenant, &pipeline, 1);
        }
        assert_eq!(usage.given_up(), 10 + 25);
    }
}
