//! Calls of several sessions may be gathered into one, within everybody's deadlines.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use rspp_host::Runtime;
use rspp_kernel::CancelReason;
use rspp_proto::{ProviderId, SessionId, spec::BatchingSpec};
use rspp_provider_api::{
    BatchCounters, Providers,
    scripted::{Conduct, Script, ScriptedBatchLlm, ScriptedLlm},
};
use rspp_tests::call::{Builder, Cast, Ended, Placed, REPLY, first, says};
use rspp_timeline::Anchor;

/// What the model takes to begin.
const THINKS: Duration = Duration::from_millis(100);

fn id() -> ProviderId {
    ProviderId::new("llm").unwrap()
}

/// A model that can answer together, in place of the one that cannot.
fn model() -> Arc<ScriptedBatchLlm> {
    let script = Script::default().then(Conduct::good().late(THINKS));
    let one = ScriptedLlm::new("llm").answers([REPLY]).script(script);
    Arc::new(ScriptedBatchLlm::new(one))
}

async fn node(cast: &Cast, model: &Arc<ScriptedBatchLlm>, spec: Option<BatchingSpec>) -> Runtime {
    let mut host = Builder::new(cast, vec![]).configure(move |config| {
        config.limits.batching.extend(spec.map(|spec| (id(), spec)));
    });
    host.providers = providers(cast, model);
    host.runtime().await
}

fn providers(cast: &Cast, model: &Arc<ScriptedBatchLlm>) -> Providers {
    let mut providers = cast.providers();
    providers.add_batch_llm(model.clone());
    providers
}

/// Calls whose users all say their one sentence at the same moment.
async fn placed(runtime: &Runtime, cast: &Cast, calls: usize, first_byte_ms: u64) -> Vec<Placed> {
    let mut placed = Vec::new();
    for n in 0..calls {
        let mut builder = Builder::new(cast, vec![says(first())]).pipeline(|spec| {
            let llm = spec.nodes.iter_mut().find(|n| n.id.as_str() == "llm");
            let config = &mut llm.unwrap().config;
            config.insert("first_byte_ms".into(), first_byte_ms.into());
        });
        builder.session = SessionId::new(format!("call-{n}")).unwrap();
        placed.push(builder.open(runtime).await.expect("there is room"));
    }
    placed
}

fn first_token(ended: &Ended) -> Duration {
    let anchors = &ended.turn(1).anchors;
    let at = |anchor| anchors.get(anchor).expect("marked");
    at(Anchor::LlmFirstToken).since(at(Anchor::TurnOpenEmitted))
}

fn counters(runtime: &Runtime) -> BatchCounters {
    runtime.batches(&id()).expect("the model can batch")
}

/// F-051: off unless it is asked for: each call is answered alone and at once.
#[tokio::test(start_paused = true)]
async fn nothing_is_gathered_unless_it_is_asked_for() {
    let (cast, model) = (Cast::default(), model());
    let runtime = node(&cast, &model, None).await;
    let calls = placed(&runtime, &cast, 4, 1_000).await;
    for ended in join_all(calls.into_iter().map(Placed::end)).await {
        assert_eq!(ended.endings(), ["commit"]);
        assert!(first_token(&ended) <= THINKS + Duration::from_millis(2));
    }
    assert_eq!(model.sizes(), [1; 4]);
    assert_eq!(counters(&runtime).by_size, [4]);
}

/// F-051: calls of sessions that ask at one time go together, in batches of at most so many; each is
/// answered in its own words and waits no longer than the window.
#[tokio::test(start_paused = true)]
async fn calls_of_a_window_go_together() {
    let (cast, model) = (Cast::default(), model());
    let spec = BatchingSpec {
        window_ms: 40,
        max_calls: 4,
    };
    let runtime = node(&cast, &model, Some(spec)).await;
    let calls = placed(&runtime, &cast, 6, 1_000).await;
    for ended in join_all(calls.into_iter().map(Placed::end)).await {
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.turn(1).agent_text_played, REPLY);
        assert!(first_token(&ended) <= THINKS + Duration::from_millis(45));
    }
    assert_eq!(model.sizes(), [4, 2]);
    let counters = counters(&runtime);
    assert_eq!((counters.calls(), counters.batches()), (6, 2));
    assert!(counters.longest_wait <= Duration::from_millis(42));
}

/// F-051: a window that is longer than a call can afford is cut short for all that wait with it.
#[tokio::test(start_paused = true)]
async fn no_call_misses_its_deadline_for_others() {
    let (cast, model) = (Cast::default(), model());
    let spec = BatchingSpec {
        window_ms: 10_000,
        max_calls: 100,
    };
    let runtime = node(&cast, &model, Some(spec)).await;
    let mut calls = placed(&runtime, &cast, 3, 2_000).await;
    calls.push({
        let mut hurried = Builder::new(&cast, vec![says(first())]).pipeline(|spec| {
            let llm = spec.nodes.iter_mut().find(|n| n.id.as_str() == "llm");
            let config = &mut llm.unwrap().config;
            // A model on this machine is given five times as long.
            config.insert("first_byte_ms".into(), 40.into());
        });
        hurried.session = SessionId::new("hurried").unwrap();
        hurried.open(&runtime).await.expect("there is room")
    });
    for ended in join_all(calls.into_iter().map(Placed::end)).await {
        assert_eq!(ended.endings(), ["commit"]);
        let attempts = ended.entries.iter().filter(|entry| {
            matches!(entry, rspp_timeline::Entry::Attempt(attempt)
                if attempt.modality == rspp_proto::spec::Modality::Llm)
        });
        assert_eq!(attempts.count(), 1, "no call was given up and repeated");
        assert!(first_token(&ended) <= THINKS + Duration::from_millis(55));
    }
    assert_eq!(model.sizes(), [4]);
}

/// F-051, F-034: a call that is cancelled leaves its batch, and the others notice nothing.
#[tokio::test(start_paused = true)]
async fn a_cancelled_call_takes_nothing_from_its_batch() {
    let (cast, model) = (Cast::default(), model());
    let spec = BatchingSpec {
        window_ms: 40,
        max_calls: 8,
    };
    let runtime = node(&cast, &model, Some(spec)).await;
    let mut calls = placed(&runtime, &cast, 3, 1_000).await;
    let cancelled = calls.remove(0);
    cancelled
        .log
        .until(rspp_proto::abi::Signal::TurnOpen, 1)
        .await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    cancelled.session.cancel(CancelReason::UserCancel).await;
    assert_eq!(cancelled.end().await.endings(), ["cancelled"]);
    for ended in join_all(calls.into_iter().map(Placed::end)).await {
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.turn(1).agent_text_played, REPLY);
    }
    assert_eq!(model.sizes(), [2]);
    assert_eq!(model.tally().running(), 0);
}
