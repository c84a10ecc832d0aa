use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use rspp_proto::{
    Payload, PipelineVersion, Speaker, TextChunk,
    abi::CancelMode,
    spec::{
        BudgetsSpec, Comparison, ConnectionPolicy, EGRESS, EdgeSpec, ErrorAction, INGRESS,
        MemoryLimits, ObserveSpec, PipelineSpec, Priority, ProfileName, ProvidersSpec, StatePolicy,
        TurnPolicy,
    },
};
use serde_json::{Value, json};

use super::*;

fn id(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

fn node(name: &str, kind: NodeKind) -> NodeSpec {
    NodeSpec {
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
    }
}

fn edge(from: &str, to: &str, carries: PortType) -> EdgeSpec {
    EdgeSpec {
        id: None,
        from: id(from),
        to: id(to),
        carries,
        when: None,
        buffer: None,
    }
}

fn pipeline(nodes: Vec<NodeSpec>, edges: Vec<EdgeSpec>) -> PipelineSpec {
    PipelineSpec {
        schema: "rspp.pipeline.v1".into(),
        version: PipelineVersion::new("v1").unwrap(),
        profile: ProfileName::SimpleV1,
        instructions: None,
        nodes,
        edges,
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

/// The voice agent that everything is about.
fn agent() -> PipelineSpec {
    use PortType::{Audio, Speech, Text};
    pipeline(
        vec![
            node("vad", NodeKind::Vad),
            node("turn", NodeKind::TurnDetector),
            node("stt", NodeKind::Stt),
            node("llm", NodeKind::Llm),
            node("segmenter", NodeKind::Segmenter),
            node("tts", NodeKind::Tts),
        ],
        vec![
            edge(INGRESS, "vad", Audio),
            edge(INGRESS, "stt", Audio),
            edge(INGRESS, "turn", Audio),
            edge("vad", "stt", Speech),
            edge("vad", "turn", Speech),
            edge("stt", "turn", Text),
            edge("stt", EGRESS, Text),
            edge("turn", "llm", Text),
            edge("llm", "segmenter", Text),
            edge("segmenter", "tts", Text),
            edge("tts", EGRESS, Audio),
            edge("segmenter", EGRESS, Text),
        ],
    )
}

fn errors(spec: &PipelineSpec) -> Vec<String> {
    let errors = Graph::compile(spec).expect_err("the graph is wrong");
    errors.iter().map(ToString::to_string).collect()
}

/// F-002, F-004: places, order and scopes of the whole agent.
#[test]
fn the_agent_compiles_with_scopes_and_a_fixed_order() {
    let graph = Graph::compile(&agent()).unwrap();
    let order: Vec<_> = graph
        .order()
        .iter()
        .map(|ix| graph.node(*ix).id.as_str())
        .collect();
    assert_eq!(
        order,
        [
            "ingress",
            "vad",
            "stt",
            "turn",
            "llm",
            "segmenter",
            "tts",
            "egress"
        ]
    );
    let names = |scope| -> Vec<_> {
        graph
            .of_scope(scope)
            .map(|ix| graph.node(ix).id.to_string())
            .collect()
    };
    assert_eq!(names(Scope::Session), ["vad", "stt", "turn"]);
    assert_eq!(names(Scope::Turn), ["llm", "segmenter", "tts"]);
    let of_turn: Vec<_> = graph
        .edges()
        .filter(|(_, edge)| edge.scope == Scope::Turn)
        .map(|(_, edge)| edge.id.to_string())
        .collect();
    assert_eq!(
        of_turn,
        [
            "turn->llm:text",
            "llm->segmenter:text",
            "segmenter->tts:text",
            "tts->egress:audio",
            "segmenter->egress:text"
        ]
    );
    assert_eq!(graph.find("tts"), Some(NodeIx(5)));
    assert_eq!(graph.node(graph.egress()).role, Role::Egress);
    assert_eq!(graph.node(graph.ingress()).role, Role::Ingress);
}

/// F-003, F-004: one row a rule.
#[test]
fn each_broken_graph_is_refused_for_what_is_wrong_with_it() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut PipelineSpec), expected: &str) {
        let mut spec = agent();
        change(&mut spec);
        let errors = errors(&spec);
        assert_eq!(errors, [expected]);
    }
    check(
        |s| s.nodes.push(node("tts", NodeKind::Tts)),
        "node id `tts` is used twice; every node needs its own",
    );
    check(
        |s| s.edges.push(edge("tts", "speaker", PortType::Audio)),
        "edge `tts->speaker:audio` names unknown node `speaker`; known: egress, ingress, llm, \
         segmenter, stt, tts, turn, vad",
    );
    check(
        |s| s.edges.push(edge("llm", "llm", PortType::Text)),
        "edge `llm->llm:text` leads from `llm` to itself",
    );
    check(
        |s| s.edges.push(edge("tts", INGRESS, PortType::Audio)),
        "edge `tts->ingress:audio` ends at `ingress`, which only sends",
    );
    check(
        |s| s.edges.push(edge(EGRESS, "stt", PortType::Audio)),
        "edge `egress->stt:audio` begins at `egress`, which only receives",
    );
    check(
        |s| s.edges.push(edge("vad", EGRESS, PortType::Text)),
        "edge `vad->egress:text` carries Text, but `vad` sends Speech",
    );
    check(
        |s| s.edges.push(edge(INGRESS, "vad", PortType::Text)),
        "edge `ingress->vad:text` carries Text, but `vad` takes Audio",
    );
    check(
        |s| {
            s.nodes.push(node("tap", NodeKind::Passthrough));
            s.edges.push(edge("stt", "tap", PortType::Any));
        },
        "edge `stt->tap:any` carries Any, but `stt` sends Text",
    );
    check(
        |s| s.edges.push(edge(INGRESS, "vad", PortType::Audio)),
        "edge id `ingress->vad:audio` is used twice; give one of them an `id` of its own",
    );
    check(
        |s| s.nodes.push(node("lost", NodeKind::Passthrough)),
        "node `lost` cannot be reached from `ingress`; connect it or remove it",
    );
    check(
        |s| s.edges.push(edge("stt", "llm", PortType::Text)),
        "node `llm` is fed both by a turn detector's text and from outside a turn; route all of \
         its input through the turn detector, or use two nodes",
    );
    check(
        |s| s.nodes[5].fallback = Some(id("backup")),
        "node `tts` falls back to unknown node `backup`",
    );
    check(
        |s| {
            s.nodes.push(node("backup", NodeKind::Stt));
            s.nodes[5].fallback = Some(id("backup"));
        },
        "node `backup` cannot stand in for `tts`: edge `segmenter->tts:text` carries Text",
    );
    check(
        |s| {
            s.edges[7].when = Some(Condition {
                attribute: "language".into(),
                is: Comparison::Lt,
                value: json!("de"),
            });
        },
        "edge `turn->llm:text`: only numbers can be compared by order; use `eq` or `ne`",
    );
}

/// F-001: nothing is hidden behind the first mistake.
#[test]
fn all_violations_are_reported_at_once() {
    let mut spec = agent();
    spec.nodes.push(node(INGRESS, NodeKind::Vad));
    spec.edges.push(edge("nobody", "nowhere", PortType::Any));
    spec.edges.push(edge("vad", EGRESS, PortType::Audio));
    let errors = errors(&spec);
    assert_eq!(errors.len(), 4, "{errors:#?}");
}

#[test]
fn a_cycle_is_named_step_by_step() {
    use PortType::{Any, Audio};
    let spec = pipeline(
        vec![
            node("a", NodeKind::Custom("x".into())),
            node("b", NodeKind::Passthrough),
            node("c", NodeKind::Custom("x".into())),
            node("d", NodeKind::Custom("x".into())),
        ],
        vec![
            edge(INGRESS, "a", Audio),
            edge("a", "b", Any),
            edge("b", "c", Any),
            edge("c", "a", Any),
            edge("c", "d", Any),
        ],
    );
    assert_eq!(
        errors(&spec),
        ["the graph has a cycle: a -> b -> c -> a; every path must lead to `egress`"]
    );
}

/// F-007: a stand-in needs no edges, lives as long as its primary and uses its routes.
#[test]
fn a_fallback_inherits_scope_and_routes() {
    let mut spec = agent();
    spec.nodes[5].fallback = Some(id("backup"));
    spec.nodes.push(node("backup", NodeKind::Tts));
    let graph = Graph::compile(&spec).unwrap();
    let (tts, backup) = (graph.find("tts").unwrap(), graph.find("backup").unwrap());
    assert_eq!(graph.node(tts).fallback, Some(backup));
    assert_eq!(graph.node(backup).scope, Scope::Turn);
    assert_eq!(
        graph.outputs_in_place_of(backup, tts),
        graph.node(tts).outputs
    );

    spec.nodes[6].fallback = Some(id("tts"));
    assert_eq!(
        errors(&spec),
        [
            "node `tts` stands in for `backup` and takes its input; remove edge `segmenter->tts:text`"
        ]
    );
    spec.nodes[6].fallback = None;
    spec.nodes[3].fallback = Some(id("backup"));
    assert_eq!(
        errors(&spec)[0],
        "node `backup` stands in for both `llm` and `tts`; give each its own"
    );
}

/// F-007: a chain of stand-ins works on the edges of the node at its head.
#[test]
fn every_stand_in_of_a_chain_fits_the_edges_of_its_head() {
    let mut spec = agent();
    spec.nodes[5].fallback = Some(id("second"));
    let mut second = node("second", NodeKind::Tts);
    second.fallback = Some(id("third"));
    spec.nodes.push(second);
    spec.nodes.push(node("third", NodeKind::Tts));
    let graph = Graph::compile(&spec).unwrap();
    let hosts: Vec<_> = graph
        .hosts(Scope::Turn)
        .map(|ix| graph.node(ix).id.as_str())
        .collect();
    assert_eq!(
        hosts,
        ["llm", "segmenter", "tts"],
        "they live with their head"
    );

    spec.nodes[7].kind = NodeKind::Vad;
    assert_eq!(
        errors(&spec)[0],
        "node `third` cannot stand in for `tts`: edge `segmenter->tts:text` carries Text"
    );
}

/// F-034: a cancel reaches a diamond's both sides and nothing beside it.
#[test]
fn downstream_follows_the_edges_only() {
    use PortType::{Any, Audio};
    let spec = pipeline(
        ["top", "left", "right", "bottom", "beside"]
            .map(|name| node(name, NodeKind::Custom("x".into())))
            .to_vec(),
        vec![
            edge(INGRESS, "top", Audio),
            edge(INGRESS, "beside", Audio),
            edge("top", "left", Any),
            edge("top", "right", Any),
            edge("left", "bottom", Any),
            edge("right", "bottom", Any),
        ],
    );
    let graph = Graph::compile(&spec).unwrap();
    let reached = graph.downstream(graph.find("top").unwrap());
    let names: Vec<_> = reached
        .iter()
        .map(|ix| graph.node(*ix).id.to_string())
        .collect();
    assert_eq!(names, ["top", "left", "right", "bottom"]);
}

/// F-003: what only forwards sends what it takes, so a type cannot be laundered through it.
#[test]
fn a_passthrough_keeps_its_type() {
    use PortType::{Audio, Text};
    let mut spec = pipeline(
        vec![node("tap", NodeKind::Passthrough)],
        vec![edge(INGRESS, "tap", Audio), edge("tap", EGRESS, Audio)],
    );
    assert!(Graph::compile(&spec).is_ok());
    spec.edges[1] = edge("tap", EGRESS, Text);
    assert_eq!(
        errors(&spec),
        ["edge `tap->egress:text` carries Text, but `tap` sends Audio"]
    );
}

/// F-082: what is for people does not change what runs.
#[test]
fn the_fingerprint_sees_execution_and_not_prose() {
    let mut spec = agent();
    let before = Graph::compile(&spec).unwrap().fingerprint().to_owned();
    spec.nodes[0].description = Some("hears".into());
    spec.metadata.insert("owner".into(), "voice".into());
    assert_eq!(Graph::compile(&spec).unwrap().fingerprint(), before);
    spec.nodes[3]
        .config
        .insert("temperature".into(), json!(0.2));
    assert_ne!(Graph::compile(&spec).unwrap().fingerprint(), before);
}

fn text(confidence: Option<f32>, language: Option<&str>) -> Payload {
    Payload::Text(Box::new(TextChunk {
        speaker: Speaker::User,
        text: Arc::from("hello"),
        segment: 0,
        revision: 0,
        is_final: true,
        confidence,
        language: language.map(Arc::from),
    }))
}

fn branching() -> Graph {
    use PortType::{Audio, Text};
    let mut low = edge("stt", "ask", Text);
    low.when = Some(Condition {
        attribute: "confidence".into(),
        is: Comparison::Lt,
        value: json!(0.6),
    });
    let mut german = edge("stt", "de", Text);
    german.when = Some(Condition {
        attribute: "language".into(),
        is: Comparison::Eq,
        value: json!("de"),
    });
    let custom = |name| node(name, NodeKind::Custom("x".into()));
    let spec = pipeline(
        vec![
            node("stt", NodeKind::Stt),
            custom("ask"),
            custom("de"),
            custom("all"),
        ],
        vec![
            edge(INGRESS, "stt", Audio),
            low,
            german,
            edge("stt", "all", Text),
        ],
    );
    Graph::compile(&spec).unwrap()
}

/// F-004, F-018: fan-out in the order of the spec; every choice is told, both ways.
#[test]
fn an_event_takes_the_edges_whose_conditions_hold() {
    #[track_caller]
    fn check(payload: &Payload, expected: [Decision; 3]) {
        let graph = branching();
        let session = BTreeMap::from([("language".to_owned(), json!("de"))]);
        let view = EventView::new(payload, &session);
        let routes: Vec<_> = graph.routes(graph.find("stt").unwrap(), &view).collect();
        let edges: Vec<_> = routes.iter().map(|route| route.edge.0).collect();
        assert_eq!(edges, [1, 2, 3]);
        assert_eq!(
            routes.iter().map(|r| r.decision).collect::<Vec<_>>(),
            expected
        );
    }
    use Decision::{Passed, Refused, Unconditional};
    check(
        &text(Some(0.3), Some("en")),
        [Passed, Refused, Unconditional],
    );
    check(
        &text(Some(0.9), Some("de")),
        [Refused, Passed, Unconditional],
    );
    // No confidence at all passes no test of it; the session's language stands in.
    check(&text(None, None), [Refused, Passed, Unconditional]);
    // A stream's end goes wherever a piece of it might have gone.
    check(
        &Payload::TextEnd,
        [Unconditional, Unconditional, Unconditional],
    );
}

#[test]
fn an_event_rides_only_edges_of_its_type() {
    let graph = Graph::compile(&agent()).unwrap();
    let session = BTreeMap::new();
    let payload = text(None, None);
    let view = EventView::new(&payload, &session);
    assert_eq!(graph.routes(graph.ingress(), &view).count(), 0);
    let end = EventView::new(&Payload::AudioEnd, &session);
    assert_eq!(graph.routes(graph.ingress(), &end).count(), 3);
    assert_eq!(graph.routes(graph.find("tts").unwrap(), &end).count(), 1);
}

/// F-018: the comparisons, one row each.
#[test]
fn comparisons_hold_as_written() {
    #[track_caller]
    fn check(is: Value, comparison: Comparison, value: Value, expected: bool) {
        let condition = Condition {
            attribute: "x".into(),
            is: comparison,
            value,
        };
        let attributes = BTreeMap::from([("x".to_owned(), is)]);
        assert_eq!(holds(&condition, &attributes), expected);
    }
    use Comparison::{Eq, Ge, Gt, Le, Lt, Ne};
    check(json!(1), Eq, json!(1.0), true);
    check(json!(1), Ne, json!(1.0), false);
    check(json!(0.5), Lt, json!(0.6), true);
    check(json!(0.6), Lt, json!(0.6), false);
    check(json!(0.6), Le, json!(0.6), true);
    check(json!(0.7), Gt, json!(0.6), true);
    check(json!(0.6), Ge, json!(0.6), true);
    check(json!("de"), Eq, json!("de"), true);
    check(json!("de"), Ne, json!("en"), true);
    check(json!(true), Eq, json!(true), true);
    check(json!("1"), Eq, json!(1), false);
    check(json!("1"), Ne, json!(1), true);
    check(json!("1"), Ge, json!(1), false);
    check(Value::Null, Ne, json!(1), false);
}

/// F-006: the stream switches with the condition, and the switch is told.
#[test]
fn a_select_node_follows_its_conditions() {
    use PortType::{Any, Audio};
    let mut first = edge("a", "pick", Any);
    first.when = Some(Condition {
        attribute: "health".into(),
        is: Comparison::Eq,
        value: json!("good"),
    });
    let custom = |name| node(name, NodeKind::Custom("x".into()));
    let spec = pipeline(
        vec![custom("a"), custom("b"), node("pick", NodeKind::Select)],
        vec![
            edge(INGRESS, "a", Audio),
            edge(INGRESS, "b", Audio),
            first,
            edge("b", "pick", Any),
        ],
    );
    let graph = Graph::compile(&spec).unwrap();
    let (from_a, from_b) = (EdgeIx(2), EdgeIx(3));
    let mut select = Select::new(&graph, graph.find("pick").unwrap());
    let good = BTreeMap::from([("health".to_owned(), json!("good"))]);
    let bad = BTreeMap::from([("health".to_owned(), json!("bad"))]);
    let switch = |from, to| Some(Switch { from, to });
    assert!(!select.forwards(from_a) && !select.forwards(from_b));
    assert_eq!(select.update(&good), switch(None, Some(from_a)));
    assert!(select.forwards(from_a) && !select.forwards(from_b));
    assert_eq!(select.update(&good), None);
    assert_eq!(select.update(&bad), switch(Some(from_a), Some(from_b)));
    assert!(!select.forwards(from_a) && select.forwards(from_b));
    // The route to the select node is unconditional: it decides, not the edge.
    let view = EventView::new(&Payload::AudioEnd, &bad);
    assert!(
        graph
            .routes(graph.find("a").unwrap(), &view)
            .all(|route| !route.is_choice())
    );
}

proptest! {
    /// F-004: any compiled graph has an order in which every edge points forward, and compiling
    /// twice gives the same graph; any graph that is refused has a reason.
    #[test]
    fn compiled_graphs_are_ordered_and_stable(
        edges in prop::collection::vec((0usize..10, 0usize..10), 0..30),
        fallbacks in prop::collection::vec(prop::option::of(0usize..8), 8),
    ) {
        let names = ["n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7", INGRESS, EGRESS];
        let mut nodes: Vec<_> = names[..8]
            .iter()
            .map(|name| node(name, NodeKind::Custom("x".into())))
            .collect();
        for (at, fallback) in fallbacks.iter().enumerate() {
            nodes[at].fallback = fallback.filter(|f| *f % 3 == 0).map(|f| id(names[f]));
        }
        // Audio fits every port that is used here.
        let edges = edges
            .into_iter()
            .map(|(from, to)| edge(names[from], names[to], PortType::Audio))
            .collect();
        let spec = pipeline(nodes, edges);
        match Graph::compile(&spec) {
            Err(errors) => prop_assert!(!errors.is_empty()),
            Ok(graph) => {
                let place = |ix: NodeIx| graph.order().iter().position(|o| *o == ix).unwrap();
                for (_, edge) in graph.edges() {
                    prop_assert!(place(edge.from) < place(edge.to));
                }
                prop_assert_eq!(graph.order().len(), graph.nodes().len());
                prop_assert_eq!(&graph, &Graph::compile(&spec).unwrap());
            }
        }
    }
}

/// F-004: a place is at its end when all that leads there in a turn is; what listens has no part in that.
#[test]
fn a_place_is_at_its_end_when_all_of_its_inputs_are() {
    use PortType::{Any, Text};
    let mut spec = agent();
    for name in ["side", "other"] {
        spec.nodes.push(node(name, NodeKind::Custom(name.into())));
    }
    spec.edges.extend([
        edge("segmenter", "side", Text),
        edge("side", "tts", Text),
        edge("side", "other", Any),
        edge("other", EGRESS, Text),
    ]);
    let graph = Graph::compile(&spec).unwrap();
    let ends = |name: &str| graph.ends(graph.find(name).unwrap());

    // The user's words are handed over as a whole, and what listens is of no turn.
    assert!(ends("llm").is_over());
    assert!(ends("stt").is_over());
    let mut voice = ends("tts");
    let due: Vec<_> = voice.due().collect();
    assert_eq!(due, [(Stream::Text, 0), (Stream::Text, 1)]);
    assert_eq!(voice.ended(1, Stream::Text), Ended::Early);
    assert_eq!(
        voice.ended(1, Stream::Text),
        Ended::Early,
        "an end that is told twice is one"
    );
    assert_eq!(voice.ended(0, Stream::Text), Ended::Over);
    assert_eq!(voice.ended(0, Stream::Text), Ended::Over, "over is over");

    // On an edge of any type comes what its beginning makes.
    let other: Vec<_> = ends("other").due().collect();
    assert_eq!(other, [(Stream::Text, 0)]);

    // The transcript is of no turn; voice and both texts are.
    let mut user = ends(EGRESS);
    let text = |id: &str| {
        let inputs = &graph.node(graph.egress()).inputs;
        let at = inputs
            .iter()
            .position(|ix| graph.edge(*ix).id.as_str() == id);
        at.unwrap() as u16
    };
    let voice = text("tts->egress:audio");
    assert_eq!(user.ended(voice, Stream::Audio), Ended::Over);
    assert!(!user.is_over());
    let words = text("segmenter->egress:text");
    assert_eq!(user.ended(words, Stream::Text), Ended::Early);
    let words = text("other->egress:text");
    assert_eq!(user.ended(words, Stream::Text), Ended::Over);
    assert!(user.is_over());
}

/// F-018: a stream that went another way does not end where it might have come to; nor does what would have
/// been made of it. What comes beside it does.
#[test]
fn what_a_condition_kept_away_does_not_end_there() {
    use PortType::Text;
    let mut spec = agent();
    for name in ["side", "next"] {
        spec.nodes.push(node(name, NodeKind::Custom(name.into())));
    }
    let mut guarded = edge("segmenter", "side", Text);
    guarded.when = Some(Condition {
        attribute: "language".into(),
        is: Comparison::Eq,
        value: json!("de"),
    });
    spec.edges.extend([
        guarded,
        edge("side", "next", Text),
        edge("next", "tts", Text),
    ]);
    let graph = Graph::compile(&spec).unwrap();
    let at = |name: &str| graph.find(name).unwrap();
    assert!(
        ["side", "next", "tts"]
            .map(at)
            .iter()
            .all(|ix| graph.may_be_left_out(*ix))
    );
    assert!(!graph.may_be_left_out(at("segmenter")));

    for name in ["side", "next"] {
        let mut ends = graph.ends(at(name));
        assert_eq!(ends.ended(0, Stream::Text), Ended::Unbegun);
        let mut ends = graph.ends(at(name));
        ends.came(0, Stream::Text);
        assert_eq!(ends.ended(0, Stream::Text), Ended::Over);
        assert_eq!(ends.ended(0, Stream::Text), Ended::Over, "over is over");
    }
    // What no condition keeps away has an end, be there anything in it or not.
    let mut voice = graph.ends(at("tts"));
    assert_eq!(voice.ended(0, Stream::Text), Ended::Early);
    assert_eq!(voice.ended(1, Stream::Text), Ended::Over);
}

/// F-018: what listens is told of the end of what it has heard, each time anew.
#[test]
fn a_stream_of_what_listens_begins_anew_after_its_end() {
    let graph = branching();
    let ask = graph.find("ask").unwrap();
    assert_eq!(graph.node(ask).scope, Scope::Session);
    let mut ends = graph.ends(ask);
    assert_eq!(ends.ended(0, Stream::Text), Ended::Unbegun);
    ends.came(0, Stream::Text);
    assert_eq!(ends.ended(0, Stream::Text), Ended::Over);
    assert_eq!(ends.ended(0, Stream::Text), Ended::Unbegun);
}
