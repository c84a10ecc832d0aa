//! What makes a turn repeatable: its seed, its order, its merge rule and what came from outside.

use std::cmp::Ordering;

use rspp_proto::{Epoch, EventId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Most outside inputs that one turn records.
pub const MAX_NONDETERMINISTIC_INPUTS: usize = 1_024;

/// By what events of a turn are ordered, strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderingMarker {
    /// The runtime sequence.
    RuntimeSequence,
    /// The event's id, between equals.
    EventId,
}

/// Where an input that a replay cannot derive came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputSource {
    /// A provider, tool or other service.
    ExternalCall,
    /// A clock.
    SystemTime,
    /// Chance.
    Random,
    /// A person who operates the system.
    OperatorOverride,
    /// Anything else.
    Other,
}

/// One input that a replay must take from the recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NondeterministicInput {
    /// What was decided with it, e.g. `provider/llm`.
    pub input_key: String,
    /// Where it came from.
    pub source: InputSource,
    /// Where the recording holds it.
    pub evidence_ref: String,
}

/// Why an input was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InputError {
    /// A blank key or reference finds nothing.
    #[error("a nondeterministic input needs a key and a reference to its evidence")]
    Blank,
    /// The turn is full of them.
    #[error("a turn records at most {MAX_NONDETERMINISTIC_INPUTS} nondeterministic inputs")]
    TooMany,
}

/// A turn's determinism context (F-150; turn-plan.md §4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeterminismContext {
    /// Follows from plan and epoch, see [`seed`].
    pub seed: u64,
    /// At least one, unique.
    pub ordering_markers: Vec<OrderingMarker>,
    /// Names the rule by which streams are merged.
    pub merge_rule_id: String,
    /// The rule's version, `v1.0.0` or alike.
    pub merge_rule_version: String,
    /// What came from outside.
    pub nondeterministic_inputs: Vec<NondeterministicInput>,
}

impl DeterminismContext {
    /// The context that a plan opens with. The plan's own hash is its first outside input.
    pub fn new(plan_hash: &str, epoch: Epoch) -> Self {
        Self {
            seed: seed(plan_hash, epoch),
            ordering_markers: vec![OrderingMarker::RuntimeSequence, OrderingMarker::EventId],
            merge_rule_id: "default-merge-rule".to_owned(),
            merge_rule_version: "v1.0.0".to_owned(),
            nondeterministic_inputs: vec![NondeterministicInput {
                input_key: "plan_hash".to_owned(),
                source: InputSource::Other,
                evidence_ref: plan_hash.to_owned(),
            }],
        }
    }

    /// Records an input that a replay could not derive. Once per key and reference.
    pub fn record(&mut self, input: NondeterministicInput) -> Result<(), InputError> {
        if input.input_key.trim().is_empty() || input.evidence_ref.trim().is_empty() {
            return Err(InputError::Blank);
        }
        if self.nondeterministic_inputs.contains(&input) {
            return Ok(());
        }
        if self.nondeterministic_inputs.len() >= MAX_NONDETERMINISTIC_INPUTS {
            return Err(InputError::TooMany);
        }
        self.nondeterministic_inputs.push(input);
        Ok(())
    }

    /// What is wrong with a context that was read from somewhere.
    pub fn problem(&self) -> Option<&'static str> {
        let mut markers = self.ordering_markers.clone();
        markers.sort_unstable();
        markers.dedup();
        if i64::try_from(self.seed).is_err() {
            Some("the seed has at most 63 bits")
        } else if markers.is_empty() || markers.len() < self.ordering_markers.len() {
            Some("at least one ordering marker is needed, each once")
        } else if self.merge_rule_id.trim().is_empty() {
            Some("the merge rule needs an id")
        } else if !is_version(&self.merge_rule_version) {
            Some("the merge rule's version is like v1.0 or v1.0.0")
        } else {
            None
        }
    }
}

/// The absolute value of the first eight bytes, big-endian, of SHA-256 over `plan_hash|epoch`.
pub fn seed(plan_hash: &str, epoch: Epoch) -> u64 {
    let digest = Sha256::digest(format!("{plan_hash}|{}", epoch.get()));
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    // The one value whose absolute value has 64 bits is taken for its neighbour.
    i64::from_be_bytes(first)
        .unsigned_abs()
        .min(i64::MAX as u64)
}

/// The default merge rule, `default-merge-rule` v1.0.0: by runtime sequence, then by event id.
pub fn merge_order(a: (u64, &EventId), b: (u64, &EventId)) -> Ordering {
    a.cmp(&b)
}

fn is_version(text: &str) -> bool {
    let parts: Vec<_> = text.strip_prefix('v').unwrap_or(text).split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    (2..=3).contains(&parts.len()) && parts.iter().all(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    /// turn-plan §4: values computed elsewhere, one of either sign.
    #[test]
    fn the_seed_is_the_documented_one() {
        assert_eq!(seed(HASH, Epoch::FIRST), 9_193_691_748_086_765_641);
        assert_eq!(
            seed(HASH, Epoch::new(2).unwrap()),
            8_524_414_193_740_741_850
        );
        assert_eq!(seed("b", Epoch::FIRST), 6_145_292_321_305_272_516);
    }

    /// F-150: what is exported is complete and reads back.
    #[test]
    fn a_context_holds_what_replay_needs() {
        let mut context = DeterminismContext::new(HASH, Epoch::FIRST);
        let call = NondeterministicInput {
            input_key: "provider/llm".into(),
            source: InputSource::ExternalCall,
            evidence_ref: "pvi/s/t/e/llm".into(),
        };
        context.record(call.clone()).unwrap();
        context.record(call.clone()).unwrap();
        assert_eq!(context.nondeterministic_inputs.len(), 2, "once is enough");
        assert_eq!(
            context.record(NondeterministicInput {
                evidence_ref: " ".into(),
                ..call
            }),
            Err(InputError::Blank)
        );
        assert_eq!(context.problem(), None);
        let text = serde_json::to_string(&context).unwrap();
        assert_eq!(
            serde_json::from_str::<DeterminismContext>(&text).unwrap(),
            context
        );
    }

    #[test]
    fn recorded_inputs_are_bounded() {
        let mut context = DeterminismContext::new(HASH, Epoch::FIRST);
        let mut outcome = Ok(());
        for n in 0..=MAX_NONDETERMINISTIC_INPUTS {
            outcome = context.record(NondeterministicInput {
                input_key: format!("k{n}"),
                source: InputSource::Random,
                evidence_ref: "r".into(),
            });
        }
        assert_eq!(outcome, Err(InputError::TooMany));
        assert_eq!(
            context.nondeterministic_inputs.len(),
            MAX_NONDETERMINISTIC_INPUTS
        );
    }

    /// turn-plan §4: patterns and uniqueness.
    #[test]
    fn a_broken_context_is_told_apart() {
        let good = DeterminismContext::new(HASH, Epoch::FIRST);
        for version in ["1.0", "v1.0", "v1.0.0", "2.10.3"] {
            let context = DeterminismContext {
                merge_rule_version: version.into(),
                ..good.clone()
            };
            assert_eq!(context.problem(), None, "{version}");
        }
        for version in ["", "v", "v1", "v1.0.0.0", "v1.x", "1..0", "V1.0"] {
            let context = DeterminismContext {
                merge_rule_version: version.into(),
                ..good.clone()
            };
            assert!(context.problem().is_some(), "{version}");
        }
        let twice = vec![OrderingMarker::EventId, OrderingMarker::EventId];
        for ordering_markers in [vec![], twice] {
            let context = DeterminismContext {
                ordering_markers,
                ..good.clone()
            };
            assert!(context.problem().is_some());
        }
        let seed = DeterminismContext {
            seed: u64::MAX,
            ..good
        };
        assert!(seed.problem().is_some());
    }

    /// event-abi §5: by sequence, then by id.
    #[test]
    fn the_merge_rule_orders_by_sequence_then_id() {
        let id = |text: &str| EventId::new(text).unwrap();
        let mut events = [(2, id("a")), (1, id("b")), (1, id("a"))];
        events.sort_by(|a, b| merge_order((a.0, &a.1), (b.0, &b.1)));
        assert_eq!(events, [(1, id("a")), (1, id("b")), (2, id("a"))]);
    }
}
