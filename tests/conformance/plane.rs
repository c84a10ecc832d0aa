//! A node in a fleet: rights that are asked for, renewed and given up on ways that lose, delay and
//! double what is sent; conversations that go on elsewhere; and what becomes of both when the control
//! plane is away.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use rspp_controlplane_api::LeaseError;
use rspp_host::{
    AwayMode, Config, Emptying, OpenError, PlaneConfig, Pools, Runtime, SessionHandle,
    SessionRequest, ToolRegistry,
};
use rspp_proto::{
    AudioChunk, Epoch, IdempotencyKey, Region, RuntimeId, SampleRate, SessionId, TenantId,
    TurnNumber,
    abi::{Emitter, Signal},
    control::{Description, Endpoint, PROTOCOL, SessionPhase, Versions, WhyRevoked},
    spec::{NodeKind, PipelineSpec},
};
use rspp_provider_api::{
    LlmRequest, ToolCall, ToolOutput, function,
    scripted::{Answer, ScriptedLlm},
};
use rspp_tests::{
    call::{Cast, LONG, bindings},
    plane::{Plane, Proves, Seer, TTL, Way},
};
use rspp_timeline::{Entry, MemoryRecording, Options, Recorder};
use rspp_transport_api::{
    Ingress, Link, Outgoing, Sink, SinkError, Stamped, Transport, TransportKind,
};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn session() -> SessionId {
    SessionId::new("call").unwrap()
}

/// Everything that was played, by whom and when.
type Played = Arc<Mutex<Vec<(String, Instant)>>>;

/// A node of the fleet.
struct Node {
    name: String,
    runtime: Runtime,
    way: Arc<Seer>,
    played: Played,
    /// What its model was told, request by request.
    asked: Arc<Mutex<Vec<Vec<String>>>>,
    /// Orders that its tool has placed.
    orders: Arc<AtomicU32>,
}

/// The usual pipeline, and a tool whose effects stand.
fn pipeline() -> PipelineSpec {
    let mut spec = PipelineSpec::simple();
    let llm = spec.nodes.iter_mut().find(|it| it.kind == NodeKind::Llm);
    llm.expect("there is a model").tools = serde_json::from_value(json!([{
        "name": "order",
        "description": "Orders.",
        "parameters": { "type": "object" },
        "effects": "external",
    }]))
    .unwrap();
    spec
}

impl Node {
    async fn start(plane: &Plane, name: &str, played: &Played) -> Self {
        Self::start_with(plane, name, played, |_| {}).await
    }

    async fn start_with(
        plane: &Plane,
        name: &str,
        played: &Played,
        change: impl FnOnce(&mut PlaneConfig),
    ) -> Self {
        let asked = Arc::<Mutex<Vec<Vec<String>>>>::default();
        let noted = Arc::clone(&asked);
        let llm = ScriptedLlm::new("llm").answer_with(move |request: &LlmRequest| {
            let texts = request
                .messages
                .iter()
                .map(|message| message.content.clone());
            let texts: Vec<_> = texts.collect();
            let last = texts.last().cloned().unwrap_or_default();
            noted.lock().unwrap().push(texts);
            match &*last {
                text if text.contains("story") => LONG.repeat(4).as_str().into(),
                "an order, please" => Answer {
                    text: String::new(),
                    tool_calls: vec![ToolCall {
                        id: "call_0".to_owned(),
                        name: "order".to_owned(),
                        arguments: "{}".to_owned(),
                    }],
                },
                _another_text => "Good day to you.".into(),
            }
        });
        let orders = Arc::<AtomicU32>::default();
        let placed = Arc::clone(&orders);
        let mut tools = ToolRegistry::default();
        tools.register(
            "order",
            function(move |_run| {
                placed.fetch_add(1, Relaxed);
                async { Ok(ToolOutput::new("it is placed")) }
            }),
        );
        let cast = Cast {
            llm: Arc::new(llm),
            ..Cast::default()
        };
        let way = plane.seen_by(name);
        let description = Description {
            region: Region::new("eu").unwrap(),
            endpoints: vec![Endpoint {
                transport: "websocket".to_owned(),
                url: format!("ws://{name}.test/call"),
            }],
            capacity: 100,
            build: "test".to_owned(),
            protocol: PROTOCOL,
            events: "v1.0".to_owned(),
            labels: BTreeMap::new(),
        };
        let seen = Arc::<Seer>::clone(&way);
        let mut fleet = PlaneConfig::new(
            RuntimeId::new(name).unwrap(),
            description,
            seen,
            Arc::new(rspp_runtime::Signed),
        );
        change(&mut fleet);
        let mut config = Config::new(cast.providers(), Pools::in_virtual_time(2));
        config.plane = Some(fleet);
        config.tools = Arc::new(tools);
        config.seed = Some(name.bytes().map(u64::from).sum());
        let runtime = Runtime::start(config).await.expect("the runtime starts");
        Self {
            name: name.to_owned(),
            runtime,
            way,
            played: Arc::clone(played),
            asked,
            orders,
        }
    }

    /// Waits until the node has joined and heard its snapshots.
    async fn joined(&self) {
        let mut status = self.runtime.plane().unwrap().status();
        let ready = status.wait_for(rspp_host::PlaneStatus::is_ready);
        let ready = tokio::time::timeout(ms(10_000), ready).await;
        drop(ready.expect("it joins").expect("it goes on"));
    }

    async fn open(&self, session: SessionId) -> Result<Talk, OpenError> {
        self.open_as(session, Versions::default()).await
    }

    /// With these versions of policy and provider settings.
    async fn open_as(&self, session: SessionId, versions: Versions) -> Result<Talk, OpenError> {
        let (client, from_client) = mpsc::unbounded_channel();
        let source = futures::stream::unfold(from_client, |mut from| async move {
            from.recv().await.map(|ingress| (ingress, from))
        });
        let (recorder, recording) = Recorder::in_memory(Options::default());
        let handle = self
            .runtime
            .open(SessionRequest {
                tenant: TenantId::new("tenant").unwrap(),
                session,
                pipeline: pipeline(),
                policy: None,
                settings: bindings(),
                versions,
                attributes: BTreeMap::new(),
                transport: Transport {
                    kind: TransportKind::Websocket,
                    source_rate: SampleRate::HZ_16000,
                    source: Box::pin(source),
                    sink: Box::new(Ear {
                        node: self.name.clone(),
                        played: Arc::clone(&self.played),
                    }),
                    caller: None,
                },
                recorder,
            })
            .await?;
        Ok(Talk {
            handle,
            client,
            recording,
        })
    }

    /// A call in which a story is being told.
    async fn tells_a_story(&self) -> Talk {
        let talk = self.open(session()).await.unwrap();
        talk.types("tell me a story");
        talk.until(Signal::PlaybackStarted, 1).await;
        talk
    }

    /// What the model was told last.
    fn told(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap()
            .last()
            .cloned()
            .unwrap_or_default()
    }

    async fn stop(self) {
        assert!(self.runtime.shut_down(ms(5_000)).await);
    }
}

/// Notes what is played.
struct Ear {
    node: String,
    played: Played,
}

impl Sink for Ear {
    fn sample_rate(&self) -> SampleRate {
        SampleRate::HZ_16000
    }

    fn lead(&self) -> Duration {
        ms(60)
    }

    fn codec(&self) -> rspp_proto::Codec {
        rspp_proto::Codec::Pcm16
    }

    fn play(&mut self, _turn: TurnNumber, _chunk: &AudioChunk) -> Result<(), SinkError> {
        let mut played = self.played.lock().unwrap();
        played.push((self.node.clone(), Instant::now()));
        Ok(())
    }

    fn clear(&mut self, _turn: TurnNumber) {}

    fn send(&mut self, _outgoing: Outgoing) -> Result<(), SinkError> {
        Ok(())
    }

    fn pause(&mut self) {}

    fn wire(&self) -> Option<rspp_transport_api::wire::WireReport> {
        None
    }
}

/// A session on a node.
struct Talk {
    handle: SessionHandle,
    client: mpsc::UnboundedSender<Ingress>,
    recording: MemoryRecording,
}

impl Talk {
    fn types(&self, text: &str) {
        let text = Ingress::Text(text.to_owned());
        self.client.send(text).expect("the session goes on");
    }

    fn signals(&self) -> Vec<&'static str> {
        let entries = self.recording.entries();
        let signals = entries.iter().filter_map(Entry::signal);
        signals.map(Signal::as_str).collect()
    }

    async fn until(&self, signal: Signal, times: usize) {
        for _ in 0..60_000 {
            let signals = self.signals().into_iter();
            if signals.filter(|it| *it == signal.as_str()).count() >= times {
                return;
            }
            tokio::time::sleep(ms(1)).await;
        }
        panic!("no {times}. {signal} within a minute: {:?}", self.signals());
    }

    /// Asks something and waits until the answer has been committed.
    async fn exchange(&self, text: &str) {
        let before = self.signals().into_iter();
        let commits = before.filter(|it| *it == "commit").count();
        self.types(text);
        self.until(Signal::Commit, commits + 1).await;
    }

    /// Hangs up, and waits for the session's end.
    async fn over_now(self) -> rspp_host::report::SessionReport {
        let Self { handle, client, .. } = self;
        drop(client);
        handle.wait().await.expect("it leaves a report")
    }

    /// Waits for the session's end.
    async fn over(self) -> rspp_host::report::SessionReport {
        let over = tokio::time::timeout(ms(60_000), self.handle.wait()).await;
        over.expect("the session ends").expect("it leaves a report")
    }
}

/// Two nodes that have joined.
async fn pair(plane: &Plane, played: &Played) -> (Node, Node) {
    let a = Node::start(plane, "a", played).await;
    let b = Node::start(plane, "b", played).await;
    a.joined().await;
    b.joined().await;
    (a, b)
}

/// Nobody holds the session: whoever had it has given it up, and another may have it at once.
async fn assert_given_up(plane: &Plane) {
    tokio::time::sleep(ms(200)).await;
    let standing = plane.placement(&session()).unwrap();
    assert_eq!(standing.holder(), None, "it is given up, not waited for");
}

/// A session that came from elsewhere says so once its user is heard: by then it has its lease.
#[track_caller]
fn assert_arrived(signals: &[&str]) {
    assert_eq!(signals[0], "lease_rotated");
    let at = |name: &str| signals.iter().position(|it| *it == name);
    assert!(at("connected") < at("migration_finish"), "{signals:?}");
    assert!(at("migration_finish").is_some(), "{signals:?}");
}

/// Design §1 promise 3: whatever was played was played by whom the newest grant of that moment names.
#[track_caller]
fn assert_one_writer(plane: &Plane, played: &Played) {
    let grants = plane.grants();
    for (node, at) in &*played.lock().unwrap() {
        let newest = grants.iter().rfind(|(_, _, _, granted)| granted <= at);
        let (_, epoch, runtime, _) = newest.expect("nothing is played without a grant");
        assert_eq!(runtime.as_str(), node, "played after {epoch} was granted");
    }
}

/// Design §5, F-095: a node that joins is granted sessions, renews all of them in one request before half
/// of the lease is over, says how busy it is, and ends what is over for good.
#[tokio::test(start_paused = true)]
async fn a_node_holds_its_sessions_by_one_renewal() {
    let (plane, played) = (Plane::default(), Played::default());
    let node = Node::start(&plane, "a", &played).await;
    node.joined().await;
    let mut talks = Vec::new();
    for n in 0..20 {
        talks.push(
            node.open(SessionId::new(format!("s{n}")).unwrap())
                .await
                .unwrap(),
        );
    }
    let before = plane.calls("renew");
    tokio::time::sleep(TTL * 10).await;
    let renewals = plane.calls("renew") - before;
    assert!((30..=36).contains(&renewals), "{renewals}");
    assert_eq!(plane.held().last(), Some(&20));
    assert_eq!(plane.load("a").unwrap().sessions, 20);
    let first = SessionId::new("s0").unwrap();
    assert_eq!(plane.phase(&first), Some(SessionPhase::Running));
    talks[0].exchange("hello").await;
    for talk in talks {
        drop(talk.client);
        talk.handle.wait().await.expect("it leaves a report");
    }
    tokio::time::sleep(ms(100)).await;
    assert!(plane.has_ended(&first));
    assert_eq!(
        plane.value(&first, "/session"),
        None,
        "what is over is forgotten"
    );
    node.stop().await;
}

/// P25, F-095, F-155, F-158, NF-008: a node that is cut off in the middle of a reply falls silent before anybody
/// else can be granted its session; the other goes on with the same id, the words that were committed
/// and the keys of events that took effect, and says so. None of its turns is called as one of before.
#[tokio::test(start_paused = true)]
async fn a_session_goes_on_elsewhere_when_its_node_is_cut_off() {
    let (plane, played) = (Plane::default(), Played::default());
    let (a, b) = pair(&plane, &played).await;
    let old = a.open(session()).await.unwrap();
    let keyed = || {
        Ingress::Stamped(Box::new(Stamped {
            epoch: None,
            key: Some(IdempotencyKey::new("order-1").unwrap()),
            event: Ingress::Text("my name is Ada".to_owned()),
        }))
    };
    old.client.send(keyed()).unwrap();
    old.until(Signal::Commit, 1).await;
    old.types("tell me a story");
    old.until(Signal::PlaybackStarted, 2).await;
    a.way.set_way(Way::Cut);
    let cut = Instant::now();
    let new = b.open(session()).await.unwrap();
    let took = cut.elapsed();
    assert!(took <= TTL + ms(1_000) + ms(2_000), "{took:?}");
    let report = old.over().await;
    assert_eq!(report.turns[1].reason.as_deref(), Some("authority_loss"));
    assert_eq!(report.authority.stale_epoch_outputs_accepted, 0);
    let turns: Vec<_> = report.turns.iter().map(|it| it.turn_id.clone()).collect();
    new.client.send(keyed()).unwrap();
    tokio::time::sleep(ms(500)).await;
    new.exchange("who am I").await;
    assert_arrived(&new.signals());
    let told = b.told();
    assert!(told.contains(&"my name is Ada".to_owned()), "{told:?}");
    assert!(told.contains(&"Good day to you.".to_owned()), "{told:?}");
    assert_eq!(
        b.asked.lock().unwrap().len(),
        1,
        "the repetition has no effect"
    );
    assert_one_writer(&plane, &played);
    drop(new.client);
    let report = new.handle.wait().await.unwrap();
    assert_eq!(
        (report.session_id, report.epoch),
        (session(), Epoch::FIRST.next())
    );
    let again = report.turns.iter().find(|it| turns.contains(&it.turn_id));
    assert!(again.is_none(), "a turn is called as another: {again:?}");
    b.stop().await;
    a.stop().await;
}

/// F-096, P26, F-106, F-157: a session that is moved on order says what it has begun to say, keeps it, and is
/// handed over; the markers tell so on both sides, and no epoch overlaps.
#[tokio::test(start_paused = true)]
async fn a_session_moves_on_order() {
    let (plane, played) = (Plane::default(), Played::default());
    let (a, b) = pair(&plane, &played).await;
    let old = a.open(session()).await.unwrap();
    old.types("hello");
    old.until(Signal::PlaybackStarted, 1).await;
    plane.revoke(&session(), WhyRevoked::Transfer, Some("b"));
    let new = b.open(session()).await.unwrap();
    let signals = old.signals();
    let report = old.over().await;
    assert_eq!(report.turns[0].outcome, "commit", "what was begun is said");
    let moves = [
        "migration_start",
        "commit",
        "close",
        "session_handoff",
        "ended",
    ];
    let order: Vec<_> = signals.iter().filter(|it| moves.contains(*it)).collect();
    assert_eq!(order, moves.iter().collect::<Vec<_>>());
    new.exchange("and now").await;
    assert_arrived(&new.signals());
    assert!(b.told().contains(&"hello".to_owned()));
    assert_one_writer(&plane, &played);
    b.stop().await;
    a.stop().await;
}

/// F-096: a reply that is longer than a session may take to be let go is cut off; the order reaches the
/// node with a renewal where it was lost on its own way.
#[tokio::test(start_paused = true)]
async fn a_long_reply_is_cut_off_by_the_move() {
    let (plane, played) = (Plane::default(), Played::default());
    let a = Node::start(&plane, "a", &played).await;
    a.joined().await;
    let old = a.tells_a_story().await;
    plane.revoke(&session(), WhyRevoked::Region, None);
    let told = Instant::now();
    let report = old.over().await;
    assert!(told.elapsed() < TTL, "{:?}", told.elapsed());
    assert_eq!(report.turns[0].reason.as_deref(), Some("authority_loss"));
    assert_given_up(&plane).await;
    a.stop().await;
}

/// F-096, F-106: a reply that is longer than a lease is said to its end where the session may take so long to
/// go, under renewal after renewal; it is handed over right after it. The fuse of the order burns as long, so nobody else speaks before.
#[tokio::test(start_paused = true)]
async fn a_long_reply_is_said_to_its_end_before_the_move() {
    let (plane, played) = (Plane::default(), Played::default());
    let (a, b) = pair(&plane, &played).await;
    let old = a.tells_a_story().await;
    let told = Instant::now();
    plane.revoke_within(&session(), WhyRevoked::Drain, Some("b"), ms(60_000));
    let says = async {
        old.until(Signal::SessionHandoff, 1).await;
        (old.over().await, Instant::now())
    };
    let new = async {
        loop {
            match b.open(session()).await {
                Ok(new) => return new,
                // Whoever asks too early is told that it is held, and asks again.
                Err(OpenError::Lease(LeaseError::Refused {
                    may_retry: true, ..
                })) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let ((report, over), new) = tokio::join!(says, new);
    assert!(over - told > 2 * TTL, "{:?} is no long reply", over - told);
    assert!(over - told < ms(55_000), "{:?}", over - told);
    assert_eq!(report.turns[0].outcome, "commit");
    new.exchange("and now").await;
    assert_arrived(&new.signals());
    assert_one_writer(&plane, &played);
    b.stop().await;
    a.stop().await;
}

/// F-096: what is not over when the time to finish is up is cut off, and no sooner.
#[tokio::test(start_paused = true)]
async fn who_does_not_finish_in_time_is_cut_off() {
    let (plane, played) = (Plane::default(), Played::default());
    let a = Node::start(&plane, "a", &played).await;
    a.joined().await;
    let old = a.tells_a_story().await;
    let told = Instant::now();
    plane.revoke_within(&session(), WhyRevoked::Drain, None, ms(8_000));
    let report = old.over().await;
    let took = told.elapsed();
    assert!(took > TTL && took < ms(7_200), "{took:?}");
    assert_eq!(report.turns[0].reason.as_deref(), Some("authority_loss"));
    assert_given_up(&plane).await;
    a.stop().await;
}

/// F-096, F-106: nobody waits for the end of a reply that nobody hears: a session whose client is away goes at once,
/// whatever time it has.
#[tokio::test(start_paused = true)]
async fn what_nobody_hears_is_not_waited_for() {
    let (plane, played) = (Plane::default(), Played::default());
    let a = Node::start(&plane, "a", &played).await;
    a.joined().await;
    for away_first in [true, false] {
        let old = a.tells_a_story().await;
        let gone = || old.client.send(Ingress::Link(Link::Reconnecting)).unwrap();
        if away_first {
            gone();
            tokio::time::sleep(ms(50)).await;
        }
        plane.revoke_within(&session(), WhyRevoked::Drain, None, ms(60_000));
        if !away_first {
            tokio::time::sleep(ms(50)).await;
            gone();
        }
        let told = Instant::now();
        let report = old.over().await;
        assert!(told.elapsed() < ms(500), "{:?}", told.elapsed());
        let turn = report.turns.last().unwrap();
        assert_eq!(
            turn.reason.as_deref(),
            Some("transport_disconnect_or_stall")
        );
        assert_given_up(&plane).await;
    }
    a.stop().await;
}

/// Lost answers, doubled requests, slow ways: one grant for one wish, and nobody falls silent for less
/// than the rest of a lease.
#[tokio::test(start_paused = true)]
async fn what_is_lost_or_doubled_has_one_effect() {
    let (plane, played) = (Plane::default(), Played::default());
    let a = Node::start(&plane, "a", &played).await;
    a.joined().await;
    for ways in [
        vec![Way::AnswerLost],
        vec![Way::Cut, Way::AnswerLost],
        vec![Way::Doubled(ms(700)), Way::Doubled(ms(2_000))],
        vec![Way::Open(ms(300)), Way::AnswerLost, Way::Doubled(ms(50))],
    ] {
        let grants = plane.grants().len();
        let name = SessionId::new(format!("s{grants}")).unwrap();
        a.way.then(ways.clone());
        let talk = a.open(name.clone()).await.unwrap();
        tokio::time::sleep(ms(3_000)).await;
        talk.exchange("hello").await;
        assert_eq!(plane.grants().len(), grants + 1, "{ways:?}");
        drop(talk.client);
        talk.handle.wait().await.unwrap();
        tokio::time::sleep(ms(5_000)).await;
        assert!(plane.has_ended(&name), "{ways:?}");
    }
    a.stop().await;
}

/// P2, lifecycle.md §7: a turn is committed once it is kept, and not before: whoever takes the session
/// over after any commit has its words.
#[tokio::test(start_paused = true)]
async fn a_turn_is_committed_once_it_is_kept() {
    let (plane, played) = (Plane::default(), Played::default());
    let a = Node::start(&plane, "a", &played).await;
    a.joined().await;
    let talk = a.open(session()).await.unwrap();
    talk.types("hello");
    talk.until(Signal::PlaybackStarted, 1).await;
    a.way.set_way(Way::Open(ms(350)));
    talk.until(Signal::Commit, 1).await;
    let kept = plane
        .value(&session(), "/session")
        .expect("it is kept by now");
    assert!(kept.value.contains("Good day to you."), "{}", kept.value);
    // Cut off, it cannot be kept: the turn is not committed, and the session ends with its lease.
    a.way.set_way(Way::Open(ms(5)));
    talk.types("and again");
    talk.until(Signal::PlaybackStarted, 2).await;
    a.way.set_way(Way::Cut);
    let report = talk.over().await;
    assert_ne!(report.turns[1].outcome, "commit");
    a.stop().await;
}

/// Issue 4, 10: a short absence of the control plane is not noticed by anybody who talks; new sessions
/// are refused at once while it lasts and the lease is over, and taken again by themselves after.
#[tokio::test(start_paused = true)]
async fn a_node_outlives_a_short_absence_and_recovers_from_a_long_one() {
    let (plane, played) = (Plane::default(), Played::default());
    let a = Node::start(&plane, "a", &played).await;
    a.joined().await;
    let talk = a.open(session()).await.unwrap();
    talk.exchange("hello").await;
    a.way.set_way(Way::Cut);
    tokio::time::sleep(ms(1_500)).await;
    a.way.set_way(Way::Open(ms(5)));
    tokio::time::sleep(TTL * 3).await;
    talk.exchange("still there").await;
    assert_eq!(plane.grants().len(), 1);

    a.way.set_way(Way::Cut);
    let report = talk.over().await;
    assert_eq!(report.session_id, session());
    let asked = Instant::now();
    let refused = a.open(SessionId::new("other").unwrap()).await;
    assert!(matches!(refused, Err(OpenError::Lease(_))));
    assert!(asked.elapsed() < ms(100), "nobody is kept waiting");
    let own = a.runtime.plane().unwrap().name_session();
    assert!(a.open(own).await.is_err(), "strict is the default");
    a.way.set_way(Way::Open(ms(5)));
    a.joined().await;
    let again = a.open(session()).await.unwrap();
    again.exchange("here again").await;
    assert!(a.told().contains(&"still there".to_owned()));
    a.stop().await;
}

/// F-098: in availability mode a node goes on taking sessions that nobody else can ever be
/// given, and no others.
#[tokio::test(start_paused = true)]
async fn in_availability_mode_only_what_nobody_else_can_have_is_taken() {
    let (plane, played) = (Plane::default(), Played::default());
    let a = Node::start_with(&plane, "a", &played, |fleet| {
        fleet.mode = AwayMode::Availability;
        fleet.max_staleness = Duration::from_mins(10);
    })
    .await;
    a.joined().await;
    a.way.set_way(Way::Cut);
    tokio::time::sleep(TTL * 2).await;
    assert!(a.open(session()).await.is_err());
    let own = a.runtime.plane().unwrap().name_session();
    let talk = a.open(own.clone()).await.unwrap();
    talk.exchange("hello").await;
    talk.exchange("an order, please").await;
    assert_eq!(a.orders.load(Relaxed), 1, "nobody else could place it");
    // What was chosen is on record, and whoever asks is told.
    let entries = talk.recording.entries();
    let uncounted = entries.iter().any(|entry| {
        matches!(entry, Entry::Outcome(it)
            if it.reason.as_str() == "cp_admission_allowed_uncounted")
    });
    assert!(uncounted && talk.handle.status().is_degraded());
    assert!(a.open(own.clone()).await.is_err(), "each is begun once");
    // It outlives the return of the control plane, which never hears of it.
    a.way.set_way(Way::Open(ms(5)));
    a.joined().await;
    tokio::time::sleep(TTL * 2).await;
    talk.exchange("an order, please").await;
    assert_eq!(a.orders.load(Relaxed), 2);
    drop(talk.client);
    talk.handle.wait().await.unwrap();
    assert_eq!(plane.placement(&own), None);
    a.stop().await;
}

/// F-050, F-098: what models use while the control plane is away is told once it is back, and counts once, however
/// often its answer is lost. What is older by then than the minute that a limit looks at is given up, and how much
/// that was is known.
#[tokio::test(start_paused = true)]
async fn tokens_of_a_long_absence_count_once_or_are_given_up() {
    let (plane, played) = (Plane::default(), Played::default());
    let a = Node::start_with(&plane, "a", &played, |fleet| {
        fleet.mode = AwayMode::Availability;
        fleet.max_staleness = Duration::from_mins(10);
    })
    .await;
    a.joined().await;
    a.way.set_way(Way::Cut);
    tokio::time::sleep(TTL * 2).await;
    let own = a.runtime.plane().unwrap().name_session();
    let talk = a.open(own).await.unwrap();
    talk.exchange("hello").await;
    tokio::time::sleep(ms(70_000)).await;
    talk.exchange("still there").await;
    assert_eq!(plane.used("tenant"), 0);

    a.way.set_way(Way::Open(ms(5)));
    a.joined().await;
    tokio::time::sleep(TTL).await;
    a.way.set_way(Way::AnswerLost);
    talk.exchange("and now").await;
    tokio::time::sleep(ms(2_000)).await;
    a.way.set_way(Way::Open(ms(5)));
    tokio::time::sleep(TTL * 2).await;

    let report = talk.over_now().await;
    let spent = report.turns.iter().map(|turn| {
        let spending = &turn.spending;
        spending.tokens_read + spending.tokens_written
    });
    let spent: Vec<u64> = spent.collect();
    assert!(
        spent.len() == 3 && spent.iter().all(|it| *it > 0),
        "{spent:?}"
    );
    assert_eq!(plane.used("tenant"), spent[1] + spent[2]);
    assert_eq!(a.runtime.uncounted().tokens, spent[0]);
    a.stop().await;
}

/// CT-006, T2, F-155: turns open by snapshots that were heard of lately, and name them; what has gone stale
/// opens none until others come.
#[tokio::test(start_paused = true)]
async fn turns_open_by_fresh_snapshots_only() {
    let (plane, played) = (Plane::default(), Played::default());
    let a = Node::start_with(&plane, "a", &played, |fleet| {
        fleet.max_staleness = ms(1_200);
    })
    .await;
    a.joined().await;
    let talk = a.open(session()).await.unwrap();
    talk.exchange("hello").await;
    plane.publish();
    tokio::time::sleep(ms(100)).await;
    talk.exchange("again").await;
    let names = talk
        .recording
        .entries()
        .into_iter()
        .filter_map(|entry| match entry {
            Entry::Plan(plan) => {
                let plan = serde_json::to_value(&plan.plan).unwrap();
                let name = &plan["snapshot_provenance"]["routing_view_snapshot"];
                Some(name.as_str().unwrap_or_default().to_owned())
            }
            _another_entry => None,
        });
    let names: Vec<_> = names.collect();
    assert!(names.contains(&"routing-view/1".to_owned()), "{names:?}");
    assert_eq!(names.last().map(String::as_str), Some("routing-view/2"));
    a.way.set_way(Way::Cut);
    tokio::time::sleep(ms(1_600)).await;
    talk.types("is anybody there");
    talk.until(Signal::Defer, 1).await;
    a.way.set_way(Way::Open(ms(5)));
    tokio::time::sleep(ms(1_500)).await;
    talk.exchange("and now").await;
    a.stop().await;
}

/// The view of the fleet that a session was taken on by, as its recording says it.
#[track_caller]
fn taken_on_by(talk: &Talk) -> rspp_timeline::ViewNote {
    let entries = talk.recording.entries().into_iter();
    let mut openings = entries.filter_map(|entry| match entry {
        Entry::Opening(opening) => opening.routing_view.clone(),
        _another_entry => None,
    });
    openings.next().expect("it came by a view")
}

/// F-159: who takes a session on looks anew where the fleet's view is older than its bound, before the session
/// is asked for; the recording says by which view it came, and its turns name that one. One that is recent is
/// not asked for again.
#[tokio::test(start_paused = true)]
async fn a_stale_view_is_refreshed_before_a_session_is_taken_on() {
    let (plane, played) = (Plane::default(), Played::default());
    let (a, b) = pair(&plane, &played).await;
    let old = a.open(session()).await.unwrap();
    old.exchange("my name is Ada").await;
    b.way.asked();
    let fresh = b.open(SessionId::new("other").unwrap()).await.unwrap();
    assert_eq!(b.way.asked()[0], "acquire", "what was heard just now does");
    let view = taken_on_by(&fresh);
    assert_eq!(
        (view.name.as_deref(), view.refreshed),
        (Some("routing-view/1"), false)
    );
    // Its stream says nothing any more, and nobody tells it so; meanwhile the fleet changes.
    b.way.stall_snapshots();
    plane.publish();
    tokio::time::sleep(ms(6_000)).await;
    a.way.set_way(Way::Cut);
    tokio::time::sleep(TTL * 2).await;
    b.way.asked();
    let new = b.open(session()).await.unwrap();
    let asked = b.way.asked();
    let at = |kind: &str| asked.iter().position(|it| *it == kind);
    assert_eq!(at("snapshots"), Some(0), "{asked:?}");
    assert!(at("acquire") > at("snapshots"), "{asked:?}");
    let view = taken_on_by(&new);
    assert_eq!(view.name.as_deref(), Some("routing-view/2"));
    assert!(view.refreshed && view.age_ms.unwrap() < 100, "{view:?}");
    new.exchange("who am I").await;
    assert_arrived(&new.signals());
    let named = new
        .recording
        .entries()
        .into_iter()
        .any(|entry| match entry {
            Entry::Plan(plan) => {
                let plan = serde_json::to_value(&plan.plan).unwrap();
                plan["snapshot_provenance"]["routing_view_snapshot"] == "routing-view/2"
            }
            _another_entry => false,
        });
    assert!(named, "its turns go by it");
    for node in [a, b] {
        node.stop().await;
    }
}

/// F-159: a view that cannot be refreshed refuses the session, with what is known and what was in the way, and
/// nothing is asked for; one after another waits for the same look. In the other mode it goes on by what is known.
#[tokio::test(start_paused = true)]
async fn a_view_that_cannot_be_refreshed_refuses_or_follows_the_mode() {
    let (plane, played) = (Plane::default(), Played::default());
    let strict = Node::start(&plane, "a", &played).await;
    let available = Node::start_with(&plane, "b", &played, |fleet| {
        fleet.mode = AwayMode::Availability;
    })
    .await;
    for node in [&strict, &available] {
        node.joined().await;
        node.way.set_way(Way::Cut);
    }
    tokio::time::sleep(ms(6_000)).await;
    strict.way.asked();
    let (one, two) = (
        SessionId::new("one").unwrap(),
        SessionId::new("two").unwrap(),
    );
    let (first, second) = tokio::join!(strict.open(one), strict.open(two));
    for refused in [first, second] {
        let Err(OpenError::Lease(why)) = refused else {
            panic!("it was let in");
        };
        let why = why.to_string();
        assert!(
            why.contains("routing_view_stale: `routing-view/1` is 6.")
                && why.contains("5s is allowed, and it could not be refreshed: nobody answered"),
            "{why}"
        );
    }
    let asked = strict.way.asked();
    assert_eq!(
        asked.iter().filter(|it| **it == "snapshots").count(),
        1,
        "{asked:?}"
    );
    assert!(!asked.contains(&"acquire"), "{asked:?}");
    let link = strict.runtime.plane().unwrap();
    assert_eq!(link.view(), None, "no client is sent anywhere by it");
    let own = available.runtime.plane().unwrap().name_session();
    let talk = available.open(own).await.unwrap();
    let view = taken_on_by(&talk);
    assert!(!view.refreshed && view.age_ms.unwrap() > 5_000, "{view:?}");
    let link = available.runtime.plane().unwrap();
    assert_eq!(
        link.view().unwrap().name,
        "routing-view/1",
        "its mode says so"
    );
    for node in [strict, available] {
        node.stop().await;
    }
}

/// P26, NF-016, F-106: a node that is emptied takes nobody on, lets its sessions go once what they say is
/// said, and is empty in time; none of them loses a word that was committed.
#[tokio::test(start_paused = true)]
async fn an_emptied_node_loses_no_session() {
    let (plane, played) = (Plane::default(), Played::default());
    let (a, b) = pair(&plane, &played).await;
    let names: Vec<_> = (0..5)
        .map(|n| SessionId::new(format!("s{n}")).unwrap())
        .collect();
    let mut talks = Vec::new();
    for name in &names {
        talks.push(a.open(name.clone()).await.unwrap());
    }
    for (talk, name) in talks.iter().zip(&names) {
        talk.exchange(&format!("I am {name}")).await;
    }
    talks[0].types("tell me a story");
    talks[0].until(Signal::PlaybackStarted, 2).await;
    a.runtime.empty(Emptying::Move, ms(3_000));
    let refused = a.open(SessionId::new("new").unwrap()).await;
    assert!(matches!(refused, Err(OpenError::Emptying)));
    for talk in talks {
        talk.over().await;
    }
    tokio::time::sleep(ms(100)).await;
    assert_eq!(a.runtime.sessions(), 0);
    a.stop().await;
    for name in &names {
        let talk = b.open(name.clone()).await.unwrap();
        talk.exchange("who am I").await;
        assert!(b.told().contains(&format!("I am {name}")));
    }
    b.stop().await;
}

/// P26, NF-016: a session that nobody took before its node had to end is drained with it, which does not end it
/// for good: it goes on elsewhere, and knows what was said.
#[tokio::test(start_paused = true)]
async fn a_drained_session_may_go_on_elsewhere() {
    let (plane, played) = (Plane::default(), Played::default());
    let (a, b) = pair(&plane, &played).await;
    let talk = a.open(session()).await.unwrap();
    talk.exchange("I am Ada").await;
    talk.types("tell me a story");
    talk.until(Signal::PlaybackStarted, 2).await;
    talk.handle.drain();
    let report = talk.over().await;
    assert_eq!(report.ended, "the session was drained");
    assert_eq!(report.turns.len(), 2, "what is said is said to its end");
    a.stop().await;
    let talk = b.open(session()).await.unwrap();
    talk.exchange("who am I").await;
    assert!(b.told().contains(&"I am Ada".to_owned()));
    assert_one_writer(&plane, &played);
    b.stop().await;
}

/// A node whose life the control plane does not know any more starts another one; what stood on the old
/// one is silent, and can be had anew.
#[tokio::test(start_paused = true)]
async fn a_node_that_was_forgotten_begins_another_life() {
    let (plane, played) = (Plane::default(), Played::default());
    let a = Node::start(&plane, "a", &played).await;
    a.joined().await;
    let talk = a.open(session()).await.unwrap();
    talk.exchange("hello").await;
    plane.forget_lives();
    let report = talk.over().await;
    assert_eq!(report.epoch, Epoch::FIRST);
    a.joined().await;
    let talk = a.open(session()).await.unwrap();
    talk.exchange("again").await;
    assert!(a.told().contains(&"hello".to_owned()));
    assert_one_writer(&plane, &played);
    assert_eq!(plane.calls("register"), 2);
    a.stop().await;
}

/// CT-006, F-102, F-099: a session keeps the versions that it was bound to; whoever would run it as something else,
/// here or elsewhere, is refused and holds nothing, and with the right ones it goes on.
#[tokio::test(start_paused = true)]
async fn a_session_is_run_as_what_it_is_bound_to() {
    let (plane, played) = (Plane::default(), Played::default());
    let (a, b) = pair(&plane, &played).await;
    let of = |policy: &str| Versions {
        policy: Some(policy.to_owned()),
        providers: Some("simple-4".to_owned()),
    };
    let old = a.open_as(session(), of("simple-1")).await.unwrap();
    old.exchange("my name is Ada").await;
    a.way.set_way(Way::Cut);
    old.over().await;
    for wrong in [of("simple-2"), Versions::default()] {
        let refused = b.open_as(session(), wrong).await;
        let Err(OpenError::BoundOtherwise { bound, .. }) = refused else {
            panic!("it was run as something else");
        };
        assert_eq!(bound.policy.as_deref(), Some("simple-1"));
        tokio::time::sleep(ms(100)).await;
        let standing = plane.placement(&session()).unwrap();
        assert_eq!(standing.holder(), None, "nobody holds what nobody runs");
    }
    let new = b.open_as(session(), of("simple-1")).await.unwrap();
    new.exchange("who am I").await;
    assert!(b.told().contains(&"my name is Ada".to_owned()));
    assert_one_writer(&plane, &played);
    b.stop().await;
    a.stop().await;
}

/// CT-006, Design §7, F-095: a lease whose proof is forged, over, of another epoch, or signed by a key that nobody
/// was told of is no lease: the session does not open, and is given back.
#[tokio::test(start_paused = true)]
async fn a_lease_is_believed_by_its_proof_only() {
    let (plane, played) = (Plane::default(), Played::default());
    let a = Node::start(&plane, "a", &played).await;
    a.joined().await;
    for (number, (proves, told)) in [
        (Proves::Forged, "token_bad_signature"),
        (Proves::Expired, "token_expired"),
        (Proves::Older, "token_wrong_audience"),
        (Proves::Unheard, "its key is not known here yet"),
    ]
    .into_iter()
    .enumerate()
    {
        plane.prove(proves);
        let name = SessionId::new(format!("s{number}")).unwrap();
        let Err(OpenError::Lease(refused)) = a.open(name.clone()).await else {
            panic!("{proves:?} was believed");
        };
        assert!(refused.to_string().contains(told), "{refused}");
        tokio::time::sleep(ms(100)).await;
        assert_eq!(plane.placement(&name).unwrap().holder(), None);
        plane.prove(Proves::Well);
        let talk = a.open(name).await.unwrap();
        talk.exchange("hello").await;
    }
    a.stop().await;
}

/// CT-006, F-098, F-101, F-048: whoever is let in beyond a limit is served with less, and that is on record and in
/// the session's status for as long as it lasts.
#[tokio::test(start_paused = true)]
async fn who_is_let_in_beyond_a_limit_is_known_to_be() {
    let (plane, played) = (Plane::default(), Played::default());
    let a = Node::start(&plane, "a", &played).await;
    a.joined().await;
    let full = a.open(SessionId::new("within").unwrap()).await.unwrap();
    plane.degrade(true);
    let less = a.open(session()).await.unwrap();
    full.exchange("hello").await;
    less.exchange("hello").await;
    tokio::time::sleep(ms(2_500)).await;
    let within = SessionId::new("within").unwrap();
    assert_eq!(plane.phase(&within), Some(SessionPhase::Running));
    assert_eq!(plane.phase(&session()), Some(SessionPhase::Degraded));
    let decided = |talk: &Talk| {
        let entries = talk.recording.entries().into_iter();
        let outcomes = entries.filter_map(|entry| match entry {
            Entry::Outcome(outcome) if outcome.emitted_by == Emitter::ControlPlaneAdmission => {
                Some(outcome.reason.to_string())
            }
            _another_entry => None,
        });
        outcomes.collect::<Vec<_>>()
    };
    assert_eq!(decided(&full), [""; 0]);
    assert_eq!(decided(&less), ["cp_admission_allowed_degraded"]);
    assert!(less.signals().contains(&"degrade"));
    a.stop().await;
}
