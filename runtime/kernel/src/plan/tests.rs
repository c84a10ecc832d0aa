use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rspp_proto::{
    Monotonic,
    spec::{
        Bindings, BudgetsSpec, BufferSpec, ChoicePolicy, ConnectionPolicy, DataHandling,
        DefaultingSource, DegradeSpec, EGRESS, EdgeSpec, ErrorAction, INGRESS, Insertion, Marks,
        MemoryLimits, NodeKind, NodeSpec, ObserveSpec, PipelineSpec, PolicyBundle, PortType,
        ProvidersSpec, RecordingLevel, RedactSpec, ReplayMode, StatePolicy, Strategy,
        SyncDropPolicy, SyncGroup, SyncPolicy, SyncScope, TurnPolicy, Watermarks,
    },
};

use super::*;
use crate::{
    graph::Graph,
    invocation::{InvocationPolicy, Patience},
};

fn spec() -> PipelineSpec {
    let id = |text: &str| NodeId::new(text).unwrap();
    let node = |name: &str, kind| NodeSpec {
        id: id(name),
        kind,
        digest: None,
        provider: None,
        fallback_providers: Vec::new(),
        fallback: None,
        budget_ms: None,
        execution: None,
        on_error: ErrorAction::Abort,
        cancel: CancelMode::Hard,
        tools: Vec::new(),
        config: BTreeMap::new(),
        description: None,
    };
    let edge = |from: &str, to: &str, carries| EdgeSpec {
        id: None,
        from: id(from),
        to: id(to),
        carries,
        when: None,
        buffer: None,
    };
    PipelineSpec {
        schema: "rspp.pipeline.v1".into(),
        version: PipelineVersion::new("v1").unwrap(),
        profile: ProfileName::SimpleV1,
        instructions: None,
        nodes: vec![
            node("stt", NodeKind::Stt),
            node("turn", NodeKind::TurnDetector),
            node("llm", NodeKind::Llm),
            node("tts", NodeKind::Tts),
        ],
        edges: vec![
            edge(INGRESS, "stt", PortType::Audio),
            edge("stt", "turn", PortType::Text),
            edge("turn", "llm", PortType::Text),
            edge("llm", "tts", PortType::Text),
            edge("tts", EGRESS, PortType::Audio),
            edge("llm", EGRESS, PortType::Text),
        ],
        budgets: BudgetsSpec::default(),
        turns: TurnPolicy::default(),
        observe: ObserveSpec::default(),
        open_to_policy: Vec::new(),
        memory: MemoryLimits::default(),
        providers: ProvidersSpec::default(),
        connection: ConnectionPolicy::default(),
        state: StatePolicy::default(),
        priority: Priority::Interactive,
        degrade: None,
        metadata: BTreeMap::new(),
    }
}

fn providers(ids: &[&str]) -> Vec<ProviderId> {
    ids.iter().map(|id| ProviderId::new(*id).unwrap()).collect()
}

fn settings() -> LayeredSettings {
    LayeredSettings {
        defaults: Settings {
            provider_bindings: BTreeMap::from([
                (Modality::Stt, providers(&["ears"])),
                (Modality::EndOfTurn, providers(&["pause"])),
                (Modality::Llm, providers(&["brain", "spare-brain"])),
                (Modality::Tts, providers(&["mouth"])),
            ]),
            ..Settings::default()
        },
        ..LayeredSettings::default()
    }
}

fn turn() -> TurnId {
    TurnId::new("turn-0001").unwrap()
}

/// Everything that a test may change.
struct Case {
    spec: PipelineSpec,
    settings: LayeredSettings,
    policy: Option<PolicyBundle>,
    snapshots: SnapshotProvenance,
    profile: &'static str,
    fresh: bool,
    degraded: bool,
}

impl Case {
    fn new() -> Self {
        Self {
            spec: spec(),
            settings: settings(),
            policy: None,
            snapshots: SnapshotProvenance::local(),
            profile: "simple/v1",
            fresh: true,
            degraded: false,
        }
    }

    fn resolve_for(&self, turn: &TurnId, epoch: Epoch) -> Result<ResolvedTurnPlan, PlanError> {
        let graph = Graph::compile(&self.spec).unwrap();
        let inputs = PlanInputs {
            spec: &self.spec,
            graph: &graph,
            graph_fingerprint: graph.fingerprint(),
            profile: self.profile,
            settings: &self.settings,
            policy: self.policy.as_ref(),
            snapshots: &self.snapshots,
            snapshots_fresh: self.fresh,
            providers: ProviderInputs::unknown(),
            degraded: self.degraded,
        };
        resolve(&inputs, turn, epoch)
    }

    fn resolve(&self) -> Result<ResolvedTurnPlan, PlanError> {
        self.resolve_for(&turn(), Epoch::FIRST)
    }
}

fn bundle() -> PolicyBundle {
    PolicyBundle {
        schema: "rspp.policy.bundle.v1".into(),
        policy_resolution_snapshot: "local/policy".into(),
        allowed_adaptive_actions: BTreeSet::from([AdaptiveAction::Degrade]),
        budgets: None,
        provider_bindings: None,
        edge_buffer_policies: None,
        flow_control: None,
        recording_policy: None,
        node_execution_policies: BTreeMap::new(),
        insert_nodes: Vec::new(),
        providers: ProvidersSpec::default(),
    }
}

fn full_bundle() -> PolicyBundle {
    let plan = Case::new().resolve().unwrap();
    let mut buffer = plan.edge_buffer_policies.values().next().unwrap().clone();
    buffer.max_queue_items = 50;
    PolicyBundle {
        budgets: Some(Budgets {
            turn_budget_ms: 1_234,
            ..plan.budgets.clone()
        }),
        provider_bindings: Some(plan.provider_bindings.clone()),
        edge_buffer_policies: Some(BTreeMap::from([("default".into(), buffer)])),
        flow_control: Some(plan.flow_control),
        recording_policy: Some(plan.recording_policy.clone()),
        ..bundle()
    }
}

fn buffer<'a>(plan: &'a ResolvedTurnPlan, edge: &str) -> &'a EdgeBufferPolicy {
    plan.edge_buffer_policies
        .get(edge)
        .expect("the edge exists")
}

/// F-078, turn-plan §3: the numbers of simple/v1, row by row.
#[test]
fn simple_v1_has_the_documented_numbers() {
    #[track_caller]
    fn check(edge: &EdgeBufferPolicy, strategy: Strategy, bounds: [u64; 4], marks: (u64, u64)) {
        let is = [
            edge.max_queue_items,
            edge.max_queue_ms,
            edge.max_queue_bytes,
            edge.max_latency_contribution_ms,
        ];
        assert_eq!((edge.strategy, is), (strategy, bounds));
        let (high, low) = marks;
        assert_eq!(edge.watermarks.queue_items, Some(Marks { high, low }));
        assert_eq!(
            edge.defaulting_source,
            DefaultingSource::ExecutionProfileDefault
        );
        let blocks = (strategy == Strategy::Block).then_some(2_000);
        assert_eq!(edge.max_block_time_ms, blocks);
    }
    let plan = Case::new().resolve().unwrap();
    let b = &plan.budgets;
    assert_eq!(
        [
            b.turn_budget_ms,
            b.node_budget_ms_default,
            b.path_budget_ms_default,
            b.edge_budget_ms_default,
            b.provider_first_byte_ms,
            b.provider_inter_chunk_ms,
            b.cancel_grace_ms,
            b.hook_timeout_ms,
            b.max_turn_duration_ms,
            b.output_gap_ms,
            b.max_silence_ms,
        ],
        [
            2_000, 800, 1_800, 250, 1_000, 700, 75, 250, 60_000, 1_500, 4_000
        ]
    );
    let default = [64, 300, 262_144, 120];
    for edge in ["ingress->stt:audio", "stt->turn:text", "llm->egress:text"] {
        check(buffer(&plan, edge), Strategy::DropOldest, default, (48, 24));
    }
    for edge in ["turn->llm:text", "llm->tts:text"] {
        check(
            buffer(&plan, edge),
            Strategy::Block,
            [256, 60_000, 262_144, 120],
            (192, 96),
        );
    }
    let playback = [150, 3_000, 1_048_576, 3_000];
    check(
        buffer(&plan, "tts->egress:audio"),
        Strategy::Block,
        playback,
        (100, 50),
    );
    assert_eq!(plan.recording_policy.recording_level, RecordingLevel::L0);
    let actions: Vec<_> = plan.allowed_adaptive_actions.iter().collect();
    assert_eq!(
        actions,
        [
            &AdaptiveAction::Retry,
            &AdaptiveAction::ProviderSwitch,
            &AdaptiveAction::Fallback
        ]
    );
    assert_eq!(
        plan.node_bindings["llm"],
        providers(&["brain", "spare-brain"])
    );
}

/// F-078, CT-004, AC-078-1: every value of every surface says where it came from.
#[test]
fn every_default_has_its_provenance() {
    for policy in [None, Some(bundle()), Some(full_bundle())] {
        let mut case = Case::new();
        case.policy = policy;
        case.spec.nodes[2].budget_ms = Some(600);
        let plan = case.resolve().unwrap();
        let unknown: Vec<_> = plan
            .resolved_values()
            .into_iter()
            .filter(|p| plan.origin(p).is_none())
            .collect();
        assert_eq!(unknown, Vec::<String>::new());
        assert!((plan.provenance_coverage() - 1.0).abs() < f64::EPSILON);
        assert!(
            plan.resolved_values().len() > 90,
            "{}",
            plan.resolved_values().len()
        );
    }
    let mut plan = Case::new().resolve().unwrap();
    assert_eq!(
        plan.origin("budgets/turn_budget_ms").unwrap().source,
        "execution_profile/simple/v1"
    );
    Arc::make_mut(&mut plan.policy)
        .provenance
        .remove("flow_control");
    assert!(plan.provenance_coverage() < 1.0, "a hole is seen");
}

/// CT-006, F-078, AC-078-2: any other profile is refused, with or without overrides, by one code.
#[test]
fn other_profiles_are_refused() {
    for profile in ["simple/v1", "simple", "simple-v1"] {
        let case = Case {
            profile,
            ..Case::new()
        };
        assert_eq!(
            case.resolve().unwrap().execution_profile.as_str(),
            "simple/v1"
        );
    }
    for profile in ["balanced", "aggressive", "", "Simple", "simple/v2", "bogus"] {
        for policy in [None, Some(full_bundle())] {
            let case = Case {
                policy,
                profile,
                ..Case::new()
            };
            let error = case.resolve().unwrap_err();
            assert_eq!(error.code(), "execution_profile_unsupported");
        }
    }
}

/// F-080: later layers win, value by value, and the layer that won is named.
#[test]
fn layers_override_in_order_and_are_traceable() {
    #[track_caller]
    fn check(case: &Case, ms: u64, layer: Layer) {
        let plan = case.resolve().unwrap();
        assert_eq!(plan.budgets.turn_budget_ms, ms);
        assert_eq!(plan.origin("budgets/turn_budget_ms").unwrap().layer, layer);
        let untouched = plan.origin("budgets/cancel_grace_ms").unwrap().layer;
        assert_eq!(untouched, Layer::ExecutionProfile);
    }
    let budget = |ms| BudgetsSpec {
        turn_budget_ms: Some(ms),
        ..BudgetsSpec::default()
    };
    let mut case = Case::new();
    check(&case, 2_000, Layer::ExecutionProfile);
    case.settings.session.budgets = budget(1_500);
    case.settings.tenant.budgets = budget(1_600);
    case.settings.environment.budgets = budget(1_700);
    case.spec.budgets = budget(1_800);
    case.settings.defaults.budgets = budget(1_900);
    check(&case, 1_500, Layer::Session);
    case.settings.session.budgets = BudgetsSpec::default();
    check(&case, 1_600, Layer::Tenant);
    case.settings.tenant.budgets = BudgetsSpec::default();
    check(&case, 1_700, Layer::Environment);
    case.settings.environment.budgets = BudgetsSpec::default();
    check(&case, 1_800, Layer::Pipeline);
    case.spec.budgets = BudgetsSpec::default();
    check(&case, 1_900, Layer::Defaults);

    case.settings.tenant.provider_bindings =
        BTreeMap::from([(Modality::Llm, providers(&["tenant-brain"]))]);
    let plan = case.resolve().unwrap();
    assert_eq!(plan.node_bindings["llm"], providers(&["tenant-brain"]));
    assert_eq!(
        plan.origin("node_bindings/llm").unwrap().layer,
        Layer::Tenant
    );
}

/// F-007, F-133: a node's own provider comes first, its fallbacks after, each once.
#[test]
fn a_node_may_choose_its_own_providers() {
    let mut case = Case::new();
    case.spec.nodes[2].fallback_providers = providers(&["spare-brain", "last-brain"]);
    let plan = case.resolve().unwrap();
    assert_eq!(
        plan.node_bindings["llm"],
        providers(&["brain", "spare-brain", "last-brain"])
    );
    case.spec.nodes[2].provider = Some(ProviderId::new("own-brain").unwrap());
    let plan = case.resolve().unwrap();
    assert_eq!(
        plan.node_bindings["llm"],
        providers(&["own-brain", "spare-brain", "last-brain"])
    );
    assert_eq!(
        plan.origin("node_bindings/llm").unwrap().layer,
        Layer::Pipeline
    );
}

/// F-143: what an edge says of itself is marked so; the rest stays the profile's.
#[test]
fn an_authored_buffer_is_laid_over_the_default() {
    let mut case = Case::new();
    case.spec.edges[0].buffer = Some(BufferSpec {
        strategy: Some(DataHandling::LatestOnly),
        max_queue_items: Some(8),
        ..BufferSpec::default()
    });
    let plan = case.resolve().unwrap();
    let edge = buffer(&plan, "ingress->stt:audio");
    assert_eq!(
        (edge.strategy, edge.max_queue_items),
        (Strategy::LatestOnly, 8)
    );
    assert_eq!(edge.lane_handling.data, DataHandling::LatestOnly);
    assert_eq!(edge.max_queue_ms, 300);
    assert_eq!(edge.watermarks.queue_items, Some(Marks { high: 6, low: 3 }));
    assert_eq!(edge.defaulting_source, DefaultingSource::ExplicitEdgeConfig);
    let path = "edge_buffer_policies/ingress->stt:audio";
    let layer = |field: &str| plan.origin(&format!("{path}/{field}")).unwrap().layer;
    assert_eq!(layer("max_queue_items"), Layer::Pipeline);
    assert_eq!(layer("max_queue_ms"), Layer::ExecutionProfile);
}

/// Design §7: the five surfaces together or none of them.
#[test]
fn overrides_are_all_or_nothing() {
    let mut case = Case::new();
    case.policy = Some(bundle());
    let plan = case.resolve().unwrap();
    assert_eq!(plan.budgets.turn_budget_ms, 2_000);
    assert_eq!(
        plan.allowed_adaptive_actions,
        BTreeSet::from([AdaptiveAction::Degrade])
    );

    case.policy = Some(full_bundle());
    case.settings.session.budgets.turn_budget_ms = Some(1_500);
    let plan = case.resolve().unwrap();
    assert_eq!(plan.budgets.turn_budget_ms, 1_234);
    assert!(
        plan.edge_buffer_policies
            .values()
            .all(|edge| edge.max_queue_items == 50)
    );
    assert_eq!(
        plan.origin("budgets/turn_budget_ms").unwrap().layer,
        Layer::PolicyBundle
    );

    let cut: [fn(&mut PolicyBundle); 5] = [
        |p| p.budgets = None,
        |p| p.provider_bindings = None,
        |p| p.edge_buffer_policies = None,
        |p| p.flow_control = None,
        |p| p.recording_policy = None,
    ];
    let names = [
        "budgets",
        "provider_bindings",
        "edge_buffer_policies",
        "flow_control",
        "recording_policy",
    ];
    for (cut, name) in cut.into_iter().zip(names) {
        let mut policy = full_bundle();
        cut(&mut policy);
        case.policy = Some(policy);
        let missing = vec![name];
        assert_eq!(case.resolve(), Err(PlanError::PartialOverride { missing }));
    }
}

/// F-102: provider settings of a version of their own stand over pipeline, layers and policy, part by part,
/// and the plan says which version each part is from.
#[test]
fn published_provider_settings_say_how_providers_are_called() {
    let mut case = Case::new();
    let failure = |reply: &str| {
        Some(Box::new(rspp_proto::spec::FailurePolicy {
            reply: Some(reply.to_owned()),
            ..rspp_proto::spec::FailurePolicy::default()
        }))
    };
    case.spec.providers.calls = Some(Box::new(rspp_proto::spec::CallPolicy {
        backoff_ms: 7,
        ..rspp_proto::spec::CallPolicy::default()
    }));
    let mut policy = full_bundle();
    policy.providers.failure = failure("of the policy");
    case.policy = Some(policy);
    let before = case.resolve().unwrap();
    case.settings.published = Some(ProviderSettings {
        version: "desk-2".to_owned(),
        providers: ProvidersSpec {
            failure: failure("of the settings"),
            ..ProvidersSpec::default()
        },
    });
    let plan = case.resolve().unwrap();
    let reply = plan.provider_policy.failure.reply.as_deref();
    assert_eq!(reply, Some("of the settings"));
    assert_eq!(plan.provider_policy.calls.backoff_ms, 7);
    let origin = plan.origin("provider_policy/failure").unwrap();
    assert_eq!(
        (origin.layer, origin.source.as_str()),
        (Layer::ProviderSettings, "providers/desk-2")
    );
    let calls = plan.origin("provider_policy/calls").unwrap();
    assert_eq!(calls.layer, Layer::Pipeline);
    assert_ne!(
        plan.plan_hash, before.plan_hash,
        "it decides how a turn runs"
    );
}

/// T2, T5a: what is stale or does not fit together gives no plan.
#[test]
fn stale_or_foreign_inputs_are_refused() {
    #[track_caller]
    fn check(case: &Case, code: &str, transient: bool) {
        let error = case.resolve().unwrap_err();
        assert_eq!(
            (error.code(), error.is_transient()),
            (code, transient),
            "{error}"
        );
    }
    let mut case = Case::new();
    case.fresh = false;
    check(&case, "snapshot_stale", true);
    let mut case = Case::new();
    case.snapshots.routing_view_snapshot = " ".into();
    check(&case, "snapshot_missing", true);
    let mut case = Case::new();
    case.policy = Some(PolicyBundle {
        policy_resolution_snapshot: "policy/older".into(),
        ..bundle()
    });
    check(&case, "policy_snapshot_mismatch", true);
    let mut case = Case::new();
    case.settings
        .defaults
        .provider_bindings
        .remove(&Modality::Tts);
    check(&case, "provider_unbound", false);
    assert_eq!(
        case.resolve().unwrap_err().to_string(),
        "node `tts` needs a provider for tts; bind one under provider_bindings.tts"
    );
    let mut case = Case::new();
    case.settings
        .session
        .edge_buffers
        .insert("llm->mouth:text".into(), BufferSpec::default());
    check(&case, "setting_names_nothing", false);

    let (case, graph) = (Case::new(), Graph::compile(&spec()).unwrap());
    let inputs = PlanInputs {
        spec: &case.spec,
        graph: &graph,
        graph_fingerprint: "another",
        profile: "simple",
        settings: &case.settings,
        policy: None,
        snapshots: &case.snapshots,
        snapshots_fresh: true,
        providers: ProviderInputs::unknown(),
        degraded: false,
    };
    let error = resolve(&inputs, &turn(), Epoch::FIRST).unwrap_err();
    assert_eq!(error.code(), "graph_mismatch");
}

/// turn-plan §2: each rule about values, with the field's path.
#[test]
fn values_that_cannot_work_are_refused() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut Case), path: &str) {
        let mut case = Case::new();
        change(&mut case);
        match case.resolve() {
            Err(PlanError::Invalid { path: is, .. }) => assert_eq!(is, path),
            other => panic!("{other:?}"),
        }
    }
    fn session(case: &mut Case) -> &mut BufferSpec {
        case.settings
            .session
            .edge_buffers
            .entry("ingress->stt:audio".into())
            .or_default()
    }
    let edge = "edge_buffer_policies.ingress->stt:audio";
    check(
        |c| c.spec.budgets.cancel_grace_ms = Some(0),
        "budgets.cancel_grace_ms",
    );
    check(
        |c| c.spec.nodes[0].budget_ms = Some(0),
        "nodes.stt.budget_ms",
    );
    check(
        |c| session(c).max_queue_ms = Some(0),
        &format!("{edge}.max_queue_ms"),
    );
    check(
        |c| session(c).strategy = Some(DataHandling::Block),
        &format!("{edge}.max_block_time_ms"),
    );
    check(
        |c| session(c).watermarks = Some(Watermarks::default()),
        &format!("{edge}.watermarks"),
    );
    check(
        |c| {
            session(c).watermarks = Some(Watermarks {
                queue_items: Some(Marks { high: 4, low: 4 }),
                queue_ms: None,
            });
        },
        &format!("{edge}.watermarks"),
    );
    check(
        |c| {
            session(c).sync_drop_policy = Some(SyncDropPolicy {
                group_by: None,
                policy: SyncPolicy::AtomicDrop,
                scope: SyncScope::EdgeLocal,
                sync_domain: None,
            });
        },
        &format!("{edge}.sync_drop_policy.group_by"),
    );
    // A frame of the user's has 640 bytes, and sound is never folded together.
    check(
        |c| session(c).max_queue_bytes = Some(639),
        &format!("{edge}.max_queue_bytes"),
    );
    check(
        |c| session(c).strategy = Some(DataHandling::Merge),
        &format!("{edge}.strategy"),
    );
    for (policy, group_by) in [
        (SyncPolicy::NoSync, SyncGroup::SyncId),
        (SyncPolicy::AtomicDrop, SyncGroup::EventId),
    ] {
        check(
            |c| {
                session(c).sync_drop_policy = Some(SyncDropPolicy {
                    group_by: Some(group_by),
                    policy,
                    scope: SyncScope::EdgeLocal,
                    sync_domain: None,
                });
            },
            &format!("{edge}.sync_drop_policy.group_by"),
        );
    }
    check(
        |c| {
            let bindings = &mut c.settings.session.provider_bindings;
            bindings.insert(Modality::Llm, providers(&["brain", "brain"]));
        },
        "provider_bindings.llm",
    );
    check(
        |c| {
            c.settings.session.streaming_handoff = Some(StreamingHandoff {
                llm_to_tts: Handoff {
                    max_pending_segments: 0,
                    ..profile::streaming_handoff().llm_to_tts
                },
                ..profile::streaming_handoff()
            });
        },
        "streaming_handoff.llm_to_tts.max_pending_segments",
    );
    check(
        |c| {
            let off = profile::streaming_handoff().stt_to_llm;
            c.settings.session.streaming_handoff = Some(StreamingHandoff {
                enabled: true,
                stt_to_llm: off.clone(),
                llm_to_tts: off,
            });
        },
        "streaming_handoff",
    );
}

/// CT-004, invariant 13, F-149: equal inputs, equal plan; each thing that decides changes the hash.
#[test]
fn the_hash_covers_what_decides_and_nothing_else() {
    let base = Case::new().resolve().unwrap();
    assert_eq!(base, Case::new().resolve().unwrap());
    assert_eq!(base.plan_hash.len(), 64);
    assert!(
        base.plan_hash
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    );
    assert_eq!(base.verify(), Ok(()));

    let other = Case::new()
        .resolve_for(&TurnId::new("turn-0002").unwrap(), Epoch::FIRST)
        .unwrap();
    assert_ne!(
        other.plan_hash, base.plan_hash,
        "the turn is part of the plan"
    );
    assert_eq!(other.policy_hash, base.policy_hash, "but not of the policy");
    let other = Case::new()
        .resolve_for(&turn(), Epoch::FIRST.next())
        .unwrap();
    assert_ne!(other.plan_hash, base.plan_hash);
    assert_eq!(other.policy_hash, base.policy_hash);
    assert_ne!(other.determinism.seed, base.determinism.seed);

    let changes: [fn(&mut Case); 8] = [
        |c| c.spec.version = PipelineVersion::new("v2").unwrap(),
        |c| c.settings.session.budgets.turn_budget_ms = Some(1_999),
        |c| c.snapshots.provider_health_snapshot = "health/2".into(),
        |c| c.spec.nodes[2].budget_ms = Some(700),
        |c| {
            c.settings.session.recording_policy = Some(RecordingPolicy {
                recording_level: RecordingLevel::L2,
                allowed_replay_modes: BTreeSet::from([ReplayMode::RecomputeDecisions]),
                full_capture: BTreeSet::new(),
                redact: RedactSpec::default(),
            });
        },
        |c| {
            c.settings.session.streaming_handoff = Some(StreamingHandoff {
                enabled: false,
                ..profile::streaming_handoff()
            });
        },
        |c| c.settings.tenant.priority = Some(Priority::Background),
        |c| {
            let config = &mut c.spec.nodes[3].config;
            config.insert("voice".into(), "joe".into());
        },
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let mut case = Case::new();
        change(&mut case);
        let plan = case.resolve().unwrap();
        assert_ne!(plan.plan_hash, base.plan_hash, "change {at}");
        assert_ne!(plan.policy_hash, base.policy_hash, "change {at}");
    }
}

/// F-078: a default that was changed locally does not pass a replay check.
#[test]
fn a_doctored_plan_is_found_out() {
    let mut plan = Case::new().resolve().unwrap();
    let text = serde_json::to_string(&plan).unwrap();
    let read: ResolvedTurnPlan = serde_json::from_str(&text).unwrap();
    assert_eq!(read, plan, "a plan survives its recording");
    assert_eq!(read.verify(), Ok(()));
    Arc::make_mut(&mut plan.policy).budgets.turn_budget_ms += 1;
    assert!(matches!(plan.verify(), Err(PlanMismatch::Hash { .. })));
    for doctor in [
        (|plan| plan.turn_id = TurnId::new("turn-0002").unwrap()) as fn(&mut ResolvedTurnPlan),
        |plan| plan.authority_epoch = plan.authority_epoch.next(),
        |plan| plan.plan_hash = "0".repeat(64),
        |plan| Arc::make_mut(&mut plan.policy).policy_hash = "0".repeat(64),
    ] {
        let mut plan = read.clone();
        doctor(&mut plan);
        assert!(matches!(plan.verify(), Err(PlanMismatch::Hash { .. })));
    }
}

/// F-046, F-059: what runs a turn takes its limits from the frozen plan.
#[test]
fn limits_come_from_the_plan() {
    let mut case = Case::new();
    case.policy = Some(bundle());
    case.settings.session.budgets.provider_first_byte_ms = Some(432);
    case.settings.session.budgets.provider_inter_chunk_ms = Some(321);
    case.spec.nodes[2].budget_ms = Some(600);
    let plan = case.resolve().unwrap();
    let patience = Patience::of(&plan.budgets);
    assert_eq!(patience.first_byte.as_millis(), 432);
    assert_eq!(patience.inter_chunk.as_millis(), 321);
    let (calls, actions) = (&plan.provider_policy.calls, &plan.allowed_adaptive_actions);
    let calls = InvocationPolicy::of(calls, actions, Modality::Llm);
    assert_eq!(calls.actions, BTreeSet::from([AdaptiveAction::Degrade]));
    assert_eq!(plan.node_budget_ms(&NodeId::new("llm").unwrap()), 600);
    assert_eq!(plan.node_budget_ms(&NodeId::new("tts").unwrap()), 800);
    let facts = plan.facts();
    assert_eq!(facts.hash, plan.plan_hash);
    assert_eq!(facts.budgets, plan.budgets);
}

/// F-048: what the posture does without is in the plan, says where it comes from, and is gone with it.
#[test]
fn a_degrade_posture_is_the_last_word_while_it_is_in_force() {
    let mut case = Case::new();
    case.policy = Some(bundle());
    case.spec.nodes[2].provider = providers(&["llm-own"]).pop();
    case.spec.degrade = Some(DegradeSpec {
        max_context_messages: Some(4),
        max_tokens: Some(64),
        sample_rate: Some(8_000),
        provider_bindings: BTreeMap::from([(Modality::Llm, providers(&["llm-small"]))]),
        recording_level: Some(RecordingLevel::L0),
    });
    let whole = case.resolve().unwrap();
    assert!(!whole.is_degraded());
    assert_eq!(whole.extent.max_context_messages, 64);
    case.degraded = true;
    let less = case.resolve().unwrap();
    assert!(less.is_degraded());
    assert_eq!(
        less.extent,
        Extent {
            max_context_messages: 4,
            max_tokens: Some(64),
            max_sample_rate: Some(8_000),
        }
    );
    let llm = NodeId::new("llm").unwrap();
    assert_eq!(less.node_bindings[&llm], providers(&["llm-small"]));
    assert_eq!(
        less.provider_bindings[&Modality::Llm],
        providers(&["llm-small"])
    );
    for path in [
        "extent/max_context_messages",
        "extent/max_tokens",
        "extent/max_sample_rate",
        "node_bindings/llm",
        "provider_bindings/llm",
    ] {
        let origin = less.origin(path).unwrap();
        assert_eq!(origin.layer, Layer::Posture, "{path}");
        assert_eq!(origin.source, "pipeline/v1/degrade");
    }
    assert!((less.provenance_coverage() - 1.0).abs() < f64::EPSILON);
    assert_ne!(less.policy_hash, whole.policy_hash);
    case.degraded = false;
    assert_eq!(case.resolve().unwrap(), whole, "undone without a trace");
}

/// F-048: a posture takes away; it never adds.
#[test]
fn a_degrade_posture_never_gives_more() {
    let mut case = Case::new();
    case.spec.turns.max_context_messages = 3;
    case.spec.degrade = Some(DegradeSpec {
        max_context_messages: Some(8),
        recording_level: Some(RecordingLevel::L2),
        ..DegradeSpec::default()
    });
    case.degraded = true;
    let plan = case.resolve().unwrap();
    assert_eq!(plan.extent.max_context_messages, 3);
    assert_eq!(plan.recording_policy.recording_level, RecordingLevel::L0);
    assert!(!plan.is_degraded());
}

/// F-161, turn-plan §5 rule 6: turn, version and epoch are compared exactly.
#[test]
fn only_its_own_turn_may_run_a_plan() {
    let plan = Case::new().resolve().unwrap();
    let (v1, v2) = (
        PipelineVersion::new("v1").unwrap(),
        PipelineVersion::new("v2").unwrap(),
    );
    let other = TurnId::new("turn-0002").unwrap();
    assert_eq!(matches(&plan, &turn(), &v1, Epoch::FIRST), Ok(()));
    assert!(matches!(
        matches(&plan, &other, &v1, Epoch::FIRST),
        Err(PlanMismatch::Turn { .. })
    ));
    assert!(matches!(
        matches(&plan, &turn(), &v2, Epoch::FIRST),
        Err(PlanMismatch::Version { .. })
    ));
    assert!(matches!(
        matches(&plan, &turn(), &v1, Epoch::FIRST.next()),
        Err(PlanMismatch::Epoch { .. })
    ));
}

proptest! {
    /// F-078, F-080: over any mix of layers the last one that speaks wins, the plan verifies, and
    /// no value is without an origin.
    #[test]
    fn the_last_layer_that_speaks_wins(
        values in prop::array::uniform5(prop::option::of(1u64..5_000)),
        items in prop::array::uniform5(prop::option::of(1u64..500)),
    ) {
        let mut case = Case::new();
        let spoken = |ms: Option<u64>| BudgetsSpec { turn_budget_ms: ms, ..BudgetsSpec::default() };
        let sized = |n: Option<u64>| BufferSpec { max_queue_items: n, ..BufferSpec::default() };
        case.settings.defaults.budgets = spoken(values[0]);
        case.spec.budgets = spoken(values[1]);
        case.settings.environment.budgets = spoken(values[2]);
        case.settings.tenant.budgets = spoken(values[3]);
        case.settings.session.budgets = spoken(values[4]);
        let id = "ingress->stt:audio";
        case.settings.defaults.edge_buffers = BTreeMap::from([("default".into(), sized(items[0]))]);
        case.spec.edges[0].buffer = Some(sized(items[1]));
        case.settings.environment.edge_buffers = BTreeMap::from([(id.into(), sized(items[2]))]);
        case.settings.tenant.edge_buffers = BTreeMap::from([("default".into(), sized(items[3]))]);
        case.settings.session.edge_buffers = BTreeMap::from([(id.into(), sized(items[4]))]);
        let plan = case.resolve().unwrap();
        let last = |given: [Option<u64>; 5], default| {
            given.into_iter().rev().flatten().next().unwrap_or(default)
        };
        prop_assert_eq!(plan.budgets.turn_budget_ms, last(values, 2_000));
        prop_assert_eq!(buffer(&plan, id).max_queue_items, last(items, 64));
        prop_assert!((plan.provenance_coverage() - 1.0).abs() < f64::EPSILON);
        prop_assert_eq!(plan.verify(), Ok(()));
    }
}

#[track_caller]
fn refused(spec: &PipelineSpec, policy: &PolicyBundle, code: &str) {
    let error = with_insertions(spec, Some(policy)).unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    assert!(!error.is_transient());
}

/// F-062: what a policy inserts stands where the pipeline lets it, on all edges of the type, which keep
/// their ids; it is part of the graph and of the plan's hash.
#[test]
fn a_policy_inserts_where_the_pipeline_lets_it() {
    let guard = |name: &str| Insertion {
        after: NodeId::new("llm").unwrap(),
        carries: PortType::Text,
        node: NodeSpec {
            id: NodeId::new(name).unwrap(),
            kind: NodeKind::Guard,
            ..spec().nodes[0].clone()
        },
    };
    let with = |insertions: &[Insertion]| PolicyBundle {
        insert_nodes: insertions.to_vec(),
        ..bundle()
    };
    let mut open = spec();
    open.open_to_policy = vec![NodeId::new("llm").unwrap()];

    let effective =
        with_insertions(&open, Some(&with(&[guard("first"), guard("second")]))).unwrap();
    let graph = Graph::compile(&effective).unwrap();
    let edges: Vec<_> = graph
        .edges()
        .filter(|(_, edge)| edge.carries == PortType::Text)
        .map(|(_, edge)| {
            let name = |ix| graph.node(ix).id.to_string();
            (edge.id.to_string(), name(edge.from), name(edge.to))
        })
        .collect();
    let row = |id: &str, from: &str, to: &str| (id.to_owned(), from.to_owned(), to.to_owned());
    assert_eq!(
        edges[2..],
        [
            row("llm->tts:text", "second", "tts"),
            row("llm->egress:text", "second", "egress"),
            row("llm->second:text", "first", "second"),
            row("llm->first:text", "llm", "first"),
        ]
    );
    assert_ne!(
        graph.fingerprint(),
        Graph::compile(&open).unwrap().fingerprint()
    );

    let view = graph.view(inserted(Some(&with(&[guard("first")]))));
    let marked: Vec<_> = view
        .nodes
        .iter()
        .filter(|it| it.inserted_by_policy)
        .collect();
    assert_eq!(marked.len(), 1);
    assert!(view.mermaid().contains("first: guard, by policy"));

    refused(&spec(), &with(&[guard("first")]), "insertion_not_allowed");
    refused(&open, &with(&[guard("tts")]), "insertion_name_taken");
    let audio = Insertion {
        carries: PortType::Audio,
        ..guard("first")
    };
    refused(&open, &with(&[audio]), "insertion_follows_nothing");
    let many: Vec<_> = (0..17).map(|n| guard(&format!("g{n}"))).collect();
    refused(&open, &with(&many), "setting_invalid");
    assert_eq!(with_insertions(&spec(), None).unwrap(), spec());
}

fn with<'a>(
    mut inputs: PlanInputs<'a>,
    change: impl FnOnce(&mut ProviderInputs<'a>),
) -> PlanInputs<'a> {
    change(&mut inputs.providers);
    inputs
}

/// F-149: what was resolved for equal inputs is not resolved again, whatever differs is, and both come
/// to what resolving anew comes to.
#[test]
fn equal_inputs_are_resolved_once() {
    let mut case = Case::new();
    let german = Bindings::from([(Modality::Llm, providers(&["spare-brain"]))]);
    case.settings.session.providers.choice = Some(Box::new(ChoicePolicy {
        language: BTreeMap::from([("de".to_owned(), german)]),
        max_signal_age_ms: 1_000,
        ..ChoicePolicy::default()
    }));
    let graph = Graph::compile(&case.spec).unwrap();
    let speaks = |language: &str| BTreeMap::from([("language".to_owned(), language.into())]);
    let (english, german, austrian) = (speaks("en"), speaks("de"), speaks("de-AT"));
    let brain = (Modality::Llm, providers(&["brain"]).remove(0));
    let dear = ProviderNews {
        price_micros: Some(9),
        ..ProviderNews::default()
    };
    let news = ProviderSignals {
        news: Some((
            Monotonic::from_millis(500),
            News::from([(brain.clone(), dear)]),
        )),
        ..ProviderSignals::default()
    };
    let resting = ProviderSignals {
        resting: BTreeSet::from([brain]),
        ..ProviderSignals::default()
    };
    let can = Capabilities {
        streaming: true,
        networked: false,
    };
    let brains = providers(&["brain", "spare-brain"]).into_iter();
    let brains = brains.map(|id| (id, can)).collect();
    let catalogue = Catalogue(BTreeMap::from([(Modality::Llm, brains)]));
    let mut newer = case.snapshots.clone();
    newer.routing_view_snapshot = "routing/2".to_owned();

    let plain = PlanInputs {
        spec: &case.spec,
        graph: &graph,
        graph_fingerprint: graph.fingerprint(),
        profile: case.profile,
        settings: &case.settings,
        policy: None,
        snapshots: &case.snapshots,
        snapshots_fresh: true,
        providers: ProviderInputs::unknown(),
        degraded: false,
    };
    let at = Monotonic::from_millis;
    // Those of a line are equal where it counts.
    let lines = [
        vec![
            plain,
            with(plain, |p| p.attributes = &english),
            with(plain, |p| p.now = at(9_000)),
        ],
        vec![
            with(plain, |p| p.attributes = &german),
            with(plain, |p| p.attributes = &austrian),
        ],
        vec![
            with(plain, |p| (p.signals, p.now) = (&news, at(600))),
            with(plain, |p| (p.signals, p.now) = (&news, at(1_500))),
        ],
        vec![
            with(plain, |p| (p.signals, p.now) = (&news, at(1_501))),
            with(plain, |p| (p.signals, p.now) = (&news, at(5_000))),
        ],
        vec![with(plain, |p| p.signals = &resting)],
        vec![with(plain, |p| p.catalogue = &catalogue)],
        vec![PlanInputs {
            degraded: true,
            ..plain
        }],
        vec![PlanInputs {
            snapshots: &newer,
            ..plain
        }],
    ];
    let mut known = KnownPolicies::default();
    let mut seen: Vec<Arc<ResolvedPolicy>> = Vec::new();
    for _ in 0..2 {
        for line in &lines {
            let mut first: Option<Arc<ResolvedPolicy>> = None;
            for inputs in line {
                let policy = known.resolve(inputs).unwrap();
                assert_eq!(*policy, resolve_policy(inputs).unwrap());
                let first = first.get_or_insert_with(|| Arc::clone(&policy));
                assert!(Arc::ptr_eq(first, &policy));
            }
            seen.extend(first);
        }
    }
    let (before, after) = seen.split_at(lines.len());
    for (n, one) in before.iter().enumerate() {
        assert!(Arc::ptr_eq(one, &after[n]), "line {n} is known");
        let others = before[..n].iter();
        assert!(others.into_iter().all(|other| !Arc::ptr_eq(one, other)));
    }
    let stale = PlanInputs {
        snapshots_fresh: false,
        ..plain
    };
    assert_eq!(known.resolve(&stale), Err(PlanError::StaleSnapshots));
}

/// F-080, P16: no schema is asked about settings, and their numbers are held to the same largest values.
#[test]
fn settings_have_largest_values_too() {
    let mut all = settings();
    assert_eq!(all.check(), Ok(()));
    all.session.budgets.turn_budget_ms = Some(u64::MAX);
    let error = all.check().unwrap_err();
    assert_eq!(error.code(), "setting_invalid");
    let message = error.to_string();
    assert!(
        message.starts_with("session.budgets.turn_budget_ms: 18446744073709551615 is too large"),
        "{message}"
    );
}
