//! A custom node from its unit tests to a call: the sample in `nodes/greeter.rs` (F-011, F-128).

use std::{sync::Arc, time::Duration};

use rspp_host::{
    NodeRegistry,
    node::{
        NodeReport,
        testing::{Harness, Rig, clause},
    },
};
use rspp_kernel::CancelReason;
use rspp_proto::{Payload, abi::EventRecord, spec::NodeSpec};
use rspp_tests::{
    call::{Builder, Cast, REPLY, after_reply, first, says},
    greeter::Greeter,
    nodes::{insert, node},
};
use rspp_timeline::Entry;
use serde_json::json;

fn harness() -> Harness {
    Harness::new(|_spec| Box::<Greeter>::default()).config("name", "Ada")
}

/// What the greeter makes of one clause.
fn said(rig: &mut Rig) -> Vec<String> {
    rig.feed(clause("It is noon."));
    rig.feed(Payload::TextEnd);
    rig.texts()
}

/// F-128: the sample's tests run as often as one likes and come to the same each time: synthetic events
/// in, the expected sequence out, over turns and placements.
#[test]
fn the_samples_tests_come_to_the_same_each_time() {
    for _run in 0..20 {
        let mut rig = harness().start().unwrap();
        assert_eq!(said(&mut rig), ["Hello Ada.", "It is noon."]);
        rig.next_turn().unwrap();
        assert_eq!(said(&mut rig), ["It is noon."]);
        rig.move_session().unwrap();
        assert_eq!(said(&mut rig), ["Welcome back, Ada.", "It is noon."]);
        assert_eq!(rig.emitted(), vec![Payload::TextEnd; 3]);
        assert!(rig.stop().is_empty());
    }
}

/// F-128: a cancel falls exactly where a test says; what is cancelled says nothing.
#[test]
fn a_cancelled_sample_says_nothing_more() {
    let mut rig = harness().start().unwrap();
    rig.cancel(CancelReason::BargeIn);
    assert_eq!(
        rig.reports(),
        [NodeReport::CancelAcknowledged {
            reason: CancelReason::BargeIn,
            after: Duration::ZERO,
            is_forced: false,
            provider: None,
        }]
    );
    assert!(said(&mut rig).is_empty(), "its turn is dead");
    rig.stop();
}

/// F-128: a sample without what it needs is refused, in its own words.
#[test]
fn a_sample_that_is_set_up_wrongly_is_refused() {
    for name in ["", "  "] {
        let refused = harness().config("name", name).start();
        let refused = refused.expect_err("it is refused").to_string();
        assert!(refused.contains("a greeter needs a `name`"), "{refused}");
    }
}

fn greeter(id: &str) -> NodeSpec {
    node(json!({ "id": id, "kind": { "custom": "greeter" }, "config": { "name": "Ada" } }))
}

/// F-011: the same node, registered and named in a spec, does in a call what its tests say; what it
/// emits is recorded as any event is, and keeps the ABI.
#[tokio::test(start_paused = true)]
async fn a_sample_does_in_a_call_what_its_tests_say() {
    let mut registry = NodeRegistry::default();
    registry.register("greeter", Arc::new(|_spec| Box::<Greeter>::default()));
    let ended = Builder::new(&Cast::default(), vec![says(first()), says(after_reply())])
        .pipeline(|spec| insert(spec, "segmenter", greeter("hello"), "tts"))
        .configure(|config| config.nodes = Arc::new(registry))
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit", "commit"], "{:#?}", ended.report);
    let greeted = format!("Hello Ada. {REPLY}");
    assert_eq!(ended.turn(1).agent_text_played, greeted);
    assert_eq!(ended.turn(2).agent_text_played, REPLY);
    let records: Vec<&EventRecord> = ended
        .entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Event(event) => Some(&event.record),
            _no_event => None,
        })
        .collect();
    assert!(!records.is_empty());
    for record in records {
        assert_eq!(record.validate(), Ok(()), "{record:?}");
    }
}
