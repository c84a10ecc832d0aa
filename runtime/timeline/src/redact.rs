//! What of a payload reaches a recording: one decision a class and level (observability.md §7).
//!
//! A redacted event stays where it was in the order of events, so that a recording with and one
//! without payloads differ in payloads alone (F-073).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use rspp_proto::{
    AudioChunk, Codec, Payload, SessionId,
    abi::{EventRecord, PayloadClass},
    spec::{AudioRedaction, RecordingLevel, RecordingPolicy, RedactSpec},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::pii::Patterns;

/// What is done with a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RedactionAction {
    /// It is kept.
    Allow,
    /// Its shape is kept: text becomes asterisks, audio silence of the same length.
    Mask,
    /// A SHA-256 of it is kept, salted with the session, so that equal things of one session can be
    /// told to be equal. Short texts can be guessed from it: it hides them from readers, not from
    /// an attacker with a dictionary.
    Hash,
    /// Nothing is kept but size and duration.
    Drop,
    /// A stand-in is kept; in recordings the same as `Hash`.
    Tokenize,
}

/// What is done with one class of payload; itself evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RedactionDecision {
    /// The class.
    pub payload_class: PayloadClass,
    /// What is done with it.
    pub action: RedactionAction,
}

/// What is left to say about a payload that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redacted {
    /// What was done.
    pub action: RedactionAction,
    /// How large the payload was.
    pub bytes: u64,
    /// How long it played, in microseconds; zero for what is not audio.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub duration_us: u64,
    /// Its salted SHA-256, after `hash` and `tokenize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Redacted {
    /// How long the payload played.
    pub fn duration(&self) -> Duration {
        Duration::from_micros(self.duration_us)
    }
}

/// Decides what of each class a recording holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redaction {
    full_capture: BTreeSet<PayloadClass>,
    /// What is masked in texts that are kept whole.
    patterns: Patterns,
    /// Whether audio becomes silence where it would be kept whole or hashed.
    masks_audio: bool,
}

impl Redaction {
    /// As a plan's recording policy says.
    pub fn of(policy: &RecordingPolicy) -> Self {
        let RedactSpec {
            patterns: _,
            terms: _,
            audio,
        } = &policy.redact;
        Self {
            full_capture: policy.full_capture.clone(),
            patterns: Patterns::of(&policy.redact),
            masks_audio: match audio {
                AudioRedaction::None => false,
                AudioRedaction::Mask => true,
            },
        }
    }

    /// What is masked in texts that are kept whole; `None` if nothing is.
    pub(crate) fn patterns(&self) -> Option<&Patterns> {
        Some(&self.patterns).filter(|patterns| !patterns.is_empty())
    }

    /// Whether texts are kept at `level` as they were said.
    pub(crate) fn keeps_words(&self, level: RecordingLevel) -> bool {
        self.action(PayloadClass::TextRaw, level) == RedactionAction::Allow
            && self.patterns.is_empty()
    }

    /// The action for payloads of `class` recorded at `level`.
    pub fn action(&self, class: PayloadClass, level: RecordingLevel) -> RedactionAction {
        use RecordingLevel::{L0, L1, L2};
        use RedactionAction::{Allow, Drop, Hash, Mask};

        if level == L2 && class == PayloadClass::AudioRaw && self.masks_audio {
            return Mask;
        }
        if level == L2 && self.full_capture.contains(&class) {
            return Allow;
        }
        match (class, level) {
            (PayloadClass::AudioRaw | PayloadClass::Phi, L0) => Drop,
            (PayloadClass::AudioRaw, L1) | (PayloadClass::TextRaw, L1 | L2) => Mask,
            (PayloadClass::AudioRaw, L2)
            | (PayloadClass::TextRaw, L0)
            | (PayloadClass::Pii, L0 | L1 | L2)
            | (PayloadClass::Phi, L1 | L2) => Hash,
            (PayloadClass::DerivedSummary | PayloadClass::Metadata, L0 | L1 | L2) => Allow,
        }
    }

    /// The decisions for a turn that touched `tags`, one a class: OR-02's `redaction_decisions`.
    pub fn decisions(
        &self,
        tags: impl IntoIterator<Item = PayloadClass>,
        level: RecordingLevel,
    ) -> Vec<RedactionDecision> {
        let tags: BTreeSet<_> = tags.into_iter().collect();
        tags.into_iter()
            .map(|payload_class| {
                let action = match self.action(payload_class, level) {
                    // What is personal in it is not kept.
                    RedactionAction::Allow
                        if payload_class == PayloadClass::TextRaw && !self.patterns.is_empty() =>
                    {
                        RedactionAction::Mask
                    }
                    action => action,
                };
                RedactionDecision {
                    payload_class,
                    action,
                }
            })
            .collect()
    }

    /// Reduces `record` to what `level` may hold; says what was taken away, if anything was.
    pub fn apply(&self, record: &mut EventRecord, level: RecordingLevel) -> Option<Redacted> {
        let mut payload = record.payload.take()?;
        let action = self.action(record.envelope.payload_class, level);
        if action == RedactionAction::Allow || !has_content(&payload) {
            let bytes = payload.weight() as u64;
            let found = self
                .patterns()
                .is_some_and(|patterns| mask_found(patterns, &mut payload));
            record.payload = Some(payload);
            return found.then_some(Redacted {
                action: RedactionAction::Mask,
                bytes,
                duration_us: 0,
                sha256: None,
            });
        }
        let mut redacted = Redacted {
            action,
            bytes: payload.weight() as u64,
            duration_us: payload.duration().as_micros() as u64,
            sha256: None,
        };
        record.payload = match action {
            RedactionAction::Allow => Some(payload),
            RedactionAction::Mask => masked(payload),
            RedactionAction::Hash | RedactionAction::Tokenize => {
                let sha256 = digest(&record.envelope.session_id, &payload);
                let kept = stand_in(payload, &sha256);
                redacted.sha256 = Some(sha256);
                kept
            }
            RedactionAction::Drop => None,
        };
        Some(redacted)
    }

    /// Reduces captured provider text in place; the same decision as for `text_raw` events.
    pub(crate) fn apply_to_text(
        &self,
        text: &mut Option<String>,
        salt: &str,
        level: RecordingLevel,
    ) {
        let Some(content) = text else { return };
        *text = match self.action(PayloadClass::TextRaw, level) {
            RedactionAction::Allow => {
                if let Some(patterns) = self.patterns() {
                    patterns.apply(content, true);
                }
                return;
            }
            RedactionAction::Mask => Some(mask(content)),
            RedactionAction::Hash | RedactionAction::Tokenize => {
                Some(format!("sha256:{}", salted(salt, content.as_bytes())))
            }
            RedactionAction::Drop => None,
        };
    }
}

/// Masks what is personal in a payload; whether anything was.
fn mask_found(patterns: &Patterns, payload: &mut Payload) -> bool {
    match payload {
        Payload::Text(chunk) => match patterns.mask(&chunk.text, chunk.is_final) {
            Some(masked) => {
                chunk.text = masked.into();
                true
            }
            None => false,
        },
        Payload::Debug(note) => {
            let mut found = patterns.apply(&mut note.message, true);
            for field in note.fields.values_mut() {
                found |= patterns.apply(field, true);
            }
            found
        }
        Payload::Error(note) => patterns.apply(&mut note.message, true),
        Payload::Extension(extension) => patterns.apply_to_json(&mut extension.fields),
        // Numbers that are measured and sounds have no words.
        Payload::AudioChunk(_)
        | Payload::Metrics(_)
        | Payload::Speech(_)
        | Payload::AudioEnd
        | Payload::TextEnd => false,
    }
}

/// Whether a payload says anything that could be taken away.
fn has_content(payload: &Payload) -> bool {
    match payload {
        Payload::AudioChunk(_)
        | Payload::Text(_)
        | Payload::Metrics(_)
        | Payload::Debug(_)
        | Payload::Error(_)
        | Payload::Extension(_) => true,
        // Where speech began and that a stream ended is order, not content.
        Payload::Speech(_) | Payload::AudioEnd | Payload::TextEnd => false,
    }
}

/// The payload's shape without its content; `None` where the shape cannot be kept.
fn masked(payload: Payload) -> Option<Payload> {
    match payload {
        Payload::AudioChunk(chunk) => silence(&chunk).map(Payload::AudioChunk),
        Payload::Text(mut chunk) => {
            chunk.text = Arc::from(mask(&chunk.text));
            Some(Payload::Text(chunk))
        }
        Payload::Metrics(mut sample) => {
            sample
                .labels
                .values_mut()
                .for_each(|value| *value = mask(value));
            Some(Payload::Metrics(sample))
        }
        Payload::Debug(mut note) => {
            note.message = mask(&note.message);
            note.fields
                .values_mut()
                .for_each(|value| *value = mask(value));
            Some(Payload::Debug(note))
        }
        Payload::Error(mut note) => {
            note.message = mask(&note.message);
            Some(Payload::Error(note))
        }
        Payload::Extension(mut extension) => {
            extension.fields = serde_json::Value::Null;
            Some(Payload::Extension(extension))
        }
        Payload::Speech(_) | Payload::AudioEnd | Payload::TextEnd => Some(payload),
    }
}

/// What stands in for a hashed payload: text keeps speaker, segment and finality.
fn stand_in(payload: Payload, sha256: &str) -> Option<Payload> {
    match payload {
        Payload::Text(mut chunk) => {
            chunk.text = Arc::from(format!("sha256:{sha256}"));
            Some(Payload::Text(chunk))
        }
        Payload::AudioChunk(_)
        | Payload::Metrics(_)
        | Payload::Debug(_)
        | Payload::Error(_)
        | Payload::Extension(_) => None,
        Payload::Speech(_) | Payload::AudioEnd | Payload::TextEnd => Some(payload),
    }
}

/// Silence of the same length; Opus packets do not tell theirs.
fn silence(chunk: &AudioChunk) -> Option<AudioChunk> {
    let quiet = match chunk.format.codec {
        Codec::Pcm16 => 0,
        // Mu-law is inverted: all ones is the smallest positive step.
        Codec::Pcmu => 0xFF,
        // Every other bit of A-law is.
        Codec::Pcma => 0xD5,
        Codec::Opus => return None,
    };
    let data = Bytes::from(vec![quiet; chunk.data.len()]);
    Some(AudioChunk {
        data,
        format: chunk.format,
    })
}

/// Every character but blanks becomes an asterisk.
fn mask(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_whitespace() { c } else { '*' })
        .collect()
}

fn digest(session: &SessionId, payload: &Payload) -> String {
    match payload {
        Payload::AudioChunk(chunk) => salted(session.as_str(), &chunk.data),
        Payload::Text(chunk) => salted(session.as_str(), chunk.text.as_bytes()),
        Payload::Metrics(_)
        | Payload::Debug(_)
        | Payload::Error(_)
        | Payload::Extension(_)
        | Payload::Speech(_)
        | Payload::AudioEnd
        | Payload::TextEnd => {
            let json = serde_json::to_vec(payload).expect("payloads are written in full");
            salted(session.as_str(), &json)
        }
    }
}

fn salted(salt: &str, content: &[u8]) -> String {
    let mut hasher = Sha256::new();
    // The length keeps salt and content apart.
    hasher.update((salt.len() as u64).to_le_bytes());
    hasher.update(salt);
    hasher.update(content);
    format!("{:x}", hasher.finalize())
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(value: &u64) -> bool {
    *value == 0
}
