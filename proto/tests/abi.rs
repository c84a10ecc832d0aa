//! The Event ABI's rules, against the typed validator and against the published schema.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, where a panic is the answer"
)]

use std::sync::LazyLock;

use jsonschema::Validator;
use rspp_proto::{
    DiscontinuityId, EdgeId, Epoch, Lane, Monotonic, NodeId, Payload, Reason, SampleIndex,
    SyncDomain, TurnNumber, WallClock,
    abi::{
        AbiRule, CancelScope, ControlSignal, DecisionOutcome, Emitter, EventRecord, MediaTime,
        Record, ScopeRule, Signal, Stamp, TurnTransition, check_batch,
    },
    reason, schema,
};
use serde_json::{Value, json};

// === Fixtures ===

fn stamp() -> Stamp {
    Stamp {
        session_id: "s-1".parse().unwrap(),
        turn_id: Some(TurnNumber::FIRST.id()),
        pipeline_version: "p-1".parse().unwrap(),
        authority_epoch: Epoch::FIRST,
        ordinal: 7,
        runtime_sequence: 7,
        transport_sequence: Some(3),
        at: Monotonic::from_millis(1_500),
        wall: WallClock(1_800_000_000_000),
    }
}

fn edge() -> EdgeId {
    "llm->segmenter:text".parse().unwrap()
}

/// A signal with exactly what its row requires.
fn complete(signal: Signal) -> ControlSignal {
    use rspp_proto::abi::Field;

    let mut record = ControlSignal::new(signal, signal.emitters()[0], stamp());
    for field in signal.required_fields() {
        record = match field {
            Field::TurnId => record,
            Field::Reason => record.because(Reason::from_static("because")),
            Field::Scope => record.scoped(CancelScope::Turn),
            Field::EdgeId | Field::TargetLane => record.on_edge(edge(), Lane::Data),
            Field::SyncDomain | Field::DiscontinuityId => record.breaking(
                SyncDomain::new("agent_av").unwrap(),
                DiscontinuityId::new("d-1").unwrap(),
            ),
            Field::SeqRange => record.dropping(100, 120),
            Field::Amount => record.granting(1),
        };
    }
    record
}

/// The minimal turn event of the fixtures, as JSON.
fn event() -> Value {
    json!({
        "schema_version": "v1.0",
        "event_scope": "turn",
        "session_id": "s-1",
        "turn_id": "turn-0001",
        "pipeline_version": "p-1",
        "event_id": "evt/s-1/turn-0001/000007",
        "lane": "DataLane",
        "transport_sequence": 3,
        "runtime_sequence": 7,
        "authority_epoch": 1,
        "runtime_timestamp_ms": 1500,
        "wall_clock_timestamp_ms": 1_800_000_000_000_u64,
        "payload_class": "metadata"
    })
}

fn signal(name: Signal) -> Value {
    serde_json::to_value(complete(name)).unwrap()
}

/// `base` with fields set, or taken away where the value is null.
fn with(mut base: Value, changes: Value) -> Value {
    let (Some(fields), Value::Object(changes)) = (base.as_object_mut(), changes) else {
        panic!("both are maps");
    };
    for (name, value) in changes {
        if value.is_null() {
            fields.remove(&name);
        } else {
            fields.insert(name, value);
        }
    }
    base
}

fn schema_of(name: &str) -> Validator {
    let published = schema::published();
    let found = published.iter().find(|schema| schema.name == name).unwrap();
    jsonschema::validator_for(&found.schema).unwrap()
}

static EVENT: LazyLock<Validator> = LazyLock::new(|| schema_of("event"));
static SIGNAL: LazyLock<Validator> = LazyLock::new(|| schema_of("control_signal"));
static OUTCOME: LazyLock<Validator> = LazyLock::new(|| schema_of("decision_outcome"));
static TRANSITION: LazyLock<Validator> = LazyLock::new(|| schema_of("turn_transition"));

fn typed_event(value: &Value) -> Result<(), String> {
    let event: EventRecord = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
    event.validate().map_err(|e| e.to_string())
}

fn typed_signal(value: &Value) -> Result<(), String> {
    let signal: ControlSignal = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
    signal.validate().map_err(|e| e.to_string())
}

fn typed_outcome(value: &Value) -> Result<(), String> {
    let outcome: DecisionOutcome =
        serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
    outcome.validate().map_err(|e| e.to_string())
}

fn typed_transition(value: &Value) -> Result<(), String> {
    let step: TurnTransition = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
    step.validate().map_err(|e| e.to_string())
}

#[track_caller]
fn valid(typed: fn(&Value) -> Result<(), String>, schema: &Validator, value: &Value) {
    assert_eq!(typed(value), Ok(()), "{value:#}");
    if let Err(error) = schema.validate(value) {
        panic!("the schema refuses: {error}\n{value:#}");
    }
}

/// Both refuse, and the typed validator says why.
#[track_caller]
fn invalid(typed: fn(&Value) -> Result<(), String>, schema: &Validator, value: &Value, why: &str) {
    invalid_typed(typed, value, why);
    assert!(!schema.is_valid(value), "the schema accepts\n{value:#}");
}

/// For rules that compare two fields, which JSON Schema cannot.
#[track_caller]
fn invalid_typed(typed: fn(&Value) -> Result<(), String>, value: &Value, why: &str) {
    let error = typed(value).expect_err("is accepted");
    assert!(error.contains(why), "`{error}` does not say `{why}`");
}

// === event-abi §8: events ===

/// CT-001
#[test]
fn valid_event_fixtures_pass_both_validators() {
    valid(typed_event, &EVENT, &event());
    let legacy = with(event(), json!({ "timestamp_ms": 1500 }));
    valid(typed_event, &EVENT, &legacy);
    let session = with(
        event(),
        json!({ "event_scope": "session", "turn_id": null, "authority_epoch": null }),
    );
    valid(typed_event, &EVENT, &session);
    let nullable = json!({ "transport_sequence": null });
    valid(typed_event, &EVENT, &with(event(), nullable));
}

#[test]
fn every_field_of_the_envelope_can_be_said() {
    let full = with(
        event(),
        json!({
            "node_id": "tts",
            "edge_id": "tts->egress:audio",
            "causal_parent_id": "evt/s-1/turn-0001/000006",
            "idempotency_key": "k-1",
            "provider_invocation_id": "pvi/s-1/turn-0001/e/tts",
            "sync_id": "y-1",
            "sync_domain": "agent_av",
            "discontinuity_id": "d-1",
            "merge_group_id": "m-1",
            "merged_from_event_ids": ["a", "b"],
            "late_after_cancel": true,
            "lease_token": "secret",
            "timestamp_ms": 1500,
            "payload_class": "audio_raw",
            "media_time": { "sample_index": 480 },
            "payload": { "type": "audio_end" }
        }),
    );
    // An end carries no audio, but may be classed as the stream that it ends.
    valid(typed_event, &EVENT, &full);
    let back: EventRecord = serde_json::from_value(full.clone()).unwrap();
    assert_eq!(serde_json::to_value(back).unwrap(), full);
}

/// CT-001
#[test]
fn invalid_event_fixtures_fail_both_validators() {
    let bad = |changes: Value, why: &str| {
        invalid(typed_event, &EVENT, &with(event(), changes), why);
    };
    bad(json!({ "lane": null }), "missing field `lane`");
    bad(json!({ "session_id": "" }), "must not be blank");
    bad(json!({ "schema_version": "1.0" }), "not a schema version");
    bad(json!({ "runtime_timestamp_ms": -1 }), "invalid value");
    bad(json!({ "runtime_sequence": -1 }), "invalid value");
    bad(json!({ "timestamp_ms": -1 }), "invalid value");
    bad(json!({ "authority_epoch": 0 }), "invalid value");
    bad(
        json!({ "turn_id": null }),
        "turn_id: required when event_scope is turn",
    );
    bad(
        json!({ "authority_epoch": null }),
        "authority_epoch: required",
    );
    bad(
        json!({ "lane": "ControlLane" }),
        "lane: an event is not on the control lane",
    );
    bad(json!({ "colour": "blue" }), "unknown field `colour`");
    bad(json!({ "signal": "commit" }), "unknown field `signal`");
    bad(json!({ "payload_class": "secret" }), "unknown variant");
    bad(
        json!({ "discontinuity_id": "d-1" }),
        "sync_domain: required with discontinuity_id",
    );
}

/// The coverage holes that event-abi §8 lists.
#[test]
fn holes_in_the_fixtures_are_closed() {
    let bad = |changes: Value, why: &str| {
        invalid(typed_event, &EVENT, &with(event(), changes), why);
    };
    bad(
        json!({ "payload_class": "audio_raw" }),
        "media_time: required for raw audio",
    );
    bad(
        json!({ "payload_class": "audio_raw", "media_time": { "sample_index": 1, "pts_ms": 1 } }),
        "expected",
    );
    bad(
        json!({ "payload_class": "audio_raw", "media_time": {} }),
        "expected",
    );
    bad(
        json!({ "merge_group_id": "m", "merged_from_event_ids": [] }),
        "names 0 events",
    );
    let ids = |count: usize| (0..count).map(|n| format!("e-{n}")).collect::<Vec<_>>();
    bad(
        json!({ "merge_group_id": "m", "merged_from_event_ids": ids(65) }),
        "names 65 events",
    );
    bad(
        json!({ "merge_group_id": "m", "merged_from_event_ids": ["a", "b", "a"] }),
        "merged_from_event_ids[2]: names \"a\" twice",
    );
    bad(
        json!({ "merged_from_event_ids": ["a"] }),
        "merge_group_id: required",
    );
    bad(
        json!({ "late_after_cancel": true, "event_scope": "session", "turn_id": null }),
        "late_after_cancel: needs event_scope turn and a turn_id",
    );
    for count in [1, 64] {
        let merged = json!({ "merge_group_id": "m", "merged_from_event_ids": ids(count) });
        valid(typed_event, &EVENT, &with(event(), merged));
    }
    for class in ["audio_raw", "text_raw", "PII", "PHI", "derived_summary"] {
        invalid(
            typed_signal,
            &SIGNAL,
            &with(signal(Signal::Commit), json!({ "payload_class": class })),
            "payload_class: a control signal is classed metadata",
        );
    }
}

#[test]
fn speech_cannot_be_passed_off_as_harmless() {
    let audio = json!({
        "payload": {
            "type": "audio_chunk",
            "body": {
                "format": { "sample_rate": 16000, "channels": 1, "codec": "pcm16" },
                "data": [0, 0]
            }
        },
        "media_time": { "sample_index": 0 }
    });
    let audio = with(event(), audio);
    invalid_typed(
        typed_event,
        &audio,
        "payload_class: audio cannot be classed metadata",
    );
    for class in ["audio_raw", "PII", "PHI"] {
        valid(
            typed_event,
            &EVENT,
            &with(audio.clone(), json!({ "payload_class": class })),
        );
    }
    let text = json!({
        "type": "text",
        "body": { "speaker": "user", "text": "my PIN is 1234", "segment": 0, "revision": 0, "is_final": true }
    });
    let text = with(event(), json!({ "payload": text }));
    invalid_typed(
        typed_event,
        &text,
        "payload_class: text cannot be classed metadata",
    );
}

// === event-abi §4 and §8: signals ===

/// event-abi §4: every signal on the wire, with what its row requires and from each of its emitters.
#[test]
fn every_signal_passes_when_complete() {
    assert_eq!(Signal::ALL.len(), 43);
    assert_eq!(Emitter::ALL.len(), 18);
    for &name in Signal::ALL {
        for &emitter in name.emitters() {
            let mut record = complete(name);
            record.emitted_by = emitter;
            valid(
                typed_signal,
                &SIGNAL,
                &serde_json::to_value(&record).unwrap(),
            );
        }
    }
}

/// CT-002, event-abi §4: nobody says a signal that is not theirs.
#[test]
fn every_signal_is_refused_from_every_other_emitter() {
    for &name in Signal::ALL {
        for &emitter in Emitter::ALL {
            if !name.emitters().contains(&emitter) {
                let foreign = with(signal(name), json!({ "emitted_by": emitter }));
                let why = format!("emitted_by: {name} is said by ");
                invalid(typed_signal, &SIGNAL, &foreign, &why);
            }
        }
        let nobody = with(signal(name), json!({ "emitted_by": "RK-99" }));
        invalid(typed_signal, &SIGNAL, &nobody, "unknown variant `RK-99`");
    }
}

/// event-abi §4: taking away anything that a row requires makes it fail.
#[test]
fn every_signal_is_refused_without_its_fields() {
    for &name in Signal::ALL {
        for field in name.required_fields() {
            let less = with(signal(name), json!({ field.as_str(): null }));
            invalid(
                typed_signal,
                &SIGNAL,
                &less,
                &format!("{}: required", field.as_str()),
            );
        }
        let no_epoch = with(signal(name), json!({ "authority_epoch": null }));
        invalid(
            typed_signal,
            &SIGNAL,
            &no_epoch,
            "authority_epoch: required",
        );
        let off_lane = with(signal(name), json!({ "lane": "DataLane" }));
        invalid(
            typed_signal,
            &SIGNAL,
            &off_lane,
            "lane: a control signal is on ControlLane",
        );
        let anonymous = with(signal(name), json!({ "emitted_by": null }));
        invalid(
            typed_signal,
            &SIGNAL,
            &anonymous,
            "missing field `emitted_by`",
        );
    }
}

/// event-abi §4, column event_scope.
#[test]
fn every_signal_keeps_to_its_scope() {
    for &name in Signal::ALL {
        let in_turn = with(signal(name), json!({ "event_scope": "turn" }));
        let in_session = with(signal(name), json!({ "event_scope": "session" }));
        match name.scope_rule() {
            ScopeRule::Session => {
                valid(typed_signal, &SIGNAL, &in_session);
                let why = format!("event_scope: {name} cannot be scoped to a turn");
                invalid(typed_signal, &SIGNAL, &in_turn, &why);
            }
            ScopeRule::Turn => {
                valid(typed_signal, &SIGNAL, &in_turn);
                let why = format!("event_scope: {name} cannot be scoped to a session");
                invalid(typed_signal, &SIGNAL, &in_session, &why);
            }
            ScopeRule::Any => {
                valid(typed_signal, &SIGNAL, &in_turn);
                valid(typed_signal, &SIGNAL, &in_session);
            }
        }
    }
}

/// CT-001, event-abi §8, control_signal, by the fixtures' names.
#[test]
fn signal_fixtures_mean_what_they_say() {
    use Signal as S;

    let good = |name: S, changes: Value| {
        valid(typed_signal, &SIGNAL, &with(signal(name), changes));
    };
    let bad = |name: S, changes: Value, why: &str| {
        invalid(typed_signal, &SIGNAL, &with(signal(name), changes), why);
    };
    good(S::BudgetWarning, json!({ "scope": "node" })); // budget_warning_node_failure
    good(
        S::Cancel,
        json!({ "emitted_by": "RK-16", "scope": "provider_invocation" }),
    );
    good(
        S::DeauthorizedDrain,
        json!({ "reason": "authority_revoked_in_turn" }),
    );
    good(
        S::Disconnected,
        json!({ "event_scope": "session", "turn_id": null }),
    );
    good(
        S::Discontinuity,
        json!({ "reason": "sync_domain_partial_loss" }),
    );
    good(
        S::DropNotice,
        json!({ "seq_range": { "start": 100, "end": 120 } }),
    );
    good(S::Fallback, json!({ "emitted_by": "RK-13" }));
    good(S::LeaseRotated, json!({ "emitted_by": "CP-07" }));
    good(S::Shed, json!({ "reason": "scheduling_point_shed" }));
    good(S::TurnOpenProposed, json!({ "turn_id": null }));
    good(S::TurnOpen, json!({}));
    good(S::Watermark, json!({ "reason": "edge_watermark_high" }));

    bad(
        S::Abort,
        json!({ "reason": null }),
        "reason: required for abort",
    );
    bad(S::Abort, json!({ "reason": "" }), "must not be blank");
    bad(
        S::BargeIn,
        json!({ "emitted_by": "RK-03" }),
        "RK-06 or RK-16, not by RK-03",
    );
    bad(
        S::BudgetWarning,
        json!({ "emitted_by": "RK-13" }),
        "RK-17, not by RK-13",
    );
    bad(
        S::Cancel,
        json!({ "scope": "edge" }),
        "unknown variant `edge`",
    );
    bad(
        S::CreditGrant,
        json!({ "amount": null }),
        "amount: required for credit_grant",
    );
    bad(
        S::CreditGrant,
        json!({ "amount": 0 }),
        "amount: must be at least 1",
    );
    bad(
        S::Discontinuity,
        json!({ "sync_domain": null }),
        "sync_domain: required",
    );
    bad(
        S::DropNotice,
        json!({ "seq_range": null }),
        "seq_range: required for drop_notice",
    );
    bad(
        S::Commit,
        json!({ "emitted_by": "RK-99" }),
        "unknown variant `RK-99`",
    );
    bad(
        S::LeaseRotated,
        json!({ "emitted_by": "RK-24" }),
        "CP-07 or CP-08, not by RK-24",
    );
    bad(S::Commit, json!({ "timestamp_ms": -1 }), "invalid value");
    bad(
        S::Shed,
        json!({ "reason": null }),
        "reason: required for shed",
    );
    bad(
        S::Watermark,
        json!({ "edge_id": null }),
        "edge_id: required for watermark",
    );

    bad(
        S::Commit,
        json!({ "amount": 1 }),
        "amount: has no meaning with commit",
    );
    bad(
        S::Commit,
        json!({ "seq_range": { "start": 1, "end": 2 } }),
        "seq_range: has no meaning",
    );
    invalid_typed(
        typed_signal,
        &with(signal(S::Commit), json!({ "mode": "soft" })),
        "mode: has no meaning with commit",
    );
    // The schema cannot compare two numbers of one object.
    let reversed = json!({ "seq_range": { "start": 120, "end": 100 } });
    invalid_typed(
        typed_signal,
        &with(signal(S::DropNotice), reversed),
        "seq_range.end: ends at 100, before its start 120",
    );
}

// === controlplane §2: decisions ===

fn outcome(kind: &str, phase: &str, scope: &str, emitter: &str) -> Value {
    json!({
        "outcome_kind": kind,
        "phase": phase,
        "scope": scope,
        "session_id": "s-1",
        "turn_id": "turn-0001",
        "event_id": "e-1",
        "reason": "because",
        "runtime_timestamp_ms": 1,
        "wall_clock_timestamp_ms": 1,
        "authority_epoch": 1,
        "emitted_by": emitter
    })
}

/// event-abi §8, decision_outcome.
#[test]
fn outcome_fixtures_mean_what_they_say() {
    let good = |value: &Value| valid(typed_outcome, &OUTCOME, value);
    let admit = outcome("admit", "pre_turn", "session", "RK-25");
    good(&with(admit.clone(), json!({ "turn_id": null })));
    good(&with(admit.clone(), json!({ "timestamp_ms": 1 })));
    good(&outcome(
        "shed",
        "scheduling_point",
        "edge_enqueue",
        "RK-25",
    ));
    good(&outcome(
        "stale_epoch_reject",
        "pre_turn",
        "session",
        "RK-24",
    ));

    invalid_typed(
        typed_outcome,
        &with(admit.clone(), json!({ "emitted_by": "RK-24" })),
        "emitted_by: admit is not decided by RK-24",
    );
    invalid(
        typed_outcome,
        &OUTCOME,
        &with(admit, json!({ "timestamp_ms": -1 })),
        "invalid value",
    );
    invalid_typed(
        typed_outcome,
        &outcome("shed", "pre_turn", "session", "RK-25"),
        "phase: shed is not decided in pre_turn",
    );
}

/// CT-005, controlplane §2: the rules, written once more as a predicate, over every combination.
#[test]
fn outcomes_follow_every_rule_and_no_other() {
    let kinds = [
        "admit",
        "reject",
        "defer",
        "shed",
        "stale_epoch_reject",
        "deauthorized_drain",
    ];
    let phases = ["pre_turn", "scheduling_point", "active_turn"];
    let scopes = [
        "tenant",
        "session",
        "turn",
        "edge_enqueue",
        "edge_dequeue",
        "node_dispatch",
    ];
    let points = &scopes[3..];
    let mut accepted = 0;
    for kind in kinds {
        for phase in phases {
            for scope in scopes {
                for emitter in ["RK-24", "RK-25", "CP-05", "RK-03"] {
                    let authority = matches!(kind, "stale_epoch_reject" | "deauthorized_drain");
                    let expected = match kind {
                        "shed" => emitter == "RK-25" && phase == "scheduling_point",
                        _ if authority => emitter == "RK-24",
                        _ => matches!(emitter, "RK-25" | "CP-05"),
                    } && (emitter != "CP-05"
                        || (phase == "pre_turn" && matches!(scope, "tenant" | "session")))
                        && match phase {
                            "pre_turn" => matches!(scope, "tenant" | "session" | "turn"),
                            "scheduling_point" => points.contains(&scope),
                            _ => scope == "turn" || points.contains(&scope),
                        }
                        && match (kind, phase) {
                            _ if authority && phase == "pre_turn" => scope != "tenant",
                            ("stale_epoch_reject", phase) => phase == "scheduling_point",
                            ("deauthorized_drain", phase) => {
                                phase == "active_turn" && scope == "turn"
                            }
                            _ => true,
                        };
                    let value = outcome(kind, phase, scope, emitter);
                    assert_eq!(typed_outcome(&value).is_ok(), expected, "{value:#}");
                    accepted += u32::from(expected);
                    let no_turn = with(value.clone(), json!({ "turn_id": null }));
                    let needs_turn = scope == "turn" || phase == "active_turn";
                    assert_eq!(typed_outcome(&no_turn).is_ok(), expected && !needs_turn);
                    let no_epoch = with(value, json!({ "authority_epoch": null }));
                    assert_eq!(typed_outcome(&no_epoch).is_ok(), expected && !authority);
                }
            }
        }
    }
    assert!(accepted > 30, "the predicate accepts only {accepted}");
}

/// event-abi §8, turn_transition.
#[test]
fn transition_fixtures_mean_what_they_say() {
    let step = |from: &str, to: &str| json!({ "from_state": from, "trigger": "turn_open", "to_state": to, "deterministic": true });
    valid(typed_transition, &TRANSITION, &step("Opening", "Active"));
    invalid_typed(
        typed_transition,
        &step("Idle", "Active"),
        "a turn in Idle does not react",
    );
    let chance = with(step("Opening", "Active"), json!({ "deterministic": false }));
    invalid(
        typed_transition,
        &TRANSITION,
        &chance,
        "deterministic: must be true",
    );
}

// === event-abi §5: order ===

fn numbered(mut signal: ControlSignal, sequence: u64) -> Record {
    signal.envelope.runtime_sequence = sequence;
    signal.into()
}

fn heard(edge: Option<EdgeId>, lane: Lane, runtime: u64, transport: Option<u64>) -> Record {
    let stamp = Stamp {
        runtime_sequence: runtime,
        transport_sequence: transport,
        ..stamp()
    };
    let mut event = EventRecord::new(stamp, lane, Payload::AudioEnd);
    event.envelope.edge_id = edge;
    event.into()
}

/// event-abi §5.1
#[test]
fn sequences_rise_strictly_on_one_edge_and_lane() {
    let on = |runtime| heard(Some(edge()), Lane::Data, runtime, None);
    check_batch(&[on(1), on(2), on(9)]).unwrap();
    for (first, second) in [(2, 2), (2, 1)] {
        let error = check_batch(&[on(first), on(second)]).unwrap_err();
        assert_eq!(error.index, 1);
        assert_eq!(error.violation.path, "runtime_sequence");
    }
    // Other lanes, edges and sessions have an order of their own.
    let mut other_session = on(1);
    if let Record::Event(event) = &mut other_session {
        event.envelope.session_id = "s-2".parse().unwrap();
    }
    let other_edge = heard(None, Lane::Data, 1, None);
    let other_lane = heard(Some(edge()), Lane::Telemetry, 1, None);
    check_batch(&[on(5), other_session, other_edge, other_lane]).unwrap();
}

#[test]
fn the_transports_order_does_not_go_back_on_an_edge() {
    let on = |runtime, transport| heard(Some(edge()), Lane::Data, runtime, Some(transport));
    check_batch(&[on(1, 5), on(2, 5), on(3, 6)]).unwrap();
    let error = check_batch(&[on(1, 5), on(2, 4)]).unwrap_err();
    assert!(matches!(
        error.violation.rule,
        AbiRule::TransportOrder {
            previous: 5,
            found: 4
        }
    ));
    // Without an edge, numbers of different sources meet.
    let loose = |runtime, transport| heard(None, Lane::Data, runtime, Some(transport));
    check_batch(&[loose(1, 5), loose(2, 4)]).unwrap();
}

/// event-abi §5.3
#[test]
fn nothing_is_accepted_behind_the_fence_of_a_cancel() {
    let tts: NodeId = "tts".parse().unwrap();
    let call: rspp_proto::InvocationId = "pvi/1".parse().unwrap();
    let output = |name| {
        complete(name)
            .on_node(tts.clone())
            .of_invocation(call.clone())
    };
    for scope in CancelScope::ALL {
        let cancel = output(Signal::Cancel).scoped(*scope);
        for name in [Signal::OutputAccepted, Signal::PlaybackStarted] {
            let batch = [numbered(cancel.clone(), 1), numbered(output(name), 2)];
            let error = check_batch(&batch).unwrap_err();
            assert_eq!(error.violation.rule, AbiRule::BehindFence(name), "{scope}");
            // The same two the other way round were in time.
            let batch = [numbered(output(name), 1), numbered(cancel.clone(), 2)];
            check_batch(&batch).unwrap();
        }
        // What ends playback may still be said.
        let after = numbered(output(Signal::PlaybackCancelled), 2);
        check_batch(&[numbered(cancel, 1), after]).unwrap();
    }
    // Another turn is not behind this turn's fence.
    let cancel = numbered(output(Signal::Cancel).scoped(CancelScope::Turn), 1);
    let mut next = output(Signal::OutputAccepted);
    next.envelope.turn_id = Some(TurnNumber(2).id());
    check_batch(&[cancel, numbered(next, 2)]).unwrap();
}

#[test]
fn a_batch_names_its_bad_record() {
    let mut bad = complete(Signal::Abort);
    bad.reason = None;
    let error = check_batch(&[numbered(complete(Signal::TurnOpen), 1), numbered(bad, 2)]);
    assert_eq!(
        error.unwrap_err().to_string(),
        "record 1 of the batch, reason: required for abort"
    );
}

// === Builders ===

#[test]
fn builders_stamp_what_an_emitter_need_not_think_about() {
    let abort =
        ControlSignal::new(Signal::Abort, Emitter::TurnArbiter, stamp()).because(reason::CANCELLED);
    abort.validate().unwrap();
    assert_eq!(abort.envelope.event_id.as_str(), "evt/s-1/turn-0001/000007");
    assert_eq!(abort.envelope.runtime_timestamp_ms, 1_500);

    let mut stamp = stamp();
    stamp.turn_id = None;
    let admit = ControlSignal::new(Signal::Admit, Emitter::LocalAdmission, stamp)
        .because(reason::ADMISSION_CAPACITY_ALLOW);
    admit.validate().unwrap();
}

#[test]
fn lease_tokens_are_never_printed() {
    let mut record = complete(Signal::LeaseIssued);
    record.envelope.lease_token = Some(rspp_proto::LeaseToken::new("eyJhbGciOi").unwrap());
    assert!(!format!("{record:?}").contains("eyJ"));
}

#[test]
fn raw_audio_needs_its_place_in_the_stream() {
    let chunk =
        rspp_proto::AudioChunk::pcm16(rspp_proto::SampleRate::HZ_16000, vec![0; 640].into());
    let event = EventRecord::new(stamp(), Lane::Data, Payload::AudioChunk(chunk));
    assert!(event.validate().is_err());
    let event = event.at(MediaTime::SampleIndex(SampleIndex(320)));
    event.validate().unwrap();
}
