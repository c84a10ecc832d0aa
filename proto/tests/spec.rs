//! Specs from text: what is good passes in silence, what is bad is named with its place.

use insta::assert_snapshot;
use rspp_proto::{
    schema,
    spec::{
        Diagnostic, Modality, Mode, PipelineSpec, PolicyBundle, PortType, ProfileName, Severity,
    },
};
use serde_json::json;

fn errors(text: &str) -> String {
    PipelineSpec::parse("pipeline.yaml", text, Mode::Strict)
        .expect_err("is accepted")
        .to_string()
}

fn policy_errors(text: &str) -> String {
    PolicyBundle::parse("policy.yaml", text, Mode::Strict)
        .expect_err("is accepted")
        .to_string()
}

/// The template with one piece of text replaced.
fn changed(from: &str, to: &str) -> String {
    let template = PipelineSpec::simple_template();
    assert!(template.contains(from), "the template has no `{from}`");
    template.replacen(from, to, 1)
}

/// F-001, F-079: the template passes strict mode without a warning, and the published schema.
#[test]
fn the_template_is_good() {
    let text = PipelineSpec::simple_template();
    let parsed = PipelineSpec::parse("simple.yaml", text, Mode::Strict).unwrap();
    assert_eq!(parsed.warnings, []);
    let spec = parsed.spec;
    assert_eq!(spec, PipelineSpec::simple());
    assert_eq!(spec.profile, ProfileName::SimpleV1);
    assert!(spec.nodes.iter().all(|node| node.provider.is_none()));

    let edges: Vec<String> = spec
        .edges
        .iter()
        .map(|edge| edge.edge_id().unwrap().to_string())
        .collect();
    assert_eq!(
        edges,
        [
            "ingress->vad:audio",
            "ingress->stt:audio",
            "ingress->turn:audio",
            "vad->stt:speech",
            "vad->turn:speech",
            "stt->turn:text",
            "stt->egress:text",
            "turn->llm:text",
            "llm->segmenter:text",
            "segmenter->tts:text",
            "tts->egress:audio",
            "segmenter->egress:text",
        ]
    );

    let published = schema::published();
    let pipeline = published
        .iter()
        .find(|schema| schema.name == "pipeline")
        .unwrap();
    let validator = jsonschema::validator_for(&pipeline.schema).unwrap();
    let value = serde_json::to_value(&spec).unwrap();
    assert!(
        validator.is_valid(&value),
        "the schema refuses the template"
    );
}

/// F-082: what is for people never alters execution.
#[test]
fn a_spec_reads_back_from_json() {
    let spec = PipelineSpec::simple();
    let text = serde_json::to_string_pretty(&spec).unwrap();
    let parsed = PipelineSpec::parse("simple.json", &text, Mode::Strict).unwrap();
    assert_eq!(parsed.spec, spec);
    assert_eq!(parsed.warnings, []);
}

/// F-078: any other profile is refused by a code that never changes.
#[test]
fn only_the_simple_profile_exists() {
    for name in ["simple/v1", "simple", "simple-v1"] {
        let text = changed("profile: simple/v1", &format!("profile: {name}"));
        let spec = PipelineSpec::parse("p.yaml", &text, Mode::Strict)
            .unwrap()
            .spec;
        assert_eq!(spec.profile, ProfileName::SimpleV1);
    }
    for name in ["balanced", "aggressive", "simple/v2", "bogus"] {
        for mode in [Mode::Strict, Mode::Relaxed] {
            let text = changed("profile: simple/v1", &format!("profile: {name}"));
            let found = PipelineSpec::parse("p.yaml", &text, mode).unwrap_err().0;
            let codes: Vec<&str> = found.iter().map(|d| d.code).collect();
            assert_eq!(codes, ["unknown_profile"]);
        }
    }
    assert_snapshot!(
        errors(&changed("profile: simple/v1", "profile: balanced")),
        @"pipeline.yaml:11:10: profile: unknown profile `balanced`; only `simple/v1` exists"
    );
}

/// F-001
#[test]
fn shapes_that_do_not_fit_are_all_named_at_once() {
    let text = "\
schema: rspp.pipeline.v1
version: 7
profle: simple/v1
nodes:
  - id: stt
    kind: stt
    proivder: stt-local
  - id: llm
    kind: llmm
    budget_ms: 0
  - kind: tts
edges:
  - { from: ingress, to: stt, carries: sound }
  - from: stt
    to: 5
    carries: text
    buffer: { max_queue_items: many }
turns: no
";
    assert_snapshot!(errors(text), @r#"
pipeline.yaml:1:1: missing field `profile`
pipeline.yaml:2:10: version: expected text, found `7`; put it in quotes
pipeline.yaml:3:1: profle: unknown field `profle`; did you mean `profile`?
pipeline.yaml:7:5: nodes[0].proivder: unknown field `proivder`; did you mean `provider`?
pipeline.yaml:9:11: nodes[1].kind: text `llmm` is not possible here; did you mean `llm`?
pipeline.yaml:10:16: nodes[1].budget_ms: `0` must be at least 1
pipeline.yaml:11:5: nodes[2]: missing field `id`
pipeline.yaml:13:40: edges[0].carries: text `sound` is not possible here; expected one of: audio, text, speech, metrics, debug, error, any
pipeline.yaml:15:9: edges[1].to: expected text, found `5`; put it in quotes
pipeline.yaml:17:32: edges[1].buffer.max_queue_items: expected a whole number, found text `many`
pipeline.yaml:18:8: turns: expected a map, found text `no`
"#);
}

/// F-001, F-003
#[test]
fn meanings_that_do_not_hold_are_all_named_at_once() {
    let text = "\
schema: rspp.pipeline.v1
version: p-1
profile: simple/v1
nodes:
  - { id: stt, kind: stt, fallback_providers: [a, a] }
  - { id: llm, kind: llm, fallback: lmm }
  - { id: stt, kind: stt }
  - { id: egress, kind: tts }
  - { id: cut, kind: segmenter, provider: x, fallback: cut }
  - { id: mine, kind: { custom: echo } }
edges:
  - { from: ingress, to: sst, carries: audio }
  - { from: stt, to: llm, carries: audio }
  - { from: llm, to: llm, carries: text }
  - { from: egress, to: ingress, carries: text }
  - from: stt
    to: llm
    carries: text
    when: { attribute: confidence, is: lt, value: high }
    buffer:
      strategy: block
      watermarks:
        queue_items: { high: 4, low: 8 }
  - { from: stt, to: llm, carries: text }
  - from: ingress
    to: stt
    carries: audio
    buffer:
      strategy: drop
      max_queue_items: 4
      max_block_time_ms: 10
      watermarks: { queue_items: { high: 8, low: 1 } }
      sync_drop_policy: { policy: drop_with_discontinuity, scope: edge_local }
      fairness_key: ' '
turns: { max_context_messages: 0 }
";
    assert_snapshot!(errors(text), @r#"
pipeline.yaml:5:51: nodes[0].fallback_providers[1]: provider `a` is tried twice
pipeline.yaml:6:37: nodes[1].fallback: there is no node `lmm`; did you mean `llm`?
pipeline.yaml:7:11: nodes[2].id: node `stt` stands twice, first on line 5; every node needs an id of its own
pipeline.yaml:8:11: nodes[3].id: `egress` is where the user is, not a node; choose another id
pipeline.yaml:8:11: warning: nodes[3].id: nothing goes to `egress`
pipeline.yaml:9:43: nodes[4].provider: a segmenter node works without a provider
pipeline.yaml:9:56: nodes[4].fallback: a node cannot stand in for itself
pipeline.yaml:10:11: warning: nodes[5].id: nothing goes to `mine`
pipeline.yaml:10:11: warning: nodes[5].id: nothing comes from `mine`
pipeline.yaml:12:3: edges: nothing goes to `egress`
pipeline.yaml:12:26: edges[0].to: there is no node `sst`; did you mean `stt`?
pipeline.yaml:13:36: edges[1].carries: `stt` gives out no audio; it gives out text
pipeline.yaml:13:36: edges[1].carries: `llm` takes in no audio; it takes in text
pipeline.yaml:14:5: edges[2]: `llm` leads to itself
pipeline.yaml:15:13: edges[3].from: nothing comes from `egress`; the user speaks at `ingress`
pipeline.yaml:15:25: edges[3].to: nothing goes to `ingress`; the user hears at `egress`
pipeline.yaml:19:51: edges[4].when.value: `confidence` is compared with a number
pipeline.yaml:21:7: edges[4].buffer: strategy `block` needs max_block_time_ms; e.g. `max_block_time_ms: 40`; without it a full edge would stall its sender
pipeline.yaml:23:38: edges[4].buffer.watermarks.queue_items.low: 8 is not below high, 4; e.g. `low: 2`
pipeline.yaml:24:5: edges[5]: edge `stt->llm:text` stands twice, first on line 16; remove one, or give each an `id`
pipeline.yaml:31:26: edges[6].buffer.max_block_time_ms: only strategy `block` waits; remove it, or write `strategy: block`; an edge with a `flow_mode` of its own may wait too
pipeline.yaml:32:42: edges[6].buffer.watermarks.queue_items.high: 8 is above max_queue_items, 4, so it is never reached
pipeline.yaml:33:25: edges[6].buffer.sync_drop_policy: this policy needs group_by; one of sync_id, event_id, custom
pipeline.yaml:33:25: edges[6].buffer.sync_drop_policy: this policy needs sync_domain; name the streams that have to reset together
pipeline.yaml:34:21: edges[6].buffer.fairness_key: must not be blank; tenant, session, turn or a name of your own
pipeline.yaml:35:32: turns.max_context_messages: must be at least 1
"#);
}

/// F-044, F-146: a buffer that can never do what it says is refused, with what would work.
#[test]
fn a_buffer_has_to_suit_what_flows_there() {
    let from = "{ from: tts, to: egress, carries: audio }";
    let heard = "{ from: ingress, to: vad, carries: audio }";
    let sync = |fields: &str| format!("sync_drop_policy: {{ {fields}, scope: edge_local }}");
    let grouped = sync("group_by: sync_id, policy: no_sync");
    let alone = sync("group_by: event_id, policy: atomic_drop");
    for (edge, buffer, problem) in [
        (
            from,
            "max_queue_bytes: 319",
            "319 bytes hold no frame of audio, which has 320 at least",
        ),
        (
            heard,
            "max_queue_bytes: 639",
            "at least `max_queue_bytes: 640`",
        ),
        (
            from,
            "strategy: merge",
            "buffer.strategy: audio is never folded together",
        ),
        (
            heard,
            grouped.as_str(),
            "items are independent under `no_sync`",
        ),
        (heard, alone.as_str(), "an event is a group of its own"),
    ] {
        let whole = edge.trim_end_matches(" }");
        let told = errors(&changed(
            edge,
            &format!("{whole}, buffer: {{ {buffer} }} }}"),
        ));
        assert!(told.contains(problem), "{told}");
    }
}

#[test]
fn events_cannot_go_round() {
    let text = changed(
        "  - { from: llm, to: segmenter, carries: text }",
        "  - { from: llm, to: segmenter, carries: text }\n  - { from: segmenter, to: llm, carries: text }",
    );
    assert_snapshot!(errors(&text), @"pipeline.yaml:55:5: edges[8]: events would go round: llm -> segmenter -> llm; remove one of these edges");
}

/// F-003: every edge between incompatible types is refused, on the side that does not fit.
#[test]
fn ports_accept_what_they_declare_and_nothing_else() {
    let kinds = [
        "vad",
        "turn_detector",
        "stt",
        "llm",
        "segmenter",
        "tts",
        "merge",
    ];
    let types = ["audio", "text", "speech"];
    let takes = |kind: &str| -> &[&str] {
        match kind {
            "vad" => &["audio"],
            "turn_detector" => &["audio", "speech", "text"],
            "stt" => &["audio", "speech"],
            "merge" => &["audio", "speech", "text", "any"],
            _ => &["text"],
        }
    };
    let gives = |kind: &str| -> &[&str] {
        match kind {
            "vad" => &["speech"],
            "turn_detector" => &["speech", "text"],
            "tts" => &["audio"],
            "merge" => &["audio", "speech", "text", "any"],
            _ => &["text"],
        }
    };
    for from in kinds {
        for to in kinds {
            for carries in types.into_iter().chain(["any"]) {
                let text = json!({
                    "schema": "rspp.pipeline.v1", "version": "p", "profile": "simple",
                    "nodes": [{ "id": "a", "kind": from }, { "id": "b", "kind": to }],
                    "edges": [
                        { "from": "ingress", "to": "x", "carries": "audio" },
                        { "from": "a", "to": "b", "carries": carries },
                    ]
                });
                let found = PipelineSpec::parse("p", &text.to_string(), Mode::Strict).unwrap_err();
                let bad = found.0.iter().filter(|d| d.code == "port_type").count();
                let expected = usize::from(!gives(from).contains(&carries))
                    + usize::from(!takes(to).contains(&carries));
                assert_eq!(bad, expected, "{from} -> {to}: {carries}");
            }
        }
    }
    assert!(PortType::Any.fits(&[PortType::Any]) && !PortType::Any.fits(&[PortType::Text]));
}

#[test]
fn text_that_is_no_spec_is_refused_with_its_place() {
    assert_snapshot!(errors(""), @"pipeline.yaml:1:1: the document is empty");
    assert_snapshot!(errors("nodes: [a, b\nedges: ]"), @"pipeline.yaml:2:6: not readable as YAML: illegal placement of ':' indicator");
    assert_snapshot!(errors("version: 1\nversion: 2\n"), @"pipeline.yaml:2:1: field `version` stands twice, first on line 1");
    assert_snapshot!(errors("- a\n- b\n"), @"pipeline.yaml:1:1: expected a map, found a list");
    assert_snapshot!(errors("{\"schema\": \"rspp.pipeline.v1\", }"), @r#"
pipeline.yaml:1:1: missing field `version`
pipeline.yaml:1:1: missing field `profile`
pipeline.yaml:1:1: missing field `nodes`
pipeline.yaml:1:1: missing field `edges`
"#);
}

/// gates.md §4: strict wants the exact version and knows every field; relaxed looks past both.
#[test]
fn relaxed_mode_reads_what_strict_mode_refuses() {
    let text = changed(
        "schema: rspp.pipeline.v1",
        "schema: rspp.pipeline.v2\ncolour: blue",
    );
    assert_snapshot!(errors(&text), @r#"
pipeline.yaml:5:9: schema: schema `rspp.pipeline.v2` is not read here; write `schema: rspp.pipeline.v1`
pipeline.yaml:6:1: colour: unknown field `colour`; known fields: budgets, connection, degrade, edges, instructions, memory, metadata, nodes, observe, open_to_policy, priority, profile, providers, schema, state, turns, version
"#);
    let parsed = PipelineSpec::parse("pipeline.yaml", &text, Mode::Relaxed).unwrap();
    assert_eq!(parsed.spec.nodes, PipelineSpec::simple().nodes);
    let warnings: Vec<String> = parsed.warnings.iter().map(Diagnostic::to_string).collect();
    assert_snapshot!(warnings.join("\n"), @"pipeline.yaml:6:1: warning: colour: unknown field `colour`; known fields: budgets, connection, degrade, edges, instructions, memory, metadata, nodes, observe, open_to_policy, priority, profile, providers, schema, state, turns, version");

    let foreign = changed("schema: rspp.pipeline.v1", "schema: other.v1");
    assert!(PipelineSpec::parse("p.yaml", &foreign, Mode::Relaxed).is_err());
}

#[test]
fn a_node_without_a_part_is_a_warning() {
    let text = changed(
        "  - id: vad\n",
        "  - { id: idle, kind: tts }\n  - id: vad\n",
    );
    let parsed = PipelineSpec::parse("pipeline.yaml", &text, Mode::Strict).unwrap();
    assert!(
        parsed
            .warnings
            .iter()
            .all(|d| d.severity == Severity::Warning)
    );
    let warnings: Vec<String> = parsed.warnings.iter().map(Diagnostic::to_string).collect();
    assert_snapshot!(warnings.join("\n"), @r#"
pipeline.yaml:22:11: warning: nodes[0].id: nothing goes to `idle`
pipeline.yaml:22:11: warning: nodes[0].id: nothing comes from `idle`
"#);
}

const POLICY: &str = "\
schema: rspp.policy.bundle.v1
policy_resolution_snapshot: policy/2026-11-01
allowed_adaptive_actions: [retry, provider_switch]
budgets:
  turn_budget_ms: 2000
  node_budget_ms_default: 800
  path_budget_ms_default: 1800
  edge_budget_ms_default: 250
  provider_first_byte_ms: 1000
  provider_inter_chunk_ms: 500
  cancel_grace_ms: 75
  max_turn_duration_ms: 120000
provider_bindings:
  stt: [stt-a, stt-b]
edge_buffer_policies:
  default: &edge
    strategy: drop_oldest
    max_queue_items: 64
    max_queue_ms: 300
    max_queue_bytes: 262144
    max_latency_contribution_ms: 120
    watermarks: { queue_items: { high: 48, low: 24 } }
    lane_handling: { DataLane: drop, TelemetryLane: best_effort_drop }
    defaulting_source: explicit_edge_config
  'llm->segmenter:text': *edge
flow_control:
  data_mode: signal
  data_marks: { high: 100, low: 50 }
  control_marks: { high: 20, low: 10 }
  telemetry_marks: { high: 200, low: 100 }
recording_policy:
  recording_level: L0
  allowed_replay_modes: [replay_decisions]
";

#[test]
fn a_good_policy_passes_in_silence() {
    let parsed = PolicyBundle::parse("policy.yaml", POLICY, Mode::Strict).unwrap();
    assert_eq!(parsed.warnings, []);
    let bindings = parsed.spec.provider_bindings.unwrap();
    assert_eq!(bindings[&Modality::Stt].len(), 2);
    assert_eq!(parsed.spec.edge_buffer_policies.unwrap().len(), 2);
}

/// P19: a soft mark above the cap would never be reached, and a cap of nothing ends every session.
#[test]
fn limits_of_memory_have_to_make_sense() {
    let limited = |memory: &str| {
        let schema = "schema: rspp.pipeline.v1";
        errors(&changed(schema, &format!("{schema}\nmemory: {memory}")))
    };
    assert_snapshot!(limited("{ soft_bytes: 2000, cap_bytes: 1000 }"), @"pipeline.yaml:6:23: memory.soft_bytes: 2000 is above cap_bytes, 1000, so it is never reached; e.g. `soft_bytes: 750`");
    assert_snapshot!(limited("{ soft_bytes: 0, cap_bytes: 0 }"), @"pipeline.yaml:6:37: memory.cap_bytes: `0` must be at least 1");
}

/// turn-plan.md §2, design §7
#[test]
fn policies_that_do_not_hold_are_named() {
    let bad = |from: &str, to: &str| {
        assert!(POLICY.contains(from), "the policy has no `{from}`");
        policy_errors(&POLICY.replacen(from, to, 1))
    };
    assert_snapshot!(bad("replay_decisions", "regression"), @"policy.yaml:33:26: recording_policy.allowed_replay_modes[0]: text `regression` is not possible here; expected one of: re_simulate_nodes, playback_recorded_provider_outputs, replay_decisions, recompute_decisions");
    assert_snapshot!(bad("[replay_decisions]", "[]"), @"policy.yaml:33:25: recording_policy.allowed_replay_modes: needs 1 or more entries");
    assert_snapshot!(bad("retry, provider_switch", "retry, retry"), @"policy.yaml:3:35: allowed_adaptive_actions[1]: text `retry` is listed twice");
    assert_snapshot!(bad("[stt-a, stt-b]", "[]\n  ttts: [x]"), @"policy.yaml:15:3: provider_bindings.ttts: `ttts` is not possible here; did you mean `tts`?");
    assert_snapshot!(bad("cancel_grace_ms: 75", "cancel_grace_ms: 0"), @"policy.yaml:11:20: budgets.cancel_grace_ms: `0` must be at least 1");
    assert_snapshot!(bad("high: 100, low: 50", "high: 100, low: 100"), @"policy.yaml:28:33: flow_control.data_marks.low: 100 is not below high, 100; e.g. `low: 50`");
    assert_snapshot!(bad("strategy: drop_oldest", "strategy: block"), @r#"
policy.yaml:16:12: edge_buffer_policies.default: strategy `block` needs max_block_time_ms; e.g. `max_block_time_ms: 40`; without it a full edge would stall its sender
policy.yaml:16:12: edge_buffer_policies.llm->segmenter:text: strategy `block` needs max_block_time_ms; e.g. `max_block_time_ms: 40`; without it a full edge would stall its sender
"#);
    assert_snapshot!(bad("TelemetryLane", "ControlLane: drop, TelemetryLane"), @r#"
policy.yaml:23:38: edge_buffer_policies.default.lane_handling.ControlLane: unknown field `ControlLane`; known fields: DataLane, TelemetryLane
policy.yaml:23:38: edge_buffer_policies.llm->segmenter:text.lane_handling.ControlLane: unknown field `ControlLane`; known fields: DataLane, TelemetryLane
"#);
    let (most, _) = POLICY.split_once("flow_control").unwrap();
    assert_snapshot!(policy_errors(most), @"policy.yaml:5:3: budgets: without flow_control, recording_policy; the five surfaces are overridden all together or not at all");
}

proptest::proptest! {
    /// Whatever is taken out of the template, the answer is a spec or diagnostics with a place.
    #[test]
    fn a_mangled_template_never_panics(from in 0_usize..2_000, length in 0_usize..400) {
        let mut text = PipelineSpec::simple_template().to_owned();
        let from = from.min(text.len());
        let to = (from + length).min(text.len());
        text.replace_range(from..to, "");
        if let Err(found) = PipelineSpec::parse("p.yaml", &text, Mode::Strict) {
            let lines = text.lines().count() + 1;
            for diagnostic in found.0 {
                proptest::prop_assert!((1..=lines).contains(&diagnostic.line));
                proptest::prop_assert!(diagnostic.column >= 1);
            }
        }
    }
}

/// F-056, F-058, F-135: what is said about providers is held to make sense.
#[test]
fn rules_for_providers_are_held_to_make_sense() {
    let text = format!(
        "{}{}",
        PipelineSpec::simple_template(),
        "
providers:
  choice:
    language: { de: { llm: [a, a] }, fr: {} }
  calls:
    attempts_per_provider: 0
    hedge_after_ms: { vad: 100, llm: 0 }
  circuit: { window: 4, least_calls: 5 }
  caps: { turn: { tokens: 20 }, session: { tokens: 10 } }
  failure: { reply: ' ', recording: sorry, patience: 1 }
"
    );
    let lines: Vec<String> = errors(&text)
        .lines()
        .filter(|line| line.contains("providers."))
        .map(|line| line.split_once("providers.").unwrap().1.to_owned())
        .collect();
    assert_snapshot!(lines.join("\n"), @"
    choice.language.de.llm[1]: provider `a` is listed twice
    choice.language.fr: needs at least 1 entry
    calls.attempts_per_provider: `0` must be at least 1
    calls.hedge_after_ms.vad: `vad` is not possible here; expected one of: stt, llm, tts
    calls.hedge_after_ms.llm: must be at least 1; leave it out to hedge nothing
    circuit.least_calls: 5 is above window, 4, so the circuit never opens; e.g. `least_calls: 4`
    caps.turn.tokens: 20 is above the session's, 10
    failure.reply: must not be blank; leave it out to say nothing
    failure.patience: unknown field `patience`; known fields: recording, reply, text_only, voice_retry_ms
    ");
}

/// The rules' defaults are what a pipeline without any gets.
#[test]
fn a_pipeline_may_say_nothing_about_providers() {
    let spec = PipelineSpec::simple();
    assert!(spec.providers.is_empty());
    let with = format!(
        "{}\nproviders: {{ calls: {{}} }}\n",
        PipelineSpec::simple_template()
    );
    let spec = PipelineSpec::parse("p.yaml", &with, Mode::Strict)
        .unwrap()
        .spec;
    assert_eq!(spec.providers.calls, Some(Box::default()));
}

/// A tool has a name of its own, a model to call it, and arguments that can be checked.
#[test]
fn tools_that_cannot_be_called_are_named() {
    let tools = r#"kind: llm
    tools:
      - name: order pizza
        description: Orders.
      - name: look
        description: " "
        parameters: { type: object, properties: { when: { type: string, pattern: "^[0-9]+$" } } }
      - name: look
        description: Looks again.
        run: { http: { url: "ftp://shop.example" } }
"#;
    let text = changed("kind: llm\n", tools);
    assert_snapshot!(errors(&text), @r#"
    pipeline.yaml:34:15: nodes[3].tools[0].name: `order pizza` is no tool's name; letters, digits, `_` and `-`, at most 64
    pipeline.yaml:37:22: nodes[3].tools[1].description: must not be blank; the model chooses by it
    pipeline.yaml:38:82: nodes[3].tools[1].parameters.properties.when.pattern: is not enforced here; say it in the description instead
    pipeline.yaml:39:15: nodes[3].tools[2].name: tool `look` is declared twice
    pipeline.yaml:41:29: nodes[3].tools[2].run.http.url: `ftp://shop.example` is no address of a server; e.g. `https://tools.example.com/order`
    "#);
    let text = changed(
        "kind: tts\n",
        "kind: tts\n    tools: [{ name: look, description: Looks. }]\n",
    );
    assert_snapshot!(errors(&text), @"pipeline.yaml:39:12: nodes[5].tools: a tts node calls no tools; declare them at the node that has the language model");
    let good = "kind: llm\n    tools: [{ name: end_call, description: Hangs up. }]\n";
    let parsed = PipelineSpec::parse("p.yaml", &changed("kind: llm\n", good), Mode::Strict);
    assert_eq!(parsed.unwrap().warnings, []);
}

/// F-001, F-079: a built-in node knows its settings; what it does not know, or what does not fit, is refused
/// with its place and what would fit. A custom node takes what it likes.
#[test]
fn settings_that_a_node_does_not_know_are_named() {
    #[track_caller]
    fn check(node: &str, config: &str, wanted: &[&str]) {
        let written = format!("kind: {node}\n    config: {{ {config} }}\n");
        let text = changed(&format!("kind: {node}\n"), &written);
        if wanted.is_empty() {
            let parsed = PipelineSpec::parse("pipeline.yaml", &text, Mode::Strict);
            assert_eq!(parsed.expect("it is good").warnings, []);
            return;
        }
        let errors = errors(&text);
        for part in wanted {
            assert!(errors.contains(part), "{part}\n{errors}");
        }
    }
    check(
        "llm",
        "max_tokens: many",
        &[
            "nodes[3].config.max_tokens",
            "no \"many\"",
            "a whole number of at least 1",
        ],
    );
    check(
        "llm",
        "first_byte_ms: x",
        &["nodes[3].config.first_byte_ms", "a whole number"],
    );
    check(
        "llm",
        "nonsense: 5",
        &[
            "nodes[3].config.nonsense",
            "it knows max_tokens, max_tool_rounds, temperature, first_byte_ms, inter_chunk_ms",
        ],
    );
    check("llm", "max_token: 5", &["did you mean `max_tokens`?"]);
    check(
        "segmenter",
        "least: 5",
        &["a segmenter node has no setting `least`", "leave it out"],
    );
    check("tts", "speaks: no thanks", &["true or false"]);
    check("vad", "speech_from: 2", &["a number from 0 to 1"]);
    check(
        "llm",
        "max_tokens: 120, temperature: 0.5, first_byte_ms: 300",
        &[],
    );
    check("tts", "voice: joe, speaks: false", &[]);
    let policy = "schema: rspp.policy.bundle.v1\npolicy_resolution_snapshot: p/1\nallowed_adaptive_actions: [retry]\ninsert_nodes:\n  - { \
                  after: segmenter, carries: text, node: { id: g, kind: guard, config: { terms: [a], \
                  action: sing } } }\n";
    let errors = policy_errors(policy);
    assert!(
        errors.contains("insert_nodes[0].node.config.action"),
        "{errors}"
    );
    assert!(errors.contains("one of mask, block"), "{errors}");
}

/// F-018: a condition on what an edge's events never have is refused with its place; session attributes are
/// none of theirs.
#[test]
fn conditions_on_what_is_never_there_are_named() {
    #[track_caller]
    fn check(from: &str, to: &str, when: &str, wanted: Option<&str>) {
        let edge = format!("from: {from}, to: {to}, ");
        let text = changed(&edge, &format!("{edge}when: {{ {when} }}, "));
        let parsed = PipelineSpec::parse("pipeline.yaml", &text, Mode::Strict);
        match (parsed, wanted) {
            (Ok(_), None) => {}
            (Ok(_), Some(_)) => panic!("{when} is accepted from {from}"),
            (Err(errors), None) => panic!("{errors}"),
            (Err(errors), Some(wanted)) => {
                let errors = errors.to_string();
                assert!(errors.contains(wanted), "{wanted}\n{errors}");
                assert!(errors.contains(".when.attribute"), "{errors}");
                assert!(errors.contains("test it on an edge"), "{errors}");
            }
        }
    }
    let unsure = "attribute: confidence, is: lt, value: 0.6";
    check("stt", "turn", unsure, None);
    check(
        "turn",
        "llm",
        unsure,
        Some("what comes from turn_detector has no `confidence`"),
    );
    check(
        "llm",
        "segmenter",
        unsure,
        Some("what comes from llm has no `confidence`"),
    );
    check("ingress", "stt", unsure, Some("audio has no `confidence`"));
    check(
        "tts",
        "egress",
        "attribute: is_final, is: eq, value: true",
        Some("audio has no `is_final`"),
    );
    check("turn", "llm", "attribute: vip, is: eq, value: true", None);
    check(
        "ingress",
        "stt",
        "attribute: vip, is: eq, value: true",
        None,
    );
}

/// F-062, F-144: what a policy may insert after, and who takes over under pressure, has to be there.
#[test]
fn nodes_that_are_not_there_are_named() {
    let text = format!(
        "{}\n",
        changed(
            "open_to_policy: [segmenter]",
            "open_to_policy: [segmenter, nope]"
        )
    );
    let errors = errors(&text);
    assert!(errors.contains("open_to_policy[1]"), "{errors}");
    assert!(errors.contains("there is no node `nope`"), "{errors}");
    let edge = "from: segmenter, to: tts, ";
    let buffer =
        "buffer: { watermarks: { queue_items: { high: 4, low: 1 } }, on_high: fallback }, ";
    let errors = self::errors(&changed(edge, &format!("{edge}{buffer}")));
    assert!(errors.contains("buffer.on_high"), "{errors}");
    assert!(errors.contains("give node `tts` a `fallback`"), "{errors}");
}
