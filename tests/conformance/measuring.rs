//! What is measured of providers is told in the same words of all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rspp_host::ProviderMeasurements;
use rspp_llm::{OpenAi, OpenAiConfig};
use rspp_proto::{
    ProviderId,
    abi::Signal,
    metric::{Metric, MetricLabel},
    spec::{Modality, Mode, NodeKind, PipelineSpec},
};
use rspp_provider_api::{
    Fault,
    scripted::{Conduct, Script, ScriptedLlm, ScriptedStt, ScriptedTts},
};
use rspp_tests::{
    call::{Builder, Cast, Ended, REPLY, first, says},
    web::{Reply, Web},
};
use rspp_transport_api::Ingress;

/// The metrics that are told of providers.
const OF_PROVIDERS: [Metric; 8] = [
    Metric::ProviderRtt,
    Metric::ProviderFirstChunk,
    Metric::ProviderQueueWait,
    Metric::ProviderAttempts,
    Metric::ProviderRetries,
    Metric::ProviderErrors,
    Metric::ProviderRequestBytes,
    Metric::ProviderResponseBytes,
];

fn measured(spec: &mut PipelineSpec) {
    spec.observe.metrics_every_ms = Some(100);
}

/// The labels of each metric that a provider was measured by.
fn labels(ended: &Ended, provider: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut labels = BTreeMap::<String, BTreeSet<String>>::new();
    for sample in ended.log.samples() {
        if sample
            .labels
            .get("provider_id")
            .is_some_and(|id| id == provider)
            && sample.labels.contains_key("modality")
        {
            let names = sample.labels.into_keys().collect();
            let before = labels.insert(sample.name.clone(), names);
            let same = before.is_none_or(|before| before == labels[&sample.name]);
            assert!(same, "{} has no two sets of labels", sample.name);
        }
    }
    labels
}

fn as_told(metrics: &[Metric]) -> BTreeMap<String, BTreeSet<String>> {
    let labels = |metric: &Metric| {
        let labels = metric
            .labels()
            .iter()
            .map(|label| label.as_str().to_owned());
        (metric.as_str().to_owned(), labels.collect())
    };
    metrics.iter().map(labels).collect()
}

#[track_caller]
fn of<'a>(ended: &'a Ended, node: &str, provider: &str) -> &'a ProviderMeasurements {
    let measured = ended.report.measurements.as_ref().expect("it is measured");
    let (_, providers) = measured
        .providers
        .iter()
        .find(|(id, _)| id.as_str() == node)
        .expect("the node has asked");
    &providers[&ProviderId::new(provider).unwrap()]
}

/// F-065: recognition, language and voice are told of in the same metrics with the same labels, in band
/// and in the session's report; and the counts are those of what happened.
#[tokio::test(start_paused = true)]
async fn adapters_are_measured_in_the_same_words() {
    let once = || Script::attempts([Conduct::good().failing_after(0, Fault::stream("broken"))]);
    let cast = Cast {
        stt: Arc::new(
            ScriptedStt::new("stt")
                .utterances(["hello there"])
                .script(once()),
        ),
        llm: Arc::new(ScriptedLlm::new("llm").answers([REPLY]).script(once())),
        tts: Arc::new(ScriptedTts::new("tts").script(once())),
        ..Cast::default()
    };
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(measured)
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    let expected = as_told(&OF_PROVIDERS);
    for provider in ["stt", "llm", "tts"] {
        assert_eq!(labels(&ended, provider), expected, "{provider}");
        let measured = of(&ended, provider, provider);
        let successes = measured.attempts["success"];
        let attempts = successes + measured.attempts["infrastructure_failure"];
        assert_eq!(measured.rtt.samples, attempts, "{provider}");
        assert_eq!(measured.first_chunk.samples, successes, "{provider}");
        assert!(measured.queue_wait.max_ms < 1.0, "{provider}");
        let failed = attempts - successes;
        assert!(failed > 0, "{provider}");
        assert_eq!(measured.errors["provider_stream_error"], failed);
        assert_eq!(measured.retries["retry"], failed);
        assert!(measured.request_bytes > 0 && measured.response_bytes > 0);
        assert!(measured.extras.is_empty());
    }
    assert_eq!(
        of(&ended, "llm", "llm").response_bytes,
        REPLY.len() as u64,
        "the answer's text"
    );
    // Values are ids and words of the vocabulary, and nothing that somebody said.
    let told = ended.log.samples().into_iter();
    let told = told.filter(|sample| sample.name.starts_with("provider_"));
    for sample in told {
        for value in sample.labels.values() {
            assert!(value.len() <= 64 && !value.contains(' '), "{value}");
        }
    }
}

/// F-065, F-105: an adapter over HTTP is told of in the words of all others; what only its vendor counts
/// comes beside them, under one metric.
#[tokio::test]
async fn an_adapter_over_http_is_measured_like_the_others() {
    let web = Web::start(|asked| match asked.nth {
        0 => Reply::new(503, "{\"error\":{\"message\":\"busy\"}}"),
        _ => Reply::completion(&["Good ", "day."]),
    })
    .await;
    let config = OpenAiConfig::new("web", format!("{}/v1", web.url), "m");
    let cast = Cast::default();
    let mut builder = Builder::new(&cast, vec![])
        .pipeline(measured)
        .pipeline(|spec| spec.budgets.turn_budget_ms = Some(10_000));
    builder.script.hang_up_after = Duration::from_mins(1);
    builder
        .providers
        .add_llm(Arc::new(OpenAi::new(config).unwrap()));
    let bound = &mut builder.settings.defaults.provider_bindings;
    bound.insert(Modality::Llm, vec![ProviderId::new("web").unwrap()]);
    let client = builder.client();
    let call = builder.start().await;
    let said = Ingress::Text("hello there".to_owned());
    client.send(said).expect("the call goes on");
    call.log.until(Signal::Close, 1).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    call.session.drain();
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["commit"]);
    let mut expected = as_told(&OF_PROVIDERS);
    expected.extend(as_told(&[Metric::ProviderExtra]));
    assert_eq!(labels(&ended, "web"), expected);
    let web = of(&ended, "llm", "web");
    assert_eq!(web.attempts["success"], 1);
    assert_eq!(web.errors["provider_server_error"], 1);
    assert_eq!(web.response_bytes, "Good day.".len() as u64);
    let extras: Vec<_> = web.extras.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    // The attempt that failed opened the connection, the one that went well found it open.
    let expected = [
        ("cached_prompt_tokens", 4.0),
        ("connections_opened", 1.0),
        ("connections_reused", 1.0),
    ];
    assert_eq!(extras, expected);
    let extra = ended
        .log
        .samples()
        .into_iter()
        .find(|sample| sample.name == Metric::ProviderExtra.as_str());
    let extra = extra.expect("it was told in band");
    assert_eq!(
        extra.labels[MetricLabel::Extra.as_str()],
        "cached_prompt_tokens"
    );
}

/// F-010: the nodes that come with the runtime are enough to be heard and answered; each tells how long it takes under
/// the same name and labels, those that ask providers in the same words as each other; and what can be set of a node
/// stands in the same place for all of them.
#[tokio::test(start_paused = true)]
async fn the_built_in_nodes_answer_and_tell_of_themselves_in_the_same_words() {
    let cast = Cast::default();
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(measured)
        .hold()
        .await;
    assert_eq!(ended.heard().len(), 1, "audio in, audio out");
    let spec = PipelineSpec::simple();
    let kinds: Vec<_> = spec.nodes.iter().map(|node| node.kind.as_str()).collect();
    let built_in = ["vad", "turn_detector", "stt", "llm", "segmenter", "tts"];
    assert_eq!(kinds, built_in);
    for node in &spec.nodes {
        let id = node.id.as_str();
        let samples = ended.log.samples().into_iter();
        let of_node = samples.filter(|it| it.labels.get("node_id").is_some_and(|of| of == id));
        let told: BTreeSet<String> = of_node
            .clone()
            .filter(|it| !it.name.starts_with("edge_"))
            .map(|it| it.name)
            .collect();
        assert!(
            told.contains(Metric::NodeLatency.as_str()),
            "{id}: {told:?}"
        );
        let latency = of_node
            .clone()
            .find(|it| it.name == Metric::NodeLatency.as_str())
            .expect("it is there");
        assert_eq!(latency.labels["node_type"], node.kind.as_str());
        let asks = [NodeKind::Stt, NodeKind::Llm, NodeKind::Tts].contains(&node.kind);
        for metric in [Metric::ProviderRtt, Metric::ProviderFirstChunk] {
            assert_eq!(told.contains(metric.as_str()), asks, "{id}: {told:?}");
        }
        // What is set of one kind of node is set of any: by name, below its `config`; what it does not know is
        // refused.
        let known = match id {
            "vad" => Some("speech_from"),
            "turn" => Some("complete_from"),
            "stt" | "llm" | "tts" => Some("first_byte_ms"),
            _has_none => None,
        };
        let setting = known.unwrap_or("a_setting");
        let mut written = serde_json::to_value(&spec).expect("a spec is data");
        let nodes = written["nodes"].as_array_mut().expect("it has nodes");
        let this = nodes
            .iter_mut()
            .find(|it| it["id"] == id)
            .expect("this one");
        this["config"][setting] = serde_json::json!(1);
        let text = written.to_string();
        let parsed = PipelineSpec::parse("spec.json", &text, Mode::Strict);
        assert_eq!(parsed.is_ok(), known.is_some(), "{id}");
        if let Ok(parsed) = parsed {
            let node = parsed.spec.nodes.iter().find(|it| it.id.as_str() == id);
            assert_eq!(node.expect("it stayed").config[setting], 1);
        }
    }
}
