//! What cannot run is refused with a reason, and leaves nothing behind.

use std::{collections::BTreeMap, sync::Arc};

use rspp_host::{OpenError, Runtime};
use rspp_proto::{
    EdgeId, ProviderId, SessionId,
    spec::{BufferSpec, Modality, Quota},
};
use rspp_provider_api::{
    Fault,
    scripted::{ScriptedEndOfTurn, ScriptedVoice},
};
use rspp_tests::{
    call::{Builder, Cast, assert_nothing_left, first, says},
    nodes::{custom, edge, insert},
};
use serde_json::json;
use std::time::Duration;

/// Tries to open; the refusal, after which the runtime is as empty as before.
async fn refused(mut builder: Builder) -> OpenError {
    let runtime = builder.runtime().await;
    let Err(error) = builder.open(&runtime).await else {
        panic!("the session opened");
    };
    empty(&runtime).await;
    error
}

async fn empty(runtime: &Runtime) {
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_nothing_left(runtime);
}

fn call(cast: &Cast) -> Builder {
    Builder::new(cast, vec![says(first())])
}

/// A pipeline that does not hold together is refused with all that is wrong with it.
#[tokio::test(start_paused = true)]
async fn a_broken_pipeline_is_refused_with_its_reasons() {
    let cast = Cast::default();
    let error = refused(call(&cast).pipeline(|spec| {
        spec.edges.push(edge(
            json!({ "from": "llm", "to": "nowhere", "carries": "text" }),
        ));
        spec.edges.push(edge(
            json!({ "from": "tts", "to": "llm", "carries": "text" }),
        ));
    }))
    .await;
    assert!(
        matches!(error, OpenError::Graph(ref errors) if errors.len() >= 2),
        "{error}"
    );
    assert!(error.to_string().contains("nowhere"), "{error}");
}

/// F-011: a kind of node that nobody registered is refused with those that are known.
#[tokio::test(start_paused = true)]
async fn an_unknown_kind_of_node_is_refused() {
    let cast = Cast::default();
    let builder = call(&cast).pipeline(|spec| insert(spec, "llm", custom("sorcery"), "segmenter"));
    let error = refused(builder).await;
    assert!(matches!(error, OpenError::UnknownNode { .. }), "{error}");
    assert!(error.to_string().contains("sorcery"), "{error}");
}

/// A provider that is not there is refused by name, with those that are.
#[tokio::test(start_paused = true)]
async fn an_unknown_provider_is_refused() {
    let cast = Cast::default();
    let mut builder = call(&cast);
    let missing = vec![ProviderId::new("tts-missing").unwrap()];
    builder.settings.session.provider_bindings = BTreeMap::from([(Modality::Tts, missing)]);
    let error = refused(builder).await.to_string();
    assert!(
        error.contains("tts-missing") && error.contains("known: tts"),
        "{error}"
    );
}

/// A modality without any provider is refused.
#[tokio::test(start_paused = true)]
async fn a_pipeline_without_a_provider_is_refused() {
    let cast = Cast::default();
    let mut builder = call(&cast);
    builder
        .settings
        .defaults
        .provider_bindings
        .remove(&Modality::Llm);
    let error = refused(builder).await.to_string();
    assert!(error.contains("llm"), "{error}");
}

/// A policy for an edge that is not there is refused.
#[tokio::test(start_paused = true)]
async fn a_setting_for_an_unknown_edge_is_refused() {
    let cast = Cast::default();
    let mut builder = call(&cast);
    let nowhere = EdgeId::new("llm->nowhere:text").unwrap().to_string();
    builder
        .settings
        .session
        .edge_buffers
        .insert(nowhere, BufferSpec::default());
    let error = refused(builder).await.to_string();
    assert!(error.contains("llm->nowhere:text"), "{error}");
}

/// P20: a session whose listening nodes do not start is refused, and nothing is left of it.
#[tokio::test(start_paused = true)]
async fn a_session_that_does_not_start_leaves_nothing_behind() {
    let fault = || Fault::model("no such file");
    let mute = Cast {
        voice: Arc::new(ScriptedVoice::by_energy("vad").refusing(fault())),
        ..Cast::default()
    };
    let clueless = Cast {
        end_of_turn: Arc::new(ScriptedEndOfTurn::always("eot", 1.0).refusing(fault())),
        ..Cast::default()
    };
    for cast in [mute, clueless] {
        let error = refused(call(&cast)).await;
        assert!(matches!(error, OpenError::Start(_)), "{error}");
        assert!(error.to_string().contains("no such file"), "{error}");
        assert!(cast.is_idle());
    }
}

/// P22: a full node says so at once, and has room again when a call has ended.
#[tokio::test(start_paused = true)]
async fn a_full_node_refuses_sessions_until_one_has_ended() {
    let cast = Cast::default();
    let mut host = call(&cast).configure(|config| config.limits.node.sessions = Some(Quota::at(1)));
    let runtime = host.runtime().await;
    let open = async |name: &str| {
        let mut builder = Builder::new(&cast, vec![]);
        builder.session = SessionId::new(name).unwrap();
        builder.script.reply_timeout = Duration::from_millis(100);
        builder.open(&runtime).await
    };
    let held = open("a").await.expect("there is room");
    let Err(full) = open("b").await else {
        panic!("there was room for two");
    };
    assert!(matches!(full, OpenError::Refused(_)), "{full}");
    held.end().await;
    open("b").await.expect("there is room again").end().await;
    empty(&runtime).await;
}
