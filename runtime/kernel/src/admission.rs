//! Who is let in, and at which moment who waits, is refused or is served with less: local admission
//! (RK-25), for the tenants of one node of the runtime (F-049, F-050).
//!
//! Knows limits, what is under way, and the load; decides before a session or a turn exists. How the
//! ones that were let in share what there is, is the scheduler's.

mod bucket;
mod fleet;
mod headroom;
mod lateness;
mod tally;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use rspp_proto::{
    Monotonic, TenantId,
    spec::{LimitsSpec, OverLimit, Priority, Quota, QuotasSpec},
};
use serde::{Deserialize, Serialize};

pub use bucket::TokenBucket;
pub use fleet::{Beyond, FleetUsage, TokenReport};
pub use headroom::{Headroom, Load, LoadChange, Reading, Resource};
pub use lateness::{BUCKETS as LATENESS_BUCKETS, LatenessWindow};
pub use tally::{AccountReport, AdmissionReport, OTHER_TENANTS, Tally};

/// Tenants whose accounts are kept; those that come after share one.
const MAX_ACCOUNTS: usize = 65_536;

/// When to ask again for what becomes free when somebody leaves: nobody knows when.
const RECHECK: Duration = Duration::from_millis(250);

/// A limit, as answers and labels name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Sessions at once.
    Sessions,
    /// Sessions opened in a minute.
    SessionsPerMinute,
    /// Turns at once.
    Turns,
    /// Turns opened in a minute.
    TurnsPerMinute,
    /// Tokens in a minute.
    TokensPerMinute,
    /// The node's headroom.
    Load,
}

impl Limit {
    /// The limit's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::SessionsPerMinute => "sessions_per_minute",
            Self::Turns => "turns",
            Self::TurnsPerMinute => "turns_per_minute",
            Self::TokensPerMinute => "tokens_per_minute",
            Self::Load => "load",
        }
    }
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whose {
    /// The node's, for all tenants together.
    Node,
    /// The tenant's.
    Tenant,
}

impl Whose {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Tenant => "tenant",
        }
    }
}

/// What a decision was made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cause {
    /// Whose limit.
    pub whose: Whose,
    /// Which.
    pub limit: Limit,
}

/// What was decided; ordered from what is best for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verdict {
    /// In.
    Admit,
    /// In, and served in the pipeline's degrade posture.
    Degrade,
    /// Kept waiting; to be asked for again by whoever keeps it.
    Throttle {
        /// When.
        retry_after: Duration,
    },
    /// Not now.
    Defer {
        /// When it makes sense to ask again.
        retry_after: Duration,
    },
    /// No.
    Reject,
}

impl Verdict {
    /// Whether it is let in.
    pub fn is_admitted(self) -> bool {
        match self {
            Self::Admit | Self::Degrade => true,
            Self::Throttle { .. } | Self::Defer { .. } | Self::Reject => false,
        }
    }

    /// When it makes sense to ask again, if at all.
    pub fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Throttle { retry_after } | Self::Defer { retry_after } => Some(retry_after),
            Self::Admit | Self::Degrade | Self::Reject => None,
        }
    }
}

/// A decision and what it was made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// What was decided.
    pub verdict: Verdict,
    /// The limit that had the last word; `None` if none had.
    pub cause: Option<Cause>,
}

impl Decision {
    /// In, and nothing is short.
    pub const ADMIT: Self = Self {
        verdict: Verdict::Admit,
        cause: None,
    };
}

/// Somebody who wants in.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Who it is accounted to.
    pub tenant: &'a TenantId,
    /// Who comes first.
    pub priority: Priority,
    /// How long it has been kept waiting.
    pub waited: Duration,
    /// Whether there is a degrade posture to serve it in.
    pub can_degrade: bool,
    /// What the fleet says stands against a turn: its tenant has used up its tokens, here and elsewhere.
    pub beyond: Option<Beyond>,
}

/// What one tenant, or the node, has under way and has used.
#[derive(Debug, Default)]
struct Account {
    sessions: u64,
    turns: u64,
    session_rate: Option<TokenBucket>,
    turn_rate: Option<TokenBucket>,
    token_rate: Option<TokenBucket>,
    tally: AccountReport,
}

impl Account {
    fn new(quotas: &QuotasSpec, now: Monotonic) -> Self {
        let bucket = |quota: Option<Quota>| quota.map(|quota| TokenBucket::full(quota.limit, now));
        Self {
            session_rate: bucket(quotas.sessions_per_minute),
            turn_rate: bucket(quotas.turns_per_minute),
            token_rate: bucket(quotas.tokens_per_minute),
            ..Self::default()
        }
    }

    /// Whether forgetting it would change nothing but its history.
    fn is_idle(&mut self, now: Monotonic) -> bool {
        let buckets = [
            &mut self.session_rate,
            &mut self.turn_rate,
            &mut self.token_rate,
        ];
        let all_full = buckets
            .into_iter()
            .flatten()
            .all(|bucket| bucket.is_full(now));
        self.sessions == 0 && self.turns == 0 && all_full
    }

    /// What stands against one more session.
    fn against_session(
        &mut self,
        quotas: &QuotasSpec,
        now: Monotonic,
    ) -> [Option<(Limit, OverLimit, Option<Duration>)>; 2] {
        [
            full(Limit::Sessions, quotas.sessions, self.sessions),
            empty(
                Limit::SessionsPerMinute,
                quotas.sessions_per_minute,
                self.session_rate.as_mut(),
                now,
            ),
        ]
    }

    /// What stands against one more turn.
    fn against_turn(
        &mut self,
        quotas: &QuotasSpec,
        beyond: Option<Beyond>,
        now: Monotonic,
    ) -> [Option<(Limit, OverLimit, Option<Duration>)>; 4] {
        [
            full(Limit::Turns, quotas.turns, self.turns),
            empty(
                Limit::TurnsPerMinute,
                quotas.turns_per_minute,
                self.turn_rate.as_mut(),
                now,
            ),
            empty(
                Limit::TokensPerMinute,
                quotas.tokens_per_minute,
                self.token_rate.as_mut(),
                now,
            ),
            beyond.map(|(over, wait)| (Limit::TokensPerMinute, over, Some(wait))),
        ]
    }
}

/// A limit of what there may be at once.
fn full(
    limit: Limit,
    quota: Option<Quota>,
    held: u64,
) -> Option<(Limit, OverLimit, Option<Duration>)> {
    let quota = quota.filter(|quota| held >= quota.limit)?;
    Some((limit, quota.over, Some(RECHECK)))
}

/// A limit of what there may be in a minute.
fn empty(
    limit: Limit,
    quota: Option<Quota>,
    bucket: Option<&mut TokenBucket>,
    now: Monotonic,
) -> Option<(Limit, OverLimit, Option<Duration>)> {
    let (quota, bucket) = quota.zip(bucket)?;
    match bucket.wait(now, 1) {
        Some(Duration::ZERO) => None,
        wait => Some((limit, quota.over, wait)),
    }
}

/// Local admission of one node.
#[derive(Debug)]
pub struct Admission {
    limits: LimitsSpec,
    load: Load,
    node: Account,
    tenants: BTreeMap<TenantId, Account>,
    /// History of accounts that are not kept any more, and of tenants that never had one.
    others: Account,
}

impl Admission {
    /// Nobody is there yet.
    pub fn new(limits: LimitsSpec, now: Monotonic) -> Self {
        Self {
            node: Account::new(&limits.node, now),
            others: Account::new(&limits.tenant, now),
            tenants: BTreeMap::new(),
            load: Load::Normal,
            limits,
        }
    }

    /// What is taken on.
    pub fn limits(&self) -> &LimitsSpec {
        &self.limits
    }

    /// The limits of a tenant.
    pub fn quotas(&self, tenant: &TenantId) -> &QuotasSpec {
        let own = self.limits.tenants.get(tenant);
        own.unwrap_or(&self.limits.tenant)
    }

    /// Sessions that were let in and have not left.
    pub fn sessions(&self) -> u64 {
        self.node.sessions
    }

    /// The load that decisions go by from now on.
    pub fn set_load(&mut self, load: Load) {
        self.load = load;
    }

    /// The load that decisions go by.
    pub fn load(&self) -> Load {
        self.load
    }

    /// Whether work of that class is to be shed where it is scheduled (F-173).
    pub fn sheds(&self, priority: Priority) -> bool {
        sheds(self.load, priority)
    }

    /// Decides about one more session, and counts it if it is let in: each that was is to be
    /// [closed](Self::close_session).
    pub fn open_session(&mut self, now: Monotonic, ask: Ask<'_>) -> Decision {
        let load = self.load_of_newcomers();
        let quotas = self.quotas(ask.tenant).clone();
        let limits = self.limits.node.clone();
        let own = self.account(now, ask.tenant).against_session(&quotas, now);
        let node = self.node.against_session(&limits, now);
        let decision = self.decide(ask, &node, &own, load);
        if decision.verdict.is_admitted() {
            for account in [
                &mut self.node,
                account_of(&mut self.tenants, &mut self.others, ask.tenant),
            ] {
                account.sessions += 1;
                if let Some(rate) = &mut account.session_rate {
                    rate.take(now, 1);
                }
            }
        }
        self.count(ask.tenant, decision.verdict, |tally| &mut tally.sessions);
        decision
    }

    /// A session that was let in has left.
    pub fn close_session(&mut self, tenant: &TenantId) {
        for account in [
            &mut self.node,
            account_of(&mut self.tenants, &mut self.others, tenant),
        ] {
            account.sessions = account.sessions.saturating_sub(1);
        }
    }

    /// Decides about one more turn, and counts it if it is let in: each that was is to be
    /// [closed](Self::close_turn).
    pub fn open_turn(&mut self, now: Monotonic, ask: Ask<'_>) -> Decision {
        let load = self.load_of_turns(ask);
        let quotas = self.quotas(ask.tenant).clone();
        let limits = self.limits.node.clone();
        let own = self
            .account(now, ask.tenant)
            .against_turn(&quotas, ask.beyond, now);
        let node = self.node.against_turn(&limits, None, now);
        let decision = self.decide(ask, &node, &own, load);
        if decision.verdict.is_admitted() {
            for account in [
                &mut self.node,
                account_of(&mut self.tenants, &mut self.others, ask.tenant),
            ] {
                account.turns += 1;
                if let Some(rate) = &mut account.turn_rate {
                    rate.take(now, 1);
                }
            }
        }
        self.count(ask.tenant, decision.verdict, |tally| &mut tally.turns);
        decision
    }

    /// Whether one more turn would be let in with everything; nothing is taken or counted for asking.
    pub fn has_room(&mut self, now: Monotonic, ask: Ask<'_>) -> bool {
        let load = self.load_of_turns(ask);
        let quotas = self.quotas(ask.tenant).clone();
        let limits = self.limits.node.clone();
        let own = self
            .account(now, ask.tenant)
            .against_turn(&quotas, ask.beyond, now);
        let node = self.node.against_turn(&limits, None, now);
        self.decide(ask, &node, &own, load).verdict == Verdict::Admit
    }

    /// A turn that was let in is over.
    pub fn close_turn(&mut self, tenant: &TenantId) {
        for account in [
            &mut self.node,
            account_of(&mut self.tenants, &mut self.others, tenant),
        ] {
            account.turns = account.turns.saturating_sub(1);
        }
    }

    /// A language model has read and written so many tokens for a tenant.
    pub fn spend_tokens(&mut self, now: Monotonic, tenant: &TenantId, tokens: u64) {
        for account in [
            &mut self.node,
            account_of(&mut self.tenants, &mut self.others, tenant),
        ] {
            account.tally.tokens += tokens;
            if let Some(rate) = &mut account.token_rate {
                rate.take(now, tokens);
            }
        }
    }

    /// Work of a tenant was shed at a scheduling point.
    pub fn count_shed(&mut self, tenant: &TenantId) {
        for account in [
            &mut self.node,
            account_of(&mut self.tenants, &mut self.others, tenant),
        ] {
            account.tally.shed += 1;
        }
    }

    /// What was decided so far, by tenant; a bounded number of them by name.
    pub fn report(&self) -> AdmissionReport {
        AdmissionReport::new(
            account_report(&self.node),
            self.tenants
                .iter()
                .map(|(tenant, account)| (tenant, account_report(account))),
            account_report(&self.others),
        )
    }

    fn load_of_newcomers(&self) -> Option<(Limit, OverLimit, Option<Duration>)> {
        match self.load {
            Load::Normal => None,
            Load::High | Load::Severe => Some((
                Limit::Load,
                self.limits.overload.newcomers,
                Some(self.recovery()),
            )),
        }
    }

    /// Live turns are served, with less where there is a posture for it; background ones wait for
    /// better days.
    fn load_of_turns(&self, ask: Ask<'_>) -> Option<(Limit, OverLimit, Option<Duration>)> {
        if self.sheds(ask.priority) {
            return Some((Limit::Load, OverLimit::Defer, Some(self.recovery())));
        }
        let is_short = self.load >= Load::High && ask.can_degrade;
        is_short.then_some((Limit::Load, OverLimit::Degrade, None))
    }

    fn recovery(&self) -> Duration {
        Duration::from_millis(self.limits.overload.recover_after_ms).max(RECHECK)
    }

    /// Of all that stands against it, the strictest counts.
    fn decide(
        &self,
        ask: Ask<'_>,
        node: &[Option<(Limit, OverLimit, Option<Duration>)>],
        own: &[Option<(Limit, OverLimit, Option<Duration>)>],
        load: Option<(Limit, OverLimit, Option<Duration>)>,
    ) -> Decision {
        let node = node.iter().flatten().map(|found| (Whose::Node, *found));
        let own = own.iter().flatten().map(|found| (Whose::Tenant, *found));
        let load = load.into_iter().map(|found| (Whose::Node, found));
        let mut decision = Decision::ADMIT;
        for (whose, (limit, over, wait)) in load.chain(node).chain(own) {
            let verdict = self.verdict(ask, over, wait);
            if verdict > decision.verdict {
                let cause = Some(Cause { whose, limit });
                decision = Decision { verdict, cause };
            }
        }
        decision
    }

    fn verdict(&self, ask: Ask<'_>, over: OverLimit, wait: Option<Duration>) -> Verdict {
        let max_wait = Duration::from_millis(self.limits.max_wait_ms);
        match (over, wait) {
            (OverLimit::Degrade, _) if ask.can_degrade => Verdict::Degrade,
            (OverLimit::Throttle, Some(retry_after)) if ask.waited + retry_after <= max_wait => {
                Verdict::Throttle { retry_after }
            }
            // Waited in vain, or with nothing to be served less of: it is told when to come back.
            (OverLimit::Defer | OverLimit::Throttle | OverLimit::Degrade, wait) => match wait {
                Some(retry_after) => Verdict::Defer { retry_after },
                None => Verdict::Reject,
            },
            (OverLimit::Reject, _) => Verdict::Reject,
        }
    }

    fn count(
        &mut self,
        tenant: &TenantId,
        verdict: Verdict,
        of: impl Fn(&mut AccountReport) -> &mut Tally,
    ) {
        for account in [
            &mut self.node,
            account_of(&mut self.tenants, &mut self.others, tenant),
        ] {
            of(&mut account.tally).count(verdict);
        }
    }

    /// The tenant's account; made if there is room for it.
    fn account(&mut self, now: Monotonic, tenant: &TenantId) -> &mut Account {
        if !self.tenants.contains_key(tenant) {
            if self.tenants.len() >= MAX_ACCOUNTS {
                self.forget_idle(now);
            }
            if self.tenants.len() < MAX_ACCOUNTS {
                let account = Account::new(self.quotas(tenant), now);
                self.tenants.insert(tenant.clone(), account);
            }
        }
        account_of(&mut self.tenants, &mut self.others, tenant)
    }

    fn forget_idle(&mut self, now: Monotonic) {
        let others = &mut self.others.tally;
        self.tenants.retain(|_, account| {
            let idle = account.is_idle(now);
            if idle {
                others.add(&account.tally);
            }
            !idle
        });
    }
}

/// Whether work of that class is shed at that load.
pub fn sheds(load: Load, priority: Priority) -> bool {
    match (load, priority) {
        (Load::Severe, Priority::Background) => true,
        (Load::Severe, Priority::Interactive) | (Load::Normal | Load::High, _) => false,
    }
}

fn account_of<'a>(
    tenants: &'a mut BTreeMap<TenantId, Account>,
    others: &'a mut Account,
    tenant: &TenantId,
) -> &'a mut Account {
    tenants.get_mut(tenant).unwrap_or(others)
}

fn account_report(account: &Account) -> AccountReport {
    AccountReport {
        open_sessions: account.sessions,
        open_turns: account.turns,
        ..account.tally
    }
}
