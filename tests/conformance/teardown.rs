//! However stuck a session is, it ends within a bound, and nothing of it is left.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use rspp_host::{
    Config, Event, Notice,
    node::{Hook, Node, NodeContext, Step},
};
use rspp_kernel::SessionState;
use rspp_proto::spec::NodeKind;
use rspp_provider_api::scripted::{Conduct, Script, ScriptedLlm, ScriptedTts};
use rspp_tests::{
    call::{Builder, Cast, LONG, assert_nothing_left, first, says},
    nodes::{Probes, add, custom, get, insert},
};
use rspp_transport_api::Ingress;

/// What a session gives itself and all below it: two hooks and two graces, for four levels.
const BOUND: Duration = Duration::from_millis((2 * 250 + 2 * 75) * 4);

/// Counts how many of it there are.
struct Counted(Arc<AtomicU32>);

impl Counted {
    fn new(alive: &Arc<AtomicU32>) -> Self {
        add(alive);
        Self(Arc::clone(alive))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A node that heeds nothing: deaf to cancels in its work, and never done in its end.
struct Stuck {
    _alive: Counted,
    tasks: Arc<AtomicU32>,
}

impl Node for Stuck {
    fn on_event<'a>(
        &'a mut self,
        cx: &'a mut NodeContext,
        _port: rspp_host::Port,
        event: Event,
    ) -> Step<'a> {
        cx.forward(event);
        let task = Counted::new(&self.tasks);
        Step::Work(Box::pin(async move {
            let _held = task;
            std::future::pending().await
        }))
    }

    fn stop<'a>(&'a mut self, _cx: &'a mut NodeContext) -> Step<'a> {
        Step::Wait(Box::pin(std::future::pending()))
    }
}

fn deaf_cast() -> Cast {
    let deaf = || Script::always(Conduct::good().deaf());
    let llm = ScriptedLlm::new("llm").answers([LONG]);
    Cast {
        llm: Arc::new(llm.token_every(Duration::from_millis(100)).script(deaf())),
        tts: Arc::new(ScriptedTts::new("tts").script(deaf())),
        ..Cast::default()
    }
}

/// P15, P17, P20, F-012: the caller hangs up in mid-speech while providers and nodes of session and
/// turn are stuck: the session ends within its bound, says so, and nothing of it is left.
#[tokio::test(start_paused = true)]
async fn hanging_up_in_mid_speech_ends_a_stuck_session_within_the_bound() {
    let (nodes, tasks) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let mut registry = rspp_host::NodeRegistry::default();
    let (alive, running) = (Arc::clone(&nodes), Arc::clone(&tasks));
    registry.register(
        "stuck",
        Arc::new(move |_spec| {
            Box::new(Stuck {
                _alive: Counted::new(&alive),
                tasks: Arc::clone(&running),
            })
        }),
    );
    let cast = deaf_cast();
    let mut builder = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| {
            for (id, from, to) in [("ear", "stt", "turn"), ("mouth", "tts", "egress")] {
                let mut node = custom(id);
                node.kind = NodeKind::Custom("stuck".into());
                insert(spec, from, node, to);
            }
        })
        .configure(move |config: &mut Config| config.nodes = Arc::new(registry));
    let client = builder.client();
    let mut call = builder.start().await;
    // The listener keeps the words to itself, so the turn comes from text.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    client
        .send(Ingress::Text("hello".into()))
        .expect("connected");
    tokio::time::sleep(Duration::from_millis(1_150)).await;
    assert_eq!(get(&tasks), 2, "one listens, one speaks");
    assert_eq!(get(&nodes), 2);

    let began = tokio::time::Instant::now();
    call.line.hang_up();
    let report = tokio::time::timeout(BOUND, call.session.wait())
        .await
        .expect("within the bound")
        .expect("it leaves a report");
    let took = began.elapsed();
    assert_eq!(report.state, SessionState::Ended);
    assert_eq!(report.ended, "the user hung up");
    assert_eq!(report.turns.len(), 1);
    assert_eq!(
        report.turns[0].reason.as_deref(),
        Some("transport_disconnect_or_stall")
    );
    // The end is told to whoever listens.
    let mut ended = false;
    while let Ok(notice) = call.notices.try_recv() {
        ended |= matches!(notice, Notice::State(SessionState::Ended));
    }
    assert!(ended);

    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_nothing_left(&call.runtime);
    assert_eq!(get(&tasks), 0, "a task is left");
    assert_eq!(get(&nodes), 0, "a node is left");
    assert!(cast.is_idle(), "a provider still works for the call");
    assert!(took <= BOUND, "{took:?}");
    assert!(
        call.runtime.shut_down(Duration::from_secs(1)).await,
        "something had to be killed"
    );
}

/// P17: hooks run from the supervisor: a session that is stuck in one node stops all the others.
#[tokio::test(start_paused = true)]
async fn a_stuck_node_does_not_keep_the_others_from_their_end() {
    let mut probes = Probes::default();
    let healthy = probes.add_hooked("healthy", |_hook, _cx| Step::OK);
    let stuck = probes.add_hooked("stuck", |hook, _cx| match hook {
        Hook::Stop => Step::Wait(Box::pin(std::future::pending())),
        _others => Step::OK,
    });
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            insert(spec, "llm", custom("healthy"), "segmenter");
            insert(spec, "llm", custom("stuck"), "healthy");
            let mut ear = custom("ear");
            ear.kind = NodeKind::Custom("healthy".into());
            insert(spec, "stt", ear, "turn");
        })
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!([get(&healthy.init), get(&healthy.stop)], [2, 2]);
    assert_eq!([get(&stuck.init), get(&stuck.stop)], [1, 1]);
}
