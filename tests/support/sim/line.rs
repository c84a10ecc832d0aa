//! A user at the other end of a line that misbehaves.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::stream;
use rspp_proto::{AudioChunk, SampleRate, TurnNumber};
use rspp_transport_api::{
    Ingress, Link, Outgoing, Sink, SinkError, Source, Transport, TransportKind, audio::FRAME,
};
use tokio::time::Instant;

use super::{
    Dice, LineFault, Piece, Plant, Scenario, UserAct,
    watch::{Invariant, Trace, Watch},
};

/// Audio that the peer may hold unplayed.
const LEAD: Duration = Duration::from_millis(60);

/// What the user sends, and when, from the opening of the session.
pub(super) struct Script {
    sends: VecDeque<(Duration, Ingress)>,
    faults: Vec<LineFault>,
    hangs_up: Duration,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Script {
    /// When the user hangs up, or is gone.
    pub(super) fn hangs_up(&self) -> Duration {
        self.hangs_up
    }

    /// The rest, for another line that the user is on from `after` on.
    pub(super) fn rest(mut self, after: Duration) -> Self {
        self.sends.retain(|(at, _)| *at >= after);
        for (at, _) in &mut self.sends {
            *at -= after;
        }
        for fault in &mut self.faults {
            fault.sooner(after.as_millis() as u64);
        }
        self.hangs_up = self.hangs_up.saturating_sub(after);
        self
    }

    /// What `caller` does in this scenario.
    pub(super) fn of(scenario: &Scenario, caller: u8, hangs_up_ms: u64, packet_ms: u64) -> Self {
        let mut speech = Vec::new();
        let mut sends = Vec::new();
        let mut faults = Vec::new();
        for piece in &scenario.pieces {
            match piece {
                Piece::User {
                    caller: of,
                    at_ms,
                    does,
                } if *of == caller => match does {
                    UserAct::Speaks { for_ms } => speech.push(*at_ms..at_ms + for_ms),
                    UserAct::Types(text) => sends.push((ms(*at_ms), Ingress::Text(text.clone()))),
                    UserAct::EndsUtterance => sends.push((ms(*at_ms), Ingress::EndOfUtterance)),
                    UserAct::Cancels => sends.push((ms(*at_ms), Ingress::Cancel)),
                },
                Piece::Line { caller: of, fault } if *of == caller => faults.push(fault.clone()),
                _of_others => {}
            }
        }
        for fault in &faults {
            if let LineFault::Reconnects { at_ms, for_ms } = *fault {
                sends.push((ms(at_ms), Ingress::Link(Link::Reconnecting)));
                sends.push((ms(at_ms + for_ms), Ingress::Link(Link::Back)));
            }
        }
        let mut dice = Dice::new(scenario.seed ^ u64::from(caller));
        let packet = packet_ms.max(20);
        let mut late = Duration::ZERO;
        for from in (0..hangs_up_ms).step_by(packet as usize) {
            let to = from + packet;
            let audio = packet_of(from, to, &speech);
            // What is spoken arrives once it has been.
            let mut at = ms(to);
            let mut is_lost = false;
            for fault in &faults {
                match *fault {
                    LineFault::Mute { at_ms, for_ms } | LineFault::Reconnects { at_ms, for_ms } => {
                        is_lost |= (at_ms..at_ms + for_ms).contains(&to);
                    }
                    LineFault::Jitter { up_to_ms } => at += ms(dice.within(0..up_to_ms)),
                    LineFault::Stalls { at_ms, for_ms } if at >= ms(at_ms) => {
                        at = at.max(ms(at_ms + for_ms));
                    }
                    LineFault::Stalls { .. }
                    | LineFault::Full { .. }
                    | LineFault::Dies { .. }
                    | LineFault::Closes { .. } => {}
                }
            }
            late = late.max(at);
            if !is_lost {
                sends.push((late, Ingress::Audio(audio)));
            }
        }
        sends.sort_by_key(|(at, _)| *at);
        let dies = faults.iter().filter_map(|fault| match fault {
            LineFault::Dies { at_ms } => Some(ms(*at_ms)),
            _goes_on => None,
        });
        let hangs_up = dies.chain([ms(hangs_up_ms)]).min().unwrap_or_default();
        Self {
            sends: sends.into(),
            faults,
            hangs_up,
        }
    }
}

fn packet_of(from: u64, to: u64, speech: &[std::ops::Range<u64>]) -> Bytes {
    const PER_MS: u64 = 16;
    let spoken = |at: u64| speech.iter().any(|range| range.contains(&at));
    let mut pcm = Vec::with_capacity(((to - from) * PER_MS * 2) as usize);
    for at in from..to {
        let sample: i16 = if spoken(at) { 4_000 } else { 0 };
        for _ in 0..PER_MS {
            pcm.extend_from_slice(&sample.to_le_bytes());
        }
    }
    pcm.into()
}

/// The runtime's end of the line.
pub(super) fn transport(
    script: Script,
    watch: Arc<Mutex<Watch>>,
    trace: Trace,
    plant: Option<Plant>,
) -> Transport {
    let began = Instant::now();
    let Script {
        sends,
        faults,
        hangs_up,
    } = script;
    Transport {
        kind: TransportKind::Loopback,
        source_rate: SampleRate::HZ_16000,
        source: source(sends, began, hangs_up, Arc::clone(&watch)),
        sink: Box::new(Peer {
            began,
            faults,
            hangs_up,
            held: VecDeque::new(),
            watch,
            trace,
            plant,
            newest: None,
        }),
        caller: None,
    }
}

fn source(
    sends: VecDeque<(Duration, Ingress)>,
    began: Instant,
    hangs_up: Duration,
    watch: Arc<Mutex<Watch>>,
) -> Source {
    Box::pin(stream::unfold(
        (sends, watch),
        move |(mut sends, watch)| async move {
            match sends.pop_front() {
                Some((at, ingress)) if at < hangs_up => {
                    tokio::time::sleep_until(began + at).await;
                    // Whoever waited for room to open speaks once somebody listens.
                    while !watch
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .is_followed()
                    {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    Some((ingress, (sends, watch)))
                }
                Some(_) | None => {
                    tokio::time::sleep_until(began + hangs_up).await;
                    None
                }
            }
        },
    ))
}

/// What plays the agent's audio.
struct Peer {
    began: Instant,
    faults: Vec<LineFault>,
    hangs_up: Duration,
    /// When what it holds will have been played, and of which turn it is.
    held: VecDeque<(Duration, TurnNumber)>,
    watch: Arc<Mutex<Watch>>,
    trace: Trace,
    plant: Option<Plant>,
    newest: Option<(TurnNumber, AudioChunk)>,
}

impl Peer {
    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn happened(&self, fault: &'static str) {
        self.trace.lock().tally.fault(fault);
    }

    fn conduct(&self, now: Duration) -> Result<(), SinkError> {
        if now >= self.hangs_up {
            return Err(SinkError::Closed);
        }
        for fault in &self.faults {
            match *fault {
                LineFault::Closes { at_ms } if now >= ms(at_ms) => {
                    self.happened("line: closes");
                    return Err(SinkError::Closed);
                }
                LineFault::Full { at_ms, for_ms }
                    if now >= ms(at_ms) && now < ms(at_ms + for_ms) =>
                {
                    self.happened("line: full");
                    return Err(SinkError::Full);
                }
                LineFault::Reconnects { at_ms, for_ms }
                    if now >= ms(at_ms) && now < ms(at_ms + for_ms) =>
                {
                    return Err(SinkError::Lost);
                }
                LineFault::Closes { .. }
                | LineFault::Full { .. }
                | LineFault::Jitter { .. }
                | LineFault::Stalls { .. }
                | LineFault::Mute { .. }
                | LineFault::Reconnects { .. }
                | LineFault::Dies { .. } => {}
            }
        }
        Ok(())
    }
}

impl Sink for Peer {
    fn sample_rate(&self) -> SampleRate {
        SampleRate::HZ_16000
    }

    fn lead(&self) -> Duration {
        LEAD
    }

    fn codec(&self) -> rspp_proto::Codec {
        rspp_proto::Codec::Pcm16
    }

    fn play(&mut self, turn: TurnNumber, chunk: &AudioChunk) -> Result<(), SinkError> {
        let now = self.began.elapsed();
        let outcome = self.conduct(now);
        while self.held.front().is_some_and(|(until, _)| *until <= now) {
            self.held.pop_front();
        }
        if outcome.is_ok() {
            let after = self.held.back().map_or(now, |(until, _)| *until);
            self.held.push_back((after + FRAME, turn));
            let ahead = (after + FRAME).saturating_sub(now);
            if ahead > LEAD + FRAME {
                let detail = format!("{turn} is {ahead:?} ahead of what is heard");
                self.watch().broken(Invariant::LeadIsKept, detail);
            }
        }
        match outcome {
            Ok(()) | Err(SinkError::Full) => self.watch().plays(turn, chunk, outcome.is_ok()),
            Err(SinkError::Closed | SinkError::Lost | SinkError::Unsupported) => {}
        }
        match self.plant {
            Some(Plant::FrameTwice) => self.watch().plays(turn, chunk, outcome.is_ok()),
            Some(Plant::FrameAfterFence) => self.newest = Some((turn, chunk.clone())),
            Some(_) | None => {}
        }
        outcome
    }

    fn clear(&mut self, turn: TurnNumber) {
        self.held.retain(|(_, of)| *of > turn);
        self.watch().clears(turn);
        if let Some((turn, chunk)) = self.newest.take() {
            self.watch().plays(turn, &chunk, true);
        }
    }

    fn send(&mut self, outgoing: Outgoing) -> Result<(), SinkError> {
        self.watch().sends(&outgoing);
        self.conduct(self.began.elapsed())
    }

    fn pause(&mut self) {}

    fn wire(&self) -> Option<rspp_transport_api::wire::WireReport> {
        None
    }
}
