//! What a client says, read from its JSON.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::fields::{Fields, Problem};

/// Longest id of a client's own, in bytes.
const ID: usize = 128;
/// Longest output of a tool's call, in bytes.
const OUTPUT: usize = 64 << 10;

/// What a client says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ClientEvent {
    /// Sets up its session; the object as it came.
    Update(Map<String, Value>),
    /// Some audio, as the session's format says.
    Append(Bytes),
    Commit,
    Clear,
    Create(NewItem),
    Retrieve(String),
    Delete(String),
    Truncate {
        item: String,
        audio_end_ms: u64,
    },
    /// Asks for an answer, and says whether it is to be spoken, if it does.
    Respond {
        metadata: Value,
        speaks: Option<bool>,
    },
    /// Gives up an answer: this one, or whichever runs.
    Cancel(Option<String>),
}

/// An item that a client adds to the conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewItem {
    pub(super) id: Option<String>,
    /// After which item.
    pub(super) after: Option<String>,
    pub(super) content: NewContent,
}

/// What a client adds to the conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NewContent {
    Message {
        author: Author,
        text: String,
    },
    /// What came of a tool's call.
    Output {
        call: String,
        output: String,
    },
}

/// Whose words an item holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Author {
    User,
    /// Whoever tells the agent what it is.
    System,
}

/// One message: its own id, so that an error can name it, and what it says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Said {
    pub(super) id: Option<String>,
    pub(super) event: Result<ClientEvent, Problem>,
}

/// Reads a message; whatever it is, what is wrong with it can be told.
pub(super) fn read(text: &str) -> Said {
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => {
            let says = format!("the message is not JSON: {error}");
            let event = Err(Problem::new("invalid_json", says));
            return Said { id: None, event };
        }
    };
    let Some(fields) = value.as_object() else {
        let event = Err(Problem::new("invalid_json", "the message is no object"));
        return Said { id: None, event };
    };
    let fields = Fields::top(fields);
    match fields.text("event_id") {
        Ok(id) => Said {
            id: id.map(|id| shortened(id).to_owned()),
            event: event(&fields),
        },
        Err(problem) => Said {
            id: None,
            event: Err(problem),
        },
    }
}

/// What is said of others is said back to them: no more of it than an id has.
fn shortened(id: &str) -> &str {
    &id[..id.floor_char_boundary(ID)]
}

fn event(fields: &Fields<'_>) -> Result<ClientEvent, Problem> {
    let kind = fields.needed("type", fields.text("type")?)?;
    match kind {
        "session.update" => {
            fields.only(&["type", "event_id", "session"])?;
            let session = fields.within("session", |_| Ok(()))?;
            fields.needed("session", session)?;
            let session = fields.get("session").and_then(Value::as_object);
            Ok(ClientEvent::Update(session.cloned().unwrap_or_default()))
        }
        "input_audio_buffer.append" => {
            fields.only(&["type", "event_id", "audio"])?;
            let audio = fields.needed("audio", fields.text("audio")?)?;
            let audio = STANDARD.decode(audio).map_err(|error| {
                let why = format!("is not base64: {error}");
                fields.invalid("audio", &why)
            })?;
            Ok(ClientEvent::Append(audio.into()))
        }
        "input_audio_buffer.commit" => plain(fields, ClientEvent::Commit),
        "input_audio_buffer.clear" => plain(fields, ClientEvent::Clear),
        "conversation.item.create" => create(fields),
        "conversation.item.retrieve" => {
            fields.only(&["type", "event_id", "item_id"])?;
            Ok(ClientEvent::Retrieve(item_id(fields)?))
        }
        "conversation.item.delete" => {
            fields.only(&["type", "event_id", "item_id"])?;
            Ok(ClientEvent::Delete(item_id(fields)?))
        }
        "conversation.item.truncate" => {
            fields.only(&[
                "type",
                "event_id",
                "item_id",
                "content_index",
                "audio_end_ms",
            ])?;
            let item = item_id(fields)?;
            let content = fields.needed("content_index", fields.whole("content_index")?)?;
            if content != 0 {
                return Err(fields.invalid("content_index", "is not 0, the one part there is"));
            }
            let audio_end_ms = fields.needed("audio_end_ms", fields.whole("audio_end_ms")?)?;
            Ok(ClientEvent::Truncate { item, audio_end_ms })
        }
        "response.create" => respond(fields),
        "response.cancel" => {
            fields.only(&["type", "event_id", "response_id"])?;
            let response = fields.text("response_id")?;
            Ok(ClientEvent::Cancel(response.map(str::to_owned)))
        }
        "output_audio_buffer.clear" => Err(Problem::new(
            "unsupported_event",
            "'output_audio_buffer.clear' is for WebRTC and SIP: here the client plays the audio; \
             say 'response.cancel', and 'conversation.item.truncate' for what was heard",
        )
        .at("type")),
        other => {
            let why = format!("'{}' is no event of a client's", shortened(other));
            Err(fields.invalid("type", &why))
        }
    }
}

fn plain(fields: &Fields<'_>, event: ClientEvent) -> Result<ClientEvent, Problem> {
    fields.only(&["type", "event_id"])?;
    Ok(event)
}

fn item_id(fields: &Fields<'_>) -> Result<String, Problem> {
    let id = fields.needed("item_id", fields.text("item_id")?)?;
    Ok(id.to_owned())
}

fn create(fields: &Fields<'_>) -> Result<ClientEvent, Problem> {
    fields.only(&["type", "event_id", "previous_item_id", "item"])?;
    let after = fields.text("previous_item_id")?.map(str::to_owned);
    let item = fields.within("item", |item| {
        let kind = item.needed("type", item.text("type")?)?;
        match kind {
            "message" => message(&item),
            "function_call_output" => output(&item),
            "function_call" => Err(item.unsupported(
                "type",
                "calls are the model's to make; a client says what came of them",
            )),
            "mcp_approval_response" | "mcp_approval_request" | "mcp_call" | "mcp_list_tools" => {
                Err(item.unsupported("type", "MCP is not served"))
            }
            _unknown => Err(item.invalid("type", "is no type of an item")),
        }
    })?;
    let (id, content) = fields.needed("item", item)?;
    Ok(ClientEvent::Create(NewItem { id, after, content }))
}

/// The id that a client has for an item, if it has one.
fn own_id(item: &Fields<'_>) -> Result<Option<String>, Problem> {
    let id = item.text("id")?;
    if id.is_some_and(|id| id.is_empty() || id.len() > ID) {
        let why = format!("has not between 1 and {ID} bytes");
        return Err(item.invalid("id", &why));
    }
    Ok(id.map(str::to_owned))
}

fn output(item: &Fields<'_>) -> Result<(Option<String>, NewContent), Problem> {
    item.only(&["id", "object", "type", "status", "call_id", "output"])?;
    let id = own_id(item)?;
    let call = item.needed("call_id", item.text("call_id")?)?.to_owned();
    let output = item.needed("output", item.text("output")?)?.to_owned();
    if output.len() > OUTPUT {
        let path = item.path("output");
        let says = format!("'{path}' is longer than {OUTPUT} bytes");
        return Err(Problem::new("string_above_max_length", says).at(path));
    }
    Ok((id, NewContent::Output { call, output }))
}

fn message(item: &Fields<'_>) -> Result<(Option<String>, NewContent), Problem> {
    item.only(&["id", "object", "type", "role", "status", "content"])?;
    let id = own_id(item)?;
    let author = match item.needed("role", item.text("role")?)? {
        "user" => Author::User,
        "system" => Author::System,
        "assistant" => {
            return Err(item.unsupported(
                "role",
                "the agent's words are what was heard of it; a client does not write them",
            ));
        }
        _unknown => return Err(item.invalid("role", "is none of user, system, assistant")),
    };
    item.needed("content", item.list("content")?)?;
    let mut texts = Vec::new();
    item.each("content", |part| {
        let kind = part.needed("type", part.text("type")?)?;
        match kind {
            "input_text" => {
                part.only(&["type", "text"])?;
                texts.push(part.needed("text", part.text("text")?)?.trim().to_owned());
                Ok(())
            }
            "input_audio" => Err(part.unsupported(
                "type",
                "audio comes by 'input_audio_buffer.append', as it is spoken",
            )),
            "input_image" => Err(part.unsupported("type", "pictures are not served")),
            _unknown => Err(part.invalid("type", "is not input_text")),
        }
    })?;
    let text = texts.join(" ").trim().to_owned();
    if text.is_empty() {
        return Err(item.invalid("content", "holds no text"));
    }
    Ok((id, NewContent::Message { author, text }))
}

/// What a response may name, but has from its session.
const OF_SESSIONS: [&str; 9] = [
    "instructions",
    "audio",
    "voice",
    "output_audio_format",
    "max_output_tokens",
    "max_response_output_tokens",
    "temperature",
    "prompt",
    "reasoning",
];
/// What else a response may name.
const OF_RESPONSES: [&str; 8] = [
    "input",
    "tools",
    "conversation",
    "output_modalities",
    "modalities",
    "metadata",
    "tool_choice",
    "parallel_tool_calls",
];

fn respond(fields: &Fields<'_>) -> Result<ClientEvent, Problem> {
    fields.only(&["type", "event_id", "response"])?;
    let response = fields.within("response", |response| {
        for name in ["input", "tools"] {
            let is_empty = |list: &Vec<Value>| list.is_empty();
            if response.list(name)?.is_some_and(|list| !is_empty(list)) {
                let why =
                    "is not served: a response answers the conversation, as the pipeline does";
                return Err(response.unsupported(name, why));
            }
        }
        if response.text("conversation")?.unwrap_or("auto") != "auto" {
            let why = "a response outside the conversation is not served";
            return Err(response.unsupported("conversation", why));
        }
        for name in OF_SESSIONS {
            if response.get(name).is_some_and(|value| !value.is_null()) {
                let why = "is the session's to say, before the conversation begins";
                return Err(response.unsupported(name, why));
            }
        }
        let mut wanted = None;
        for name in ["output_modalities", "modalities"] {
            wanted = speaks(&response, name)?.or(wanted);
        }
        response.only(&[&OF_SESSIONS[..], &OF_RESPONSES].concat())?;
        response.within("metadata", |_| Ok(()))?;
        let metadata = response.get("metadata").cloned();
        Ok((metadata.unwrap_or_default(), wanted))
    })?;
    let (metadata, speaks) = response.unwrap_or_default();
    Ok(ClientEvent::Respond { metadata, speaks })
}

/// Whether answers are to be spoken, their words beside them, or only written; `None` if nothing is said.
pub(super) fn speaks(fields: &Fields<'_>, name: &str) -> Result<Option<bool>, Problem> {
    let Some(modalities) = fields.list(name)? else {
        return Ok(None);
    };
    let is_known = |it: &Value| it == "audio" || it == "text";
    if modalities.is_empty() || !modalities.iter().all(is_known) {
        return Err(fields.invalid(name, "has other names than audio and text, or none"));
    }
    Ok(Some(modalities.iter().any(|it| it == "audio")))
}
