//! Carrying out what the kernel decides.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rspp_actors::{ChildSpec, Context, ExitReason, Failure, NoData};
use rspp_controlplane_api::LeaseError;
use rspp_kernel::{
    CancelReason, Effect, Emission, Gates, Input, SessionState,
    authority::Checkpoint,
    link::Link,
    plan::{self, ResolvedTurnPlan, profile},
    recovery::Task,
    refused::RefusedMove,
    turn::{Ending, Terminal},
};
use rspp_proto::{
    Epoch, Monotonic, NodeId, SampleRate, TurnNumber,
    abi::{Emitter, Signal, TurnTrigger},
    spec::{PortType, SessionAction},
};
use rspp_timeline::{LevelTrigger, TerminalOutcome};
use tokio::sync::oneshot;

use super::{
    Occasion, RunningTurn, Session, SessionControl, acknowledge::Unheard, commands::MOVED, time,
};
use crate::{
    admission::TurnPlace,
    assembly::Graces,
    connection::ConnectionControl,
    node::NodeControl,
    providers::Bound,
    runtime::Place,
    schedule::Shed,
    turn::{Turn, TurnControl, TurnSetup},
};

/// Refused moves that are told of one session; the rest is counted.
const MOST_MOVES_TOLD: u64 = 64;

impl Session {
    pub(super) fn raise_fence(&mut self, now: Monotonic, turn: TurnNumber, cancelled: bool) {
        let accepted = self.fence.raise(turn);
        // What was accepted and is cut off may not have been heard, if the client knows better (P2).
        let accepted = if cancelled {
            self.line.heard_of(turn, accepted)
        } else {
            accepted
        };
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
            self.await_acknowledgement(now, turn);
        }
        self.kernel.handle(now, Input::Fenced { turn, accepted });
    }

    pub(super) async fn carry_out(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        while let Some(effect) = self.next_effect(time(ctx)) {
            let now = time(ctx);
            match effect {
                Effect::Fence { turn, cancelled } => self.raise_fence(now, turn, cancelled),
                Effect::Signal(emission) => {
                    self.ledger.signalled(&emission, now);
                    self.count_cancel(&emission);
                    self.publisher.emit(&emission, now);
                }
                Effect::Transition { turn, step } => {
                    if step.trigger == TurnTrigger::TurnOpenProposed {
                        self.proposed(now, turn);
                    }
                    if step.trigger == TurnTrigger::Commit {
                        self.orders_are_told(turn);
                    }
                    self.publisher.transition(turn, step, now);
                }
                Effect::Refused {
                    turn: _,
                    refusal,
                    decision,
                } => {
                    self.admitted = None;
                    self.ledger.refused();
                    self.publisher.refused(refusal, decision, now);
                }
                Effect::RefuseMove(refused) => self.refuse_move(refused, now),
                Effect::Judge { turn } => {
                    let gates = self.judge(now, turn);
                    self.kernel.handle(now, Input::Gates { turn, gates });
                }
                Effect::Resolve {
                    turn,
                    epoch,
                    degraded,
                } => self.resolve(now, turn, epoch, degraded),
                Effect::Start {
                    turn,
                    task,
                    mute,
                    deadlines,
                } => {
                    let occasion = Occasion {
                        mute,
                        bound: Bound::Turn(deadlines),
                        ..Occasion::of(turn)
                    };
                    Box::pin(self.start(ctx, turn, task, occasion)).await;
                }
                Effect::Voice { available } => {
                    self.tell_line(ConnectionControl::Voice { available });
                }
                Effect::Cancel { turn, reason } => self.stop_work(now, turn, reason),
                Effect::Flush { turn } => self.flush(turn).await,
                Effect::Soften { turn, reason } => self.soften(now, turn, reason),
                Effect::Hold { turn } => {
                    self.fence.hold(turn);
                    self.tell_line(ConnectionControl::Held);
                    self.tell_flow(Signal::FlowXoff, turn, "barge_in_unconfirmed", now);
                }
                Effect::Release { turn, reason } => {
                    self.fence.release();
                    self.tell_line(ConnectionControl::Resume);
                    self.tell_flow(Signal::FlowXon, turn, reason, now);
                }
                Effect::Probe { turn } => self.probe(now, turn),
                Effect::Unstick { turn } => self.tell_turn(turn, TurnControl::Unstick),
                Effect::Seal { turn, terminal } => {
                    let kept = Box::pin(self.keep(terminal == Terminal::Commit)).await;
                    let terminal = if kept {
                        terminal
                    } else {
                        terminal.without_evidence()
                    };
                    let stored = self.seal(now, turn, terminal) && kept;
                    self.kernel.handle(now, Input::Sealed { turn, stored });
                }
                Effect::Stop { turn } => self.take_down(ctx, turn),
                Effect::Late { turn, action } => self.publisher.late(turn, action, now),
                Effect::Journal(step) => self.journal(now, &step),
                Effect::Speculate {
                    turn,
                    epoch,
                    user_text,
                } => Box::pin(self.speculate(ctx, turn, epoch, user_text)).await,
                Effect::Promote { turn, deadlines } => self.promote(now, turn, deadlines),
                Effect::Discard { turn, reason } => self.throw_away(now, turn, reason),
                Effect::RunTool {
                    turn,
                    epoch,
                    node,
                    request,
                } => Box::pin(self.run_tool(ctx, turn, epoch, &node, request)).await,
                Effect::InterruptTool { turn, call, finish } => {
                    let began = self.tools.interrupt(turn, &call, finish);
                    let input = Input::ToolInterrupted { turn, call, began };
                    self.kernel.handle(now, input);
                }
                Effect::AnswerTool {
                    turn,
                    node,
                    call,
                    content,
                } => self.tools.answer(turn, &node, call, content),
                Effect::Act(SessionAction::EndCall) => {
                    self.ends_because("the agent ended the call");
                }
                Effect::Revoke => {
                    self.ends_because("the session lost its authority");
                    // Who may speak does not hang on who has heard of a cancel (T8).
                    self.unheard = None;
                    let accepted = self.fence.revoke();
                    if let Some(turn) = self.kernel.current_turn() {
                        self.kernel.handle(now, Input::Fenced { turn, accepted });
                    }
                    self.cancel.cancel();
                }
                Effect::Renew => self.renew(ctx),
                Effect::HandOver => self.hand_over(now).await,
                Effect::Rotate { epoch } => self.rotate(epoch),
                Effect::Session(state) => self.enter(ctx, state),
            }
        }
        self.let_go(ctx);
        self.announce_downgrades();
        while let Some((at, line)) = self.kernel.poll_journal() {
            self.publisher.journal(at, line);
        }
        self.arm(ctx);
        Ok(())
    }

    /// What the kernel wants next. Evidence that is lost on the way ends the turn there and then, and not
    /// when all of it has been spoken (T9).
    fn next_effect(&mut self, now: Monotonic) -> Option<Effect> {
        if let Some(effect) = self.kernel.poll_effect() {
            return Some(effect);
        }
        let turn = self.kernel.open_turn()?;
        if !self.publisher.has_news_of_loss() {
            return None;
        }
        let ending = Ending::EvidenceFailed;
        self.kernel.handle(now, Input::TurnFailed { turn, ending });
        self.kernel.poll_effect()
    }

    /// A move that is not made is counted, and told as long as that does not fill the timeline.
    pub(super) fn refuse_move(&mut self, refused: RefusedMove, now: Monotonic) {
        let so_far = self.setup.health.refuse_move(refused.code());
        if so_far <= MOST_MOVES_TOLD {
            self.publisher.move_refused(refused, now);
        }
    }

    /// A cancel is known by its reason in logs and measurements too (F-035).
    fn count_cancel(&self, emission: &Emission) {
        let Some(reason) = emission
            .reason
            .filter(|_| emission.signal == Signal::Cancel)
        else {
            return;
        };
        let session = &self.setup.place.lease.session;
        let turn = emission.turn.map(tracing::field::display);
        tracing::info!(session_id = %session, turn, reason, "cancelled");
        if let Some(meters) = &self.setup.meters {
            meters.accepted(reason);
        }
    }

    /// Says that less is recorded than before, once for each step (OR-02, F-176).
    fn announce_downgrades(&mut self) {
        let turn = self.kernel.current_turn();
        while let Some(change) = self.setup.recorder.poll_downgrade() {
            let reason = match change.trigger {
                LevelTrigger::QueueFill => "stage_a_detail_overflow",
                LevelTrigger::ExportLag => "durable_export_lag",
                // A step up is no downgrade, and is not announced.
                LevelTrigger::Stable => continue,
            };
            self.publisher.signal(
                Signal::RecordingLevelDowngraded,
                Emitter::TimelineRecorder,
                turn,
                Some(reason),
                change.at,
            );
        }
    }

    /// Everybody who works for the session goes on under the newer epoch; what was made under the
    /// older one is refused from here on, wherever it is queued.
    fn rotate(&mut self, epoch: Epoch) {
        self.fence.rotate(epoch);
        self.unheard = None; // As when authority is lost for good.
        let Place { lease, roster, .. } = &mut self.setup.place;
        roster.rotated(&lease.session, lease.epoch, epoch);
        lease.epoch = epoch;
        self.publisher.rotated(epoch);
        for handle in self.hosts.iter() {
            let rotate = NodeControl::Rotate(epoch);
            if handle.control.send_reserved(rotate).is_err() {
                tracing::debug!(%epoch, "a node host takes no newer epoch");
            }
        }
    }

    /// Nothing is left to be done here: what the next placement needs is kept, and the session is its own
    /// from then on. Who moves it by hand says itself when.
    async fn hand_over(&mut self, now: Monotonic) {
        if self.letting_go.is_none() {
            return;
        }
        if !Box::pin(self.keep(true)).await {
            tracing::warn!(session_id = %self.setup.place.lease.session, "moves without its last words");
        }
        self.ends_because(MOVED);
        self.kernel.handle(now, Input::HandedOver);
    }

    /// Asks for a renewal, in a task of its own: whoever has the leases may be slow or gone.
    fn renew(&self, ctx: &mut Context<Self>) {
        let place = &self.setup.place;
        let renewal = place.leases.renew(&place.lease);
        let session = ctx.control_ref();
        ctx.spawn_task("lease", async move {
            let answer = renewal.await;
            if session
                .send_reserved(SessionControl::Lease(answer))
                .is_err()
            {
                tracing::debug!("the session is gone before its lease was renewed");
            }
        });
    }

    /// A turn is proposed: from here on evidence is its own.
    fn proposed(&mut self, now: Monotonic, turn: TurnNumber) {
        // What was lost before is no fault of this turn.
        self.publisher.take_lost();
        self.ledger.count_line(&self.line);
        self.setup.recorder.turn_boundary(now);
        self.ledger.proposed(turn, now);
    }

    /// The turn's audio goes out in the rate that its plan has frozen, whatever the transport wants by then
    /// (F-161).
    fn carry_at(&mut self, turn: TurnNumber, plan: &ResolvedTurnPlan) {
        let Some(frozen) = &plan.transport_capabilities else {
            return;
        };
        if frozen.sink_rate == self.carried_at {
            return;
        }
        self.carried_at = frozen.sink_rate;
        let Some(rate) = SampleRate::new(frozen.sink_rate) else {
            return; // It was a rate when the sink named it.
        };
        let carry = ConnectionControl::CarryAt(turn, rate);
        if self.setup.connection.send_reserved(carry).is_err() {
            tracing::debug!(%turn, "the connection is gone before the turn");
        }
    }

    /// A lease that is another's now is a stale epoch (T3); none at all is lost authority (T4).
    fn judge(&mut self, now: Monotonic, turn: TurnNumber) -> Gates {
        let waited = self.kernel.waited(now);
        let (admission, place) = self.setup.place.entry.turn(turn, now, waited);
        self.admitted = place;
        let place = &self.setup.place;
        let (epoch, authorized) = match place.leases.check(&place.lease) {
            // Who cannot be asked has not taken it back; the lease itself runs out in time.
            Ok(()) | Err(LeaseError::Unreachable { .. }) => (place.lease.epoch, true),
            // Somebody else holds the session under a newer epoch: what would open is stale (T3).
            Err(LeaseError::Stale { held, .. }) => (held, false),
            Err(LeaseError::Unknown { .. } | LeaseError::Refused { .. }) => {
                (place.lease.epoch, false)
            }
        };
        let found = Gates {
            snapshot_valid: self.setup.blueprint.snapshots.in_force().is_some(),
            admission,
            epoch,
            authorized,
            guess_holds: self.guess_holds(turn, admission.verdict),
            evidence: self.takes_evidence(),
        };
        match self.setup.place.entry.before(turn) {
            Some(before) => Gates {
                snapshot_valid: found.snapshot_valid && before.snapshot_valid,
                epoch: before.epoch,
                authorized: found.authorized && before.authorized,
                evidence: found.evidence && before.evidence,
                ..found
            },
            None => found,
        }
    }

    /// Whether what a turn has to leave behind would find room.
    fn takes_evidence(&self) -> bool {
        let taken = self.setup.recorder.takes_turn();
        if let Err(error) = &taken {
            let session = &self.setup.place.lease.session;
            tracing::warn!(session_id = %session, %error, "a turn is refused: its evidence could not be kept");
        }
        taken.is_ok()
    }

    pub(super) fn resolve(
        &mut self,
        now: Monotonic,
        turn: TurnNumber,
        epoch: Epoch,
        degraded: bool,
    ) {
        // A guess that was right runs the plan that it was begun with: it would be the same now.
        let plan = match self.guesses.plan(turn) {
            Some(plan) => Ok(plan),
            None => self.setup.plan(turn, epoch, degraded).map(Arc::new),
        };
        let facts = match plan {
            Ok(plan) => {
                let facts = plan.facts();
                if degraded != self.was_degraded {
                    self.was_degraded = degraded;
                    let load = self.scheduling.gatekeeper.load();
                    self.publisher.posture(turn, degraded, load, now);
                }
                let blueprint = &self.setup.blueprint;
                self.publisher.plan(turn, &plan, blueprint, now);
                self.setup.health.runs(&plan.policy);
                self.carry_at(turn, &plan);
                self.words_answered(turn, &plan, now);
                self.ledger.planned(turn, &plan);
                let (outcome, stamp) = self.publisher.admission(turn, now);
                self.ledger.admitted(turn, outcome, stamp);
                self.plan = Some(plan);
                Some(facts)
            }
            Err(error) => {
                tracing::warn!(session_id = %self.setup.place.lease.session, %error, "no plan");
                None
            }
        };
        self.kernel.handle(now, Input::Plan { turn, facts });
    }

    pub(super) async fn start(
        &mut self,
        ctx: &mut Context<Self>,
        turn: TurnNumber,
        task: Task,
        occasion: Occasion,
    ) {
        let now = time(ctx);
        let (Some(plan), Some(place)) = (self.plan.take(), self.admitted.take()) else {
            return;
        };
        if !self.may_start(now, turn, &plan) {
            return;
        }
        self.fence_took = None;
        let running = self.spawn_turn(ctx, plan, task, occasion, Some(place));
        if let Some(running) = running.await {
            self.turn = Some(running);
        } else {
            let ending = Ending::NodeFailed;
            self.kernel.handle(now, Input::TurnFailed { turn, ending });
        }
    }

    pub(super) async fn spawn_turn(
        &mut self,
        ctx: &mut Context<Self>,
        plan: Arc<ResolvedTurnPlan>,
        task: Task,
        occasion: Occasion,
        place: Option<TurnPlace>,
    ) -> Option<RunningTurn> {
        let turn = occasion.turn?;
        let cancel = self.cancel.child_token();
        let cancel_grace = Duration::from_millis(plan.budgets.cancel_grace_ms);
        let grace = Graces::under(&plan.budgets).turn;
        let assembly = self.assembly(ctx, plan, occasion, cancel.clone());
        let pulse = Arc::clone(&assembly.pulse);
        let setup = TurnSetup {
            assembly,
            task,
            clips: Arc::clone(&self.setup.clips),
        };
        let session = ctx.control_ref();
        let mut spec = ChildSpec::temporary(turn.to_string());
        spec.grace = grace;
        let mut setup = Some(setup);
        match ctx
            .spawn(spec, NoData, move || {
                Turn::new(turn, session.clone(), setup.take())
            })
            .await
        {
            Ok(handle) => Some(RunningTurn {
                number: turn,
                _place: place,
                actor: handle.id,
                control: handle.control,
                cancel,
                pulse,
                cancel_grace,
            }),
            Err(error) => {
                tracing::warn!(session_id = %self.setup.place.lease.session, %turn, %error, "no turn");
                None
            }
        }
    }

    /// A plan of another turn, version or epoch than what is to be started is refused
    /// (turn-plan.md §5 rule 6).
    pub(super) fn may_start(
        &mut self,
        now: Monotonic,
        turn: TurnNumber,
        plan: &ResolvedTurnPlan,
    ) -> bool {
        let offered = plan.authority_epoch;
        if let Err(fault) = self.fence.check(Checkpoint::Dispatch, offered) {
            self.publisher
                .stale(fault, Checkpoint::Dispatch, Some(turn), now);
            let ending = Ending::AuthorityLost;
            self.kernel.handle(now, Input::TurnFailed { turn, ending });
            return false;
        }
        let version = &self.setup.blueprint.spec.version;
        if let Err(mismatch) = plan::matches(plan, &turn.id(), version, self.kernel.epoch()) {
            self.publisher.malformed(&mismatch.to_string(), now);
            let ending = Ending::NodeFailed;
            self.kernel.handle(now, Input::TurnFailed { turn, ending });
            return false;
        }
        true
    }

    /// Work was shed at a scheduling point: said, decided and counted.
    pub(super) fn shed(
        &mut self,
        turn: Option<TurnNumber>,
        node: Option<&NodeId>,
        shed: Shed,
        at: Monotonic,
    ) {
        let entry = &self.setup.place.entry;
        entry.gatekeeper().count_shed(entry.tenant());
        let outcome = self.publisher.shed(turn, node, shed, at);
        self.ledger.shed(turn, outcome);
    }

    /// The fence has fallen; now everybody is told, best effort and observable (lifecycle.md §6).
    pub(super) fn stop_work(&mut self, at: Monotonic, turn: TurnNumber, reason: CancelReason) {
        let Some(running) = self.turn.as_ref().filter(|running| running.number == turn) else {
            return;
        };
        running.cancel.cancel();
        self.tell_turn(turn, TurnControl::Cancel { reason, at });
    }

    /// A soft cancel: the fence still stands open for the clause that is being heard, and whoever
    /// speaks it may finish it (F-041).
    fn soften(&mut self, at: Monotonic, turn: TurnNumber, reason: CancelReason) {
        self.tell_turn(turn, TurnControl::Cancel { reason, at });
        self.tell_line(ConnectionControl::FinishClause(turn));
    }

    /// The line forgets the turn. What it had queued is counted before the turn's evidence is sealed:
    /// a connection answers at once, and one that does not is not waited for any longer than a node.
    async fn flush(&mut self, turn: TurnNumber) {
        let (cleared, count) = oneshot::channel();
        self.tell_line(ConnectionControl::Clear { turn, cleared });
        let grace = Duration::from_millis(self.kernel_grace_ms());
        match tokio::time::timeout(grace, count).await {
            Ok(Ok(count)) => self.ledger.flushed(turn, count),
            Ok(Err(_)) => tracing::debug!(%turn, "the connection is gone"),
            Err(_) => tracing::warn!(%turn, "the connection does not answer"),
        }
    }

    /// The plan's patience with whoever has been cancelled.
    fn kernel_grace_ms(&self) -> u64 {
        let spec = &self.setup.blueprint.spec.budgets;
        spec.cancel_grace_ms
            .unwrap_or(profile::budgets().cancel_grace_ms)
    }

    pub(super) fn tell_line(&self, message: ConnectionControl) {
        if self.setup.connection.send_reserved(message).is_err() {
            tracing::debug!(session_id = %self.setup.place.lease.session, "the connection is gone");
        }
    }

    fn tell_turn(&self, turn: TurnNumber, message: TurnControl) {
        let running = self.turn.as_ref().filter(|running| running.number == turn);
        if let Some(running) = running
            && running.control.send_reserved(message).is_err()
        {
            tracing::debug!(%turn, "the turn takes no message");
        }
    }

    /// Holding playout is holding the edges that the user hears back (event-abi.md §4).
    fn tell_flow(&mut self, signal: Signal, turn: TurnNumber, reason: &str, at: Monotonic) {
        let graph = Arc::clone(&self.setup.blueprint.graph);
        let heard = graph.edges().map(|(_, edge)| edge);
        let heard =
            heard.filter(|edge| edge.to == graph.egress() && edge.carries == PortType::Audio);
        for edge in heard {
            self.publisher.flow(signal, turn, &edge.id, reason, at);
        }
    }

    /// Says how the turn really is that seems mute.
    fn probe(&mut self, now: Monotonic, turn: TurnNumber) {
        let played = self.line.played_at.load(Ordering::Relaxed);
        let running = self.turn.as_ref().filter(|running| running.number == turn);
        let at_work = running.is_some_and(|running| running.pulse.is_at_work(now));
        let input = Input::Pulse {
            turn,
            heard: (played > 0).then(|| Monotonic::from_millis(played)),
            answered: running.and_then(|running| running.pulse.answered()),
            at_work,
        };
        self.kernel.handle(now, input);
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
        baseline.is_some_and(|mut baseline| {
            if let Some(work) = &self.setup.work {
                baseline.node_work = work.take(turn);
            }
            if let Some(traces) = self.publisher.traces() {
                traces.sealed(&baseline);
            }
            if let Some(tried) = &mut self.setup.tried {
                tried.turn(terminal, &baseline.anchors);
            }
            let outcome = baseline.terminal_outcome.map(TerminalOutcome::as_str);
            let reason = baseline
                .terminal_reason
                .as_ref()
                .map(rspp_proto::Reason::as_str);
            tracing::debug!(%turn, outcome, reason, "a turn is over");
            debug_assert!(baseline.is_complete(), "OR-02: {:?}", baseline.missing());
            self.setup.recorder.append_terminal(baseline).is_ok() && !lost
        })
    }

    pub(super) fn take_down(&mut self, ctx: &mut Context<Self>, turn: TurnNumber) {
        self.conversation.hold(self.kernel.conversation().bytes());
        let spending = self.meter().turn_over();
        if let Some(report) = self.ledger.close(turn, spending) {
            self.publisher.turn(report);
        }
        if let Some(traces) = self.publisher.traces() {
            traces.closed();
        }
        self.tools.forget(turn);
        if let Some(running) = self.turn.take_if(|running| running.number == turn) {
            running.cancel.cancel();
            if running.control.send_reserved(TurnControl::Close).is_err() {
                ctx.stop_child_soon(running.actor, "the turn is closed");
            }
        }
    }

    pub(super) fn enter(&mut self, ctx: &mut Context<Self>, state: SessionState) {
        self.publisher.state(state);
        self.setup.health.enter(state);
        if let Link::Ended(end) = self.kernel.link() {
            self.ends_because(end.as_str());
        }
        if state == SessionState::Ended {
            // At once to all that listen: whoever winds up slowly does so beside the others (P17).
            self.cancel.cancel();
            ctx.stop(ExitReason::Finished);
        }
    }

    pub(super) fn arm(&self, ctx: &mut Context<Self>) {
        ctx.clear_wake();
        let unheard = self.unheard.as_ref().map(Unheard::until);
        let due = [self.kernel.next_deadline(), self.captured_until, unheard];
        if let Some(at) = due.into_iter().flatten().min() {
            let at = ctx.clock().instant_at(at.as_duration());
            ctx.wake_at(at);
        }
    }
}
