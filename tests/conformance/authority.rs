//! One writer: what is not done under the session's newest epoch is not done.

use std::{sync::Arc, time::Duration};

use rspp_controlplane_api::LocalLeases;
use rspp_host::{
    Event,
    node::{NodeContext, Step},
};
use rspp_kernel::CancelReason;
use rspp_proto::{Epoch, ErrorCode, Payload, SessionId, abi::Signal, spec::Quota};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Call, Cast, Ended, LONG, after_reply, first, says},
    nodes::{Probes, custom, insert},
};
use rspp_transport_api::Ingress;

fn cast() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "All right."])),
        ..Cast::default()
    }
}

/// A call in the middle of its first reply.
async fn speaking() -> Call {
    let call = Builder::new(&cast(), vec![says(first()), says(after_reply())])
        .start()
        .await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    call
}

/// T8: drain, abort, close, in this order and nothing else of the turn after them.
#[track_caller]
fn assert_lost(ended: &Ended) {
    let signals = ended.steps_of(1);
    let drained = signals
        .iter()
        .position(|signal| *signal == "deauthorized_drain");
    let drained = drained.unwrap_or_else(|| panic!("no drain among {signals:?}"));
    assert_eq!(signals[drained..], ["deauthorized_drain", "abort", "close"]);
    assert_eq!(ended.turn(1).reason.as_deref(), Some("authority_loss"));
    assert_eq!(
        ended.log.reasons_of(Signal::DeauthorizedDrain)[0],
        "authority_revoked_in_turn"
    );
    let heard = ended.heard()[0];
    assert!(heard.cut);
    let report = ended.turn(1);
    assert!(report.agent_text.starts_with(&report.agent_text_played));
    assert!(report.agent_text_played.len() < LONG.len());
}

/// T8, AE-002: authority that is lost in a turn ends it.
#[tokio::test(start_paused = true)]
async fn a_turn_ends_when_authority_is_lost() {
    let call = speaking().await;
    let at = call.line.elapsed();
    call.session.revoke();
    let ended = call.end().await;
    assert_lost(&ended);
    assert_eq!(
        ended.endings(),
        ["authority_loss"],
        "nothing opens any more"
    );
    let silent_after = ended.heard()[0].ended.saturating_sub(at);
    assert!(
        silent_after <= Duration::from_millis(20),
        "{silent_after:?}"
    );
}

/// AE-002, T8: of a cancel and a revoke at one decision point the revoke wins, whichever came first.
#[tokio::test(start_paused = true)]
async fn a_revoke_beats_a_simultaneous_cancel() {
    for revoke_first in [true, false] {
        let call = speaking().await;
        if revoke_first {
            call.session.revoke();
            let _receipt = call.session.cancel(CancelReason::UserCancel).await;
        } else {
            let cancel = call.session.cancel(CancelReason::UserCancel);
            let (_receipt, ()) = tokio::join!(cancel, async { call.session.revoke() });
        }
        let ended = call.end().await;
        assert_lost(&ended);
    }
}

/// F-156, F-039, T8, AE-002: what is committed ahead is exempt from cancels, never from a lost lease; and what is
/// told to have been heard was.
#[tokio::test(start_paused = true)]
async fn what_is_committed_ahead_is_not_heard_without_a_lease() {
    for rotates in [false, true] {
        let leases = Arc::new(LocalLeases::default());
        let granted = Arc::clone(&leases);
        let call = Builder::new(&cast(), vec![says(first())])
            .pipeline(|spec| spec.turns.commit_ahead_ms = 200)
            .configure(move |config| config.leases = granted)
            .start()
            .await;
        call.log.until(Signal::PlaybackStarted, 1).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        let at = call.line.elapsed();
        if rotates {
            let session = SessionId::new("call").unwrap();
            call.session.rotate(leases.acquire(&session).unwrap().epoch);
        } else {
            call.session.revoke();
        }
        let ended = call.end().await;
        assert_lost(&ended);
        let silent_after = ended.heard()[0].ended.saturating_sub(at);
        assert!(
            silent_after <= Duration::from_millis(20),
            "{silent_after:?}"
        );
        let without = speaking().await;
        without.session.revoke();
        let without = without.end().await;
        let heard = [&ended, &without].map(|ended| ended.turn(1).agent_text_played.clone());
        assert_eq!(heard[0], heard[1]);
    }
}

/// F-156, T3, T12: an epoch that nobody granted moves nobody, forth or back: that is said, and the session goes on
/// under its own.
#[tokio::test(start_paused = true)]
async fn an_epoch_that_nobody_granted_is_refused() {
    let leases = Arc::new(LocalLeases::default());
    let granted = Arc::clone(&leases);
    let session = SessionId::new("call").unwrap();
    let third = Epoch::new(3).unwrap();
    leases.acquire_at(&session, Epoch::new(2).unwrap()).unwrap();
    let call = Builder::new(&cast(), vec![says(first()), says(after_reply())])
        .configure(move |config| config.leases = granted)
        .start()
        .await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    for of in [7, 1] {
        call.session.rotate(Epoch::new(of).unwrap());
    }
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["commit", "commit"]);
    assert_eq!(ended.report.epoch, third);
    assert_eq!(
        ended.log.reasons_of(Signal::StaleEpochReject),
        ["authority_epoch_mismatch"; 2]
    );
    let told: Vec<_> = mismatches(&ended).into_iter().map(|(_, why)| why).collect();
    assert_eq!(
        told,
        [
            "epoch e7 is above e3 and no lease for it was granted here",
            "epoch e1 is stale; this placement holds e3"
        ]
    );
}

/// F-156, AE-003: a turn of an older epoch cannot go on; the next one opens under the newer.
#[tokio::test(start_paused = true)]
async fn a_rotated_lease_ends_the_turn_and_the_next_one_speaks_under_it() {
    let leases = Arc::new(LocalLeases::default());
    let granted = Arc::clone(&leases);
    let call = Builder::new(&cast(), vec![says(first()), says(after_reply())])
        .configure(move |config| config.leases = granted)
        .start()
        .await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let session = SessionId::new("call").unwrap();
    let newer = leases.acquire(&session).unwrap().epoch;
    call.session.rotate(newer);
    let ended = call.end().await;
    assert_lost(&ended);
    assert_eq!(ended.endings(), ["authority_loss", "commit"]);
    assert_eq!(ended.turn(2).agent_text_played, "All right.");
    assert_eq!(ended.report.epoch, newer);
    // Each record carries the epoch that it was made under.
    let epoch_of = |name: Signal, nth: usize| {
        ended.log.signals_of(name)[nth]
            .envelope
            .authority_epoch
            .expect("signals carry it")
    };
    assert_eq!(epoch_of(Signal::TurnOpen, 0), Epoch::FIRST);
    assert_eq!(epoch_of(Signal::TurnOpen, 1), newer);
    assert_eq!(epoch_of(Signal::Commit, 0), newer);
}

/// F-156: epochs only rise; an older one is stale news.
#[tokio::test(start_paused = true)]
async fn an_older_epoch_changes_nothing() {
    let call = speaking().await;
    call.session.rotate(Epoch::FIRST);
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["commit", "commit"]);
    assert_eq!(ended.report.epoch, Epoch::FIRST);
}

/// T4, AE-005: without authority an intent is refused before anything opens: no abort, no close.
#[tokio::test(start_paused = true)]
async fn nothing_opens_without_authority() {
    let mut builder = Builder::new(&cast(), vec![]);
    builder.script.hang_up_after = Duration::from_secs(2);
    builder.script.reply_timeout = Duration::from_secs(1);
    let client = builder.client();
    let call = builder.start().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    call.session.revoke();
    client
        .send(Ingress::Text("is anybody there".into()))
        .unwrap();
    let ended = call.end().await;
    assert!(ended.report.turns.is_empty());
    assert_eq!(
        ended.log.reasons_of(Signal::DeauthorizedDrain),
        ["authority_revoked_before_open"]
    );
    for never in ["turn_open", "abort", "close", "admit"] {
        assert!(!ended.signals().contains(&never), "{never}");
    }
}

/// F-131, T4, P25: a lease that was granted to somebody else refuses the next turn.
#[tokio::test(start_paused = true)]
async fn a_session_that_was_taken_over_opens_no_turn() {
    let leases = Arc::new(LocalLeases::default());
    let granted = Arc::clone(&leases);
    let call = Builder::new(&cast(), vec![says(first())])
        .configure(move |config| config.leases = granted)
        .start()
        .await;
    leases.acquire(&SessionId::new("call").unwrap()).unwrap();
    let ended = call.end().await;
    assert!(ended.report.turns.is_empty());
    assert_eq!(ended.report.refused, 1);
    assert!(ended.heard().is_empty());
    let message = "this placement's lease was replaced; the turn does not open";
    assert_eq!(
        mismatches(&ended),
        [("ingress".to_owned(), message.to_owned())]
    );
}

/// T2: no room for a turn is a refusal before anything opens.
#[tokio::test(start_paused = true)]
async fn a_full_node_refuses_turns_before_they_open() {
    let ended = Builder::new(&cast(), vec![says(first())])
        .configure(|config| config.limits.node.turns = Some(Quota::at(0)))
        .hold()
        .await;
    assert!(ended.report.turns.is_empty());
    assert_eq!(ended.report.refused, 1);
    assert_eq!(
        ended.log.reasons_of(Signal::Reject),
        ["admission_capacity_reject"]
    );
    for never in ["turn_open", "abort", "close"] {
        assert!(!ended.signals().contains(&never), "{never}");
    }
}

/// A call whose node between `from` and the user forges a second copy of every event, under an
/// epoch that nobody here holds a lease for.
fn forging(from: &str) -> Builder {
    let mut probes = Probes::default();
    probes.add("forger", |_nth, cx: &mut NodeContext, event: Event| {
        let mut forged = event.clone();
        forged.stamp.epoch = event.stamp.epoch.next();
        cx.forward(forged);
        cx.forward(event);
        Step::OK
    });
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers(["All right."])),
        ..Cast::default()
    };
    Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| insert(spec, from, custom("forger"), "egress"))
        .configure(probes.install())
}

/// F-131, T12, F-156, AE-003: audio of another epoch is refused where it would be heard, and a diagnostic
/// says so; the turn goes on undisturbed.
#[tokio::test(start_paused = true)]
async fn audio_of_another_epoch_is_never_heard() {
    let ended = forging("tts").hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, "All right.");
    assert_eq!(
        ended.log.reasons_of(Signal::StaleEpochReject),
        ["authority_epoch_mismatch"]
    );
    // Ten characters of 60 ms, once.
    assert_eq!(ended.heard()[0].length(), Duration::from_millis(600));
    let message = "epoch e2 is above e1 and no lease for it was granted here";
    assert_eq!(
        mismatches(&ended),
        [("egress".to_owned(), message.to_owned())]
    );
}

/// Error events of another epoch, by node and message (F-131).
fn mismatches(ended: &Ended) -> Vec<(String, String)> {
    let payloads = ended.log.payloads().into_iter();
    payloads
        .filter_map(|payload| match payload {
            Payload::Error(note) if note.error_code == ErrorCode::AuthorityEpochMismatch => {
                assert!(!note.retryable, "{note:?}");
                let node = note.node_id.map_or(String::new(), |node| node.to_string());
                Some((node, note.message))
            }
            _another_payload => None,
        })
        .collect()
}
