//! F5: partial loss of streams that belong together (RK-15).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rspp_host::{Tags, node::NodeContext};
use rspp_proto::{
    SampleIndex, SyncDomain, SyncId,
    abi::{ControlSignal, Emitter, Signal},
};
use rspp_tests::{
    call::{Builder, Cast, Ended, REPLY, first, says},
    nodes::{Probes, branch, words},
};
use rspp_timeline::Entry;
use serde_json::json;

use crate::row::{assert_committed, evidence};

/// A call beside whose conversation two streams of one domain run, one to a consumer that is too slow.
async fn torn(policy: &str) -> Ended {
    let mut probes = Probes::default();
    probes.source("source", |nth, cx: &mut NodeContext| {
        let moment = nth / 4;
        let tags = Tags {
            sync_id: Some(SyncId::new(format!("moment-{moment}")).expect("not blank")),
            sync_domain: Some(SyncDomain::new("av").expect("not blank")),
            key: None,
        };
        let said = words(moment, "word", false);
        cx.emit_tagged(said, SampleIndex(0), moment, Arc::new(tags));
    });
    let _slow = probes.sink("slow", Duration::from_millis(50));
    let _quick = probes.sink("quick", Duration::from_millis(19));
    Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            let buffer = json!({
                "strategy": "drop_oldest", "max_queue_items": 8, "max_queue_ms": 600_000,
                "max_latency_contribution_ms": 600_000, "max_queue_bytes": 1_000_000,
                "sync_drop_policy": { "group_by": "sync_id", "policy": policy,
                                      "scope": "edge_local", "sync_domain": "av" },
            });
            let edge = |to: &str| {
                json!({ "from": "source", "to": to, "carries": "text", "buffer": buffer })
            };
            branch(spec, "source", &[edge("slow"), edge("quick")]);
        })
        .configure(probes.install())
        .hold()
        .await
}

/// The signals of a kind, as they were recorded.
fn recorded(ended: &Ended, kind: Signal) -> Vec<&ControlSignal> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Signal(signal) if signal.signal == kind => Some(&**signal),
            _something_else => None,
        })
        .collect()
}

/// F5, F-146, ML-004: what is lost of a domain is told by a drop notice and then by a discontinuity
/// with the domain, an id of its own and the reason; the turn goes on.
#[tokio::test(start_paused = true)]
async fn a_partial_loss_is_told_and_costs_no_turn() {
    for (policy, reason) in [
        ("drop_with_discontinuity", "sync_drop_with_discontinuity"),
        ("atomic_drop", "sync_domain_partial_loss"),
    ] {
        let ended = torn(policy).await;
        assert_committed(&ended, 1);
        assert_eq!(ended.turn(1).agent_text_played, REPLY);
        let _complete = evidence(&ended, 1);
        let told = recorded(&ended, Signal::Discontinuity);
        assert!(!told.is_empty(), "{policy}");
        let mut ids = BTreeSet::new();
        for signal in &told {
            assert_eq!(signal.emitted_by, Emitter::SyncIntegrity);
            let because = signal.reason.as_ref().map(rspp_proto::Reason::as_str);
            assert_eq!(because, Some(reason));
            let envelope = &signal.envelope;
            let domain = envelope.sync_domain.as_ref().map(SyncDomain::as_str);
            assert_eq!(domain, Some("av"));
            assert!(ids.insert(envelope.discontinuity_id.clone().expect("it has an id")));
            assert_eq!(signal.validate(), Ok(()));
        }
        let dropped = recorded(&ended, Signal::DropNotice);
        let first_loss = dropped.first().expect("what was dropped is told");
        assert!(first_loss.seq_range.is_some());
        assert!(
            first_loss.envelope.runtime_sequence < told[0].envelope.runtime_sequence,
            "first what is lost, then that downstream has to reset"
        );
    }
}
