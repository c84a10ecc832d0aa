//! The protocol, without sockets and clocks: what a client says and what its session does go in, what the
//! client is told and what the session is told come out.

mod calls;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use rspp_proto::{SpeechMark, TextChunk, TurnNumber, abi::Signal};
use rspp_transport_api::{
    Ingress, News, Receipt, SinkError, TurnNews, Wishes, audio::samples, g711,
};
use serde_json::{Map, Value, json};

use self::calls::Calls;
use super::{
    client::{self, Author, ClientEvent, NewContent, NewItem},
    fields::Problem,
    items::{Item, Items, Kind, Reply, Status},
    settings::{Allowed, Codec, Detection, Dialect, Settings},
};

/// Shortest audio that a client may commit (it says so itself: nothing shorter has words in it).
const LEAST_MS: u64 = 100;
/// How long words may come after the end of what was said: they take another way.
const LAST_WORDS: Duration = Duration::from_millis(60);
/// How long a turn may take to open after the end of what was said; without words none does.
const NO_TURN: Duration = Duration::from_secs(1);
/// How long an answer that was asked for may take to begin.
const NO_ANSWER: Duration = Duration::from_secs(10);
/// Events other than audio that may wait for the socket: a client that reads is never so far behind.
const EVENTS: usize = 1_024;

/// What is to be done for the session.
#[derive(Debug, PartialEq)]
pub(super) enum Order {
    /// Open it: the conversation begins.
    Start,
    /// Some of the user's audio, 16-bit PCM; it is heard at the pace of speech.
    Audio(Bytes),
    /// Tell it this once all audio before has been heard.
    AfterAudio(Ingress),
    /// Tell it this at once.
    Now(Ingress),
    /// Forget the audio that has not been heard yet.
    Forget,
}

/// One message to the client.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) text: String,
    pub(super) what: Leaves,
}

/// What leaves with a message.
#[derive(Debug)]
pub(super) enum Leaves {
    Event,
    /// Audio of an item; taken back if the turn falls silent.
    Frame {
        turn: TurnNumber,
        item: String,
        pcm: Bytes,
    },
    /// The end of a turn's audio.
    End(TurnNumber),
}

/// What the user says, from the first sound on.
#[derive(Debug)]
struct Utterance {
    item: String,
    /// Its audio, in milliseconds.
    length_ms: u64,
    /// Its words by segment, and whether they are final.
    words: BTreeMap<u32, (String, bool)>,
    /// The words that the client has been told.
    told: String,
    /// One segment is all of it: its final words are the last.
    is_one: bool,
    /// When no more words are waited for.
    due: Option<Duration>,
}

impl Utterance {
    fn text(&self) -> String {
        let words = self.words.values().map(|(text, _)| text.trim());
        let words: Vec<&str> = words.filter(|text| !text.is_empty()).collect();
        words.join(" ")
    }

    fn is_final(&self) -> bool {
        !self.words.is_empty() && self.words.values().all(|(_, is_final)| *is_final)
    }
}

/// What the agent says.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is something that has happened or not, in any order"
)]
struct Response {
    id: String,
    item: String,
    /// The items that it has begun, in order: what is said, and calls of tools.
    items: Vec<String>,
    /// The turn that it is of; not known while it is only asked for.
    turn: Option<TurnNumber>,
    metadata: Value,
    /// Its words so far, and the clause that they have come to.
    text: String,
    clause: Option<u32>,
    /// Whether the client knows of its item, and of the end of its audio.
    has_item: bool,
    audio_ended: bool,
    cancelled: bool,
    barged: bool,
    /// When it is given up, if no turn has opened.
    due: Option<Duration>,
    /// When it is over, as it has called tools of the client's: what follows their results is another.
    hands_over: Option<Duration>,
    /// Something of it was heard since that was set.
    went_on: bool,
    /// It began by itself while the client was to ask for it.
    unasked: bool,
}

/// Where something of a response is said.
#[derive(Clone, Debug)]
struct Place {
    response: String,
    item: String,
    index: usize,
}

impl Response {
    /// Where what it says is.
    fn place(&self) -> Place {
        Place {
            response: self.id.clone(),
            item: self.item.clone(),
            index: self.index_of(&self.item),
        }
    }

    fn index_of(&self, item: &str) -> usize {
        self.items.iter().position(|it| it == item).unwrap_or(0)
    }
}

/// How a response ends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ending {
    Completed,
    Cancelled(&'static str),
    Failed(String),
}

/// The protocol of one client.
pub(super) struct Machine {
    session: String,
    /// Ids are unique over all sessions.
    stamp: String,
    count: u64,
    settings: Settings,
    allowed: Allowed,
    text_bytes: usize,
    started: bool,
    waiting: VecDeque<Leaving>,
    frames: usize,
    room: usize,
    orders: VecDeque<Order>,
    items: Items,
    utterance: Option<Utterance>,
    /// What was said and has not all its words yet.
    unheard: VecDeque<Utterance>,
    /// Typed words that no answer was asked for, by item.
    typed: Vec<(String, String)>,
    /// Whether something was said that has no answer yet.
    unanswered: bool,
    /// When it is certain that there were no words in it.
    no_turn: Option<Duration>,
    response: Option<Response>,
    /// The tools' calls that the client runs.
    calls: Calls,
    /// The newest turn that is over.
    done: TurnNumber,
    /// Nothing of this turn and those before it is heard any more.
    cleared: TurnNumber,
    /// The client does not answer: it takes no more audio.
    pub(super) stalled: bool,
}

/// What a machine begins with.
pub(super) struct Beginning {
    /// Eight or more random characters.
    pub(super) stamp: String,
    pub(super) dialect: Dialect,
    /// What the client calls the model.
    pub(super) model: String,
    pub(super) allowed: Allowed,
    pub(super) text_bytes: usize,
    /// Frames that may wait for the socket.
    pub(super) room: usize,
}

impl Machine {
    pub(super) fn new(beginning: Beginning) -> Self {
        let Beginning {
            stamp,
            dialect,
            model,
            allowed,
            text_bytes,
            room,
        } = beginning;
        let mut machine = Self {
            session: format!("sess_{stamp}"),
            stamp,
            count: 0,
            settings: Settings::new(dialect, model),
            allowed,
            text_bytes,
            started: false,
            waiting: VecDeque::new(),
            frames: 0,
            room,
            orders: VecDeque::new(),
            items: Items::default(),
            utterance: None,
            unheard: VecDeque::new(),
            typed: Vec::new(),
            unanswered: false,
            no_turn: None,
            response: None,
            calls: Calls::default(),
            done: TurnNumber(0),
            cleared: TurnNumber(0),
            stalled: false,
        };
        let session = machine.settings.shown(&machine.session);
        machine.say("session.created", json!({ "session": session }));
        if dialect == Dialect::Beta {
            let id = machine.conversation();
            let conversation = json!({ "id": id, "object": "realtime.conversation" });
            machine.say(
                "conversation.created",
                json!({ "conversation": conversation }),
            );
        }
        machine
    }

    pub(super) fn wishes(&self) -> Wishes {
        self.settings.wishes(&self.allowed)
    }

    pub(super) fn input(&self) -> Codec {
        self.settings.input
    }

    pub(super) fn output(&self) -> Codec {
        self.settings.output
    }

    /// What is to be done for the session next.
    pub(super) fn order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// What the client is told next.
    pub(super) fn next(&mut self) -> Option<Leaving> {
        let leaving = self.waiting.pop_front()?;
        if let Leaves::Frame { item, pcm, .. } = &leaving.what {
            self.frames -= 1;
            if let Some(reply) = self.items.reply_mut(item) {
                reply.samples += pcm.len() as u64 / 2;
            }
        }
        Some(leaving)
    }

    /// Whether the client is so far behind that it does not read.
    pub(super) fn is_flooded(&self) -> bool {
        self.waiting.len() - self.frames > EVENTS
    }

    /// When to call [`Self::tick`] at the latest.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let words = self.unheard.iter().filter_map(|said| said.due);
        let response = self.response.as_ref();
        let given_up = response.and_then(|it| it.due);
        let handed_over = response.and_then(|it| it.hands_over);
        let response = given_up.into_iter().chain(handed_over);
        words.chain(response).chain(self.no_turn).min()
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Duration) {
        while let Some(at) = self
            .unheard
            .iter()
            .position(|said| said.due.is_some_and(|due| due <= now))
        {
            let said = self.unheard.remove(at).expect("it was found there");
            self.complete(&said);
        }
        if self.no_turn.is_some_and(|due| due <= now) {
            self.no_turn = None;
            self.unanswered = false;
        }
        self.hand_over_when_due(now);
        let given_up = |it: &Response| it.due.is_some_and(|due| due <= now);
        if self.response.as_ref().is_some_and(given_up) {
            let cancelled = self.response.as_ref().is_some_and(|it| it.cancelled);
            let ending = if cancelled {
                Ending::Cancelled("client_cancelled")
            } else {
                Ending::Failed("nothing was understood that could be answered".to_owned())
            };
            self.finish(&ending, None);
        }
    }

    // --- what the client says ------------------------------------------------------------------

    /// Takes a message; `false` if it was wrong, which the client is told.
    #[cfg(test)]
    pub(super) fn client(&mut self, now: Duration, text: &str) -> bool {
        self.read(now, client::read(text))
    }

    /// Takes a message that has been read; `false` if it was wrong, which the client is told.
    pub(super) fn read(&mut self, now: Duration, said: client::Said) -> bool {
        match said.event.and_then(|event| self.take(now, event)) {
            Ok(()) => true,
            Err(problem) => {
                self.wrong("invalid_request_error", &problem, said.id.as_deref());
                false
            }
        }
    }

    /// Tells the client that something is wrong.
    pub(super) fn wrong(&mut self, kind: &str, problem: &Problem, of: Option<&str>) {
        let error = json!({
            "type": kind,
            "code": problem.code,
            "message": problem.message,
            "param": problem.param,
            "event_id": of,
        });
        self.say("error", json!({ "error": error }));
    }

    fn take(&mut self, now: Duration, event: ClientEvent) -> Result<(), Problem> {
        match event {
            ClientEvent::Update(session) => self.update(&session),
            ClientEvent::Append(audio) => self.append(&audio),
            ClientEvent::Commit => self.commit(),
            ClientEvent::Clear => {
                self.forget();
                Ok(())
            }
            ClientEvent::Create(item) => self.create(item),
            ClientEvent::Retrieve(id) => {
                let item = self.items.find(&id).ok_or_else(|| not_found(&id))?;
                let item = item.shown(self.settings.dialect);
                self.say("conversation.item.retrieved", json!({ "item": item }));
                Ok(())
            }
            ClientEvent::Delete(id) => self.delete(&id),
            ClientEvent::Truncate { item, audio_end_ms } => self.truncate(&item, audio_end_ms),
            ClientEvent::Respond { metadata, speaks } => self.respond(now, speaks, metadata),
            ClientEvent::Cancel(response) => self.cancel(response.as_deref()),
        }
    }

    fn update(&mut self, session: &Map<String, Value>) -> Result<(), Problem> {
        let next = self.settings.updated(session, &self.allowed)?;
        if next
            .instructions
            .as_ref()
            .is_some_and(|it| it.len() > self.text_bytes)
        {
            return Err(self.too_long("session.instructions"));
        }
        if let Some(path) = self
            .settings
            .fixed_difference(&next)
            .filter(|_| self.started)
        {
            let says = format!("'{path}' cannot change once the conversation has begun");
            return Err(Problem::new("session_has_begun", says).at(path));
        }
        self.settings = next;
        let session = self.settings.shown(&self.session);
        self.say("session.updated", json!({ "session": session }));
        Ok(())
    }

    fn too_long(&self, path: &str) -> Problem {
        let says = format!("'{path}' is longer than {} bytes", self.text_bytes);
        Problem::new("string_above_max_length", says).at(path)
    }

    fn start(&mut self) {
        if !std::mem::replace(&mut self.started, true) {
            self.orders.push_back(Order::Start);
        }
    }

    fn append(&mut self, audio: &Bytes) -> Result<(), Problem> {
        let codec = self.settings.input;
        if !audio.len().is_multiple_of(codec.width()) {
            let says = format!("'audio': {} bytes are no whole 16-bit samples", audio.len());
            return Err(Problem::new("invalid_value", says).at("audio"));
        }
        if audio.is_empty() {
            return Ok(());
        }
        self.start();
        let samples = (audio.len() / codec.width()) as u64;
        let ms = samples * 1_000 / u64::from(codec.rate().hertz());
        if self.settings.detection.is_none() && self.utterance.is_none() {
            self.utterance = Some(self.begin_utterance());
        }
        if let Some(utterance) = &mut self.utterance {
            utterance.length_ms += ms;
        }
        let pcm = match codec {
            Codec::Pcm => audio.clone(),
            Codec::Ulaw => pcm(audio, g711::from_ulaw),
            Codec::Alaw => pcm(audio, g711::from_alaw),
        };
        self.orders.push_back(Order::Audio(pcm));
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Problem> {
        let found = self.settings.detection.is_some();
        let said = self
            .utterance
            .take_if(|said| found || said.length_ms >= LEAST_MS);
        let Some(said) = said else {
            let has = self.utterance.as_ref().map_or(0, |said| said.length_ms);
            let says = if found {
                "nothing that the user said waits to be committed".to_owned()
            } else {
                format!("the buffer holds {has} ms of audio; a commit needs {LEAST_MS} ms")
            };
            return Err(Problem::new("input_audio_buffer_commit_empty", says));
        };
        self.said(said);
        if self.settings.answers() {
            let end = Order::AfterAudio(Ingress::EndOfUtterance);
            self.orders.push_back(end);
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.orders.push_back(Order::Forget);
        if self.settings.detection.is_none() {
            self.utterance = None;
        }
        self.say("input_audio_buffer.cleared", json!({}));
    }

    fn create(&mut self, new: NewItem) -> Result<(), Problem> {
        let last = self.items.last();
        let follows = |after: &str| last == Some(after) || (after == "root" && last.is_none());
        if new.after.as_deref().is_some_and(|after| !follows(after)) {
            let says = "'previous_item_id': items are added at the end, as they are said";
            return Err(Problem::new("unsupported_value", says).at("previous_item_id"));
        }
        if let Some(id) = new.id.as_ref().filter(|id| self.items.find(id).is_some()) {
            let says = format!("'item.id': an item '{id}' is there already");
            return Err(Problem::new("invalid_value", says).at("item.id"));
        }
        let id = new.id.unwrap_or_else(|| self.id("item"));
        match new.content {
            NewContent::Message { author, text } => self.write(id, author, text),
            NewContent::Output { call, output } => self.came_back(id, &call, output),
        }
    }

    fn write(&mut self, id: String, author: Author, text: String) -> Result<(), Problem> {
        let waits: usize = self.typed.iter().map(|(_, text)| text.len()).sum();
        let told = self.settings.instructions.as_ref().map_or(0, String::len);
        let before = match author {
            Author::User => waits,
            Author::System => told,
        };
        if before + text.len() > self.text_bytes {
            return Err(self.too_long("item.content"));
        }
        match author {
            Author::User => self.typed.push((id.clone(), text.clone())),
            Author::System => self.instruct(&text)?,
        }
        let kind = Kind::Written { author, text };
        self.add(Item { id, kind });
        Ok(())
    }

    /// What a system message says belongs to what the agent is told it is.
    fn instruct(&mut self, text: &str) -> Result<(), Problem> {
        if !self.allowed.instructions {
            let says = "'item.role': what the agent is told it is, is the pipeline's to say";
            return Err(Problem::new("unsupported_value", says).at("item.role"));
        }
        if self.started {
            let says = "'item.role': system messages come before the conversation has begun";
            return Err(Problem::new("session_has_begun", says).at("item.role"));
        }
        let instructions = self.settings.instructions.get_or_insert_default();
        if !instructions.is_empty() {
            instructions.push('\n');
        }
        instructions.push_str(text);
        Ok(())
    }

    fn delete(&mut self, id: &str) -> Result<(), Problem> {
        self.items.find(id).ok_or_else(|| not_found(id))?;
        let waits = self.typed.len();
        self.typed.retain(|(item, _)| item != id);
        if self.typed.len() == waits {
            let says =
                "'item_id': what was said stays said; only a text without an answer is deleted";
            return Err(Problem::new("unsupported_value", says).at("item_id"));
        }
        self.items.remove(id);
        self.say("conversation.item.deleted", json!({ "item_id": id }));
        Ok(())
    }

    fn truncate(&mut self, id: &str, audio_end_ms: u64) -> Result<(), Problem> {
        let rate = u64::from(self.settings.output.rate().hertz());
        self.items.find(id).ok_or_else(|| not_found(id))?;
        let before = self.items.samples_before(id);
        let Some(reply) = self.items.reply_mut(id).filter(|it| it.speaks) else {
            let says = "only model output audio messages can be truncated";
            return Err(Problem::new("unsupported_content_type", says).at("item_id"));
        };
        let sent = (reply.samples * 1_000).div_ceil(rate);
        if audio_end_ms > sent {
            let says =
                format!("audio content of {sent} ms is already shorter than {audio_end_ms} ms");
            return Err(Problem::new("invalid_value", says).at("audio_end_ms"));
        }
        let played = Receipt {
            turn: reply.turn,
            played: Duration::from_millis(before * 1_000 / rate + audio_end_ms),
        };
        reply.transcript = None;
        if reply.status == Status::Completed {
            reply.status = Status::Incomplete;
        }
        self.orders.push_back(Order::Now(Ingress::Played(played)));
        let truncated = json!({
            "item_id": id,
            "content_index": 0,
            "audio_end_ms": audio_end_ms,
        });
        self.say("conversation.item.truncated", truncated);
        Ok(())
    }

    fn respond(
        &mut self,
        now: Duration,
        speaks: Option<bool>,
        metadata: Value,
    ) -> Result<(), Problem> {
        if speaks.is_some_and(|speaks| speaks != self.settings.speaks) {
            let path = match self.settings.dialect {
                Dialect::Current => "response.output_modalities",
                Dialect::Beta => "response.modalities",
            };
            let says = format!("'{path}': is the session's to say, before the conversation begins");
            return Err(Problem::new("unsupported_value", says).at(path));
        }
        let on_its_way = self.unanswered && self.settings.answers();
        if self.typed.is_empty()
            && !self.unanswered
            && let Some(turn) = self.calls.asking()
        {
            return self.go_on(turn, metadata);
        }
        if self
            .response
            .as_ref()
            .is_some_and(|it| it.hands_over.is_some())
        {
            self.hand_over();
        }
        if self.response.is_some() || on_its_way {
            return Err(is_active());
        }
        match (self.typed.is_empty(), self.unanswered) {
            (true, false) => {
                let says = "a response answers what the user said: commit audio, or create a user's message";
                return Err(Problem::new("nothing_to_answer", says));
            }
            (false, true) => {
                let says = "a response answers either the audio that was committed or the text that was \
                    created; delete the text, or send it afterwards";
                return Err(Problem::new("audio_and_text_wait", says));
            }
            (false, false) => {
                self.supersede();
                let texts = self.typed.drain(..).map(|(_, text)| text);
                let text = texts.collect::<Vec<_>>().join(" ");
                self.start();
                self.orders.push_back(Order::Now(Ingress::Text(text)));
            }
            (true, true) => {
                self.supersede();
                let end = Order::AfterAudio(Ingress::EndOfUtterance);
                self.orders.push_back(end);
            }
        }
        self.unanswered = false;
        self.open(None, metadata).due = Some(now + NO_ANSWER);
        Ok(())
    }

    fn cancel(&mut self, id: Option<&str>) -> Result<(), Problem> {
        let response = self.response.as_mut();
        let response = response.filter(|it| id.is_none_or(|id| id == it.id));
        let Some(response) = response else {
            let says = "there is no active response to cancel";
            return Err(Problem::new("response_cancel_not_active", says));
        };
        response.cancelled = true;
        if response.turn.is_some() {
            self.orders.push_back(Order::Now(Ingress::Cancel));
        }
        Ok(())
    }

    // --- what the user is heard to say ---------------------------------------------------------

    /// The user began to speak, fell silent, or has finished.
    pub(super) fn speech(&mut self, now: Duration, mark: SpeechMark) {
        match mark {
            SpeechMark::Started { at } => {
                if self.settings.detection.is_some() && self.utterance.is_none() {
                    let said = self.begin_utterance();
                    let started = json!({ "audio_start_ms": at.0 / 16, "item_id": said.item });
                    self.utterance = Some(said);
                    self.say("input_audio_buffer.speech_started", started);
                }
            }
            SpeechMark::Stopped { at } => {
                let detection = self.settings.detection;
                if detection.is_some_and(Detection::ends_by_pause) {
                    self.stopped(at.0, true);
                }
            }
            SpeechMark::EndOfTurn { at, .. } => {
                if self.settings.answers() {
                    self.stopped(at.0, false);
                    self.no_turn = Some(now + NO_TURN);
                }
                for said in &mut self.unheard {
                    said.due = Some(now + LAST_WORDS);
                }
                let waits = self.response.as_mut().filter(|it| it.turn.is_none());
                if let Some(response) = waits {
                    response.due = Some(now + NO_TURN);
                }
            }
        }
    }

    fn stopped(&mut self, at: u64, is_one: bool) {
        if let Some(mut said) = self.utterance.take() {
            said.is_one = is_one;
            let stopped = json!({ "audio_end_ms": at / 16, "item_id": said.item });
            self.say("input_audio_buffer.speech_stopped", stopped);
            self.said(said);
        }
    }

    fn begin_utterance(&mut self) -> Utterance {
        Utterance {
            item: self.id("item"),
            length_ms: 0,
            words: BTreeMap::new(),
            told: String::new(),
            is_one: false,
            due: None,
        }
    }

    /// What the user said becomes an item.
    fn said(&mut self, said: Utterance) {
        let before = self.items.last().map(str::to_owned);
        let committed = json!({ "previous_item_id": before, "item_id": said.item });
        self.say("input_audio_buffer.committed", committed);
        let kind = Kind::Spoken { transcript: None };
        let id = said.item.clone();
        self.add(Item { id, kind });
        self.unanswered = true;
        // Words that are never completed are given up with the next that are.
        while self.unheard.len() >= 4 {
            let oldest = self.unheard.pop_front().expect("there are some");
            self.complete(&oldest);
        }
        self.unheard.push_back(said);
        self.tell_words();
        self.complete_whole();
    }

    /// Words of the user's.
    pub(super) fn words(&mut self, chunk: &TextChunk) {
        let segment = chunk.segment;
        let knows = |said: &Utterance| said.words.contains_key(&segment);
        let waits = |said: &Utterance| said.words.is_empty() || knows(said);
        let said = match self.unheard.iter_mut().find(|said| knows(said)) {
            Some(said) => Some(said),
            None if self.utterance.as_ref().is_some_and(knows) => self.utterance.as_mut(),
            None => match self.unheard.iter_mut().find(|said| waits(said)) {
                Some(said) => Some(said),
                None if self.utterance.is_some() => self.utterance.as_mut(),
                None => self.unheard.back_mut(),
            },
        };
        let Some(said) = said else { return };
        let text = chunk.text.to_string();
        said.words.insert(segment, (text, chunk.is_final));
        self.tell_words();
        self.complete_whole();
    }

    /// What a pause has ended is complete with its final words, whichever came first.
    fn complete_whole(&mut self) {
        let whole = |said: &Utterance| said.is_one && said.is_final();
        while let Some(at) = self.unheard.iter().position(whole) {
            let said = self.unheard.remove(at).expect("it was found there");
            self.complete(&said);
        }
    }

    /// Tells what is new of the words. What was told already is not taken back: if it changes, the whole
    /// comes at the end.
    fn tell_words(&mut self) {
        if !self.settings.transcribes {
            return;
        }
        // Without detection the client knows of an item only once it has committed it.
        let speaking = self.utterance.as_mut();
        let speaking = speaking.filter(|_| self.settings.detection.is_some());
        let mut news = Vec::new();
        for said in self.unheard.iter_mut().chain(speaking) {
            let text = said.text();
            let Some(new) = text.strip_prefix(&said.told).filter(|new| !new.is_empty()) else {
                continue;
            };
            news.push((said.item.clone(), new.to_owned()));
            said.told = text;
        }
        for (item, delta) in news {
            let delta = json!({ "item_id": item, "content_index": 0, "delta": delta });
            self.say("conversation.item.input_audio_transcription.delta", delta);
        }
    }

    /// All words of what was said are there.
    fn complete(&mut self, said: &Utterance) {
        let text = said.text();
        if let Some(item) = self.items.find_mut(&said.item) {
            let transcript = Some(text.clone());
            item.kind = Kind::Spoken { transcript };
        }
        if self.settings.transcribes {
            let completed = json!({
                "item_id": said.item,
                "content_index": 0,
                "transcript": text,
                "usage": { "type": "duration", "seconds": said.length_ms as f64 / 1e3 },
            });
            self.say(
                "conversation.item.input_audio_transcription.completed",
                completed,
            );
        }
    }

    /// The agent answers: what was said before has its words by now.
    fn answered(&mut self) {
        self.unanswered = false;
        self.no_turn = None;
        while let Some(at) = self.unheard.iter().position(Utterance::is_final) {
            let said = self.unheard.remove(at).expect("it was found there");
            self.complete(&said);
        }
    }

    // --- what the agent says -------------------------------------------------------------------

    fn open(&mut self, turn: Option<TurnNumber>, metadata: Value) -> &mut Response {
        let response = Response {
            id: self.id("resp"),
            item: self.id("item"),
            turn,
            metadata,
            items: Vec::new(),
            text: String::new(),
            clause: None,
            has_item: false,
            audio_ended: false,
            cancelled: false,
            barged: false,
            due: None,
            hands_over: None,
            went_on: false,
            unasked: turn.is_some() && turn == self.calls.asking(),
        };
        let shown = self.shown(&response, "in_progress", &Value::Null, None);
        self.say("response.created", json!({ "response": shown }));
        self.response.insert(response)
    }

    /// The response that a turn is, from its beginning to its end.
    fn of(&mut self, turn: TurnNumber) -> Option<&mut Response> {
        if turn <= self.done {
            return None;
        }
        if let Some(before) = self.calls.asking().filter(|before| *before < turn) {
            self.asked_in_vain(before);
        }
        match self.response.as_ref().map(|it| it.turn) {
            Some(Some(of)) if of == turn => {}
            Some(None) => self.bind(turn),
            Some(Some(_before)) => {
                // Its end was not told: a session that is busy tells less.
                self.finish(&Ending::Completed, None);
                self.open(Some(turn), Value::Null);
            }
            None => {
                self.open(Some(turn), Value::Null);
            }
        }
        self.response.as_mut()
    }

    fn bind(&mut self, turn: TurnNumber) {
        if let Some(response) = &mut self.response {
            response.turn = Some(turn);
            response.due = None;
            if response.cancelled {
                self.orders.push_back(Order::Now(Ingress::Cancel));
            }
        }
    }

    /// The client is told of the item that the response is.
    fn begin_item(&mut self, turn: TurnNumber) {
        let Some(response) = self.response.as_mut().filter(|it| !it.has_item) else {
            return;
        };
        response.has_item = true;
        response.items.push(response.item.clone());
        let place = response.place();
        let item = Item {
            id: place.item.clone(),
            kind: Kind::Reply(Reply {
                turn,
                status: Status::InProgress,
                speaks: self.settings.speaks,
                transcript: Some(String::new()),
                samples: 0,
            }),
        };
        self.say_of_item("response.output_item.added", &place, &item);
        self.add(item);
        let part = ("part", self.part(""));
        self.say_of_part("response.content_part.added", &place, part);
    }

    /// The part of an item that holds words.
    fn part(&self, text: &str) -> Value {
        if self.settings.speaks {
            json!({ "type": "audio", "transcript": text })
        } else {
            json!({ "type": "text", "text": text })
        }
    }

    /// A clause of what the agent says.
    pub(super) fn clause(&mut self, turn: TurnNumber, chunk: &TextChunk) {
        self.answered();
        let Some(response) = self.of(turn) else {
            return;
        };
        // A clause that has lost its voice is shown; its words are known.
        let is_new = response.clause.is_none_or(|last| last < chunk.segment);
        if !is_new || chunk.text.trim().is_empty() {
            return;
        }
        self.begin_item(turn);
        let Some(response) = &mut self.response else {
            return;
        };
        response.clause = Some(chunk.segment);
        let glue = if response.text.is_empty() { "" } else { " " };
        let delta = format!("{glue}{}", chunk.text.trim());
        response.text.push_str(&delta);
        response.went_on = true;
        let (place, text) = (response.place(), response.text.clone());
        if let Some(reply) = self.items.reply_mut(&place.item)
            && let Some(transcript) = &mut reply.transcript
        {
            *transcript = text;
        }
        let kind = if self.settings.speaks {
            "response.output_audio_transcript.delta"
        } else {
            "response.output_text.delta"
        };
        self.say_of_part(kind, &place, ("delta", json!(delta)));
    }

    /// Some of the agent's audio: 16-bit PCM at the rate of the output's format.
    pub(super) fn play(&mut self, turn: TurnNumber, data: &Bytes) -> Result<(), SinkError> {
        // The fence stands before the sink; nothing of this is to be heard.
        if turn <= self.cleared || !self.settings.speaks {
            return Ok(());
        }
        if self.stalled || self.frames >= self.room {
            return Err(SinkError::Full);
        }
        self.answered();
        if self.of(turn).is_none() {
            return Ok(());
        }
        self.begin_item(turn);
        let encoded = match self.settings.output {
            Codec::Pcm => STANDARD.encode(data),
            Codec::Ulaw => STANDARD.encode(samples(data).map(g711::to_ulaw).collect::<Vec<_>>()),
            Codec::Alaw => STANDARD.encode(samples(data).map(g711::to_alaw).collect::<Vec<_>>()),
        };
        let event = self.event_id();
        let kind = self.named("response.output_audio.delta");
        let Some(response) = &mut self.response else {
            return Ok(());
        };
        response.went_on = true;
        let Place {
            response: id,
            item,
            index,
        } = response.place();
        // None of these has a character that JSON would want escaped: 50 of them leave in a second.
        let text = format!(
            "{{\"type\":\"{kind}\",\"event_id\":\"{event}\",\"response_id\":\"{id}\",\
             \"item_id\":\"{item}\",\"output_index\":{index},\"content_index\":0,\"delta\":\"{encoded}\"}}"
        );
        self.frames += 1;
        let what = Leaves::Frame {
            turn,
            item,
            pcm: data.clone(),
        };
        self.waiting.push_back(Leaving { text, what });
        Ok(())
    }

    /// A turn's audio is complete.
    pub(super) fn audio_end(&mut self, turn: TurnNumber) {
        if turn > self.cleared
            && self
                .response
                .as_ref()
                .is_some_and(|it| it.turn == Some(turn))
        {
            self.end_audio();
        }
    }

    fn end_audio(&mut self) {
        let response = self.response.as_mut();
        let Some(response) = response.filter(|it| it.has_item && !it.audio_ended) else {
            return;
        };
        response.audio_ended = true;
        let (place, text) = (response.place(), json!(response.text));
        if !self.settings.speaks {
            self.say_of_part("response.output_text.done", &place, ("text", text));
            return;
        }
        let what = response.turn.map_or(Leaves::Event, Leaves::End);
        let end = json!({
            "response_id": place.response,
            "item_id": place.item,
            "output_index": place.index,
            "content_index": 0,
        });
        self.push("response.output_audio.done", end, what);
        let transcript = ("transcript", text);
        self.say_of_part("response.output_audio_transcript.done", &place, transcript);
    }

    /// What was not sent of a turn and all before it is not to be heard any more.
    pub(super) fn clear(&mut self, turn: TurnNumber) {
        self.cleared = self.cleared.max(turn);
        let frames = &mut self.frames;
        self.waiting.retain(|out| match &out.what {
            Leaves::Event | Leaves::End(_) => true,
            Leaves::Frame { turn: of, .. } => {
                let stays = *of > turn;
                *frames -= usize::from(!stays);
                stays
            }
        });
    }

    /// The session says something of itself.
    pub(super) fn news(&mut self, news: &News) {
        match news {
            News::Signal(signal) => {
                let turn = signal.envelope.turn_id.as_ref();
                let turn = turn.and_then(TurnNumber::of);
                let Some(turn) = turn else { return };
                match signal.signal {
                    Signal::TurnOpen => {
                        self.answered();
                        let _known_now = self.of(turn);
                    }
                    Signal::BargeIn if self.is_between_responses(turn) => {}
                    Signal::BargeIn => {
                        if let Some(response) = self.of(turn) {
                            response.barged = true;
                        }
                    }
                    _of_no_concern => {}
                }
            }
            News::Turn(turn) => {
                let Some(number) = TurnNumber::of(&turn.turn) else {
                    return;
                };
                if self.is_between_responses(number) {
                    self.asked_in_vain(number);
                } else if self.of(number).is_some() {
                    if self.calls.asking() == Some(number) {
                        self.asked_in_vain(number);
                    }
                    self.finish(&self.ending(turn), Some(turn));
                    self.done = self.done.max(number);
                }
            }
        }
    }

    fn ending(&self, turn: &TurnNews) -> Ending {
        let asked = self.response.as_ref().is_some_and(|it| it.cancelled);
        let barged = self.response.as_ref().is_some_and(|it| it.barged);
        let reason = turn.reason.as_deref().unwrap_or_default();
        if turn.outcome == "commit" {
            Ending::Completed
        } else if barged && !asked {
            Ending::Cancelled("turn_detected")
        } else if asked || reason.contains("cancel") {
            Ending::Cancelled("client_cancelled")
        } else {
            Ending::Failed(reason.to_owned())
        }
    }

    /// The session is over: so is what the agent says.
    pub(super) fn over(&mut self, reason: &str) {
        self.finish(&Ending::Failed(reason.to_owned()), None);
    }

    /// The running response ends.
    fn finish(&mut self, ending: &Ending, turn: Option<&TurnNews>) {
        self.end_audio();
        let Some(response) = self.response.take() else {
            return;
        };
        if let Some(turn) = response.turn.filter(|it| self.calls.asking() != Some(*it)) {
            self.done = self.done.max(turn);
        }
        let status = match ending {
            Ending::Completed => Status::Completed,
            Ending::Cancelled(_) | Ending::Failed(_) => Status::Incomplete,
        };
        if let Some(reply) = self.items.reply_mut(&response.item) {
            reply.status = status;
        }
        let item = self.items.find(&response.item).cloned();
        if let Some(item) = item.filter(|_| response.has_item) {
            let (place, part) = (response.place(), ("part", self.part(&response.text)));
            self.say_of_part("response.content_part.done", &place, part);
            self.item_done(&place, &item);
        }
        let (status, details) = match ending {
            Ending::Completed => ("completed", Value::Null),
            Ending::Cancelled(reason) => (
                "cancelled",
                json!({ "type": "cancelled", "reason": reason }),
            ),
            Ending::Failed(why) => {
                let error =
                    json!({ "type": "server_error", "code": "turn_failed", "message": why });
                ("failed", json!({ "type": "failed", "error": error }))
            }
        };
        let shown = self.shown(&response, status, &details, turn);
        self.say("response.done", json!({ "response": shown }));
    }

    fn shown(
        &self,
        response: &Response,
        status: &str,
        details: &Value,
        turn: Option<&TurnNews>,
    ) -> Value {
        let items = response.items.iter().filter_map(|id| self.items.find(id));
        let output: Vec<Value> = items
            .map(|item| item.shown(self.settings.dialect))
            .collect();
        let usage = turn.map(|turn| {
            let (read, written) = (turn.spending.tokens_read, turn.spending.tokens_written);
            json!({
                "total_tokens": read + written,
                "input_tokens": read,
                "output_tokens": written,
                "input_token_details": { "text_tokens": read, "audio_tokens": 0, "cached_tokens": 0 },
                "output_token_details": { "text_tokens": written, "audio_tokens": 0 },
            })
        });
        let mut shown = self.settings.shown_of_response();
        let own = json!({
            "object": "realtime.response",
            "id": response.id,
            "conversation_id": self.conversation(),
            "status": status,
            "status_details": details,
            "output": output,
            "metadata": response.metadata,
            "usage": usage,
        });
        if let (Some(shown), Value::Object(own)) = (shown.as_object_mut(), own) {
            shown.extend(own);
        }
        shown
    }

    // --- words ---------------------------------------------------------------------------------

    fn conversation(&self) -> String {
        format!("conv_{}", self.stamp)
    }

    fn id(&mut self, kind: &str) -> String {
        self.count += 1;
        format!("{kind}_{}{:06}", self.stamp, self.count)
    }

    fn event_id(&mut self) -> String {
        self.id("event")
    }

    /// What the client calls an event.
    fn named(&self, kind: &'static str) -> &'static str {
        match self.settings.dialect {
            Dialect::Current => kind,
            Dialect::Beta => match kind {
                "response.output_audio.delta" => "response.audio.delta",
                "response.output_audio.done" => "response.audio.done",
                "response.output_audio_transcript.delta" => "response.audio_transcript.delta",
                "response.output_audio_transcript.done" => "response.audio_transcript.done",
                "response.output_text.delta" => "response.text.delta",
                "response.output_text.done" => "response.text.done",
                "conversation.item.added" => "conversation.item.created",
                same => same,
            },
        }
    }

    /// An item is part of the conversation.
    fn add(&mut self, item: Item) {
        let shown = item.shown(self.settings.dialect);
        let is_whole = match &item.kind {
            Kind::Written { .. } | Kind::Spoken { .. } | Kind::Output { .. } => true,
            Kind::Reply(_) | Kind::Call { .. } => false,
        };
        let before = self.items.add(item);
        let added = json!({ "previous_item_id": before, "item": shown });
        self.say("conversation.item.added", added.clone());
        if is_whole && self.settings.dialect == Dialect::Current {
            self.say("conversation.item.done", added);
        }
    }

    fn say_of_part(&mut self, kind: &'static str, place: &Place, (name, what): (&str, Value)) {
        let of_part = json!({
            "response_id": place.response,
            "item_id": place.item,
            "output_index": place.index,
            "content_index": 0,
            name: what,
        });
        self.say(kind, of_part);
    }

    fn say_of_item(&mut self, kind: &'static str, place: &Place, item: &Item) {
        let of_item = json!({
            "response_id": place.response,
            "output_index": place.index,
            "item": item.shown(self.settings.dialect),
        });
        self.say(kind, of_item);
    }

    /// An item of a response is complete.
    fn item_done(&mut self, place: &Place, item: &Item) {
        self.say_of_item("response.output_item.done", place, item);
        if self.settings.dialect == Dialect::Current {
            let shown = item.shown(self.settings.dialect);
            self.say("conversation.item.done", json!({ "item": shown }));
        }
    }

    fn say(&mut self, kind: &'static str, fields: Value) {
        self.push(kind, fields, Leaves::Event);
    }

    fn push(&mut self, kind: &'static str, mut fields: Value, what: Leaves) {
        let (kind, id) = (self.named(kind), self.event_id());
        fields["type"] = json!(kind);
        fields["event_id"] = json!(id);
        let text = fields.to_string();
        self.waiting.push_back(Leaving { text, what });
    }
}

fn is_active() -> Problem {
    let says = "the conversation has an active response; wait for 'response.done', or cancel it";
    Problem::new("conversation_already_has_active_response", says)
}

fn not_found(id: &str) -> Problem {
    let says = format!("'item_id': there is no item '{id}'");
    Problem::new("item_not_found", says).at("item_id")
}

fn pcm(coded: &Bytes, decode: fn(u8) -> i16) -> Bytes {
    let samples = coded.iter().flat_map(|byte| decode(*byte).to_le_bytes());
    samples.collect::<Vec<_>>().into()
}
