//! Records as bytes: old bytes still decode, and new bytes are the old ones.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, where a panic is the answer"
)]

use std::fmt::Write as _;

use rspp_proto::{
    AudioChunk, EdgeId, Epoch, Extension, Lane, Monotonic, Payload, SampleIndex, SampleRate,
    Speaker, TextChunk, TurnNumber, WallClock,
    abi::{
        ControlSignal, DecodeError, Decoded, Emitter, EncodeError, Encoding, EventRecord,
        MAX_RECORD_BYTES, MediaTime, Record, Signal, Stamp, UnknownEventAction, Wire,
    },
    reason,
};
use serde_json::{Value, json};

const MESSAGE_PACK: Wire = Wire::new(Encoding::MessagePack);
const JSON: Wire = Wire::new(Encoding::Json);

fn stamp() -> Stamp {
    Stamp {
        session_id: "s-1".parse().unwrap(),
        turn_id: Some(TurnNumber::FIRST.id()),
        pipeline_version: "p-1".parse().unwrap(),
        authority_epoch: Epoch::FIRST,
        ordinal: 7,
        runtime_sequence: 7,
        transport_sequence: Some(3),
        at: Monotonic::from_millis(1_500),
        wall: WallClock(1_800_000_000_000),
    }
}

fn audio(samples: usize) -> Record {
    let chunk = AudioChunk::pcm16(SampleRate::HZ_16000, vec![1; 2 * samples].into());
    EventRecord::new(stamp(), Lane::Data, Payload::AudioChunk(chunk))
        .at(MediaTime::SampleIndex(SampleIndex(480)))
        .into()
}

fn text() -> Record {
    let chunk = TextChunk {
        speaker: Speaker::User,
        text: "good morning".into(),
        segment: 0,
        revision: 2,
        is_final: true,
        confidence: Some(0.5),
        language: Some("en".into()),
    };
    EventRecord::new(stamp(), Lane::Data, Payload::Text(Box::new(chunk))).into()
}

fn drop_notice() -> Record {
    ControlSignal::new(Signal::DropNotice, Emitter::EdgeBufferManager, stamp())
        .on_edge(EdgeId::new("tts->egress:audio").unwrap(), Lane::Data)
        .because(reason::QUEUE_PRESSURE_DROP)
        .dropping(100, 120)
        .into()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[track_caller]
fn golden(record: &Record, message_pack: &str, json: &str) {
    let decoded = Decoded::Record(Box::new(record.clone()));
    assert_eq!(hex(&MESSAGE_PACK.encode(record).unwrap()), message_pack);
    assert_eq!(MESSAGE_PACK.decode(&unhex(message_pack)).unwrap(), decoded);
    assert_eq!(
        String::from_utf8(JSON.encode(record).unwrap()).unwrap(),
        json
    );
    assert_eq!(JSON.decode(json.as_bytes()).unwrap(), decoded);
}

/// F-021, F-029: bytes written by v1.0.
#[test]
fn bytes_of_version_1_0_are_read_and_written_unchanged() {
    golden(
        &audio(2),
        include_str!("golden/audio.hex").trim(),
        include_str!("golden/audio.json").trim(),
    );
    golden(
        &text(),
        include_str!("golden/text.hex").trim(),
        include_str!("golden/text.json").trim(),
    );
    golden(
        &drop_notice(),
        include_str!("golden/drop_notice.hex").trim(),
        include_str!("golden/drop_notice.json").trim(),
    );
}

/// Field names cost what the codec's documentation says, and not more.
#[test]
fn a_frame_of_audio_stays_small() {
    let size = MESSAGE_PACK.encode(&audio(320)).unwrap().len();
    assert!((640..1_280).contains(&size), "20 ms take {size} bytes");
}

/// F-030
#[test]
fn encodings_are_negotiated_by_the_offers_order() {
    let (pack, json) = (
        Encoding::MessagePack.media_type(),
        Encoding::Json.media_type(),
    );
    assert_eq!(
        Encoding::negotiate(["text/html", json, pack]),
        Some(Encoding::Json)
    );
    assert_eq!(
        Encoding::negotiate([pack, json]),
        Some(Encoding::MessagePack)
    );
    assert_eq!(Encoding::negotiate(["application/x-protobuf"]), None);
}

fn as_json(record: &Record) -> Value {
    serde_json::to_value(record).unwrap()
}

fn packed(value: &Value) -> Vec<u8> {
    rmp_serde::to_vec_named(value).unwrap()
}

/// F-021
#[test]
fn another_major_is_refused_with_what_to_do() {
    for (version, why) in [
        (
            "v2.0",
            "schema_version: version v2.0 is not read here; upgrade this reader",
        ),
        ("v1.9", "upgrade this reader, or have the writer write v1.0"),
        ("v0.9", "convert the recording to v1.0"),
    ] {
        let mut value = as_json(&text());
        value["schema_version"] = version.into();
        // What a future version may look like is not known, only that it says its version.
        value["from_the_future"] = json!({ "a": 1 });
        for error in [
            JSON.decode(value.to_string().as_bytes()).unwrap_err(),
            MESSAGE_PACK.decode(&packed(&value)).unwrap_err(),
        ] {
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}

fn unknown_event() -> Value {
    let mut value = as_json(&text());
    value["payload"] = json!({ "type": "video_frame", "body": { "width": 640 } });
    value
}

/// F-020
#[test]
fn unknown_events_are_dropped_passed_or_refused_and_always_noted() {
    for (wire, bytes) in [
        (JSON, unknown_event().to_string().into_bytes()),
        (MESSAGE_PACK, packed(&unknown_event())),
    ] {
        let Err(DecodeError::UnknownType(audit)) = wire.decode(&bytes) else {
            panic!("unknown events are refused unless someone says otherwise");
        };
        assert_eq!(audit.payload_type, "video_frame");
        assert_eq!(audit.bytes, bytes.len());
        assert_eq!(audit.envelope.event_id.as_str(), "evt/s-1/turn-0001/000007");

        let dropping = wire.with_unknown_events(UnknownEventAction::Drop);
        let Decoded::Dropped { audit } = dropping.decode(&bytes).unwrap() else {
            panic!("is dropped");
        };
        assert_eq!(audit.action, UnknownEventAction::Drop);

        let passing = wire.with_unknown_events(UnknownEventAction::PassThrough);
        let Decoded::PassThrough { audit, raw } = passing.decode(&bytes).unwrap() else {
            panic!("is passed on");
        };
        assert_eq!(audit.action, UnknownEventAction::PassThrough);
        assert_eq!(raw, bytes, "passed on untouched");
    }
}

/// An unknown payload is no way around the rules of the envelope.
#[test]
fn unknown_events_still_obey_the_envelope() {
    let passing = JSON.with_unknown_events(UnknownEventAction::PassThrough);
    let refused = |field: &str, value: Value| {
        let mut event = unknown_event();
        event[field] = value;
        passing
            .decode(event.to_string().as_bytes())
            .unwrap_err()
            .to_string()
    };
    assert!(refused("authority_epoch", Value::Null).contains("authority_epoch"));
    assert!(refused("lane", "ControlLane".into()).contains("not on the control lane"));
    assert!(refused("colour", "blue".into()).contains("unknown field `colour`"));
    assert!(refused("session_id", "".into()).contains("must not be blank"));
}

#[test]
fn unknown_signals_are_never_dropped_in_silence() {
    let mut value = as_json(&drop_notice());
    value["signal"] = "self_destruct".into();
    for action in [UnknownEventAction::Drop, UnknownEventAction::PassThrough] {
        let error = JSON
            .with_unknown_events(action)
            .decode(value.to_string().as_bytes());
        assert!(matches!(error, Err(DecodeError::UnknownSignal(name)) if name == "self_destruct"));
    }
}

#[test]
fn what_is_too_large_is_neither_read_nor_written() {
    let large = audio(MAX_RECORD_BYTES / 2);
    assert!(matches!(
        MESSAGE_PACK.encode(&large),
        Err(EncodeError::TooLarge {
            limit: MAX_RECORD_BYTES,
            ..
        })
    ));
    assert!(matches!(
        JSON.decode(&vec![b' '; MAX_RECORD_BYTES + 1]),
        Err(DecodeError::TooLarge { .. })
    ));
}

#[test]
fn what_breaks_a_rule_is_not_written() {
    let Record::Signal(mut signal) = drop_notice() else {
        unreachable!("a drop notice is a signal")
    };
    signal.reason = None;
    let error = JSON.encode(&signal.into()).unwrap_err();
    assert_eq!(error.to_string(), "reason: required for drop_notice");
}

#[test]
fn trailing_bytes_and_broken_records_are_refused_with_the_field() {
    for (wire, trailing) in [(JSON, &b"{}"[..]), (MESSAGE_PACK, &[0xc0][..])] {
        let mut bytes = wire.encode(&text()).unwrap();
        bytes.extend_from_slice(trailing);
        assert!(matches!(
            wire.decode(&bytes),
            Err(DecodeError::Malformed { .. })
        ));
    }
    let mut value = as_json(&text());
    value["payload"]["body"]["speaker"] = "ghost".into();
    let error = JSON.decode(value.to_string().as_bytes()).unwrap_err();
    assert!(error.to_string().contains("payload"), "{error}");
    assert!(error.to_string().contains("ghost"), "{error}");
}

#[test]
fn a_signal_and_an_event_cannot_be_mixed() {
    let mixed = |field: &str, value: Value, base: Record| {
        let mut record = as_json(&base);
        record[field] = value;
        JSON.decode(record.to_string().as_bytes())
            .unwrap_err()
            .to_string()
    };
    let payload = json!({ "type": "audio_end" });
    assert!(mixed("payload", payload, drop_notice()).contains("carries none"));
    assert!(mixed("reason", "x".into(), text()).contains("`reason` without a signal"));
    assert!(mixed("emitted_by", Value::Null, drop_notice()).contains("without emitted_by"));
}

#[test]
fn deep_nesting_is_refused_before_it_hurts() {
    let mut fields = json!(1);
    for _ in 0..100 {
        fields = json!([fields]);
    }
    let extension = Extension {
        name: "test.deep".to_owned(),
        fields,
    };
    let record = Record::from(EventRecord::new(
        stamp(),
        Lane::Data,
        Payload::Extension(Box::new(extension)),
    ));
    let bytes = MESSAGE_PACK.encode(&record).unwrap();
    assert!(MESSAGE_PACK.decode(&bytes).is_err());
}

proptest::proptest! {
    /// Bytes from anywhere are a record or an error, never a panic.
    #[test]
    fn reading_never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = MESSAGE_PACK.decode(&bytes);
        let _ = JSON.decode(&bytes);
    }

    /// A single flipped byte of a real record never panics, and never passes a broken rule.
    #[test]
    fn a_flipped_byte_is_still_a_record_or_an_error(at in 0_usize..400, flip in 1_u8..) {
        for wire in [MESSAGE_PACK, JSON] {
            let mut bytes = wire.encode(&drop_notice()).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            if let Ok(Decoded::Record(record)) = wire.decode(&bytes) {
                record.validate().unwrap();
            }
        }
    }

    /// F-029: what is written is what is read.
    #[test]
    fn records_read_back_as_written(
        sequence in 0..u64::MAX / 2,
        confidence in proptest::option::of(0.0_f32..=1.0),
        words in ".{0,80}",
        pts in proptest::num::u64::ANY,
    ) {
        let stamp = Stamp { runtime_sequence: sequence, ..stamp() };
        let chunk = TextChunk {
            speaker: Speaker::Agent,
            text: words.into(),
            segment: 1,
            revision: 1,
            is_final: false,
            confidence,
            language: None,
        };
        let record: Record =
            EventRecord::new(stamp, Lane::Data, Payload::Text(Box::new(chunk)))
                .at(MediaTime::PtsMs(pts))
                .into();
        for wire in [MESSAGE_PACK, JSON] {
            let bytes = wire.encode(&record).unwrap();
            let decoded = wire.decode(&bytes).unwrap();
            proptest::prop_assert_eq!(decoded, Decoded::Record(Box::new(record.clone())));
        }
    }
}
