//! Carrying out what the kernel decides.

use std::{sync::Arc, time::Duration};

use rspp_actors::{ChildSpec, Context, ExitReason, Failure, NoData};
use rspp_kernel::{CancelReason, Effect, Gates, Input, SessionState, turn::Ending};
use rspp_proto::{
    Epoch, Monotonic, TurnNumber,
    abi::{Emitter, Signal},
};

use super::{RunningTurn, Session, time};
use crate::{
    connection::ConnectionControl,
    report::TurnReport,
    turn::{Turn, TurnControl, TurnSetup},
};

impl Session {
    pub(super) fn raise_fence(&mut self, now: Monotonic, turn: TurnNumber, cancelled: bool) {
        let accepted = self.fence.raise(turn);
        if let Some(running) = self.turn.as_ref().filter(|running| running.number == turn) {
            running.cancel.cancel();
        }
        if let Some(meters) = &self.setup.meters {
            meters.cancelled(now, cancelled);
        }
        if cancelled {
            let took = self.handling.elapsed();
            self.fence_took = Some(took);
            self.ledger.fenced(turn, now, took);
        }
        self.kernel.handle(now, Input::Fenced { turn, accepted });
    }

    pub(super) async fn carry_out(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        while let Some(effect) = self.kernel.poll_effect() {
            let now = time(ctx);
            match effect {
                Effect::Fence { turn, cancelled } => self.raise_fence(now, turn, cancelled),
                Effect::Signal(emission) => {
                    self.ledger.signalled(&emission, now);
                    self.publisher.emit(&emission, now);
                }
                Effect::Transition { turn, step } => self.publisher.transition(turn, step, now),
                Effect::Refused { turn: _, refusal } => {
                    self.ledger.refused();
                    self.publisher.refused(refusal, now);
                }
                Effect::Judge { turn } => {
                    // What was lost before is no fault of this turn.
                    self.publisher.take_lost();
                    self.ledger.proposed(turn, now);
                    let gates = self.judge();
                    self.kernel.handle(now, Input::Gates { turn, gates });
                }
                Effect::Resolve { turn, epoch } => self.resolve(now, turn, epoch),
                Effect::Start { turn, user_text } => {
                    Box::pin(self.start(ctx, turn, user_text)).await;
                }
                Effect::Cancel { turn, reason } => self.stop_work(turn, reason),
                Effect::Seal { turn, terminal } => {
                    let stored = self.seal(now, turn, terminal);
                    self.kernel.handle(now, Input::Sealed { turn, stored });
                }
                Effect::Stop { turn } => self.take_down(ctx, turn),
                Effect::Late { turn } => {
                    self.publisher.signal(
                        Signal::StaleEpochReject,
                        Emitter::ContractGuard,
                        Some(turn),
                        Some("late_event_of_closed_turn"),
                        now,
                    );
                }
                Effect::Revoke => {
                    let accepted = self.fence.revoke();
                    if let Some(turn) = self.kernel.current_turn() {
                        self.kernel.handle(now, Input::Fenced { turn, accepted });
                    }
                    self.cancel.cancel();
                }
                Effect::Rotate { epoch } => {
                    self.fence.rotate(epoch);
                    self.setup.place.lease.epoch = epoch;
                    self.publisher.rotated(epoch);
                }
                Effect::Session(state) => self.enter(ctx, state),
            }
        }
        self.arm(ctx);
        Ok(())
    }

    pub(super) fn judge(&self) -> Gates {
        Gates {
            snapshot_valid: true,
            capacity: self.setup.place.gatekeeper.has_room_for_turn(),
            epoch: self.setup.place.lease.epoch,
            authorized: self
                .setup
                .place
                .leases
                .check(&self.setup.place.lease)
                .is_ok(),
        }
    }

    pub(super) fn resolve(&mut self, now: Monotonic, turn: TurnNumber, epoch: Epoch) {
        let facts = match self.setup.blueprint.plan(turn, epoch) {
            Ok(plan) => {
                let facts = plan.facts();
                self.publisher.plan(turn, &plan, now);
                self.ledger.planned(turn, &plan);
                let (outcome, stamp) = self.publisher.admission(turn, now);
                self.ledger.admitted(turn, outcome, stamp);
                self.plan = Some(Arc::new(plan));
                Some(facts)
            }
            Err(error) => {
                tracing::warn!(session = %self.setup.place.lease.session, %error, "no plan");
                None
            }
        };
        self.kernel.handle(now, Input::Plan { turn, facts });
    }

    pub(super) async fn start(
        &mut self,
        ctx: &mut Context<Self>,
        turn: TurnNumber,
        user_text: String,
    ) {
        let now = time(ctx);
        let Some(plan) = self.plan.take() else {
            return;
        };
        self.fence_took = None;
        let cancel = self.cancel.child_token();
        let grace = Duration::from_millis(plan.budgets.cancel_grace_ms);
        let setup = TurnSetup {
            number: turn,
            assembly: self.assembly(ctx, plan, Some(turn), cancel.clone()),
            user_text: user_text.into(),
            session: ctx.control_ref(),
        };
        let mut spec = ChildSpec::temporary(turn.to_string());
        spec.grace = grace * 4;
        let mut setup = Some(setup);
        match ctx
            .spawn(spec, NoData, move || Turn::new(setup.take()))
            .await
        {
            Ok(handle) => {
                self.turn = Some(RunningTurn {
                    number: turn,
                    _place: self.setup.place.turn(),
                    actor: handle.id,
                    control: handle.control,
                    cancel,
                });
            }
            Err(error) => {
                tracing::warn!(session = %self.setup.place.lease.session, %turn, %error, "no turn");
                let ending = Ending::NodeFailed;
                self.kernel.handle(now, Input::TurnFailed { turn, ending });
            }
        }
    }

    /// The fence has fallen; now everybody is told, best effort and observable (lifecycle.md §6).
    pub(super) fn stop_work(&mut self, turn: TurnNumber, reason: CancelReason) {
        let Some(running) = self.turn.as_ref().filter(|running| running.number == turn) else {
            return;
        };
        running.cancel.cancel();
        if running
            .control
            .send_reserved(TurnControl::Cancel(reason))
            .is_err()
        {
            tracing::debug!(%turn, "the turn takes no cancel");
        }
        self.clear_line(turn);
    }

    pub(super) fn clear_line(&self, turn: TurnNumber) {
        let clear = ConnectionControl::Clear(turn);
        if self.setup.connection.send_reserved(clear).is_err() {
            tracing::debug!(%turn, "the connection is gone");
        }
    }

    pub(super) fn seal(
        &mut self,
        now: Monotonic,
        turn: TurnNumber,
        terminal: rspp_kernel::turn::Terminal,
    ) -> bool {
        let Some(exchange) = self.kernel.exchange().filter(|said| said.turn == turn) else {
            return false;
        };
        self.ledger.count_line(&self.line);
        let wall = self.publisher.wall(now);
        let epoch = self.kernel.epoch();
        // Evidence lost on the way cannot be made up for at the end.
        let lost = self.publisher.take_lost();
        let terminal = if lost {
            terminal.without_evidence()
        } else {
            terminal
        };
        let baseline = self.ledger.seal(&exchange, terminal, epoch, wall, now);
        baseline.is_some_and(|baseline| {
            debug_assert!(baseline.is_complete(), "OR-02: {:?}", baseline.missing());
            self.setup.recorder.append_terminal(baseline).is_ok() && !lost
        })
    }

    pub(super) fn take_down(&mut self, ctx: &mut Context<Self>, turn: TurnNumber) {
        let report = self.ledger.close(turn);
        let committed = report.is_some_and(TurnReport::is_commit);
        if let Some(report) = report {
            self.publisher.turn(report);
        }
        if let Some(running) = self.turn.take_if(|running| running.number == turn) {
            running.cancel.cancel();
            if !committed {
                // What it has queued is of no use. The last frames of a committed turn may still
                // wait at the peer, and are to be heard.
                self.clear_line(turn);
            }
            if running.control.send_reserved(TurnControl::Close).is_err() {
                ctx.stop_child_soon(running.actor, "the turn is closed");
            }
        }
    }

    pub(super) fn enter(&mut self, ctx: &mut Context<Self>, state: SessionState) {
        self.publisher.state(state);
        if state == SessionState::Ended {
            ctx.stop(ExitReason::Finished);
        }
    }

    pub(super) fn arm(&self, ctx: &mut Context<Self>) {
        ctx.clear_wake();
        let due = [self.kernel.next_deadline(), self.captured_until];
        if let Some(at) = due.into_iter().flatten().min() {
            let at = ctx.clock().instant_at(at.as_duration());
            ctx.wake_at(at);
        }
    }
}
