//! The session machine against the truth table and the bugs of others.

mod interruptions;
mod speculation;
mod tools;

use std::collections::BTreeSet;

use rspp_proto::{SampleIndex, spec::FailurePolicy};

use super::*;
use crate::{
    input::Inheritance,
    plan::profile,
    refused::RefusedMove,
    tool::{MOVED, ToolEnd, ToolExchange},
    turn::AbortReason,
};

const T1: TurnNumber = TurnNumber::FIRST;

fn refused(verdict: admission::Verdict) -> admission::Decision {
    admission::Decision {
        verdict,
        cause: Some(Cause {
            whose: crate::admission::Whose::Tenant,
            limit: Limit::TurnsPerMinute,
        }),
    }
}

/// A session and a host that answers at once.
struct Rig {
    session: Session,
    now: Monotonic,
    gates: Gates,
    plan: bool,
    stored: bool,
    accepted: u32,
    cancel_mode: CancelMode,
    /// Whether a turn that seems mute is found to be at work.
    at_work: bool,
    /// When a provider last brought a piece of an answer.
    answered: Option<Monotonic>,
    failure: FailurePolicy,
    /// Calls whose executors have begun.
    began: BTreeSet<String>,
    log: Vec<String>,
}

impl Rig {
    fn new() -> Self {
        Self::with(TurnPolicy::default())
    }

    fn with(policy: TurnPolicy) -> Self {
        let mut rig = Self {
            session: Session::new(policy, Epoch::FIRST),
            now: Monotonic::ZERO,
            gates: Gates {
                snapshot_valid: true,
                admission: admission::Decision::ADMIT,
                epoch: Epoch::FIRST,
                authorized: true,
                guess_holds: true,
                evidence: true,
            },
            plan: true,
            stored: true,
            accepted: 0,
            cancel_mode: CancelMode::Hard,
            at_work: false,
            answered: None,
            failure: FailurePolicy::default(),
            began: BTreeSet::new(),
            log: Vec::new(),
        };
        rig.take(Input::Connected);
        rig.log.clear();
        rig
    }

    /// A session with an active turn.
    fn talking() -> Self {
        let mut rig = Self::new();
        rig.say("hello");
        rig.log.clear();
        rig
    }

    fn say(&mut self, text: &str) {
        self.take(Input::UserTurn { text: text.into() });
    }

    fn after(&mut self, ms: u64) -> &mut Self {
        self.now = self.now + Duration::from_millis(ms);
        self
    }

    /// One message, settled.
    fn take(&mut self, input: Input) {
        self.session.handle(self.now, input);
        self.carry_out();
        self.session.settle();
        self.carry_out();
    }

    /// Several messages that were pending at one arbitration point.
    fn take_together(&mut self, inputs: impl IntoIterator<Item = Input>) {
        for input in inputs {
            self.session.handle(self.now, input);
            self.carry_out();
        }
        self.session.settle();
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.session.poll_effect() {
            let answer = match effect {
                Effect::Signal(emission) => {
                    let reason = emission.reason.map_or(String::new(), |r| format!("({r})"));
                    self.log.push(format!("{}{reason}", emission.signal));
                    None
                }
                Effect::Judge { turn } => Some(Input::Gates {
                    turn,
                    gates: self.gates,
                }),
                Effect::Resolve { turn, .. } => Some(Input::Plan {
                    turn,
                    facts: self.plan.then(|| PlanFacts {
                        hash: "0".repeat(64),
                        budgets: profile::budgets(),
                        actions: profile::adaptive_actions(),
                        cancel_mode: self.cancel_mode,
                        failure: self.failure.clone(),
                    }),
                }),
                Effect::Fence { turn, .. } => {
                    self.log.push("FENCE".into());
                    Some(Input::Fenced {
                        turn,
                        accepted: std::mem::take(&mut self.accepted),
                    })
                }
                Effect::Seal { turn, .. } => Some(Input::Sealed {
                    turn,
                    stored: self.stored,
                }),
                Effect::Revoke => self.session.current_turn().map(|turn| Input::Fenced {
                    turn,
                    accepted: std::mem::take(&mut self.accepted),
                }),
                Effect::Voice { available } => {
                    self.log.push(format!("VOICE {available}"));
                    None
                }
                Effect::Start { task, mute, .. } => {
                    let how = if mute { " in text" } else { "" };
                    self.log.push(match task {
                        Task::Answer { user_text } => format!("START {user_text}{how}"),
                        Task::Say { words } => format!("SAY {words}{how}"),
                        Task::Play { recording, .. } => format!("PLAY {recording}"),
                    });
                    None
                }
                Effect::Cancel { reason, .. } => {
                    self.log.push(format!("STOP WORK {}", reason.as_str()));
                    None
                }
                Effect::Late { action, .. } => {
                    self.log.push(format!("LATE {}", action.as_str()));
                    None
                }
                Effect::Hold { .. } => {
                    self.log.push("HOLD".into());
                    None
                }
                Effect::Release { reason, .. } => {
                    self.log.push(format!("RELEASE {reason}"));
                    None
                }
                Effect::Soften { reason, .. } => {
                    self.log.push(format!("SOFTEN {}", reason.as_str()));
                    None
                }
                Effect::Unstick { .. } => {
                    self.log.push("UNSTICK".into());
                    None
                }
                Effect::Probe { turn } => Some(Input::Pulse {
                    turn,
                    heard: None,
                    answered: self.answered,
                    at_work: self.at_work,
                }),
                Effect::Speculate { user_text, .. } => {
                    self.log.push(format!("GUESS {user_text}"));
                    None
                }
                Effect::Promote { turn, deadlines } => {
                    let within = deadlines.first_output.since(self.now).as_millis();
                    self.log.push(format!("PROMOTE {turn} within {within}"));
                    None
                }
                Effect::Discard { turn, reason } => {
                    self.log.push(format!("DISCARD {turn} {}", reason.as_str()));
                    None
                }
                Effect::Journal(step) => {
                    self.log.push(tools::described(&step));
                    None
                }
                Effect::RunTool { request, .. } => {
                    self.log.push(format!("RUN {}", request.call));
                    None
                }
                Effect::InterruptTool { turn, call, .. } => {
                    let began = self.began.contains(&*call);
                    Some(Input::ToolInterrupted { turn, call, began })
                }
                Effect::AnswerTool { call, content, .. } => {
                    self.log.push(format!("ANSWER {call}: {content}"));
                    None
                }
                Effect::Act(action) => {
                    self.log.push(format!("ACT {action:?}"));
                    None
                }
                Effect::Session(state) => {
                    self.log.push(format!("{state:?}"));
                    None
                }
                // Tests of refused moves take their effects themselves.
                Effect::RefuseMove(_)
                | Effect::Refused { .. }
                | Effect::Transition { .. }
                | Effect::Stop { .. }
                | Effect::Flush { .. }
                | Effect::HandOver
                | Effect::Rotate { .. } => None,
                Effect::Renew => {
                    self.log.push("RENEW".into());
                    None
                }
            };
            if let Some(answer) = answer {
                self.session.handle(self.now, answer);
            }
        }
    }

    fn speak(&mut self, frames: u32) {
        self.take(Input::ClauseBegun {
            turn: T1,
            segment: 0,
            text: "one two three four".into(),
        });
        self.take(Input::FramesMade {
            turn: T1,
            segment: 0,
            frames: 100,
        });
        self.take(Input::ClauseMade {
            turn: T1,
            segment: 0,
        });
        self.take(Input::PlaybackStarted { turn: T1 });
        self.accepted = frames;
    }

    fn heard(&self) -> Vec<String> {
        use crate::conversation::Said;
        self.session
            .conversation()
            .iter()
            .filter_map(|said| match said {
                Said::User { .. } | Said::Tool(_) => None,
                Said::Agent { text, .. } => Some(text.clone()),
            })
            .collect()
    }
}

/// T1, T5, T6, F-139, NF-029.
#[test]
fn a_turn_opens_speaks_and_commits() {
    let mut rig = Rig::new();
    rig.say("hello");
    rig.speak(100);
    rig.take(Input::PlaybackFinished { turn: T1 });
    assert_eq!(
        rig.log,
        [
            "turn_open_proposed(session_turn_intent)",
            "admit(admission_capacity_allow)",
            "turn_open",
            "START hello",
            "output_accepted(output_accepted)",
            "playback_started",
            "playback_completed",
            "FENCE",
            "commit",
            "close",
        ]
    );
    assert_eq!(rig.heard(), ["one two three four"]);
}

/// F-141, T2, T3, T4, T5a, AE-001, AE-005: judged in order, and nothing is aborted or closed.
#[test]
fn refusals_are_judged_in_order_and_stay_pre_turn() {
    #[track_caller]
    fn check(break_it: impl Fn(&mut Rig), outcome: &str) {
        let mut rig = Rig::new();
        break_it(&mut rig);
        rig.say("hello");
        assert_eq!(
            rig.log,
            ["turn_open_proposed(session_turn_intent)", outcome]
        );
        assert_eq!(rig.session.current_turn(), None);
    }
    check(
        |rig| {
            rig.gates.snapshot_valid = false;
            rig.gates.admission = refused(admission::Verdict::Reject);
        },
        "defer(snapshot_invalid_or_missing)",
    );
    check(
        |rig| rig.gates.admission = refused(admission::Verdict::Reject),
        "reject(admission_capacity_reject)",
    );
    check(
        |rig| {
            rig.gates.epoch = Epoch::FIRST.next();
            rig.gates.authorized = false;
        },
        "stale_epoch_reject(authority_epoch_mismatch)",
    );
    check(
        |rig| rig.gates.authorized = false,
        "deauthorized_drain(authority_revoked_before_open)",
    );
    check(|rig| rig.plan = false, "defer(plan_materialization_failed)");
}

/// CF-001, CF-003, F-025, F-033: the fence falls first, then everybody is told.
#[test]
fn speech_over_the_agent_interrupts_it() {
    let mut rig = Rig::talking();
    rig.speak(50);
    rig.log.clear();
    rig.take(Input::SpeechStarted { at: SampleIndex(0) });
    assert!(rig.log.is_empty(), "one edge is not an interruption (P28)");
    rig.after(200).take(Input::Tick);
    assert_eq!(
        rig.log,
        [
            "FENCE",
            "barge_in",
            "cancel(barge_in)",
            "STOP WORK barge_in",
            "playback_cancelled(cancel_fence_applied)",
            "FENCE",
            "abort(cancelled)",
            "close",
        ]
    );
    assert_eq!(rig.heard(), ["one two"], "P2, P3: only what was heard");
}

/// P2: a client that was sent more than it played says so afterwards, and never that it played more.
#[test]
fn less_may_have_been_heard_than_was_sent() {
    let mut rig = Rig::talking();
    rig.speak(50);
    rig.take(Input::SpeechStarted { at: SampleIndex(0) });
    rig.after(200).take(Input::Tick);
    assert_eq!(rig.heard(), ["one two"]);
    let turn = TurnNumber::FIRST;
    for (of, frames, heard) in [
        (turn.next(), 0, &["one two"][..]),
        (turn, 90, &["one two"]),
        (turn, 25, &["one"]),
        (turn, 60, &["one"]),
        (turn, 0, &[]),
    ] {
        rig.take(Input::Heard { turn: of, frames });
        assert_eq!(rig.heard(), heard, "{of} {frames}");
    }
}

/// P11: a cough is over before it counts.
#[test]
fn a_cough_does_not_interrupt() {
    let mut rig = Rig::talking();
    rig.take(Input::SpeechStarted { at: SampleIndex(0) });
    rig.after(120)
        .take(Input::SpeechStopped { at: SampleIndex(0) });
    rig.after(500).take(Input::Tick);
    assert!(rig.log.is_empty(), "{:?}", rig.log);
    assert_eq!(rig.session.current_turn(), Some(T1));
}

/// P4: interrupted before the first audio frame, nothing was heard and nothing is kept of it.
#[test]
fn an_interruption_before_the_first_frame_leaves_nothing() {
    let mut rig = Rig::talking();
    rig.take(Input::ClauseBegun {
        turn: T1,
        segment: 0,
        text: "never heard".into(),
    });
    rig.take(Input::Cancel {
        reason: CancelReason::UserCancel,
        scope: CancelScope::Turn,
    });
    assert_eq!(
        rig.log,
        [
            "FENCE",
            "stop",
            "cancel(user_cancel)",
            "STOP WORK user_cancel",
            "FENCE",
            "abort(cancelled)",
            "close"
        ]
    );
    assert!(rig.heard().is_empty());
}

/// F-025: cancel, the old turn's end, then the new turn.
#[test]
fn words_said_over_the_agent_open_the_next_turn() {
    let mut rig = Rig::talking();
    rig.say("stop that");
    let of_interest: Vec<_> = rig
        .log
        .iter()
        .filter(|line| {
            ["cancel(barge_in)", "abort(cancelled)", "close", "turn_open"].contains(&line.as_str())
        })
        .collect();
    assert_eq!(
        of_interest,
        ["cancel(barge_in)", "abort(cancelled)", "close", "turn_open"]
    );
    assert_eq!(rig.session.current_turn(), Some(T1.next()));
}

#[test]
fn without_barge_in_words_wait_for_the_turn_to_end() {
    let mut rig = Rig::with(TurnPolicy {
        barge_in: false,
        ..TurnPolicy::default()
    });
    rig.say("one");
    rig.log.clear();
    rig.say("two");
    rig.say("three");
    assert!(rig.log.is_empty());
    rig.take(Input::PlaybackFinished { turn: T1 });
    assert!(
        rig.log.contains(&"START two three".to_owned()),
        "{:?}",
        rig.log
    );
}

/// T8, AE-002, CF-001: revoke and cancel at one arbitration point: authority wins, either way round.
#[test]
fn a_simultaneous_cancel_and_revoke_is_an_authority_loss() {
    let cancel = Input::Cancel {
        reason: CancelReason::UserCancel,
        scope: CancelScope::Turn,
    };
    for together in [[cancel.clone(), Input::Revoked], [Input::Revoked, cancel]] {
        let mut rig = Rig::talking();
        rig.take_together(together);
        let ends: Vec<_> = rig
            .log
            .iter()
            .filter(|l| l.starts_with("abort") || l.starts_with("deauth") || *l == "close")
            .collect();
        assert_eq!(
            ends,
            [
                "deauthorized_drain(authority_revoked_in_turn)",
                "abort(authority_loss)",
                "close"
            ]
        );
    }
}

/// F-156, T12: a turn of the older epoch ends when the lease rotates; the next one opens under the newer, and
/// a lease that moves back is refused, not ignored.
#[test]
fn a_rotated_lease_ends_the_turn() {
    let mut rig = Rig::talking();
    rig.take(Input::Rotated {
        epoch: Epoch::FIRST.next(),
    });
    assert!(rig.log.contains(&"abort(authority_loss)".to_owned()));
    rig.gates.epoch = Epoch::FIRST.next();
    rig.say("again");
    assert_eq!(rig.session.current_turn(), Some(T1.next()));
    rig.log.clear();
    rig.take(Input::Rotated {
        epoch: Epoch::FIRST.next(),
    });
    assert!(rig.log.is_empty(), "it is there already: {:?}", rig.log);
    rig.take(Input::Rotated {
        epoch: Epoch::FIRST,
    });
    assert_eq!(rig.session.epoch(), Epoch::FIRST.next(), "epochs only rise");
    assert_eq!(rig.log, ["stale_epoch_reject(authority_epoch_mismatch)"]);
}

/// T9: evidence that cannot be kept aborts the turn that was about to commit.
#[test]
fn a_turn_without_evidence_is_not_committed() {
    let mut rig = Rig::talking();
    rig.stored = false;
    rig.take(Input::PlaybackFinished { turn: T1 });
    let reason = AbortReason::RecordingEvidenceUnavailable.as_str();
    assert!(
        rig.log.contains(&format!("abort({reason})")),
        "{:?}",
        rig.log
    );
    assert_eq!(rig.log.last().map(String::as_str), Some("close"));
}

/// T9, invariant 16: a turn whose end could not be told does not begin, and is neither aborted nor closed.
#[test]
fn a_turn_whose_evidence_has_no_room_does_not_open() {
    let mut rig = Rig::new();
    rig.gates.evidence = false;
    rig.take(Input::Connected);
    rig.take(Input::UserTurn {
        text: "hello".into(),
    });
    let reason = AbortReason::RecordingEvidenceUnavailable.as_str();
    assert_eq!(
        rig.log.last(),
        Some(&format!("defer({reason})")),
        "{:?}",
        rig.log
    );
    assert_eq!(rig.session.current_turn(), None);
}

/// T10, F-045: silence past the turn's budget ends it; a late but living answer goes on.
#[test]
fn the_turn_budget_runs_to_the_first_output() {
    let mut dead = Rig::talking();
    dead.after(2_000).take(Input::Tick);
    assert!(
        dead.log
            .contains(&"budget_exhausted(turn_budget)".to_owned())
    );
    assert!(dead.log.contains(&"abort(budget_exhausted)".to_owned()));

    let mut late = Rig::talking();
    late.take(Input::Progress { turn: T1 });
    late.at_work = true;
    late.after(2_000).take(Input::Tick);
    assert_eq!(late.log, ["budget_exhausted(turn_budget)"]);
    late.after(58_000).take(Input::Tick);
    assert!(late.log.contains(&"abort(budget_exhausted)".to_owned()));
}

/// T11: what arrives for a turn that is over changes nothing, and is noted if policy says so.
#[test]
fn late_events_never_reopen_a_turn() {
    let mut rig = Rig::with(TurnPolicy {
        late_events: LateEventPolicy::Diagnostics,
        ..TurnPolicy::default()
    });
    rig.say("hello");
    rig.take(Input::PlaybackFinished { turn: T1 });
    rig.log.clear();
    rig.take(Input::PlaybackStarted { turn: T1 });
    rig.take(Input::TurnFailed {
        turn: T1,
        ending: Ending::ProviderFailed,
    });
    assert_eq!(rig.log, ["LATE diagnostics", "LATE diagnostics"]);
    assert_eq!(rig.session.current_turn(), None);
}

/// F-138, as a table: CONNECTING, ACTIVE, DRAINING, ENDED; ENDED is for good.
#[test]
fn the_session_goes_one_way() {
    use SessionState as S;
    let mut session = Session::new(TurnPolicy::default(), Epoch::FIRST);
    let mut check = |input: Input, state: S| {
        session.handle(Monotonic::ZERO, input);
        session.settle();
        assert_eq!(session.state(), state);
    };
    check(Input::Tick, S::Connecting);
    check(
        Input::UserTurn {
            text: "too early".into(),
        },
        S::Connecting,
    );
    check(Input::Connected, S::Active);
    check(Input::Drain, S::Ended); // nothing runs
    check(Input::Connected, S::Ended);
    check(Input::Drain, S::Ended);

    let mut rig = Rig::talking();
    rig.take(Input::Drain);
    assert_eq!(rig.session.state(), S::Draining);
    rig.say("too late");
    rig.take(Input::PlaybackFinished { turn: T1 });
    assert_eq!(rig.session.state(), S::Ended);
    assert_eq!(
        rig.log,
        ["Draining", "FENCE", "commit", "close", "ended", "Ended"]
    );
}

/// F6: hanging up in the middle of a turn aborts it and ends the session.
#[test]
fn a_lost_transport_aborts_the_turn() {
    let mut rig = Rig::talking();
    rig.take(Input::Disconnected);
    assert_eq!(
        rig.log,
        [
            "disconnected",
            "stall(transport_disconnect_or_stall)",
            "Draining",
            "FENCE",
            "abort(transport_disconnect_or_stall)",
            "close",
            "ended",
            "Ended"
        ]
    );
}

fn apologetic() -> Rig {
    let mut rig = Rig::new();
    rig.failure = FailurePolicy {
        reply: Some("Sorry, once more?".into()),
        recording: Some("sorry".into()),
        ..FailurePolicy::default()
    };
    rig.say("hello");
    rig.log.clear();
    rig
}

fn fails(rig: &mut Rig, turn: TurnNumber) {
    let ending = Ending::ProviderFailed;
    rig.take(Input::TurnFailed { turn, ending });
}

/// What was begun, in order.
fn begun(rig: &Rig) -> Vec<&str> {
    let begun = rig.log.iter().map(String::as_str);
    begun
        .filter(|line| {
            ["START", "SAY", "PLAY"]
                .iter()
                .any(|what| line.starts_with(what))
        })
        .collect()
}

/// F-135: a turn that failed is followed by a turn that says sorry, what was heard of it is
/// remembered, and then the session waits.
#[test]
fn a_failed_turn_is_followed_by_an_apology() {
    let mut rig = apologetic();
    fails(&mut rig, T1);
    assert_eq!(begun(&rig), ["SAY Sorry, once more?"]);
    let t2 = T1.next();
    rig.take(Input::ClauseBegun {
        turn: t2,
        segment: 0,
        text: "Sorry, once more?".into(),
    });
    rig.take(Input::FramesMade {
        turn: t2,
        segment: 0,
        frames: 10,
    });
    rig.take(Input::ClauseMade {
        turn: t2,
        segment: 0,
    });
    rig.take(Input::PlaybackStarted { turn: t2 });
    rig.accepted = 10;
    rig.take(Input::PlaybackFinished { turn: t2 });
    assert_eq!(rig.heard(), ["Sorry, once more?"]);
    assert_eq!(rig.session.current_turn(), None);
    let said = rig.session.conversation().iter().count();
    assert_eq!(said, 2, "the user's words once, and the apology");
}

/// F-135: without a voice the recording is played, and nobody apologises for an apology for ever.
#[test]
fn a_voice_that_failed_is_not_asked_to_apologise() {
    let mut rig = apologetic();
    rig.take(Input::VoiceLost { turn: T1 });
    fails(&mut rig, T1);
    let mut other = apologetic();
    fails(&mut other, T1);
    fails(&mut other, T1.next());
    fails(&mut other, T1.next().next());
    assert_eq!(begun(&rig), ["PLAY sorry"]);
    assert_eq!(begun(&other), ["SAY Sorry, once more?", "PLAY sorry"]);
    assert_eq!(other.session.current_turn(), None);
}

/// F-135: who has said something else meanwhile gets an answer to that.
#[test]
fn the_users_next_words_come_before_an_apology() {
    let mut rig = apologetic();
    let text = "and another thing".into();
    let ending = Ending::ProviderFailed;
    rig.take_together([
        Input::TurnFailed { turn: T1, ending },
        Input::UserTurn { text },
    ]);
    assert_eq!(begun(&rig), ["START and another thing"]);
}

/// F-137: without its voice a session goes on in text, says so once, and tries the voice again later.
#[test]
fn a_session_without_a_voice_goes_on_in_text() {
    let mut rig = Rig::new();
    rig.failure.text_only = true;
    rig.say("hello");
    rig.log.clear();
    rig.take(Input::VoiceLost { turn: T1 });
    rig.take(Input::VoiceLost { turn: T1 });
    rig.take(Input::ClauseShown {
        turn: T1,
        segment: 0,
        text: "Good day.".into(),
    });
    rig.take(Input::PlaybackFinished { turn: T1 });
    assert_eq!(
        rig.log[..3],
        [
            "degrade(voice_unavailable_text_only)",
            "VOICE false",
            "output_accepted(output_accepted)",
        ]
    );
    assert!(rig.log.contains(&"commit".to_owned()));
    assert_eq!(rig.heard(), ["Good day."]);
    rig.log.clear();
    rig.after(5_000).say("and again");
    assert_eq!(begun(&rig), ["START and again in text"]);
    rig.take(Input::PlaybackFinished { turn: T1.next() });
    rig.log.clear();
    rig.after(15_000).say("once more");
    assert_eq!(begun(&rig), ["START once more"]);
    let turn = T1.next().next();
    rig.take(Input::PlaybackStarted { turn });
    assert_eq!(rig.log.last().map(String::as_str), Some("VOICE true"));
}

// --- the connection and the lease ------------------------------------------------------------

/// F6, F-091: a lost connection is waited for, then torn down: `disconnected`, `stall`, abort, close.
#[test]
fn a_lost_connection_is_waited_for_and_then_torn_down() {
    let mut rig = Rig::talking();
    rig.speak(50);
    rig.log.clear();
    rig.take(Input::Reconnecting);
    rig.after(10_000).take(Input::ConnectionLost);
    rig.after(19_999).take(Input::Tick);
    assert_eq!(rig.log, ["reconnecting", "disconnected"]);
    assert_eq!(rig.session.current_turn(), Some(T1));
    rig.log.clear();
    rig.after(1).take(Input::Tick);
    assert_eq!(
        rig.log,
        [
            "disconnected(transport_disconnect_or_stall)",
            "stall(transport_disconnect_or_stall)",
            "Draining",
            "FENCE",
            "abort(transport_disconnect_or_stall)",
            "close",
            "ended",
            "Ended",
        ]
    );
}

/// F-091: a connection that comes back in time finds its turn.
#[test]
fn a_connection_that_comes_back_finds_its_turn() {
    let mut rig = Rig::talking();
    rig.speak(50);
    rig.log.clear();
    rig.take(Input::ConnectionLost);
    rig.after(29_000).take(Input::Connected);
    rig.after(300).take(Input::Tick);
    assert_eq!(rig.log, ["disconnected", "connected"]);
    assert_eq!(rig.session.current_turn(), Some(T1));
}

/// Design §5, lifecycle.md §7: a lease is renewed in time, and without renewal nothing is said.
#[test]
fn a_session_renews_its_lease_and_falls_silent_without_it() {
    let mut rig = Rig::new();
    let ttl = Duration::from_secs(10);
    let asked = rig.now;
    rig.take(Input::Leased { asked, ttl });
    rig.log.clear();
    rig.after(4_000).take(Input::Tick);
    rig.take(Input::Renewed { ttl: Some(ttl) });
    rig.after(4_000).take(Input::Tick);
    rig.after(100).take(Input::Renewed { ttl: None });
    assert_eq!(rig.log, ["RENEW", "RENEW"]);
    rig.log.clear();
    rig.after(500).take(Input::Tick);
    rig.after(4_400).take(Input::Tick);
    assert_eq!(
        rig.log,
        [
            "RENEW",
            "deauthorized_drain(authority_revoked_before_open)",
            "Draining",
            "ended",
            "Ended"
        ]
    );
}

/// F-157: a session that moves opens nothing more here, keeps its turn, and is then handed over.
#[test]
fn a_session_that_moves_is_drained_and_handed_over() {
    let mut rig = Rig::new();
    rig.take(Input::Placed(Placement::Issued));
    rig.take(Input::Leaving);
    rig.say("is anybody there");
    rig.take(Input::HandedOver);
    assert_eq!(
        rig.log,
        [
            "lease_issued",
            "migration_start(region_failover_start)",
            "Draining",
            "session_handoff(authoritative_handoff)",
            "deauthorized_drain(authority_revoked_before_open)",
            "ended",
            "Ended",
        ]
    );
    let mut taken = Rig::new();
    taken.take(Input::Placed(Placement::TakenOver));
    let rotated = "lease_rotated(authority_epoch_rotation)";
    assert_eq!(taken.log, [rotated]);
    // It has moved once its user is there.
    taken.take(Input::LineFlowing);
    taken.take(Input::LineFlowing);
    let moved = "migration_finish(region_failover_complete)";
    assert_eq!(taken.log, [rotated, moved]);
}

/// F-041, F-157: who speaks over a session that leaves is heard: the turn ends at once, and where the session
/// goes on their words are answered.
#[test]
fn what_is_said_to_a_session_that_moves_is_answered_elsewhere() {
    let mut left = Rig::talking();
    left.take(Input::Leaving);
    left.log.clear();
    left.say("stop");
    left.say("what is the time");
    assert_eq!(
        left.log,
        [
            "FENCE",
            "barge_in",
            "cancel(barge_in)",
            "STOP WORK barge_in",
            "FENCE",
            "abort(cancelled)",
            "close",
        ]
    );
    assert_eq!(left.session.state(), SessionState::Draining);
    let kept = left.session.continuation();
    assert_eq!(kept.unanswered.as_deref(), Some("stop what is the time"));
    let stored = serde_json::to_string(&kept).expect("plain data");
    let kept = serde_json::from_str(&stored).expect("what was just written");
    let mut next = Rig::new();
    next.take(Input::Resumed(Box::new(kept)));
    assert!(next.log.contains(&"START stop what is the time".to_owned()));
    assert_eq!(next.session.continuation().unanswered, None);
}

/// F-155, P25: what a placement leaves at the end of a turn is what the next one goes on with: the words
/// as they were heard, and the count of turns.
#[test]
fn a_session_goes_on_where_the_one_before_it_was() {
    let mut left = Rig::new();
    left.say("hello");
    left.speak(100);
    let kept = left.session.continuation();
    assert_eq!(kept.next_turn, TurnNumber(2));
    let mut next = Rig::new();
    next.take(Input::Resumed(Box::new(kept.clone())));
    next.take(Input::Placed(Placement::TakenOver));
    assert_eq!(next.session.continuation(), kept);
    next.say("and now");
    assert_eq!(next.session.current_turn(), Some(TurnNumber(2)));
    // One that has begun knows better.
    next.take(Input::Resumed(Box::new(kept)));
    assert_eq!(next.session.current_turn(), Some(TurnNumber(2)));
}

/// F-158: an order that the placement before had begun is in what was said and in what was done: it is one
/// order all the same, and what has no end can have none here.
#[test]
fn an_order_of_the_placement_before_is_known_once() {
    let order = ToolExchange {
        turn: TurnNumber::FIRST,
        call: "c1".into(),
        tool: "pay".into(),
        arguments: "{}".into(),
        end: None,
        result: "".into(),
        is_known: false,
    };
    let said = |end: Option<ToolEnd>| {
        Said::Tool(Box::new(ToolExchange {
            end,
            ..order.clone()
        }))
    };
    let resumed = |end| {
        Input::Resumed(Box::new(Continuation {
            next_turn: TurnNumber(2),
            said: vec![said(end)],
            unanswered: None,
        }))
    };
    let inherited = Input::Inherited(Box::new(Inheritance {
        next_turn: TurnNumber(2),
        tools: vec![order.clone()],
    }));
    for past in [
        vec![resumed(None), inherited.clone()],
        vec![inherited],
        vec![resumed(None)],
    ] {
        let mut next = Rig::new();
        for input in past {
            next.take(input);
        }
        let said = next.session.continuation().said;
        let [Said::Tool(exchange)] = &said[..] else {
            panic!("{said:?}");
        };
        assert_eq!(exchange.end, Some(ToolEnd::Abandoned));
        assert_eq!(&*exchange.result, MOVED);
    }
}

/// F-050: words that are throttled wait, with what is said meanwhile, and are proposed again; no turn
/// exists before there is room.
#[test]
fn throttled_words_wait_for_room() {
    let mut rig = Rig::new();
    let retry_after = Duration::from_millis(250);
    rig.gates.admission = refused(admission::Verdict::Throttle { retry_after });
    rig.say("hello");
    let proposed_and_deferred = [
        "turn_open_proposed(session_turn_intent)",
        "defer(admission_capacity_defer)",
    ];
    assert_eq!(std::mem::take(&mut rig.log), proposed_and_deferred);
    assert_eq!(rig.session.current_turn(), None);
    rig.say("are you there?");
    assert_eq!(rig.log, [""; 0], "it waits with the rest");
    assert_eq!(rig.session.next_deadline(), Some(rig.now + retry_after));
    for waited in [250, 500, 750] {
        rig.after(250).take(Input::Tick);
        assert_eq!(rig.log, [""; 0], "it was said that it waits");
        assert_eq!(rig.session.current_turn(), None);
        assert_eq!(rig.session.waited(rig.now), Duration::from_millis(waited));
    }
    rig.gates.admission = admission::Decision::ADMIT;
    rig.after(250).take(Input::Tick);
    assert!(rig.log.starts_with(&[proposed_and_deferred[0].to_owned()]));
    assert_eq!(
        rig.session.current_turn(),
        Some(T1.next()),
        "no number is lost"
    );
    assert!(
        rig.log.contains(&"START hello are you there?".to_owned()),
        "{:?}",
        rig.log
    );
    assert_eq!(rig.session.waited(rig.now), Duration::ZERO);
}

/// F-050: who has waited in vain is told so, and forgotten; the next words are heard.
#[test]
fn a_wait_in_vain_ends() {
    let mut rig = Rig::new();
    let retry_after = Duration::from_millis(250);
    rig.gates.admission = refused(admission::Verdict::Throttle { retry_after });
    rig.say("hello");
    // Nobody asks again after that, so it is no word of "later".
    for over in [
        admission::Verdict::Reject,
        admission::Verdict::Defer { retry_after },
    ] {
        rig.gates.admission = refused(over);
        rig.after(250).take(Input::Tick);
        assert!(
            rig.log
                .ends_with(&["reject(admission_capacity_reject)".to_owned()])
        );
        assert_eq!(rig.session.next_deadline(), None);
        rig.gates.admission = refused(admission::Verdict::Throttle { retry_after });
        rig.say("hello");
    }
    rig.gates.admission = admission::Decision::ADMIT;
    rig.after(250).take(Input::Tick);
    rig.say("again");
    assert!(rig.log.contains(&"START again".to_owned()), "{:?}", rig.log);
}

/// A session that ends takes waiting words with it.
#[test]
fn waiting_words_do_not_outlive_their_session() {
    let mut rig = Rig::new();
    let retry_after = Duration::from_millis(250);
    rig.gates.admission = refused(admission::Verdict::Throttle { retry_after });
    rig.say("hello");
    rig.take(Input::Disconnected);
    rig.gates.admission = admission::Decision::ADMIT;
    rig.log.clear();
    rig.after(250).take(Input::Tick);
    assert_eq!(rig.log, [""; 0]);
}

/// F-048: a turn in the degrade posture says so, and why.
#[test]
fn a_degraded_turn_says_so() {
    for (limit, reason) in [
        (Limit::Load, "degrade(overload_degrade_posture)"),
        (Limit::TokensPerMinute, "degrade(quota_degrade_posture)"),
    ] {
        let mut rig = Rig::new();
        rig.gates.admission = admission::Decision {
            verdict: admission::Verdict::Degrade,
            cause: Some(Cause {
                whose: crate::admission::Whose::Node,
                limit,
            }),
        };
        rig.say("hello");
        let opened = rig.log.iter().position(|said| said == "turn_open").unwrap();
        assert_eq!(rig.log[opened + 1], reason);
    }
}

/// F-050, F-135: nobody waits for an apology that there is no room for.
#[test]
fn an_apology_is_not_throttled_but_left_out() {
    let mut rig = apologetic();
    let retry_after = Duration::from_millis(250);
    rig.gates.admission = refused(admission::Verdict::Throttle { retry_after });
    fails(&mut rig, T1);
    rig.gates.admission = admission::Decision::ADMIT;
    assert_eq!(rig.session.next_deadline(), None);
    rig.after(250).take(Input::Tick);
    assert_eq!(begun(&rig), [""; 0]);
    rig.say("still there?");
    assert_eq!(begun(&rig), ["START still there?"]);
}

/// F-050, F-091: words that wait for room wait for the connection too.
#[test]
fn throttled_words_wait_for_a_lost_connection() {
    let mut rig = Rig::new();
    let retry_after = Duration::from_millis(250);
    rig.gates.admission = refused(admission::Verdict::Throttle { retry_after });
    rig.say("hello");
    rig.gates.admission = admission::Decision::ADMIT;
    rig.take(Input::ConnectionLost);
    rig.after(250).take(Input::Tick);
    assert_eq!(begun(&rig), [""; 0]);
    assert!(rig.session.next_deadline() > Some(rig.now), "no busy wait");
    rig.take(Input::Connected);
    rig.take(Input::Tick);
    assert_eq!(begun(&rig), ["START hello"]);
}

/// Every move of a turn that can be asked for, of one number.
fn moves_of(turn: TurnNumber) -> Vec<(TurnTrigger, Input)> {
    use TurnTrigger as T;
    let gates = Rig::new().gates;
    vec![
        (T::TurnOpen, Input::Gates { turn, gates }),
        (T::TurnOpen, Input::Plan { turn, facts: None }),
        (T::Commit, Input::PlaybackFinished { turn }),
        (
            T::Abort,
            Input::TurnFailed {
                turn,
                ending: Ending::NodeFailed,
            },
        ),
        (T::Close, Input::Sealed { turn, stored: true }),
    ]
}

/// What a session has decided since.
fn decided(session: &mut Session) -> Vec<Effect> {
    std::iter::from_fn(|| session.poll_effect()).collect()
}

/// F-139, F-141: a turn that was never proposed, one that was refused, and one that is closed can be
/// neither opened nor ended; each attempt is refused with the code of where it stands, and changes
/// nothing.
#[test]
fn a_turn_makes_no_move_from_where_it_cannot() {
    let closed = || {
        let mut rig = Rig::talking();
        rig.take(Input::PlaybackFinished { turn: T1 });
        rig
    };
    let deferred = || {
        let mut rig = Rig::new();
        rig.gates.snapshot_valid = false;
        rig.say("hello");
        rig
    };
    for (mut rig, stands, code) in [
        (Rig::new(), TurnState::Idle, "no_such_turn"),
        (deferred(), TurnState::Idle, "no_such_turn"),
        (closed(), TurnState::Closed, "turn_is_closed"),
    ] {
        for (trigger, input) in moves_of(T1) {
            let before = (rig.session.state(), rig.session.current_turn());
            rig.session.handle(rig.now, input);
            rig.session.settle();
            let refused = RefusedMove::Turn {
                turn: T1,
                from: stands,
                trigger,
            };
            assert_eq!(refused.code(), code);
            assert_eq!(decided(&mut rig.session), [Effect::RefuseMove(refused)]);
            let after = (rig.session.state(), rig.session.current_turn());
            assert_eq!(before, after);
        }
        for nobody in [
            Input::Stop,
            Input::Cancel {
                reason: CancelReason::UserCancel,
                scope: CancelScope::Turn,
            },
        ] {
            rig.session.handle(rig.now, nobody);
            let decided = decided(&mut rig.session);
            assert!(
                matches!(&decided[..], [Effect::RefuseMove(refused)] if refused.code() == "no_such_turn"),
                "{decided:?}"
            );
        }
    }
}

/// F-139: an open turn is not opened again and not closed before it has ended; it goes on to its one end.
#[test]
fn an_open_turn_is_neither_opened_again_nor_closed() {
    let mut rig = Rig::talking();
    for (trigger, input) in moves_of(T1) {
        if matches!(trigger, TurnTrigger::Commit | TurnTrigger::Abort) {
            continue;
        }
        rig.session.handle(rig.now, input);
        let refused = RefusedMove::Turn {
            turn: T1,
            from: TurnState::Active,
            trigger,
        };
        assert_eq!(refused.code(), "turn_is_open");
        assert_eq!(decided(&mut rig.session), [Effect::RefuseMove(refused)]);
    }
    rig.take(Input::PlaybackFinished { turn: T1 });
    assert_eq!(rig.log, ["FENCE", "commit", "close"]);
}

/// F-139: a turn whose evidence is being sealed has ended: no second terminal reaches it.
#[test]
fn a_turn_that_is_ending_ends_once() {
    let mut session = Rig::talking().session;
    session.handle(Monotonic::ZERO, Input::PlaybackFinished { turn: T1 });
    session.settle();
    let _the_seal = decided(&mut session);
    for (trigger, input) in moves_of(T1) {
        if trigger == TurnTrigger::Close {
            continue;
        }
        session.handle(Monotonic::ZERO, input);
        session.settle();
        let refused = RefusedMove::Turn {
            turn: T1,
            from: TurnState::Terminal,
            trigger,
        };
        assert_eq!(refused.code(), "turn_is_ending");
        assert_eq!(decided(&mut session), [Effect::RefuseMove(refused)]);
    }
}

/// F-138: what drains is not drained again, and what has ended is for good; each attempt is refused
/// with the code of where the session stands.
#[test]
fn a_session_makes_no_move_from_where_it_cannot() {
    use SessionState as S;
    let cancel = || Input::Cancel {
        reason: CancelReason::UserCancel,
        scope: CancelScope::Session,
    };
    let draining = || {
        let mut rig = Rig::talking();
        rig.take(Input::Drain);
        rig
    };
    let ended = || {
        let mut rig = Rig::new();
        rig.take(Input::Drain);
        rig
    };
    for (mut rig, code, moves) in [
        (
            draining(),
            "session_is_draining",
            vec![(S::Draining, Input::Drain), (S::Draining, Input::Leaving)],
        ),
        (
            ended(),
            "session_has_ended",
            vec![
                (S::Active, Input::Connected),
                (S::Draining, Input::Drain),
                (S::Draining, Input::Leaving),
                (S::Ended, Input::HandedOver),
                (S::Ended, Input::Revoked),
                (S::Ended, cancel()),
            ],
        ),
    ] {
        let from = rig.session.state();
        for (to, input) in moves {
            rig.session.handle(rig.now, input);
            rig.session.settle();
            let refused = RefusedMove::Session { from, to };
            assert_eq!(refused.code(), code);
            assert_eq!(decided(&mut rig.session), [Effect::RefuseMove(refused)]);
            assert_eq!(rig.session.state(), from);
        }
    }
}

/// F-078, P16: a policy that nobody has checked makes no time overflow.
#[test]
fn the_longest_times_add_up() {
    let mut rig = Rig::with(TurnPolicy {
        max_turn_silence_ms: u64::MAX,
        transcript_timeout_ms: u64::MAX,
        ..TurnPolicy::default()
    });
    rig.take(Input::Connected);
    rig.take(Input::UserTurn {
        text: "hello".into(),
    });
    assert_eq!(rig.session.current_turn(), Some(T1));
}
