//! F1: admission overload (CP-05, RK-25).

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use rspp_host::{
    Event, OpenError,
    node::{NodeContext, NodeError, Step},
};
use rspp_proto::{
    Payload, SessionId,
    abi::{Emitter, OutcomeKind, OutcomePhase, OutcomeScope, Signal},
    spec::{Priority, Quota},
};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Cast, Ended, LONG, first, says},
    load::Cpu,
    nodes::{Probes, custom, edge},
};
use serde_json::json;

use crate::row::{assert_aborted, assert_committed, assert_stayed_pre_turn, evidence, outcomes};

/// F1, T2: an intent that finds no room is refused before anything opens, by a decision that names
/// itself; the session lives on.
#[tokio::test(start_paused = true)]
async fn an_intent_beyond_the_nodes_room_is_rejected_before_anything_opens() {
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .configure(|config| config.limits.node.turns = Some(Quota::at(0)))
        .hold()
        .await;
    assert_stayed_pre_turn(&ended);
    let said = ended.log.signals_of(Signal::Reject);
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].emitted_by, Emitter::LocalAdmission);
    let decided = outcomes(&ended);
    let refusal = decided.last().expect("the decision was recorded");
    assert_eq!(refusal.outcome_kind, OutcomeKind::Reject);
    assert_eq!(refusal.phase, OutcomePhase::PreTurn);
    assert_eq!(refusal.scope, OutcomeScope::Session);
    assert_eq!(refusal.emitted_by, Emitter::LocalAdmission);
    assert_eq!(refusal.reason.as_str(), "admission_capacity_reject");
    assert_eq!(refusal.validate(), Ok(()));
    assert_eq!(ended.report.refused, 1);
}

/// F1: a session that finds no room is refused at the door; who is inside notices nothing, and each
/// turn's evidence holds its own admission.
#[tokio::test(start_paused = true)]
async fn a_session_beyond_the_nodes_room_is_refused_and_costs_nobody_inside() {
    let cast = Cast::default();
    let mut inside = Builder::new(&cast, vec![says(first())])
        .configure(|config| config.limits.node.sessions = Some(Quota::at(1)));
    let runtime = inside.runtime().await;
    let placed = inside.open(&runtime).await.expect("there is room for one");
    let mut outside = Builder::new(&cast, vec![]);
    outside.session = SessionId::new("outside").expect("not blank");
    let refused = outside.open(&runtime).await;
    assert!(matches!(refused, Err(OpenError::Refused(_))));
    let ended = placed.end().await;
    assert_committed(&ended, 1);
    let admission = evidence(&ended, 1).admission_outcome.as_ref();
    let admission = admission.expect("the admission is evidence");
    assert_eq!(admission.outcome_kind, OutcomeKind::Admit);
    assert_eq!(admission.reason.as_str(), "admission_capacity_allow");
    assert_eq!(admission.validate(), Ok(()));
}

/// Work that was shed: where, why, and how long after the session began.
fn sheds(ended: &Ended) -> Vec<(OutcomeScope, String, u64)> {
    let began = ended.report.opened_at.as_millis();
    let decided = outcomes(ended).into_iter();
    let shed: Vec<_> = decided
        .filter(|outcome| outcome.outcome_kind == OutcomeKind::Shed)
        .inspect(|outcome| {
            assert_eq!(outcome.phase, OutcomePhase::SchedulingPoint);
            assert_eq!(outcome.emitted_by, Emitter::LocalAdmission);
            assert_eq!(outcome.validate(), Ok(()));
        })
        .map(|outcome| {
            let at = outcome.runtime_timestamp_ms - began;
            (outcome.scope, outcome.reason.to_string(), at)
        })
        .collect();
    let said = ended.log.signals_of(Signal::Shed);
    assert_eq!(said.len(), shed.len(), "each is told");
    assert!(
        said.iter()
            .all(|signal| signal.emitted_by == Emitter::LocalAdmission)
    );
    shed
}

/// Two calls that nobody waits for, when the processors become overloaded: one that listens, slowly, and
/// one in the middle of a reply.
async fn overloaded() -> [Ended; 2] {
    let cast = Cast {
        // Its last clause comes seconds after its first.
        llm: Arc::new(
            ScriptedLlm::new("llm")
                .answers([LONG])
                .token_every(Duration::from_millis(150)),
        ),
        ..Cast::default()
    };
    let cpu = Arc::<Cpu>::default();
    let mut probes = Probes::default();
    probes.add("ear", |_nth, _cx: &mut NodeContext, event: Event| {
        Step::Wait(
            async move {
                if let Payload::AudioChunk(_) = event.payload {
                    tokio::time::sleep(Duration::from_millis(60)).await;
                }
                Ok::<(), NodeError>(())
            }
            .boxed(),
        )
    });
    let (install, watch) = (probes.install(), cpu.watched());
    let mut host = Builder::new(&cast, vec![]).configure(move |config| {
        install(config);
        watch(config);
    });
    let runtime = host.runtime().await;
    let background = |name: &str, said| {
        let mut builder = Builder::new(&cast, said);
        builder.session = SessionId::new(name).expect("not blank");
        builder.settings.session.priority = Some(Priority::Background);
        builder.script.reply_timeout = Duration::from_secs(20);
        builder.script.hang_up_after = Duration::from_secs(20);
        builder
    };
    let listens = background("listens", vec![]).pipeline(|spec| {
        spec.nodes.push(custom("ear"));
        let to_ear = json!({ "from": "ingress", "to": "ear", "carries": "audio" });
        spec.edges.push(edge(to_ear));
    });
    let listens = listens.open(&runtime).await.expect("there is room");
    let speaks = background("speaks", vec![says(first())]);
    let speaks = speaks.open(&runtime).await.expect("there is room");
    speaks.log.until(Signal::PlaybackStarted, 1).await;
    cpu.set(99);
    let ended = tokio::join!(listens.end(), speaks.end());
    assert!(runtime.shut_down(Duration::from_secs(5)).await);
    ended.into()
}

/// F1: severe overload sheds what nobody waits for at all three scheduling points, where work would be
/// queued, taken from a queue, and dispatched: each by RK-25 with a signal and an outcome, at the same
/// places and moments each time; a turn that it costs ends in its one way.
#[tokio::test(start_paused = true)]
async fn overload_sheds_at_every_scheduling_point() {
    let [listens, speaks] = overloaded().await;
    let shed = "scheduling_point_shed";
    let points = |ended: &Ended| {
        let points: std::collections::BTreeSet<_> = sheds(ended)
            .into_iter()
            .inspect(|(_, reason, _)| assert_eq!(reason, shed))
            .map(|(point, _, _)| point.as_str())
            .collect();
        Vec::from_iter(points)
    };
    assert_eq!(points(&listens), ["edge_dequeue", "edge_enqueue"]);
    assert!(points(&speaks).contains(&"node_dispatch"));
    assert!(listens.report.turns.is_empty());
    assert_eq!(listens.report.shed, sheds(&listens).len() as u64);
    let reason = speaks.turn(1).reason.clone().expect("it was aborted");
    assert_aborted(&speaks, 1, &reason);
    let again = overloaded().await;
    assert_eq!(sheds(&again[0]), sheds(&listens));
    assert_eq!(sheds(&again[1]), sheds(&speaks));
}
