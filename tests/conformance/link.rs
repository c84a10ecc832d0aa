//! The connection: silence, stall and loss are three things, and none of them loses a conversation that
//! comes back.

use std::{sync::Arc, time::Duration};

use rspp_proto::{Monotonic, abi::Signal};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Cast, LONG, first, says, tone},
    wire::{Opening, Wire},
};
use rspp_timeline::Entry;
use rspp_transport_api::{Ingress, Link, TransportKind, audio::to_bytes};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn talkative() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG])),
        ..Cast::default()
    }
}

/// The connection's signals, with their reasons.
fn line_signals(entries: &[Entry]) -> Vec<(&'static str, String)> {
    let of_the_line = TransportKind::Websocket.signals();
    let signals = entries.iter().filter_map(|entry| match entry {
        Entry::Signal(signal) if of_the_line.contains(&signal.signal) => Some(signal),
        _another_entry => None,
    });
    signals
        .map(|signal| {
            let reason = signal.reason.as_ref();
            (
                signal.signal.as_str(),
                reason.map_or_else(String::new, ToString::to_string),
            )
        })
        .collect()
}

fn names(entries: &[Entry]) -> Vec<&'static str> {
    let signals = line_signals(entries).into_iter();
    signals.map(|(name, _)| name).collect()
}

fn at(entries: &[Entry], wanted: Signal, nth: usize) -> u64 {
    let signals = entries.iter().filter_map(|entry| match entry {
        Entry::Signal(signal) if signal.signal == wanted => Some(signal),
        _another_entry => None,
    });
    let found = signals
        .map(|signal| signal.envelope.runtime_timestamp_ms)
        .nth(nth);
    found.unwrap_or_else(|| panic!("no {nth}. {wanted}"))
}

/// F-091, P17: a link that comes back within the cleanup period finds its reply where it was: nothing
/// was said to nobody, and nothing is left out.
#[tokio::test(start_paused = true)]
async fn a_reply_waits_for_a_link_that_comes_back() {
    let mut builder = Builder::new(&talkative(), vec![says(first())]);
    builder.script.hang_up_after = ms(10_000);
    let client = builder.client();
    let call = builder.start().await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(ms(1_000)).await;
    client.send(Ingress::Link(Link::Reconnecting)).unwrap();
    tokio::time::sleep(ms(3_000)).await;
    client.send(Ingress::Link(Link::Back)).unwrap();
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, LONG);
    assert_eq!(
        names(&ended.entries),
        [
            "connected",
            "reconnecting",
            "connected",
            "disconnected",
            "ended"
        ]
    );
    let heard = ended.heard()[0];
    let spoken = ms(60) * LONG.len() as u32;
    assert!(!heard.cut);
    assert!(heard.length() >= spoken + ms(2_900), "{:?}", heard.length());
    assert!(heard.length() <= spoken + ms(3_200), "{:?}", heard.length());
}

/// F-091, F6: a link that does not come back is given up after the configured time: `disconnected`,
/// then `stall`, then the turn is aborted.
#[tokio::test(start_paused = true)]
async fn a_link_that_does_not_come_back_is_given_up() {
    let mut opening = Opening::default();
    opening.pipeline.connection.cleanup_ms = 2_000;
    let wire = Wire::open(&talkative(), opening).await;
    wire.types("tell me a story");
    wire.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(ms(500)).await;
    wire.send(Ingress::Link(Link::Lost));
    let taken = wire.peer.taken();
    let peer = wire.peer.clone();
    let over = wire.end_by_itself().await;
    let gone = "transport_disconnect_or_stall";
    assert_eq!(over.endings(), [gone]);
    assert_eq!(
        over.report.ended,
        "the connection was lost and did not come back"
    );
    let none = String::new;
    assert_eq!(
        line_signals(&over.entries),
        [
            ("connected", none()),
            ("disconnected", none()),
            ("disconnected", gone.to_owned()),
            ("stall", gone.to_owned()),
            ("ended", none()),
        ]
    );
    let signals = over.signals();
    assert!(
        signals.ends_with(&["disconnected", "stall", "abort", "close", "ended"]),
        "{signals:?}"
    );
    let waited =
        at(&over.entries, Signal::Disconnected, 1) - at(&over.entries, Signal::Disconnected, 0);
    assert!((2_000..2_010).contains(&waited), "{waited}");
    assert!(peer.taken() <= taken + 1, "nobody is there to hear it");
    let report = &over.report.turns[0];
    assert!(LONG.starts_with(&report.agent_text_played));
    assert!(report.agent_text_played.len() < LONG.len() / 2);
}

/// lifecycle.md §6: the user who hangs up is not waited for.
#[tokio::test(start_paused = true)]
async fn hanging_up_ends_the_call_at_once() {
    let wire = Wire::open(&talkative(), Opening::default()).await;
    wire.types("tell me a story");
    wire.until(Signal::PlaybackStarted, 1).await;
    let over = wire.end().await;
    assert_eq!(over.endings(), ["transport_disconnect_or_stall"]);
    assert_eq!(
        names(&over.entries),
        ["connected", "disconnected", "stall", "ended"]
    );
    let took = at(&over.entries, Signal::Ended, 0) - at(&over.entries, Signal::Disconnected, 0);
    assert!(took <= 1, "{took}");
}

/// transports.md §1: a telephone line has no way back, and never says that it tries.
#[tokio::test(start_paused = true)]
async fn a_telephone_line_does_not_reconnect() {
    let opening = Opening {
        kind: TransportKind::Telephony,
        ..Opening::default()
    };
    let wire = Wire::open(&Cast::default(), opening).await;
    wire.until(Signal::Connected, 1).await;
    wire.send(Ingress::Link(Link::Reconnecting));
    wire.until(Signal::Disconnected, 1).await;
    let over = wire.end().await;
    assert!(
        !TransportKind::Telephony
            .signals()
            .contains(&Signal::Reconnecting)
    );
    assert_eq!(
        names(&over.entries),
        ["connected", "disconnected", "disconnected", "ended"]
    );
}

/// F6: without any audio for a while `silence` is said, once, until something is heard again. Quiet
/// audio is no silence of the line.
#[tokio::test(start_paused = true)]
async fn silence_is_said_when_nothing_is_heard() {
    let mut opening = Opening::default();
    opening.pipeline.connection.silence_after_ms = 1_000;
    let wire = Wire::open(&Cast::default(), opening).await;
    for _ in 0..100 {
        wire.send(Ingress::Audio(to_bytes(&[0; 320])));
        tokio::time::sleep(ms(20)).await;
    }
    assert_eq!(wire.signals(), [Signal::LeaseIssued, Signal::Connected]);
    tokio::time::sleep(ms(5_000)).await;
    wire.send(Ingress::Audio(to_bytes(&[0; 320])));
    tokio::time::sleep(ms(500)).await;
    let over = wire.end().await;
    assert_eq!(
        names(&over.entries),
        ["connected", "silence", "connected", "disconnected", "ended"]
    );
    let silent = at(&over.entries, Signal::Silence, 0) - at(&over.entries, Signal::Connected, 0);
    assert!((2_980..=3_000).contains(&silent), "{silent}");
}

/// F6, P2: a peer that takes nothing for a while stalls; when it takes output again the reply goes on,
/// and what it had no room for was not heard.
#[tokio::test(start_paused = true)]
async fn a_stalled_peer_may_recover() {
    let wire = Wire::open(&talkative(), Opening::default()).await;
    wire.types("tell me a story");
    wire.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(ms(500)).await;
    wire.peer.refuses_one_of(1);
    wire.until(Signal::Stall, 1).await;
    tokio::time::sleep(ms(2_000)).await;
    wire.peer.refuses_one_of(0);
    wire.until(Signal::PlaybackCompleted, 1).await;
    let over = wire.end().await;
    assert_eq!(over.endings(), ["commit"]);
    assert_eq!(
        names(&over.entries),
        ["connected", "stall", "connected", "disconnected", "ended"]
    );
    let stalled =
        at(&over.entries, Signal::Stall, 0) - at(&over.entries, Signal::PlaybackStarted, 0);
    assert!((1_480..=1_520).contains(&stalled), "{stalled}");
    assert!(over.report.line.unplayed >= 50);
    assert!(over.report.turns[0].agent_text_played.len() < LONG.len());
}

/// F6: a stall that does not end takes the session with it.
#[tokio::test(start_paused = true)]
async fn a_stall_without_end_is_given_up() {
    let mut opening = Opening::default();
    opening.pipeline.connection.stall_cleanup_ms = 3_000;
    let wire = Wire::open(&talkative(), opening).await;
    wire.peer.refuses_one_of(1);
    wire.types("tell me a story");
    let over = wire.end_by_itself().await;
    assert_eq!(over.endings(), ["transport_disconnect_or_stall"]);
    assert_eq!(over.report.ended, "the peer took no output");
    assert_eq!(
        names(&over.entries),
        ["connected", "stall", "disconnected", "stall", "ended"]
    );
    assert_eq!(over.report.turns[0].agent_text_played, "");
}

/// P23: audio that has waited too long is dropped and counted, not played late: after a long outage the
/// reply goes on with what is made now.
#[tokio::test(start_paused = true)]
async fn audio_that_has_become_too_old_is_not_played() {
    let mut opening = Opening::default();
    opening.pipeline.connection.max_output_age_ms = 5_000;
    let wire = Wire::open(&talkative(), opening).await;
    wire.types("tell me a story");
    wire.until(Signal::PlaybackStarted, 1).await;
    wire.send(Ingress::Link(Link::Reconnecting));
    tokio::time::sleep(ms(8_000)).await;
    wire.send(Ingress::Link(Link::Back));
    let taken = wire.peer.taken();
    wire.until(Signal::PlaybackCompleted, 1).await;
    assert_eq!(
        wire.peer.taken(),
        taken,
        "what is eight seconds old is heard"
    );
    let over = wire.end().await;
    assert_eq!(over.endings(), ["commit"]);
    let aged = over.report.line.aged;
    assert!(aged >= 250, "{aged}");
    let notices = over.entries.iter().filter_map(|entry| match entry {
        Entry::Signal(signal) if signal.signal == Signal::DropNotice => signal.seq_range,
        _another_entry => None,
    });
    let noticed: u64 = notices.map(|range| range.end - range.start + 1).sum();
    assert!(noticed >= aged, "every lost frame is in a notice");
    let report = &over.report.turns[0];
    assert!(report.dropped.values().sum::<u64>() >= aged);
    assert!(
        report.agent_text_played.len() < 20,
        "what was dropped was not heard"
    );
}

/// P23: with a peer that plays slower than the agent speaks, replies do not come later and later.
#[tokio::test(start_paused = true)]
async fn a_slow_peer_makes_no_reply_later_than_the_one_before() {
    let wire = Wire::open(&Cast::default(), Opening::default()).await;
    wire.peer.refuses_one_of(4);
    for nth in 1..=5 {
        wire.types("and then");
        wire.until(Signal::PlaybackCompleted, nth).await;
    }
    let over = wire.end().await;
    let first_audio: Vec<_> = over
        .report
        .turns
        .iter()
        .filter_map(|turn| turn.first_audio_ms)
        .collect();
    assert_eq!(first_audio.len(), 5);
    assert!(
        first_audio.iter().all(|late| *late <= 100.0),
        "{first_audio:?}"
    );
    assert!(over.report.line.unplayed > 100);
}

/// NF-018: what a session says is in the order of its clock.
#[tokio::test(start_paused = true)]
async fn signals_are_in_the_order_of_the_clock() {
    let mut builder = Builder::new(&talkative(), vec![says(first())]);
    builder.script.utterances[0].audio = tone(ms(800));
    let ended = builder.hold().await;
    let times: Vec<_> = ended
        .entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Signal(signal) => {
                Some(Monotonic::from_millis(signal.envelope.runtime_timestamp_ms))
            }
            _another_entry => None,
        })
        .collect();
    assert!(times.len() > 10 && times.is_sorted(), "{times:?}");
}

/// P29: what leaves for the peer leaves one frame every 20 ms, on one clock, through interruptions and
/// pauses of the line; the session says how many left and that none was late. A peer that is slow is
/// told apart from a clock that is.
#[tokio::test(start_paused = true)]
async fn frames_leave_on_one_clock_and_are_counted() {
    let wire = Wire::open(&talkative(), Opening::default()).await;
    wire.types("tell me a story");
    wire.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(ms(1_000)).await;
    wire.types("another one");
    wire.until(Signal::PlaybackCompleted, 1).await;
    let times = wire.peer.times();
    let peer = wire.peer.clone();
    let over = wire.end().await;
    assert_eq!(over.endings(), ["cancelled", "commit"]);
    let gaps = times.windows(2).map(|two| two[1] - two[0]);
    // Between the two replies nothing is said.
    let pauses = gaps.clone().filter(|gap| *gap > ms(20)).count();
    assert!(pauses <= 1, "{pauses}");
    let early = gaps.clone().filter(|gap| *gap < ms(20)).count();
    assert!(
        early <= 1,
        "{early} frames left sooner than 20 ms after another"
    );
    let line = over.report.line;
    assert_eq!(line.left, peer.taken());
    assert_eq!((line.left_late, line.latest_ms), (0, 0));
    assert_eq!(over.report.underruns, 0);
}
