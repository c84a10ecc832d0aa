//! A recorded session is run again, nodes and host, by its providers' recorded answers or by providers.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rspp_actors::Clock;
use rspp_kernel::CancelReason;
use rspp_proto::{
    Payload,
    abi::{PayloadClass, Signal},
    spec::{RecordingLevel, RecordingPolicy, RedactSpec, ReplayMode},
};
use rspp_provider_api::scripted::{Conduct, Script, ScriptedLlm, ScriptedTts};
use rspp_replay::{
    Divergence, DivergenceClass, Expected, Recorded, Rerun, RerunError, Stage, Tolerance, compare,
    judge, rerun,
};
use rspp_tests::call::{Builder, Cast, LONG, after_reply, bindings, first, over_reply, says};
use rspp_timeline::{
    Captured, Entry, FileHeader, MemoryRecording, Options, Recorder, Redaction, verify::verify,
};

pub(crate) const PLAYBACK: ReplayMode = ReplayMode::PlaybackRecordedProviderOutputs;
const RESIMULATION: ReplayMode = ReplayMode::ReSimulateNodes;

fn policy(level: RecordingLevel, classes: &[PayloadClass]) -> RecordingPolicy {
    RecordingPolicy {
        recording_level: level,
        allowed_replay_modes: BTreeSet::from([PLAYBACK, RESIMULATION]),
        full_capture: classes.iter().copied().collect(),
        redact: RedactSpec::default(),
    }
}

pub(crate) fn whole() -> RecordingPolicy {
    let classes = [PayloadClass::AudioRaw, PayloadClass::TextRaw];
    policy(RecordingLevel::L2, &classes)
}

/// Records by `policy`; entries are taken out as they come, so that none is dropped.
pub(crate) fn record(policy: &RecordingPolicy) -> (Recorder, tokio::task::JoinHandle<Vec<Entry>>) {
    let (recorder, recording) = Recorder::in_memory(Options {
        level: policy.recording_level,
        redaction: Redaction::of(policy),
        ..Options::default()
    });
    (recorder.clone(), tokio::spawn(collect(recorder, recording)))
}

/// Until nobody records any more.
async fn collect(recorder: Recorder, recording: MemoryRecording) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut quiet = 0;
    while quiet < 100 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let taken = recording.take();
        quiet = if taken.is_empty() { quiet + 1 } else { 0 };
        entries.extend(taken);
    }
    drop(recorder);
    entries
}

fn placed(cast: &Cast, policy: &RecordingPolicy) -> (Builder, tokio::task::JoinHandle<Vec<Entry>>) {
    let said = vec![says(first()), says(over_reply(700)), says(after_reply())];
    let mut builder = Builder::new(cast, said);
    builder.settings = bindings();
    builder.settings.session.recording_policy = Some(policy.clone());
    let (recorder, entries) = record(policy);
    builder.recorder = Some(recorder);
    (builder, entries)
}

fn talkative() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "Very well."])),
        ..Cast::default()
    }
}

async fn recorded(cast: &Cast, policy: &RecordingPolicy) -> Vec<Entry> {
    let (builder, entries) = placed(cast, policy);
    let _ended = builder.hold().await;
    entries.await.unwrap()
}

pub(crate) async fn again(
    entries: &[Entry],
    mode: ReplayMode,
    stage: Stage,
) -> Result<(Rerun, Vec<Entry>), RerunError> {
    let session = Recorded::of(entries)?;
    let (recorder, made) = record(&whole());
    let clock = Clock::start();
    // Boxed: what the tests of a whole session wait for.
    let rerun = Box::pin(rerun(&session, mode, stage, clock, recorder)).await?;
    let mut candidate = vec![Entry::from(session.header(mode, clock))];
    candidate.extend(made.await.unwrap());
    Ok((rerun, candidate))
}

/// What differs, the session's ids being the same.
fn differences(baseline: &[Entry], rerun: &Rerun, candidate: &[Entry]) -> Vec<Divergence> {
    let mut headed = vec![candidate[0].clone()];
    headed.extend_from_slice(baseline);
    let mut found = rerun.divergences.clone();
    found.extend(compare(&headed, candidate, &Tolerance::default()));
    found
}

fn header(entries: &[Entry]) -> &FileHeader {
    match &entries[0] {
        Entry::Header(header) => header,
        other => panic!("begins with {other:?}"),
    }
}

/// F-029, F-151, RD-001, RD-003: without its user and its providers a recorded call goes the same way
/// again, an interruption included: the timeline, what the nodes put out, and complete evidence.
#[tokio::test(start_paused = true)]
async fn a_recorded_call_is_played_back_without_user_and_providers() {
    let baseline = recorded(&talkative(), &whole()).await;
    let (rerun, candidate) = again(&baseline, PLAYBACK, Stage::default()).await.unwrap();
    assert_eq!(differences(&baseline, &rerun, &candidate), []);
    let turns: Vec<_> = candidate
        .iter()
        .filter_map(|entry| match entry {
            Entry::Turn(turn) => Some(turn),
            _no_turn => None,
        })
        .collect();
    assert_eq!(turns.len(), 3);
    assert!(
        turns
            .iter()
            .all(|turn| turn.is_accepted() && turn.is_complete())
    );
    assert_eq!(verify(&candidate), []);
    let heard = rerun.report.unwrap().turns;
    assert!(heard[0].agent_text_played.starts_with("Well"), "{heard:?}");
    // A replay of the replay is no different either.
    let (twice, third) = again(&candidate, PLAYBACK, Stage::default()).await.unwrap();
    assert_eq!(differences(&candidate, &twice, &third), []);
}

/// F-151: the mode is chosen, and is in the recording that it makes and in what it finds.
#[tokio::test(start_paused = true)]
async fn every_output_says_which_mode_made_it() {
    let baseline = recorded(&talkative(), &whole()).await;
    for mode in [PLAYBACK, RESIMULATION] {
        let stage = Stage {
            providers: talkative().providers(),
            ..Stage::default()
        };
        let (rerun, candidate) = again(&baseline, mode, stage).await.unwrap();
        assert_eq!(rerun.mode, mode);
        assert_eq!(header(&candidate).replay_mode, Some(mode));
        assert_eq!(differences(&baseline, &rerun, &candidate), []);
    }
    for mode in [ReplayMode::ReplayDecisions, ReplayMode::RecomputeDecisions] {
        let refused = again(&baseline, mode, Stage::default()).await.unwrap_err();
        assert!(
            refused.to_string().contains("allowed_replay_modes"),
            "{refused}"
        );
    }
}

/// F-151, RD-002: re-simulation asks whoever serves now, playback nobody: a model that answers otherwise
/// shows in the one and not in the other.
#[tokio::test(start_paused = true)]
async fn only_re_simulation_asks_the_providers_of_today() {
    let baseline = recorded(&talkative(), &whole()).await;
    let other = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "Certainly not."])),
        ..Cast::default()
    };
    let stage = || Stage {
        providers: other.providers(),
        ..Stage::default()
    };
    let (rerun, candidate) = again(&baseline, RESIMULATION, stage()).await.unwrap();
    let found = differences(&baseline, &rerun, &candidate);
    assert!(other.llm.tally().calls > 0);
    let outcome = |it: &Divergence| it.class == DivergenceClass::OutcomeDivergence;
    assert!(found.iter().any(outcome), "{found:#?}");
    assert!(
        found
            .iter()
            .any(|it| it.candidate.contains("Certainly not."))
    );

    let asked = other.llm.tally().calls;
    let (rerun, candidate) = again(&baseline, PLAYBACK, stage()).await.unwrap();
    assert_eq!(differences(&baseline, &rerun, &candidate), []);
    assert_eq!(other.llm.tally().calls, asked, "nobody was asked");
}

/// F-029, F-160: faults, retries and stalls of providers come again as they came.
#[tokio::test(start_paused = true)]
async fn troubles_of_providers_are_played_back_too() {
    let troubled = |conduct: Conduct| Cast {
        llm: Arc::new(
            ScriptedLlm::new("llm")
                .answers([LONG, "Very well."])
                .script(Script::calls([conduct])),
        ),
        tts: Arc::new(ScriptedTts::new("tts").script(Script::calls([Conduct::good()]))),
        ..Cast::default()
    };
    let overload = rspp_provider_api::Fault::overload("busy", Some(Duration::from_millis(100)));
    for cast in [
        troubled(Conduct::good().failing_after(0, overload)),
        troubled(Conduct::good().stalling_after(0)),
        troubled(Conduct::good().stalling_after(3)),
    ] {
        let baseline = recorded(&cast, &whole()).await;
        let (rerun, candidate) = again(&baseline, PLAYBACK, Stage::default()).await.unwrap();
        let found = differences(&baseline, &rerun, &candidate);
        // How long to wait is drawn by chance where a provider does not say.
        let found: Vec<_> = found
            .into_iter()
            .filter(|it| it.class != DivergenceClass::TimingDivergence)
            .collect();
        assert_eq!(found, []);
    }
}

/// F-029: what operators ordered comes again when it came.
#[tokio::test(start_paused = true)]
async fn orders_are_given_again() {
    let (builder, entries) = placed(&talkative(), &whole());
    let call = builder.start().await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    let _receipt = call.session.cancel(CancelReason::UserCancel).await;
    let _ended = call.end().await;
    let baseline = entries.await.unwrap();
    let (rerun, candidate) = again(&baseline, PLAYBACK, Stage::default()).await.unwrap();
    let cancelled = candidate
        .iter()
        .filter(|entry| entry.signal() == Some(Signal::Cancel))
        .count();
    assert!(cancelled > 0);
    assert_eq!(differences(&baseline, &rerun, &candidate), []);
}

/// F-151, F-153: a recording that holds too little says what it lacks, and which policy would keep it.
#[tokio::test(start_paused = true)]
async fn a_recording_that_holds_too_little_says_what_it_lacks() {
    let refused = async |policy: RecordingPolicy| {
        let entries = recorded(&talkative(), &policy).await;
        let refused = again(&entries, PLAYBACK, Stage::default())
            .await
            .unwrap_err();
        refused.to_string()
    };
    let told = refused(policy(RecordingLevel::L0, &[])).await;
    assert!(
        told.contains("full_capture: [audio_raw, text_raw]"),
        "{told}"
    );
    let told = refused(policy(RecordingLevel::L2, &[])).await;
    assert!(
        told.contains("withheld") && told.contains("`hash`"),
        "{told}"
    );
    let told = refused(policy(RecordingLevel::L2, &[PayloadClass::AudioRaw])).await;
    assert!(told.contains("text_raw is under `mask`"), "{told}");
    let decisions = RecordingPolicy {
        allowed_replay_modes: BTreeSet::from([ReplayMode::ReplayDecisions]),
        ..whole()
    };
    let told = refused(decisions).await;
    assert!(
        told.contains("allowed_replay_modes of turn-0001's plan: replay_decisions"),
        "{told}"
    );

    let entries = recorded(&talkative(), &whole()).await;
    let without = |lacks: fn(&Entry) -> bool| {
        let kept = entries.iter().filter(|entry| !lacks(entry));
        kept.cloned().collect::<Vec<_>>()
    };
    let headless = without(|entry| matches!(entry, Entry::Opening(_)));
    assert!(matches!(
        Recorded::of(&headless),
        Err(RerunError::NoOpening)
    ));
    let torn = without(|entry| match entry {
        Entry::Capture(capture) => matches!(&capture.what, Captured::Answered { index: 1, .. }),
        _something_else => false,
    });
    let refused = again(&torn, PLAYBACK, Stage::default()).await.unwrap_err();
    assert!(matches!(refused, RerunError::Lost { .. }), "{refused}");
}

/// F-151, PROVIDER_CHOICE: an answer that the recording has not got is missed, not made up.
#[tokio::test(start_paused = true)]
async fn an_answer_that_was_not_recorded_is_not_made_up() {
    let mut entries = recorded(&talkative(), &whole()).await;
    for entry in &mut entries {
        if let Entry::Capture(capture) = entry
            && let Captured::Asked { call, .. } | Captured::Answered { call, .. } =
                &mut capture.what
            && call.provider.as_str() == "llm"
        {
            call.provider = rspp_proto::ProviderId::new("another").unwrap();
        }
    }
    let (rerun, _) = again(&entries, PLAYBACK, Stage::default()).await.unwrap();
    let classes: BTreeSet<_> = rerun.divergences.iter().map(|it| it.class).collect();
    assert!(classes.contains(&DivergenceClass::ProviderChoiceDivergence));
    let reasons: Vec<_> = rerun
        .report
        .unwrap()
        .turns
        .into_iter()
        .map(|turn| turn.reason)
        .collect();
    assert!(
        reasons
            .iter()
            .all(|reason| reason.as_deref() == Some("provider_failure")),
        "{reasons:?}"
    );
}

/// RD-004, RD-005: other snapshots are another plan and have to be declared; a provider call that took
/// too long is never excused.
#[tokio::test(start_paused = true)]
async fn provenance_is_declared_and_latency_is_not_excused() {
    let baseline = recorded(&talkative(), &whole()).await;
    let mut moved = baseline.clone();
    for entry in &mut moved {
        if let Entry::Turn(turn) = entry
            && turn.turn_id.as_str() == "turn-0001"
        {
            turn.snapshots.policy_resolution_snapshot = "policy/other".to_owned();
        }
    }
    let found = compare(&baseline, &moved, &Tolerance::default());
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].class, DivergenceClass::PlanDivergence);
    let declared = Expected {
        class: DivergenceClass::PlanDivergence,
        scope: "turn:turn-0001".to_owned(),
        approved: false,
    };
    assert!(!judge(found.clone(), &[]).passed());
    assert!(judge(found, &[declared]).passed());

    let strict = Tolerance {
        total_invocation_latency_ms: Some(0),
        ..Tolerance::default()
    };
    let slow = compare(&baseline, &baseline, &strict);
    assert!(!slow.is_empty());
    let excuses: Vec<_> = slow
        .iter()
        .map(|it| Expected {
            class: it.class,
            scope: it.scope.clone(),
            approved: true,
        })
        .collect();
    assert_eq!(judge(slow.clone(), &excuses).unexplained, slow);

    // Scopes that are said hold instead of what the recording has; one that fits no call measures nothing, and fails.
    let of = |scopes: &[&str]| {
        let only = Tolerance {
            latency_scopes: scopes.iter().map(|it| (*it).to_owned()).collect(),
            ..strict.clone()
        };
        compare(&baseline, &baseline, &only)
    };
    let voices = of(&["tts"]);
    let tts: Vec<_> = slow
        .iter()
        .filter(|it| it.scope.contains("tts"))
        .cloned()
        .collect();
    assert!(!tts.is_empty() && tts.len() < slow.len(), "{slow:#?}");
    assert_eq!(voices, tts);
    let generous = Tolerance {
        total_invocation_latency_ms: Some(60_000),
        latency_scopes: BTreeSet::from(["tts".to_owned()]),
        ..Tolerance::default()
    };
    assert_eq!(compare(&baseline, &baseline, &generous), []);
    let nobody = of(&["tts", "piper-9"]);
    let missing = nobody.iter().find(|it| it.candidate == "no such call");
    let missing = missing.unwrap_or_else(|| panic!("{nobody:#?}"));
    assert_eq!(missing.scope, "invocation_latency_total:piper-9");
    assert!(!judge(nobody, &excuses).passed());
}

/// What is said, in order, without its times: signals, and the texts of both sides.
fn order(entries: &[Entry]) -> Vec<String> {
    let told = entries.iter().filter_map(|entry| {
        let turn = entry.turn_id();
        match entry {
            Entry::Signal(signal) => Some(format!("{turn:?} {}", signal.signal.as_str())),
            Entry::Event(event) => match &event.record.payload {
                Some(Payload::Text(text)) => {
                    Some(format!("{turn:?} {:?} {}", text.speaker, text.text))
                }
                _another_payload => None,
            },
            _another_entry => None,
        }
    });
    told.collect()
}

/// NF-009: however often a recording is played again, all that is said comes in the recorded order, word for word. What differs by less than a tolerance is no difference; what differs by more is reported, and what.
#[tokio::test(start_paused = true)]
async fn many_replays_keep_the_recorded_order() {
    let baseline = recorded(&talkative(), &whole()).await;
    let expected = order(&baseline);
    assert!(expected.len() > 20, "{expected:?}");
    for _replay in 0..8 {
        let (rerun, candidate) = again(&baseline, PLAYBACK, Stage::default()).await.unwrap();
        assert_eq!(differences(&baseline, &rerun, &candidate), []);
        assert_eq!(order(&candidate), expected);
    }

    // A model that has become slower: the same words in the same order, later.
    let said = vec![says(first()), says(after_reply())];
    let mut builder = Builder::new(&talkative(), said);
    builder.settings.session.recording_policy = Some(whole());
    let (recorder, entries) = record(&whole());
    builder.recorder = Some(recorder);
    let _ended = builder.hold().await;
    let baseline = entries.await.unwrap();
    let slower = Cast {
        llm: Arc::new(
            ScriptedLlm::new("llm")
                .answers([LONG, "Very well."])
                .script(Script::always(
                    Conduct::good().late(Duration::from_millis(60)),
                )),
        ),
        ..Cast::default()
    };
    let stage = Stage {
        providers: slower.providers(),
        ..Stage::default()
    };
    let (_, candidate) = again(&baseline, RESIMULATION, stage).await.unwrap();
    let mut headed = vec![candidate[0].clone()];
    headed.extend_from_slice(&baseline);
    let found = |timing_ms: f64| {
        let tolerance = Tolerance {
            timing_ms,
            ..Tolerance::default()
        };
        let found = compare(&headed, &candidate, &tolerance).into_iter();
        let classes: BTreeSet<_> = found.map(|it| it.class).collect();
        classes.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(found(100.0), []);
    assert_eq!(found(15.0), [DivergenceClass::TimingDivergence]);
}

/// F-078: what the profile decided is decided again in a replay, value by value and each with its provenance; a run
/// in which one of its numbers is another does not pass for the same.
#[tokio::test(start_paused = true)]
async fn the_profile_s_defaults_are_the_same_in_a_replay() {
    let plans = |entries: &[Entry]| -> Vec<serde_json::Value> {
        let plans = entries.iter().filter_map(|entry| match entry {
            Entry::Plan(plan) => Some(plan.plan.to_value()),
            _no_plan => None,
        });
        plans.collect()
    };
    let baseline = recorded(&talkative(), &whole()).await;
    let (rerun, candidate) = again(&baseline, PLAYBACK, Stage::default()).await.unwrap();
    assert_eq!(differences(&baseline, &rerun, &candidate), []);
    let (before, after) = (plans(&baseline), plans(&candidate));
    assert_eq!((before.len(), after.len()), (3, 3));
    for (before, after) in before.iter().zip(&after) {
        for part in ["budgets", "provenance"] {
            assert_eq!(before[part], after[part], "{part}");
        }
        assert_eq!(before["budgets"]["turn_budget_ms"], 2_000);
        let origins = before["provenance"].as_object().expect("each has one");
        let of_budgets = origins.get("budgets").expect("one layer has decided all");
        assert_eq!(of_budgets["layer"], "execution_profile");
    }

    let (mut builder, entries) = placed(&talkative(), &whole());
    builder.pipeline.budgets.turn_budget_ms = Some(2_100);
    let _ended = builder.hold().await;
    let changed = entries.await.unwrap();
    let found = compare(&baseline, &changed, &Tolerance::default());
    let classes: BTreeSet<_> = found.iter().map(|it| it.class).collect();
    assert_eq!(
        classes.into_iter().collect::<Vec<_>>(),
        [DivergenceClass::PlanDivergence]
    );
    assert!(!judge(found, &[]).passed());
}
