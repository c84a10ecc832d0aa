//! A timeline as text: a line an entry for people, a JSON object a line for programs.

mod journal;

use std::{
    fmt::{self, Write as _},
    io::{self, Read, Seek, Write},
};

use rspp_proto::{
    Lane, Monotonic, NodeId, Payload, Speaker, SpeechMark, TurnId,
    abi::{ControlSignal, PayloadClass},
};
use serde_json::json;

use crate::{
    AttemptRecord, Entry, EventEntry, Filter, InvocationOutcome, Item, Redacted, Timeline,
    TurnBaseline,
};

/// Longest text of an event that a line shows, in characters.
const MAX_TEXT: usize = 60;

/// Writes the entries that pass `filter`, one line each: time since the recording began in seconds,
/// turn, lane, who, and what. Control characters in recorded text are escaped.
pub fn text<R: Read + Seek>(
    timeline: &mut Timeline<R>,
    filter: &Filter,
    out: &mut impl Write,
) -> io::Result<()> {
    let began = timeline
        .header()
        .map_or(Monotonic::ZERO, |header| header.started_at);
    for item in timeline {
        let Item { entry, .. } = item?;
        if filter.passes(&entry) {
            writeln!(
                out,
                "{}",
                Line {
                    entry: &entry,
                    began
                }
            )?;
        }
    }
    Ok(())
}

/// Writes the entries that pass `filter` as JSON lines: `offset`, `index`, `kind`, `at_us` and the
/// `entry` with its recorded field names.
pub fn json_lines<R: Read + Seek>(
    timeline: &mut Timeline<R>,
    filter: &Filter,
    out: &mut impl Write,
) -> io::Result<()> {
    for item in timeline {
        let Item {
            offset,
            index,
            entry,
        } = item?;
        if !filter.passes(&entry) {
            continue;
        }
        let line = json!({
            "offset": offset,
            "index": index,
            "kind": entry.kind().as_str(),
            "at_us": entry.at(),
            "entry": entry.to_json()?,
        });
        serde_json::to_writer(&mut *out, &line)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// One entry as a line without its end.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// What to show.
    pub entry: &'a Entry,
    /// What times are shown against.
    pub began: Monotonic,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry, began } = *self;
        let seconds = entry.at().since(began).as_secs_f64();
        let turn = entry.turn_id().map_or("-", TurnId::as_str);
        let lane = match entry.lane() {
            Some(Lane::Control) => "control",
            Some(Lane::Data) => "data",
            Some(Lane::Telemetry) => "telemetry",
            None => "-",
        };
        let who = who(entry);
        write!(
            f,
            "{seconds:>9.3}  {turn:<9}  {lane:<9}  {who:<14}  {}",
            what(entry)
        )
    }
}

/// The graph node, the emitting module, or the provider.
fn who(entry: &Entry) -> &str {
    match entry {
        Entry::Signal(signal) => signal
            .envelope
            .node_id
            .as_ref()
            .map_or(signal.emitted_by.as_str(), NodeId::as_str),
        Entry::Event(event) => event
            .record
            .envelope
            .node_id
            .as_ref()
            .map_or("-", NodeId::as_str),
        Entry::Outcome(outcome) => outcome.emitted_by.as_str(),
        Entry::Attempt(attempt) => attempt.provider_id.as_str(),
        Entry::Invocation(outcome) => outcome.provider_id.as_str(),
        Entry::Handoff(handoff) => handoff.edge_id.as_str(),
        Entry::Level(_) | Entry::Dropped(_) | Entry::Turn(_) => "OR-02",
        Entry::Plan(_) | Entry::Transition(_) | Entry::Journal(_) => "RK-03",
        Entry::Tool(step) => &step.tool,
        Entry::Capture(capture) => capture.what.who(),
        Entry::Playout(_) => "RK-22",
        Entry::Header(_) | Entry::Opening(_) | Entry::Footer(_) => "-",
    }
}

fn what(entry: &Entry) -> String {
    match entry {
        Entry::Header(header) => format!(
            "recording of {}, pipeline {}, by {} ({}), level {:?}",
            header.session_id,
            header.pipeline_version,
            header.runtime,
            header.written_by,
            header.recording_level
        ),
        Entry::Plan(plan) => format!("plan {}", short(&plan.plan_hash)),
        Entry::Signal(signal) => signal_text(signal),
        Entry::Event(event) => event_text(event),
        Entry::Outcome(outcome) => format!(
            "decided {} at {} about {}: {}",
            outcome.outcome_kind, outcome.phase, outcome.scope, outcome.reason
        ),
        Entry::Transition(moved) => {
            let step = moved.step;
            format!(
                "{} -> {} on {}",
                step.from_state, step.to_state, step.trigger
            )
        }
        Entry::Attempt(attempt) => attempt_text(attempt),
        Entry::Invocation(outcome) => invocation_text(outcome),
        Entry::Handoff(handoff) => {
            let waited = handoff
                .downstream_started_at
                .since(handoff.partial_accepted_at);
            let waited = waited.as_millis();
            let revision = handoff.upstream_revision;
            format!(
                "handed over revision {revision} after {waited} ms ({:?})",
                handoff.action
            )
        }
        Entry::Playout(playout) => {
            let ms = |us: u64| us / 1_000;
            let (played, pending) = (ms(playout.played_us), ms(playout.pending_us));
            let end = if playout.is_final { ", the end" } else { "" };
            format!("played {played} ms, {pending} ms pending{end}")
        }
        Entry::Level(change) => {
            let fill = (change.fill * 100.0).round();
            let lag = change.export_lag_ms;
            let (from, to, trigger) = (change.from, change.to, change.trigger);
            format!(
                "recording level {from:?} -> {to:?}, {trigger}: queue {fill} % full, export {lag} ms behind"
            )
        }
        Entry::Dropped(note) => {
            format!(
                "{} details dropped, about {} bytes",
                note.details, note.bytes
            )
        }
        Entry::Turn(turn) => turn_text(turn),
        Entry::Journal(line) => journal::words(&line.line),
        Entry::Tool(step) => {
            let text = step.arguments.as_ref().or(step.result.as_ref());
            let text = text.map_or_else(String::new, |text| format!(": {}", escaped(text)));
            format!(
                "tool call {} {}{text}",
                escaped(&step.call_id),
                step.step.as_str()
            )
        }
        Entry::Opening(opening) => format!(
            "opened for {} under {}, over {}",
            opening.tenant_id, opening.authority_epoch, opening.line.transport
        ),
        Entry::Capture(capture) => capture.what.to_string(),
        Entry::Footer(summary) => format!(
            "closed: {} entries, {} turns, {} accepted, {} complete, {} details omitted, {} dropped",
            summary.entries,
            summary.turns,
            summary.accepted_turns,
            summary.complete_turns,
            summary.details_omitted,
            summary.details_dropped
        ),
    }
}

fn signal_text(signal: &ControlSignal) -> String {
    let mut text = signal.signal.to_string();
    let mut add = |args: fmt::Arguments<'_>| {
        text.write_fmt(args).expect("a String takes everything");
    };
    if let Some(scope) = signal.scope {
        add(format_args!(" of {scope}"));
    }
    if let Some(lane) = signal.target_lane {
        add(format_args!(" {lane}"));
    }
    if let Some(range) = signal.seq_range {
        add(format_args!(" {}..={}", range.start, range.end));
    }
    if let Some(amount) = signal.amount {
        add(format_args!(" of {amount}"));
    }
    if let Some(edge) = &signal.envelope.edge_id {
        add(format_args!(" on {edge}"));
    }
    if let Some(reason) = &signal.reason {
        add(format_args!(": {reason}"));
    }
    escaped(&text)
}

fn event_text(event: &EventEntry) -> String {
    let mut text = match &event.record.payload {
        Some(payload) => payload_text(payload),
        None => match event.record.envelope.payload_class {
            PayloadClass::AudioRaw => "audio".to_owned(),
            PayloadClass::TextRaw => "text".to_owned(),
            class @ (PayloadClass::Pii
            | PayloadClass::Phi
            | PayloadClass::DerivedSummary
            | PayloadClass::Metadata) => class.to_string(),
        },
    };
    if event.record.envelope.late_after_cancel {
        text.push_str(" (late)");
    }
    if let Some(Redacted { action, bytes, .. }) = &event.redacted {
        write!(text, " [{action:?}: {bytes} bytes]").expect("a String takes everything");
    }
    text
}

fn payload_text(payload: &Payload) -> String {
    match payload {
        Payload::AudioChunk(chunk) => {
            let ms = chunk.duration().as_millis();
            format!("audio {ms} ms, {}", chunk.format.sample_rate)
        }
        Payload::AudioEnd => "end of audio".to_owned(),
        Payload::Text(chunk) => {
            let speaker = match chunk.speaker {
                Speaker::User => "user",
                Speaker::Agent => "agent",
            };
            let state = if chunk.is_final { "final" } else { "partial" };
            format!("{speaker} {state}: {}", escaped(&chunk.text))
        }
        Payload::TextEnd => "end of text".to_owned(),
        Payload::Speech(SpeechMark::Started { at }) => format!("speech began at sample {}", at.0),
        Payload::Speech(SpeechMark::Stopped { at }) => format!("speech ended at sample {}", at.0),
        Payload::Speech(SpeechMark::EndOfTurn { at, confidence }) => {
            format!("end of turn at sample {}, confidence {confidence:.2}", at.0)
        }
        Payload::Metrics(sample) => format!("{} = {}", escaped(&sample.name), sample.value),
        Payload::Debug(note) => format!("note: {}", escaped(&note.message)),
        Payload::Error(note) => {
            format!("error {:?}: {}", note.error_code, escaped(&note.message))
        }
        Payload::Extension(extension) => format!("extension {}", escaped(&extension.name)),
    }
}

fn attempt_text(attempt: &AttemptRecord) -> String {
    let (number, class) = (attempt.attempt, attempt.outcome_class.as_str());
    let ms = attempt.latency().as_millis();
    let modality = attempt.modality.as_str();
    let mut text = format!("{modality} attempt {number}: {class} after {ms} ms");
    if let Some(first) = attempt.first_chunk_latency() {
        write!(text, ", first chunk after {} ms", first.as_millis())
            .expect("a String takes everything");
    }
    if !attempt.reason.is_empty() {
        write!(text, " ({})", escaped(&attempt.reason)).expect("a String takes everything");
    }
    text
}

fn invocation_text(outcome: &InvocationOutcome) -> String {
    let (modality, class) = (outcome.modality.as_str(), outcome.outcome_class.as_str());
    let (attempts, ms) = (outcome.attempt_count, outcome.total_invocation_latency_ms);
    let mut text = format!("{modality} call: {class} after {attempts} attempts and {ms} ms");
    for why in [&outcome.reason, &outcome.routing_reason] {
        if !why.is_empty() {
            write!(text, " ({})", escaped(why)).expect("a String takes everything");
        }
    }
    text
}

fn turn_text(turn: &TurnBaseline) -> String {
    let outcome = turn
        .terminal_outcome
        .map_or("no end", |outcome| outcome.as_str());
    let reason = turn
        .terminal_reason
        .as_ref()
        .map(|reason| format!("({reason})"));
    let missing = turn.missing();
    let state = if missing.is_empty() {
        "evidence complete".to_owned()
    } else {
        format!("evidence lacks {}", missing.join(", "))
    };
    format!("{outcome}{}: {state}", reason.unwrap_or_default())
}

fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}

/// Recorded text may not move the cursor of whoever looks at it.
fn escaped(text: &str) -> String {
    let mut shown = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == MAX_TEXT {
            shown.push('…');
            break;
        }
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}
