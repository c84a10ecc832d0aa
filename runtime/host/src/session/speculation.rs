//! Guesses at work: begun apart from everything that counts, then let in or thrown away (P9, P10).

use std::{collections::VecDeque, sync::Arc};

use rspp_actors::Context;
use rspp_kernel::{
    Input, admission::Verdict, dedupe::Seen, invocation::TurnDeadlines, plan::ResolvedTurnPlan,
    recovery::Task, speculation::Discarded, turn::Ending,
};
use rspp_proto::{Epoch, Monotonic, TurnNumber, spec::Modality};
use rspp_timeline::AttemptRecord;

use super::{Occasion, RunningTurn, Session, SessionControl, time};
use crate::{
    node::NodeReport,
    providers::{Bound, Promotion},
    turn::TurnControl,
};

/// Reports of a guess that are kept until it is promoted; one with more is given up.
const MAX_HELD: usize = 512;
/// Discarded guesses whose calls may still have to say what they have cost.
const MAX_UNSETTLED: usize = 8;

/// The guess in progress, and those whose bills are still open.
#[derive(Default)]
pub(super) struct Guesses {
    current: Option<Guess>,
    unsettled: VecDeque<TurnNumber>,
}

struct Guess {
    turn: RunningTurn,
    plan: Arc<ResolvedTurnPlan>,
    /// Tells what waits for it that it is a turn now.
    promotion: Arc<Promotion>,
    /// What its nodes have reported; counts once it is promoted.
    held: Vec<SessionControl>,
}

impl Guesses {
    /// The plan that a guess runs, for the turn that it becomes.
    pub(super) fn plan(&self, turn: TurnNumber) -> Option<Arc<ResolvedTurnPlan>> {
        let guess = self.current.as_ref()?;
        (guess.turn.number == turn).then(|| Arc::clone(&guess.plan))
    }

    /// The guess whose turn actor this child is.
    pub(super) fn of(&self, child: rspp_actors::ActorId) -> Option<TurnNumber> {
        let guess = self.current.as_ref()?;
        (guess.turn.actor == child).then_some(guess.turn.number)
    }
}

impl Session {
    pub(super) async fn speculate(
        &mut self,
        ctx: &mut Context<Self>,
        turn: TurnNumber,
        epoch: Epoch,
        user_text: String,
    ) {
        let now = time(ctx);
        let has_room = self.may_guess(now);
        let promotion = Arc::new(Promotion::default());
        let plan = self.setup.plan(turn, epoch, false);
        let begun = match plan {
            Ok(plan) if has_room => {
                self.fence.guess(turn);
                self.state.hot().stage(turn);
                let plan = Arc::new(plan);
                let occasion = Occasion {
                    bound: Bound::Guess(Arc::clone(&promotion)),
                    ..Occasion::of(turn)
                };
                let task = Task::Answer {
                    user_text: user_text.clone(),
                };
                let started = self.spawn_turn(ctx, Arc::clone(&plan), task, occasion, None);
                Box::pin(started).await.map(|turn| (turn, plan))
            }
            Ok(_) | Err(_) => None,
        };
        let now = time(ctx);
        let Some((running, plan)) = begun else {
            self.kernel.handle(now, Input::GuessFailed { turn });
            return;
        };
        self.words.given(&user_text);
        self.publisher.guess(turn, "speculation_begun", &[], now);
        self.guesses.current = Some(Guess {
            turn: running,
            plan,
            promotion,
            held: Vec::new(),
        });
    }

    /// Guesses are for when there is plenty: one takes no place and spends no rate, so it is begun only
    /// where a turn would be let in with everything.
    fn may_guess(&self, now: Monotonic) -> bool {
        let place = &self.setup.place;
        place.entry.has_room(now) && place.leases.check(&place.lease).is_ok()
    }

    /// Whether a turn that was begun as a guess would be begun by the same plan now. What is admitted
    /// with less was guessed with everything; what is not admitted is discarded for that.
    pub(super) fn guess_holds(&self, turn: TurnNumber, verdict: Verdict) -> bool {
        let Some(guessed) = self.guesses.plan(turn) else {
            return true;
        };
        match verdict {
            Verdict::Admit => {
                let plan = self.setup.plan(turn, guessed.authority_epoch, false);
                plan.is_ok_and(|plan| plan.decides_like(&guessed))
            }
            Verdict::Degrade => false,
            Verdict::Throttle { .. } | Verdict::Defer { .. } | Verdict::Reject => true,
        }
    }

    /// The guess is a turn: the fence lets it out, its nodes are told, and what they had reported counts
    /// from now on. What they wait for is held to the turn's deadlines.
    pub(super) fn promote(&mut self, now: Monotonic, turn: TurnNumber, deadlines: TurnDeadlines) {
        let current = &mut self.guesses.current;
        let Some(guess) = current.take_if(|guess| guess.turn.number == turn) else {
            let ending = Ending::NodeFailed;
            self.kernel.handle(now, Input::TurnFailed { turn, ending });
            return;
        };
        self.fence.promote(turn);
        self.fence_took = None;
        let may_start = self.may_start(now, turn, &guess.plan);
        let told = may_start.then(|| {
            self.state.hot().promote(turn);
            guess.promotion.promote(deadlines);
            guess.turn.control.send_reserved(TurnControl::Promote)
        });
        self.turn = Some(RunningTurn {
            _place: self.admitted.take(),
            ..guess.turn
        });
        let Some(told) = told else {
            // What it was begun under holds no more; the failed turn is taken down like any other.
            self.state.hot().discard(turn);
            return;
        };
        if told.is_err() {
            let ending = Ending::NodeFailed;
            self.kernel.handle(now, Input::TurnFailed { turn, ending });
        }
        self.publisher.guess(turn, "speculation_promoted", &[], now);
        for message in guess.held {
            self.dispatch(now, restamped(message, now));
        }
    }

    /// The guess was wrong: its calls are aborted, its actors end, and what it has cost is counted.
    pub(super) fn throw_away(&mut self, now: Monotonic, turn: TurnNumber, reason: Discarded) {
        self.fence.discard(turn);
        self.state.hot().discard(turn);
        let current = &mut self.guesses.current;
        let Some(guess) = current.take_if(|guess| guess.turn.number == turn) else {
            return;
        };
        match reason {
            // They were given to the model, and what the user says is more or other.
            Discarded::UserWentOn | Discarded::WordsDiffer => {}
            Discarded::ContextChanged
            | Discarded::PlanDiffers
            | Discarded::Failed
            | Discarded::TooLate
            | Discarded::Refused
            | Discarded::SessionOver => self.words.taken_back(),
        }
        guess.turn.cancel.cancel();
        if guess
            .turn
            .control
            .send_reserved(TurnControl::Close)
            .is_err()
        {
            tracing::debug!(%turn, "the guess has ended already");
        }
        let reason = [("reason", reason.as_str())];
        self.publisher
            .guess(turn, "speculation_discarded", &reason, now);
        if self.guesses.unsettled.len() == MAX_UNSETTLED {
            self.guesses.unsettled.pop_front();
        }
        self.guesses.unsettled.push_back(turn);
        for message in guess.held {
            self.settle_bill(now, message);
        }
    }

    /// Keeps what a guess reports from counting; gives back what is to be heard now.
    pub(super) fn hold(
        &mut self,
        now: Monotonic,
        message: SessionControl,
    ) -> Option<SessionControl> {
        let Some(turn) = message.turn() else {
            return Some(message);
        };
        if self.guesses.unsettled.contains(&turn) {
            return self.settle_bill(now, message);
        }
        let Some(guess) = &mut self.guesses.current else {
            return Some(message);
        };
        if guess.turn.number != turn {
            return Some(message);
        }
        match message {
            // How a provider fares is everybody's business.
            SessionControl::ProviderSignal { .. } => Some(of_session(message)),
            SessionControl::Node {
                report: NodeReport::Failed { .. },
                ..
            } => {
                self.kernel.handle(now, Input::GuessFailed { turn });
                Some(of_session(message))
            }
            SessionControl::Blocked { is_lost, .. } => {
                self.kernel.handle(now, Input::GuessFailed { turn });
                (!is_lost).then(|| of_session(message))
            }
            held if guess.held.len() < MAX_HELD => {
                guess.held.push(held);
                None
            }
            _too_much => {
                self.kernel.handle(now, Input::GuessFailed { turn });
                None
            }
        }
    }

    /// What a discarded guess has cost (P10). Its calls are evidence of that, and of nothing else.
    fn settle_bill(&mut self, now: Monotonic, message: SessionControl) -> Option<SessionControl> {
        let (tokens, characters) = match message {
            SessionControl::ProviderSignal { .. }
            | SessionControl::Blocked { is_lost: false, .. } => return Some(of_session(message)),
            SessionControl::Invocation {
                attempts, outcome, ..
            } => {
                // A call is one call, however often it is told of (F-158).
                let call = outcome.provider_invocation_id.clone();
                if self.calls.see(call.clone(), || ()) != Seen::First {
                    self.publisher.repeated_call(&call, now);
                    return None;
                }
                self.attempts_ended(&attempts);
                self.publisher.invocation(*outcome);
                (tokens(&attempts), 0)
            }
            SessionControl::Node {
                report: NodeReport::ClauseBegun { text, .. },
                ..
            } => (0, text.chars().count() as u64),
            SessionControl::Node { .. }
            | SessionControl::Playback { .. }
            | SessionControl::Transport { .. }
            | SessionControl::Edge { .. }
            | SessionControl::Tools { .. }
            | SessionControl::ToolBegan { .. }
            | SessionControl::ToolEnded { .. }
            | SessionControl::StaleWrite { .. }
            | SessionControl::Begin
            | SessionControl::Memory { .. }
            | SessionControl::EvidenceLost
            | SessionControl::Blocked { .. }
            | SessionControl::Shed { .. }
            | SessionControl::Lease(_)
            | SessionControl::Command(_) => return None,
        };
        let spent = [
            ("speculation_wasted_tokens", tokens),
            ("speculation_wasted_characters", characters),
        ];
        for (name, value) in spent {
            if value > 0 {
                self.publisher.metric(name, value as f64, now);
            }
        }
        self.kernel
            .handle(now, Input::GuessSpent { tokens, characters });
        None
    }
}

/// Models stream about a token a piece, and seldom say what an aborted answer has cost.
fn tokens(attempts: &[AttemptRecord]) -> u64 {
    let models = attempts.iter().filter(|it| it.modality == Modality::Llm);
    models.map(|attempt| attempt.chunk_count).sum()
}

/// The message as one about the session.
fn of_session(message: SessionControl) -> SessionControl {
    match message {
        SessionControl::ProviderSignal {
            turn: _,
            node,
            call,
            signal,
            reason,
            at,
        } => SessionControl::ProviderSignal {
            turn: None,
            node,
            call,
            signal,
            reason,
            at,
        },
        SessionControl::Node {
            node, at, report, ..
        } => SessionControl::Node {
            turn: None,
            node,
            at,
            report,
        },
        SessionControl::Blocked {
            node,
            for_at_least,
            is_lost,
            ..
        } => SessionControl::Blocked {
            turn: None,
            node,
            for_at_least,
            is_lost,
        },
        other => other,
    }
}

/// What was done for a guess took none of its turn's time.
fn restamped(message: SessionControl, now: Monotonic) -> SessionControl {
    match message {
        SessionControl::Node {
            turn, node, report, ..
        } => SessionControl::Node {
            turn,
            node,
            at: now,
            report,
        },
        other => other,
    }
}
