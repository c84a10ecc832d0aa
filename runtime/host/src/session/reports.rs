//! What happens to a session, as the kernel is told.

use std::sync::Arc;

use rspp_kernel::{
    Input, Unrecognised, authority::Checkpoint, dedupe::Seen, edge::Patience, handoff::LLM_TO_TTS,
    invocation::error_code, turn::Ending,
};
use rspp_proto::{
    EdgeId, ErrorCode, IdempotencyKey, Lane, Monotonic, NodeId, Payload, Speaker, SpeechMark,
    TextChunk, TurnNumber,
    abi::{Emitter, Signal},
    spec::{NodeKind, PortType},
};

use super::{Playback, Session, TransportEvent, words::HandedWords};
use crate::{
    connection::{ConnectionControl, frames_of},
    event::{Arrival, CallEnd, Event, Port, Stamp},
    node::{NodeReport, PRESSURE},
    observe::Observed,
    report::Degradation,
    schedule::Shed,
};

impl Session {
    pub(super) fn node_reported(
        &mut self,
        now: Monotonic,
        turn: Option<TurnNumber>,
        node: &NodeId,
        at: Monotonic,
        report: NodeReport,
    ) {
        let input = match report {
            NodeReport::Speech(mark) => {
                self.ledger.heard_mark(&self.line, mark, at);
                // Before what follows from it: the peer hears why it is told to be silent.
                self.tell_line(ConnectionControl::Speech(mark));
                match mark {
                    SpeechMark::Started { at } => {
                        self.lost.begins();
                        Some(Input::SpeechStarted { at })
                    }
                    SpeechMark::Stopped { at } => Some(Input::SpeechStopped { at }),
                    SpeechMark::EndOfTurn { .. } => None,
                }
            }
            // Silence that is waited out is not speech: a cough is as long as it sounds (P11).
            NodeReport::SpeechPaused { at } => Some(Input::SpeechStopped { at }),
            NodeReport::SpeechResumed { at } => Some(Input::SpeechResumed { at }),
            NodeReport::Transcript {
                segment,
                at: from,
                text,
                is_final,
            } => {
                if is_final {
                    self.ledger.heard_transcript(at);
                }
                self.publisher.transcript(segment, &text, is_final, at);
                Some(Input::Recognised {
                    at: from,
                    text,
                    is_final,
                })
            }
            NodeReport::UserTurn { text, from, until } => {
                self.words.known = true;
                self.lost.begins();
                Some(Input::Spoken {
                    text: text.to_string(),
                    from,
                    until,
                })
            }
            NodeReport::EdgeBudget { edge, event } => {
                self.publisher.edge_budget(turn, &edge, &event, at);
                None
            }
            NodeReport::NothingHeard { is_overdue } => self.lost.why(is_overdue).map(|why| {
                let apology = self.lost.apology.clone();
                Input::Unrecognised { why, apology }
            }),
            NodeReport::WordsHanded {
                text,
                revision,
                action,
                accepted,
                pending,
                is_full,
            } => {
                let words = HandedWords {
                    revision,
                    action,
                    accepted,
                    started: at,
                    pending,
                    is_full,
                };
                self.words.offered = Some((text.as_ref().into(), words));
                Some(Input::WordsHanded {
                    text: text.to_string(),
                })
            }
            NodeReport::UserPaused { text } => Some(Input::UserPaused {
                text: text.to_string(),
            }),
            NodeReport::FirstToken => turn.map(|turn| {
                self.ledger.first_token(turn, at);
                Input::Progress { turn }
            }),
            NodeReport::ClauseBegun { segment, text } => turn.map(|turn| {
                self.ledger.first_clause(turn, at);
                self.publisher.agent_text(turn, segment, &text, at);
                Input::ClauseBegun {
                    turn,
                    segment,
                    text: text.to_string(),
                }
            }),
            NodeReport::FramesMade { segment, frames } => turn.map(|turn| {
                self.ledger.first_audio(turn, at);
                Input::FramesMade {
                    turn,
                    segment,
                    frames,
                }
            }),
            NodeReport::HandedOver {
                segment,
                action,
                accepted,
                pending,
                is_full,
            } => {
                let graph = &self.setup.blueprint.graph;
                let from = graph.find(node.as_str());
                let edge = from.and_then(|ix| graph.node(ix).outputs.first());
                if let (Some(turn), Some(edge)) = (turn, edge) {
                    let words = HandedWords {
                        revision: segment + 1,
                        action,
                        accepted,
                        started: at,
                        pending,
                        is_full,
                    };
                    let edge = &graph.edge(*edge).id;
                    self.publisher.handed_over(LLM_TO_TTS, turn, edge, words);
                }
                None
            }
            NodeReport::ClauseMade { segment } => {
                turn.map(|turn| Input::ClauseMade { turn, segment })
            }
            NodeReport::ClauseShown { segment, text } => turn.map(|turn| {
                self.ledger.first_clause(turn, at);
                self.publisher.agent_text(turn, segment, &text, at);
                self.show(turn, segment, &text);
                Input::ClauseShown {
                    turn,
                    segment,
                    text: text.to_string(),
                }
            }),
            NodeReport::VoiceLost { end } => {
                self.call_failed(turn, node, &end, at);
                turn.map(|turn| Input::VoiceLost { turn })
            }
            NodeReport::CapReached { reason, ends_turn } => {
                self.budget(Signal::BudgetExhausted, turn, node, &reason, at);
                if ends_turn && turn.is_none() {
                    self.lost.note(Unrecognised::Refused);
                }
                let ending = Ending::BudgetTerminated;
                turn.filter(|_| ends_turn)
                    .map(|turn| Input::TurnFailed { turn, ending })
            }
            NodeReport::CallFailed { end } => {
                self.lost.note(Unrecognised::Failed);
                self.call_failed(turn, node, &end, at);
                None
            }
            NodeReport::EdgeNotice { edge, lane, notice } => {
                self.edge_reported(turn, &edge, lane, &notice, at);
                None
            }
            NodeReport::Routed { edge, taken } => {
                self.publisher.note(
                    turn,
                    node,
                    "route",
                    &[
                        ("edge", edge.as_str()),
                        ("taken", if taken { "yes" } else { "no" }),
                    ],
                    at,
                );
                None
            }
            NodeReport::Selected { input } => {
                let input = input.as_deref().unwrap_or("none");
                self.publisher
                    .note(turn, node, "select", &[("input", input)], at);
                None
            }
            NodeReport::Guarded {
                segment,
                found,
                blocked,
            } => {
                let (segment, found) = (segment.to_string(), found.to_string());
                let action = if blocked { "block" } else { "mask" };
                let fields = [
                    ("segment", segment.as_str()),
                    ("found", found.as_str()),
                    ("action", action),
                ];
                self.publisher.note(turn, node, "guard", &fields, at);
                None
            }
            NodeReport::StaleEpoch { fault } => {
                self.publisher.stale(fault, Checkpoint::Dispatch, turn, at);
                None
            }
            NodeReport::OverBudget { is_given_up } => {
                self.over_budget(turn, node, is_given_up, at);
                None
            }
            NodeReport::Throttled { wait: _ } => {
                let reason = "node_cpu_limit_exceeded";
                self.budget(Signal::BudgetWarning, turn, node, reason, at);
                self.degrade(reason, turn, Some(node), at);
                None
            }
            NodeReport::OverMemory { kept: _, limit: _ } => {
                let reason = "node_memory_limit_exceeded";
                self.budget(Signal::BudgetExhausted, turn, node, reason, at);
                self.degrade(reason, turn, Some(node), at);
                None
            }
            NodeReport::Hung { after: _ } => {
                let reason = "node_timeout_or_failure";
                self.budget(Signal::BudgetExhausted, turn, node, reason, at);
                self.degrade("node_hung", turn, Some(node), at);
                None
            }
            NodeReport::CancelAcknowledged {
                reason,
                after,
                is_forced,
                provider,
            } => {
                // What takes too long is told whether or not anything is measured (NF-003).
                if after > self.setup.observe.slow_cancel() {
                    self.publisher.slow_cancel(
                        turn,
                        node,
                        provider.as_ref(),
                        (after, is_forced),
                        at,
                    );
                }
                // Measurements are for sessions that asked for them (F-026).
                if self.setup.meters.is_some() {
                    self.publisher
                        .acknowledged(turn, node, (reason, after, is_forced), at);
                }
                if let Some(turn) = turn {
                    self.acknowledged(turn, at, after);
                }
                None
            }
            NodeReport::ForceStopped { after } => {
                self.node_failures += 1;
                let message = format!(
                    "deaf to its cancellation, and stopped after {} ms",
                    after.as_millis()
                );
                let code = ErrorCode::RuntimeInternalError;
                self.publisher.error(turn, node, code, &message, at);
                self.degrade("node_deaf_to_cancel", turn, Some(node), at);
                None
            }
            NodeReport::WorkerLost { after } => {
                self.node_failures += 1;
                let message = format!(
                    "its work keeps a thread that nobody waits for, and was replaced after {} ms",
                    after.as_millis()
                );
                let code = ErrorCode::RuntimeInternalError;
                self.publisher.error(turn, node, code, &message, at);
                self.degrade("blocked_worker_replaced", turn, Some(node), at);
                None
            }
            NodeReport::UtteranceLost => {
                let message = "what the user was saying is lost with the cancel of its work";
                let code = ErrorCode::RuntimeInternalError;
                self.publisher.error(turn, node, code, message, at);
                self.lost.told();
                self.degrade("utterance_lost", turn, Some(node), at);
                None
            }
            NodeReport::Crashed { message } => {
                self.node_failed(turn, node, &message, at);
                None
            }
            NodeReport::HookFailed { hook, message } => {
                self.node_failures += 1;
                let message = format!("its hook `{hook}` failed: {message}");
                let code = ErrorCode::RuntimeInternalError;
                self.publisher.error(turn, node, code, &message, at);
                self.degrade("node_hook_failed", turn, Some(node), at);
                None
            }
            NodeReport::DeadLetter { event, reason } => {
                self.bury(turn, node, *event, &reason, at);
                None
            }
            NodeReport::Shed { point, reason } => {
                self.shed(turn, Some(node), Shed { point, reason }, at);
                None
            }
            NodeReport::TookOver { standby, reason } => {
                // A node that cannot keep up has not failed.
                let emitter = if &*reason == PRESSURE {
                    Emitter::WatermarkEngine
                } else {
                    self.node_failures += 1;
                    Emitter::BudgetManager
                };
                let reason = format!("from={node} to={standby}: {reason}");
                self.publisher
                    .of_node(Signal::Fallback, emitter, turn, Some(node), &reason, at);
                let is_voice = self.is_voice(node);
                turn.map(|turn| Input::TookOver { turn, is_voice })
            }
            NodeReport::Failed {
                ending,
                code,
                message,
            } => {
                tracing::warn!(session_id = %self.setup.place.lease.session, %node, %message, "a node failed");
                if let Some(turn) = turn {
                    self.node_failures += 1;
                    self.publisher.error(Some(turn), node, code, &message, at);
                    self.give_up_acknowledgement(turn);
                } else {
                    self.listener_failed(node, code, &message, at);
                }
                if let Some(turn) = turn.filter(|_| self.is_voice(node)) {
                    self.kernel.handle(now, Input::VoiceLost { turn });
                }
                turn.map(|turn| Input::TurnFailed { turn, ending })
            }
        };
        if let Some(input) = input {
            self.kernel.handle(now, input);
        }
    }

    /// A node took longer than its budget (F-045): its standby goes on, or the node does, and its session
    /// is less than it should be.
    fn over_budget(
        &mut self,
        turn: Option<TurnNumber>,
        node: &NodeId,
        is_given_up: bool,
        at: Monotonic,
    ) {
        let reason = "node_budget_threshold_exceeded";
        self.budget(Signal::BudgetWarning, turn, node, reason, at);
        if is_given_up {
            self.budget(Signal::BudgetExhausted, turn, node, reason, at);
        } else {
            self.degrade(reason, turn, Some(node), at);
        }
    }

    /// A node crashed and begins anew, or its standby does.
    pub(super) fn node_failed(
        &mut self,
        turn: Option<TurnNumber>,
        node: &NodeId,
        message: &str,
        at: Monotonic,
    ) {
        let code = ErrorCode::RuntimeInternalError;
        if turn.is_none() {
            self.listener_failed(node, code, message, at);
        } else {
            self.node_failures += 1;
            self.publisher.error(turn, node, code, message, at);
        }
    }

    /// A node that listens has failed: no turn ends by that, so it is told by itself (F-131, F-134).
    fn listener_failed(&mut self, node: &NodeId, code: ErrorCode, message: &str, at: Monotonic) {
        self.node_failures += 1;
        self.publisher.error(None, node, code, message, at);
        // Of one that hung, or took too much memory, it was told already.
        let is_told = |reason| self.setup.health.is_degraded_by(node, reason);
        if is_told("node_hung") || is_told("node_memory_limit_exceeded") {
            return;
        }
        let reason = "node_timeout_or_failure";
        self.budget(Signal::BudgetWarning, None, node, reason, at);
        self.degrade("node_failed", None, Some(node), at);
    }

    fn budget(
        &mut self,
        signal: Signal,
        turn: Option<TurnNumber>,
        node: &NodeId,
        reason: &str,
        at: Monotonic,
    ) {
        let emitter = Emitter::BudgetManager;
        self.publisher
            .of_node(signal, emitter, turn, Some(node), reason, at);
    }

    /// Something is not as it should be from now on; said once of each thing (F-037).
    pub(super) fn degrade(
        &mut self,
        reason: &str,
        turn: Option<TurnNumber>,
        node: Option<&NodeId>,
        at: Monotonic,
    ) {
        let is_news = self.setup.health.degrade(Degradation {
            reason: reason.to_owned(),
            node: node.cloned(),
            at,
        });
        if is_news {
            let emitter = Emitter::BudgetManager;
            self.publisher
                .of_node(Signal::Degrade, emitter, turn, node, reason, at);
        }
    }

    /// An event goes to the dead-letter stream (F-132). A node that can deal with nothing is not let
    /// fill the timeline: what is beyond the bound is counted.
    fn bury(
        &mut self,
        turn: Option<TurnNumber>,
        node: &NodeId,
        event: Event,
        reason: &str,
        at: Monotonic,
    ) {
        let health = Arc::clone(&self.setup.health);
        let letter = health
            .takes_letters()
            .then(|| self.publisher.dead_letter(turn, node, event, reason, at));
        health.bury(letter);
        self.degrade("dead_letter", turn, Some(node), at);
    }

    fn call_failed(
        &mut self,
        turn: Option<TurnNumber>,
        node: &NodeId,
        end: &CallEnd,
        at: Monotonic,
    ) {
        let code = error_code(end.class).unwrap_or(ErrorCode::RuntimeInternalError);
        self.publisher.error(turn, node, code, end.describe(), at);
    }

    /// Whether a node is the session's voice.
    fn is_voice(&self, node: &NodeId) -> bool {
        let graph = &self.setup.blueprint.graph;
        let ix = graph.find(node.as_str());
        ix.is_some_and(|ix| graph.node(ix).kind() == Some(&NodeKind::Tts))
    }

    /// Sends a clause to the user as text.
    fn show(&self, turn: TurnNumber, segment: u32, text: &str) {
        let chunk = TextChunk::whole(Speaker::Agent, segment, text);
        let epoch = self.kernel.epoch();
        self.tell_line(ConnectionControl::Show(turn, epoch, Box::new(chunk)));
    }

    pub(super) fn playback(
        &mut self,
        now: Monotonic,
        turn: TurnNumber,
        playback: Playback,
        at: Monotonic,
    ) {
        match playback {
            Playback::Started => {
                self.ledger.playback_started(turn, at);
                self.kernel.handle(now, Input::PlaybackStarted { turn });
            }
            Playback::Finished => {
                self.ledger.playback_finished(turn, at);
                self.kernel.handle(now, Input::PlaybackFinished { turn });
            }
            Playback::ClauseOver => self.kernel.handle(now, Input::ClauseOver { turn }),
            Playback::Stale(fault) => {
                self.publisher.stale(fault, Checkpoint::Egress, None, at);
            }
        }
    }

    pub(super) fn transport(&mut self, now: Monotonic, event: TransportEvent) {
        match event {
            TransportEvent::Connected => self.kernel.handle(now, Input::Connected),
            TransportEvent::Disconnected => self.kernel.handle(now, Input::Disconnected),
            TransportEvent::Reconnecting => self.kernel.handle(now, Input::Reconnecting),
            TransportEvent::Lost => self.kernel.handle(now, Input::ConnectionLost),
            TransportEvent::Silent => self.kernel.handle(now, Input::LineSilent),
            TransportEvent::Stalled => self.kernel.handle(now, Input::LineStalled),
            TransportEvent::Flowing => self.kernel.handle(now, Input::LineFlowing),
            TransportEvent::EndOfUtterance => self.end_utterance(now),
            TransportEvent::Cancel => self.kernel.handle(now, Input::Stop),
            TransportEvent::Text(text) => self.kernel.handle(now, Input::UserTurn { text }),
            TransportEvent::Keyed { key, event } => self.keyed(now, &key, *event),
            TransportEvent::Stale(fault) => {
                self.publisher.stale(fault, Checkpoint::Ingress, None, now);
            }
            TransportEvent::Malformed(message) => self.publisher.malformed(&message, now),
            TransportEvent::Foreign(foreign) => self.publisher.foreign(*foreign, now),
            TransportEvent::Extension(event) => self.extension(*event),
            TransportEvent::Discontinuity(reason) => self.publisher.discontinuity(reason, now),
            TransportEvent::Played(receipt) => {
                let (turn, frames) = (receipt.turn, frames_of(receipt.played));
                self.kernel.handle(now, Input::Heard { turn, frames });
            }
            TransportEvent::ToolResult(result) => self.client_called_back(now, *result),
            TransportEvent::Mapping(mapping) => {
                let bound = self
                    .setup
                    .blueprint
                    .spec
                    .connection
                    .max_mapping_error_p99_ms;
                self.publisher.mapping(mapping, bound, now);
                if !mapping.within {
                    self.degrade("media_runtime_mapping_error", None, None, now);
                }
            }
            TransportEvent::Aged { turn, range } => {
                let lost = range.end - range.start + 1;
                self.ledger.dropped(Some(turn), Lane::Data, lost);
                if let Some(edge) = self.egress_edge() {
                    self.publisher.aged(turn, edge, range, now);
                }
            }
        }
    }

    /// Data that this runtime does not look into: for nodes that take anything, and for subscribers.
    fn extension(&mut self, event: Event) {
        for tap in &self.taps {
            let arrival = Arrival::Event {
                port: tap.port,
                event: event.clone(),
                arrived: event.stamp.made,
                // Whoever is outside cannot wait.
                patience: Patience::Spent,
            };
            // The edge counts and reports what it has no room for.
            let _counted = tap.to.offer(arrival);
        }
        let graph = &self.setup.blueprint.graph;
        let node = graph.node(graph.ingress()).id.clone();
        self.publisher.observed(Observed {
            node,
            edge: None,
            event,
            copied: false,
        });
    }

    /// Sent again under the same key, over a retry or a reconnect, an event has no second effect
    /// (F-158); that it was sent again is kept.
    fn keyed(&mut self, now: Monotonic, key: &IdempotencyKey, event: TransportEvent) {
        let publisher = &mut self.publisher;
        let mut noted = None;
        let seen = self.keys.see(key.clone(), || {
            let first = publisher.first_of(key, now);
            noted.insert(first).clone()
        });
        match seen {
            Seen::First => {
                if let Some(first) = noted {
                    self.key_took_effect(key.clone(), first);
                }
                self.transport(now, event);
            }
            Seen::Again { first, times } => self.publisher.repeated(key, first, times, now),
        }
    }

    /// The edge by which the agent's voice leaves, for what is lost behind it.
    fn egress_edge(&self) -> Option<EdgeId> {
        let graph = &self.setup.blueprint.graph;
        let edges = graph.node(graph.egress()).inputs.iter();
        let mut edges = edges.map(|ix| graph.edge(*ix));
        edges
            .find(|edge| edge.carries == PortType::Audio)
            .map(|edge| edge.id.clone())
    }

    /// Push to talk (F-042): recognition and turn detection need not wait for silence.
    pub(super) fn end_utterance(&mut self, now: Monotonic) {
        let graph = &self.setup.blueprint.graph;
        for (ix, node) in graph.nodes() {
            let listens = matches!(node.kind(), Some(NodeKind::Stt | NodeKind::TurnDetector));
            let Some(handle) = self.hosts.get(ix).filter(|_| listens) else {
                continue;
            };
            let at = self.line.heard_until();
            let mark = SpeechMark::EndOfTurn {
                at,
                confidence: 1.0,
            };
            let event = Event::new(
                Stamp {
                    turn: None,
                    epoch: self.kernel.epoch(),
                    sequence: 0,
                    made: now,
                    media: at,
                    segment: 0,
                },
                Payload::Speech(mark),
            );
            let arrival = Arrival::Event {
                port: Port(0),
                event,
                arrived: now,
                patience: Patience::Spent,
            };
            // Marks are kept by every edge; only a host that has ended does not take one.
            let _ended = handle.data.offer(arrival);
        }
    }
}
