//! Traces: one for each turn, the same wherever it is looked at (P30).
//!
//! Ids are made of what they name: a session, a turn, a call. So they need not be carried or kept: whoever
//! asks a provider, writes a timeline or reads one comes to the same. Calls share nothing but their caller's
//! trace, which each turn's links to.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::{Hex, InvocationId, NodeId, ProviderId, SessionId, TurnId};

/// A trace: 16 bytes, not all of them zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId([u8; 16]);

/// A span of a trace: 8 bytes, not all of them zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId([u8; 8]);

impl TraceId {
    /// The trace of a turn; that of what a session does for no turn without one.
    pub fn of(session: &SessionId, turn: Option<&TurnId>) -> Self {
        let turn = turn.map_or("", TurnId::as_str);
        Self(digest("trace", &[session.as_str(), turn]))
    }
}

impl TraceId {
    /// Its bytes, as protocols other than HTTP's carry them.
    pub fn bytes(&self) -> [u8; 16] {
        self.0
    }
}

impl SpanId {
    /// Its bytes, as protocols other than HTTP's carry them.
    pub fn bytes(&self) -> [u8; 8] {
        self.0
    }

    /// The root of a turn's trace.
    pub fn of_turn(trace: TraceId) -> Self {
        Self(digest("turn", &[&trace.to_string()]))
    }

    /// A stage of a turn.
    pub fn of_stage(trace: TraceId, stage: &str) -> Self {
        Self(digest("stage", &[&trace.to_string(), stage]))
    }

    /// What a node did for a turn.
    pub fn of_node(trace: TraceId, node: &NodeId) -> Self {
        Self(digest("node", &[&trace.to_string(), node.as_str()]))
    }

    /// One attempt at a provider. A provider that is not known yet is told apart by the attempt alone.
    pub fn of_attempt(call: &InvocationId, provider: &ProviderId, attempt: u32) -> Self {
        let attempt = attempt.to_string();
        Self(digest(
            "attempt",
            &[call.as_str(), provider.as_str(), &attempt],
        ))
    }

    /// A call of a tool.
    pub fn of_tool(trace: TraceId, call: &str) -> Self {
        Self(digest("tool", &[&trace.to_string(), call]))
    }
}

/// Bytes that name something by its kind and its parts.
fn digest<const N: usize>(kind: &str, parts: &[&str]) -> [u8; N] {
    let mut hash = Sha256::new();
    for part in [kind].iter().chain(parts) {
        // With its length: no two lists of parts are one text.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let hash = hash.finalize();
    let mut bytes = [0; N];
    bytes.copy_from_slice(&hash[..N]);
    bytes[N - 1] |= 1; // Not all zero.
    bytes
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

/// Where in a trace something is, as the W3C's `traceparent` header writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// The trace.
    pub trace: TraceId,
    /// The span that what follows belongs to.
    pub span: SpanId,
    /// Whether whoever began it keeps it.
    pub sampled: bool,
}

impl TraceParent {
    /// The header's name.
    pub const HEADER: &'static str = "traceparent";

    /// A span of a trace that is kept.
    pub fn new(trace: TraceId, span: SpanId) -> Self {
        Self {
            trace,
            span,
            sampled: true,
        }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{}-{}-{flags:02x}", self.trace, self.span)
    }
}

/// A text that is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no traceparent: is `00-`, 32 and 16 lower-case hexadecimal digits not all zero, and 2 more, with `-` between"
)]
pub struct TraceParentError;

impl FromStr for TraceParent {
    type Err = TraceParentError;

    fn from_str(text: &str) -> Result<Self, TraceParentError> {
        let mut parts = text.trim().split('-');
        let mut next = || parts.next().ok_or(TraceParentError);
        let [version] = digits::<1>(next()?)?;
        let trace = digits::<16>(next()?)?;
        let span = digits::<8>(next()?)?;
        let [flags] = digits::<1>(next()?)?;
        // A later version may have more to say; this one has not.
        let has_more = parts.next().is_some();
        let is_known = version != 0xff && (version > 0 || !has_more);
        if !is_known || trace == [0; 16] || span == [0; 8] {
            return Err(TraceParentError);
        }
        Ok(Self {
            trace: TraceId(trace),
            span: SpanId(span),
            sampled: flags & 1 == 1,
        })
    }
}

fn digits<const N: usize>(text: &str) -> Result<[u8; N], TraceParentError> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _no_digit => Err(TraceParentError),
    };
    if text.len() != N * 2 {
        return Err(TraceParentError);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(bytes)
}

impl Serialize for TraceParent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TraceParent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// P30: the header is the W3C's: what it has is read and written again, what it has not is refused.
    #[test]
    fn a_header_is_read_as_it_is_written() {
        let parent: TraceParent = GOOD.parse().unwrap();
        assert!(parent.sampled);
        assert_eq!(parent.to_string(), GOOD);
        let later = format!("01-{}-what-may-come", &GOOD[3..]);
        assert_eq!(later.parse(), Ok(parent));
        let upper = GOOD.replace('f', "F");
        let zeros = [
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16)),
        ];
        let longer = format!("{GOOD}-00");
        let reserved = format!("ff{}", &GOOD[2..]);
        for bad in [
            "",
            "00",
            &upper,
            &zeros[0],
            &zeros[1],
            &longer,
            &reserved,
            &GOOD[1..],
        ] {
            assert_eq!(bad.parse::<TraceParent>(), Err(TraceParentError), "{bad}");
        }
    }

    /// P30: each turn of each session has a trace of its own, and the same one each time.
    #[test]
    fn no_two_turns_share_a_trace() {
        let session = |name: &str| SessionId::new(name).unwrap();
        let turn = |name: &str| TurnId::new(name).unwrap();
        let (first, second) = (turn("turn-0001"), turn("turn-0002"));
        let traces = [
            TraceId::of(&session("a"), Some(&first)),
            TraceId::of(&session("a"), Some(&second)),
            TraceId::of(&session("b"), Some(&first)),
            TraceId::of(&session("a"), None),
            TraceId::of(&session("aturn-0001"), None),
        ];
        for (n, trace) in traces.iter().enumerate() {
            assert!(!traces[..n].contains(trace), "{n}");
        }
        assert_eq!(TraceId::of(&session("a"), Some(&first)), traces[0]);
    }

    proptest! {
        /// NF-013: whatever is sent is a header or none.
        #[test]
        fn noise_is_refused_or_read(text in "[0-9a-f-]{0,60}|\\PC{0,60}") {
            if let Ok(parent) = text.parse::<TraceParent>() {
                prop_assert_eq!(parent.to_string().parse(), Ok(parent));
            }
        }
    }
}
