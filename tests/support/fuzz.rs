//! What bytes from elsewhere must never do: one body for each parser of foreign bytes.
//!
//! The fuzzer runs these from `tests/fuzz`; the tests run them on the corpus there, and on what small
//! damages make of it. A body panics when the parser or one of its promises breaks.

use std::{io::Cursor, path::Path};

use rspp_kernel::{
    graph::Graph,
    plan::{LayeredSettings, PlanInputs, ProviderInputs, SnapshotProvenance, resolve},
};
use rspp_proto::{
    Epoch, TurnNumber,
    abi::{Decoded, Encoding, UnknownEventAction, Wire},
    spec::{Mode, PipelineSpec, PolicyBundle},
};
use rspp_timeline::{Timeline, verify};
use rspp_transport_api::wav;

/// One parser of foreign bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Reads the bytes, and panics if a promise is broken.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "abi_msgpack",
        run: abi_msgpack,
    },
    Target {
        name: "abi_json",
        run: abi_json,
    },
    Target {
        name: "pipeline_spec",
        run: pipeline_spec,
    },
    Target {
        name: "policy_bundle",
        run: policy_bundle,
    },
    Target {
        name: "timeline_file",
        run: timeline_file,
    },
    Target {
        name: "wav_file",
        run: wav_file,
    },
];

/// An Event ABI record in MessagePack.
pub fn abi_msgpack(bytes: &[u8]) {
    abi(Encoding::MessagePack, bytes);
}

/// An Event ABI record in JSON.
pub fn abi_json(bytes: &[u8]) {
    abi(Encoding::Json, bytes);
}

/// What is read can be written, and reads back as the same.
fn abi(encoding: Encoding, bytes: &[u8]) {
    for action in [
        UnknownEventAction::Reject,
        UnknownEventAction::Drop,
        UnknownEventAction::PassThrough,
    ] {
        let wire = Wire::new(encoding).with_unknown_events(action);
        let Ok(Decoded::Record(record)) = wire.decode(bytes) else {
            continue;
        };
        record.validate().expect("what is decoded is valid");
        // Writing may need more room than there is; what was written reads back.
        if let Ok(written) = wire.encode(&record) {
            let again = wire.decode(&written).expect("what was written is read");
            assert_eq!(again, Decoded::Record(record));
        }
    }
}

/// A pipeline: what parses compiles or says why not, and what compiles has a plan or says why not.
pub fn pipeline_spec(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for mode in [Mode::Strict, Mode::Relaxed] {
        let Ok(parsed) = PipelineSpec::parse("fuzz.yaml", text, mode) else {
            continue;
        };
        let written = serde_json::to_string(&parsed.spec).expect("a spec is JSON");
        let again = PipelineSpec::parse("again.json", &written, Mode::Relaxed);
        assert_eq!(again.expect("what was written is read").spec, parsed.spec);
        let Ok(graph) = Graph::compile(&parsed.spec) else {
            continue;
        };
        let inputs = PlanInputs {
            spec: &parsed.spec,
            graph: &graph,
            graph_fingerprint: graph.fingerprint(),
            profile: parsed.spec.profile.as_str(),
            settings: &LayeredSettings::default(),
            policy: None,
            snapshots: &SnapshotProvenance::local(),
            snapshots_fresh: true,
            providers: ProviderInputs::unknown(),
            degraded: parsed.spec.degrade.is_some(),
        };
        if let Ok(plan) = resolve(&inputs, &TurnNumber::FIRST.id(), Epoch::FIRST) {
            plan.verify().expect("a new plan is what it says");
        }
    }
}

/// A policy bundle.
pub fn policy_bundle(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for mode in [Mode::Strict, Mode::Relaxed] {
        let Ok(parsed) = PolicyBundle::parse("fuzz.yaml", text, mode) else {
            continue;
        };
        let written = serde_json::to_string(&parsed.spec).expect("a policy is JSON");
        let again = PolicyBundle::parse("again.json", &written, Mode::Relaxed);
        assert_eq!(again.expect("what was written is read").spec, parsed.spec);
    }
}

/// A timeline: whatever state the file is in, what is whole of it is read.
pub fn timeline_file(bytes: &[u8]) {
    let Ok(mut timeline) = Timeline::read(Cursor::new(bytes)) else {
        return;
    };
    let mut verifier = verify::Verifier::default();
    let mut last = 0;
    for item in &mut timeline {
        let Ok(item) = item else { break };
        assert!(item.offset >= last, "frames are read in order");
        last = item.offset;
        verifier.observe(&item.entry);
    }
    let _found = verifier.finish();
    let report = timeline.report();
    assert!(report.whole_bytes <= bytes.len() as u64);
    let _told = report.problems();
}

/// A recording of the user: as long as it says, or an error.
pub fn wav_file(bytes: &[u8]) {
    if let Ok(clip) = wav::decode_from(Path::new("fuzz.wav"), bytes) {
        assert!(clip.duration() <= wav::LONGEST);
    }
}

/// Damages `bytes` a little: `seed` says how.
pub fn damaged(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move |limit: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % limit.max(1) as u64) as usize
    };
    let mut damaged = bytes.to_vec();
    for _ in 0..=next(3) {
        let at = next(damaged.len());
        match next(6) {
            0 => damaged.truncate(at),
            1 if !damaged.is_empty() => damaged[at] = next(256) as u8,
            2 if !damaged.is_empty() => damaged[at] ^= 1 << next(8),
            3 => damaged.insert(at, next(256) as u8),
            4 if !damaged.is_empty() => {
                let end = (at + 1 + next(16)).min(damaged.len());
                damaged.drain(at..end);
            }
            _ => {
                let end = (at + 1 + next(32)).min(damaged.len());
                let piece = damaged[at.min(end)..end].to_vec();
                let to = next(damaged.len());
                damaged.splice(to..to, piece);
            }
        }
    }
    damaged
}
