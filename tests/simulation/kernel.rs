//! The session machine alone: no actors, no tokio, a host that answers as it likes. A failing
//! sequence is shrunk by proptest.

use std::{env, time::Duration};

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};
use rspp_kernel::{
    CancelReason, Effect, Gates, Input, Part, PlanFacts, Session, SessionState,
    admission::{Decision, Verdict},
    invariant::{Broken, Orders},
    plan::profile,
    turn::Ending,
};
use rspp_proto::{
    Epoch, InvocationId, Monotonic, SampleIndex, TurnNumber,
    abi::{CancelMode, CancelScope},
    spec::{BargeInConfirm, FailurePolicy, LateEventPolicy, PlanFailurePolicy, TurnPolicy},
};

/// Sequences of a normal run.
const CASES: u32 = 4_000;
/// Inputs of a sequence, at most.
const STEPS: usize = 120;

/// One thing that happens to the session.
#[derive(Clone, Debug)]
enum Step {
    Passes(u64),
    Settles,
    Connected,
    Disconnected,
    Drain,
    SpeechStarts,
    SpeechResumes,
    SpeechStops,
    Recognised(bool, bool),
    ClauseIsOver,
    Stops,
    Says(u8),
    Cancels(CancelReason, CancelScope),
    CancelsPart,
    Rotates(u64),
    Revokes,
    Clause(u32),
    Frames(u32, u32),
    ClauseMade(u32),
    Plays,
    PlaybackEnds,
    Fails(Ending),
    Ticks,
    /// From here on the host answers like this.
    Host(Answers),
    /// The next report is of an earlier turn.
    LateReport,
}

/// How the host answers.
#[expect(
    clippy::struct_excessive_bools,
    reason = "answers that are independent of each other"
)]
#[derive(Clone, Copy, Debug)]
struct Answers {
    snapshot: bool,
    verdict: Verdict,
    authorized: bool,
    stale: bool,
    plans: bool,
    stores: bool,
    soft: bool,
    at_work: bool,
    accepted: u32,
}

const WILLING: Answers = Answers {
    snapshot: true,
    verdict: Verdict::Admit,
    authorized: true,
    stale: false,
    plans: true,
    stores: true,
    soft: false,
    at_work: false,
    accepted: 3,
};

fn answers() -> impl Strategy<Value = Answers> {
    let mostly = || prop::bool::weighted(0.85);
    let retry_after = (0..2_000_u64).prop_map(Duration::from_millis);
    let verdict = prop_oneof![
        20 => Just(Verdict::Admit),
        1 => Just(Verdict::Degrade),
        1 => retry_after.clone().prop_map(|retry_after| Verdict::Throttle { retry_after }),
        1 => retry_after.prop_map(|retry_after| Verdict::Defer { retry_after }),
        1 => Just(Verdict::Reject),
    ];
    (
        (mostly(), verdict, mostly(), mostly()),
        (mostly(), mostly(), 0..40u32),
        (any::<bool>(), any::<bool>()),
    )
        .prop_map(
            |(
                (snapshot, verdict, authorized, fresh),
                (plans, stores, accepted),
                (soft, at_work),
            )| Answers {
                snapshot,
                verdict,
                authorized,
                stale: !fresh,
                plans,
                stores,
                soft,
                at_work,
                accepted,
            },
        )
}

fn step() -> impl Strategy<Value = Step> {
    let reason = prop_oneof![
        Just(CancelReason::BargeIn),
        Just(CancelReason::UserCancel),
        Just(CancelReason::Timeout),
        Just(CancelReason::ProviderError),
    ];
    let scope = prop_oneof![
        4 => Just(CancelScope::Turn),
        1 => Just(CancelScope::Node),
    ];
    let ending = prop_oneof![
        Just(Ending::NodeFailed),
        Just(Ending::ProviderFailed),
        Just(Ending::TransportLost),
        Just(Ending::Finished),
    ];
    prop_oneof![
        12 => (1..900u64).prop_map(Step::Passes),
        20 => Just(Step::Settles),
        1 => Just(Step::Connected),
        6 => Just(Step::SpeechStarts),
        5 => Just(Step::SpeechStops),
        2 => Just(Step::SpeechResumes),
        4 => (any::<bool>(), any::<bool>())
            .prop_map(|(words, is_final)| Step::Recognised(words, is_final)),
        3 => Just(Step::ClauseIsOver),
        2 => Just(Step::Stops),
        12 => (0..5u8).prop_map(Step::Says),
        3 => (reason, scope).prop_map(|(reason, scope)| Step::Cancels(reason, scope)),
        1 => Just(Step::CancelsPart),
        2 => (0..3u64).prop_map(Step::Rotates),
        1 => prop_oneof![
            2 => Just(Step::Settles),
            1 => Just(Step::Disconnected),
            1 => Just(Step::Drain),
            1 => Just(Step::Revokes),
        ],
        8 => (0..4u32).prop_map(Step::Clause),
        8 => (0..4u32, 0..50u32).prop_map(|(segment, frames)| Step::Frames(segment, frames)),
        6 => (0..4u32).prop_map(Step::ClauseMade),
        8 => Just(Step::Plays),
        6 => Just(Step::PlaybackEnds),
        2 => ending.prop_map(Step::Fails),
        12 => Just(Step::Ticks),
        4 => answers().prop_map(Step::Host),
        3 => Just(Step::LateReport),
    ]
}

fn policy() -> impl Strategy<Value = TurnPolicy> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (flags, 0..400u64).prop_map(
        |((barge_in, diagnostics, reject, words), barge_in_min_speech_ms)| TurnPolicy {
            barge_in,
            barge_in_confirm: if words {
                BargeInConfirm::Words
            } else {
                BargeInConfirm::Speech
            },
            barge_in_min_speech_ms,
            late_events: if diagnostics {
                LateEventPolicy::Diagnostics
            } else {
                LateEventPolicy::Drop
            },
            plan_failure: if reject {
                PlanFailurePolicy::Reject
            } else {
                PlanFailurePolicy::Defer
            },
            ..TurnPolicy::default()
        },
    )
}

/// A session, its host, and those who look on.
struct Rig {
    session: Session,
    orders: Orders,
    now: Monotonic,
    answers: Answers,
    /// The turn that reports are of.
    turn: TurnNumber,
    late: bool,
    effects: u64,
}

impl Rig {
    fn new(policy: TurnPolicy) -> Self {
        Self {
            session: Session::new(policy, Epoch::FIRST),
            orders: Orders::default(),
            now: Monotonic::ZERO,
            answers: WILLING,
            turn: TurnNumber::FIRST,
            late: false,
            effects: 0,
        }
    }

    fn reported(&mut self) -> TurnNumber {
        let late = std::mem::take(&mut self.late);
        match self.session.current_turn() {
            Some(turn) if !late => turn,
            Some(_) | None => self.turn,
        }
    }

    fn take(&mut self, step: &Step) -> Result<(), Broken> {
        let input = match step.clone() {
            Step::Passes(ms) => {
                self.now = self.now + Duration::from_millis(ms);
                // A host wakes up when it is told to.
                Input::Tick
            }
            Step::Settles => {
                self.session.settle();
                return self.carry_out();
            }
            Step::Connected => Input::Connected,
            Step::Disconnected => Input::Disconnected,
            Step::Drain => Input::Drain,
            Step::SpeechStarts => Input::SpeechStarted { at: SampleIndex(0) },
            Step::SpeechStops => Input::SpeechStopped { at: SampleIndex(0) },
            Step::SpeechResumes => Input::SpeechResumed { at: SampleIndex(0) },
            Step::Recognised(words, is_final) => Input::Recognised {
                at: SampleIndex(0),
                text: if words { "wait" } else { "" }.into(),
                is_final,
            },
            Step::ClauseIsOver => Input::ClauseOver {
                turn: self.reported(),
            },
            Step::Stops => Input::Stop,
            Step::Says(what) => Input::UserTurn {
                text: ["hello", "again", " ", "", "a longer sentence"][usize::from(what)].into(),
            },
            Step::Cancels(reason, scope) => Input::Cancel { reason, scope },
            Step::CancelsPart => Input::CancelPart {
                reason: CancelReason::UserCancel,
                part: Part::Invocation(InvocationId::new("pvi/s/t/e/tts").expect("not blank")),
                silences: false,
            },
            Step::Rotates(by) => Input::Rotated {
                epoch: (0..by).fold(self.session.epoch(), |epoch, _| epoch.next()),
            },
            Step::Revokes => Input::Revoked,
            Step::Clause(segment) => Input::ClauseBegun {
                turn: self.reported(),
                segment,
                text: format!("these are some words of clause {segment}."),
            },
            Step::Frames(segment, frames) => Input::FramesMade {
                turn: self.reported(),
                segment,
                frames,
            },
            Step::ClauseMade(segment) => Input::ClauseMade {
                turn: self.reported(),
                segment,
            },
            Step::Plays => Input::PlaybackStarted {
                turn: self.reported(),
            },
            Step::PlaybackEnds => Input::PlaybackFinished {
                turn: self.reported(),
            },
            Step::Fails(ending) => Input::TurnFailed {
                turn: self.reported(),
                ending,
            },
            Step::Ticks => Input::Tick,
            Step::Host(answers) => {
                self.answers = answers;
                return Ok(());
            }
            Step::LateReport => {
                self.late = true;
                return Ok(());
            }
        };
        self.session.handle(self.now, input);
        self.carry_out()
    }

    fn carry_out(&mut self) -> Result<(), Broken> {
        while let Some(effect) = self.session.poll_effect() {
            self.effects += 1;
            self.orders.effect(&effect)?;
            let says = self.answers;
            let answer = match effect {
                Effect::Judge { turn } => Some(Input::Gates {
                    turn,
                    gates: Gates {
                        snapshot_valid: says.snapshot,
                        admission: Decision {
                            verdict: says.verdict,
                            cause: None,
                        },
                        epoch: if says.stale {
                            self.session.epoch().next()
                        } else {
                            self.session.epoch()
                        },
                        authorized: says.authorized,
                        guess_holds: says.verdict == Verdict::Admit,
                        evidence: true,
                    },
                }),
                Effect::Resolve { turn, .. } => Some(Input::Plan {
                    turn,
                    facts: says.plans.then(|| PlanFacts {
                        hash: "0".repeat(64),
                        budgets: profile::budgets(),
                        actions: profile::adaptive_actions(),
                        cancel_mode: if says.soft {
                            CancelMode::Soft
                        } else {
                            CancelMode::Hard
                        },
                        failure: FailurePolicy::default(),
                    }),
                }),
                Effect::Start { turn, .. } => {
                    self.turn = turn;
                    None
                }
                Effect::Fence { turn, .. } => Some(Input::Fenced {
                    turn,
                    accepted: says.accepted,
                }),
                Effect::Revoke => self.session.current_turn().map(|turn| Input::Fenced {
                    turn,
                    accepted: says.accepted,
                }),
                Effect::Probe { turn } => Some(Input::Pulse {
                    turn,
                    heard: None,
                    answered: None,
                    at_work: says.at_work,
                }),
                Effect::Seal { turn, .. } => Some(Input::Sealed {
                    turn,
                    stored: says.stores,
                }),
                _asks_nothing => None,
            };
            if let Some(answer) = answer {
                self.session.handle(self.now, answer);
            }
        }
        Ok(())
    }

    fn look(&self, after: &Step) -> Result<(), Broken> {
        if matches!(after, Step::Passes(_) | Step::Ticks) {
            self.orders.deadline(&self.session, self.now)?;
        }
        self.orders.session(&self.session)
    }
}

fn hold(policy: TurnPolicy, steps: &[Step]) -> Result<u64, Broken> {
    let mut rig = Rig::new(policy);
    rig.take(&Step::Connected)?;
    for step in steps {
        rig.take(step)?;
        rig.look(step)?;
    }
    // Whatever was going on: hanging up ends it.
    rig.take(&Step::Disconnected)?;
    rig.take(&Step::Settles)?;
    rig.look(&Step::Settles)?;
    assert_eq!(rig.session.state(), SessionState::Ended);
    Ok(rig.effects)
}

/// F-138, F-139, T1 to T12, P2: whatever happens to a session, in whatever order.
#[test]
fn whatever_happens_to_a_session_the_invariants_hold() {
    let seeds = env::var("RSPP_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok());
    let from: u64 = env::var("RSPP_FROM")
        .ok()
        .and_then(|from| from.parse().ok())
        .unwrap_or(0);
    let cases = seeds.unwrap_or(CASES);
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&from.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(
        Config {
            cases,
            failure_persistence: None,
            ..Config::default()
        },
        TestRng::from_seed(RngAlgorithm::ChaCha, &seed),
    );
    let (steps, effects) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let outcome = runner.run(&(policy(), vec(step(), 1..STEPS)), |(policy, sequence)| {
        steps.set(steps.get() + sequence.len());
        match hold(policy, &sequence) {
            Ok(count) => {
                effects.set(effects.get() + count);
                Ok(())
            }
            Err(broken) => Err(TestCaseError::fail(broken.to_string())),
        }
    });
    println!(
        "{cases} sessions, {} steps, {} effects",
        steps.get(),
        effects.get()
    );
    assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    assert!(
        effects.get() > u64::from(cases) * 20,
        "hardly anything happened"
    );
}
