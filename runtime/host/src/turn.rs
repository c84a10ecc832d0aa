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
    graph::{EdgeIx, EventView, NodeIx, Route, Scope, Stream},
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
        if exit.reason.is_orderly() {
            return Ok(());
        }
        let node = NodeId::new(exit.name.as_str())?;
        let message = describe(&exit.reason);
        match exit.verdict {
            Verdict::Ended | Verdict::GaveUp => self.failed(ctx, node, message),
            // Its standby goes on; what happened is told all the same (F-131).
            Verdict::Restarted { .. } | Verdict::Restarting { .. } => {
                self.tell_session(ctx, node, NodeReport::Crashed { message })
            }
        }
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
        let report = NodeReport::Failed {
            ending: Ending::NodeFailed,
            code: ErrorCode::RuntimeInternalError,
            message,
        };
        self.tell_session(ctx, node, report)
    }

    fn tell_session(
        &self,
        ctx: &Context<Self>,
        node: NodeId,
        report: NodeReport,
    ) -> Result<(), Failure> {
        let message = SessionControl::Node {
            turn: Some(self.number),
            node,
            at: Monotonic::from_duration(ctx.clock().now()),
            report,
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
        let edges: Vec<_> = graph.edges().map(|(ix, _)| ix).filter(boundary).collect();
        let chunk = TextChunk::whole(Speaker::User, 0, Arc::clone(user_text));
        let words = Payload::Text(Box::new(chunk));
        let view = EventView::new(&words, &assembly.attributes);
        let routes: Vec<_> = graph.routes_along(&edges, &view).collect();
        let to = |route: &Route| graph.edge(route.edge).to;
        for route in &routes {
            let Some(handle) = self.hosts.get(to(route)) else {
                continue;
            };
            if route.is_choice() {
                let edge = graph.edge(route.edge);
                let from = graph.node(edge.from).id.clone();
                let routed = NodeReport::Routed {
                    edge: edge.id.clone(),
                    taken: route.is_taken(),
                };
                report_of(assembly, self.number, from, routed);
            }
            // Whom the words do not reach at all has nothing to do: the turn does not wait for it.
            let payload = if route.is_taken() {
                words.clone()
            } else if routes.iter().any(|it| it.is_taken() && to(it) == to(route)) {
                continue;
            } else {
                Payload::TextEnd
            };
            let port = assembly.port(route.edge);
            let mut arrival = arrival(assembly, self.number, 1, port, payload);
            if let Arrival::Event { patience, .. } = &mut arrival {
                *patience = Patience::Spent;
            }
            let _first_on_an_empty_lane = handle.data.offer(arrival);
        }
    }
}

/// Ends what a turn that answers nobody has no part for: whoever works waits for it no longer. What
/// comes by `except` is still to come.
fn end_the_rest(
    assembly: &Assembly,
    hosts: &Hosts,
    turn: TurnNumber,
    working: &[NodeIx],
    except: Option<EdgeIx>,
) {
    let graph = &assembly.graph;
    let idle = |from: NodeIx| !working.contains(&from);
    for (ix, edge) in graph
        .edges()
        .filter(|(ix, edge)| idle(edge.from) && Some(*ix) != except)
    {
        let to = if edge.to == graph.egress() {
            &assembly.egress
        } else if let Some(handle) = hosts.get(edge.to).filter(|_| working.contains(&edge.to)) {
            &handle.data
        } else {
            continue;
        };
        for stream in [Stream::Text, Stream::Audio] {
            if graph.brings_end(ix, stream) {
                let end = arrival(assembly, turn, 2, assembly.port(ix), stream.end());
                let _kept_by_every_edge = to.offer(end);
            }
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
        .and_then(|(ix, _)| Some((ix, hosts.get(ix)?)));
    if let Some((ix, voice)) = voice {
        let text = Payload::Text(Box::new(TextChunk::whole(Speaker::Agent, CLAUSE, words)));
        let said = arrival(assembly, turn, 1, Port(0), text);
        let _first_on_an_empty_lane = voice.data.offer(said);
        if graph.ends(ix).is_over() {
            let end = arrival(assembly, turn, 2, Port(0), Payload::TextEnd);
            let _kept_by_every_edge = voice.data.offer(end);
        }
        end_the_rest(assembly, hosts, turn, &graph.downstream(ix), None);
        return;
    }
    end_the_rest(assembly, hosts, turn, &[], None);
    report(
        assembly,
        turn,
        NodeReport::ClauseShown {
            segment: CLAUSE,
            text: words.into(),
        },
    );
    if graph.ends(graph.egress()).is_over() {
        let end = arrival(assembly, turn, 2, assembly.egress_port(), Payload::AudioEnd);
        let _kept_by_every_edge = assembly.egress.offer(end);
    }
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
    let egress = assembly.graph.node(assembly.graph.egress());
    let audible = egress.inputs.get(usize::from(port.0)).copied();
    end_the_rest(&assembly, &Hosts::default(), turn, &[], audible);
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
    let node = NodeId::new("recording").expect("not blank");
    report_of(assembly, turn, node, report);
}

fn report_of(assembly: &Assembly, turn: TurnNumber, node: NodeId, report: NodeReport) {
    let message = SessionControl::Node {
        turn: Some(turn),
        node,
        at: assembly.now(),
        report,
    };
    if assembly.session.send_reserved(message).is_err() {
        tracing::debug!(%turn, "the session takes no report");
    }
}

/// A handle on a node host.
pub(crate) type HostHandle = Handle<crate::node::NodeHost>;
