//! One conversation over two transports.

use std::{collections::BTreeMap, time::Duration};

use rspp_host::SessionRequest;
use rspp_proto::{
    EventType, SampleRate, SessionId, TenantId, abi::Signal, control::Versions, spec::PipelineSpec,
};
use rspp_tests::call::{Cast, bindings, says, tone};
use rspp_timeline::{Entry, MemoryRecording, Options, Recorder};
use rspp_transport_api::loopback::{self, Script, Start};
use rspp_websocket::{
    protocol::{Hello, ServerMessage},
    testing::Client,
};

use crate::line::{Line, is_of_pace};

/// How long the user waits before the first word, and after the reply before the second.
const PAUSE: Duration = Duration::from_millis(400);

/// What a session has said of itself and of its turns, without when.
#[derive(Debug, PartialEq)]
struct Course {
    /// Control signals in order: whose turn, which, by whom, why, of which pipeline and under which epoch. How far a
    /// queue filled up is not among them: that depends on what else the machine did.
    signals: Vec<[String; 6]>,
    /// What each node emitted of each turn: type and payload class, in the order that it began to. What developers are
    /// told is not among it: a frame that came late on a busy machine is.
    events: BTreeMap<(String, String), Vec<String>>,
    /// How each turn ended, and what was said and heard in it.
    turns: Vec<[String; 5]>,
}

/// How long each turn was open, in milliseconds.
fn lengths(recording: &MemoryRecording) -> Vec<u64> {
    let at = |kind: Signal| {
        let entries = recording.entries().into_iter();
        let of_kind = entries.filter(move |entry| entry.signal() == Some(kind));
        of_kind
            .map(|entry| entry.at().as_millis())
            .collect::<Vec<_>>()
    };
    let (open, close) = (at(Signal::TurnOpen), at(Signal::Close));
    open.iter()
        .zip(close)
        .map(|(open, close)| close - open)
        .collect()
}

fn course(recording: &MemoryRecording, turns: Vec<[String; 5]>) -> Course {
    let text = |it: Option<&dyn ToString>| it.map(ToString::to_string).unwrap_or_default();
    let mut signals = Vec::new();
    let mut events: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for entry in recording.entries() {
        let turn = entry.turn_id().map(|it| it as &dyn ToString);
        let turn = text(turn);
        match &entry {
            Entry::Signal(signal) if is_of_pace(signal.signal) => {}
            Entry::Signal(signal) => signals.push([
                turn,
                signal.signal.to_string(),
                format!("{:?}", signal.emitted_by),
                text(signal.reason.as_ref().map(|it| it as &dyn ToString)),
                format!("{:?}", signal.envelope.pipeline_version),
                format!("{:?}", signal.envelope.authority_epoch),
            ]),
            Entry::Event(_) if entry.event_type() == Some(EventType::Debug) => {}
            Entry::Event(event) => {
                let node = entry.node_id().map(|it| it as &dyn ToString);
                let envelope = &event.record.envelope;
                let what = format!("{:?} {:?}", entry.event_type(), envelope.payload_class);
                let of_node = events.entry((turn, text(node))).or_default();
                if !of_node.contains(&what) {
                    of_node.push(what);
                }
            }
            _something_else => {}
        }
    }
    Course {
        signals,
        events,
        turns,
    }
}

/// F-086, F-130: one pipeline behaves alike over two transports: the same words spoken at the same moments give the
/// same signals by the same emitters for the same reasons in the same order, events of the same types at the
/// same nodes, and turns that end alike.
#[tokio::test(flavor = "multi_thread")]
async fn one_conversation_is_the_same_over_loopback_and_a_socket() {
    let cast = Cast::default();
    let (recorder, over_socket) = Recorder::in_memory(Options::default());
    let line = Line::recorded(&cast, vec![recorder]).await;
    let (recorder, over_loopback) = Recorder::in_memory(Options::default());

    let script = Script {
        utterances: vec![
            says(Start::At(PAUSE)),
            says(Start::AfterReply { pause: PAUSE }),
        ],
        sink_rate: SampleRate::HZ_16000,
        ..Script::default()
    };
    let (transport, _line) = loopback::call(script).unwrap();
    let session = line.runtime.open(SessionRequest {
        tenant: TenantId::new("local").unwrap(),
        session: SessionId::new("loopback").unwrap(),
        pipeline: PipelineSpec::simple(),
        policy: None,
        settings: bindings(),
        versions: Versions::default(),
        attributes: BTreeMap::new(),
        transport,
        recorder,
    });
    let report = session.await.unwrap().wait().await.expect("it ends");
    let turns = report.turns.iter().map(|turn| {
        [
            turn.turn_id.to_string(),
            turn.outcome.clone(),
            turn.reason.clone().unwrap_or_default(),
            turn.user_text.clone(),
            turn.agent_text_played.clone(),
        ]
    });
    let by_loopback = course(&over_loopback, turns.collect());

    let hello = Hello {
        events: true,
        ..Hello::default()
    };
    let mut client = Client::begin(line.address, hello).await;
    let mut turns = Vec::new();
    // A microphone that is open all the time.
    let mut waits: Vec<i16> = vec![0; 16 * PAUSE.as_millis() as usize];
    waits.extend(tone(Duration::from_secs(1)));
    let mut waits = waits.chunks(320).map(<[i16]>::to_vec).collect::<Vec<_>>();
    waits.reverse();
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    while turns.len() < 2 {
        tokio::select! {
            biased;
            _ = pace.tick() => {
                let frame = waits.pop().unwrap_or_else(|| vec![0; 320]);
                client.speak(&frame).await;
            }
            message = client.next() => match message.expect("the socket is open") {
                ServerMessage::AudioEnd(_) if turns.is_empty() => {
                    waits.extend(tone(Duration::from_secs(1)).chunks(320).rev().map(<[i16]>::to_vec));
                    waits.extend(vec![vec![0; 320]; PAUSE.as_millis() as usize / 20]);
                }
                ServerMessage::Turn(turn) => turns.push([
                    turn.turn.to_string(),
                    turn.outcome.clone(),
                    turn.reason.clone().unwrap_or_default(),
                    turn.user_text.clone(),
                    turn.heard_text.clone(),
                ]),
                _something_else => {}
            },
        }
    }
    client.bye().await;
    client.until(|_| false).await;
    line.close().await;
    let by_socket = course(&over_socket, turns);

    assert_eq!(by_loopback.turns.len(), 2);
    assert_eq!(by_loopback.turns, by_socket.turns);
    assert_eq!(by_loopback.signals, by_socket.signals);
    assert!(by_loopback.signals.len() > 10, "{by_loopback:?}");
    assert_eq!(by_loopback.events, by_socket.events);
    for speaker in ["", "turn-0001", "turn-0002"] {
        let words = &by_loopback.events[&(speaker.to_owned(), String::new())];
        assert_eq!(words, &["Some(Text) TextRaw"]);
    }
    // Nor do they take longer over one than over the other, as far as a busy machine lets one see.
    let took = [&over_loopback, &over_socket].map(lengths);
    for (one, other) in took[0].iter().zip(&took[1]) {
        assert!(one.abs_diff(*other) < 500, "{took:?}");
    }
    assert_eq!(took.map(|lengths| lengths.len()), [2, 2]);
}
