//! F3: provider failure (RK-11, CP-04, CP-10).

use std::{sync::Arc, time::Duration};

use rspp_proto::{OutcomeClass, ProviderId, RetryDecision, abi::Signal, spec::Modality};
use rspp_provider_api::{
    Fault,
    scripted::{Conduct, Script, ScriptedLlm, ScriptedStt},
};
use rspp_tests::call::{Builder, Cast, REPLY, first, says};
use rspp_timeline::Entry;
use rspp_transport_api::loopback::Start;

use crate::row::{assert_aborted, assert_committed, assert_stayed_pre_turn, evidence};

fn failing(fault: Fault) -> Cast {
    let script = Script::always(Conduct::good().failing_after(0, fault));
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([REPLY]).script(script)),
        ..Cast::default()
    }
}

/// F3, F-131: each way to fail is told by its class, and unresolved it aborts the turn; the evidence
/// names the call, its class and what was decided about it.
#[tokio::test(start_paused = true)]
async fn a_provider_that_fails_for_good_aborts_its_turn() {
    let faults = [
        (
            Fault::transport("gone"),
            OutcomeClass::InfrastructureFailure,
        ),
        (Fault::timeout("slow"), OutcomeClass::Timeout),
        (
            Fault::blocked("provider_auth_or_policy_block", "no"),
            OutcomeClass::Blocked,
        ),
    ];
    for (fault, class) in faults {
        let ended = Builder::new(&failing(fault), vec![says(first())])
            .hold()
            .await;
        assert_aborted(&ended, 1, "provider_failure");
        let told = ended.log.reasons_of(Signal::ProviderError);
        assert!(told[0].starts_with("llm "), "{told:?}");
        let baseline = evidence(&ended, 1);
        let last = baseline.invocation_outcomes.last();
        let last = last.expect("the call is evidence");
        assert_eq!(last.modality, Modality::Llm);
        assert_eq!(last.outcome_class, class);
        assert!(
            baseline
                .provider_invocation_ids
                .contains(&last.provider_invocation_id)
        );
        let attempts = ended.entries.iter().filter(|entry| {
            matches!(entry, Entry::Attempt(attempt)
                if attempt.provider_invocation_id == last.provider_invocation_id)
        });
        assert_eq!(attempts.count(), last.attempt_count as usize);
    }
}

/// F3, F-133: with another provider at hand the call moves there, which is told and recorded, and
/// the turn commits.
#[tokio::test(start_paused = true)]
async fn a_call_moves_to_the_next_provider() {
    let cast = failing(Fault::transport("gone"));
    let mut builder = Builder::new(&cast, vec![says(first())]);
    builder
        .providers
        .add_llm(Arc::new(ScriptedLlm::new("llm-2").answers([REPLY])));
    let bound = &mut builder.settings.defaults.provider_bindings;
    let second = ProviderId::new("llm-2").expect("not blank");
    bound.get_mut(&Modality::Llm).expect("bound").push(second);
    let ended = builder.hold().await;
    assert_committed(&ended, 1);
    assert_eq!(
        ended.log.reasons_of(Signal::ProviderSwitch),
        ["from=llm to=llm-2"]
    );
    let switched = ended.entries.iter().any(|entry| {
        matches!(entry, Entry::Attempt(attempt)
            if attempt.retry_decision == RetryDecision::ProviderSwitch)
    });
    assert!(switched);
}

/// F3, F-132: a provider that asks to be left alone opens its circuit, which is told.
#[tokio::test(start_paused = true)]
async fn an_overloaded_provider_opens_its_circuit() {
    let overload = Fault::overload("busy", Some(Duration::from_secs(20)));
    let ended = Builder::new(&failing(overload), vec![says(first())])
        .hold()
        .await;
    assert_aborted(&ended, 1, "provider_failure");
    let changes = ended.log.reasons_of(Signal::CircuitEvent);
    assert!(
        changes
            .first()
            .is_some_and(|change| change.starts_with("llm ")),
        "{changes:?}"
    );
}

/// F3, CT-003, P5: recognition that stalls fails before there is a turn: what it fails is told, with the call, and
/// recorded with its class, and nobody asked for an apology, so no turn opens and none ends. The next utterance
/// is answered.
#[tokio::test(start_paused = true)]
async fn recognition_that_stalls_stays_pre_turn() {
    let stall = || Conduct::good().stalling_after(0);
    for again in [false, true] {
        let stt = ScriptedStt::new("stt").utterances(["hello there"]);
        let script = Script::calls([stall(), stall()]);
        let cast = Cast {
            stt: Arc::new(stt.script(script)),
            ..Cast::default()
        };
        let next = Start::At(Duration::from_secs(20));
        let said = [says(first()), says(next)].into_iter();
        let mut builder = Builder::new(&cast, said.take(1 + usize::from(again)).collect());
        builder.script.hang_up_after = Duration::from_secs(40);
        let ended = builder.hold().await;
        if again {
            assert_committed(&ended, 1);
            assert_eq!(ended.turn(1).user_text, "hello there");
            let opened = ended.turn(1).anchors.turn_open_emitted_ts;
            assert!(opened.is_some_and(|at| at.as_millis() > 20_000));
        } else {
            assert_stayed_pre_turn(&ended);
        }
        let told = ended.log.signals_of(Signal::ProviderError);
        let told = told.first().expect("the failure is told");
        let reason = told.reason.as_ref().expect("why").as_str();
        assert_eq!(reason, "stt timeout provider_timeout");
        assert_eq!(told.envelope.turn_id, None);
        let lost = ended.log.reasons_of(Signal::Degrade);
        assert!(lost.contains(&"transcript_timeout".to_owned()), "{lost:?}");
        let call = &told.envelope.provider_invocation_id;
        let attempts = ended.entries.iter().filter_map(|entry| match entry {
            Entry::Attempt(attempt) if Some(&attempt.provider_invocation_id) == call.as_ref() => {
                Some((attempt.modality, attempt.outcome_class))
            }
            _something_else => None,
        });
        let timeout = (Modality::Stt, OutcomeClass::Timeout);
        assert_eq!(attempts.take(1).collect::<Vec<_>>(), [timeout]);
    }
}
