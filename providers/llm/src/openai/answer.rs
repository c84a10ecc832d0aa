//! An answer being put together: events in, chunks out, without sockets or time.

use std::collections::{BTreeMap, VecDeque};

use rspp_provider_api::{Fault, FinishReason, LlmChunk, ToolCall, Usage};

use super::{
    failure,
    wire::{Event, ToolCallDelta, finish_reason},
};

/// More tool calls than a turn can sensibly make.
const MOST_TOOL_CALLS: usize = 64;
/// Most bytes of all tool calls of an answer.
const MOST_TOOL_BYTES: usize = 256 * 1024;

/// The answer so far.
#[derive(Debug, Default)]
pub(super) struct Answer {
    chunks: VecDeque<LlmChunk>,
    tools: BTreeMap<usize, ToolCall>,
    tool_bytes: usize,
    reason: Option<FinishReason>,
    usage: Option<Usage>,
    cached_tokens: Option<u64>,
    finished: bool,
}

impl Answer {
    /// Takes in an event's data. `private` is what an error's text must not repeat.
    pub(super) fn take(&mut self, data: &str, private: &[&str]) -> Result<(), Fault> {
        if self.finished {
            return Ok(());
        }
        if data.trim() == "[DONE]" {
            self.finish();
            return Ok(());
        }
        // The parser's message would quote what was said.
        let event: Event = serde_json::from_str(data).map_err(|error| {
            Fault::stream(format!("malformed event at column {}", error.column()))
        })?;
        if let Some(error) = event.error.filter(|error| !error.is_null()) {
            return Err(failure::in_stream(&error, private));
        }
        if let Some(usage) = event.usage {
            self.cached_tokens = usage.cached_tokens();
            self.usage = Some(usage.into());
        }
        // One answer was asked for; a server that sends more is heard for its first.
        for choice in event.choices.into_iter().filter(|choice| choice.index == 0) {
            if let Some(delta) = choice.delta {
                if let Some(text) = delta.content.filter(|text| !text.is_empty()) {
                    self.chunks.push_back(LlmChunk::Delta(text));
                }
                for call in delta.tool_calls.unwrap_or_default() {
                    self.add_to_tool_call(call)?;
                }
            }
            if let Some(reason) = choice.finish_reason {
                self.reason = Some(finish_reason(&reason));
                self.complete_tool_calls()?;
            }
        }
        Ok(())
    }

    /// The connection has ended; fine only if the model had.
    pub(super) fn end(&mut self) -> Result<(), Fault> {
        if self.reason.is_none() && !self.finished {
            return Err(Fault::stream("the connection ended before the answer did"));
        }
        self.finish();
        Ok(())
    }

    /// The next chunk.
    pub(super) fn next_chunk(&mut self) -> Option<LlmChunk> {
        self.chunks.pop_front()
    }

    /// Whether all has been taken in.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether the last chunk is about to be handed out.
    pub(super) fn only_end_left(&self) -> bool {
        self.finished && self.chunks.len() == 1
    }

    fn add_to_tool_call(&mut self, delta: ToolCallDelta) -> Result<(), Fault> {
        // Without an index, an id begins a call and its absence goes on with the last one.
        let last = self.tools.last_key_value().map(|(index, _)| *index);
        let index = match (delta.index, &delta.id, last) {
            (Some(index), _, _) => index,
            (None, Some(_), Some(last)) => last.saturating_add(1),
            (None, None, Some(last)) => last,
            (None, _, None) => 0,
        };
        let function = delta.function;
        let (name, arguments) = function.map_or((None, None), |f| (f.name, f.arguments));
        let parts = [&delta.id, &name, &arguments];
        self.tool_bytes += parts.into_iter().flatten().map(String::len).sum::<usize>();
        let call = self.tools.entry(index).or_insert_with(|| ToolCall {
            id: String::new(),
            name: String::new(),
            arguments: String::new(),
        });
        // Ids and names come whole, some servers repeat them; arguments come in pieces.
        if let Some(id) = delta.id.filter(|id| !id.is_empty()) {
            call.id = id;
        }
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            call.name = name;
        }
        call.arguments
            .push_str(arguments.as_deref().unwrap_or_default());
        if self.tools.len() > MOST_TOOL_CALLS || self.tool_bytes > MOST_TOOL_BYTES {
            return Err(Fault::stream("tool calls without end"));
        }
        Ok(())
    }

    fn complete_tool_calls(&mut self) -> Result<(), Fault> {
        for (index, mut call) in std::mem::take(&mut self.tools) {
            if call.name.trim().is_empty() {
                return Err(Fault::stream("a tool call without a name"));
            }
            // Some local servers leave ids out; the index is unique within the answer.
            if call.id.trim().is_empty() {
                call.id = format!("call_{index}");
            }
            if call.arguments.trim().is_empty() {
                "{}".clone_into(&mut call.arguments);
            }
            self.reason = Some(FinishReason::ToolCalls);
            self.chunks.push_back(LlmChunk::ToolCall(call));
        }
        Ok(())
    }

    /// Tokens of the prompt that the server had read before, if it has said so; told once.
    pub(super) fn take_cached_tokens(&mut self) -> Option<u64> {
        self.cached_tokens.take()
    }

    fn finish(&mut self) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        self.chunks.push_back(LlmChunk::Finished {
            reason: self.reason.unwrap_or(FinishReason::Stop),
            usage: self.usage,
        });
    }
}
