//! The connection's state: what is said of it, and when a lost one is given up (transports.md §3).
//!
//! Silence, stall and loss are three things: nothing is heard, nothing is taken, nobody is there.

use std::time::Duration;

use rspp_proto::{Monotonic, abi::Signal, spec::ConnectionPolicy};

/// What happened to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkEvent {
    /// The link is up, for the first time or again.
    Up,
    /// The link is lost, and the transport tries to get it back.
    Reconnecting,
    /// The link is lost.
    Lost,
    /// No audio has come from the user for a while.
    Silent,
    /// The peer has taken no output for a while.
    Stalled,
    /// Media flows again.
    Flowing,
    /// The user hung up, or the peer is gone for good.
    HungUp,
    /// The state's time is up.
    Expired,
}

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkEnd {
    /// The user hung up.
    HungUp,
    /// The link was lost and did not come back.
    Lost,
    /// The peer took no output.
    Stalled,
}

impl LinkEnd {
    /// The end in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HungUp => "the user hung up",
            Self::Lost => "the connection was lost and did not come back",
            Self::Stalled => "the peer took no output",
        }
    }
}

/// How the connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// Never up so far.
    #[default]
    Opening,
    /// Up, with media flowing.
    Connected,
    /// Up, but nothing is heard.
    Silent,
    /// Up, but the peer takes nothing.
    Stalled {
        /// When it is given up.
        until: Monotonic,
    },
    /// Lost; the transport tries to get it back.
    Reconnecting {
        /// When it is given up.
        until: Monotonic,
    },
    /// Lost.
    Disconnected {
        /// When it is given up.
        until: Monotonic,
    },
    /// Over for good.
    Ended(LinkEnd),
}

impl Link {
    /// When to say [`LinkEvent::Expired`].
    pub fn deadline(self) -> Option<Monotonic> {
        match self {
            Self::Stalled { until }
            | Self::Reconnecting { until }
            | Self::Disconnected { until } => Some(until),
            Self::Opening | Self::Connected | Self::Silent | Self::Ended(_) => None,
        }
    }

    /// Whether the user is waited for (F-091).
    pub fn is_waiting(self) -> bool {
        match self {
            Self::Reconnecting { .. } | Self::Disconnected { .. } => true,
            Self::Opening
            | Self::Connected
            | Self::Silent
            | Self::Stalled { .. }
            | Self::Ended(_) => false,
        }
    }

    /// Whether somebody is there who takes output.
    pub fn takes_output(self) -> bool {
        match self {
            Self::Opening | Self::Connected | Self::Silent => true,
            Self::Stalled { .. }
            | Self::Reconnecting { .. }
            | Self::Disconnected { .. }
            | Self::Ended(_) => false,
        }
    }

    /// Takes in an event at `now`; the signal, if any, that says where the connection stands now.
    #[must_use]
    #[expect(
        clippy::match_same_arms,
        reason = "the table is read row by row, by the state that it starts from"
    )]
    pub fn step(
        self,
        now: Monotonic,
        event: LinkEvent,
        policy: &ConnectionPolicy,
    ) -> (Self, Option<Signal>) {
        use LinkEvent as E;
        let cleanup = now + Duration::from_millis(policy.cleanup_ms);
        let next = match (self, event) {
            // ENDED is for good: a later event is a fault of the transport's, and changes nothing.
            (Self::Ended(_), _) => return (self, None),

            (_, E::HungUp) => Self::Ended(LinkEnd::HungUp),

            (Self::Opening, E::Up) => Self::Connected,
            (Self::Opening, E::Lost) => Self::Disconnected { until: cleanup },
            // Nothing else is said before the first `connected`.
            (Self::Opening, E::Reconnecting | E::Silent | E::Stalled | E::Flowing | E::Expired) => {
                self
            }

            (Self::Connected | Self::Silent | Self::Stalled { .. }, E::Reconnecting) => {
                Self::Reconnecting { until: cleanup }
            }
            (Self::Connected | Self::Silent | Self::Stalled { .. }, E::Lost) => {
                Self::Disconnected { until: cleanup }
            }
            (Self::Connected | Self::Silent, E::Stalled) => Self::Stalled {
                until: now + Duration::from_millis(policy.stall_cleanup_ms),
            },
            (Self::Connected, E::Silent) => Self::Silent,
            (Self::Silent | Self::Stalled { .. }, E::Flowing) => Self::Connected,
            (Self::Stalled { until }, E::Expired) if until <= now => Self::Ended(LinkEnd::Stalled),
            (Self::Connected, E::Up | E::Flowing | E::Expired)
            | (Self::Silent, E::Up | E::Silent | E::Expired)
            | (Self::Stalled { .. }, E::Up | E::Silent | E::Stalled | E::Expired) => self,

            (Self::Reconnecting { .. } | Self::Disconnected { .. }, E::Up) => Self::Connected,
            // Counted from when the user was last there: trying again gains no time.
            (Self::Disconnected { until }, E::Reconnecting) => Self::Reconnecting { until },
            (Self::Reconnecting { until }, E::Lost) => Self::Disconnected { until },
            (Self::Reconnecting { until } | Self::Disconnected { until }, E::Expired)
                if until <= now =>
            {
                Self::Ended(LinkEnd::Lost)
            }
            (
                Self::Reconnecting { .. },
                E::Reconnecting | E::Silent | E::Stalled | E::Flowing | E::Expired,
            )
            | (
                Self::Disconnected { .. },
                E::Lost | E::Silent | E::Stalled | E::Flowing | E::Expired,
            ) => self,
        };
        let signal = (next != self).then(|| next.signal()).flatten();
        (next, signal)
    }

    /// What says that the connection stands so.
    fn signal(self) -> Option<Signal> {
        match self {
            Self::Opening => None,
            Self::Connected => Some(Signal::Connected),
            Self::Silent => Some(Signal::Silence),
            Self::Stalled { .. } => Some(Signal::Stall),
            Self::Reconnecting { .. } => Some(Signal::Reconnecting),
            Self::Disconnected { .. } | Self::Ended(_) => Some(Signal::Disconnected),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic::from_millis(ms)
    }

    #[track_caller]
    fn check(steps: &[(u64, LinkEvent)], end: Link, signals: &[&str]) {
        let policy = ConnectionPolicy {
            cleanup_ms: 1_000,
            stall_cleanup_ms: 100,
            ..ConnectionPolicy::default()
        };
        let mut link = Link::default();
        let mut said = Vec::new();
        for (ms, event) in steps {
            let (next, signal) = link.step(at(*ms), *event, &policy);
            said.extend(signal.map(Signal::as_str));
            link = next;
        }
        assert_eq!((link, said.as_slice()), (end, signals));
    }

    use LinkEvent as E;

    /// transports.md §3, F-091: the table, row by row.
    #[test]
    fn each_event_moves_the_connection_as_the_table_says() {
        check(&[(0, E::Up)], Link::Connected, &["connected"]);
        check(&[(0, E::Up), (1, E::Up)], Link::Connected, &["connected"]);
        for early in [
            E::Reconnecting,
            E::Silent,
            E::Stalled,
            E::Flowing,
            E::Expired,
        ] {
            check(&[(0, early)], Link::Opening, &[]);
        }
        let lost = Link::Disconnected { until: at(1_005) };
        check(&[(5, E::Lost)], lost, &["disconnected"]);
        check(
            &[(0, E::Up), (5, E::Lost), (900, E::Up)],
            Link::Connected,
            &["connected", "disconnected", "connected"],
        );
        check(
            &[
                (0, E::Up),
                (5, E::Reconnecting),
                (500, E::Lost),
                (600, E::Reconnecting),
            ],
            Link::Reconnecting { until: at(1_005) },
            &["connected", "reconnecting", "disconnected", "reconnecting"],
        );
        check(
            &[
                (0, E::Up),
                (5, E::Lost),
                (1_004, E::Expired),
                (1_005, E::Expired),
            ],
            Link::Ended(LinkEnd::Lost),
            &["connected", "disconnected", "disconnected"],
        );
        check(
            &[(0, E::Up), (1, E::Silent), (2, E::Silent), (3, E::Flowing)],
            Link::Connected,
            &["connected", "silence", "connected"],
        );
        check(
            &[(0, E::Up), (1, E::Silent), (2, E::Stalled), (3, E::Flowing)],
            Link::Connected,
            &["connected", "silence", "stall", "connected"],
        );
        check(
            &[(0, E::Up), (2, E::Stalled), (102, E::Expired)],
            Link::Ended(LinkEnd::Stalled),
            &["connected", "stall", "disconnected"],
        );
        check(
            &[(0, E::HungUp), (1, E::Up), (2, E::Silent)],
            Link::Ended(LinkEnd::HungUp),
            &["disconnected"],
        );
    }

    fn any_event() -> impl Strategy<Value = LinkEvent> {
        prop::sample::select(vec![
            E::Up,
            E::Reconnecting,
            E::Lost,
            E::Silent,
            E::Stalled,
            E::Flowing,
            E::HungUp,
            E::Expired,
        ])
    }

    proptest! {
        /// Whatever happens in whatever order: nothing is said after the end, and a link that is
        /// lost is over within the cleanup period unless it comes back.
        #[test]
        fn a_lost_link_ends_in_time_and_an_ended_one_is_mute(
            events in prop::collection::vec((1u64..400, any_event()), 0..60),
        ) {
            let policy = ConnectionPolicy { cleanup_ms: 1_000, ..ConnectionPolicy::default() };
            let (mut link, mut now, mut lost_at) = (Link::default(), at(0), None);
            for (later, event) in events {
                now = now + Duration::from_millis(later);
                let before = link;
                let (expired, _) = link.step(now, E::Expired, &policy);
                let (next, signal) = expired.step(now, event, &policy);
                if matches!(before, Link::Ended(_)) {
                    prop_assert_eq!((next, signal), (before, None));
                }
                link = next;
                if !link.is_waiting() {
                    lost_at = None;
                } else if lost_at.is_none() {
                    lost_at = Some(now);
                }
                if let Some(since) = lost_at {
                    prop_assert!(now.since(since) < Duration::from_secs(1));
                }
            }
        }
    }
}
