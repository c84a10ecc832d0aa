//! Scripted providers that leave marks: what is played shows whose it is, and what the model is told
//! is compared with what was heard.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use rspp_proto::{Epoch, InvocationId, SessionId, TurnId, spec::Modality};
use rspp_provider_api::{
    Call, ChunkStream, Description, LanguageModel, LlmChunk, LlmRequest, Providers, Role,
    TextToSpeech, TtsChunk, TtsRequest,
    scripted::{
        Conduct, OnCancel, Script, ScriptedEndOfTurn, ScriptedLlm, ScriptedStt, ScriptedTts,
        ScriptedVoice, Trouble,
    },
};

use super::{
    Part, Piece, Plant, Scenario, tools,
    watch::{Invariant, Watch, number},
};

/// The watchers by session, with the epoch under which each placement of it began; the newest last.
pub(super) type Watches = Arc<Mutex<BTreeMap<SessionId, Vec<(Epoch, Arc<Mutex<Watch>>)>>>>;

/// Runs `look` on the watcher of the placement that works under `epoch`.
pub(super) fn with_watch<R>(
    watches: &Watches,
    session: &SessionId,
    epoch: Epoch,
    look: impl FnOnce(&mut Watch) -> R,
) -> Option<R> {
    let watch = {
        let watches = watches.lock().unwrap_or_else(PoisonError::into_inner);
        let placements = watches.get(session)?;
        let mut began = placements.iter().rev();
        Arc::clone(&began.find(|(began, _)| *began <= epoch)?.1)
    };
    let mut watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
    Some(look(&mut watch))
}

/// What the model answers; the n-th user message gets the n-th.
const ANSWERS: &[&str] = &[
    "Good day to you. How can I help?",
    "Yes.",
    "Well, once upon a time there was a town by the sea. Nobody went there, ever. The end.",
    "",
    "One, two, three. Four!",
];

/// All that serve a scenario.
pub(super) struct Cast {
    pub(super) registry: Providers,
    stt: [Arc<ScriptedStt>; 2],
    llm: [Arc<ScriptedLlm>; 2],
    tts: [Arc<ScriptedTts>; 2],
    voice: Arc<ScriptedVoice>,
    end_of_turn: Arc<ScriptedEndOfTurn>,
}

impl Cast {
    pub(super) fn of(scenario: &Scenario, watches: &Watches, plant: Option<Plant>) -> Self {
        let pace = scenario.pieces.iter().find_map(|piece| match piece {
            Piece::Pace {
                token_ms,
                voice_percent,
                final_ms,
            } => Some((*token_ms, *voice_percent, *final_ms)),
            _something_else => None,
        });
        let (token_ms, voice_percent, final_ms) = pace.unwrap_or((0, 0, 0));
        let script = |modality: Modality, second: bool| {
            let of = Part { modality, second };
            let mut calls = Vec::new();
            for piece in &scenario.pieces {
                if let Piece::Provider {
                    part,
                    call,
                    conduct,
                } = piece
                    && *part == of
                {
                    let at = *call as usize;
                    if calls.len() <= at {
                        calls.resize(at + 1, Conduct::good());
                    }
                    calls[at] = conduct.clone();
                }
            }
            Script::calls(calls)
        };
        let each = [("", false), ("-2", true)];
        let stt = each.map(|(suffix, second)| {
            let stt = ScriptedStt::new(&format!("stt{suffix}"))
                .final_after(Duration::from_millis(final_ms))
                .script(script(Modality::Stt, second));
            Arc::new(stt)
        });
        let llm = each.map(|(suffix, second)| {
            let llm = ScriptedLlm::new(&format!("llm{suffix}"))
                .answer_with(|request| tools::answer(request, ANSWERS))
                .token_every(Duration::from_millis(token_ms))
                .script(script(Modality::Llm, second));
            Arc::new(llm)
        });
        let tts = each.map(|(suffix, second)| {
            let tts = ScriptedTts::new(&format!("tts{suffix}"))
                .per_character(Duration::from_millis(25))
                .real_time_factor(voice_percent as f64 / 100.0)
                .script(script(Modality::Tts, second));
            Arc::new(tts)
        });
        let mut voice = ScriptedVoice::by_energy("vad");
        let mut end_of_turn = ScriptedEndOfTurn::always("eot", 1.0);
        for piece in &scenario.pieces {
            match piece {
                Piece::DeafeningNoise { windows } => voice = voice.panicking_after(*windows),
                Piece::Hesitation { percent } if !percent.is_empty() => {
                    let percent = percent.clone();
                    end_of_turn = ScriptedEndOfTurn::judging("eot", move |question, _, _| {
                        percent[question as usize % percent.len()] as f32 / 100.0
                    });
                }
                _something_else => {}
            }
        }
        let (voice, end_of_turn) = (Arc::new(voice), Arc::new(end_of_turn));
        let mut registry = Providers::new();
        registry
            .add_voice(voice.clone())
            .add_end_of_turn(end_of_turn.clone());
        let clauses = Clauses::default();
        for at in 0..2 {
            registry
                .add_stt(stt[at].clone())
                .add_llm(Arc::new(Attentive {
                    inner: llm[at].clone(),
                    watches: Arc::clone(watches),
                    plant,
                }))
                .add_tts(Arc::new(Marked {
                    inner: tts[at].clone(),
                    clauses: clauses.clone(),
                }));
        }
        Self {
            registry,
            stt,
            llm,
            tts,
            voice,
            end_of_turn,
        }
    }

    /// What of them still works for somebody.
    pub(super) fn at_work(&self) -> Vec<String> {
        let streams = self.stt.iter().map(|of| of.tally());
        let streams = streams
            .chain(self.llm.iter().map(|of| of.tally()))
            .chain(self.tts.iter().map(|of| of.tally()));
        let mut working: Vec<_> = streams
            .filter(|tally| tally.running() > 0)
            .map(|tally| format!("{tally:?}"))
            .collect();
        if self.voice.tally().alive > 0 || self.end_of_turn.tally().alive > 0 {
            working.push("a detector".to_owned());
        }
        working
    }

    /// How many calls a provider has seen.
    pub(super) fn calls(&self, part: Part) -> u64 {
        let at = usize::from(part.second);
        match part.modality {
            Modality::Stt => self.stt[at].tally().calls,
            Modality::Llm => self.llm[at].tally().calls,
            Modality::Tts => self.tts[at].tally().calls,
            Modality::Vad | Modality::EndOfTurn | Modality::External => 0,
        }
    }
}

/// The kind of fault that a conduct is.
pub(super) fn kind(part: Part, conduct: &Conduct) -> &'static str {
    use Modality as M;
    let by = |stt, llm, tts| match part.modality {
        M::Stt => stt,
        M::Llm => llm,
        M::Tts | M::Vad | M::EndOfTurn | M::External => tts,
    };
    match (&conduct.trouble, conduct.on_cancel) {
        (Some((_, Trouble::Stall)), _) => by("stt: stalls", "llm: stalls", "tts: stalls"),
        (Some((_, Trouble::Fail(_))), _) => by("stt: fails", "llm: fails", "tts: fails"),
        (Some((_, Trouble::Truncate)), _) => {
            by("stt: truncates", "llm: truncates", "tts: truncates")
        }
        (Some((_, Trouble::Panic)), _) => by("stt: panics", "llm: panics", "tts: panics"),
        (None, OnCancel::Ignore) => by("stt: deaf", "llm: deaf", "tts: deaf"),
        (None, OnCancel::StopAfter(_)) => by(
            "stt: slow to stop",
            "llm: slow to stop",
            "tts: slow to stop",
        ),
        (None, OnCancel::Stop) => by("stt: late", "llm: late", "tts: late"),
    }
}

/// A model that looks at what it is told.
struct Attentive {
    inner: Arc<ScriptedLlm>,
    watches: Watches,
    plant: Option<Plant>,
}

impl LanguageModel for Attentive {
    fn describe(&self) -> &Description {
        self.inner.describe()
    }

    fn generate(&self, call: Call, request: LlmRequest) -> ChunkStream<LlmChunk> {
        with_watch(&self.watches, &call.session, call.epoch, |watch| {
            watch.look();
            if let Some(turn) = &call.turn {
                watch.thinks(number(turn));
            }
            // What it says in this turn it says before it is heard.
            let mut messages = &request.messages[..];
            if let Some(asked) = messages.iter().rposition(|it| it.role == Role::User) {
                messages = &messages[..asked];
            }
            for message in messages {
                if message.role != Role::Assistant || message.content.is_empty() {
                    continue;
                }
                let told = message.content.trim_end_matches(" —");
                if !watch.heard.contains(told) {
                    let detail = format!("{told:?}, of {:?}", watch.heard);
                    watch.broken(Invariant::ToldIsHeard, detail);
                }
            }
        });
        if self.plant == Some(Plant::StreamLeft) {
            let left = self.inner.generate(call.clone(), request.clone());
            tokio::spawn(async move {
                let _never_polled = left;
                std::future::pending::<()>().await;
            });
        }
        self.inner.generate(call, request)
    }
}

/// A voice whose frames say which they are.
struct Marked {
    inner: Arc<ScriptedTts>,
    clauses: Clauses,
}

/// Which clause of its turn a call speaks: calls are made in their order.
#[derive(Clone, Default)]
struct Clauses(Arc<Mutex<BTreeMap<OfTurn, Vec<InvocationId>>>>);

type OfTurn = (SessionId, Option<TurnId>);

impl Clauses {
    fn number(&self, call: &Call) -> u16 {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = turns
            .entry((call.session.clone(), call.turn.clone()))
            .or_default();
        let found = turn.iter().position(|of| *of == call.invocation);
        let at = found.unwrap_or_else(|| {
            turn.push(call.invocation.clone());
            turn.len() - 1
        });
        at as u16
    }
}

impl TextToSpeech for Marked {
    fn describe(&self) -> &Description {
        self.inner.describe()
    }

    fn synthesize(&self, call: Call, request: TtsRequest) -> ChunkStream<TtsChunk> {
        let clause = self.clauses.number(&call);
        let mut frame = 0u16;
        let marked = self.inner.synthesize(call, request).map(move |chunk| {
            frame += 1;
            chunk.map(|chunk| TtsChunk {
                pcm: mark(&chunk.pcm, clause << 10 | frame),
                ..chunk
            })
        });
        marked.boxed()
    }
}

/// The same audio, whose first sample is the mark.
fn mark(pcm: &Bytes, mark: u16) -> Bytes {
    let mut marked = BytesMut::from(&pcm[..]);
    if let Some(first) = marked.get_mut(..2) {
        first.copy_from_slice(&mark.to_le_bytes());
    }
    marked.freeze()
}
