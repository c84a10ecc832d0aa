//! Order between records: sequences that rise, and nothing accepted behind a cancel (event-abi §5).

use std::collections::{HashMap, HashSet};

use super::{
    AbiRule, AbiViolation, CancelScope, ControlSignal, Envelope, Record, Signal, validate::broken,
};
use crate::{EdgeId, InvocationId, Lane, NodeId, SessionId, TurnId};

/// A batch is refused as a whole, at its first bad record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {index} of the batch, {violation}")]
pub struct BatchViolation {
    /// The record, counted from 0.
    pub index: usize,
    /// What is wrong with it.
    #[source]
    pub violation: AbiViolation,
}

/// Checks records one by one and their order among each other.
///
/// Orders are only ever compared within one (session, edge, lane); across edges the timeline's merge
/// rule decides (event-abi §5).
pub fn check_batch(records: &[Record]) -> Result<(), BatchViolation> {
    let mut order = Order::default();
    for (index, record) in records.iter().enumerate() {
        record
            .validate()
            .and_then(|()| order.observe(record))
            .map_err(|violation| BatchViolation { index, violation })?;
    }
    Ok(())
}

/// The order so far. Lives as long as one batch, so it is bounded by the batch.
#[derive(Debug, Default)]
struct Order<'a> {
    sequences: HashMap<(&'a SessionId, Option<&'a EdgeId>, Lane), Last>,
    fenced: HashSet<Fence<'a>>,
}

#[derive(Debug)]
struct Last {
    runtime: u64,
    transport: Option<u64>,
}

/// Work whose output is no longer accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fence<'a> {
    Session(&'a SessionId),
    Turn(&'a SessionId, &'a TurnId),
    Node(&'a SessionId, Option<&'a TurnId>, &'a NodeId),
    Invocation(&'a InvocationId),
}

impl<'a> Order<'a> {
    fn observe(&mut self, record: &'a Record) -> Result<(), AbiViolation> {
        self.sequence(record.envelope())?;
        match record {
            Record::Event(_) => Ok(()),
            Record::Signal(signal) => self.fence(signal),
        }
    }

    fn sequence(&mut self, envelope: &'a Envelope) -> Result<(), AbiViolation> {
        let key = (
            &envelope.session_id,
            envelope.edge_id.as_ref(),
            envelope.lane,
        );
        let found = envelope.runtime_sequence;
        // Without an edge, records of several sources meet, each with numbers of its own.
        let transport = envelope.edge_id.as_ref().and(envelope.transport_sequence);
        let Some(last) = self.sequences.get_mut(&key) else {
            self.sequences.insert(
                key,
                Last {
                    runtime: found,
                    transport,
                },
            );
            return Ok(());
        };
        if found <= last.runtime {
            let previous = last.runtime;
            return Err(broken(
                "runtime_sequence",
                AbiRule::OutOfOrder { previous, found },
            ));
        }
        if let (Some(previous), Some(found)) = (last.transport, transport)
            && found < previous
        {
            return Err(broken(
                "transport_sequence",
                AbiRule::TransportOrder { previous, found },
            ));
        }
        last.runtime = found;
        last.transport = transport.or(last.transport);
        Ok(())
    }

    fn fence(&mut self, signal: &'a ControlSignal) -> Result<(), AbiViolation> {
        let envelope = &signal.envelope;
        let session = &envelope.session_id;
        let turn = envelope.turn_id.as_ref();
        let node = envelope.node_id.as_ref();
        let call = envelope.provider_invocation_id.as_ref();
        if signal.signal == Signal::Cancel {
            let fence = signal.scope.and_then(|scope| match scope {
                CancelScope::Session => Some(Fence::Session(session)),
                CancelScope::Turn => turn.map(|turn| Fence::Turn(session, turn)),
                CancelScope::Node => node.map(|node| Fence::Node(session, turn, node)),
                CancelScope::ProviderInvocation => call.map(Fence::Invocation),
            });
            self.fenced.extend(fence);
        }
        // A new turn is a new start for a session whose work was cancelled.
        if signal.signal == Signal::TurnOpen {
            self.fenced.remove(&Fence::Session(session));
        }
        if matches!(
            signal.signal,
            Signal::OutputAccepted | Signal::PlaybackStarted
        ) {
            let mut scopes = [
                Some(Fence::Session(session)),
                turn.map(|turn| Fence::Turn(session, turn)),
                node.map(|node| Fence::Node(session, turn, node)),
                call.map(Fence::Invocation),
            ]
            .into_iter()
            .flatten();
            if scopes.any(|scope| self.fenced.contains(&scope)) {
                return Err(broken("signal", AbiRule::BehindFence(signal.signal)));
            }
        }
        Ok(())
    }
}
