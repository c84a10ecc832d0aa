//! Nodes that run in a process of their own (F-122, F-123).
//!
//! A pipeline names such a node like any other that is registered, by its kind; which program that
//! is, with which arguments and within which limits, is the operator's to say, never a pipeline's
//! author's. The protocol is [`rspp_proto::external`].

mod child;
mod sandbox;

use std::{
    collections::BTreeMap,
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rspp_kernel::CancelReason;
use rspp_proto::{
    Payload, TurnNumber, WallClock,
    abi::{EventRecord, MediaTime, Stamp},
    external::{Down, Hello, MAX_FRAME_BYTES, PROTOCOL, Up},
    spec::SandboxPolicy,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{Node, NodeContext, NodeError, NodeSettings, Step, builtin::NodeFactory};
use crate::event::{Event, Port};
use child::{Child, Trouble};
pub use sandbox::{Sandbox, SandboxError};

/// A program that serves a kind of node, and within which limits (F-107, F-123).
#[derive(Clone, Debug)]
pub struct ProcessCommand {
    /// The program; found by its whole path, not by a search.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its environment; it has nothing of the runtime's own.
    pub environment: BTreeMap<String, String>,
    /// Where it runs; the root folder unless said otherwise.
    pub folder: PathBuf,
    /// From its start to its first answer.
    pub start_timeout: Duration,
    /// From an event to the first that the process has to say to it, and from each to the next
    /// (turn-plan.md §8).
    pub event_timeout: Duration,
    /// From the request to end to SIGKILL.
    pub stop_grace: Duration,
    /// How often a node may need a new process.
    pub restarts: u32,
    /// Most processes at once, over all sessions.
    pub processes: NonZeroUsize,
    /// How long a node waits for one of them to be free; zero refuses at once.
    pub queue_timeout: Duration,
    /// Most address space of one process, in bytes.
    pub memory: Option<u64>,
    /// What it may touch; a pipeline can ask for less, and for a sandbox where there is none here
    /// (F-124).
    pub sandbox: Option<Sandbox>,
    /// Most processor time of one process, in seconds.
    pub cpu_seconds: Option<NonZeroU32>,
    /// Most bytes of a frame.
    pub frame_bytes: usize,
    /// Most events that may be emitted in answer to one.
    pub emitted: usize,
}

impl ProcessCommand {
    /// A program with the limits of turn-plan.md §8: 500 ms an event, 256 MiB.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            folder: PathBuf::from("/"),
            start_timeout: Duration::from_secs(2),
            event_timeout: Duration::from_millis(500),
            stop_grace: Duration::from_millis(75),
            restarts: 3,
            processes: NonZeroUsize::new(64).expect("not zero"),
            queue_timeout: Duration::ZERO,
            memory: Some(256 * 1024 * 1024),
            sandbox: None,
            cpu_seconds: None,
            frame_bytes: MAX_FRAME_BYTES,
            emitted: 1_024,
        }
    }

    /// What makes nodes of this kind.
    pub(super) fn factory(self: &Arc<Self>) -> NodeFactory {
        let places = Arc::new(Semaphore::new(
            self.processes.get().min(Semaphore::MAX_PERMITS),
        ));
        let command = Arc::clone(self);
        Arc::new(move |_spec| {
            Box::new(ProcessNode {
                command: Arc::clone(&command),
                places: Arc::clone(&places),
                running: None,
                at_hand: false,
                started: 0,
                events: 0,
            })
        })
    }
}

impl ProcessCommand {
    /// The sandbox that its processes run in, under what a plan asks for.
    pub(super) fn sandbox_under(&self, asked: Option<SandboxPolicy>) -> Option<Sandbox> {
        let Some(SandboxPolicy { network }) = asked else {
            return self.sandbox.clone();
        };
        let sandbox = self.sandbox.clone().unwrap_or_else(|| Sandbox {
            network,
            ..Sandbox::default()
        });
        Some(Sandbox {
            network: sandbox.network.and(network),
            ..sandbox
        })
    }
}

/// The node: its process, and what it was given.
struct ProcessNode {
    command: Arc<ProcessCommand>,
    places: Arc<Semaphore>,
    running: Option<Running>,
    /// Whether the process owes an answer.
    at_hand: bool,
    /// Processes that were started so far.
    started: u32,
    /// Events that were given to the process.
    events: u64,
}

/// A process and the place that it takes.
struct Running {
    child: Child,
    _place: OwnedSemaphorePermit,
}

impl ProcessNode {
    /// Sees to it that there is a process and that it is ready; says how long a new one took.
    async fn ready(&mut self, settings: &NodeSettings) -> Result<Option<Duration>, NodeError> {
        if self.running.is_some() {
            return Ok(None);
        }
        if self.started > self.command.restarts {
            let message = format!("needs more than {} new processes", self.command.restarts);
            return Err(NodeError::new(message));
        }
        let place = self.place().await?;
        let began = Instant::now();
        self.started += 1;
        let memory = settings.limits.memory.map(|bytes| bytes as u64);
        let sandbox = self.command.sandbox_under(settings.limits.sandbox);
        let started = Child::start(&self.command, memory, sandbox).await;
        let mut child = started.map_err(|error| self.error(&error))?;
        let greeted = tokio::time::timeout(self.command.start_timeout, async {
            let hello = Hello {
                protocol: PROTOCOL.to_owned(),
                session_id: settings.session.clone(),
                turn_id: settings.turn.map(TurnNumber::id),
                node_id: settings.node().clone(),
                config: settings.spec.config.clone(),
            };
            child.tell(&Down::Hello(hello)).await?;
            loop {
                match child.hear().await? {
                    Up::Ready { protocol } if protocol == PROTOCOL => return Ok(()),
                    Up::Ready { protocol } => return Err(Trouble::Protocol(protocol)),
                    Up::Log { message } => log(settings, &message),
                    Up::Emit { .. } | Up::Done { .. } => return Err(Trouble::OutOfTurn),
                }
            }
        });
        match greeted.await {
            Ok(Ok(())) => {
                self.running = Some(Running {
                    child,
                    _place: place,
                });
                Ok(Some(began.elapsed()))
            }
            Ok(Err(trouble)) => Err(self.error(&child.explain(trouble).await)),
            Err(_late) => {
                child.kill().await;
                Err(self.error(&Trouble::NotReady(self.command.start_timeout)))
            }
        }
    }

    /// A place for one more process, at once or after others have ended (F-123).
    async fn place(&self) -> Result<OwnedSemaphorePermit, NodeError> {
        let places = Arc::clone(&self.places);
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            return Ok(place);
        }
        let free = tokio::time::timeout(self.command.queue_timeout, places.acquire_owned());
        match free.await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => Err(NodeError::new(format!(
                "all {} processes of this kind are taken",
                self.command.processes
            ))),
        }
    }

    /// Gives the process an event and takes what it emits, until it is done.
    async fn handle(
        &mut self,
        cx: &mut NodeContext,
        port: Port,
        event: Event,
    ) -> Result<(), NodeError> {
        let cancelled = cx.cancellation().clone();
        let started = tokio::select! {
            biased;
            ready = self.ready(cx.settings()) => ready?,
            () = cancelled.cancelled() => return Ok(()),
        };
        if let Some(took) = started {
            cx.started(took);
        }
        self.events += 1;
        let id = self.events;
        let event = Box::new(record(cx, id, event));
        self.at_hand = true;
        let limit = self.command.event_timeout;
        let measured = cx.is_charged();
        let Some(Running { child, .. }) = &mut self.running else {
            return Ok(());
        };
        let before = measured.then(|| child.processor_time()).flatten();
        let answered = {
            let answer = answer(child, cx, (limit, self.command.emitted), port, id, event);
            tokio::pin!(answer);
            tokio::select! {
                biased;
                answered = &mut answer => Some(answered),
                () = cancelled.cancelled() => None,
            }
        };
        if let Some(before) = before
            && let Some(after) = child.processor_time()
        {
            cx.charge(after.saturating_sub(before));
        }
        let trouble = match answered {
            Some(Ok(outcome)) => {
                self.at_hand = false;
                return outcome.map_err(NodeError::new);
            }
            Some(Err(trouble)) => trouble,
            // The host ends this wait when the grace is over, and `on_cancel` finds the event still
            // at hand.
            None => match wind_up(child, id).await {
                Ok(()) => {
                    self.at_hand = false;
                    return Ok(());
                }
                Err(trouble) => trouble,
            },
        };
        self.at_hand = false;
        let trouble = match self.running.take() {
            Some(mut running) => running.child.explain(trouble).await,
            None => trouble,
        };
        Err(self.error(&trouble))
    }

    fn error(&self, trouble: &Trouble) -> NodeError {
        let program = self.command.program.display();
        NodeError::new(format!("process `{program}`: {trouble}"))
    }

    /// Ends the process at once.
    async fn kill(&mut self) {
        self.at_hand = false;
        if let Some(mut running) = self.running.take() {
            running.child.kill().await;
        }
    }
}

/// Tells the process of an event and passes on what it emits, piece by piece. What waits for those who
/// take it is none of the process's time.
async fn answer(
    child: &mut Child,
    cx: &mut NodeContext,
    (limit, most): (Duration, usize),
    port: Port,
    id: u64,
    event: Box<EventRecord>,
) -> Result<Result<(), String>, Trouble> {
    let late = |_| Trouble::Late(limit);
    let port = port.0;
    let is_told_again = matches!(event.payload, Some(Payload::Text(_) | Payload::TextEnd));
    let told = Down::Event { id, port, event };
    let told = tokio::time::timeout(limit, child.tell(&told)).await;
    told.map_err(late)??;
    let mut emitted = 0;
    let mut quiet_until = Instant::now() + limit;
    loop {
        let heard = tokio::time::timeout_at(quiet_until, child.hear()).await;
        match heard.map_err(late)?? {
            Up::Emit {
                payload,
                segment,
                media,
            } => {
                emitted += 1;
                if emitted > most {
                    return Err(Trouble::TooMuch(most));
                }
                cx.emit_now(payload, media, segment).await;
                quiet_until = Instant::now() + limit;
            }
            Up::Done { id: of, error } if of == id => {
                // What was passed on is dealt with already.
                if emitted == 0 && error.is_none() && is_told_again {
                    cx.settle_input();
                }
                return Ok(error.map_or(Ok(()), Err));
            }
            // No word about the event: who only logs is late all the same.
            Up::Log { message } => log(cx.settings(), &message),
            Up::Done { .. } | Up::Ready { .. } => return Err(Trouble::OutOfTurn),
        }
    }
}

/// Tells the process that the event is no longer wanted and waits until it is done with it.
async fn wind_up(child: &mut Child, id: u64) -> Result<(), Trouble> {
    let reason = "cancelled".to_owned();
    child.tell(&Down::Cancel { reason }).await?;
    loop {
        match child.hear().await? {
            Up::Done { id: of, .. } if of == id => return Ok(()),
            Up::Emit { .. } | Up::Log { .. } => {}
            Up::Done { .. } | Up::Ready { .. } => return Err(Trouble::OutOfTurn),
        }
    }
}

fn log(settings: &NodeSettings, message: &str) {
    tracing::info!(session_id = %settings.session, node = %settings.node(), message, "external node");
}

/// An event as the Event ABI puts it, for a node that cannot look into this process.
fn record(cx: &NodeContext, ordinal: u64, event: Event) -> EventRecord {
    let settings = cx.settings();
    let stamp = Stamp {
        session_id: settings.session.clone(),
        turn_id: event.stamp.turn.map(TurnNumber::id),
        pipeline_version: settings.pipeline_version.clone(),
        authority_epoch: event.stamp.epoch,
        ordinal,
        runtime_sequence: event.stamp.sequence,
        transport_sequence: None,
        at: event.stamp.made,
        wall: WallClock(0),
    };
    EventRecord::new(stamp, rspp_proto::Lane::Data, event.payload)
        .at(MediaTime::SampleIndex(event.stamp.media))
        .from_node(settings.node().clone())
}

impl Node for ProcessNode {
    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, port: Port, event: Event) -> Step<'a> {
        Step::Work(Box::pin(self.handle(cx, port, event)))
    }

    /// A process that still owes an answer was deaf to its cancel: it is killed.
    fn on_cancel<'a>(&'a mut self, _cx: &'a mut NodeContext, _reason: CancelReason) -> Step<'a> {
        if self.at_hand {
            Step::Wait(Box::pin(async {
                self.kill().await;
                Ok(())
            }))
        } else {
            Step::OK
        }
    }

    fn stop<'a>(&'a mut self, _cx: &'a mut NodeContext) -> Step<'a> {
        let deaf = self.at_hand;
        let Some(mut running) = self.running.take() else {
            return Step::OK;
        };
        let grace = self.command.stop_grace;
        Step::Wait(Box::pin(async move {
            if deaf {
                running.child.kill().await;
            } else {
                running.child.end(grace).await;
            }
            Ok(())
        }))
    }
}
