//! Watches a connection: whether anything is heard, whether anything is taken, whether anybody is there.
//! What follows from it is the session's to decide.

use std::time::Duration;

use rspp_proto::{Monotonic, spec::ConnectionPolicy};
use rspp_transport_api::{Link, audio::FRAME};

use super::PROBE;
use crate::session::TransportEvent;

/// What is known of the connection's state. Times are looked at when a timer fires, not for each
/// frame.
pub(super) struct Watch {
    silence_after: Duration,
    /// Refusals in a row that make a stall.
    stall_at: u32,
    heard_at: Monotonic,
    /// Whether anything was ever heard.
    flows: bool,
    /// When to look at that; `None` while it is known that nothing is heard. Set anew only when it
    /// comes, since moving a timer with each frame costs more than the frame.
    check_at: Option<Monotonic>,
    /// Frames in a row that the peer had no room for.
    refused: u32,
    down: bool,
}

impl Watch {
    pub(super) fn new(policy: &ConnectionPolicy, now: Monotonic) -> Self {
        let stall = Duration::from_millis(policy.stall_after_ms);
        let frames = stall.as_millis() / FRAME.as_millis();
        let silence_after = Duration::from_millis(policy.silence_after_ms);
        Self {
            silence_after,
            stall_at: u32::try_from(frames).unwrap_or(u32::MAX),
            heard_at: now,
            flows: false,
            check_at: Some(now + silence_after),
            refused: 0,
            down: false,
        }
    }

    /// Whether nobody is there.
    pub(super) fn is_down(&self) -> bool {
        self.down
    }

    /// Whether what is made has to wait for somebody who takes it.
    pub(super) fn is_holding(&self) -> bool {
        self.down || self.is_stalled()
    }

    /// When to look whether anything is heard.
    pub(super) fn silence_due(&self) -> Option<Monotonic> {
        self.check_at.filter(|_| !self.down)
    }

    /// Looks whether anything is heard, if it is time to.
    pub(super) fn check_silence(&mut self, now: Monotonic) -> Option<TransportEvent> {
        if self.silence_due().is_none_or(|due| due > now) {
            return None;
        }
        let silent_at = self.heard_at + self.silence_after;
        self.check_at = Some(silent_at).filter(|at| *at > now);
        self.check_at.is_none().then_some(TransportEvent::Silent)
    }

    /// The user's audio came in.
    pub(super) fn heard(&mut self, now: Monotonic) -> Option<TransportEvent> {
        self.heard_at = now;
        let begins = !std::mem::replace(&mut self.flows, true);
        if self.check_at.is_some() {
            return begins.then_some(TransportEvent::Flowing);
        }
        self.check_at = Some(now + self.silence_after);
        Some(TransportEvent::Flowing)
    }

    /// The peer was offered a frame.
    pub(super) fn offered(&mut self, taken: bool) -> Option<TransportEvent> {
        if taken {
            let stalled = self.is_stalled();
            self.refused = 0;
            return stalled.then_some(TransportEvent::Flowing);
        }
        self.refused = self.refused.saturating_add(1);
        (self.refused == self.stall_at).then_some(TransportEvent::Stalled)
    }

    fn is_stalled(&self) -> bool {
        self.refused >= self.stall_at
    }

    /// Until the next frame is offered. A peer that stalls is only asked now and then: what it
    /// refuses is lost.
    pub(super) fn pace(&self) -> Duration {
        if self.is_stalled() { PROBE } else { FRAME }
    }

    /// The transport said something about its link.
    pub(super) fn relinked(&mut self, link: Link, now: Monotonic) -> Option<TransportEvent> {
        match link {
            Link::Changed => None,
            Link::Back if !self.down => None,
            Link::Back => {
                self.heard_at = now;
                self.check_at = Some(now + self.silence_after);
                self.refused = 0;
                self.down = false;
                Some(TransportEvent::Connected)
            }
            Link::Reconnecting => {
                self.down = true;
                Some(TransportEvent::Reconnecting)
            }
            Link::Lost => {
                self.down = true;
                Some(TransportEvent::Lost)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        let policy = ConnectionPolicy {
            silence_after_ms: 1_000,
            stall_after_ms: 60,
            ..ConnectionPolicy::default()
        };
        Watch::new(&policy, at(0))
    }

    fn at(ms: u64) -> Monotonic {
        Monotonic::from_millis(ms)
    }

    #[test]
    fn silence_is_said_once_and_ends_with_the_next_sound() {
        let mut watch = watch();
        assert_eq!(watch.check_silence(at(999)), None);
        let begins = watch.heard(at(980));
        assert_eq!(begins, Some(TransportEvent::Flowing), "the first sound");
        assert_eq!(watch.heard(at(999)), None);
        assert_eq!(watch.check_silence(at(1_000)), None);
        assert_eq!(watch.silence_due(), Some(at(1_999)));
        assert_eq!(watch.check_silence(at(1_999)), Some(TransportEvent::Silent));
        assert_eq!(watch.silence_due(), None);
        assert_eq!(watch.heard(at(3_000)), Some(TransportEvent::Flowing));
        assert_eq!(watch.heard(at(3_020)), None);
    }

    #[test]
    fn a_peer_that_takes_nothing_stalls_and_is_asked_now_and_then() {
        let mut watch = watch();
        let offers = [false, false, true, false, false, false, false, true];
        let said: Vec<_> = offers.iter().filter_map(|ok| watch.offered(*ok)).collect();
        assert_eq!(said, [TransportEvent::Stalled, TransportEvent::Flowing]);
        assert_eq!(watch.pace(), FRAME);
        for _ in 0..3 {
            let _said = watch.offered(false);
        }
        assert_eq!(watch.pace(), PROBE);
    }

    #[test]
    fn nobody_listens_for_silence_on_a_line_that_is_down() {
        let mut watch = watch();
        let lost = watch.relinked(Link::Lost, at(10));
        assert_eq!(lost, Some(TransportEvent::Lost));
        assert_eq!(watch.silence_due(), None);
        let back = watch.relinked(Link::Back, at(5_000));
        assert_eq!(back, Some(TransportEvent::Connected));
        assert_eq!(watch.relinked(Link::Back, at(5_001)), None);
        assert_eq!(watch.silence_due(), Some(at(6_000)));
    }
}
