use rspp_proto::{
    LeaseToken, Payload, Speaker,
    abi::{Emitter, PayloadClass, Signal},
    spec::{
        RecordingLevel::{self, L0, L1, L2},
        RecordingPolicy, RedactSpec, ReplayMode,
    },
};
use rspp_timeline::{
    Entry, Options, Recorder, Redaction,
    RedactionAction::{self, Allow, Drop, Hash, Mask},
};

use crate::conversation::{Script, attempt, turn};

fn recorded(entry: Entry, level: RecordingLevel, redaction: Redaction) -> Option<Entry> {
    let (recorder, memory) = Recorder::in_memory(Options {
        level,
        redaction,
        ..Options::default()
    });
    recorder.append(entry).unwrap();
    memory.take().pop()
}

/// observability.md §7, row by row.
#[test]
fn each_class_has_its_action_at_each_level() {
    #[track_caller]
    fn check(class: PayloadClass, actions: [RedactionAction; 3]) {
        let redaction = Redaction::default();
        assert_eq!(
            [L0, L1, L2].map(|level| redaction.action(class, level)),
            actions
        );
    }
    check(PayloadClass::AudioRaw, [Drop, Mask, Hash]);
    check(PayloadClass::TextRaw, [Hash, Mask, Mask]);
    check(PayloadClass::Pii, [Hash, Hash, Hash]);
    check(PayloadClass::Phi, [Drop, Hash, Hash]);
    check(PayloadClass::DerivedSummary, [Allow, Allow, Allow]);
    check(PayloadClass::Metadata, [Allow, Allow, Allow]);
}

#[test]
fn full_capture_is_for_l2_and_the_approved_classes_alone() {
    let redaction = Redaction::of(&RecordingPolicy {
        recording_level: L2,
        allowed_replay_modes: [ReplayMode::ReplayDecisions].into(),
        full_capture: [PayloadClass::AudioRaw].into(),
        redact: RedactSpec::default(),
    });
    assert_eq!(redaction.action(PayloadClass::AudioRaw, L2), Allow);
    assert_eq!(redaction.action(PayloadClass::AudioRaw, L1), Mask);
    assert_eq!(redaction.action(PayloadClass::TextRaw, L2), Mask);
}

/// F-073: what was said is not in the recording; that it was said, by whom and when, is.
#[test]
fn text_is_hashed_and_keeps_its_place() {
    let mut script = Script::new();
    script.text(5, None, Speaker::User, "my pin is 1234", true);
    script.text(9, None, Speaker::User, "my pin is 1234", true);
    let hashes: Vec<_> = script
        .entries
        .into_iter()
        .map(|entry| {
            let Some(Entry::Event(event)) = recorded(entry, L0, Redaction::default()) else {
                panic!()
            };
            let json = serde_json::to_string(&event).unwrap();
            assert!(!json.contains("1234") && !json.contains("pin"), "{json}");
            let Some(Payload::Text(chunk)) = event.record.payload else {
                panic!()
            };
            assert_eq!((chunk.speaker, chunk.is_final), (Speaker::User, true));
            let redacted = event.redacted.unwrap();
            assert_eq!((redacted.action, redacted.bytes), (Hash, 14));
            redacted.sha256.unwrap()
        })
        .collect();
    assert_eq!(hashes[0], hashes[1]);
}

#[test]
fn masked_audio_is_silence_of_the_same_length() {
    let mut script = Script::new();
    // Sequence 50: one that L1 keeps.
    for _ in 0..49 {
        script.stamp(None, 0);
    }
    script.audio(5, None, None);
    let entry = script.entries.remove(0);
    let Some(Entry::Event(event)) = recorded(entry, L1, Redaction::default()) else {
        panic!()
    };
    let Some(Payload::AudioChunk(chunk)) = event.record.payload else {
        panic!()
    };
    assert_eq!(chunk.data, vec![0; 640]);
    assert_eq!(event.redacted.unwrap().duration().as_millis(), 20);
}

#[test]
fn captured_provider_text_is_redacted_too() {
    let Some(Entry::Attempt(kept)) =
        recorded(attempt(&turn(1), 200).into(), L0, Redaction::default())
    else {
        panic!()
    };
    assert!(kept.input_payload.unwrap().starts_with("sha256:"));
}

#[test]
fn no_lease_token_is_ever_recorded() {
    let mut script = Script::new();
    let signal = script.signal(0, None, Signal::Connected, Emitter::ConnectionAdapter);
    signal.envelope.lease_token = Some(LeaseToken::new("secret").unwrap());
    let kept = recorded(script.entries.remove(0), L2, Redaction::default()).unwrap();
    assert_eq!(kept.envelope().unwrap().lease_token, None);
}
