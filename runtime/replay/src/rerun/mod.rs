//! A recorded session, run again: nodes and host for real, in virtual time (F-151).
//!
//! What came from the user and from operators comes again when it came. In
//! `playback_recorded_provider_outputs` providers and detectors answer what they answered; in
//! `re_simulate_nodes` whoever serves now is asked. Tools have effects outside: in both modes they answer
//! from the recording.

mod notes;
mod providers;
mod recorded;
mod tools;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt;
use rspp_actors::Clock;
use rspp_controlplane_api::{Lease, LeaseError, Leases, Taking, Wanted};
use rspp_host::{
    CancelTarget, Config, OpenError, Pools, Runtime, SessionHandle, SessionRequest, Snapshots,
    report::SessionReport,
};
use rspp_kernel::CancelReason;
use rspp_proto::{
    AudioChunk, Epoch, Monotonic, SampleRate, SessionId, TurnNumber, WallClock,
    abi::CancelScope,
    control::Versions,
    spec::{LimitsSpec, ReplayMode},
};
use rspp_provider_api::Providers;
use rspp_timeline::{FileHeader, Ordered, Recorder};
use rspp_transport_api::{Ingress, Outgoing, Sink, SinkError, Source, Transport, TransportKind};
use tokio::time::Instant;

use crate::Divergence;
pub use recorded::{Recorded, RerunError};

/// How much longer than the recorded session a replay may take.
const BEYOND: Duration = Duration::from_mins(2);
/// How long the runtime may take to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Who takes part beside the recording.
#[derive(Default)]
pub struct Stage {
    /// Who is asked in `re_simulate_nodes`; not looked at in playback.
    pub providers: Providers,
    /// What nodes there are beside the built-in ones.
    pub nodes: Arc<rspp_host::node::builtin::NodeRegistry>,
    /// What the node takes on.
    pub limits: LimitsSpec,
}

/// A session that was run again.
#[derive(Debug)]
pub struct Rerun {
    /// Which mode made this (F-151).
    pub mode: ReplayMode,
    /// What the session left; `None` if it crashed.
    pub report: Option<SessionReport>,
    /// Where it asked for something that the recording has otherwise or not.
    pub divergences: Vec<Divergence>,
}

impl Recorded {
    /// The header of a recording of its replay: it says which mode made it.
    pub fn header(&self, mode: ReplayMode, clock: Clock) -> FileHeader {
        FileHeader {
            tenant_id: Some(self.tenant.clone()),
            authority_epoch: Some(self.epoch),
            replay_mode: Some(mode),
            ..FileHeader::new(
                self.session.clone(),
                self.pipeline.version.clone(),
                "rspp replay",
                self.recording.recording_level,
                Monotonic::from_duration(clock.now()),
                WallClock(0),
            )
        }
    }
}

/// Runs a session again; its timeline goes to `recorder`. Tokio's clock must be paused.
pub async fn rerun(
    recorded: &Recorded,
    mode: ReplayMode,
    stage: Stage,
    clock: Clock,
    recorder: Recorder,
) -> Result<Rerun, RerunError> {
    recorded.allows(mode)?;
    let notes = notes::Notes::default();
    let providers = match mode {
        ReplayMode::PlaybackRecordedProviderOutputs => providers::playback(recorded, &notes)?,
        ReplayMode::ReSimulateNodes => stage.providers,
        ReplayMode::ReplayDecisions | ReplayMode::RecomputeDecisions => {
            return Err(RerunError::Mode(mode));
        }
    };
    let mut config = Config::new(providers, Pools::in_virtual_time(2));
    config.clock = clock;
    config.nodes = stage.nodes;
    config.limits = stage.limits;
    config.decided.clone_from(&recorded.decided);
    config.tools = Arc::new(tools::recorded(recorded));
    config.leases = Arc::new(RecordedLease {
        epoch: recorded.epoch,
        ttl: recorded.ttl,
        taken_over: recorded.taken_over,
    });
    let snapshots = Snapshots::default();
    snapshots.publish(recorded.snapshots.clone());
    config.snapshots = Arc::new(snapshots);
    // Jitter follows from the session, so that two replays are one.
    config.seed = Some(recorded.seed);
    let runtime = Runtime::start(config)
        .await
        .map_err(|error| RerunError::Start(error.to_string()))?;
    let played = play(&runtime, recorded, recorder).await;
    // The last words of the actors arrive.
    tokio::time::sleep(Duration::from_millis(200)).await;
    runtime.shut_down(GRACE).await;
    let report = played?;
    let mut divergences = notes.take();
    if mode == ReplayMode::PlaybackRecordedProviderOutputs {
        divergences.extend(recorded.unused(&notes));
    }
    Ok(Rerun {
        mode,
        report,
        divergences,
    })
}

async fn play(
    runtime: &Runtime,
    recorded: &Recorded,
    recorder: Recorder,
) -> Result<Option<SessionReport>, RerunError> {
    let request = SessionRequest {
        tenant: recorded.tenant.clone(),
        session: recorded.session.clone(),
        pipeline: recorded.pipeline.clone(),
        policy: recorded.policy.clone(),
        settings: recorded.settings.clone(),
        versions: Versions::default(),
        attributes: recorded.attributes.clone(),
        transport: transport(recorded),
        recorder,
    };
    let opened: Result<_, OpenError> = runtime.open(request).await;
    let handle = opened.map_err(|error| RerunError::Start(error.to_string()))?;
    let most = recorded.length + BEYOND;
    tokio::time::timeout(most, async {
        direct(recorded, &handle).await;
        handle.wait().await
    })
    .await
    .map_err(|_| RerunError::Endless { most })
}

/// Gives the recorded orders when they were given.
async fn direct(recorded: &Recorded, handle: &SessionHandle) {
    let began = Instant::now();
    for (after, order) in &recorded.orders {
        tokio::time::sleep_until(began + *after).await;
        match order {
            Ordered::Cancel {
                scope,
                node,
                invocation,
                reason,
            } => {
                let target = match (scope, node, invocation) {
                    (CancelScope::Session, _, _) => CancelTarget::Session,
                    (CancelScope::Node, Some(node), _) => CancelTarget::Node(node.clone()),
                    (CancelScope::ProviderInvocation, _, Some(call)) => {
                        CancelTarget::Invocation(call.clone())
                    }
                    (
                        CancelScope::Turn | CancelScope::Node | CancelScope::ProviderInvocation,
                        _,
                        _,
                    ) => CancelTarget::Turn,
                };
                let reason = [
                    CancelReason::BargeIn,
                    CancelReason::Timeout,
                    CancelReason::ProviderError,
                ]
                .into_iter()
                .find(|known| known.as_str() == reason)
                .unwrap_or(CancelReason::UserCancel);
                let _ended = handle.cancel_part(target, reason).await;
            }
            Ordered::Rotate(epoch) => handle.rotate(*epoch),
            Ordered::Leave => handle.leave(),
            Ordered::HandOver => handle.hand_over(),
            Ordered::Revoke => handle.revoke(),
            Ordered::Drain => handle.drain(),
        }
    }
}

fn transport(recorded: &Recorded) -> Transport {
    let ingress = recorded.ingress.clone().into_iter();
    let source: Source = Box::pin(
        futures::stream::unfold((ingress, None), |(mut ingress, began)| async move {
            let began = began.unwrap_or_else(Instant::now);
            let Some((after, next)) = ingress.next() else {
                // The user was there to the end; something else ended the session.
                return std::future::pending().await;
            };
            let due: Instant = began + after;
            // A sleep of no time takes up to a millisecond, the timer's step.
            if due > Instant::now() {
                tokio::time::sleep_until(due).await;
            }
            next.map(|next| (next, (ingress, Some(began))))
        })
        .fuse(),
    );
    Transport {
        kind: kind(&recorded.line.transport),
        source_rate: recorded.source_rate,
        source,
        sink: Box::new(Nobody {
            rate: recorded.sink_rate,
            lead: Duration::from_micros(recorded.line.sink_lead_us),
        }),
        caller: recorded.line.traceparent,
    }
}

fn kind(name: &str) -> TransportKind {
    [
        TransportKind::Websocket,
        TransportKind::Telephony,
        TransportKind::Livekit,
    ]
    .into_iter()
    .find(|kind| kind.as_str() == name)
    .unwrap_or(TransportKind::Loopback)
}

/// A line on which nobody listens.
struct Nobody {
    rate: SampleRate,
    lead: Duration,
}

impl Sink for Nobody {
    fn sample_rate(&self) -> SampleRate {
        self.rate
    }

    fn lead(&self) -> Duration {
        self.lead
    }

    fn codec(&self) -> rspp_proto::Codec {
        rspp_proto::Codec::Pcm16
    }

    fn play(&mut self, _turn: TurnNumber, _chunk: &AudioChunk) -> Result<(), SinkError> {
        Ok(())
    }

    fn clear(&mut self, _turn: TurnNumber) {}

    fn send(&mut self, _outgoing: Outgoing) -> Result<(), SinkError> {
        Ok(())
    }

    fn pause(&mut self) {}

    fn wire(&self) -> Option<rspp_transport_api::wire::WireReport> {
        None
    }
}

/// The lease that the recorded session had.
struct RecordedLease {
    epoch: Epoch,
    ttl: Option<Duration>,
    taken_over: bool,
}

impl Leases for RecordedLease {
    fn take(&self, session: &SessionId, _wanted: &Wanted) -> Taking {
        let lease = Lease {
            ttl: self.ttl,
            taken_over: self.taken_over,
            ..Lease::new(session.clone(), self.epoch)
        };
        Box::pin(std::future::ready(Ok(lease)))
    }

    fn check(&self, _lease: &Lease) -> Result<(), LeaseError> {
        Ok(())
    }

    fn release(&self, _lease: &Lease) -> Result<(), LeaseError> {
        Ok(())
    }
}

/// What came in, by when after the opening; `None` for a user who hung up.
type Comings = Vec<(Duration, Option<Ingress>)>;
/// What conditions may ask of the session.
type Attributes = BTreeMap<String, serde_json::Value>;
