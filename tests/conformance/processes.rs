//! Nodes in processes of their own: real processes, in real time.

use std::{
    fs,
    num::{NonZeroU32, NonZeroUsize},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::future::join_all;
use rspp_host::{
    NodeRegistry, Runtime,
    node::{ProcessCommand, Sandbox},
};
use rspp_kernel::CancelReason;
use rspp_proto::{
    Payload, SessionId,
    abi::Signal,
    spec::{
        ErrorAction, NetworkAccess, NodeExecutionPolicy, NodeSpec, PipelineSpec, SandboxPolicy,
    },
};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Call, Cast, Ended, assert_nothing_left},
    nodes::{custom, insert},
};
use rspp_transport_api::Ingress;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use tokio::{sync::mpsc::UnboundedSender, time::Instant};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A name that no other process of these tests has.
fn tag() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "rspp-echo-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Relaxed)
    )
}

/// Processes that were given this name and are not dead yet.
fn alive(tag: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let name = entry.ok()?.file_name();
        name.to_str()?.parse::<u32>().ok()
    });
    pids.filter(|pid| {
        let named = fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.windows(tag.len()).any(|part| part == tag.as_bytes()));
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        named && !state.contains(") Z ")
    })
    .collect()
}

/// The example node.
fn echo(tag: &str) -> ProcessCommand {
    let mut command = ProcessCommand::new(env!("CARGO_BIN_EXE_echo-node"));
    command.arguments = vec![tag.to_owned()];
    // A busy machine is no fault of the node's.
    command.start_timeout = Duration::from_secs(10);
    command.event_timeout = Duration::from_secs(10);
    command
}

/// A call in which the user types, and the model's words go through an external node.
struct Typed {
    call: Call,
    user: UnboundedSender<Ingress>,
}

fn through_echo(spec: &mut PipelineSpec, node: NodeSpec) {
    insert(spec, "llm", node, "segmenter");
    spec.budgets.turn_budget_ms = Some(30_000);
}

async fn typed(command: ProcessCommand, answers: &[&str], node: NodeSpec) -> Typed {
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers(answers.iter().copied())),
        ..Cast::default()
    };
    let mut registry = NodeRegistry::default();
    registry.register_process("echo", command);
    let mut builder = Builder::new(&cast, vec![])
        .pipeline(|spec| through_echo(spec, node))
        .configure(|config| config.nodes = Arc::new(registry));
    builder.script.reply_timeout = Duration::from_mins(1);
    // A busy machine is slow, and nobody hangs up for that.
    builder.script.hang_up_after = Duration::from_mins(1);
    let user = builder.client();
    let call = builder.start().await;
    Typed { call, user }
}

impl Typed {
    fn say(&self, text: &str) {
        self.user
            .send(Ingress::Text(text.into()))
            .expect("connected");
    }

    /// Waits for the end of the `n`-th turn.
    async fn closed(&self, n: usize) {
        self.call.log.until(Signal::Close, n).await;
    }

    async fn hang_up(self) -> Ended {
        self.call.line.hang_up();
        self.call.end().await
    }
}

/// Waits until `holds`, and for no longer than 5 s.
#[track_caller]
fn eventually(holds: impl Fn() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < Duration::from_secs(5), "not so: {caller}");
            tokio::time::sleep(ms(5)).await;
        }
    }
}

fn errors(ended: &Ended) -> String {
    let payloads = ended.log.payloads().into_iter();
    let messages = payloads.filter_map(|payload| match payload {
        Payload::Error(note) => Some(note.message),
        _something_else => None,
    });
    messages.collect::<Vec<_>>().join("\n")
}

/// F-011, F-122: events go to a process and come back, stamped as the runtime's own, and the process
/// ends with its turn.
#[tokio::test]
async fn events_go_through_a_process_and_back() {
    let tag = tag();
    let typed = typed(echo(&tag), &["Hi there.", "And again."], custom("echo")).await;
    for turn in 1..=2 {
        typed.say("hello");
        typed.closed(turn).await;
    }
    let ended = typed.hang_up().await;
    assert_eq!(ended.endings(), ["commit", "commit"], "{}", errors(&ended));
    assert_eq!(ended.turn(1).agent_text_played, "Hi there.");
    assert_eq!(ended.turn(2).agent_text_played, "And again.");
    assert_eq!(alive(&tag), [0; 0]);
    assert!(ended.report.degraded.is_empty());
}

/// F-122: the protocol needs no library of ours: the same in Python.
#[tokio::test]
async fn a_node_may_be_written_in_python() {
    let python = Path::new("/usr/bin/python3");
    assert!(python.exists(), "this test needs {}", python.display());
    let tag = tag();
    let mut command = ProcessCommand::new(python);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/nodes/echo.py");
    command.arguments = vec![script.to_owned(), tag.clone()];
    command.start_timeout = Duration::from_secs(10);
    command.event_timeout = Duration::from_secs(5);
    let typed = typed(command, &["Hi there."], custom("echo")).await;
    typed.say("hello");
    typed.closed(1).await;
    let ended = typed.hang_up().await;
    assert_eq!(ended.endings(), ["commit"], "{}", errors(&ended));
    assert_eq!(ended.turn(1).agent_text_played, "HI THERE.");
    assert_eq!(alive(&tag), [0; 0]);
}

/// F-036, F-122: a cancel reaches the process; one that heeds it lives on until its turn's end, and the
/// session is as well as before.
#[tokio::test]
async fn a_process_that_heeds_its_cancel_is_not_killed() {
    let tag = tag();
    let mut command = echo(&tag);
    command.event_timeout = Duration::from_mins(1);
    let mut node = custom("echo");
    node.budget_ms = Some(60_000);
    let typed = typed(command, &["wait here.", "Hi there."], node).await;
    typed.say("hello");
    eventually(|| alive(&tag).len() == 1).await;
    tokio::time::sleep(ms(200)).await;
    typed.call.session.cancel(CancelReason::UserCancel).await;
    typed.closed(1).await;
    assert!(!typed.call.session.status().is_degraded());
    typed.say("again");
    typed.closed(2).await;
    let ended = typed.hang_up().await;
    assert_eq!(
        ended.endings(),
        ["cancelled", "commit"],
        "{}",
        errors(&ended)
    );
    assert_eq!(alive(&tag), [0; 0]);
}

/// F-037, F-122: a process that is deaf to its cancel is killed when its grace ends, with all that it
/// has started: none of it is left. The session is degraded, and the call goes on.
#[tokio::test]
async fn a_deaf_process_is_killed_with_all_that_it_has_started() {
    let tag = tag();
    let mut command = echo(&tag);
    command.event_timeout = Duration::from_mins(1);
    let mut node = custom("echo");
    node.budget_ms = Some(60_000);
    let typed = typed(command, &["spawn hang on.", "Hi there."], node).await;
    typed.say("hello");
    eventually(|| alive(&tag).len() == 2).await;
    tokio::time::sleep(ms(200)).await;
    assert_eq!(alive(&tag).len(), 2, "it and its child");
    let began = Instant::now();
    typed.call.session.cancel(CancelReason::UserCancel).await;
    eventually(|| alive(&tag).is_empty()).await;
    let took = began.elapsed();
    assert!(took >= ms(75), "it had no grace: {took:?}");
    eventually(|| typed.call.session.status().is_degraded()).await;
    let status = typed.call.session.status();
    assert_eq!(status.degraded[0].reason, "node_deaf_to_cancel");
    typed.closed(1).await;
    typed.say("again");
    typed.closed(2).await;
    let ended = typed.hang_up().await;
    assert_eq!(
        ended.endings(),
        ["cancelled", "commit"],
        "{}",
        errors(&ended)
    );
}

/// F-122, F-134: however a process fails, it costs its turn and nothing else: the next turn has a new
/// one, and nothing is left of the old.
#[tokio::test]
async fn however_a_process_fails_only_its_turn_does() {
    let cases = [
        ("crash now.", "was ended by signal 6"),
        ("exit now.", "exited with code 3"),
        ("garbage now.", "sent what cannot be read"),
        ("endless now.", "a frame of 4294967295 bytes"),
        ("double now.", "answered what it was not asked"),
        ("flood now.", "emitted more than 64 events"),
        ("hang now.", "took longer than 500 ms for an event"),
        ("refuse now.", "it was told to"),
        ("swell now.", "was ended by signal 6"),
    ];
    let calls = cases.map(|(answer, expected)| async move {
        let tag = tag();
        let mut command = echo(&tag);
        command.emitted = 64;
        if answer.starts_with("hang") {
            command.event_timeout = ms(500);
        } else {
            // A busy machine is no fault of the node's, and to come to 256 MiB takes its time.
            command.event_timeout = Duration::from_secs(20);
        }
        let mut node = custom("echo");
        node.budget_ms = Some(60_000);
        let typed = typed(command, &[answer, "Hi there."], node).await;
        typed.say("hello");
        typed.closed(1).await;
        // A new turn has a new process.
        typed.say("again");
        typed.closed(2).await;
        let ended = typed.hang_up().await;
        let told = errors(&ended);
        assert_eq!(
            ended.endings(),
            ["node_timeout_or_failure", "commit"],
            "{answer}: {told}"
        );
        assert!(told.contains(expected), "{answer}: {told}");
        assert_eq!(alive(&tag), [0; 0], "{answer}");
    });
    join_all(calls).await;
}

/// F-107: a process that uses up its processor time is ended by the system, and that is said.
#[tokio::test]
async fn a_process_has_no_more_processor_time_than_it_may() {
    let tag = tag();
    let mut command = echo(&tag);
    command.event_timeout = Duration::from_secs(30);
    command.cpu_seconds = NonZeroU32::new(1);
    let mut node = custom("echo");
    node.budget_ms = Some(60_000);
    let typed = typed(command, &["spin now."], node).await;
    typed.say("hello");
    typed.closed(1).await;
    let ended = typed.hang_up().await;
    assert_eq!(ended.endings(), ["node_timeout_or_failure"]);
    let told = errors(&ended);
    assert!(told.contains("used up its processor time"), "{told}");
    assert_eq!(alive(&tag), [0; 0]);
}

/// F-122: a process that never becomes ready is given up and killed.
#[tokio::test]
async fn a_process_that_never_becomes_ready_is_given_up() {
    let tag = tag();
    let mut command = echo(&tag);
    command.start_timeout = ms(300);
    let mut node = custom("echo");
    node.config.insert("never_ready".into(), true.into());
    let typed = typed(command, &["Hi there."], node).await;
    typed.say("hello");
    typed.closed(1).await;
    let ended = typed.hang_up().await;
    assert_eq!(ended.endings(), ["node_timeout_or_failure"]);
    let told = errors(&ended);
    assert!(told.contains("was not ready after 300 ms"), "{told}");
    assert_eq!(alive(&tag), [0; 0]);
}

/// F-132, F-122: with a dead-letter stream a process may die of an event and its node goes on with a
/// new one, as often as the operator allows.
#[tokio::test]
async fn a_new_process_goes_on_after_a_poison_event_as_often_as_allowed() {
    let tag = tag();
    let mut command = echo(&tag);
    command.restarts = 2;
    let mut node = custom("echo");
    node.on_error = ErrorAction::DeadLetter;
    node.budget_ms = Some(60_000);
    let answers = ["Hi crash there exit now.", "Hi crash crash crash now."];
    let typed = typed(command, &answers, node).await;
    typed.say("hello");
    typed.closed(1).await;
    typed.say("hello");
    // The end of the text is lost too, with the last process that there was.
    eventually(|| typed.call.session.status().dead_lettered == 7).await;
    let ended = typed.hang_up().await;
    assert_eq!(ended.endings()[0], "commit", "{}", errors(&ended));
    assert_eq!(ended.turn(1).agent_text, "Hi there now.");
    let letters = ended.report.dead_letters.iter();
    let reasons: Vec<_> = letters.map(|letter| letter.reason.as_str()).collect();
    let expected = [
        "signal 6",
        "exited with code 3",
        "signal 6",
        "signal 6",
        "signal 6",
    ];
    for (reason, expected) in reasons.iter().zip(expected) {
        assert!(reason.contains(expected), "{reasons:?}");
    }
    for given_up in &reasons[5..] {
        assert_eq!(*given_up, "needs more than 2 new processes");
    }
    assert_eq!(alive(&tag), [0; 0]);
}

async fn two_at_once(command: ProcessCommand) -> Vec<Ended> {
    let answers = vec!["Hi there."; 2];
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers(answers)),
        ..Cast::default()
    };
    let mut registry = NodeRegistry::default();
    registry.register_process("echo", command);
    let mut host =
        Builder::new(&cast, vec![]).configure(|config| config.nodes = Arc::new(registry));
    let runtime: Runtime = host.runtime().await;
    let mut placed = Vec::new();
    for name in ["a", "b"] {
        let mut builder = Builder::new(&cast, vec![]).pipeline(|spec| {
            let mut node = custom("echo");
            node.budget_ms = Some(60_000);
            through_echo(spec, node);
        });
        builder.session = SessionId::new(name).unwrap();
        builder.script.reply_timeout = Duration::from_mins(1);
        let user = builder.client();
        let call = builder.open(&runtime).await.expect("the session opens");
        user.send(Ingress::Text("hello".into())).expect("connected");
        placed.push((call, user));
    }
    let mut ended = Vec::new();
    for (call, _user) in placed {
        call.log.until(Signal::Close, 1).await;
        call.line.hang_up();
        ended.push(call.end().await);
    }
    assert_nothing_left(&runtime);
    ended
}

/// F-123: how many processes there may be at once is a limit of their own; beyond it a node is refused
/// or waits, as the operator says.
#[tokio::test]
async fn processes_beyond_their_limit_are_refused_or_wait() {
    let command = || {
        let mut command = echo(&tag());
        command.processes = NonZeroUsize::MIN;
        command
    };
    let refused = two_at_once(command());
    let queued = two_at_once(ProcessCommand {
        queue_timeout: Duration::from_secs(20),
        ..command()
    });
    let (refused, queued) = tokio::join!(refused, queued);
    let mut endings: Vec<_> = refused.iter().flat_map(Ended::endings).collect();
    endings.sort_unstable();
    assert_eq!(endings, ["commit", "node_timeout_or_failure"]);
    let told: String = refused.iter().map(errors).collect();
    assert!(
        told.contains("all 1 processes of this kind are taken"),
        "{told}"
    );
    let endings: Vec<_> = queued.iter().flat_map(Ended::endings).collect();
    assert_eq!(endings, ["commit", "commit"]);
}

/// F-011: which program a kind is, is the operator's to say: nothing that a pipeline's author writes
/// names one.
#[tokio::test]
async fn a_pipeline_names_no_program() {
    let tag = tag();
    let mut node = custom("echo");
    node.config.insert("program".into(), "/bin/false".into());
    node.config
        .insert("arguments".into(), serde_json::json!(["-c"]));
    let typed = typed(echo(&tag), &["Hi there."], node).await;
    typed.say("hello");
    typed.closed(1).await;
    let ended = typed.hang_up().await;
    assert_eq!(ended.endings(), ["commit"], "{}", errors(&ended));
}

/// F-122, F-038: what a process emits leaves at once, long before it is done with the event, and as long as
/// it emits it is not late; after a cancel nothing more of it is heard.
#[tokio::test]
async fn what_a_process_emits_leaves_at_once_until_a_cancel() {
    let tag = tag();
    let mut command = echo(&tag);
    command.event_timeout = ms(500);
    let mut node = custom("echo");
    node.budget_ms = Some(60_000);
    let typed = typed(command, &["babble now.", "Hi there."], node).await;
    typed.say("hello");
    typed.call.log.until(Signal::PlaybackStarted, 1).await;
    // Longer than it may be silent.
    tokio::time::sleep(ms(900)).await;
    typed.call.session.cancel(CancelReason::UserCancel).await;
    typed.closed(1).await;
    typed.say("again");
    typed.closed(2).await;
    // The line counts frames that pass a fence: there are none (see `Placed::end`).
    let ended = typed.hang_up().await;
    assert_eq!(
        ended.endings(),
        ["cancelled", "commit"],
        "{}",
        errors(&ended)
    );
    assert!(ended.turn(1).agent_text_played.starts_with("Word."));
    assert_eq!(ended.turn(2).agent_text_played, "Hi there.");
    assert_eq!(alive(&tag), [0; 0]);
}

/// F-107: what the plan says of a node's memory holds for its process, whatever the operator allows.
#[tokio::test]
async fn a_process_has_no_more_memory_than_the_plan_allows() {
    let tag = tag();
    let mut command = echo(&tag);
    command.memory = None;
    let mut node = custom("echo");
    node.budget_ms = Some(60_000);
    node.execution = Some(NodeExecutionPolicy {
        memory_bytes: Some(64 * 1024 * 1024),
        ..NodeExecutionPolicy::default()
    });
    let typed = typed(command, &["swell now.", "Hi there."], node).await;
    typed.say("hello");
    typed.closed(1).await;
    typed.say("again");
    typed.closed(2).await;
    let ended = typed.hang_up().await;
    assert_eq!(ended.endings(), ["node_timeout_or_failure", "commit"]);
    let told = errors(&ended);
    assert!(told.contains("was ended by signal 6"), "{told}");
    assert_eq!(alive(&tag), [0; 0]);
}

/// What a process gets at: a file, a folder, a listener of this machine.
struct Around {
    folder: tempfile::TempDir,
    listener: std::net::TcpListener,
}

impl Around {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("secret"), "a key").unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self { folder, listener }
    }

    /// A node that tries all of it.
    fn node(&self, sandbox: Option<SandboxPolicy>) -> NodeSpec {
        let mut node = custom("echo");
        let path = |name: &str| self.folder.path().join(name).display().to_string().into();
        node.config.insert("secret".into(), path("secret"));
        node.config.insert("target".into(), path("target"));
        let address = self.listener.local_addr().unwrap().to_string();
        node.config.insert("address".into(), address.into());
        node.execution = sandbox.map(|sandbox| NodeExecutionPolicy {
            sandbox: Some(sandbox),
            ..NodeExecutionPolicy::default()
        });
        node
    }
}

/// What a process says that it gets at.
async fn probed(command: ProcessCommand, node: NodeSpec) -> String {
    let typed = typed(command, &["probe "], node).await;
    typed.say("hello");
    typed.closed(1).await;
    let ended = typed.hang_up().await;
    assert_eq!(ended.endings(), ["commit"], "{}", errors(&ended));
    ended.turn(1).agent_text.clone()
}

/// F-124: in a sandbox, asked for by the pipeline or set by the operator, a process gets at no file but the
/// system's and its own, and at no network; without one it gets at both.
#[tokio::test]
async fn a_process_in_a_sandbox_gets_at_nothing_of_the_machine() {
    const NOTHING: &str = "reads no writes no connects no binds no runs yes environment 0";
    let around = Around::new();
    let denied = Some(SandboxPolicy::default());
    let free = probed(echo(&tag()), around.node(None));
    let asked = probed(echo(&tag()), around.node(denied));
    let mut command = echo(&tag());
    command.sandbox = Some(Sandbox::default());
    let set = probed(command, around.node(None));
    let (free, asked, set) = tokio::join!(free, asked, set);
    assert_eq!(
        free,
        "reads yes writes yes connects yes binds yes runs yes environment 0"
    );
    assert_eq!(asked, NOTHING);
    assert_eq!(set, NOTHING);
}

/// F-124: what a start costs is measured, with its sandbox and without.
#[tokio::test]
async fn what_a_sandbox_costs_is_measured() {
    let start = async |sandbox: Option<Sandbox>| {
        let cast = Cast {
            llm: Arc::new(ScriptedLlm::new("llm").answers(["Hi there."])),
            ..Cast::default()
        };
        let mut command = echo(&tag());
        command.sandbox = sandbox;
        let mut registry = NodeRegistry::default();
        registry.register_process("echo", command);
        let mut builder = Builder::new(&cast, vec![])
            .pipeline(|spec| {
                through_echo(spec, custom("echo"));
                spec.observe.metrics_every_ms = Some(1_000);
            })
            .configure(|config| config.nodes = Arc::new(registry));
        builder.script.reply_timeout = Duration::from_mins(1);
        let user = builder.client();
        let typed = Typed {
            call: builder.start().await,
            user,
        };
        typed.say("hello");
        typed.closed(1).await;
        let ended = typed.hang_up().await;
        let measured = ended.report.measurements.unwrap();
        let echo = measured.nodes.iter().find(|(id, _)| id.as_str() == "echo");
        echo.unwrap().1.start
    };
    let (free, kept) = tokio::join!(start(None), start(Some(Sandbox::default())));
    assert_eq!((free.samples, kept.samples), (1, 1));
    assert!(free.p50_ms > 0.0 && kept.p50_ms > 0.0);
}

/// F-124: what the operator allows beside that is allowed, as far as the pipeline asks for no less.
#[tokio::test]
async fn a_sandbox_is_as_wide_as_both_sides_allow() {
    let around = Around::new();
    let wide = || {
        let mut command = echo(&tag());
        command.sandbox = Some(Sandbox {
            reads: vec![around.folder.path().to_owned()],
            network: NetworkAccess::Allowed,
            ..Sandbox::default()
        });
        command
    };
    let own = probed(wide(), around.node(None));
    let less = probed(wide(), around.node(Some(SandboxPolicy::default())));
    let mut command = wide();
    if let Some(sandbox) = &mut command.sandbox {
        sandbox.writes.push(around.folder.path().to_owned());
    }
    let writes = probed(command, around.node(None));
    let (own, less, writes) = tokio::join!(own, less, writes);
    let environment = "runs yes environment 0";
    assert_eq!(
        own,
        format!("reads yes writes no connects yes binds yes {environment}")
    );
    assert_eq!(
        less,
        format!("reads yes writes no connects no binds no {environment}")
    );
    assert_eq!(
        writes,
        format!("reads yes writes yes connects yes binds yes {environment}")
    );
}

/// F-124: a process holds nothing open but its three streams.
#[tokio::test]
async fn a_process_inherits_no_open_file() {
    let tag = tag();
    let around = Around::new();
    let _held = fs::File::open(around.folder.path().join("secret")).unwrap();
    let mut command = echo(&tag);
    command.event_timeout = Duration::from_mins(1);
    command.sandbox = Some(Sandbox::default());
    let mut node = custom("echo");
    node.budget_ms = Some(60_000);
    let typed = typed(command, &["wait here."], node).await;
    typed.say("hello");
    eventually(|| alive(&tag).len() == 1).await;
    let process = alive(&tag)[0];
    let open = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let mut open: Vec<_> = open.map(|entry| entry.unwrap().file_name()).collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    typed.call.session.cancel(CancelReason::UserCancel).await;
    typed.closed(1).await;
    typed.hang_up().await;
}

/// Why a session does not open.
async fn refused(registry: NodeRegistry, node: NodeSpec) -> String {
    let mut builder = Builder::new(&Cast::default(), vec![])
        .pipeline(|spec| through_echo(spec, node))
        .configure(|config| config.nodes = Arc::new(registry));
    let runtime = builder.runtime().await;
    let refused = builder.open(&runtime).await.err().unwrap();
    refused.to_string()
}

/// F-124: where a sandbox cannot be had there is no session: for a node of the runtime's own process, for
/// a path that is not there, and on a kernel that cannot.
#[test]
fn where_no_sandbox_can_be_had_there_is_no_session() {
    let asked = || Around::new().node(Some(SandboxPolicy::default()));
    let run = |registry: NodeRegistry, node: NodeSpec| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(refused(registry, node))
    };
    let mut registry = NodeRegistry::default();
    registry.register("echo", Arc::new(|_| unreachable!("it is never made")));
    let told = run(registry, asked());
    assert!(
        told.contains("`echo`: runs in the runtime's own process"),
        "{told}"
    );

    let mut registry = NodeRegistry::default();
    let mut command = echo(&tag());
    command.sandbox = Some(Sandbox {
        reads: vec!["/no/such/folder".into()],
        ..Sandbox::default()
    });
    registry.register_process("echo", command);
    let told = run(registry, custom("echo"));
    assert!(told.contains("cannot allow `/no/such/folder`"), "{told}");

    // What a thread is kept from, those that it starts are kept from too.
    let without_landlock = std::thread::spawn(move || {
        let rules = [(libc::SYS_landlock_create_ruleset, Vec::new())];
        let filter = SeccompFilter::new(
            rules.into(),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS as u32),
            TargetArch::try_from(std::env::consts::ARCH).unwrap(),
        );
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
        let mut registry = NodeRegistry::default();
        registry.register_process("echo", echo(&tag()));
        run(registry, asked())
    });
    let told = without_landlock.join().unwrap();
    assert!(
        told.contains("this kernel cannot keep a process from files"),
        "{told}"
    );
}
