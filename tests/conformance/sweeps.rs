//! Whatever happens, at whatever moment of a conversation: the invariants of the timeline hold, the
//! fence holds, the model is told only what was heard, and nothing is left.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_controlplane_api::LocalLeases;
use rspp_kernel::CancelReason;
use rspp_proto::{SessionId, Speaker};
use rspp_provider_api::{
    Role,
    scripted::{Conduct, Script, ScriptedLlm, ScriptedStt, ScriptedTts},
};
use rspp_tests::call::{Builder, Call, Cast, Ended, REPLY, first, says, tone};
use rspp_timeline::verify::verify;
use rspp_transport_api::{
    Ingress,
    loopback::{Start, Utterance},
};

/// Every so often through a call of one turn: before, while the user speaks, at every step of the
/// turn, after it.
fn moments() -> impl Iterator<Item = Duration> {
    let coarse = (0..23).map(|n| Duration::from_millis(n * 190));
    // The turn opens at about 1.54 s.
    let fine = (0..17).map(|n| Duration::from_micros(1_500_000 + n * 7_300));
    coarse.chain(fine)
}

/// Model and voice at a pace, so that there is something to interrupt at any time.
fn cast(conduct: &Conduct) -> Cast {
    let ms = Duration::from_millis;
    let script = || Script::always(conduct.clone());
    Cast {
        stt: Arc::new(ScriptedStt::new("stt").final_after(ms(13))),
        llm: Arc::new(
            ScriptedLlm::new("llm")
                .answers([REPLY])
                .token_every(ms(7))
                .script(script()),
        ),
        tts: Arc::new(
            ScriptedTts::new("tts")
                .real_time_factor(0.3)
                .script(script()),
        ),
        ..Cast::default()
    }
}

/// What holds of every call.
#[track_caller]
fn assert_sound(ended: &Ended) {
    for turn in &ended.report.turns {
        assert!(
            turn.agent_text.starts_with(&turn.agent_text_played),
            "{turn:#?}"
        );
        if turn.is_commit() {
            assert_eq!(turn.agent_text_played, REPLY, "{turn:#?}");
        }
    }
    let opened = ended
        .signals()
        .iter()
        .filter(|signal| **signal == "turn_open")
        .count();
    assert_eq!(opened, ended.report.turns.len());
    assert!(
        ended.heard().is_sorted_by(|a, b| a.ended <= b.began),
        "{:?}",
        ended.heard()
    );
}

/// Holds calls in which `happens` at each of the moments.
async fn sweep(conduct: Conduct, happens: impl AsyncFn(&Call)) {
    for at in moments() {
        let cast = cast(&conduct);
        let call = Builder::new(&cast, vec![says(first())]).start().await;
        tokio::time::sleep(at).await;
        happens(&call).await;
        let ended = call.end().await;
        assert_sound(&ended);
    }
}

/// P1, P4, CF-001: a cancel at any moment, with providers that listen to it and such that do not.
#[tokio::test(start_paused = true)]
async fn a_cancel_at_any_moment_leaves_no_trace() {
    for conduct in [Conduct::good(), Conduct::good().deaf()] {
        sweep(conduct, async |call| {
            call.session.cancel(CancelReason::UserCancel).await;
        })
        .await;
    }
}

/// AE-002, T4, T8: a revoke at any moment.
#[tokio::test(start_paused = true)]
async fn a_revoke_at_any_moment_silences_the_session() {
    sweep(Conduct::good(), async |call| call.session.revoke()).await;
}

/// P17, F6: hanging up at any moment.
#[tokio::test(start_paused = true)]
async fn hanging_up_at_any_moment_ends_the_call() {
    sweep(Conduct::good(), async |call| call.line.hang_up()).await;
}

/// P26: draining at any moment.
#[tokio::test(start_paused = true)]
async fn draining_at_any_moment_ends_the_call() {
    sweep(Conduct::good(), async |call| call.session.drain()).await;
}

/// F-156: a newer lease at any moment.
#[tokio::test(start_paused = true)]
async fn a_rotation_at_any_moment_moves_the_session_on() {
    for at in moments() {
        let leases = Arc::new(LocalLeases::default());
        let granted = Arc::clone(&leases);
        let cast = cast(&Conduct::good());
        let call = Builder::new(&cast, vec![says(first())])
            .configure(move |config| config.leases = granted)
            .start()
            .await;
        tokio::time::sleep(at).await;
        let newer = leases.acquire(&SessionId::new("call").unwrap()).unwrap();
        call.session.rotate(newer.epoch);
        let ended = call.end().await;
        assert_sound(&ended);
        let over = ended.report.ended_at.since(ended.report.opened_at) <= at;
        assert!(over || ended.report.epoch == newer.epoch, "{at:?}");
    }
}

/// P15: shutting down at any moment.
#[tokio::test(start_paused = true)]
async fn shutting_down_at_any_moment_is_orderly() {
    for at in moments() {
        let cast = cast(&Conduct::good());
        let call = Builder::new(&cast, vec![says(first())]).start().await;
        tokio::time::sleep(at).await;
        assert!(
            call.runtime.shut_down(Duration::from_secs(5)).await,
            "killed at {at:?}"
        );
        let violations = verify(&call.recording.entries());
        assert!(violations.is_empty(), "{at:?}: {violations:#?}");
        assert!(cast.is_idle(), "{at:?}");
        assert_eq!(call.line.leaked(), 0);
    }
}

/// F-025, P2, P3, P11: the user speaks again at any moment; whatever the model is told was heard.
#[tokio::test(start_paused = true)]
async fn speaking_again_at_any_moment_is_understood() {
    for at in moments().filter(|at| *at >= Duration::from_millis(1_400)) {
        let asked: Arc<Mutex<Vec<Vec<String>>>> = Arc::default();
        let seen = Arc::clone(&asked);
        let llm = ScriptedLlm::new("llm").answer_with(move |request| {
            let said = request
                .messages
                .iter()
                .filter(|m| m.role == Role::Assistant);
            seen.lock()
                .unwrap()
                .push(said.map(|m| m.content.clone()).collect());
            REPLY
        });
        let cast = Cast {
            llm: Arc::new(llm.token_every(Duration::from_millis(7))),
            ..cast(&Conduct::good())
        };
        let again = Utterance {
            audio: tone(Duration::from_millis(600)),
            start: Start::At(at),
        };
        let ended = Builder::new(&cast, vec![says(first()), again]).hold().await;
        assert_sound(&ended);
        let last = ended.report.turns.last().expect("the user was answered");
        assert!(last.is_commit(), "{at:?}: {:#?}", ended.report.turns);
        // One utterance, if the pause between the two was too short to be one.
        let heard = ended
            .log
            .texts(Speaker::User)
            .into_iter()
            .filter(|text| text.is_final);
        let newest = heard.last().expect("the user was understood").text;
        assert!(
            last.user_text.contains(&*newest),
            "{at:?}: {}",
            last.user_text
        );
        // What an earlier turn was heard to say is what the model is shown of it.
        let played: Vec<_> = ended
            .report
            .turns
            .iter()
            .map(|t| t.agent_text_played.as_str())
            .collect();
        for said in asked.lock().unwrap().iter().flatten() {
            let heard = said.trim_end_matches(" —");
            assert!(played.contains(&heard), "{at:?}: {said:?} of {played:?}");
        }
    }
}

/// F-025: typed text at any moment.
#[tokio::test(start_paused = true)]
async fn typing_at_any_moment_is_answered() {
    for at in moments() {
        let cast = cast(&Conduct::good());
        let mut builder = Builder::new(&cast, vec![says(first())]);
        let client = builder.client();
        let call = builder.start().await;
        tokio::time::sleep(at).await;
        // The user may have hung up by then.
        let sent = client.send(Ingress::Text("typed".into()));
        let ended = call.end().await;
        assert_sound(&ended);
        let answered = ended
            .report
            .turns
            .iter()
            .any(|turn| turn.user_text.contains("typed"));
        let over = ended.report.ended_at.since(ended.report.opened_at) <= at;
        assert!(
            answered || over || sent.is_err(),
            "{at:?}: {:#?}",
            ended.report.turns
        );
    }
}
