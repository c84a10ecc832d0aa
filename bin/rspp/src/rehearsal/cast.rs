//! The scripted providers of a rehearsal.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rspp_proto::{ProviderId, SessionId, spec::Modality};
use rspp_provider_api::{
    Fault, LlmRequest, Message, Providers, Role, ToolCall,
    scripted::{
        Answer, Conduct, OnCancel as Conducted, Script, ScriptedBatchLlm, ScriptedEndOfTurn,
        ScriptedLlm, ScriptedStt, ScriptedTts, ScriptedVoice, Tally, Trouble as Troubled,
        VoiceTally,
    },
};
use serde_json::Value;

use super::scenario::{ByTools, Call, Goes, OnCancel, Provider, Reply, Scenario, Trouble};
use crate::problem::Problem;

/// What the agent says unless the scenario has it say something else.
const REPLY: &str = "Good day to you. How can I help?";

/// One of the runtimes of a rehearsal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Where calls are placed.
    First,
    /// Where sessions are taken over.
    Second,
}

impl Stage {
    /// The runtime that a call is placed on.
    pub(super) fn of(call: &Call) -> Self {
        match call.takes_over {
            None => Self::First,
            Some(_) => Self::Second,
        }
    }
}

/// Everybody who serves the calls.
pub(super) struct Cast {
    pub(super) providers: Providers,
    /// Who serves which modality, preferred first.
    pub(super) bindings: BTreeMap<Modality, Vec<ProviderId>>,
    streaming: Vec<Box<dyn Fn() -> Tally + Send>>,
    listening: Vec<Box<dyn Fn() -> VoiceTally + Send>>,
}

impl Cast {
    /// The cast of a scenario; a modality that it does not name gets one provider that does well.
    pub(super) fn of(scenario: &Scenario) -> Result<Self, Problem> {
        Self::on(scenario, Stage::First)
    }

    /// The cast of one of its runtimes.
    pub(super) fn on(scenario: &Scenario, stage: Stage) -> Result<Self, Problem> {
        let mut cast = Self {
            providers: Providers::new(),
            bindings: BTreeMap::new(),
            streaming: Vec::new(),
            listening: Vec::new(),
        };
        let words = words(scenario, stage);
        for provider in &scenario.providers {
            let batches = scenario.limits.batching.contains_key(&provider.id);
            cast.add(provider, &words, batches)?;
        }
        for (modality, id) in [
            (Modality::Stt, "stt"),
            (Modality::Llm, "llm"),
            (Modality::Tts, "tts"),
            (Modality::Vad, "vad"),
            (Modality::EndOfTurn, "eot"),
        ] {
            if !cast.bindings.contains_key(&modality) {
                let id = ProviderId::new(id).map_err(Problem::failure)?;
                cast.add(&doing_well(id, modality), &words, false)?;
            }
        }
        Ok(cast)
    }

    /// Whether every call to a provider has ended or was dropped (P20).
    pub(super) fn is_idle(&self) -> bool {
        self.streaming.iter().all(|tally| tally().running() == 0)
            && self.listening.iter().all(|tally| tally().alive == 0)
    }

    /// Adds a provider; a language model that `batches` answers several calls together.
    fn add(&mut self, provider: &Provider, words: &Words, batches: bool) -> Result<(), Problem> {
        let id = provider.id.as_str();
        let script = Script::calls(provider.goes.iter().map(conduct)).then(conduct(&provider.then));
        let ms = Duration::from_millis;
        match provider.modality {
            Modality::Stt => {
                let words = words.clone();
                let mut stt = ScriptedStt::new(id)
                    .understand(move |heard| words.of(&heard.session, heard.number))
                    .final_after(ms(provider.final_after_ms))
                    .script(script);
                if let Some(every) = provider.word_every_ms {
                    stt = stt.word_every(ms(every));
                }
                if let Some(confidence) = provider.confidence {
                    stt = stt.confidence(confidence);
                }
                let stt = Arc::new(stt);
                self.providers.add_stt(stt.clone());
                self.streaming.push(Box::new(move || stt.tally()));
            }
            Modality::Llm => {
                let mut replies = provider.answers.clone();
                if replies.is_empty() {
                    replies.push(Reply::Words(REPLY.to_owned()));
                }
                let llm = ScriptedLlm::new(id)
                    .answer_with(move |request: &LlmRequest| answer(&replies, request))
                    .token_every(ms(provider.token_every_ms))
                    .script(script);
                if batches {
                    let llm = Arc::new(ScriptedBatchLlm::new(llm));
                    self.providers.add_batch_llm(llm.clone());
                    self.streaming.push(Box::new(move || llm.tally()));
                } else {
                    let llm = Arc::new(llm);
                    self.providers.add_llm(llm.clone());
                    self.streaming.push(Box::new(move || llm.tally()));
                }
            }
            Modality::Tts => {
                let tts = Arc::new(ScriptedTts::new(id).script(script));
                self.providers.add_tts(tts.clone());
                self.streaming.push(Box::new(move || tts.tally()));
            }
            Modality::Vad => {
                let voice = Arc::new(ScriptedVoice::by_energy(id));
                self.providers.add_voice(voice.clone());
                self.listening.push(Box::new(move || voice.tally()));
            }
            Modality::EndOfTurn => {
                let certainty = provider.certainty.iter().copied();
                let eot = Arc::new(ScriptedEndOfTurn::answering(id, certainty));
                self.providers.add_end_of_turn(eot.clone());
                self.listening.push(Box::new(move || eot.tally()));
            }
            Modality::External => {
                return Err(Problem::input(format!(
                    "providers: `{id}`: external providers cannot be scripted"
                )));
            }
        }
        let bound = self.bindings.entry(provider.modality).or_default();
        bound.push(provider.id.clone());
        Ok(())
    }
}

/// The n-th turn gets the n-th reply, and round again; within a turn each round of tools leads on to what
/// follows it. Depends on the request alone, so that sessions and attempts do not disturb each other.
fn answer(replies: &[Reply], request: &LlmRequest) -> Answer {
    let of_user = |message: &Message| message.role == Role::User;
    let turns = request.messages.iter().filter(|it| of_user(it)).count();
    let mut reply = &replies[turns.saturating_sub(1) % replies.len()];
    let last = request.messages.iter().rposition(of_user);
    let of_turn = &request.messages[last.map_or(0, |at| at + 1)..];
    let rounds = of_turn.iter().filter(|it| !it.tool_calls.is_empty());
    for _round in rounds {
        match reply {
            Reply::Calls(ByTools {
                then: Some(then), ..
            }) => reply = then,
            Reply::Calls(ByTools { then: None, .. }) => return read_out(of_turn),
            Reply::Words(_) => {}
        }
    }
    match reply {
        Reply::Words(words) => Answer::from(words.as_str()),
        Reply::Calls(ByTools {
            says,
            calls,
            then: _,
        }) => Answer {
            text: says.clone(),
            tool_calls: (1..)
                .zip(calls)
                .map(|(nth, called)| ToolCall {
                    id: format!("call-{nth}"),
                    name: called.tool.clone(),
                    arguments: Value::Object(called.with.clone()).to_string(),
                })
                .collect(),
        },
    }
}

/// What the tools of the last round have said.
fn read_out(of_turn: &[Message]) -> Answer {
    let last = of_turn.iter().rposition(|it| !it.tool_calls.is_empty());
    let results = of_turn[last.unwrap_or(0)..].iter();
    let results = results.filter(|message| message.role == Role::Tool);
    let said: Vec<_> = results.map(|message| message.content.as_str()).collect();
    Answer::from(said.join(" "))
}

fn doing_well(id: ProviderId, modality: Modality) -> Provider {
    Provider {
        id,
        modality,
        answers: Vec::new(),
        token_every_ms: 0,
        final_after_ms: 0,
        word_every_ms: None,
        confidence: None,
        certainty: Vec::new(),
        goes: Vec::new(),
        then: Goes::default(),
    }
}

/// What the user of each call says, utterance by utterance.
#[derive(Clone)]
struct Words(Arc<BTreeMap<SessionId, Vec<String>>>);

fn words(scenario: &Scenario, stage: Stage) -> Words {
    let calls = scenario
        .calls
        .iter()
        .filter(|call| Stage::of(call) == stage);
    let said = calls.map(|call| {
        let words = call.says.iter().map(|says| says.words.clone());
        (call.session().clone(), words.collect())
    });
    Words(Arc::new(said.collect()))
}

impl Words {
    fn of(&self, session: &SessionId, utterance: u64) -> String {
        let at = utterance.saturating_sub(1) as usize;
        let said = self.0.get(session).and_then(|said| said.get(at));
        said.cloned().unwrap_or_default()
    }
}

fn conduct(goes: &Goes) -> Conduct {
    let text = "as the scenario has it";
    let trouble = goes.trouble.map(|trouble| match trouble {
        Trouble::Stall => Troubled::Stall,
        Trouble::Truncate => Troubled::Truncate,
        Trouble::Panic => Troubled::Panic,
        Trouble::Disconnect => Troubled::Fail(Fault::stream(text)),
        Trouble::Overload => Troubled::Fail(Fault::overload(text, None)),
        Trouble::ServerError => Troubled::Fail(Fault::server(text)),
        Trouble::Refuse => Troubled::Fail(Fault::blocked("provider_auth_or_policy_block", text)),
    });
    Conduct {
        first_chunk_after: Duration::from_millis(goes.late_ms),
        trouble: trouble.map(|trouble| (goes.after_chunks, trouble)),
        on_cancel: match goes.on_cancel {
            OnCancel::Stop => Conducted::Stop,
            OnCancel::StopAfterMs(ms) => Conducted::StopAfter(Duration::from_millis(ms)),
            OnCancel::Ignore => Conducted::Ignore,
        },
    }
}
