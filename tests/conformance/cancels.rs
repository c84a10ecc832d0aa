//! Every cancel has its reason, its mode, its fence, and an account of what it took back.

use std::{sync::Arc, time::Duration};

use rspp_host::CancelTarget;
use rspp_kernel::CancelReason;
use rspp_proto::{
    Lane, Reason, TurnNumber,
    abi::{CancelMode, CancelScope, ControlSignal, Emitter, Signal},
    spec::PipelineSpec,
};
use rspp_provider_api::{
    Fault,
    scripted::{Conduct, Script, ScriptedLlm, ScriptedStt, ScriptedTts},
};
use rspp_tests::{
    call::{Builder, Call, Cast, Ended, LONG, first, over_reply, says},
    frames::{frames_of, numbered, stretches},
};
use rspp_timeline::{CancelEvidence, Entry};
use rspp_transport_api::{Ingress, Outgoing, audio::FRAME, loopback::Start};
use serde_json::json;

/// The first clause of the story, and how long it is heard.
const FIRST_CLAUSE: &str = "Well, let me tell you a very long story.";

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn storyteller() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "All right."])),
        stt: Arc::new(ScriptedStt::new("stt").utterances(["hello there", "wait a moment"])),
        ..Cast::default()
    }
}

fn softly(spec: &mut PipelineSpec) {
    for node in &mut spec.nodes {
        if node.id.as_str() == "tts" {
            node.cancel = CancelMode::Soft;
        }
    }
}

/// What the evidence of a turn says about its cancel.
#[track_caller]
fn evidence(ended: &Ended, turn: u32) -> CancelEvidence {
    let id = rspp_proto::TurnNumber(turn).id();
    let found = ended.entries.iter().find_map(|entry| match entry {
        Entry::Turn(baseline) if baseline.turn_id == id => Some(baseline.cancel.clone()),
        _something_else => None,
    });
    found
        .flatten()
        .unwrap_or_else(|| panic!("no cancel in the evidence of turn {turn}"))
}

#[track_caller]
fn cancels(ended: &Ended) -> Vec<ControlSignal> {
    ended.log.signals_of(Signal::Cancel)
}

/// A call that has been heard for a second.
async fn heard_for_a_second(builder: Builder) -> Call {
    let call = builder.start().await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(ms(1_000)).await;
    call
}

/// F-041: softly, the clause that is being heard ends and no other begins; hard, everything ends now.
/// Signals, evidence and plan say which it was, why, and when the fence fell.
#[tokio::test(start_paused = true)]
async fn a_soft_cancel_ends_with_the_clause_and_a_hard_one_at_once() {
    for mode in [CancelMode::Soft, CancelMode::Hard] {
        let cast = Cast {
            // Both clauses are still being made when the cancel comes.
            tts: Arc::new(ScriptedTts::new("tts").real_time_factor(0.7)),
            ..storyteller()
        };
        let mut builder = Builder::new(&cast, vec![says(first())]);
        if mode == CancelMode::Soft {
            builder = builder.pipeline(softly);
        }
        let call = heard_for_a_second(numbered(builder)).await;
        call.session.cancel(CancelReason::UserCancel).await.unwrap();
        let ended = call.end().await;
        assert_eq!(ended.endings(), ["cancelled"]);
        let clause = frames_of(&cast, FIRST_CLAUSE);
        let numbers: Vec<i16> = stretches(&ended)
            .into_iter()
            .map(|(n, _)| n)
            .filter(|n| *n != 0)
            .collect();
        let whole = (1..=clause).collect::<Vec<_>>();
        let [cancel] = &cancels(&ended)[..] else {
            panic!("one cancel")
        };
        assert_eq!(cancel.mode, Some(mode));
        assert_eq!(
            cancel.reason.as_ref().map(Reason::as_str),
            Some("user_cancel")
        );
        let evidence = evidence(&ended, 1);
        assert_eq!(evidence.cancel_mode, Some(mode));
        assert_eq!(evidence.cancel_reason, cancel.reason);
        let accepted = evidence.cancel_accepted_at.expect("it was accepted");
        let fenced = evidence.cancel_fence_applied_at.expect("a fence fell");
        let took = fenced.since(accepted);
        let plan = ended.entries.iter().find_map(|entry| match entry {
            Entry::Plan(plan) => Some(plan.plan.to_value()),
            _something_else => None,
        });
        let plan = plan.expect("plans are recorded");
        assert_eq!(plan["cancel_mode"], json!(mode));
        match mode {
            CancelMode::Soft => {
                assert_eq!(numbers, whole, "the clause, and nothing of the next");
                assert_eq!(ended.turn(1).agent_text_played, FIRST_CLAUSE);
                assert!(took >= ms(1_300) && took <= ms(1_500), "{took:?}");
                assert_eq!(plan["cancel_modes"]["tts"], "soft");
            }
            CancelMode::Hard => {
                let heard = numbers.len() as u64 * 20;
                assert!((980..=1_060).contains(&heard), "{heard} ms");
                assert!(FIRST_CLAUSE.starts_with(&ended.turn(1).agent_text_played));
                assert!(took <= ms(50), "{took:?}");
                assert_eq!(plan["cancel_modes"], json!({}));
            }
        }
        assert!(!ended.signals_of(1).contains(&"playback_completed"));
        assert!(ended.signals_of(1).contains(&"playback_cancelled"));
    }
}

/// F-041, F-025: an interruption may be soft too: the next turn waits for the clause.
#[tokio::test(start_paused = true)]
async fn the_next_turn_waits_for_a_soft_interruption() {
    let cast = storyteller();
    let said = vec![says(first()), says(over_reply(700))];
    let mut builder = Builder::new(&cast, said).pipeline(softly);
    let mut screen = builder.screen();
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_eq!(ended.turn(1).agent_text_played, FIRST_CLAUSE);
    let heard = ended.heard();
    assert_eq!(heard[0].length(), cast.tts.duration_of(FIRST_CLAUSE));
    assert!(heard[0].ended <= heard[1].began);
    assert_eq!(ended.turn(2).user_text, "wait a moment");
    assert_eq!(cancels(&ended)[0].mode, Some(CancelMode::Soft));
    // What was written of the second clause was shown, and nothing of it is the next turn's.
    let sent = std::iter::from_fn(|| screen.try_recv().ok());
    let shown = sent.filter_map(|sent| match sent {
        Outgoing::Text {
            turn: Some(TurnNumber(1)),
            text,
        } => Some(text.text.to_string()),
        _something_else => None,
    });
    assert_eq!(shown.collect::<Vec<_>>().join(" "), LONG);
    assert_eq!(ended.turn(2).dropped[&Lane::Data], 0);
}

/// F-041: what is in flight is bounded, asking again ends it, and so does the loss of authority.
#[tokio::test(start_paused = true)]
async fn a_soft_cancel_can_still_be_hard() {
    for (how, ending) in [
        ("bound", "cancelled"),
        ("again", "cancelled"),
        ("revoke", "authority_loss"),
        // The cancel was accepted first (T7).
        ("hang up", "cancelled"),
    ] {
        let builder = Builder::new(&storyteller(), vec![says(first())])
            .pipeline(softly)
            .pipeline(move |spec| {
                spec.turns.soft_cancel_ms = if how == "bound" { 300 } else { 3_000 };
            });
        let call = heard_for_a_second(builder).await;
        call.session.cancel(CancelReason::UserCancel).await.unwrap();
        tokio::time::sleep(ms(300)).await;
        match how {
            "again" => drop(call.session.cancel(CancelReason::UserCancel).await),
            "revoke" => call.session.revoke(),
            "hang up" => call.line.hang_up(),
            _nothing_more => {}
        }
        let ended = call.end().await;
        assert_eq!(ended.endings(), [ending], "{how}");
        assert_eq!(cancels(&ended).len(), 1, "{how}");
        let played = &ended.turn(1).agent_text_played;
        assert!(FIRST_CLAUSE.starts_with(played.as_str()), "{how}: {played}");
        assert!(played.len() < FIRST_CLAUSE.len(), "{how}: {played}");
        if how != "hang up" {
            let lasted = ended.heard()[0].length();
            assert!(
                lasted >= ms(1_280) && lasted <= ms(1_360),
                "{how}: {lasted:?}"
            );
        }
    }
}

/// F-039: audio beyond the commit point is heard although its turn is cancelled, to the frame, and the
/// conversation knows it.
#[tokio::test(start_paused = true)]
async fn what_lies_before_the_commit_point_is_heard() {
    let mut heard = Vec::new();
    for ahead_ms in [0, 60, 200] {
        let cast = storyteller();
        let builder = numbered(Builder::new(
            &cast,
            vec![says(first()), says(Start::At(ms(9_000)))],
        ))
        .pipeline(move |spec| spec.turns.commit_ahead_ms = ahead_ms);
        let call = heard_for_a_second(builder).await;
        call.session.cancel(CancelReason::UserCancel).await.unwrap();
        let at = call.line.elapsed();
        let ended = call.end().await;
        assert_eq!(ended.endings(), ["cancelled", "commit"]);
        let reply = ended.heard()[0];
        let after = reply.ended.saturating_sub(at);
        assert!(
            after <= ms(ahead_ms) + FRAME && after + FRAME >= ms(ahead_ms),
            "{after:?} for {ahead_ms} ms"
        );
        let mut numbers: Vec<i16> = stretches(&ended)
            .into_iter()
            .map(|(n, _)| n)
            .filter(|n| *n != 0)
            .collect();
        // The second reply counts from one again.
        let again = numbers[1..].iter().position(|n| *n == 1).unwrap() + 1;
        let second = numbers.split_off(again);
        assert_eq!(numbers, (1..).take(again).collect::<Vec<_>>());
        let whole = frames_of(&cast, "All right.");
        assert_eq!(second, (1..=whole).collect::<Vec<_>>());
        heard.push(numbers.len());
        // The fence fell all the same, at once.
        let evidence = evidence(&ended, 1);
        let fenced = evidence.cancel_fence_applied_at.unwrap();
        assert!(fenced.since(evidence.cancel_accepted_at.unwrap()) <= ms(50));
    }
    assert_eq!([heard[1] - heard[0], heard[2] - heard[0]], [3, 10]);
}

/// F-035: each of the four reasons, in the signal, in the evidence and in the measurements.
#[tokio::test(start_paused = true)]
async fn every_cancel_says_why() {
    let measured = |cast: &Cast, said| {
        Builder::new(cast, said).pipeline(|spec| spec.observe.metrics_every_ms = Some(1_000))
    };
    let interrupted = measured(&storyteller(), vec![says(first()), says(over_reply(700))]);
    let call = heard_for_a_second(measured(&storyteller(), vec![says(first())])).await;
    call.session.cancel(CancelReason::UserCancel).await.unwrap();
    let stopped = call.end().await;
    let stalls = Conduct::good().stalling_after(0);
    let silent = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").script(Script::always(stalls))),
        ..Cast::default()
    };
    let fails = Conduct::good().failing_after(3, Fault::stream("broken pipe"));
    let failing = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").script(Script::always(fails))),
        ..Cast::default()
    };
    let alone = |cast: &Cast| measured(cast, vec![says(first())]);
    for (ended, reason, ending) in [
        (interrupted.hold().await, "barge_in", "cancelled"),
        (stopped, "user_cancel", "cancelled"),
        (alone(&silent).hold().await, "timeout", "budget_exhausted"),
        (
            alone(&failing).hold().await,
            "provider_error",
            "provider_failure",
        ),
    ] {
        assert_eq!(ended.endings()[0], ending);
        let measured = ended.report.measurements.as_ref().expect("it measures");
        assert_eq!(measured.cancels, [(reason.to_owned(), 1)].into());
        let [cancel] = &cancels(&ended)[..] else {
            panic!("{reason}: {:#?}", cancels(&ended))
        };
        assert_eq!(cancel.reason.as_ref().map(Reason::as_str), Some(reason));
        assert_eq!(cancel.scope, Some(CancelScope::Turn));
        assert_eq!(cancel.emitted_by, Emitter::CancellationManager);
        let evidence = evidence(&ended, 1);
        assert_eq!(
            evidence.cancel_reason.as_ref().map(Reason::as_str),
            Some(reason)
        );
        assert!(evidence.cancel_fence_applied_at >= evidence.cancel_accepted_at);
        assert!(evidence.late_outputs_rejected.is_some());
        let signals = ended.steps_of(1);
        let at = signals
            .iter()
            .position(|signal| *signal == "cancel")
            .unwrap();
        let closed = signals.iter().position(|signal| *signal == "close");
        let (told, later) = signals.split_at(closed.unwrap() + 1);
        assert!(told[at..].ends_with(&["abort", "close"]), "{signals:?}");
        // What became of its calls is told of the turn, whenever it comes (F-160).
        assert!(
            later.iter().all(|it| *it == "provider_error"),
            "{signals:?}"
        );
        assert_eq!(!later.is_empty(), reason == "timeout", "{signals:?}");
    }
}

/// event-abi §4: who stops the agent is told apart from who speaks over it, and a client from an
/// operator.
#[tokio::test(start_paused = true)]
async fn a_stop_says_who_asked() {
    let stops = |ended: &Ended| -> Vec<_> {
        let stops = ended.log.signals_of(Signal::Stop).into_iter();
        stops
            .map(|stop| (stop.emitted_by, stop.envelope.turn_id.is_some()))
            .collect()
    };
    let mut builder = Builder::new(&storyteller(), vec![says(first())]);
    let client = builder.client();
    let call = heard_for_a_second(builder).await;
    client.send(Ingress::Cancel).unwrap();
    let ended = call.end().await;
    assert_eq!(stops(&ended), [(Emitter::LaneRouter, true)]);

    let call = heard_for_a_second(Builder::new(&storyteller(), vec![says(first())])).await;
    let session = CancelTarget::Session;
    let reason = CancelReason::UserCancel;
    call.session.cancel_part(session, reason).await.unwrap();
    let ended = call.end().await;
    assert_eq!(stops(&ended), [(Emitter::CancellationManager, true)]);
    assert_eq!(cancels(&ended)[0].scope, Some(CancelScope::Session));

    // Between two turns there is a session to stop, and no turn.
    let call = Builder::new(&storyteller(), vec![]).start().await;
    tokio::time::sleep(ms(100)).await;
    let session = CancelTarget::Session;
    call.session.cancel_part(session, reason).await.unwrap();
    let ended = call.end().await;
    assert_eq!(stops(&ended), [(Emitter::CancellationManager, false)]);
    assert_eq!(cancels(&ended).len(), 1);

    let said = vec![says(first()), says(over_reply(700))];
    let ended = Builder::new(&storyteller(), said).hold().await;
    assert_eq!(stops(&ended), []);
}

/// F-038, P23: what a cut-off turn had queued for the user is in that turn's account, and in no other's.
#[tokio::test(start_paused = true)]
async fn what_an_interruption_takes_back_is_in_its_own_turns_account() {
    let said = vec![says(first()), says(over_reply(700))];
    let ended = Builder::new(&storyteller(), said).hold().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    // The voice is instant: five frames wait for the clock, and the edge to it holds what its marks let
    // it: 50 to 100 frames.
    let dropped = ended.turn(1).dropped[&Lane::Data];
    assert!((50..=106).contains(&dropped), "{dropped}");
    assert_eq!(ended.turn(2).dropped[&Lane::Data], 0);
    assert_eq!(evidence(&ended, 1).late_outputs_rejected, Some(dropped));
}

/// F-175: an output that comes after the cancel is refused, counted, and accepted never; one that came
/// before was accepted once.
#[tokio::test(start_paused = true)]
async fn nothing_is_accepted_after_a_cancel() {
    let deaf = || Script::always(Conduct::good().deaf());
    let cast = Cast {
        tts: Arc::new(ScriptedTts::new("tts").real_time_factor(0.9).script(deaf())),
        ..storyteller()
    };
    let call = heard_for_a_second(Builder::new(&cast, vec![says(first())])).await;
    call.session.cancel(CancelReason::UserCancel).await.unwrap();
    let ended = call.end().await;
    let signals = ended.signals_of(1);
    let count = |of: &[&str], name: &str| of.iter().filter(|signal| **signal == name).count();
    let at = signals
        .iter()
        .position(|signal| *signal == "cancel")
        .unwrap();
    for output in ["output_accepted", "playback_started"] {
        assert_eq!(count(&signals[..at], output), 1);
        assert_eq!(count(&signals[at..], output), 0);
    }
    assert_eq!(ended.line.leaked(), 0);
    let evidence = evidence(&ended, 1);
    assert!(evidence.cancel_accepted_at.is_some());
    assert!(evidence.cancel_fence_applied_at >= evidence.cancel_accepted_at);
}
