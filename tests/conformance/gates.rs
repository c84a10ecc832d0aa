//! The seven gates over real runs: what keeps its promises passes, and each gate fails for the promise that is
//! its own (gates.md §1).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use rspp_controlplane_api::LocalLeases;
use rspp_host::{
    Event,
    node::{NodeContext, NodeError, Step},
};
use rspp_kernel::CancelReason;
use rspp_proto::{
    Epoch, Monotonic, SessionId, TurnNumber,
    abi::Signal,
    spec::{RecordingLevel, RecordingPolicy, RedactSpec, ReplayMode},
};
use rspp_provider_api::{
    Fault,
    scripted::{Conduct, Script, ScriptedLlm, ScriptedStt, ScriptedTts},
};
use rspp_tests::{
    call::{Builder, Cast, Ended, LONG, Placed, REPLY, after_reply, first, over_reply, says},
    nodes::{Probes, custom, insert},
};
use rspp_timeline::{
    Anchors, Entry, TurnBaseline,
    gates::{Gate, GateReport, Gates},
};

const CALLS: usize = 20;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Calls at once in one runtime: in each a turn is interrupted, and two go well.
async fn load(cast: &Cast) -> Vec<Vec<Entry>> {
    let runtime = Builder::new(cast, vec![]).runtime().await;
    let mut placed: Vec<Placed> = Vec::new();
    for n in 0..CALLS {
        let said = vec![says(first()), says(over_reply(500)), says(after_reply())];
        let mut call = Builder::new(cast, said);
        call.session = SessionId::new(format!("call-{n}")).unwrap();
        placed.push(call.open(&runtime).await.expect("there is room"));
    }
    let all = join_all(placed.into_iter().map(Placed::end)).await;
    all.into_iter().map(|ended| ended.entries).collect()
}

fn judge(calls: &[Vec<Entry>]) -> GateReport {
    let mut gates = Gates::default();
    for entries in calls {
        gates.add(entries);
    }
    gates.report()
}

/// The gates that say no, by what was measured or by a violation; in order.
fn failed(report: &GateReport) -> Vec<Gate> {
    let measured = report.measured.iter().filter(|it| !it.passed);
    let violated = report.violations.iter().map(|it| it.gate);
    let mut failed: Vec<Gate> = measured.map(|it| it.gate).chain(violated).collect();
    failed.sort_unstable();
    failed.dedup();
    assert_eq!(report.passed, failed.is_empty(), "{report}");
    failed
}

fn value(report: &GateReport, metric: &str) -> f64 {
    let found = report.measured.iter().find(|it| it.metric == metric);
    found.and_then(|it| it.value).expect("it was measured")
}

fn turns(calls: &mut [Vec<Entry>]) -> impl Iterator<Item = &mut TurnBaseline> {
    calls.iter_mut().flatten().filter_map(|entry| match entry {
        Entry::Turn(baseline) => Some(&mut **baseline),
        _another_entry => None,
    })
}

/// NF-024, NF-025, NF-026, NF-027, NF-028, NF-029, NF-038: twenty calls at once, interrupted turns among them,
/// keep every gate, and every limit has its samples.
#[tokio::test(start_paused = true)]
async fn a_real_load_passes_every_gate() {
    let report = judge(&load(&Cast::default()).await);
    assert_eq!(failed(&report), [], "{report}");
    let calls = CALLS as u64;
    assert_eq!(report.recordings, calls);
    assert_eq!(report.accepted_turns, 3 * calls);
    assert_eq!(report.happy_path_turns, 2 * calls);
    assert_eq!(report.cancel_observed_turns, calls);
    for it in &report.measured {
        let least = if it.gate == Gate::CancelFence { 1 } else { 2 };
        assert!(it.samples >= least * calls, "{report}");
    }
}

/// NF-025, NF-038: a model and a voice that take their time fail gate 2, and gate 7 with it; a recognition that
/// does fails gate 7 alone. What is interrupted is judged by neither.
#[tokio::test(start_paused = true)]
async fn what_comes_late_fails_the_gate_that_waits_for_it() {
    let late = |by| Script::default().then(Conduct::good().late(ms(by)));
    let slow = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([REPLY]).script(late(900))),
        tts: Arc::new(ScriptedTts::new("tts").script(late(800))),
        ..Cast::default()
    };
    let report = judge(&load(&slow).await);
    assert_eq!(failed(&report), [Gate::FirstOutput, Gate::EndToEnd]);
    assert!(value(&report, "first_output_p95_ms") >= 1_700.0, "{report}");

    let stt = ScriptedStt::new("stt").utterances(["hello there", "and again"]);
    let hesitant = Cast {
        stt: Arc::new(stt.final_after(ms(2_100))),
        ..Cast::default()
    };
    let mut calls = load(&Cast::default()).await;
    for _call in 0..5 {
        let said = vec![says(first()), says(after_reply())];
        let ended = Builder::new(&hesitant, said).hold().await;
        assert_eq!(ended.endings(), ["commit", "commit"]);
        calls.push(ended.entries);
    }
    let report = judge(&calls);
    assert_eq!(failed(&report), [Gate::EndToEnd]);
    assert!(value(&report, "first_output_p95_ms") < 1_500.0, "{report}");
}

/// NF-024, NF-025, NF-026, NF-028, NF-038: in a run that was recorded, whatever is moved beyond its limit, taken
/// out, spoiled or said in another version of the evidence fails its own gate and no other; so does a second end
/// of a turn.
#[tokio::test(start_paused = true)]
async fn a_recorded_run_fails_by_what_is_spoiled_in_it() {
    let recorded = load(&Cast::default()).await;
    let anchors = |gate: Gate, spoil: fn(&mut Anchors)| {
        let mut calls = recorded.clone();
        turns(&mut calls).for_each(|turn| spoil(&mut turn.anchors));
        let report = judge(&calls);
        assert_eq!(failed(&report), [gate], "{report}");
    };
    anchors(Gate::TurnOpenDecision, |it| {
        it.turn_open_proposed_ingress_accepted_ts =
            it.turn_open_emitted_ts.map(|at| earlier(at, ms(121)));
    });
    anchors(Gate::TurnOpenDecision, |it| {
        it.turn_open_proposed_ingress_accepted_ts = None;
    });
    anchors(Gate::FirstOutput, |it| {
        it.first_datalane_output_emitted_ts = it.turn_open_emitted_ts.map(|at| at + ms(1_501));
    });
    anchors(Gate::FirstOutput, |it| {
        it.first_datalane_output_emitted_ts = None;
    });
    anchors(Gate::CancelFence, |it| {
        it.cancel_fence_applied_ts = it.cancel_accepted_ts.map(|at| at + ms(151));
    });
    anchors(Gate::CancelFence, |it| it.cancel_fence_applied_ts = None);
    anchors(Gate::EndToEnd, |it| {
        it.audio_input_ingress_ts = it
            .assistant_audio_playback_started_ts
            .map(|at| earlier(at, ms(2_001)));
    });
    anchors(Gate::EndToEnd, |it| it.audio_input_ingress_ts = None);
    anchors(Gate::EndToEnd, |it| {
        it.assistant_audio_playback_started_ts = None;
    });

    // Of one turn among sixty.
    let evidence = |gate: Gate, spoil: fn(&mut TurnBaseline)| {
        let mut calls = recorded.clone();
        spoil(turns(&mut calls).nth(7).expect("there are sixty"));
        let report = judge(&calls);
        assert_eq!(failed(&report), [gate], "{report}");
    };
    evidence(Gate::Evidence, |turn| turn.plan_hash.clear());
    evidence(Gate::Evidence, |turn| turn.determinism_seed = None);
    evidence(Gate::Evidence, |turn| turn.admission_outcome = None);
    evidence(Gate::Evidence, |turn| turn.lease_epoch_at_terminal = None);
    evidence(Gate::Evidence, |turn| {
        turn.or02_evidence_schema_version = "or02/v0.9".to_owned();
    });
    evidence(Gate::AuthoritySafety, |turn| {
        turn.accepted_stale_epoch_outputs = 1;
    });

    let mut calls = recorded.clone();
    let end = calls[3]
        .iter()
        .rfind(|it| it.signal() == Some(Signal::Commit));
    let again = end.expect("the last turn was committed").clone();
    calls[3].push(again);
    assert_eq!(failed(&judge(&calls)), [Gate::Terminals]);

    // Nobody was interrupted: there is nothing that gate 3 could pass by.
    let mut calls = recorded.clone();
    for entries in &mut calls {
        let first = TurnNumber::FIRST.id();
        entries.retain(|entry| entry.turn_id() != Some(&first));
    }
    assert_eq!(failed(&judge(&calls)), [Gate::CancelFence]);
}

fn earlier(at: Monotonic, by: Duration) -> Monotonic {
    Monotonic::from_duration(at.as_duration().saturating_sub(by))
}

/// RD-003, NF-028: whatever a turn comes to, at whatever level it is recorded, its evidence is complete: it is
/// committed, interrupted, cancelled, given up for its model, a node of it, its time, its lease, its line.
#[tokio::test(start_paused = true)]
async fn however_a_turn_ends_its_evidence_is_complete() {
    for level in [RecordingLevel::L0, RecordingLevel::L1, RecordingLevel::L2] {
        let mut ways = BTreeSet::new();
        let mut recorded = Vec::new();
        for way in Way::ALL {
            let ended = way.gone(level).await;
            ways.extend(ended.endings().into_iter().map(str::to_owned));
            recorded.push(ended.entries);
        }
        let report = judge(&recorded);
        let complete = value(&report, "baseline_completeness_ratio");
        assert!(complete >= 1.0, "{level:?}: {report}");
        assert_eq!(report.accepted_turns, 10, "{report}");
        let all = [
            "authority_loss",
            "budget_exhausted",
            "cancelled",
            "commit",
            "node_timeout_or_failure",
            "provider_failure",
            "transport_disconnect_or_stall",
        ];
        assert_eq!(ways.iter().map(String::as_str).collect::<Vec<_>>(), all);
    }
}

/// What a call comes to.
#[derive(Clone, Copy)]
enum Way {
    Interrupted,
    Cancelled,
    ModelFails,
    ModelStalls,
    NodeFails,
    NodeHangs,
    LeaseLost,
    LineLost,
}

impl Way {
    const ALL: [Self; 8] = [
        Self::Interrupted,
        Self::Cancelled,
        Self::ModelFails,
        Self::ModelStalls,
        Self::NodeFails,
        Self::NodeHangs,
        Self::LeaseLost,
        Self::LineLost,
    ];

    /// A call that goes that way.
    async fn gone(self, level: RecordingLevel) -> Ended {
        let conduct = match self {
            Self::ModelFails => Conduct::good().failing_after(0, Fault::transport("gone")),
            Self::ModelStalls => Conduct::good().stalling_after(0),
            Self::Interrupted
            | Self::Cancelled
            | Self::NodeFails
            | Self::NodeHangs
            | Self::LeaseLost
            | Self::LineLost => Conduct::good(),
        };
        let llm = ScriptedLlm::new("llm").answers([LONG, "All right.", "As you like."]);
        let cast = Cast {
            llm: Arc::new(llm.script(Script::always(conduct))),
            ..Cast::default()
        };
        let said = match self {
            Self::Interrupted => vec![says(first()), says(over_reply(500)), says(after_reply())],
            Self::Cancelled
            | Self::ModelFails
            | Self::ModelStalls
            | Self::NodeFails
            | Self::NodeHangs
            | Self::LeaseLost
            | Self::LineLost => vec![says(first())],
        };
        let mut probes = Probes::default();
        probes.add("probe", move |nth, cx: &mut NodeContext, event: Event| {
            match self {
                Self::NodeFails if nth == 2 => {
                    return Step::Done(Err(NodeError::new("a planted fault")));
                }
                Self::NodeHangs if nth == 2 => {
                    return Step::Wait(Box::pin(std::future::pending()));
                }
                Self::Interrupted
                | Self::Cancelled
                | Self::ModelFails
                | Self::ModelStalls
                | Self::NodeFails
                | Self::NodeHangs
                | Self::LeaseLost
                | Self::LineLost => cx.forward(event),
            }
            Step::OK
        });
        let mut builder = Builder::new(&cast, said)
            .pipeline(|spec| insert(spec, "llm", custom("probe"), "segmenter"))
            .configure(probes.install());
        builder.settings.session.recording_policy = Some(RecordingPolicy {
            recording_level: level,
            allowed_replay_modes: [ReplayMode::ReplayDecisions].into(),
            full_capture: BTreeSet::new(),
            redact: RedactSpec::default(),
        });
        let call = builder.start().await;
        match self {
            Self::Cancelled | Self::LeaseLost | Self::LineLost => {
                call.log.until(Signal::PlaybackStarted, 1).await;
                tokio::time::sleep(ms(300)).await;
            }
            Self::Interrupted
            | Self::ModelFails
            | Self::ModelStalls
            | Self::NodeFails
            | Self::NodeHangs => {}
        }
        match self {
            Self::Cancelled => {
                let receipt = call.session.cancel(CancelReason::UserCancel).await;
                assert!(receipt.is_some());
            }
            Self::LeaseLost => call.session.revoke(),
            Self::LineLost => call.line.hang_up(),
            Self::Interrupted
            | Self::ModelFails
            | Self::ModelStalls
            | Self::NodeFails
            | Self::NodeHangs => {}
        }
        call.end().await
    }
}

/// NF-027, F-156: outputs of other epochs are put in while all is well, while a lease is rotated and while another
/// placement takes the session over: all of them are refused and said, and gate 4 counts none.
#[tokio::test(start_paused = true)]
async fn stale_outputs_in_every_window_are_refused() {
    // Each piece of audio is followed by a copy under the epoch before, and one under an epoch to come.
    let forging = |leases: &Arc<LocalLeases>| {
        let mut probes = Probes::default();
        probes.add("forger", |_nth, cx: &mut NodeContext, event: Event| {
            let epoch = event.stamp.epoch;
            let before = Epoch::new(epoch.get() - 1);
            for epoch in before.into_iter().chain([epoch.next()]) {
                let mut forged = event.clone();
                forged.stamp.epoch = epoch;
                cx.forward(forged);
            }
            cx.forward(event);
            Step::OK
        });
        let install = probes.install();
        let leases = Arc::clone(leases);
        let cast = Cast {
            llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "All right."])),
            ..Cast::default()
        };
        Builder::new(&cast, vec![says(first()), says(after_reply())])
            .pipeline(|spec| insert(spec, "tts", custom("forger"), "egress"))
            .configure(move |config| {
                install(config);
                config.leases = leases;
            })
    };
    let speaking = async |leases: &Arc<LocalLeases>| {
        let call = forging(leases).start().await;
        call.log.until(Signal::PlaybackStarted, 1).await;
        tokio::time::sleep(ms(700)).await;
        call
    };
    let session = SessionId::new("call").unwrap();
    let leases = || Arc::new(LocalLeases::default());

    let calm = forging(&leases()).hold().await;
    assert_eq!(calm.endings(), ["commit", "commit"]);

    let rotating = leases();
    let call = speaking(&rotating).await;
    let newer = rotating.acquire(&session).unwrap().epoch;
    call.session.rotate(newer);
    let rotated = call.end().await;
    assert_eq!(rotated.endings(), ["authority_loss", "commit"]);

    let shared = leases();
    let old = speaking(&shared).await;
    let new = forging(&shared).start().await;
    old.session.revoke();
    let (old, new) = tokio::join!(old.end(), new.end());
    assert_eq!(old.endings(), ["authority_loss"]);
    assert_eq!(new.endings(), ["commit", "commit"]);

    let all = [calm, rotated, old, new];
    for ended in &all {
        assert_eq!(ended.report.authority.stale_epoch_outputs_accepted, 0);
        let told = ended.log.reasons_of(Signal::StaleEpochReject);
        assert!(told.contains(&"authority_epoch_mismatch".to_owned()));
        assert!(heard_once(ended), "a forged copy was heard");
    }
    let recorded: Vec<_> = all.into_iter().map(|ended| ended.entries).collect();
    let report = judge(&recorded);
    assert!(
        !failed(&report).contains(&Gate::AuthoritySafety),
        "{report}"
    );
    assert!(value(&report, "stale_epoch_outputs_accepted") <= 0.0);
    assert_eq!(report.accepted_turns, 7);
}

/// Whether no reply took longer than its text takes to be said: 60 ms a character.
fn heard_once(ended: &Ended) -> bool {
    let heard = ended.heard().into_iter().zip(&ended.report.turns);
    heard
        .map(|(heard, turn)| (heard.length(), turn.agent_text.chars().count() as u64))
        .all(|(length, said)| length <= ms(60 * (said + 1)))
}
