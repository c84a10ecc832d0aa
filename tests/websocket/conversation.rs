//! What a client says and hears.

use std::{sync::Arc, time::Duration};

use rspp_proto::{Speaker, TurnNumber, abi::Signal};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::call::{Cast, LONG, REPLY, tone};
use rspp_transport_api::TurnNews;
use rspp_websocket::{
    protocol::{ClientMessage, Hello, Keyed, OfTurn, Played, ServerMessage},
    testing::{Client, sound, typed},
};
use tokio::time::Instant;

use crate::line::{Line, is_of_pace};

fn hello() -> Hello {
    Hello {
        events: true,
        ..Hello::default()
    }
}

fn talkative() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG])),
        ..Cast::default()
    }
}

fn is_turn(message: &ServerMessage) -> bool {
    matches!(message, ServerMessage::Turn(_))
}

fn turn(messages: &[ServerMessage]) -> &TurnNews {
    let turns = messages.iter().filter_map(|message| match message {
        ServerMessage::Turn(turn) => Some(&**turn),
        _another_message => None,
    });
    turns.last().expect("a turn is over")
}

fn texts(messages: &[ServerMessage], of: Speaker) -> Vec<&str> {
    let said = messages.iter().filter_map(|message| match message {
        ServerMessage::Text(said) if said.speaker == of && said.is_final => Some(&*said.text),
        _another_message => None,
    });
    said.collect()
}

/// F-084, F-023, F-042: audio in, partial and final words out, the reply by sound and by words, with its
/// beginning and end; then the call is hung up and the session over.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_speaks_and_is_answered() {
    let line = Line::open(&Cast::default()).await;
    let mut client = Client::begin(line.address, hello()).await;
    client.speak_slowly(&tone(Duration::from_secs(1))).await;
    client
        .say(ClientMessage::EndOfUtterance(Keyed::default()))
        .await;
    let came = client.until(is_turn).await;
    assert_eq!(texts(&came, Speaker::User), ["hello there"]);
    let is_partial = |it: &ServerMessage| matches!(it, ServerMessage::Text(said) if said.speaker == Speaker::User && !said.is_final);
    assert!(
        came.iter().any(is_partial),
        "words came while the user spoke"
    );
    assert_eq!(texts(&came, Speaker::Agent).join(" "), REPLY);
    let of = OfTurn {
        turn: TurnNumber::FIRST,
    };
    let start = came
        .iter()
        .position(|it| *it == ServerMessage::AudioStart(of));
    let end = came
        .iter()
        .position(|it| *it == ServerMessage::AudioEnd(of));
    let sounds = |it: &ServerMessage| matches!(it, ServerMessage::Audio(_));
    let first = came.iter().position(sounds);
    assert!(start < first && first < end, "{start:?} {first:?} {end:?}");
    assert!(sound(&came).len() > 16_000, "a second of speech at least");
    let turn = turn(&came);
    assert_eq!(turn.outcome, "commit");
    assert_eq!(turn.user_text, "hello there");
    assert_eq!(turn.heard_text, REPLY);
    assert!(
        turn.anchors_ms.contains_key("tts_first_audio_ts"),
        "{turn:?}"
    );
    client.bye().await;
    client.until(|_| false).await;
    assert_eq!(client.closed.as_ref().unwrap().0, 1000);
    line.close().await;
}

/// F-084, F-025, F-033, P5: speaking over the agent clears what is under way: nothing of the turn comes after
/// `clear`, and what was cut off is told.
#[tokio::test(flavor = "multi_thread")]
async fn speaking_over_the_agent_silences_it() {
    let line = Line::open(&talkative()).await;
    let mut client = Client::begin(line.address, hello()).await;
    client.say(typed("tell me a story")).await;
    let mut frames = 0;
    let mut came = client
        .until(|message| {
            frames += usize::from(matches!(message, ServerMessage::Audio(_)));
            frames == 40
        })
        .await;
    // Not longer than it takes to be heard: the rest would open a second interruption.
    client.speak_slowly(&tone(Duration::from_millis(500))).await;
    came.extend(client.until(is_turn).await);
    let turn = turn(&came).clone();
    assert_eq!(turn.outcome, "abort");
    assert!(LONG.starts_with(&turn.heard_text));
    assert!(!turn.heard_text.is_empty() && turn.heard_text.len() < LONG.len());
    let cleared = |it: &ServerMessage| matches!(it, ServerMessage::Clear(of) if of.turn.0 == 1);
    let cleared = came.iter().position(cleared).expect("it was cleared");
    assert_eq!(sound(&came[cleared..]).len(), 0, "nothing of it after that");
    let signals = came.iter().filter_map(|it| match it {
        ServerMessage::Signal(told) => Some(told.signal),
        _another_message => None,
    });
    let signals: Vec<Signal> = signals.collect();
    for signal in [Signal::BargeIn, Signal::Cancel, Signal::Abort] {
        assert!(signals.contains(&signal), "{signals:?}");
    }
    client.bye().await;
    line.close().await;
}

/// P2: what is cut off is what the client says its user has not heard, not what was sent.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_heard_is_what_the_client_played() {
    let line = Line::open(&talkative()).await;
    let heard = async |receipt: Option<u64>| {
        let mut client = Client::begin(line.address, hello()).await;
        client.say(typed("tell me a story")).await;
        let mut frames = 0;
        client
            .until(|message| {
                frames += usize::from(matches!(message, ServerMessage::Audio(_)));
                frames == 100
            })
            .await;
        if let Some(ms) = receipt {
            let turn = TurnNumber::FIRST;
            client.say(ClientMessage::Played(Played { turn, ms })).await;
        }
        client.say(ClientMessage::Cancel(Keyed::default())).await;
        let came = client.until(is_turn).await;
        client.bye().await;
        turn(&came).heard_text.clone()
    };
    let sent = heard(None).await;
    let played = heard(Some(600)).await;
    assert!(played.len() < sent.len() / 2, "{played:?} of {sent:?}");
    assert!(sent.starts_with(&played));
    let nothing = heard(Some(0)).await;
    assert_eq!(nothing, "");
    line.close().await;
}

/// F-091, P17: the socket breaks in the middle of a reply; whoever comes back hears the rest of it, and
/// nothing twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_goes_on_after_a_broken_socket() {
    let line = Line::open(&talkative()).await;
    let mut client = Client::begin(line.address, hello()).await;
    client.say(typed("tell me a story")).await;
    let mut frames = 0;
    let mut came = client
        .until(|message| {
            frames += usize::from(matches!(message, ServerMessage::Audio(_)));
            frames == 30
        })
        .await;
    let resume = client.resume();
    drop(client);
    tokio::time::sleep(Duration::from_millis(700)).await;
    let protocols = ["rspp.v1.msgpack"];
    let mut client = Client::connect(line.address, &protocols, &[])
        .await
        .unwrap();
    let back = Hello {
        resume: Some(resume),
        ..hello()
    };
    let ready = client.hello(back).await;
    assert_eq!((ready.connection, ready.lost), (2, 0));
    came.extend(client.until(is_turn).await);
    let turn = turn(&came);
    assert_eq!((turn.outcome.as_str(), &*turn.heard_text), ("commit", LONG));
    // 60 ms a character is what the scripted voice takes.
    let spoken = sound(&came).len() as f64 / 16_000.0;
    let wanted = LONG.len() as f64 * 0.06;
    assert!((spoken - wanted).abs() < 0.1, "{spoken} s of {wanted} s");
    client.bye().await;
    line.close().await;
}

/// F-030, F-086: two clients in two encodings, one server, one answer.
#[tokio::test(flavor = "multi_thread")]
async fn both_encodings_carry_the_same_conversation() {
    let line = Line::open(&Cast::default()).await;
    let mut answers = Vec::new();
    for protocol in ["rspp.v1.json", "rspp.v1.msgpack"] {
        let client = Client::connect(line.address, &[protocol], &[]).await;
        let mut client = client.unwrap();
        client.hello(hello()).await;
        client.say(typed("good morning")).await;
        let came = client.until(is_turn).await;
        let signals = came.iter().filter_map(|it| match it {
            ServerMessage::Signal(told) => Some(told.signal),
            _another_message => None,
        });
        answers.push((
            texts(&came, Speaker::Agent).join(" "),
            sound(&came),
            signals
                .filter(|it| *it != Signal::Connected && !is_of_pace(*it))
                .collect::<Vec<_>>(),
        ));
        client.bye().await;
    }
    assert_eq!(answers[0], answers[1]);
    line.close().await;
}

/// F-033: from the client's cancel to silence, as the client sees it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_is_silence_at_once() {
    let line = Line::open(&talkative()).await;
    let mut client = Client::begin(line.address, hello()).await;
    client.say(typed("tell me a story")).await;
    client
        .until(|message| matches!(message, ServerMessage::Audio(_)))
        .await;
    client.say(ClientMessage::Cancel(Keyed::default())).await;
    let asked = Instant::now();
    client
        .until(|message| matches!(message, ServerMessage::Clear(_)))
        .await;
    let took = asked.elapsed();
    assert!(took < Duration::from_millis(500), "{took:?}");
    client.bye().await;
    line.close().await;
}
