//! One call to a provider as a machine: candidates, attempts, verdicts, evidence.
//!
//! Says when to try whom, when to wait and when to stop, and owns every deadline of the call. Making
//! an attempt, and dropping it, is the host's business.

mod circuit;
mod deadline;
mod overrun;
mod policy;
mod record;

#[cfg(test)]
mod tests;

use std::time::Duration;

use rspp_proto::{
    InvocationId, Monotonic, OutcomeClass, ProviderId, RetryDecision, abi::Signal,
    spec::AdaptiveAction,
};

use crate::budget::{BudgetEvent, BudgetKey, Threshold, warns_after};

pub use circuit::{Admission, CircuitBreaker, CircuitCause, CircuitChange, CircuitState};
pub use deadline::{CallDeadlines, Quiet, TurnDeadlines};
pub use overrun::Overruns;
pub use policy::{Candidate, InvocationPolicy, Patience};
pub use record::{AttemptRecord, Failure, InvocationOutcome, error_code};

/// Names an attempt within its call; counts from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptKey(pub u32);

/// A signal that a verdict asks for; all have scope `provider_invocation`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvocationSignal {
    /// Which.
    pub signal: Signal,
    /// Its reason.
    pub reason: String,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Begin an attempt at `at`, which lies ahead only if no other attempt runs.
    Attempt {
        /// Its name from now on.
        key: AttemptKey,
        /// Whom to ask.
        provider: ProviderId,
        /// Counts attempts at this provider, from 1.
        attempt: u32,
        /// When.
        at: Monotonic,
    },
    /// Drop an attempt: it was silent for too long, or another has won.
    Stop(AttemptKey),
    /// The call is over.
    Finish(Box<InvocationOutcome>),
}

/// A decision with the signals that tell of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "an order not carried out leaves the call hanging"]
pub struct Verdict {
    /// To be emitted, in order, before the orders are carried out.
    pub signals: Vec<InvocationSignal>,
    /// What to do next, in order.
    pub orders: Vec<Order>,
}

/// One call to a provider.
///
/// Attempts at the first candidate come first, then those at the next. What is tried again has to
/// fit what is left of the budget, waiting included; while there is somebody else to ask, an attempt
/// that says nothing gets half of what is left. A hedged call asks a second candidate as well once
/// the first is slow: whoever speaks first wins. Once words were passed on ([`Invocation::said`]) the same
/// question is not put again: the listener would hear them twice (P6). But another provider may be asked to
/// go on from there (P14), unless more than words was passed on ([`Invocation::commit`]).
#[derive(Debug)]
pub struct Invocation {
    id: InvocationId,
    policy: InvocationPolicy,
    candidates: Vec<Candidate>,
    began: Monotonic,
    deadlines: CallDeadlines,
    /// What they would be if the call had not had to wait for this machine.
    in_peace: CallDeadlines,
    /// The last candidate that was asked.
    at: usize,
    next_key: u32,
    /// How long it may take until its first chunk, by its node.
    budget: Option<Allowed>,
    /// At most two: one, and its hedge.
    running: Vec<Running>,
    hedged: bool,
    listening: bool,
    given: Given,
    cancelled: Option<Monotonic>,
    decision: RetryDecision,
    attempts: Vec<AttemptRecord>,
    /// Attempts that nobody was told of yet.
    untold: Vec<AttemptRecord>,
}

/// A node's budget for the call; soft.
#[derive(Clone, Copy, Debug)]
struct Allowed {
    limit: Duration,
    /// Since when it is spent; `None` while nobody owes anything.
    from: Option<Monotonic>,
    told: Option<Threshold>,
}

impl Allowed {
    /// When there is something to tell.
    fn next(&self) -> Option<Monotonic> {
        let from = self.from?;
        match self.told {
            None => Some(from + warns_after(self.limit)),
            Some(Threshold::Warn) => Some(from + self.limit),
            Some(Threshold::Exhaust) => None,
        }
    }
}

/// What of the answer was passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Given {
    Nothing,
    /// Words: they cannot be taken back, but somebody else can go on from there.
    Words,
    /// Something that nobody else can go on from.
    More,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    key: AttemptKey,
    candidate: usize,
    attempt: u32,
    began: Monotonic,
    first_chunk: Option<Monotonic>,
    /// Since when it owes something.
    quiet_since: Monotonic,
    /// How long it has waited for this machine, and how much of that was before it fell quiet.
    queued: Duration,
    queued_before: Duration,
    /// Whether it has said something since its input was complete.
    spoke: bool,
    chunks: u64,
}

impl Running {
    /// It owes something from here on.
    fn quiet_from(&mut self, now: Monotonic) {
        self.quiet_since = self.quiet_since.max(now);
        self.queued_before = self.queued;
    }

    /// How long it has waited for this machine since then.
    fn waited(&self) -> Duration {
        self.queued.saturating_sub(self.queued_before)
    }
}

impl Invocation {
    /// A call that may try `candidates`, in that order.
    pub fn new(
        id: InvocationId,
        candidates: Vec<Candidate>,
        policy: InvocationPolicy,
        now: Monotonic,
        deadlines: CallDeadlines,
    ) -> Self {
        let mut candidates = candidates;
        candidates.truncate(policy.max_providers.max(1));
        Self {
            id,
            policy,
            candidates,
            began: now,
            deadlines,
            in_peace: deadlines,
            at: 0,
            next_key: 0,
            budget: None,
            running: Vec::new(),
            hedged: false,
            listening: false,
            given: Given::Nothing,
            cancelled: None,
            decision: RetryDecision::None,
            attempts: Vec::new(),
            untold: Vec::new(),
        }
    }

    /// The same for a node with a budget of its own (F-046): what is late is told, and moved elsewhere if
    /// there is somebody else.
    #[must_use]
    pub fn within(mut self, budget: Option<Duration>) -> Self {
        self.budget = budget.map(|limit| Allowed {
            limit,
            from: Some(self.began),
            told: None,
        });
        self
    }

    /// The first order. `admits` asks the circuit of a provider whether it may be called.
    pub fn begin(&mut self, now: Monotonic, admits: impl FnMut(&ProviderId) -> bool) -> Verdict {
        if self.candidates.is_empty() {
            return self.refuse(now, OutcomeClass::Blocked, NOBODY);
        }
        if self.left(now) < self.policy.least_useful {
            return self.refuse(now, OutcomeClass::Timeout, BUDGET_EXHAUSTED);
        }
        let Some(at) = self.next_candidate(0, admits) else {
            return self.refuse(now, OutcomeClass::Overload, CIRCUIT_OPEN);
        };
        self.start(now, Verdict::default(), at, 1)
    }

    /// Nobody is asked: why is told, as of any other failure.
    fn refuse(&mut self, now: Monotonic, class: OutcomeClass, reason: &'static str) -> Verdict {
        let first = self.candidates.first();
        let name = first.map_or("nobody", |first| first.provider.as_str());
        let mut verdict = Verdict::default();
        verdict.signals.push(InvocationSignal {
            signal: Signal::ProviderError,
            reason: format!("{name} {} {reason}", class.as_str()),
        });
        self.finish(now, verdict, class, reason)
    }

    /// The input is not complete yet, as while the user speaks: nobody owes an answer.
    pub fn listen(&mut self) {
        self.listening = true;
        self.owe_since(None);
    }

    /// The node's budget is spent from there on, or not for now.
    fn owe_since(&mut self, from: Option<Monotonic>) {
        if let Some(budget) = &mut self.budget {
            budget.from = from;
        }
    }

    /// The input is complete: the answer is owed from here on.
    pub fn heard_out(&mut self, now: Monotonic) {
        self.listening = false;
        self.owe_since(Some(now));
        for running in &mut self.running {
            running.quiet_from(now);
            running.spoke = false;
        }
    }

    /// The call is held to other deadlines from here on: a guess became a turn, which is waited for.
    pub fn hold_to(&mut self, deadlines: CallDeadlines) {
        self.deadlines = deadlines;
        self.in_peace = deadlines;
    }

    /// The call had to wait for its slot until now. Its own times count from here, its turn's do not;
    /// `deadlines` are what that leaves. Call before [`Self::begin`].
    pub fn let_in(&mut self, now: Monotonic, deadlines: CallDeadlines) {
        self.in_peace = self.deadlines.later(now.since(self.began));
        self.deadlines = deadlines;
    }

    /// An attempt has waited for this machine for `total` so far: its provider cannot answer what it
    /// has not been given. To be told before whatever may end the attempt's silence.
    pub fn queued(&mut self, key: AttemptKey, total: Duration) {
        if let Some(running) = self.running.iter_mut().find(|running| running.key == key) {
            running.queued = total;
        }
    }

    /// A chunk came. The first to speak wins: others are stopped.
    pub fn chunk(&mut self, key: AttemptKey, now: Monotonic) -> Verdict {
        let mut verdict = Verdict::default();
        let Some(winner) = self.running.iter_mut().find(|running| running.key == key) else {
            return verdict; // Of an attempt that was stopped.
        };
        winner.first_chunk.get_or_insert(now);
        winner.quiet_from(now);
        winner.spoke = true;
        winner.chunks += 1;
        let candidate = winner.candidate;
        self.owe_since(None);
        if self.running.len() > 1 {
            let losers: Vec<Running> = self
                .running
                .iter()
                .filter(|other| other.key != key)
                .copied()
                .collect();
            for loser in losers {
                let overtaken = loser.candidate < candidate;
                let decision = if overtaken {
                    verdict
                        .signals
                        .push(self.switch(&loser, candidate, " hedged"));
                    self.switch_decision()
                } else {
                    RetryDecision::None
                };
                self.record(loser.key, now, &Failure::overtaken(), decision);
                verdict.orders.push(Order::Stop(loser.key));
            }
        }
        verdict
    }

    /// What had come was passed on, which may have had to wait: that was no silence.
    pub fn passed_on(&mut self, now: Monotonic) {
        for running in &mut self.running {
            running.quiet_from(now);
        }
    }

    /// Words of the answer were passed on, which cannot be taken back.
    pub fn said(&mut self) {
        self.given = self.given.max(Given::Words);
    }

    /// A piece of the answer was passed on that nobody else can go on from.
    pub fn commit(&mut self) {
        self.given = Given::More;
    }

    /// The turn has gone mute: whoever has said nothing for `gap` is given up, and who is asked instead has
    /// as much time (P13).
    pub fn unstick(
        &mut self,
        now: Monotonic,
        gap: Duration,
        admits: impl FnMut(&ProviderId) -> bool,
    ) -> Verdict {
        let silent = self
            .running
            .iter()
            .find(|running| now.since(running.quiet_since) >= running.waited() + gap);
        let Some(silent) = silent.copied().filter(|_| !self.listening) else {
            return Verdict::default();
        };
        let another = (now + gap).min(self.deadlines.quiet.last);
        self.deadlines = CallDeadlines {
            end: another,
            share: None,
            quiet: Quiet {
                gap,
                most: gap,
                last: another,
            },
        };
        self.in_peace = self.deadlines;
        let verdict = Verdict {
            signals: Vec::new(),
            orders: vec![Order::Stop(silent.key)],
        };
        self.fail(silent.key, now, &Failure::mute(), verdict, admits)
    }

    /// An attempt ended well.
    pub fn succeeded(&mut self, key: AttemptKey, now: Monotonic) -> Verdict {
        let mut verdict = Verdict::default();
        self.record(key, now, &Failure::none(), RetryDecision::None);
        // It may have won without a chunk, as a voice that has nothing to say.
        for loser in self.running.clone() {
            self.record(loser.key, now, &Failure::overtaken(), RetryDecision::None);
            verdict.orders.push(Order::Stop(loser.key));
        }
        self.finish(now, verdict, OutcomeClass::Success, OK)
    }

    /// An attempt failed.
    pub fn failed(
        &mut self,
        key: AttemptKey,
        now: Monotonic,
        failure: &Failure,
        admits: impl FnMut(&ProviderId) -> bool,
    ) -> Verdict {
        self.fail(key, now, failure, Verdict::default(), admits)
    }

    /// Sees to what is due at `now`: attempts that were silent for too long are given up (P14), a
    /// slow one is hedged.
    pub fn tick(&mut self, now: Monotonic, admits: impl FnMut(&ProviderId) -> bool) -> Verdict {
        let told = self.budget_news(now);
        let mut verdict = self.see_to(now, admits);
        verdict.signals.splice(0..0, told);
        verdict
    }

    fn see_to(&mut self, now: Monotonic, mut admits: impl FnMut(&ProviderId) -> bool) -> Verdict {
        let silent = self
            .running
            .iter()
            .find(|running| self.due(running).is_some_and(|due| due <= now));
        if let Some(silent) = silent {
            let key = silent.key;
            let failure = if self.is_excused(silent, now) {
                Failure::no_time()
            } else {
                Failure::timeout()
            };
            let verdict = Verdict {
                signals: Vec::new(),
                orders: vec![Order::Stop(key)],
            };
            return self.fail(key, now, &failure, verdict, admits);
        }
        if self.hedge_at().is_some_and(|due| due <= now) {
            // Asked once, whatever comes of it.
            self.hedged = true;
            if self.left(now) >= self.policy.least_useful
                && let Some(to) = self.next_candidate(self.at + 1, &mut admits)
            {
                return self.start(now, Verdict::default(), to, 1);
            }
        }
        Verdict::default()
    }

    /// The result is no longer wanted: accepted at once, in whatever state. The host stops what runs
    /// and reports nothing more.
    pub fn cancel(&mut self, accepted: Monotonic, now: Monotonic) -> Verdict {
        self.cancelled.get_or_insert(accepted);
        let running: Vec<_> = self.running.iter().map(|running| running.key).collect();
        let mut verdict = Verdict::default();
        for key in running {
            self.record(key, now, &Failure::cancelled(), RetryDecision::None);
            verdict.orders.push(Order::Stop(key));
        }
        let Failure { class, reason, .. } = Failure::cancelled();
        self.finish(now, verdict, class, reason)
    }

    /// When to [`Self::tick`] at the latest.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        let dues = self.running.iter().filter_map(|running| self.due(running));
        let budget = self.budget.as_ref().and_then(Allowed::next);
        dues.chain(self.hedge_at()).chain(budget).min()
    }

    /// What is to be told of the node's budget.
    fn budget_news(&mut self, now: Monotonic) -> Vec<InvocationSignal> {
        let Some(budget) = &mut self.budget else {
            return Vec::new();
        };
        let Some(from) = budget.from else {
            return Vec::new();
        };
        let (spent, actions) = (now.since(from), &self.policy.actions);
        let event = BudgetEvent::of_part(BudgetKey::Provider, spent, budget.limit, actions);
        let Some(event) = event.filter(|event| budget.told < Some(event.threshold)) else {
            return Vec::new();
        };
        budget.told = Some(event.threshold);
        let signal = |signal| InvocationSignal {
            signal,
            reason: event.key.as_str().to_owned(),
        };
        event.signals().map(signal).collect()
    }

    /// Attempts that have ended since the last time of asking: for circuits and [`Overruns`].
    pub fn take_ended(&mut self) -> Vec<AttemptRecord> {
        std::mem::take(&mut self.untold)
    }

    fn provider(&self, running: &Running) -> &ProviderId {
        &self.candidates[running.candidate].provider
    }

    fn may(&self, action: AdaptiveAction) -> bool {
        self.policy.actions.contains(&action)
    }

    fn may_switch(&self) -> bool {
        self.given < Given::More
            && (self.may(AdaptiveAction::ProviderSwitch) || self.may(AdaptiveAction::Fallback))
    }

    fn switch_decision(&self) -> RetryDecision {
        if self.may(AdaptiveAction::ProviderSwitch) {
            RetryDecision::ProviderSwitch
        } else {
            RetryDecision::Fallback
        }
    }

    fn left(&self, now: Monotonic) -> Duration {
        self.deadlines.end.since(now)
    }

    /// When a running attempt is given up unless it says something. The budget bounds the wait for
    /// the first chunk only: an answer that flows is bounded by the turn.
    fn due(&self, running: &Running) -> Option<Monotonic> {
        if self.listening {
            return None;
        }
        Some(self.due_by(running, running.waited(), self.deadlines))
    }

    /// The same with that wait for this machine and these deadlines. Who waits for this machine may be
    /// given up for another all the same, but not for its own silence.
    fn due_by(&self, running: &Running, waited: Duration, by: CallDeadlines) -> Monotonic {
        let patience = self.candidates[running.candidate].patience;
        let since = running.quiet_since;
        let another = self.may_switch() && self.at + 1 < self.candidates.len();
        if running.spoke {
            let most = if another { by.quiet.gap } else { by.quiet.most };
            return since + waited + patience.inter_chunk.min(most);
        }
        let own = (since + waited + patience.first_byte).min(by.end);
        let share = by.share.filter(|by| another && *by > since);
        match share {
            Some(by) => own.min(since + (by.since(since) / 2).max(self.policy.least_useful)),
            None => own,
        }
    }

    /// Whether a provider that is given up now has had less time than it would have had if nothing of
    /// the call had waited for this machine.
    fn is_excused(&self, running: &Running, now: Monotonic) -> bool {
        let waited = running.waited();
        let had = now.since(running.quiet_since).saturating_sub(waited);
        let would = self.due_by(running, Duration::ZERO, self.in_peace.later(waited));
        running.quiet_since + had < would
    }

    /// When the one attempt that runs has been slow for long enough to ask another as well.
    fn hedge_at(&self) -> Option<Monotonic> {
        let [running] = self.running.as_slice() else {
            return None;
        };
        let waits = !self.hedged && !self.listening && !running.spoke;
        let another = self.may_switch() && self.at + 1 < self.candidates.len();
        let after = self.policy.hedge_after.filter(|_| waits && another)?;
        Some(running.quiet_since + after)
    }

    fn fail(
        &mut self,
        key: AttemptKey,
        now: Monotonic,
        failure: &Failure,
        mut verdict: Verdict,
        admits: impl FnMut(&ProviderId) -> bool,
    ) -> Verdict {
        let Some(failed) = self
            .running
            .iter()
            .find(|running| running.key == key)
            .copied()
        else {
            return verdict; // Stopped before.
        };
        if self.cancelled.is_some() || failure.class == OutcomeClass::Cancelled {
            self.record(key, now, &Failure::cancelled(), RetryDecision::None);
            let mut cancelled = self.cancel(now, now);
            cancelled.orders.splice(0..0, verdict.orders);
            return cancelled;
        }
        let name = self.provider(&failed).clone();
        verdict.signals.push(InvocationSignal {
            signal: Signal::ProviderError,
            reason: format!("{name} {} {}", failure.class.as_str(), failure.reason),
        });
        let other = self
            .running
            .iter()
            .find(|running| running.key != key)
            .copied();
        if let Some(other) = other {
            // Its hedge goes on, or it was only the hedge.
            let decision = if other.candidate > failed.candidate {
                verdict
                    .signals
                    .push(self.switch(&failed, other.candidate, " hedged"));
                self.switch_decision()
            } else {
                RetryDecision::None
            };
            self.record(key, now, failure, decision);
            return verdict;
        }
        if failed.chunks > 0 {
            self.deadlines = self.deadlines.resumed(now);
            self.in_peace = self.deadlines;
        }
        let retry = self.retry_at(&failed, now, failure);
        let retry_at = retry.filter(|at| self.left(*at) >= self.policy.least_useful);
        // One that asked for peace is left in peace if there is another, and one that fell silent in the
        // middle of its answer is not listened to again. A circuit is asked only
        // when its provider would really be called: the question may spend its one trial.
        let fell_silent = failed.spoke && failure.class == OutcomeClass::Timeout;
        let next = if retry_at.is_some() && !failure.circuit_open && !fell_silent {
            None
        } else {
            self.switch_to(now, failure, admits)
        };
        match (retry_at, next) {
            (Some(at), None) => {
                self.record(key, now, failure, RetryDecision::Retry);
                self.start(at, verdict, failed.candidate, failed.attempt + 1)
            }
            (_, Some(to)) => {
                let decision = self.switch_decision();
                self.record(key, now, failure, decision);
                verdict.signals.push(self.switch(&failed, to, ""));
                self.start(now, verdict, to, 1)
            }
            (None, None) => {
                self.record(key, now, failure, RetryDecision::None);
                let no_time = self.left(now) < self.policy.least_useful || retry.is_some();
                let reason = if no_time && self.given == Given::Nothing && failure.retryable {
                    BUDGET_EXHAUSTED
                } else {
                    failure.reason
                };
                self.finish(now, verdict, failure.class, reason)
            }
        }
    }

    fn switch(&self, from: &Running, to: usize, how: &str) -> InvocationSignal {
        let (from, to) = (self.provider(from), &self.candidates[to].provider);
        InvocationSignal {
            signal: Signal::ProviderSwitch,
            reason: format!("from={from} to={to}{how}"),
        }
    }

    /// When to ask the same provider again, if that is allowed; whether it fits is another question.
    fn retry_at(&self, failed: &Running, now: Monotonic, failure: &Failure) -> Option<Monotonic> {
        let allowed = failure.retryable
            && self.given == Given::Nothing
            && self.may(AdaptiveAction::Retry)
            && failed.attempt < self.policy.attempts_per_provider;
        let doublings = failed.attempt.saturating_sub(1).min(16);
        let own = self.policy.backoff.saturating_mul(1 << doublings);
        allowed.then(|| now + failure.backoff.unwrap_or(own))
    }

    /// The provider to move to, if that is allowed and fits.
    fn switch_to(
        &self,
        now: Monotonic,
        failure: &Failure,
        admits: impl FnMut(&ProviderId) -> bool,
    ) -> Option<usize> {
        let allowed = self.may_switch()
            && (failure.class != OutcomeClass::Blocked || self.policy.switch_on_blocked)
            && self.left(now) >= self.policy.least_useful;
        if !allowed {
            return None;
        }
        self.next_candidate(self.at + 1, admits)
    }

    fn next_candidate(
        &self,
        from: usize,
        mut admits: impl FnMut(&ProviderId) -> bool,
    ) -> Option<usize> {
        (from..self.candidates.len()).find(|at| admits(&self.candidates[*at].provider))
    }

    fn start(
        &mut self,
        at: Monotonic,
        mut verdict: Verdict,
        candidate: usize,
        attempt: u32,
    ) -> Verdict {
        // A hedge may have been tried and have failed before the first is asked again.
        self.at = self.at.max(candidate);
        let key = AttemptKey(self.next_key);
        self.next_key += 1;
        self.running.push(Running {
            key,
            candidate,
            attempt,
            began: at,
            first_chunk: None,
            quiet_since: at,
            queued: Duration::ZERO,
            queued_before: Duration::ZERO,
            spoke: false,
            chunks: 0,
        });
        verdict.orders.push(Order::Attempt {
            key,
            provider: self.candidates[candidate].provider.clone(),
            attempt,
            at,
        });
        verdict
    }

    fn record(
        &mut self,
        key: AttemptKey,
        now: Monotonic,
        failure: &Failure,
        decision: RetryDecision,
    ) {
        let Some(at) = self.running.iter().position(|running| running.key == key) else {
            return;
        };
        let running = self.running.remove(at);
        if decision != RetryDecision::None {
            self.decision = decision;
        }
        let record = AttemptRecord {
            key,
            provider: self.provider(&running).clone(),
            attempt: running.attempt,
            began: running.began,
            first_chunk: running.first_chunk,
            // One that was cancelled while it waited for its turn never began.
            ended: now.max(running.began),
            chunks: running.chunks,
            class: failure.class,
            reason: failure.reason,
            retryable: failure.retryable,
            circuit_open: failure.circuit_open,
            backoff: failure.backoff,
            decision,
            queued: running.queued,
            excused: *failure == Failure::no_time(),
        };
        self.untold.push(record.clone());
        self.attempts.push(record);
    }

    fn finish(
        &mut self,
        now: Monotonic,
        mut verdict: Verdict,
        class: OutcomeClass,
        reason: &'static str,
    ) -> Verdict {
        // Attempts are noted as they end, and told as they began.
        self.attempts.sort_by_key(|attempt| attempt.key);
        let outcome = InvocationOutcome {
            invocation: self.id.clone(),
            provider: self.answerer(),
            class,
            reason,
            decision: self.decision,
            attempts: std::mem::take(&mut self.attempts),
            latency: now.since(self.began),
            cancel_latency: self.cancelled.map(|accepted| now.since(accepted)),
        };
        verdict.orders.push(Order::Finish(Box::new(outcome)));
        verdict
    }

    /// Who answered, else who was asked last, else who would have been asked.
    fn answerer(&self) -> Option<ProviderId> {
        let answered = |attempt: &&AttemptRecord| attempt.class == OutcomeClass::Success;
        let by = self.attempts.iter().find(answered).or(self.attempts.last());
        match by {
            Some(attempt) => Some(attempt.provider.clone()),
            None => Some(self.candidates.first()?.provider.clone()),
        }
    }
}

const OK: &str = "ok";
const NOBODY: &str = "provider_endpoint_missing";
const BUDGET_EXHAUSTED: &str = "provider_budget_exhausted";
const CIRCUIT_OPEN: &str = "provider_circuit_open";
