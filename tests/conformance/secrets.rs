//! A provider's key is with its provider and nowhere else. Real sockets, real time.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_llm::{OpenAi, OpenAiConfig, SecretStore};
use rspp_proto::{
    ProviderId, SessionId,
    abi::Signal,
    spec::{CallPolicy, CircuitPolicy, Modality},
};
use rspp_tests::{
    call::{Builder, Cast},
    web::{Reply, Web},
};
use rspp_transport_api::Ingress;
use tracing_subscriber::util::SubscriberInitExt;

const OLD: &str = "sk-canary-0000-4711";
const NEW: &str = "sk-canary-1111-0815";

/// All that is logged.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// F-061, F-117, NF-011: a server that fails in all its ways, and tells the key back in each, gets it into no timeline,
/// signal, event, report or log; and once the key is another, the next call has the other.
#[tokio::test]
async fn a_key_is_told_to_its_provider_and_to_nobody_else() {
    let logged = Logged::default();
    let writer = logged.clone();
    let logging = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .set_default();
    let web = Web::start(|asked| {
        let told = &asked.headers["authorization"];
        let error = format!("{{\"error\":{{\"message\":\"what is {told}\"}}}}");
        let stream =
            |text: String| Reply::new(200, text).header("content-type", "text/event-stream");
        match asked.nth {
            0 => Reply::new(401, error),
            1 => Reply::new(500, format!("what is {told}")),
            2 => stream(format!("data: {error}\n\n")),
            3 => stream(format!("data: {{\"choices\": {told}\n\n")),
            4 => Reply::new(404, error).header("x-key", told),
            5 => stream(format!("data: {told}\n\n")).cut(),
            6 => Reply::new(400, told.repeat(10_000)),
            _ => Reply::completion(&["Good day."]),
        }
    })
    .await;
    let failures = 7;
    let key = Arc::new(Mutex::new(OLD));
    let kept = Arc::clone(&key);
    let secrets = SecretStore::new(move |name| {
        (name == "LLM_KEY").then(|| (*kept.lock().unwrap()).to_owned())
    });
    let config = OpenAiConfig {
        api_key: Some("env://LLM_KEY".to_owned()),
        ..OpenAiConfig::new("web", format!("{}/v1", web.url), "m")
    };
    let mut builder = Builder::new(&Cast::default(), vec![]).pipeline(|spec| {
        spec.observe.debug = Some(true);
        spec.providers.calls = Some(Box::new(CallPolicy {
            attempts_per_provider: 1,
            ..CallPolicy::default()
        }));
        spec.providers.circuit = Some(Box::new(CircuitPolicy {
            least_calls: 100,
            ..CircuitPolicy::default()
        }));
    });
    builder.script.hang_up_after = Duration::from_mins(1);
    let model = OpenAi::with_secrets(config, secrets).unwrap();
    builder.providers.add_llm(Arc::new(model));
    let bound = &mut builder.settings.defaults.provider_bindings;
    bound.insert(Modality::Llm, vec![ProviderId::new("web").unwrap()]);
    let client = builder.client();
    let call = builder.start().await;
    for nth in 1..=failures + 1 {
        if nth > failures {
            *key.lock().unwrap() = NEW;
        }
        let said = client.send(Ingress::Text(format!("hello for the {nth}. time")));
        said.expect("the call goes on");
        call.log.until(Signal::Close, nth).await;
    }
    call.session.drain();
    let ended = call.end().await;
    drop(logging);
    let endings = ended.endings();
    assert_eq!(endings[..failures], ["provider_failure"; 7]);
    assert_eq!(endings[failures..], ["commit"]);
    // The canary was really sent, and the server did tell it back.
    let sent: Vec<_> = web
        .asked()
        .into_iter()
        .map(|asked| asked.headers["authorization"].clone())
        .collect();
    assert!(
        sent[..failures]
            .iter()
            .all(|key| *key == format!("Bearer {OLD}"))
    );
    assert_eq!(sent[failures..], [format!("Bearer {NEW}")], "rotated");
    // All that is left of the session, and all that was said meanwhile.
    let report = serde_json::to_string(&ended.report).unwrap();
    let logged = String::from_utf8_lossy(&logged.0.lock().unwrap()).into_owned();
    for (what, text) in [
        ("timeline", format!("{:?}", ended.entries)),
        ("report", report),
        ("report in memory", format!("{:?}", ended.report)),
        ("what was said", format!("{:?}", ended.log.notices())),
        ("log", logged.clone()),
    ] {
        for secret in [OLD, NEW, "canary"] {
            assert!(!text.contains(secret), "{what} holds {secret}");
        }
    }
    assert!(logged.len() > 1_000, "something was logged");
    let said = format!("{:?}", ended.log.notices());
    assert!(
        said.contains("***redacted***"),
        "and where it was can be seen"
    );
}

/// F-105, F-061: a session that opens after a key's file has changed uses the new key.
#[tokio::test]
async fn a_session_opened_after_a_rotation_uses_the_new_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("LLM_KEY");
    let web = Web::start(|_| Reply::completion(&["Good day."])).await;
    let store = SecretStore::environment().with_folder(folder.path());
    let config = OpenAiConfig {
        api_key: Some("file://LLM_KEY".to_owned()),
        ..OpenAiConfig::new("web", format!("{}/v1", web.url), "m")
    };
    let model = Arc::new(OpenAi::with_secrets(config, store).unwrap());
    for (nth, key) in [OLD, NEW].into_iter().enumerate() {
        std::fs::write(&file, format!("{key}\n")).unwrap();
        let mut builder = Builder::new(&Cast::default(), vec![]);
        builder.providers.add_llm(model.clone());
        builder.session = SessionId::new(format!("call-{nth}")).unwrap();
        builder.script.hang_up_after = Duration::from_mins(1);
        let bound = &mut builder.settings.defaults.provider_bindings;
        bound.insert(Modality::Llm, vec![ProviderId::new("web").unwrap()]);
        let client = builder.client();
        let call = builder.start().await;
        client.send(Ingress::Text("hello".to_owned())).unwrap();
        call.log.until(Signal::Close, 1).await;
        call.session.drain();
        assert_eq!(call.end().await.endings(), ["commit"]);
    }
    let sent: Vec<_> = web
        .asked()
        .into_iter()
        .map(|asked| asked.headers["authorization"].clone())
        .collect();
    assert_eq!(sent, [format!("Bearer {OLD}"), format!("Bearer {NEW}")]);
    // F-105: each request went over a new connection or over one that was there, and that is counted.
    let counts = model.connections();
    assert_eq!(counts.opened + counts.reused, 2);
    assert_eq!(counts.opened, web.connections() as u64);
}
