//! What operators and the control plane ask of a session, cancels before all.

use std::time::Duration;

use rspp_actors::Context;
use rspp_controlplane_api::{Lease, LeaseError};
use rspp_kernel::{CancelReason, Input, Part, SessionState, graph::Scope, refused::RefusedMove};
use rspp_proto::{Epoch, InvocationId, Monotonic, NodeId};

use super::{CancelReceipt, CancelTarget, Command, Session, SessionControl};
use crate::{capture::Capture, node::NodeControl, turn::TurnControl};

/// Why a session ends here that goes on elsewhere.
pub(crate) const MOVED: &str = "another placement took the session over";

/// How long handing over may take: what was begun and is not over by then is cut off.
const HAND_OVER: Duration = Duration::from_millis(250);

impl Session {
    pub(super) fn command(&mut self, now: Monotonic, command: Command) {
        if let Some(capture) = Capture::of(&self.setup.recorder, self.clock) {
            capture.ordered(&command);
        }
        match command {
            Command::Cancel {
                target,
                reason,
                answer,
            } => {
                let receipt = self.cancel(now, &target, reason);
                let _nobody_waits = answer.send(receipt);
            }
            Command::Capture => self.end_captures(now),
            Command::Leave => {
                self.kernel.handle(now, Input::Leaving);
            }
            // The time is kept where tasks can be started; see `Session::let_go`.
            Command::LetGo { until } => {
                self.letting_go.get_or_insert(until);
                self.kernel.handle(now, Input::Leaving);
            }
            Command::HandOver => {
                self.ends_because(MOVED);
                self.kernel.handle(now, Input::HandedOver);
            }
            Command::Rotate(epoch) => self.rotate_to(now, epoch),
            Command::Revoke => self.kernel.handle(now, Input::Revoked),
            Command::Forge(input) => self.kernel.handle(now, *input),
            Command::Drain => {
                self.is_drained = true;
                self.ends_because("the session was drained");
                self.kernel.handle(now, Input::Drain);
            }
        }
    }

    /// Moves to an epoch, if whoever grants leases has granted it: a session under any other would be refused
    /// turn after turn (T12).
    fn rotate_to(&mut self, now: Monotonic, epoch: Epoch) {
        let place = &self.setup.place;
        let newer = Lease {
            epoch,
            ..place.lease.clone()
        };
        let held = match place.leases.check(&newer) {
            // Who cannot be asked has not said otherwise.
            Ok(()) | Err(LeaseError::Unreachable { .. }) => {
                self.kernel.handle(now, Input::Rotated { epoch });
                return;
            }
            Err(LeaseError::Stale { held, .. }) => held,
            Err(LeaseError::Unknown { .. } | LeaseError::Refused { .. }) => place.lease.epoch,
        };
        self.publisher.rotation_refused(held, epoch, now);
    }

    /// Ends what captures are due, and remembers when the next one is.
    pub(super) fn end_captures(&mut self, now: Monotonic) {
        let loaded = self.scheduling.is_loaded();
        self.captured_until = self.setup.observers.end_captures(now, loaded);
    }

    /// An answer to a renewal: who was told that somebody else has the lease stops at once.
    pub(super) fn lease(&mut self, now: Monotonic, answer: Result<Lease, LeaseError>) {
        let ttl = match answer {
            Ok(Lease {
                ttl: Some(ttl),
                asked: Some(asked),
                ..
            }) => {
                let lease = &mut self.setup.place.lease;
                (lease.asked, lease.ttl) = (Some(asked), Some(ttl));
                self.leased(now, Input::Leased { asked, ttl });
                return;
            }
            Ok(lease) => lease.ttl,
            Err(LeaseError::Unreachable { session, reason }) => {
                tracing::warn!(session_id = %session, reason, "the lease could not be renewed yet");
                None
            }
            Err(
                error @ (LeaseError::Stale { .. }
                | LeaseError::Unknown { .. }
                | LeaseError::Refused { .. }),
            ) => {
                tracing::warn!(%error, "the lease is lost");
                self.kernel.handle(now, Input::Revoked);
                return;
            }
        };
        self.leased(now, Input::Renewed { ttl });
    }

    /// The lease lasts otherwise now. Nothing leaves once it is over, whether or not anybody gets to say so.
    pub(super) fn leased(&mut self, now: Monotonic, input: Input) {
        self.kernel.handle(now, input);
        if let Some(ends) = self.kernel.silent_at() {
            self.fence.lasts_until(ends);
        }
    }

    /// The session was told to let go: at the latest a little before its time is up it hands over, however
    /// far it has come.
    pub(super) fn let_go(&mut self, ctx: &mut Context<Self>) {
        let Some(until) = self.letting_go.filter(|_| !self.hands_over) else {
            return;
        };
        self.hands_over = true;
        let latest = until.as_duration().saturating_sub(HAND_OVER);
        let latest = match self.kernel.state() {
            SessionState::Active | SessionState::Draining => latest,
            // There is nothing to wait for.
            SessionState::Connecting | SessionState::Ended => Duration::ZERO,
        };
        let (session, stopped) = (ctx.control_ref(), ctx.cancellation().clone());
        let latest = ctx.clock().instant_at(latest);
        ctx.spawn_task("hand-over", async move {
            tokio::select! {
                biased;
                () = stopped.cancelled() => return,
                () = tokio::time::sleep_until(latest) => {}
            }
            let hand_over = SessionControl::Command(Command::HandOver);
            if session.send_reserved(hand_over).is_err() {
                tracing::debug!("the session is gone before it was handed over");
            }
        });
    }

    /// Carries a cancel out as far as it must not wait; the effects do the rest.
    pub(super) fn cancel(
        &mut self,
        now: Monotonic,
        target: &CancelTarget,
        reason: CancelReason,
    ) -> CancelReceipt {
        if let Some(refused) = self.names_nothing(target) {
            self.refuse_move(refused, now);
            return CancelReceipt {
                turn: None,
                fence: Duration::ZERO,
                refused: Some(refused),
            };
        }
        let turn = self.kernel.current_turn();
        self.fence_took = None;
        let (part, silences) = match target {
            CancelTarget::Session | CancelTarget::Turn => {
                let scope = target.scope();
                self.kernel.handle(now, Input::Cancel { reason, scope });
                (None, false)
            }
            CancelTarget::Node(node) => {
                let silences = self.cancel_node(now, node, reason);
                (Some(Part::Node(node.clone())), silences)
            }
            CancelTarget::Invocation(invocation) => {
                self.cancel_invocation(invocation);
                (Some(Part::Invocation(invocation.clone())), false)
            }
        };
        if let Some(part) = part {
            let input = Input::CancelPart {
                reason,
                part,
                silences,
            };
            self.kernel.handle(now, input);
        }
        if let Some(turn) = self.kernel.take_fence() {
            self.raise_fence(now, turn, true);
        }
        let fence = self.fence_took.unwrap_or_default();
        CancelReceipt {
            turn,
            fence,
            refused: None,
        }
    }

    /// Why there is nothing to cancel: no such node, or no such call at work.
    fn names_nothing(&self, target: &CancelTarget) -> Option<RefusedMove> {
        let is_known = match target {
            CancelTarget::Session | CancelTarget::Turn => true,
            CancelTarget::Node(node) => {
                let graph = &self.setup.blueprint.graph;
                let found = graph.find(node.as_str());
                found.is_some_and(|ix| graph.node(ix).spec().is_some())
            }
            CancelTarget::Invocation(call) => self.at_work.knows(call),
        };
        let scope = target.scope();
        (!is_known).then_some(RefusedMove::Cancel { scope })
    }

    /// Cancels a node's work along its edges (F-034). Whether that silences the turn.
    pub(super) fn cancel_node(&self, at: Monotonic, node: &NodeId, reason: CancelReason) -> bool {
        let graph = &self.setup.blueprint.graph;
        let Some(ix) = graph.find(node.as_str()) else {
            return false;
        };
        let scope = graph.node(ix).scope;
        if let Some(meters) = &self.setup.meters {
            meters.cancelled(at, false);
        }
        let mut reached = graph.downstream(ix);
        // The words of the running turn were handed over: nothing of it depends on who listens.
        reached.retain(|of| scope == Scope::Turn || graph.node(*of).scope == Scope::Session);
        if graph.node(ix).scope == Scope::Turn && reached.contains(&graph.egress()) {
            return true;
        }
        for handle in reached.iter().filter_map(|ix| self.hosts.get(*ix)) {
            if handle
                .control
                .send_reserved(NodeControl::Cancel { reason, at })
                .is_err()
            {
                tracing::debug!(%node, "a node host takes no cancel");
            }
        }
        if let Some(running) = &self.turn {
            let part = TurnControl::CancelNodes {
                nodes: reached,
                reason,
                at,
            };
            if running.control.send_reserved(part).is_err() {
                tracing::debug!(%node, "the turn takes no cancel");
            }
        }
        false
    }

    /// Cancels one provider call, wherever it runs.
    pub(super) fn cancel_invocation(&self, invocation: &InvocationId) {
        for handle in self.hosts.iter() {
            let cancel = NodeControl::CancelCall(invocation.clone());
            if handle.control.send_reserved(cancel).is_err() {
                tracing::debug!(%invocation, "a node host takes no cancel");
            }
        }
        if let Some(running) = &self.turn {
            let cancel = TurnControl::CancelCall(invocation.clone());
            if running.control.send_reserved(cancel).is_err() {
                tracing::debug!(%invocation, "the turn takes no cancel");
            }
        }
    }
}
