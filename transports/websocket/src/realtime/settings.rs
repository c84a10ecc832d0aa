//! A session as its client sets it up: what may be asked for, what of it is served, and how it is shown.

use std::collections::BTreeSet;

use rspp_proto::{
    SampleRate,
    spec::{ToolDeclaration, ToolExecutor},
};
use rspp_transport_api::{Interruption, TurnEnd, Wishes};
use serde_json::{Map, Value, json};

use super::{
    client::speaks,
    fields::{Fields, Problem},
};

/// What clients may set up. What they may not is the pipeline's own, and refused where they ask for another.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is something that an operator grants or keeps"
)]
pub struct Allowed {
    /// What the agent is told it is.
    pub instructions: bool,
    /// When a turn ends, and whether the agent can be interrupted.
    pub turn_detection: bool,
    /// How long replies are, and how freely they are worded.
    pub generation: bool,
    /// Tools of their own, which they run.
    pub tools: bool,
    /// Voices, by the names that the pipeline's provider has for them.
    pub voices: BTreeSet<String>,
}

impl Default for Allowed {
    fn default() -> Self {
        Self {
            instructions: true,
            turn_detection: true,
            generation: true,
            tools: true,
            voices: BTreeSet::new(),
        }
    }
}

/// Which names a client has for things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Dialect {
    #[default]
    Current,
    /// The names before general availability, for clients that ask for them.
    Beta,
}

/// How audio is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Codec {
    /// 16-bit little-endian PCM at 24 kHz.
    #[default]
    Pcm,
    /// G.711 at 8 kHz under the mu-law.
    Ulaw,
    /// G.711 at 8 kHz under the A-law.
    Alaw,
}

impl From<Codec> for rspp_proto::Codec {
    fn from(codec: Codec) -> Self {
        match codec {
            Codec::Pcm => Self::Pcm16,
            Codec::Ulaw => Self::Pcmu,
            Codec::Alaw => Self::Pcma,
        }
    }
}

impl Codec {
    pub(super) fn rate(self) -> SampleRate {
        let hertz = match self {
            Self::Pcm => 24_000,
            Self::Ulaw | Self::Alaw => 8_000,
        };
        SampleRate::new(hertz).expect("not zero")
    }

    /// Bytes of a sample.
    pub(super) fn width(self) -> usize {
        match self {
            Self::Pcm => 2,
            Self::Ulaw | Self::Alaw => 1,
        }
    }

    fn shown(self, dialect: Dialect) -> Value {
        match (dialect, self) {
            (Dialect::Current, Self::Pcm) => json!({ "type": "audio/pcm", "rate": 24_000 }),
            (Dialect::Current, Self::Ulaw) => json!({ "type": "audio/pcmu" }),
            (Dialect::Current, Self::Alaw) => json!({ "type": "audio/pcma" }),
            (Dialect::Beta, Self::Pcm) => json!("pcm16"),
            (Dialect::Beta, Self::Ulaw) => json!("g711_ulaw"),
            (Dialect::Beta, Self::Alaw) => json!("g711_alaw"),
        }
    }
}

/// What finds the beginning and the end of what the user says; without it the client says so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Detection {
    ends: Ends,
    threshold: Option<f64>,
    /// Whether an answer follows by itself.
    answers: bool,
    /// Whether the agent falls silent when it is spoken over.
    interrupts: bool,
}

/// What ends a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// A silence of so many milliseconds.
    Pause(u64),
    /// The pipeline's judgement.
    Judged(Eagerness),
}

/// How soon a pause is taken for the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Eagerness {
    #[default]
    Auto,
    Low,
    Medium,
    High,
}

impl Eagerness {
    fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// Silence that ends a turn under `server_vad`, unless the client says how long.
const PAUSE_MS: u64 = 500;
/// Audio before a turn's first sound that is recognised too: the pipeline's own.
const PREFIX_MS: u64 = 200;
/// Probability from which a sound is speech, unless the client says.
const THRESHOLD: f64 = 0.5;

/// Most tools of a client's, and the most bytes that they are described with.
const TOOLS: usize = 64;
const TOOL_BYTES: usize = 64 << 10;
/// How long a client may take to say what came of a call, in milliseconds: it may ask somebody.
const TOOL_MS: u64 = 60_000;

/// Names of voices that stand for "a voice": they are another vendor's, and every client of this API says one
/// of them.
const ANY_VOICE: [&str; 10] = [
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "marin", "sage", "shimmer", "verse",
];

/// A session as its client has set it up.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) dialect: Dialect,
    model: String,
    pub(super) instructions: Option<String>,
    voice: Option<String>,
    language: Option<String>,
    max_tokens: Option<u32>,
    temperature: Option<f64>,
    pub(super) input: Codec,
    pub(super) output: Codec,
    /// Whether the agent speaks; else it writes.
    pub(super) speaks: bool,
    /// Tools that the client runs, and whether the model may call them.
    tools: Vec<ToolDeclaration>,
    calls_tools: bool,
    /// Whether the client hears what the user said.
    pub(super) transcribes: bool,
    pub(super) detection: Option<Detection>,
}

impl Settings {
    pub(super) fn new(dialect: Dialect, model: impl Into<String>) -> Self {
        Self {
            dialect,
            model: model.into(),
            instructions: None,
            voice: None,
            language: None,
            max_tokens: None,
            temperature: None,
            input: Codec::Pcm,
            output: Codec::Pcm,
            speaks: true,
            tools: Vec::new(),
            calls_tools: true,
            transcribes: true,
            detection: Some(Detection {
                ends: Ends::Judged(Eagerness::Auto),
                threshold: None,
                answers: true,
                interrupts: true,
            }),
        }
    }

    /// Whether an answer follows what the user says by itself.
    pub(super) fn answers(&self) -> bool {
        self.detection.is_some_and(|detection| detection.answers)
    }

    /// What of it is asked of the runtime.
    /// Of whose turns begin and end, only if it is a client's to say.
    pub(super) fn wishes(&self, allowed: &Allowed) -> Wishes {
        let turn_end = match self.detection {
            None | Some(Detection { answers: false, .. }) => TurnEnd::Client,
            Some(Detection {
                ends: Ends::Pause(ms),
                ..
            }) => TurnEnd::Silence(ms),
            Some(Detection {
                ends: Ends::Judged(eagerness),
                ..
            }) => match eagerness {
                Eagerness::Auto | Eagerness::Medium => TurnEnd::Pipeline,
                Eagerness::Low => TurnEnd::Judged { longest_ms: 4_000 },
                Eagerness::High => TurnEnd::Judged { longest_ms: 750 },
            },
        };
        let interrupts = self.detection.is_some_and(|it| it.interrupts);
        Wishes {
            instructions: self.instructions.clone(),
            voice: self
                .voice
                .clone()
                .filter(|voice| !ANY_VOICE.contains(&voice.as_str())),
            language: self.language.clone(),
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            text_only: !self.speaks,
            tools: if self.calls_tools {
                self.tools.clone()
            } else {
                Vec::new()
            },
            speech_from: self.detection.and_then(|it| it.threshold),
            turn_end,
            interruption: allowed.turn_detection.then_some(if interrupts {
                Interruption::AtOnce
            } else {
                Interruption::Never
            }),
        }
    }

    /// The settings with a client's changes: all of them, or none.
    pub(super) fn updated(
        &self,
        session: &Map<String, Value>,
        allowed: &Allowed,
    ) -> Result<Self, Problem> {
        let message = Map::from_iter([("session".to_owned(), Value::Object(session.clone()))]);
        let next = Fields::top(&message).within("session", |fields| {
            let mut next = self.clone();
            match self.dialect {
                Dialect::Current => next.take(&fields, allowed)?,
                Dialect::Beta => next.take_beta(&fields, allowed)?,
            }
            Ok(next)
        })?;
        Ok(next.expect("the session is there"))
    }

    /// Where settings differ that are the conversation's from its beginning on.
    pub(super) fn fixed_difference(&self, next: &Self) -> Option<&'static str> {
        let differs = [
            (
                "session.instructions",
                self.instructions != next.instructions,
            ),
            ("session.audio.output.voice", self.voice != next.voice),
            (
                "session.audio.input.transcription.language",
                self.language != next.language,
            ),
            (
                "session.max_output_tokens",
                self.max_tokens != next.max_tokens,
            ),
            ("session.output_modalities", self.speaks != next.speaks),
            ("session.tools", self.tools != next.tools),
            ("session.tool_choice", self.calls_tools != next.calls_tools),
            ("session.temperature", self.temperature != next.temperature),
            ("session.audio.input.format", self.input != next.input),
            ("session.audio.output.format", self.output != next.output),
            (
                "session.audio.input.turn_detection",
                self.detection != next.detection,
            ),
        ];
        differs.iter().find(|(_, differs)| *differs).map(|it| it.0)
    }

    // --- what a client sends -------------------------------------------------------------------

    fn take(&mut self, fields: &Fields<'_>, allowed: &Allowed) -> Result<(), Problem> {
        match fields.needed("type", fields.text("type")?)? {
            "realtime" => {}
            "transcription" => {
                return Err(
                    fields.unsupported("type", "sessions that only transcribe are not served")
                );
            }
            _unknown => return Err(fields.invalid("type", "is not realtime")),
        }
        fields.only(&[
            "type",
            "id",
            "object",
            "expires_at",
            "model",
            "instructions",
            "output_modalities",
            "audio",
            "tools",
            "tool_choice",
            "parallel_tool_calls",
            "max_output_tokens",
            "prompt",
            "include",
            "reasoning",
            "tracing",
            "truncation",
        ])?;
        self.speaks = speaks(fields, "output_modalities")?.unwrap_or(self.speaks);
        self.take_common(fields, "max_output_tokens", allowed)?;
        fields.within("audio", |audio| {
            audio.only(&["input", "output"])?;
            audio.within("input", |input| {
                input.only(&[
                    "format",
                    "noise_reduction",
                    "transcription",
                    "turn_detection",
                ])?;
                if let Some(codec) = input.within("format", |format| codec(&format))? {
                    self.input = codec;
                }
                self.take_transcription(&input, "transcription")?;
                self.take_detection(&input, allowed)
            })?;
            audio.within("output", |output| {
                output.only(&["format", "voice", "speed"])?;
                if let Some(codec) = output.within("format", |format| codec(&format))? {
                    self.output = codec;
                }
                one_speed(&output)?;
                self.take_voice(&output, allowed)
            })?;
            Ok(())
        })?;
        Ok(())
    }

    fn take_beta(&mut self, fields: &Fields<'_>, allowed: &Allowed) -> Result<(), Problem> {
        fields.only(&[
            "id",
            "object",
            "expires_at",
            "client_secret",
            "model",
            "instructions",
            "modalities",
            "voice",
            "speed",
            "input_audio_format",
            "output_audio_format",
            "input_audio_transcription",
            "input_audio_noise_reduction",
            "turn_detection",
            "tools",
            "tool_choice",
            "temperature",
            "max_response_output_tokens",
            "include",
            "prompt",
            "tracing",
        ])?;
        self.speaks = speaks(fields, "modalities")?.unwrap_or(self.speaks);
        self.take_common(fields, "max_response_output_tokens", allowed)?;
        if let Some(temperature) = fields.number("temperature", 0.0, 2.0)? {
            if !allowed.generation {
                return Err(fields.unsupported("temperature", "is the pipeline's to say"));
            }
            self.temperature = Some(temperature);
        }
        one_speed(fields)?;
        for (name, codec) in [
            ("input_audio_format", &mut self.input),
            ("output_audio_format", &mut self.output),
        ] {
            match fields.text(name)? {
                None => {}
                Some("pcm16") => *codec = Codec::Pcm,
                Some("g711_ulaw") => *codec = Codec::Ulaw,
                Some("g711_alaw") => *codec = Codec::Alaw,
                Some(_unknown) => {
                    return Err(fields.invalid(name, "is none of pcm16, g711_ulaw, g711_alaw"));
                }
            }
        }
        self.take_voice(fields, allowed)?;
        self.take_transcription(fields, "input_audio_transcription")?;
        self.take_detection(fields, allowed)
    }

    /// What both dialects have in one place. Hints that change nothing here are let pass: the session says
    /// what is in force.
    fn take_common(
        &mut self,
        fields: &Fields<'_>,
        max_tokens: &str,
        allowed: &Allowed,
    ) -> Result<(), Problem> {
        fields.text("model")?;
        if let Some(text) = fields.text("instructions")? {
            let same = self.instructions.as_deref().unwrap_or_default() == text;
            if !allowed.instructions && !same {
                return Err(fields.unsupported("instructions", "is the pipeline's to say"));
            }
            self.instructions = (!text.trim().is_empty()).then(|| text.to_owned());
        }
        self.take_tools(fields, allowed)?;
        match fields.get(max_tokens) {
            None => {}
            Some(Value::Null) => self.max_tokens = None,
            Some(most) if most == "inf" => self.max_tokens = None,
            Some(_number) => {
                let most = fields.whole(max_tokens)?.unwrap_or_default();
                if !(1..=4_096).contains(&most) {
                    return Err(fields.invalid(max_tokens, "is not between 1 and 4096, or \"inf\""));
                }
                if !allowed.generation {
                    return Err(fields.unsupported(max_tokens, "is the pipeline's to say"));
                }
                self.max_tokens = Some(most as u32);
            }
        }
        if fields.within("prompt", |_| Ok(()))?.is_some() {
            return Err(fields.unsupported("prompt", "prompts kept elsewhere are not served"));
        }
        if fields.list("include")?.is_some_and(|it| !it.is_empty()) {
            return Err(fields.unsupported("include", "recognition gives no probabilities"));
        }
        Ok(())
    }

    fn take_tools(&mut self, fields: &Fields<'_>, allowed: &Allowed) -> Result<(), Problem> {
        if let Some(listed) = fields.list("tools")? {
            if !listed.is_empty() && !allowed.tools {
                return Err(fields.unsupported("tools", "are the pipeline's to say"));
            }
            let bytes: usize = listed.iter().map(|tool| tool.to_string().len()).sum();
            if listed.len() > TOOLS || bytes > TOOL_BYTES {
                let why = format!("are more than {TOOLS}, or longer than {TOOL_BYTES} bytes");
                return Err(fields.invalid("tools", &why));
            }
            let mut tools: Vec<ToolDeclaration> = Vec::new();
            fields.each("tools", |it| {
                let tool = tool(&it)?;
                if tools.iter().any(|other| other.name == tool.name) {
                    return Err(it.invalid("name", "is another tool's too"));
                }
                tools.push(tool);
                Ok(())
            })?;
            self.tools = tools;
        }
        match fields.get("tool_choice") {
            None | Some(Value::Null) => {}
            Some(choice) if choice == "auto" => self.calls_tools = true,
            Some(choice) if choice == "none" => self.calls_tools = false,
            Some(_forced) => {
                let why = "the model chooses: served are auto and none";
                return Err(fields.unsupported("tool_choice", why));
            }
        }
        Ok(())
    }

    fn take_voice(&mut self, fields: &Fields<'_>, allowed: &Allowed) -> Result<(), Problem> {
        let voice = match fields.get("voice") {
            Some(Value::Object(_)) => fields.within("voice", |voice| {
                let id = voice.needed("id", voice.text("id")?)?;
                Ok(id.to_owned())
            })?,
            Some(_) | None => fields.text("voice")?.map(str::to_owned),
        };
        let Some(voice) = voice else { return Ok(()) };
        if !allowed.voices.contains(&voice) && !ANY_VOICE.contains(&voice.as_str()) {
            let served: Vec<&str> = allowed.voices.iter().map(String::as_str).collect();
            let served = if served.is_empty() {
                "the pipeline's own, by any of the API's names".to_owned()
            } else {
                served.join(", ")
            };
            let why = format!("is not served; served is {served}");
            return Err(fields.unsupported("voice", &why));
        }
        self.voice = Some(voice);
        Ok(())
    }

    fn take_transcription(&mut self, fields: &Fields<'_>, name: &str) -> Result<(), Problem> {
        if let Some(Value::Null) = fields.get(name) {
            self.transcribes = false;
        }
        let language = fields.within(name, |transcription| {
            transcription.only(&[
                "model",
                "language",
                "languages",
                "prompt",
                "keywords",
                "delay",
            ])?;
            transcription.text("model")?;
            let language = transcription.text("language")?.map(str::to_owned);
            if let Some(tag) = &language {
                let is_tag = (2..=16).contains(&tag.len())
                    && tag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
                if !is_tag {
                    return Err(transcription.invalid("language", "is no tag of a language"));
                }
            }
            Ok(language)
        })?;
        if let Some(language) = language {
            self.transcribes = true;
            self.language = language;
        }
        Ok(())
    }

    fn take_detection(&mut self, fields: &Fields<'_>, allowed: &Allowed) -> Result<(), Problem> {
        let name = "turn_detection";
        let before = self.detection;
        if let Some(Value::Null) = fields.get(name) {
            self.detection = None;
        }
        if let Some(detection) = fields.within(name, |it| detection(&it))? {
            self.detection = Some(detection);
        }
        if self.detection != before && !allowed.turn_detection {
            return Err(fields.unsupported(name, "is the pipeline's to say"));
        }
        Ok(())
    }

    // --- what a client is shown ----------------------------------------------------------------

    pub(super) fn shown(&self, id: &str) -> Value {
        let transcription = self
            .transcribes
            .then(|| json!({ "model": self.model, "language": self.language }));
        let max_tokens = self.max_tokens.map_or(json!("inf"), |most| json!(most));
        let instructions = self.instructions.as_deref().unwrap_or_default();
        let voice = self.voice.as_deref().unwrap_or("alloy");
        match self.dialect {
            Dialect::Current => json!({
                "type": "realtime",
                "object": "realtime.session",
                "id": id,
                "model": self.model,
                "instructions": instructions,
                "output_modalities": self.modalities(),
                "audio": {
                    "input": {
                        "format": self.input.shown(self.dialect),
                        "noise_reduction": null,
                        "transcription": transcription,
                        "turn_detection": self.detection.map(Detection::shown),
                    },
                    "output": {
                        "format": self.output.shown(self.dialect),
                        "voice": voice,
                        "speed": 1.0,
                    },
                },
                "tools": self.tools_shown(),
                "tool_choice": self.tool_choice(),
                "max_output_tokens": max_tokens,
                "tracing": null,
                "truncation": "auto",
                "prompt": null,
                "include": null,
            }),
            Dialect::Beta => json!({
                "object": "realtime.session",
                "id": id,
                "model": self.model,
                "instructions": instructions,
                "modalities": self.modalities(),
                "voice": voice,
                "speed": 1.0,
                "input_audio_format": self.input.shown(self.dialect),
                "output_audio_format": self.output.shown(self.dialect),
                "input_audio_transcription": transcription,
                "input_audio_noise_reduction": null,
                "turn_detection": self.detection.map(Detection::shown),
                "tools": self.tools_shown(),
                "tool_choice": self.tool_choice(),
                "temperature": self.temperature.unwrap_or(0.8),
                "max_response_output_tokens": max_tokens,
            }),
        }
    }

    fn modalities(&self) -> Value {
        match (self.dialect, self.speaks) {
            (Dialect::Current, true) => json!(["audio"]),
            (Dialect::Beta, true) => json!(["text", "audio"]),
            (Dialect::Current | Dialect::Beta, false) => json!(["text"]),
        }
    }

    fn tools_shown(&self) -> Value {
        let tools = self.tools.iter().map(|tool| {
            json!({
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
            })
        });
        tools.collect()
    }

    fn tool_choice(&self) -> &'static str {
        if self.calls_tools { "auto" } else { "none" }
    }

    /// What of it a response repeats.
    pub(super) fn shown_of_response(&self) -> Value {
        let max_tokens = self.max_tokens.map_or(json!("inf"), |most| json!(most));
        let voice = self.voice.as_deref().unwrap_or("alloy");
        let format = self.output.shown(self.dialect);
        match self.dialect {
            Dialect::Current => json!({
                "output_modalities": self.modalities(),
                "audio": { "output": { "format": format, "voice": voice } },
                "max_output_tokens": max_tokens,
            }),
            Dialect::Beta => json!({
                "modalities": self.modalities(),
                "voice": voice,
                "output_audio_format": format,
                "max_output_tokens": max_tokens,
                "temperature": self.temperature.unwrap_or(0.8),
            }),
        }
    }
}

impl Detection {
    /// Whether each pause is an end; otherwise the pipeline says which one is.
    pub(super) fn ends_by_pause(self) -> bool {
        match self.ends {
            Ends::Pause(_) => true,
            Ends::Judged(_) => !self.answers,
        }
    }

    fn shown(self) -> Value {
        match self.ends {
            Ends::Pause(ms) => json!({
                "type": "server_vad",
                "threshold": self.threshold.unwrap_or(THRESHOLD),
                "prefix_padding_ms": PREFIX_MS,
                "silence_duration_ms": ms,
                "create_response": self.answers,
                "interrupt_response": self.interrupts,
                "idle_timeout_ms": null,
            }),
            Ends::Judged(eagerness) => json!({
                "type": "semantic_vad",
                "eagerness": eagerness.as_str(),
                "create_response": self.answers,
                "interrupt_response": self.interrupts,
            }),
        }
    }
}

fn one_speed(fields: &Fields<'_>) -> Result<(), Problem> {
    let speed = fields.number("speed", 0.25, 1.5)?.unwrap_or(1.0);
    if (speed - 1.0).abs() > f64::EPSILON {
        return Err(fields.unsupported("speed", "the voice has one speed, 1.0"));
    }
    Ok(())
}

/// A tool that the client runs.
fn tool(fields: &Fields<'_>) -> Result<ToolDeclaration, Problem> {
    match fields.needed("type", fields.text("type")?)? {
        "function" => {}
        "mcp" => return Err(fields.unsupported("type", "MCP is not served")),
        _unknown => return Err(fields.invalid("type", "is not function")),
    }
    fields.only(&["type", "name", "description", "parameters", "strict"])?;
    fields.truth("strict")?; // Arguments are held to their schema either way.
    let name = fields.needed("name", fields.text("name")?)?;
    if !ToolDeclaration::is_name(name) {
        let why = "has not between 1 and 64 letters, digits, _ and -";
        return Err(fields.invalid("name", why));
    }
    let described = fields.text("description")?;
    let described = described.filter(|text| !text.trim().is_empty());
    let mut tool = ToolDeclaration::new(name, described.unwrap_or(name));
    tool.run = ToolExecutor::Client;
    tool.timeout_ms = TOOL_MS;
    if fields.within("parameters", |_| Ok(()))?.is_some() {
        let mut parameters = fields.get("parameters").cloned().unwrap_or_default();
        if let Some(schema) = parameters.as_object_mut() {
            schema.remove("$schema");
        }
        if parameters != json!({}) {
            tool.parameters = parameters;
        }
    }
    if let Some(problem) = tool.arguments().problems().into_iter().next() {
        let path = match problem.path.as_str() {
            "" => "parameters".to_owned(),
            path => format!("parameters.{path}"),
        };
        return Err(fields.unsupported(&path, &problem.message));
    }
    Ok(tool)
}

fn codec(format: &Fields<'_>) -> Result<Codec, Problem> {
    match format.needed("type", format.text("type")?)? {
        "audio/pcm" => {
            format.only(&["type", "rate"])?;
            if format.whole("rate")?.is_some_and(|rate| rate != 24_000) {
                return Err(format.unsupported("rate", "PCM has 24000 samples a second"));
            }
            Ok(Codec::Pcm)
        }
        "audio/pcmu" => Ok(Codec::Ulaw),
        "audio/pcma" => Ok(Codec::Alaw),
        _unknown => Err(format.invalid("type", "is none of audio/pcm, audio/pcmu, audio/pcma")),
    }
}

fn detection(fields: &Fields<'_>) -> Result<Detection, Problem> {
    let kind = fields.needed("type", fields.text("type")?)?;
    let answers = fields.truth("create_response")?.unwrap_or(true);
    let interrupts = fields.truth("interrupt_response")?.unwrap_or(true);
    let common = ["type", "create_response", "interrupt_response"];
    let (ends, threshold) = match kind {
        "server_vad" => {
            let own = [
                "threshold",
                "prefix_padding_ms",
                "silence_duration_ms",
                "idle_timeout_ms",
            ];
            fields.only(&[&common[..], &own].concat())?;
            fields.whole("prefix_padding_ms")?;
            if fields.whole("idle_timeout_ms")?.is_some() {
                let why = "the agent speaks when it is spoken to";
                return Err(fields.unsupported("idle_timeout_ms", why));
            }
            let pause = fields.whole("silence_duration_ms")?.unwrap_or(PAUSE_MS);
            if !(20..=10_000).contains(&pause) {
                let why = "is not between 20 and 10000";
                return Err(fields.invalid("silence_duration_ms", why));
            }
            let threshold = fields.number("threshold", 0.0, 1.0)?;
            (Ends::Pause(pause), threshold)
        }
        "semantic_vad" => {
            fields.only(&[&common[..], &["eagerness"]].concat())?;
            let eagerness = match fields.text("eagerness")?.unwrap_or("auto") {
                "auto" => Eagerness::Auto,
                "low" => Eagerness::Low,
                "medium" => Eagerness::Medium,
                "high" => Eagerness::High,
                _unknown => {
                    let why = "is none of low, medium, high, auto";
                    return Err(fields.invalid("eagerness", why));
                }
            };
            (Ends::Judged(eagerness), None)
        }
        _unknown => return Err(fields.invalid("type", "is none of server_vad, semantic_vad")),
    };
    Ok(Detection {
        ends,
        threshold,
        answers,
        interrupts,
    })
}
