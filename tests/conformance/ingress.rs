//! What comes in: once, in order, understood or refused, and never more than was meant.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use rspp_host::{
    Event, Notice,
    node::{NodeContext, Step},
};
use rspp_proto::{
    Epoch, ErrorCode, Extension, IdempotencyKey, Lane, MetricSample, Monotonic, Payload,
    PipelineVersion, SampleIndex, SessionId, Speaker, TextChunk, WallClock,
    abi::{
        ControlSignal, Emitter, Encoding, EventRecord, Record, Signal, Stamp as AbiStamp,
        UnknownEventAction, Wire as Codec,
    },
    metric::Metric,
    spec::{EdgeSpec, JitterProfile, PortType},
};
use rspp_provider_api::scripted::{ScriptedLlm, ScriptedStt};
use rspp_tests::{
    call::{Cast, LONG, REPLY, tone},
    nodes::{Probes, custom, get},
    wire::{Opening, Over, Wire},
};
use rspp_timeline::Entry;
use rspp_transport_api::{Frame, Ingress, Link, Stamped, audio::to_bytes};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn keyed(key: &str, event: Ingress) -> Ingress {
    Ingress::Stamped(Box::new(Stamped {
        epoch: None,
        key: Some(IdempotencyKey::new(key).unwrap()),
        event,
    }))
}

/// Notes of that name, as recorded.
fn notes<'a>(entries: &'a [Entry], name: &str) -> Vec<&'a EventRecord> {
    let events = entries.iter().filter_map(|entry| match entry {
        Entry::Event(event) => Some(&event.record),
        _another_entry => None,
    });
    events
        .filter(
            |event| matches!(&event.payload, Some(Payload::Debug(note)) if note.message == name),
        )
        .collect()
}

fn errors(entries: &[Entry]) -> Vec<String> {
    let events = entries.iter().filter_map(|entry| match entry {
        Entry::Event(event) => event.record.payload.clone(),
        _another_entry => None,
    });
    events
        .filter_map(|payload| match payload {
            Payload::Error(note) if note.error_code == ErrorCode::SchemaValidationError => {
                // F-131: it says where.
                assert_eq!(
                    note.node_id.map(|it| it.to_string()).as_deref(),
                    Some("ingress")
                );
                Some(note.message)
            }
            _another_payload => None,
        })
        .collect()
}

fn turns(over: &Over) -> Vec<&str> {
    let turns = over.report.turns.iter();
    turns.map(|turn| turn.user_text.as_str()).collect()
}

/// F-158, P7: what a client sends again, because no answer came or the link was lost, has one effect;
/// that it was sent again is kept, with what it repeats.
#[tokio::test(start_paused = true)]
async fn an_event_that_is_sent_again_has_one_effect() {
    let wire = Wire::open(&Cast::default(), Opening::default()).await;
    let text = |key: &str, text: &str| keyed(key, Ingress::Text(text.to_owned()));
    wire.send(text("order-1", "one pizza"));
    wire.send(text("order-1", "one pizza"));
    wire.until(Signal::Close, 1).await;
    wire.send(Ingress::Link(Link::Reconnecting));
    tokio::time::sleep(ms(2_000)).await;
    wire.send(Ingress::Link(Link::Back));
    wire.send(text("order-1", "one pizza"));
    tokio::time::sleep(ms(1_000)).await;
    wire.send(text("order-2", "and a salad"));
    wire.until(Signal::Close, 2).await;
    let over = wire.end().await;
    assert_eq!(turns(&over), ["one pizza", "and a salad"]);
    let first = notes(&over.entries, "client_event");
    let again = notes(&over.entries, "duplicate_event");
    assert_eq!((first.len(), again.len()), (2, 2));
    for repetition in again {
        let envelope = &repetition.envelope;
        assert_eq!(envelope.idempotency_key, first[0].envelope.idempotency_key);
        assert_eq!(
            envelope.causal_parent_id.as_ref(),
            Some(&first[0].envelope.event_id)
        );
    }
}

/// F-158, P1: a cancel that is sent again late does not cancel the turn after the one that it meant.
#[tokio::test(start_paused = true)]
async fn a_cancel_that_is_sent_again_spares_the_next_turn() {
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, LONG])),
        ..Cast::default()
    };
    let wire = Wire::open(&cast, Opening::default()).await;
    wire.types("tell me a story");
    wire.until(Signal::PlaybackStarted, 1).await;
    wire.send(keyed("stop-1", Ingress::Cancel));
    wire.until(Signal::Close, 1).await;
    wire.types("another one");
    wire.until(Signal::PlaybackStarted, 2).await;
    wire.send(keyed("stop-1", Ingress::Cancel));
    wire.until(Signal::Close, 2).await;
    let over = wire.end().await;
    assert_eq!(over.endings(), ["cancelled", "commit"]);
}

// --- records ---------------------------------------------------------------------------------

fn stamp(session: &str) -> AbiStamp {
    AbiStamp {
        session_id: SessionId::new(session).unwrap(),
        turn_id: None,
        pipeline_version: PipelineVersion::new("client-1").unwrap(),
        authority_epoch: Epoch::FIRST,
        ordinal: 77,
        runtime_sequence: 1,
        transport_sequence: Some(1),
        at: Monotonic::ZERO,
        wall: WallClock(0),
    }
}

fn text(text: &str) -> Payload {
    Payload::Text(Box::new(TextChunk::whole(Speaker::User, 0, text)))
}

fn record(session: &str, payload: Payload) -> EventRecord {
    EventRecord::new(stamp(session), Lane::Data, payload)
}

fn bytes(record: impl Into<Record>, encoding: Encoding) -> Ingress {
    let bytes = Codec::new(encoding).encode(&record.into()).unwrap();
    Ingress::Record {
        encoding,
        bytes: bytes.into(),
    }
}

/// A record whose payload no build knows: a scent, written as any other.
fn unheard_of(encoding: Encoding) -> Ingress {
    let Ingress::Record { bytes, .. } = bytes(record("call", text("x")), encoding) else {
        panic!("a record")
    };
    let mut bytes = bytes.to_vec();
    let known = b"type";
    let at = bytes.windows(4).position(|name| name == known).unwrap() + known.len();
    let named = bytes[at..].windows(4).position(|name| name == b"text");
    let named = at + named.unwrap();
    bytes[named..named + 4].copy_from_slice(b"odor");
    Ingress::Record {
        encoding,
        bytes: bytes.into(),
    }
}

fn taking(action: UnknownEventAction) -> Opening {
    let mut opening = Opening::default();
    opening.pipeline.connection.unknown_event_action = action;
    opening
}

fn foreign(wire: &mut Wire) -> Vec<Bytes> {
    let mut passed = Vec::new();
    while let Ok(notice) = wire.notices.try_recv() {
        if let Notice::Foreign(foreign) = notice {
            passed.extend(foreign.raw.map(|(_, raw)| raw));
        }
    }
    passed
}

/// F-020: an event of an unknown type is dropped, passed through as it came, or refused, as the session
/// says; each time it leaves an audit, and the conversation goes on.
#[tokio::test(start_paused = true)]
async fn an_unknown_event_is_treated_as_the_session_says() {
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        for (action, passed, refused, named) in [
            (UnknownEventAction::Drop, 0, 0, "drop"),
            (UnknownEventAction::PassThrough, 1, 0, "pass_through"),
            (UnknownEventAction::Reject, 0, 1, "reject"),
        ] {
            let mut wire = Wire::open(&Cast::default(), taking(action)).await;
            let sent = unheard_of(encoding);
            wire.send(sent.clone());
            wire.types("hello");
            wire.until(Signal::Close, 1).await;
            let Ingress::Record { bytes, .. } = sent else {
                panic!("a record")
            };
            assert_eq!(foreign(&mut wire), vec![bytes; passed], "{named}");
            let over = wire.end().await;
            assert_eq!(over.endings(), ["commit"]);
            let errors = errors(&over.entries);
            assert_eq!(errors.len(), refused, "{named}: {errors:?}");
            assert!(
                errors
                    .iter()
                    .all(|error| error.contains("`odor` is not known"))
            );
            let audits = notes(&over.entries, "unknown_event");
            let [audit] = audits[..] else {
                panic!("{named}: {audits:?}")
            };
            let Some(Payload::Debug(note)) = &audit.payload else {
                panic!("a note")
            };
            assert_eq!(note.fields["action"], named);
            assert_eq!(note.fields["payload_type"], "odor");
            assert!(audit.envelope.causal_parent_id.is_some());
        }
    }
}

/// F-020, F-158: a record that is understood has the effect of what it says, once for its key.
#[tokio::test(start_paused = true)]
async fn a_record_is_taken_for_what_it_says() {
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let wire = Wire::open(&Cast::default(), Opening::default()).await;
        let mut typed = record("call", text("good morning"));
        typed.envelope.idempotency_key = Some(IdempotencyKey::new("morning").unwrap());
        wire.send(bytes(typed.clone(), encoding));
        wire.until(Signal::Close, 1).await;
        wire.send(bytes(typed, encoding));
        tokio::time::sleep(ms(1_000)).await;
        let over = wire.end().await;
        assert_eq!(turns(&over), ["good morning"]);
    }
}

/// NF-013: what is no record, or not this session's, or not a client's to say, is refused with what is
/// wrong with it, and changes nothing.
#[tokio::test(start_paused = true)]
async fn malformed_input_changes_nothing() {
    let wire = Wire::open(&Cast::default(), Opening::default()).await;
    let raw = |bytes: &'static [u8], encoding| Ingress::Record {
        encoding,
        bytes: Bytes::from_static(bytes),
    };
    let stop = ControlSignal::new(Signal::Stop, Emitter::CancellationManager, stamp("call"));
    let mut theirs = text("hello");
    if let Payload::Text(text) = &mut theirs {
        text.speaker = Speaker::Agent;
    }
    let frame = |bytes: usize| {
        Ingress::Frame(Frame {
            sequence: 1,
            position: SampleIndex(0),
            epoch: None,
            pcm: vec![0; bytes].into(),
        })
    };
    let wrong = [
        raw(b"", Encoding::Json),
        raw(b"{\"schema_version\":", Encoding::Json),
        raw(b"\xc1\xc1\xc1", Encoding::MessagePack),
        raw(&[b'['; 10_000], Encoding::Json),
        bytes(record("another", text("hello")), Encoding::Json),
        bytes(stop, Encoding::Json),
        bytes(record("call", theirs), Encoding::Json),
        frame(0),
        frame(641),
        frame(64_000),
        keyed("twice", keyed("stamped", Ingress::Text("hello".to_owned()))),
    ];
    let count = wrong.len();
    for ingress in wrong {
        wire.send(ingress);
    }
    wire.types("hello");
    wire.until(Signal::Close, 1).await;
    let over = wire.end().await;
    assert_eq!(turns(&over), ["hello"]);
    let errors = errors(&over.entries);
    assert_eq!(errors.len(), count, "{errors:#?}");
    assert!(errors.iter().all(|error| error.len() < 400), "{errors:#?}");
}

/// NF-013: noise, and records that were bent on the way, change nothing: whatever is in them, the call
/// goes on as if they had not come, or as what they still say.
#[tokio::test(start_paused = true)]
async fn noise_changes_nothing() {
    let wire = Wire::open(&Cast::default(), Opening::default()).await;
    let mut seed = 7u64;
    let mut dice = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize
    };
    let pressed = Payload::Extension(Box::new(Extension {
        name: "telephony.dtmf".to_owned(),
        fields: serde_json::json!({ "digit": "5" }),
    }));
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let Ingress::Record { bytes: sound, .. } = bytes(record("call", pressed.clone()), encoding)
        else {
            panic!("a record")
        };
        for nth in 0..300 {
            let bytes: Vec<u8> = if nth % 2 == 0 {
                (0..dice() % 200).map(|_| dice() as u8).collect()
            } else {
                let mut bent = sound.to_vec();
                for _ in 0..=(dice() % 3) {
                    let at = dice() % bent.len();
                    bent[at] = dice() as u8;
                }
                bent
            };
            wire.send(Ingress::Record {
                encoding,
                bytes: bytes.into(),
            });
            tokio::time::sleep(ms(5)).await;
        }
    }
    wire.types("hello");
    wire.until(Signal::Close, 1).await;
    let over = wire.end().await;
    assert_eq!(turns(&over), ["hello"]);
    assert_eq!(over.endings(), ["commit"]);
    assert!(errors(&over.entries).len() > 300);
}

/// F-020, F-089: a key that the user pressed reaches the node that asked for whatever comes in, and
/// subscribers, once for its idempotency key.
#[tokio::test(start_paused = true)]
async fn an_extension_reaches_nodes_and_subscribers() {
    let mut probes = Probes::default();
    let keypad = probes.add("keypad", |_nth, cx: &mut NodeContext, event: Event| {
        if matches!(event.payload, Payload::Extension(_)) {
            cx.settle_input();
        }
        Step::OK
    });
    let mut opening = Opening::default();
    opening.pipeline.nodes.push(custom("keypad"));
    opening.pipeline.edges.push(EdgeSpec {
        id: None,
        from: rspp_proto::NodeId::new("ingress").unwrap(),
        to: rspp_proto::NodeId::new("keypad").unwrap(),
        carries: PortType::Any,
        when: None,
        buffer: None,
    });
    opening.configure = Box::new(probes.install());
    let mut wire = Wire::open(&Cast::default(), opening).await;
    let pressed = Payload::Extension(Box::new(Extension {
        name: "telephony.dtmf".to_owned(),
        fields: serde_json::json!({ "digit": "5" }),
    }));
    let pressed = record("call", pressed);
    wire.send(bytes(pressed.clone(), Encoding::Json));
    let again = keyed("digit-5", bytes(pressed, Encoding::Json));
    wire.send(again.clone());
    wire.send(again);
    tokio::time::sleep(ms(500)).await;
    let mut seen = 0;
    while let Ok(notice) = wire.notices.try_recv() {
        if let Notice::Event(event) = notice
            && let Some(Payload::Extension(extension)) = event.payload
        {
            assert_eq!(extension.name, "telephony.dtmf");
            seen += 1;
        }
    }
    assert_eq!(seen, 2);
    assert_eq!(get(&keypad.events), 2);
    wire.end().await;
}

// --- frames ----------------------------------------------------------------------------------

/// What the network does to a frame.
struct Network {
    profile: JitterProfile,
    /// Most that 99 of 100 frames may be off.
    max_p99_ms: u64,
    /// Frames that are sent, speech among the first.
    frames: usize,
    /// How late frame `n` is, in milliseconds; `None` if it is lost.
    late: fn(u64) -> Option<u64>,
}

impl Network {
    /// Three seconds over a network that is held to nothing.
    fn of(profile: JitterProfile, late: fn(u64) -> Option<u64>) -> Self {
        Self {
            profile,
            max_p99_ms: 200,
            frames: 150,
            late,
        }
    }
}

/// A second of speech, and silence, over that network.
async fn speak_over(network: Network) -> Over {
    measured_over(network).await.0
}

/// The same, and what was measured in band meanwhile.
async fn measured_over(network: Network) -> (Over, Vec<MetricSample>) {
    let cast = Cast {
        stt: Arc::new(ScriptedStt::new("stt").utterances(["hello there"])),
        ..Cast::default()
    };
    let mut opening = Opening::default();
    opening.pipeline.connection.jitter = network.profile;
    opening.pipeline.connection.max_mapping_error_p99_ms = network.max_p99_ms;
    opening.pipeline.observe.metrics_every_ms = Some(1_000);
    let wire = Wire::open(&cast, opening).await;
    let mut notices = wire.session.subscribe();
    let listening = tokio::spawn(async move {
        let mut measured = Vec::new();
        while let Ok(notice) = notices.recv().await {
            if let Notice::Event(event) = notice
                && let Some(Payload::Metrics(sample)) = event.payload
            {
                measured.push(*sample);
            }
        }
        measured
    });
    let mut samples = vec![0; 320 * 10];
    samples.extend(tone(ms(1_000)));
    samples.resize(320 * network.frames, 0);
    let mut frames: Vec<_> = samples
        .chunks(320)
        .zip(0u64..)
        .filter_map(|(samples, n)| Some((n * 20 + (network.late)(n)?, n, to_bytes(samples))))
        .collect();
    frames.sort_by_key(|(due, n, _)| (*due, *n));
    let began = tokio::time::Instant::now();
    for (due, sequence, pcm) in frames {
        tokio::time::sleep_until(began + ms(due)).await;
        wire.send(Ingress::Frame(Frame {
            sequence,
            position: SampleIndex(sequence * 320),
            epoch: None,
            pcm,
        }));
    }
    wire.until(Signal::Close, 1).await;
    (wire.end().await, listening.await.unwrap())
}

fn breaks(over: &Over) -> usize {
    let signals = over.signals().into_iter();
    signals.filter(|signal| *signal == "discontinuity").count()
}

/// F-087: a network that changes the order of frames and sends some twice costs nothing but the time
/// that they are late.
#[tokio::test(start_paused = true)]
async fn frames_out_of_order_are_heard_in_order() {
    let over = speak_over(Network::of(JitterProfile::LatencyFirst, |n| {
        Some(if n % 5 == 2 { 35 } else { 0 })
    }))
    .await;
    assert_eq!(turns(&over), ["hello there"]);
    assert_eq!(over.report.turns[0].agent_text_played, REPLY);
    let media = over.report.line.media.unwrap();
    assert_eq!((media.delivered, media.lost, media.late), (150, 0, 0));
    assert!(
        media.reordered > 20 && media.longest_held_ms <= 40,
        "{media:?}"
    );
    assert_eq!(breaks(&over), 0);
}

/// F-087, NF-018: lost frames are waited for as long as the profile says and then heard as silence, so
/// that the user's media time goes on; each gap is a discontinuity of the user's audio.
#[tokio::test(start_paused = true)]
async fn lost_frames_are_gaps_and_not_the_end() {
    let over = speak_over(Network::of(JitterProfile::LatencyFirst, |n| {
        (n % 20 != 15).then_some(0)
    }))
    .await;
    assert_eq!(turns(&over), ["hello there"]);
    let media = over.report.line.media.unwrap();
    assert_eq!((media.delivered, media.lost), (143, 7));
    assert!(media.longest_held_ms <= 40, "{media:?}");
    assert_eq!(breaks(&over), 7);
    let signal = over.entries.iter().find_map(|entry| match entry {
        Entry::Signal(signal) if signal.signal == Signal::Discontinuity => Some(signal),
        _another_entry => None,
    });
    let signal = signal.unwrap();
    assert_eq!(
        signal.reason.as_ref().unwrap().as_str(),
        "sync_domain_partial_loss"
    );
    assert_eq!(signal.emitted_by, Emitter::SyncIntegrity);
    assert!(signal.envelope.discontinuity_id.is_some());
}

/// F-054: the profile that favours accuracy hears what the one that favours latency gives up, and
/// answers later for it.
#[tokio::test(start_paused = true)]
async fn the_profile_trades_latency_for_accuracy() {
    let late = |n: u64| Some(if n % 10 == 3 { 150 } else { 0 });
    let fast = speak_over(Network::of(JitterProfile::LatencyFirst, late)).await;
    let accurate = speak_over(Network::of(JitterProfile::AccuracyFirst, late)).await;
    let (quick, whole) = (
        fast.report.line.media.unwrap(),
        accurate.report.line.media.unwrap(),
    );
    assert_eq!((quick.late, quick.lost), (15, 15));
    assert_eq!((whole.late, whole.lost), (0, 0));
    assert!(quick.longest_held_ms <= 40, "{quick:?}");
    assert!((100..=240).contains(&whole.longest_held_ms), "{whole:?}");
    assert!(breaks(&fast) > 0 && breaks(&accurate) == 0);
}

/// NF-018: a sender whose clock runs away is tied to the runtime's clock anew, which is said; within the
/// bound nothing is.
#[tokio::test(start_paused = true)]
async fn a_clock_that_runs_away_is_tied_anew() {
    let over = speak_over(Network::of(JitterProfile::AccuracyFirst, |n| {
        Some(if n < 100 { n / 2 } else { 400 })
    }))
    .await;
    assert_eq!(turns(&over), ["hello there"]);
    let media = over.report.line.media.unwrap();
    assert_eq!((media.lost, media.rebases), (0, 1));
    assert!(
        (40..=60).contains(&media.media_runtime_mapping_error_ms),
        "{media:?}"
    );
    assert_eq!(breaks(&over), 1);
}

/// NF-018: how far media time is off where it is told from the runtime's clock is measured and held to
/// the bound that the pipeline sets: what is beyond is said, in band, as a note and as a degradation, and
/// corrected without a break of media time; what is within is measured and nothing else.
#[tokio::test(start_paused = true)]
async fn a_mapping_that_is_off_is_said_and_corrected() {
    // One early frame, which all others are told from.
    let late = |n: u64| Some(if n == 0 { 0 } else { 80 });
    let held = |max_p99_ms| Network {
        max_p99_ms,
        frames: 1_200,
        ..Network::of(JitterProfile::AccuracyFirst, late)
    };
    for (max_p99_ms, verdicts) in [(50, &["beyond", "within"][..]), (80, &[])] {
        let (over, samples) = measured_over(held(max_p99_ms)).await;
        assert_eq!(turns(&over), ["hello there"]);
        let told = notes(&over.entries, "media_runtime_mapping_error_ms");
        let told: Vec<_> = told
            .iter()
            .filter_map(|event| match &event.payload {
                Some(Payload::Debug(note)) => Some(note.fields["verdict"].clone()),
                _another_payload => None,
            })
            .collect();
        assert_eq!(told, verdicts);
        let degraded = over.report.degraded.iter().map(|it| it.reason.as_str());
        let degraded: Vec<_> = degraded.collect();
        let beyond = usize::from(!verdicts.is_empty());
        assert_eq!(degraded, vec!["media_runtime_mapping_error"; beyond]);
        let signals = over.signals().into_iter();
        let said = signals.filter(|signal| *signal == "degrade").count();
        assert_eq!(said, beyond);
        let media = over.report.line.media.unwrap();
        assert_eq!((media.lost, media.rebases, breaks(&over)), (0, 0, 0));
        assert_eq!(media.mapping_beyond_bound, beyond as u64);
        assert_eq!(media.media_runtime_mapping_error_ms, 80);
        let mapping = samples
            .iter()
            .filter(|sample| sample.name == Metric::MappingError.as_str());
        let measured: Vec<_> = mapping.map(|sample| sample.value).collect();
        let expected: &[f64] = if beyond == 1 {
            &[80.0, 0.0]
        } else {
            &[80.0; 2]
        };
        assert_eq!(measured, expected);
    }
}
