//! A call without a line: a scripted user in this process, and a recording of both sides.
//!
//! Tests and the command line hold conversations with it. It tells time by tokio's clock only, so
//! on a paused clock a call of minutes takes as long as its computing does.

mod caller;
mod echo;
mod playback;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::stream;
use rspp_proto::{AudioChunk, Codec, SampleIndex, SampleRate, TurnNumber};
use tokio::time::Instant;

pub(crate) use self::playback::Playback;
use self::{
    caller::{Caller, Step},
    echo::Echo,
    playback::Reply,
};
use crate::{
    Frame, Ingress, Link, Outgoing, Sink, SinkError, Source, Transport, TransportKind,
    audio::{FRAME, Resampler, UnsupportedRate, samples, to_bytes},
    g711,
    wire::{CUSHION, Wire, WireReport},
};

/// Rate of the user's audio.
pub const USER_RATE: SampleRate = SampleRate::HZ_16000;

/// Most moments that a line remembers; a conversation has four a turn.
const MOST_MOMENTS: usize = 65_536;

/// When an utterance begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// This long after the call began.
    At(Duration),
    /// Once the agent's reply to the utterance before has been played, and it has been silent this
    /// long. Goes on after [`Script::reply_timeout`] if no reply comes.
    AfterReply {
        /// The silence.
        pause: Duration,
    },
    /// This long after the agent's reply to the utterance before became audible, whether or not it
    /// still speaks.
    BargeIn {
        /// How much of the reply is heard before.
        after_reply_audio: Duration,
    },
}

/// One thing that the user says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Utterance {
    /// Mono, at [`USER_RATE`].
    pub audio: Vec<i16>,
    /// When.
    pub start: Start,
}

/// A whole call, from the user's side.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// What the user says, in order.
    pub utterances: Vec<Utterance>,
    /// How long the user waits for a reply that does not come.
    pub reply_timeout: Duration,
    /// How long after the last reply the user hangs up.
    pub hang_up_after: Duration,
    /// The rate that the agent's audio is wanted in, and that of the recording.
    pub sink_rate: SampleRate,
    /// How far ahead of playback the agent may send, at most 200 ms (P5).
    pub lead: Duration,
    /// How the agent's voice comes back into the user's microphone, if it does.
    pub echo: Option<EchoPath>,
    /// A telephone line: 8 kHz both ways, whatever else is said, and what G.711 leaves of a voice.
    pub telephone: bool,
    /// What the network does to what it carries.
    pub network: Network,
}

/// How late frames come, one by one and then over again. They keep their order: what comes after a late
/// one waits behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The agent's, on their way to the user.
    pub agent_late: Vec<Duration>,
    /// The user's, on their way to the agent. Over a line that may be late they say where they belong.
    pub user_late: Vec<Duration>,
    /// What the user's device waits for before it plays, and when it has run out.
    pub cushion: Duration,
}

impl Network {
    /// A line whose frames come up to `jitter` late, both ways, the same way each time; a telephone's
    /// buffer at the user's end.
    pub fn jittery(jitter: Duration) -> Self {
        /// Of that many frames each is late by itself; a prime, so that it fits no rhythm of speech.
        const FRAMES: u32 = 97;
        let late = |salt: u32| {
            let each = (0..FRAMES).map(|n| {
                let dice = (n + salt).wrapping_mul(2_654_435_761) >> 16;
                jitter * (dice % 1_000) / 999
            });
            each.collect()
        };
        Self {
            agent_late: late(0),
            user_late: late(FRAMES),
            cushion: CUSHION,
        }
    }
}

/// One direction of the network.
struct Way {
    late: Vec<Duration>,
    sent: usize,
    newest: Duration,
}

impl Way {
    fn new(late: Vec<Duration>) -> Self {
        Self {
            late,
            sent: 0,
            newest: Duration::ZERO,
        }
    }

    /// When what is sent at `at` arrives.
    fn arrives(&mut self, at: Duration) -> Duration {
        let late = match self.late.len() {
            0 => Duration::ZERO,
            length => self.late[self.sent % length],
        };
        self.sent += 1;
        self.newest = self.newest.max(at + late);
        self.newest
    }
}

/// A loudspeaker in front of a microphone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EchoPath {
    /// How much of the agent's voice comes back, by amplitude.
    pub gain: f32,
    /// How long it takes. What has not been played cannot come back: less than a frame counts as one.
    pub delay: Duration,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            utterances: Vec::new(),
            reply_timeout: Duration::from_secs(10),
            hang_up_after: Duration::from_millis(800),
            sink_rate: SampleRate::HZ_24000,
            lead: Duration::from_millis(60),
            echo: None,
            telephone: false,
            network: Network::default(),
        }
    }
}

/// Something that could be heard on the line, on the call's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The user began to speak.
    UserBegan {
        /// Which utterance of the script.
        utterance: usize,
        /// When.
        at: Duration,
    },
    /// The last sound of the user's utterance.
    UserEnded {
        /// Which utterance of the script.
        utterance: usize,
        /// When.
        at: Duration,
    },
    /// The agent became audible.
    ReplyBegan {
        /// The agent's turn.
        turn: TurnNumber,
        /// When.
        at: Duration,
    },
    /// The agent fell silent for good.
    ReplyEnded {
        /// The agent's turn.
        turn: TurnNumber,
        /// When.
        at: Duration,
        /// Whether it had more to say.
        cut: bool,
    },
}

/// Both sides of the call, equally long, at the script's `sink_rate`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// The user.
    pub user: Vec<i16>,
    /// The agent, as far as it was heard.
    pub agent: Vec<i16>,
}

impl Recorded {
    /// Takes what there is of both sides; the longer one keeps the rest.
    pub(crate) fn take(&mut self) -> Self {
        let length = self.user.len().min(self.agent.len());
        Self {
            user: self.user.drain(..length).collect(),
            agent: self.agent.drain(..length).collect(),
        }
    }

    /// Takes all once the call is over: with what is left of the user in `to_rate`, the shorter side filled
    /// up with silence.
    pub(crate) fn take_rest(&mut self, to_rate: &mut Resampler) -> Self {
        to_rate.finish(&mut self.user);
        let length = self.user.len().max(self.agent.len());
        self.user.resize(length, 0);
        self.agent.resize(length, 0);
        std::mem::take(self)
    }
}

/// A call by `script`: the transport for the runtime, and the line to listen in on.
///
/// The call's clock starts when either side first makes use of the transport.
pub fn call(mut script: Script) -> Result<(Transport, Line), UnsupportedRate> {
    let source_rate = if script.telephone {
        script.sink_rate = SampleRate::HZ_8000;
        SampleRate::HZ_8000
    } else {
        USER_RATE
    };
    let (sink_rate, lead) = (script.sink_rate, script.lead);
    let network = std::mem::take(&mut script.network);
    let latest = network.agent_late.iter().max().copied().unwrap_or_default();
    let microphone = Microphone {
        telephone: script
            .telephone
            .then(|| Resampler::new(USER_RATE, source_rate))
            .transpose()?,
        way: Way::new(network.user_late),
        sequence: 0,
        position: 0,
    };
    let echo = script
        .echo
        .map(|path| Echo::new(path, sink_rate))
        .transpose()?;
    let line = Line {
        state: Arc::new(Mutex::new(State {
            began: None,
            hung_up: false,
            to_recording: Resampler::new(USER_RATE, sink_rate)?,
            recorded: Recorded::default(),
            // One frame more than the lead, so that rounding never costs a frame; and what comes late holds up
            // what comes after it.
            playback: Playback::new(sink_rate, lead + FRAME + latest, network.cushion),
            way: Way::new(network.agent_late),
            // A gap is what any player would have.
            wire: Wire::new(network.cushion.max(CUSHION)),
            echo,
            moments: Vec::new(),
            open: None,
            newest: None,
            wanted: vec![sink_rate],
            has_changed: false,
            rates: BTreeMap::new(),
        })),
    };
    let transport = Transport {
        kind: TransportKind::Loopback,
        source_rate,
        caller: None,
        sink: Box::new(LoopbackSink {
            line: line.clone(),
            recorded_at: sink_rate,
            resampler: None,
            lead,
            telephone: script.telephone,
        }),
        source: source(Caller::new(script), microphone, line.clone()),
    };
    Ok((transport, line))
}

/// Listens in on a call. Cloning gives another handle on the same call.
#[derive(Clone)]
pub struct Line {
    state: Arc<Mutex<State>>,
}

struct State {
    began: Option<Instant>,
    hung_up: bool,
    to_recording: Resampler,
    recorded: Recorded,
    playback: Playback,
    /// The agent's frames on their way to the user.
    way: Way,
    wire: Wire,
    echo: Option<Echo>,
    moments: Vec<Moment>,
    /// The reply whose beginning is among the moments and whose end is not.
    open: Option<Reply>,
    /// The newest turn whose beginning is among the moments.
    newest: Option<TurnNumber>,
    /// The rates that audio was wanted in, the newest last.
    wanted: Vec<SampleRate>,
    /// Whether the newest of them has yet to be told of.
    has_changed: bool,
    /// The rates that the audio of each turn came in.
    rates: BTreeMap<TurnNumber, BTreeSet<u32>>,
}

impl Line {
    /// Ends the call with the next frame.
    pub fn hang_up(&self) {
        self.lock().hung_up = true;
    }

    /// From now on the agent's audio is wanted in another rate, as after a change of the codec in the
    /// middle of a call (F-161). The recording keeps its own.
    pub fn change_rate(&self, rate: SampleRate) {
        let mut state = self.lock();
        state.wanted.push(rate);
        state.has_changed = true;
    }

    /// The rates that the audio of each turn came in, in hertz.
    pub fn rates(&self) -> BTreeMap<TurnNumber, BTreeSet<u32>> {
        self.lock().rates.clone()
    }

    /// Time since the call began; zero before.
    pub fn elapsed(&self) -> Duration {
        self.lock()
            .began
            .map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// Takes what both sides were heard to say since the last call of this. Call it now and then
    /// during long conversations: what is not taken stays in memory.
    pub fn take_recorded(&self) -> Recorded {
        let mut state = self.lock();
        state.advance();
        state.recorded.take()
    }

    /// Takes the rest once the call is over; the shorter side is filled up with silence.
    pub fn take_rest(&self) -> Recorded {
        let mut state = self.lock();
        state.advance();
        let State {
            to_recording,
            recorded,
            ..
        } = &mut *state;
        recorded.take_rest(to_recording)
    }

    /// What could be heard so far, in order.
    pub fn moments(&self) -> Vec<Moment> {
        let mut state = self.lock();
        state.advance();
        let mut moments = state.moments.clone();
        moments.sort_by_key(Moment::at);
        moments
    }

    /// How the agent's speech came over the line so far.
    pub fn wire(&self) -> WireReport {
        self.lock().wire.report()
    }

    /// Frames that were offered for a turn already cleared: breaches of the output fence.
    pub fn leaked(&self) -> u64 {
        self.lock().playback.leaked()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked left nothing half-done that matters more than the recording.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Line(at {:.3?})", self.elapsed())
    }
}

impl Moment {
    /// When it was.
    pub fn at(&self) -> Duration {
        match *self {
            Self::UserBegan { at, .. }
            | Self::UserEnded { at, .. }
            | Self::ReplyBegan { at, .. }
            | Self::ReplyEnded { at, .. } => at,
        }
    }
}

impl State {
    /// The call's clock.
    fn now(&mut self) -> Duration {
        self.began.get_or_insert_with(Instant::now).elapsed()
    }

    fn advance(&mut self) {
        let now = self.now();
        self.playback.advance(now);
        self.note_reply(now);
        let heard = self.playback.take_heard();
        if let Some(echo) = &mut self.echo {
            echo.heard(&heard);
        }
        self.recorded.agent.extend(heard);
    }

    /// Notes the beginning and end of what the agent says, once each, when they are certain.
    fn note_reply(&mut self, now: Duration) {
        let Some(reply) = self.playback.reply() else {
            return;
        };
        if let Some(mut open) = self.open {
            if open.turn == reply.turn {
                open = reply;
            }
            let over = open.closed.is_some() && open.audible_until <= now;
            if over || open.turn != reply.turn {
                self.open = None;
                self.moment(Moment::ReplyEnded {
                    turn: open.turn,
                    at: open.audible_until,
                    cut: open.cut,
                });
            }
        }
        let is_new = self.newest.is_none_or(|newest| newest < reply.turn);
        if let Some(at) = reply.began.filter(|began| is_new && *began <= now) {
            self.open = Some(reply);
            self.newest = Some(reply.turn);
            self.moment(Moment::ReplyBegan {
                turn: reply.turn,
                at,
            });
        }
    }

    fn moment(&mut self, moment: Moment) {
        if self.moments.len() < MOST_MOMENTS {
            self.moments.push(moment);
        }
    }
}

/// What becomes of the user's voice on its way.
struct Microphone {
    /// To the telephone's rate.
    telephone: Option<Resampler>,
    way: Way,
    sequence: u64,
    position: u64,
}

impl Microphone {
    /// What comes out at the other end.
    fn carry(&mut self, bytes: Bytes) -> Ingress {
        let pcm = match &mut self.telephone {
            Some(resampler) => {
                let spoken: Vec<i16> = samples(&bytes).collect();
                let mut narrow = Vec::new();
                resampler.push(&spoken, &mut narrow);
                g711::through(&to_bytes(&narrow))
            }
            None => bytes,
        };
        if self.way.late.is_empty() {
            return Ingress::Audio(pcm);
        }
        let (sequence, position) = (self.sequence, SampleIndex(self.position));
        self.sequence += 1;
        self.position += pcm.len() as u64 / 2;
        Ingress::Frame(Frame {
            sequence,
            position,
            epoch: None,
            pcm,
        })
    }
}

/// The user's side: what was said and when it comes; silence too, until the user hangs up.
struct Side {
    caller: Caller,
    microphone: Microphone,
    line: Line,
    /// Frames that were spoken so far.
    frame: u32,
    under_way: VecDeque<(Duration, Ingress)>,
    hung_up: bool,
}

fn source(caller: Caller, microphone: Microphone, line: Line) -> Source {
    let side = Side {
        caller,
        microphone,
        line,
        frame: 0,
        under_way: VecDeque::new(),
        hung_up: false,
    };
    Box::pin(stream::unfold(side, |mut side| async move {
        let next = side.next().await?;
        Some((next, side))
    }))
}

impl Side {
    async fn next(&mut self) -> Option<Ingress> {
        let began = {
            let mut state = self.line.lock();
            state.now();
            state.began.expect("`now` starts the clock")
        };
        loop {
            // On the schedule, not on the last frame: lateness does not add up.
            let speaks = FRAME * self.frame;
            let arrives = self.under_way.front().map(|(at, _)| *at);
            match arrives.filter(|at| *at < speaks || self.hung_up) {
                Some(at) => {
                    tokio::time::sleep_until(began + at).await;
                    return self.under_way.pop_front().map(|(_, ingress)| ingress);
                }
                None if self.hung_up => return None,
                None => {}
            }
            tokio::time::sleep_until(began + speaks).await;
            if std::mem::take(&mut self.line.lock().has_changed) {
                return Some(Ingress::Link(Link::Changed));
            }
            match self.speak(speaks) {
                Some(bytes) => {
                    self.frame += 1;
                    let ingress = self.microphone.carry(bytes);
                    let arrives = self.microphone.way.arrives(speaks);
                    if arrives == speaks && self.under_way.is_empty() {
                        return Some(ingress);
                    }
                    self.under_way.push_back((arrives, ingress));
                }
                None => self.hung_up = true,
            }
        }
    }

    /// What the user says in the frame that begins at `at`; `None` once the line is given up.
    fn speak(&mut self, at: Duration) -> Option<Bytes> {
        let mut state = self.line.lock();
        state.advance();
        if state.hung_up {
            return None;
        }
        let reply = state.playback.reply();
        match self.caller.step(at, reply, |moment| state.moment(moment)) {
            Step::HangUp => None,
            Step::Frame(bytes) => {
                let mut pcm: Vec<i16> = samples(&bytes).collect();
                let State {
                    to_recording,
                    recorded,
                    echo,
                    ..
                } = &mut *state;
                let bytes = match echo {
                    Some(echo) => {
                        echo.mix_into(&mut pcm, at);
                        to_bytes(&pcm)
                    }
                    None => bytes,
                };
                to_recording.push(&pcm, &mut recorded.user);
                Some(bytes)
            }
        }
    }
}

struct LoopbackSink {
    line: Line,
    recorded_at: SampleRate,
    /// From the rate that the line carries to that of the recording.
    resampler: Option<(SampleRate, Resampler)>,
    lead: Duration,
    telephone: bool,
}

impl LoopbackSink {
    /// A chunk in the recording's rate.
    fn in_recorded_rate(&mut self, chunk: &AudioChunk) -> Bytes {
        let from = chunk.format.sample_rate;
        if from == self.recorded_at {
            return chunk.data.clone();
        }
        if self
            .resampler
            .as_ref()
            .is_none_or(|(rate, _)| *rate != from)
        {
            let resampler = Resampler::new(from, self.recorded_at);
            self.resampler = resampler.ok().map(|resampler| (from, resampler));
        }
        let mut converted = Vec::new();
        if let Some((_, resampler)) = &mut self.resampler {
            let pcm: Vec<i16> = samples(&chunk.data).collect();
            resampler.push(&pcm, &mut converted);
        }
        to_bytes(&converted)
    }
}

impl Sink for LoopbackSink {
    fn sample_rate(&self) -> SampleRate {
        let state = self.line.lock();
        state.wanted.last().copied().unwrap_or(self.recorded_at)
    }

    fn codec(&self) -> Codec {
        if self.telephone {
            Codec::Pcmu
        } else {
            Codec::Pcm16
        }
    }

    fn lead(&self) -> Duration {
        self.lead
    }

    fn play(&mut self, turn: TurnNumber, chunk: &AudioChunk) -> Result<(), SinkError> {
        debug_assert_eq!(chunk.format.codec, Codec::Pcm16, "wrong codec");
        let rate = chunk.format.sample_rate;
        let data = self.in_recorded_rate(chunk);
        let mut state = self.line.lock();
        debug_assert!(state.wanted.contains(&rate), "wrong rate");
        if state.hung_up {
            return Err(SinkError::Closed);
        }
        state.advance();
        let now = state.now();
        let pcm = if self.telephone {
            g711::through(&data)
        } else {
            data
        };
        let lasts = self.recorded_at.duration_of((pcm.len() / 2) as u64);
        let arrives = state.way.arrives(now);
        let played = state.playback.play(now, arrives, turn, pcm);
        if played.is_ok() {
            state.wire.frame(turn, arrives, lasts);
            state.rates.entry(turn).or_default().insert(rate.hertz());
        }
        state.note_reply(now);
        played
    }

    fn pause(&mut self) {
        self.line.lock().wire.pause();
    }

    fn wire(&self) -> Option<WireReport> {
        Some(self.line.wire())
    }

    fn clear(&mut self, turn: TurnNumber) {
        let mut state = self.line.lock();
        state.advance();
        let now = state.now();
        state.playback.clear(now, turn);
        state.wire.over(turn);
        state.note_reply(now);
    }

    fn send(&mut self, outgoing: Outgoing) -> Result<(), SinkError> {
        let mut state = self.line.lock();
        if state.hung_up {
            return Err(SinkError::Closed);
        }
        match outgoing {
            // The runtime's events tell the text to whoever wants it.
            Outgoing::Text { .. } | Outgoing::Speech(_) | Outgoing::Voice { .. } => {}
            // A caller who only speaks runs no tools.
            Outgoing::ToolCall(_) => return Err(SinkError::Unsupported),
            Outgoing::AudioEnd(turn) => {
                state.advance();
                let now = state.now();
                state.playback.close(now, turn);
                state.wire.over(turn);
                state.note_reply(now);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn say(start: Start, lasts: Duration) -> Utterance {
        let samples = USER_RATE.samples_in(lasts) as usize;
        Utterance {
            audio: vec![5_000; samples],
            start,
        }
    }

    fn script(utterances: Vec<Utterance>) -> Script {
        Script {
            utterances,
            sink_rate: USER_RATE,
            ..Script::default()
        }
    }

    /// Stands for the runtime: answers each utterance after a delay, for as long as `replies` says,
    /// and takes the rest back when the user interrupts.
    struct Agent {
        delay: Duration,
        replies: Vec<Duration>,
        closes: bool,
    }

    impl Agent {
        async fn hold(self, transport: Transport) {
            let Transport {
                mut source,
                mut sink,
                ..
            } = transport;
            let mut turn = TurnNumber(0);
            let mut speech = false;
            let mut due: Option<Instant> = None;
            let mut left = 0u32;
            let mut replies = self.replies.into_iter();
            while let Some(ingress) = source.next().await {
                let Ingress::Audio(frame) = ingress else {
                    continue;
                };
                let loud = samples(&frame).any(|sample| sample.unsigned_abs() > 1_000);
                if loud && left > 0 {
                    left = 0;
                    sink.clear(turn);
                }
                if speech && !loud {
                    due = Some(Instant::now() + self.delay);
                }
                speech = loud;
                if due.is_some_and(|due| Instant::now() >= due) {
                    due = None;
                    if let Some(reply) = replies.next() {
                        turn = turn.next();
                        left = (reply.as_millis() / 20) as u32;
                    }
                }
                if left > 0 {
                    let chunk = AudioChunk::pcm16(USER_RATE, to_bytes(&[-3_000; 320]));
                    sink.play(turn, &chunk).unwrap();
                    left -= 1;
                    if left == 0 && self.closes {
                        sink.send(Outgoing::AudioEnd(turn)).unwrap();
                    }
                }
            }
        }
    }

    fn agent(replies: &[u64]) -> Agent {
        Agent {
            delay: ms(500),
            replies: replies.iter().map(|&reply| ms(reply)).collect(),
            closes: true,
        }
    }

    async fn hold(script: Script, agent: Agent) -> (Line, Duration) {
        let (transport, line) = call(script).unwrap();
        let began = Instant::now();
        agent.hold(transport).await;
        (line, began.elapsed())
    }

    /// Moments as short texts: `u0+ 100` is the user beginning utterance 0 at 100 ms.
    fn told(line: &Line) -> Vec<String> {
        line.moments()
            .iter()
            .map(|moment| {
                let at = moment.at().as_millis();
                match *moment {
                    Moment::UserBegan { utterance, .. } => format!("u{utterance}+ {at}"),
                    Moment::UserEnded { utterance, .. } => format!("u{utterance}- {at}"),
                    Moment::ReplyBegan { turn, .. } => format!("a{}+ {at}", turn.0),
                    Moment::ReplyEnded { turn, cut, .. } => {
                        let how = if cut { "cut" } else { "-" };
                        format!("a{}{how} {at}", turn.0)
                    }
                }
            })
            .collect()
    }

    /// F-130: several turns in a row, each after the reply before.
    #[tokio::test(start_paused = true)]
    async fn users_wait_for_the_reply_and_hang_up_after_the_last() {
        let after = Start::AfterReply { pause: ms(300) };
        let script = script(vec![say(Start::At(ms(100)), ms(400)), say(after, ms(200))]);
        let (line, lasted) = hold(script, agent(&[1_000, 600])).await;
        assert_eq!(
            told(&line),
            [
                "u0+ 100", "u0- 500", "a1+ 1000", "a1- 2000", "u1+ 2300", "u1- 2500", "a2+ 3000",
                "a2- 3600"
            ]
        );
        assert_eq!(lasted, ms(3_600 + 800));
    }

    /// F-037, P5: the interruption comes when it is told to, and what was not heard is not recorded.
    #[tokio::test(start_paused = true)]
    async fn a_barge_in_comes_in_the_middle_of_the_reply() {
        let barge = Start::BargeIn {
            after_reply_audio: ms(500),
        };
        let script = script(vec![say(Start::At(ms(0)), ms(400)), say(barge, ms(400))]);
        let (line, _) = hold(script, agent(&[5_000, 200])).await;
        assert_eq!(
            told(&line),
            [
                "u0+ 0",
                "u0- 400",
                "a1+ 900",
                "u1+ 1400",
                "a1cut 1400",
                "u1- 1800",
                "a2+ 2300",
                "a2- 2500"
            ]
        );
        let Recorded { user, agent } = line.take_rest();
        assert_eq!(user.len(), agent.len());
        let heard = |from: u64, to: u64| {
            let range =
                USER_RATE.samples_in(ms(from)) as usize..USER_RATE.samples_in(ms(to)) as usize;
            (
                user[range.clone()].iter().all(|&sample| sample == 5_000),
                agent[range].iter().all(|&sample| sample == -3_000),
            )
        };
        assert_eq!(heard(0, 400), (true, false));
        assert_eq!(heard(900, 1_400), (false, true));
        assert_eq!(
            heard(1_400, 1_800),
            (true, false),
            "not one sample of the old reply"
        );
        assert_eq!(heard(2_300, 2_500), (false, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_who_gets_no_reply_goes_on_and_hangs_up_in_the_end() {
        let after = Start::AfterReply { pause: ms(300) };
        let script = script(vec![say(Start::At(ms(0)), ms(400)), say(after, ms(200))]);
        let (line, lasted) = hold(script, agent(&[])).await;
        assert_eq!(told(&line), ["u0+ 0", "u0- 400", "u1+ 10400", "u1- 10600"]);
        assert_eq!(lasted, ms(20_600));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_that_nobody_ends_is_over_after_dead_air() {
        let script = script(vec![say(Start::At(ms(0)), ms(400))]);
        let agent = Agent {
            closes: false,
            ..agent(&[600])
        };
        let (_, lasted) = hold(script, agent).await;
        assert_eq!(lasted, ms(400 + 500 + 600 + 3_000 + 800));
    }

    /// A pause inside an utterance fools the agent into a reply; the user talks on and waits for the
    /// real one.
    #[tokio::test(start_paused = true)]
    async fn a_false_start_of_the_agent_is_no_reply() {
        let mut utterance = say(Start::At(ms(0)), ms(400));
        utterance
            .audio
            .extend(vec![0; USER_RATE.samples_in(ms(800)) as usize]);
        utterance
            .audio
            .extend(vec![5_000; USER_RATE.samples_in(ms(400)) as usize]);
        let (line, lasted) = hold(script(vec![utterance]), agent(&[2_000, 300])).await;
        assert_eq!(
            told(&line),
            [
                "u0+ 0",
                "a1+ 900",
                "a1cut 1200",
                "u0- 1600",
                "a2+ 2100",
                "a2- 2400"
            ]
        );
        assert_eq!(lasted, ms(2_400 + 800));
    }

    #[tokio::test(start_paused = true)]
    async fn hanging_up_ends_the_call_and_keeps_the_recording() {
        let (transport, line) = call(script(vec![say(Start::At(ms(0)), ms(400))])).unwrap();
        let talk = tokio::spawn(agent(&[60_000]).hold(transport));
        tokio::time::sleep(ms(1_990)).await;
        line.hang_up();
        let _ = tokio::time::timeout(ms(40), talk)
            .await
            .expect("ends with the next frame");
        let recorded = line.take_rest();
        assert_eq!(recorded.agent.len() as u64, USER_RATE.samples_in(ms(2_000)));
        assert_eq!(recorded.agent[16_000], -3_000);
    }

    /// What is taken in pieces is what would have been taken at once.
    #[tokio::test(start_paused = true)]
    async fn a_recording_can_be_taken_while_the_call_lasts() {
        let talk = || script(vec![say(Start::At(ms(40)), ms(400))]);
        let (whole, _) = hold(
            Script {
                sink_rate: SampleRate::HZ_24000,
                ..talk()
            },
            agent(&[]),
        )
        .await;
        let whole = whole.take_rest();

        let (transport, line) = call(Script {
            sink_rate: SampleRate::HZ_24000,
            ..talk()
        })
        .unwrap();
        let talk = tokio::spawn(agent(&[]).hold(transport));
        let mut pieces = Recorded::default();
        let mut add = |piece: Recorded| {
            assert_eq!(piece.user.len(), piece.agent.len());
            pieces.user.extend(piece.user);
            pieces.agent.extend(piece.agent);
        };
        while !talk.is_finished() {
            tokio::time::sleep(ms(130)).await;
            add(line.take_recorded());
        }
        add(line.take_rest());
        let length = whole.user.len();
        assert_eq!(pieces.user[..length], whole.user[..]);
    }

    #[tokio::test(start_paused = true)]
    async fn frames_are_20_ms_apart_and_silence_is_sent_too() {
        let (transport, _line) = call(script(vec![say(Start::At(ms(100)), ms(50))])).unwrap();
        let began = Instant::now();
        let frames: Vec<(Duration, Bytes)> = transport
            .source
            .take(9)
            .map(|ingress| match ingress {
                Ingress::Audio(frame) => (began.elapsed(), frame),
                other => panic!("{other:?}"),
            })
            .collect()
            .await;
        for (n, (at, frame)) in frames.iter().enumerate() {
            assert_eq!(*at, FRAME * n as u32);
            assert_eq!(frame.len(), 640);
            let loud = samples(frame).filter(|&sample| sample != 0).count();
            let wanted = match n {
                5 | 6 => 320,
                7 => 160,
                _ => 0,
            };
            assert_eq!(loud, wanted, "frame {n}");
        }
    }
}
