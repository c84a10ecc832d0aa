//! The turn actor: starts a turn's nodes under its frozen plan, hands them the user's words, and
//! takes them down again. What the turn means is the session's to decide.

use std::{collections::BTreeMap, sync::Arc};

use rspp_actors::{
    Actor, ChildExit, Context, ControlRef, ExitReason, Failure, Handle, NoData, NoTelemetry, Offer,
    Verdict,
};
use rspp_kernel::{
    CancelReason,
    edge::Patience,
    graph::{EdgeIx, NodeIx, Scope},
    recovery::Task,
    turn::Ending,
};
use rspp_proto::{
    AudioChunk, ErrorCode, InvocationId, Monotonic, NodeId, Payload, SampleIndex, Speaker,
    TextChunk, TurnNumber, spec::NodeKind,
};
use tracing::Span;

use crate::{
    assembly::{Assembly, Hosts},
    clip::Clip,
    event::{Arrival, Event, Port, Stamp},
    node::{NodeControl, NodeReport, Torn},
    scope,
    session::SessionControl,
};

/// What a turn is told by its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TurnControl {
    /// Start the nodes. The turn's own first message: whoever starts a turn need not wait for what
    /// its nodes do when they begin.
    Begin,
    /// Stop all work; the fence has fallen.
    Cancel {
        /// Why.
        reason: CancelReason,
        /// When it was accepted.
        at: Monotonic,
    },
    /// Stop the work of these nodes; the turn goes on without it.
    CancelNodes {
        /// Which.
        nodes: Vec<NodeIx>,
        /// Why.
        reason: CancelReason,
        /// When it was accepted.
        at: Monotonic,
    },
    /// Stop one provider call; its node goes on without the rest of the answer.
    CancelCall(InvocationId),
    /// Something of a sync domain was lost on another of its edges than this node's.
    Sync(NodeIx, Port, Torn),
    /// The turn has gone mute: whoever's handler hangs gives up.
    Unstick,
    /// The guess was right: it is a turn now.
    Promote,
    /// The turn is closed: end. Comes by the same lane as the cancel before it, so that the nodes
    /// are told why before they are stopped.
    Close,
}

/// Everything a turn needs.
pub(crate) struct TurnSetup {
    pub(crate) assembly: Assembly,
    pub(crate) task: Task,
    pub(crate) clips: Arc<BTreeMap<String, Clip>>,
}

/// The actor. Never restarted: a turn that panics is aborted (design §2).
pub(crate) struct Turn {
    setup: Option<TurnSetup>,
    number: TurnNumber,
    session: ControlRef<SessionControl>,
    hosts: Hosts,
}

impl Turn {
    pub(crate) fn new(
        number: TurnNumber,
        session: ControlRef<SessionControl>,
        setup: Option<TurnSetup>,
    ) -> Self {
        Self {
            setup,
            number,
            session,
            hosts: Hosts::default(),
        }
    }
}

impl Actor for Turn {
    type Control = TurnControl;
    type Data = NoData;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "turn";

    fn scope(&self) -> Span {
        scope::of_turn(self.number)
    }

    async fn started(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        if self.setup.is_none() {
            return Err(Failure::new("a turn is not begun twice"));
        }
        ctx.control_ref()
            .send_reserved(TurnControl::Begin)
            .map_err(|_| Failure::new("a new control lane has room"))
    }

    async fn on_control(
        &mut self,
        ctx: &mut Context<Self>,
        message: TurnControl,
    ) -> Result<(), Failure> {
        match message {
            TurnControl::Begin => Box::pin(self.begin(ctx)).await?,
            TurnControl::Cancel { reason, at } => {
                for handle in self.hosts.iter() {
                    self.tell(handle, NodeControl::Cancel { reason, at });
                }
            }
            TurnControl::CancelNodes { nodes, reason, at } => {
                for handle in nodes.iter().filter_map(|ix| self.hosts.get(*ix)) {
                    self.tell(handle, NodeControl::Cancel { reason, at });
                }
            }
            TurnControl::CancelCall(invocation) => {
                for handle in self.hosts.iter() {
                    self.tell(handle, NodeControl::CancelCall(invocation.clone()));
                }
            }
            TurnControl::Sync(node, port, torn) => {
                if let Some(handle) = self.hosts.get(node) {
                    self.tell(handle, NodeControl::Sync(port, torn));
                }
            }
            TurnControl::Unstick => {
                for handle in self.hosts.iter() {
                    self.tell(handle, NodeControl::Unstick);
                }
            }
            TurnControl::Promote => {
                for handle in self.hosts.iter() {
                    self.tell(handle, NodeControl::Promote);
                }
            }
            TurnControl::Close => ctx.stop(ExitReason::Finished),
        }
        Ok(())
    }

    async fn on_data(
        &mut self,
        _ctx: &mut Context<Self>,
        item: std::convert::Infallible,
    ) -> Result<(), Failure> {
        match item {}
    }

    /// A node host that is gone for good takes the turn with it, and nothing else (F-134).
    async fn on_child_exit(
        &mut self,
        ctx: &mut Context<Self>,
        exit: ChildExit,
    ) -> Result<(), Failure> {
        let gone = match exit.verdict {
            Verdict::Ended | Verdict::GaveUp => !exit.reason.is_orderly(),
            Verdict::Restarted { .. } | Verdict::Restarting { .. } => false,
        };
        if gone {
            let node = NodeId::new(exit.name.as_str())?;
            self.failed(ctx, node, describe(&exit.reason))?;
        }
        Ok(())
    }
}

fn describe(reason: &ExitReason) -> Arc<str> {
    format!("the node host {reason}").into()
}

impl Turn {
    /// Starts the nodes, downstream first, so that every edge leads to somebody who is there.
    async fn begin(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        let Some(setup) = self.setup.take() else {
            return Ok(());
        };
        let assembly = setup.assembly;
        let order: Vec<NodeIx> = assembly.graph.hosts(Scope::Turn).collect();
        for ix in order.into_iter().rev() {
            if assembly.cancel.is_cancelled() {
                return Ok(()); // Nobody waits for the rest.
            }
            let Some(made) = assembly.node(ix, &self.hosts)? else {
                continue;
            };
            self.hosts.add_taking(ix, made.taking);
            match Box::pin(ctx.spawn(made.spec, made.inputs, made.make)).await {
                Ok(handle) => self.hosts.add(ix, handle),
                Err(error) => {
                    let node = assembly.graph.node(ix).id.clone();
                    return self.failed(ctx, node, error.to_string().into());
                }
            }
        }
        match setup.task {
            Task::Answer { user_text } => self.hand_over(&assembly, &user_text.into()),
            Task::Say { words } => say(&assembly, &self.hosts, self.number, &words),
            Task::Play { recording, words } => {
                // Who opened the session has seen to it that it is there.
                if let Some(clip) = setup.clips.get(&recording).cloned() {
                    let playing = play(assembly, self.number, clip, words);
                    ctx.spawn_task("recording", playing);
                }
            }
        }
        Ok(())
    }

    fn failed(&self, ctx: &Context<Self>, node: NodeId, message: Arc<str>) -> Result<(), Failure> {
        let message = SessionControl::Node {
            turn: Some(self.number),
            node,
            at: Monotonic::from_duration(ctx.clock().now()),
            report: NodeReport::Failed {
                ending: Ending::NodeFailed,
                code: ErrorCode::RuntimeInternalError,
                message,
            },
        };
        self.session
            .send_reserved(message)
            .map_err(|_| Failure::new("the session takes no report of a failed node"))
    }

    /// A control lane has a reserve for this; a host that has ended needs no cancel.
    fn tell(&self, handle: &HostHandle, message: NodeControl) {
        if handle.control.send_reserved(message).is_err() {
            tracing::debug!(turn = %self.number, "a node host takes no cancel");
        }
    }

    /// The user's words go to every turn-scoped node that the listening side has an edge to.
    fn hand_over(&self, assembly: &Assembly, user_text: &Arc<str>) {
        let graph = &assembly.graph;
        let boundary = |ix: &EdgeIx| {
            let edge = graph.edge(*ix);
            graph.node(edge.from).scope == Scope::Session
                && graph.node(edge.to).scope == Scope::Turn
                && edge.to != graph.egress()
        };
        let edges = graph.edges().map(|(ix, _)| ix).filter(boundary);
        for ix in edges {
            let edge = graph.edge(ix);
            let Some(handle) = self.hosts.get(edge.to) else {
                continue;
            };
            let inputs = &graph.node(edge.to).inputs;
            let port = inputs.iter().position(|input| *input == ix).unwrap_or(0);
            let now = assembly.now();
            let event = Event::new(
                Stamp {
                    turn: Some(self.number),
                    epoch: assembly.epoch,
                    sequence: 1,
                    made: now,
                    media: SampleIndex(0),
                    segment: 0,
                },
                Payload::Text(Box::new(TextChunk::whole(
                    Speaker::User,
                    0,
                    Arc::clone(user_text),
                ))),
            );
            let _first_on_an_empty_lane = handle.data.offer(Arrival::Event {
                port: Port(port as u16),
                event,
                arrived: now,
                patience: Patience::Spent,
            });
        }
    }
}

/// The only clause of what is said without a model.
const CLAUSE: u32 = 0;

/// Hands words to the turn's voice; to a turn that has none they are given as text.
fn say(assembly: &Assembly, hosts: &Hosts, turn: TurnNumber, words: &str) {
    let graph = &assembly.graph;
    let voice = graph
        .nodes()
        .find(|(ix, node)| node.kind() == Some(&NodeKind::Tts) && hosts.get(*ix).is_some())
        .and_then(|(ix, _)| hosts.get(ix));
    let text = Payload::Text(Box::new(TextChunk::whole(Speaker::Agent, CLAUSE, words)));
    if let Some(voice) = voice {
        for (sequence, payload) in [(1, text), (2, Payload::TextEnd)] {
            let arrival = arrival(assembly, turn, sequence, Port(0), payload);
            let _first_on_an_empty_lane = voice.data.offer(arrival);
        }
        return;
    }
    report(
        assembly,
        turn,
        NodeReport::ClauseShown {
            segment: CLAUSE,
            text: words.into(),
        },
    );
    let end = arrival(assembly, turn, 1, assembly.egress_port(), Payload::AudioEnd);
    let _kept_by_every_edge = assembly.egress.offer(end);
}

/// Plays a recording to the user, as fast as the line takes it.
async fn play(assembly: Assembly, turn: TurnNumber, clip: Clip, words: String) {
    let segment = CLAUSE;
    let text = words.into();
    report(&assembly, turn, NodeReport::ClauseBegun { segment, text });
    let frames = clip.frames().len() as u32;
    report(&assembly, turn, NodeReport::FramesMade { segment, frames });
    report(&assembly, turn, NodeReport::ClauseMade { segment });
    let port = assembly.egress_port();
    let audio = clip.frames().iter().map(|frame| {
        let chunk = AudioChunk::pcm16(clip.rate(), frame.clone());
        Payload::AudioChunk(chunk)
    });
    let all = audio.chain([Payload::AudioEnd]);
    for (sequence, payload) in (1..).zip(all) {
        let mut arrival = arrival(&assembly, turn, sequence, port, payload);
        loop {
            if !assembly.fence.is_live(turn) {
                return;
            }
            match assembly.egress.offer(arrival) {
                Offer::Queued | Offer::Displaced(_) => break,
                Offer::Closed(_) => return,
                Offer::Full(back) => arrival = back,
            }
            assembly.egress.space_at(usize::from(port.0)).await;
        }
    }
}

fn arrival(
    assembly: &Assembly,
    turn: TurnNumber,
    sequence: u64,
    port: Port,
    payload: Payload,
) -> Arrival {
    let now = assembly.now();
    let stamp = Stamp {
        turn: Some(turn),
        epoch: assembly.epoch,
        sequence,
        made: now,
        media: SampleIndex(0),
        segment: CLAUSE,
    };
    Arrival::Event {
        port,
        event: Event::new(stamp, payload),
        arrived: now,
        patience: Patience::Left,
    }
}

/// Tells the session what no node of the turn tells it.
fn report(assembly: &Assembly, turn: TurnNumber, report: NodeReport) {
    let message = SessionControl::Node {
        turn: Some(turn),
        node: NodeId::new("recording").expect("not blank"),
        at: assembly.now(),
        report,
    };
    if assembly.session.send_reserved(message).is_err() {
        tracing::debug!(%turn, "the session takes no report");
    }
}

/// A handle on a node host.
pub(crate) type HostHandle = Handle<crate::node::NodeHost>;
