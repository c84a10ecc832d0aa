//! The way out of a node host: along the edges that carry an event, as far as they have room.

use std::{collections::VecDeque, time::Duration};

use rspp_actors::{Context, Offer};
use rspp_kernel::{
    edge::Patience,
    graph::{EventView, Route, Stream},
};
use rspp_proto::{Monotonic, Payload, spec::NodeKind};
use tokio::{sync::mpsc, time::Instant};

use super::{NodeControl, NodeHost, NodeReport, NodeSettings, NodeSetup, OutEdge};
use crate::{
    event::{Arrival, Event},
    observe::Observed,
};

/// What a guess may hold for the user at one node; then the node waits. A dozen frames are enough to
/// begin to play at once.
const HELD: usize = 64;

/// What is on its way out of a node.
#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts about the way out that hold independently of each other"
)]
pub(super) struct Outlet {
    /// Its turn is a guess: what is for the user is held here, the place of its edge beside it.
    pub(super) provisional: bool,
    pub(super) held: VecDeque<(usize, Event)>,
    /// Ends for the user along edges of those who do not stand here, held with it.
    held_ends: Vec<(OutEdge, Event)>,
    /// Whether something had to wait for space since this was cleared.
    pub(super) waited: bool,
    /// Whether a report found no room.
    pub(super) unheard: bool,
    /// The streams that the node has ended.
    ended: Vec<Stream>,
    /// Whether text of the model was passed on: that cannot be said again by another.
    said: bool,
    /// What a foreign node emits while its handler goes on.
    stream: Option<mpsc::Receiver<Event>>,
    /// Whether what the node was told counts as dealt with once something was passed on.
    pub(super) settles: bool,
}

/// An event that waits for space on an edge.
pub(super) struct Blocked {
    /// The edge's place among the outputs.
    pub(super) at: usize,
    pub(super) arrival: Arrival,
    /// The same event, if edges after this one may carry it too.
    pub(super) rest: Option<Event>,
}

impl Outlet {
    pub(super) fn new(provisional: bool) -> Self {
        Self {
            provisional,
            ..Self::default()
        }
    }

    /// Lets a foreign node emit while its handler goes on. The built-in nodes have nothing to wait for
    /// between two things that they emit.
    pub(super) fn open_stream(&mut self, settings: &mut NodeSettings) {
        let is_foreign = matches!(settings.spec.kind, NodeKind::Custom(_));
        (settings.way_out, self.stream) = if is_foreign {
            let (to, from) = mpsc::channel(1);
            (Some(to), Some(from))
        } else {
            (None, None)
        };
    }

    /// The next event that a handler emits while it goes on. Cancel safe.
    pub(super) async fn streamed(&mut self) -> Event {
        if let Some(stream) = &mut self.stream
            && let Some(event) = stream.recv().await
        {
            return event;
        }
        std::future::pending().await
    }

    /// What a handler that has ended had emitted just before.
    pub(super) fn last_streamed(&mut self) -> Option<Event> {
        self.stream.as_mut()?.try_recv().ok()
    }

    /// Sends what a handler emits while it goes on, and waits where there is no room; `false` if a
    /// cancel comes first.
    pub(super) async fn pass_on(
        &mut self,
        ctx: &mut Context<NodeHost>,
        deferred: &mut VecDeque<NodeControl>,
        setup: &NodeSetup,
        event: Event,
    ) -> bool {
        if !setup.is_wanted() {
            return true; // The fence has fallen; the cancel is on its way.
        }
        if self.settles && Stream::of(&event.payload).is_some() {
            self.settles = false;
            setup.succession.settle_all();
        }
        let mut blocked = self.send(setup, event, 0);
        while let Some(Blocked { at, arrival, rest }) = blocked {
            let taken = self.wait_for_space(ctx, deferred, setup, at, arrival);
            if !Box::pin(taken).await {
                return false;
            }
            blocked = rest.and_then(|event| self.send(setup, event, at + 1));
        }
        true
    }

    /// Offers an event to the edges from the one at `first` on, up to one that has no room.
    pub(super) fn send(
        &mut self,
        setup: &NodeSetup,
        event: Event,
        first: usize,
    ) -> Option<Blocked> {
        let kind = event.payload.event_type();
        let observers = &setup.settings.observers;
        // Only notes: data of a node's own is filtered like these, but is no developer's.
        let is_note = matches!(event.payload, Payload::Debug(_));
        if is_note && first == 0 && !observers.is_debugging() {
            return None; // Off unless the session turns it on (F-027).
        }
        if let Some(stream) = Stream::ended_by(&event.payload)
            && !self.has_ended(stream)
        {
            self.ended.push(stream);
        }
        if first == 0 && !setup.branches.is_empty() {
            self.end_branches(setup, &event);
        }
        // A copy for who listens in, if it goes its way; else all of it is for them.
        let mut copy =
            (first == 0 && observers.taps(setup.settings.node(), kind)).then(|| event.clone());
        let mut event = Some(event);
        let mut routed = first > 0;
        let outputs = setup.outputs.len();
        for at in first..outputs {
            let Some(current) = &event else { break };
            let Some(route) = route(setup, at, current) else {
                continue;
            };
            routed = true;
            if let Some(copy) = copy.take() {
                self.show(setup, copy, true);
            }
            if !self.said && setup.settings.spec.kind == NodeKind::Llm {
                self.said = true;
                setup.succession.said();
            }
            if route.is_choice() {
                self.unheard |= !setup.tell(NodeReport::Routed {
                    edge: setup.graph.edge(route.edge).id.clone(),
                    taken: route.is_taken(),
                });
            }
            if !route.is_taken() {
                continue;
            }
            // The last edge gets the event itself; sharing a payload copies no audio.
            let shared = if at + 1 == outputs {
                event.take()
            } else {
                event.clone()
            };
            let Some(shared) = shared else { break };
            if self.provisional && setup.outputs[at].to_user {
                if self.held.len() < HELD {
                    self.held.push_back((at, shared));
                    continue;
                }
                return Some(Blocked {
                    at,
                    arrival: arrival(setup, at, shared),
                    rest: event,
                });
            }
            match setup.outputs[at].to.offer(arrival(setup, at, shared)) {
                // What was displaced or shed is counted and reported by the edge itself.
                Offer::Queued | Offer::Displaced(_) | Offer::Closed(_) => {}
                Offer::Full(arrival) => {
                    return Some(Blocked {
                        at,
                        arrival,
                        rest: event,
                    });
                }
            }
        }
        // Nobody downstream asked for it: an observer may be interested, but not in data.
        if !routed
            && let Some(event) = event
            && Stream::of(&event.payload).is_none()
            && !setup.settings.memory.is_tight()
        {
            self.show(setup, event, false);
        }
        None
    }

    /// Shows an event to who listens in; it is lost before it delays anything.
    fn show(&self, setup: &NodeSetup, event: Event, copied: bool) {
        if self.provisional {
            return; // Nobody hears of a guess (P9).
        }
        let _unwatched = setup.telemetry.offer(Observed {
            node: setup.settings.node().clone(),
            edge: None,
            event,
            copied,
        });
    }

    /// Lets out what was held, in its order; stops when a cancel comes.
    pub(super) async fn release(
        &mut self,
        ctx: &mut Context<NodeHost>,
        deferred: &mut VecDeque<NodeControl>,
        setup: &NodeSetup,
    ) {
        while let Some((at, event)) = self.held.pop_front() {
            let arrival = arrival(setup, at, event);
            if let Offer::Full(arrival) = setup.outputs[at].to.offer(arrival)
                && !self.wait_for_space(ctx, deferred, setup, at, arrival).await
            {
                self.forget_held();
            }
        }
        for (edge, end) in self.held_ends.drain(..) {
            let _kept_by_every_edge = edge.to.offer(end_on(&edge, end));
        }
    }

    /// Whether the node has ended a stream.
    pub(super) fn has_ended(&self, stream: Stream) -> bool {
        self.ended.contains(&stream)
    }

    /// Whether anything is held for the user.
    pub(super) fn holds(&self) -> bool {
        !(self.held.is_empty() && self.held_ends.is_empty())
    }

    pub(super) fn forget_held(&mut self) {
        self.held.clear();
        self.held_ends.clear();
    }

    /// Whoever has not come to stand here, or does not any more, has nothing more to say either.
    fn end_branches(&mut self, setup: &NodeSetup, event: &Event) {
        let Some(ended) = Stream::ended_by(&event.payload) else {
            return;
        };
        let idle = |edge: &OutEdge| setup.outputs.iter().all(|own| own.ix != edge.ix);
        let branches = setup.branches.iter();
        let branches = branches.filter(|(stream, edge)| *stream == ended && idle(edge));
        for (_, edge) in branches {
            if self.provisional && edge.to_user {
                self.held_ends.push((edge.clone(), event.clone()));
            } else {
                let _kept_by_every_edge = edge.to.offer(end_on(edge, event.clone()));
            }
        }
    }

    /// Offers one event to one edge until it takes it, for as long as the edge may hold a sender
    /// back; then the edge decides. `false` if a cancel came.
    pub(super) async fn wait_for_space(
        &mut self,
        ctx: &mut Context<NodeHost>,
        deferred: &mut VecDeque<NodeControl>,
        setup: &NodeSetup,
        at: usize,
        mut arrival: Arrival,
    ) -> bool {
        let edge = &setup.outputs[at];
        let (to, part) = (edge.to.clone(), usize::from(edge.port.0));
        let until = Instant::now() + edge.max_block_time;
        let timeout = tokio::time::sleep_until(until);
        tokio::pin!(timeout);
        self.waited = true;
        let mut caught_up = false;
        loop {
            let last_try = tokio::select! {
                biased;
                () = ctx.stirred() => {
                    setup.listen(ctx, deferred);
                    let soft = setup.is_soft();
                    if deferred.iter().any(|message| message.stops(soft)) {
                        return false;
                    }
                    false
                }
                () = to.space_at(part) => false,
                () = &mut timeout => true,
            };
            // A line that is held is not a slow one: what waits for it is not given up. Once it is let
            // go, what the edges hold is older than they allow until it has been played.
            let mut longer = None;
            if last_try && setup.is_held() {
                longer = Some(setup.outputs[at].max_block_time);
                caught_up = false;
            } else if last_try && setup.was_held() && !caught_up {
                longer = Some(setup.outputs[at].max_queue_time);
                caught_up = true;
            }
            if let Some(longer) = longer {
                timeout.as_mut().reset(Instant::now() + longer);
            } else if last_try && let Arrival::Event { patience, .. } = &mut arrival {
                *patience = Patience::Spent;
            }
            match to.offer(arrival) {
                Offer::Queued | Offer::Displaced(_) | Offer::Closed(_) => return true,
                Offer::Full(back) => arrival = back,
            }
        }
    }
}

fn arrival(setup: &NodeSetup, at: usize, event: Event) -> Arrival {
    let edge = &setup.outputs[at];
    Arrival::Event {
        port: edge.port,
        event,
        arrived: Monotonic::ZERO,
        patience: if edge.max_block_time == Duration::ZERO {
            Patience::Spent
        } else {
            Patience::Left
        },
    }
}

fn end_on(edge: &OutEdge, event: Event) -> Arrival {
    Arrival::Event {
        port: edge.port,
        event,
        arrived: Monotonic::ZERO,
        patience: Patience::Spent,
    }
}

fn route(setup: &NodeSetup, at: usize, event: &Event) -> Option<Route> {
    let ix = setup.outputs[at].ix;
    let view = EventView::new(&event.payload, &setup.settings.attributes);
    setup
        .graph
        .routes_along(std::slice::from_ref(&ix), &view)
        .next()
}
