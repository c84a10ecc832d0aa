//! Published versions and the sessions that run them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt, StreamExt};
use rspp_controlplane::registry::{Artifact, Draft, Kind, PublishError, Published, publish};
use rspp_host::{
    Config, Event, Pools, Program, Reception, Runtime,
    node::{NodeContext, Step},
};
use rspp_kernel::SessionState;
use rspp_proto::{
    Actor, PipelineVersion, SessionId, TenantId, TraceId, WallClock,
    abi::{ControlSignal, Signal},
    control::Versions,
    spec::{Mode, PipelineSpec},
};
use rspp_tests::{
    call::{Builder, Cast, Ended, Placed, after_reply, bindings, first, says},
    nodes::{Probes, custom, insert},
};
use rspp_timeline::{Entry, Options, Recorder};
use rspp_transport_api::{
    Admitted, Grant, News, Refusal, Sessions, Wishes,
    loopback::{self, Script},
};

/// What was published, by version.
type Shelf = Arc<Mutex<BTreeMap<PipelineVersion, Artifact>>>;

/// Publishes a pipeline that calls itself `version`.
fn put(shelf: &Shelf, version: &str, instructions: &str) -> Result<(), PublishError> {
    let template = PipelineSpec::simple_template();
    let source = template.replace("version: simple-1", &format!("version: {version}"));
    let draft = Draft {
        kind: Kind::Pipeline,
        version: version.parse().expect("a version"),
        source: format!("{source}\n# {instructions}\n"),
        labels: BTreeMap::new(),
        author: Actor::new("ana").unwrap(),
    };
    let key = PipelineVersion::new(version).unwrap();
    let mut shelf = shelf.lock().unwrap();
    match publish(shelf.get(&key), None, draft, WallClock(1))? {
        Published::New(artifact) | Published::Already(artifact) => shelf.insert(key, artifact),
    };
    Ok(())
}

/// Finds what was published.
fn find(shelf: &Shelf, version: &PipelineVersion) -> Result<rspp_host::Published, Refusal> {
    let found = shelf.lock().unwrap().get(version).cloned();
    let artifact =
        found.ok_or_else(|| Refusal::NotHere(format!("`{version}` was never published")))?;
    let parsed = PipelineSpec::parse(version.as_str(), &artifact.source, Mode::Strict);
    Ok(rspp_host::Published {
        pipeline: parsed.expect("it was checked when it was published").spec,
        policy: None,
        providers: None,
    })
}

fn granted(session: &SessionId, version: &str) -> Admitted {
    Admitted::Granted(Grant {
        token_id: format!("token-{session}"),
        tenant: TenantId::new("acme").unwrap(),
        session: session.clone(),
        pipeline: Some(PipelineVersion::new(version).unwrap()),
        versions: Versions::default(),
        epoch: None,
        expires_at: WallClock(u64::MAX),
    })
}

/// F-002: a version is published, a client comes for it, and it runs: with the nodes and edges of that text and
/// no other, under a lease as its first event says, connected and in conversation as its state does; and it answers. A version that
/// nobody published opens nothing.
#[tokio::test(start_paused = true)]
async fn a_published_version_becomes_a_running_session() {
    let shelf = Shelf::default();
    put(&shelf, "greeter-2", "be brief").unwrap();
    let cast = Cast::default();
    let config = Config::new(cast.providers(), Pools::in_virtual_time(2));
    let runtime = Arc::new(Runtime::start(config).await.unwrap());
    let program = Program {
        pipeline: PipelineSpec::simple(),
        policy: None,
        settings: bindings(),
    };
    let (recorder, recording) = Recorder::in_memory(Options::default());
    let known = Arc::clone(&shelf);
    let reception = Reception::new(Arc::clone(&runtime), program)
        .recording(move |_begun| std::future::ready(Ok((recorder.clone(), None))).boxed())
        .finding(move |version, _goes_with| std::future::ready(find(&known, &version)).boxed());
    let script = || Script {
        utterances: vec![says(first())],
        ..Script::default()
    };
    let session = SessionId::new("call").unwrap();
    let (transport, _line) = loopback::call(script()).unwrap();
    let admitted = granted(&session, "greeter-2");
    let opened = reception
        .open(admitted, session.clone(), Wishes::default(), transport)
        .await
        .expect("it was published");
    let view = runtime.session(&session).expect("it runs");
    let version = PipelineVersion::new("greeter-2").unwrap();
    let spec = find(&shelf, &version).unwrap().pipeline;
    let effective = view.effective();
    let built: BTreeSet<_> = effective.graph.nodes.iter().map(|node| &node.id).collect();
    let named: BTreeSet<_> = spec.nodes.iter().map(|node| &node.id).collect();
    assert_eq!(built, named);
    let ends = |from: &str, to: &str| format!("{from} {to}");
    let mut wired: Vec<_> = effective
        .graph
        .edges
        .iter()
        .map(|edge| ends(edge.from.as_str(), edge.to.as_str()))
        .collect();
    let mut written: Vec<_> = spec
        .edges
        .iter()
        .map(|edge| ends(edge.from.as_str(), edge.to.as_str()))
        .collect();
    wired.sort();
    written.sort();
    assert_eq!(wired, written);
    let mut news = opened.news;
    let _first_news = news.next().await;
    assert_eq!(view.status().state, SessionState::Active);
    drop(view);
    let turn = loop {
        match news.next().await.expect("the session goes on") {
            News::Turn(turn) => break turn,
            News::Signal(_) => {}
        }
    };
    assert_eq!(
        (&*turn.outcome, &*turn.user_text),
        ("commit", "hello there")
    );
    drop(news);
    let _farewell = opened.ended.await;
    let entries = recording.entries();
    let said: Vec<_> = entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Signal(signal) => Some(&**signal),
            _another_entry => None,
        })
        .collect();
    assert_eq!(said[0].signal, Signal::LeaseIssued);
    let at = |signal: Signal| said.iter().position(|it| it.signal == signal);
    assert!(at(Signal::Connected) < at(Signal::TurnOpenProposed));
    let of_version = |it: &&ControlSignal| it.envelope.pipeline_version.as_str() == "greeter-2";
    assert!(at(Signal::Connected).is_some() && said.iter().all(of_version));

    let (transport, _line) = loopback::call(script()).unwrap();
    let admitted = granted(&session, "greeter-3");
    let refused = reception
        .open(admitted, session.clone(), Wishes::default(), transport)
        .await;
    assert!(matches!(refused, Err(Refusal::NotHere(_))), "{refused:?}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(runtime.sessions(), 0);
}

/// F-016: two versions run at once in one runtime, on the same audio: each session does what its own version says,
/// and nothing of the other is in what it leaves: no session, version, node, trace, state or word.
#[tokio::test(start_paused = true)]
async fn sessions_of_two_versions_share_nothing() {
    let mut probes = Probes::default();
    for kind in ["alpha", "beta"] {
        probes.add(kind, move |_nth, cx: &mut NodeContext, event: Event| {
            // State under the same key in both, which each has to find as it left it.
            let before = cx.hot_state().get("whose");
            assert!(before.is_none_or(|whose| whose == kind), "{kind}");
            cx.hot_state().put("whose", &kind.into()).unwrap();
            cx.forward(event);
            Step::OK
        });
    }
    let cast = Cast::default();
    let mut host = Builder::new(&cast, vec![]).configure(probes.install());
    let runtime = host.runtime().await;
    let mut placed = Vec::new();
    for (session, version, kind) in [
        ("call-a", "greeter-17", "alpha"),
        ("call-b", "greeter-18", "beta"),
    ] {
        let said = vec![says(first()), says(after_reply())];
        let mut call = Builder::new(&cast, said).pipeline(|spec| {
            spec.version = PipelineVersion::new(version).unwrap();
            insert(spec, "segmenter", custom(kind), "tts");
        });
        call.session = SessionId::new(session).unwrap();
        placed.push(call.open(&runtime).await.expect("there is room"));
    }
    let both = futures::future::join_all(placed.into_iter().map(Placed::end)).await;
    let left = |ended: &Ended| {
        let Ended {
            entries,
            report,
            log,
            ..
        } = ended;
        format!("{entries:?} {report:?} {:?}", log.notices())
    };
    let trace = |session: &str, turn: u32| {
        let session = SessionId::new(session).unwrap();
        let turn = rspp_proto::TurnNumber(turn).id();
        TraceId::of(&session, Some(&turn)).to_string()
    };
    for (ended, own, other) in [
        (
            &both[0],
            ["call-a", "greeter-17", "alpha"],
            ["call-b", "greeter-18", "beta"],
        ),
        (
            &both[1],
            ["call-b", "greeter-18", "beta"],
            ["call-a", "greeter-17", "alpha"],
        ),
    ] {
        assert_eq!(ended.endings(), ["commit", "commit"]);
        let text = left(ended);
        for own in own {
            assert!(text.contains(&format!("\"{own}\"")), "no {own}");
        }
        for other in other {
            assert!(!text.contains(other), "{other} in {own:?}");
        }
        let spans = rspp_timeline::trace::spans(&ended.entries);
        assert!(!spans.is_empty());
        for turn in 1..=2 {
            let others = trace(other[0], turn);
            assert!(spans.iter().all(|span| span.trace.to_string() != others));
        }
    }
    assert!(runtime.shut_down(Duration::from_secs(5)).await);
}
