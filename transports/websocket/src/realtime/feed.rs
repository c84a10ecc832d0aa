//! Audio on its way in. Clients send it in whatever pieces and however fast; the pipeline hears it at the pace
//! of speech, as from a microphone, or a little faster when some waits.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use rspp_proto::SampleRate;
use rspp_transport_api::Ingress;

/// Audio that may be handed on at once, in seconds.
const AT_ONCE: f64 = 0.2;
/// How much faster than speech what waits is handed on.
const SPEED: f64 = 1.25;
/// Least and most that is handed on in one piece, in seconds.
const LEAST: f64 = 0.02;
const MOST: f64 = 0.1;

/// More audio waits than is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Debug)]
pub(super) struct Feed {
    queue: VecDeque<Piece>,
    waiting: usize,
    /// Bytes that may wait.
    most: usize,
    bytes_per_second: f64,
    /// What may be handed on now, in seconds, and since when.
    level: f64,
    at: Duration,
}

#[derive(Debug)]
enum Piece {
    Audio(Bytes),
    Then(Ingress),
}

impl Feed {
    pub(super) fn new(rate: SampleRate, backlog: Duration) -> Self {
        let bytes_per_second = f64::from(rate.hertz()) * 2.0;
        Self {
            queue: VecDeque::new(),
            waiting: 0,
            most: (backlog.as_secs_f64() * bytes_per_second) as usize,
            bytes_per_second,
            level: AT_ONCE,
            at: Duration::ZERO,
        }
    }

    /// Some audio: 16-bit PCM.
    pub(super) fn push(&mut self, pcm: Bytes) -> Result<(), Full> {
        if self.waiting + pcm.len() > self.most {
            return Err(Full);
        }
        self.waiting += pcm.len();
        // Many small pieces must not cost more than few large ones.
        self.queue.push_back(Piece::Audio(pcm));
        Ok(())
    }

    /// Something that follows the audio so far.
    pub(super) fn then(&mut self, ingress: Ingress) {
        self.queue.push_back(Piece::Then(ingress));
    }

    /// Forgets the audio that nothing follows.
    pub(super) fn forget(&mut self) {
        while let Some(Piece::Audio(pcm)) = self.queue.back() {
            self.waiting -= pcm.len();
            self.queue.pop_back();
        }
    }

    /// What may be handed on now.
    pub(super) fn next(&mut self, now: Duration) -> Option<Ingress> {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.level = (self.level + passed * SPEED).min(AT_ONCE);
        match self.queue.pop_front()? {
            Piece::Then(ingress) => Some(Ingress::clone(&ingress)),
            Piece::Audio(mut pcm) => {
                let length = pcm.len() as f64 / self.bytes_per_second;
                if self.level < length.min(LEAST) {
                    self.queue.push_front(Piece::Audio(pcm));
                    return None;
                }
                let samples = (self.level.min(MOST) * self.bytes_per_second / 2.0) as usize;
                if samples * 2 < pcm.len() {
                    let rest = pcm.split_off(samples * 2);
                    self.queue.push_front(Piece::Audio(rest));
                }
                self.waiting -= pcm.len();
                self.level -= pcm.len() as f64 / self.bytes_per_second;
                Some(Ingress::Audio(pcm))
            }
        }
    }

    /// When more may be handed on, if something waits.
    pub(super) fn due(&self) -> Option<Duration> {
        let wanted = match self.queue.front()? {
            Piece::Then(_) => 0.0,
            Piece::Audio(pcm) => (pcm.len() as f64 / self.bytes_per_second).min(LEAST),
        };
        let wait = ((wanted - self.level) / SPEED).max(0.0);
        Some(self.at + Duration::from_secs_f64(wait))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: usize = 48_000;

    fn feed() -> Feed {
        Feed::new(SampleRate::new(24_000).unwrap(), Duration::from_secs(5))
    }

    fn silence(bytes: usize) -> Bytes {
        vec![0; bytes].into()
    }

    /// All that comes out, and when the last of it did.
    fn drain(feed: &mut Feed) -> (Vec<Ingress>, Duration) {
        let (mut came, mut now) = (Vec::new(), Duration::ZERO);
        loop {
            while let Some(ingress) = feed.next(now) {
                came.push(ingress);
            }
            let Some(due) = feed.due() else {
                return (came, now);
            };
            now = due.max(now + Duration::from_millis(1));
        }
    }

    fn bytes(came: &[Ingress]) -> usize {
        let lengths = came.iter().map(|ingress| match ingress {
            Ingress::Audio(pcm) => pcm.len(),
            _another => 0,
        });
        lengths.sum()
    }

    /// A recording that comes at once is heard as if it were spoken, a little faster.
    #[test]
    fn a_burst_is_heard_at_the_pace_of_speech() {
        let mut feed = feed();
        feed.push(silence(2 * SECOND)).unwrap();
        feed.then(Ingress::EndOfUtterance);
        let (came, took) = drain(&mut feed);
        assert_eq!(bytes(&came), 2 * SECOND);
        assert_eq!(came.last(), Some(&Ingress::EndOfUtterance));
        let ms = took.as_millis();
        assert!((1_400..1_500).contains(&ms), "{ms} ms for two seconds");
    }

    #[test]
    fn a_microphone_is_not_held_up() {
        let mut feed = feed();
        for n in 0..100 {
            feed.push(silence(SECOND / 50)).unwrap();
            let now = Duration::from_millis(20 * n);
            assert!(feed.next(now).is_some(), "frame {n}");
            assert_eq!(feed.due(), None);
        }
    }

    #[test]
    fn what_waits_is_bounded_and_forgotten_when_asked() {
        let mut feed = feed();
        feed.push(silence(4 * SECOND)).unwrap();
        assert_eq!(feed.push(silence(2 * SECOND)), Err(Full));
        feed.then(Ingress::EndOfUtterance);
        feed.push(silence(SECOND)).unwrap();
        feed.forget();
        let (came, _) = drain(&mut feed);
        assert_eq!(bytes(&came), 4 * SECOND, "what was committed stays");
        assert_eq!(came.last(), Some(&Ingress::EndOfUtterance));
    }

    proptest! {
        /// Pieces of any size come out whole, in order, in whole samples.
        #[test]
        fn nothing_is_lost(lengths in prop::collection::vec(1usize..5_000, 1..20)) {
            let mut feed = feed();
            let mut sent = Vec::new();
            for (n, length) in lengths.into_iter().enumerate() {
                let piece = vec![n as u8; length * 2];
                sent.extend_from_slice(&piece);
                feed.push(piece.into()).unwrap();
            }
            let (came, _) = drain(&mut feed);
            let mut heard = Vec::new();
            for ingress in came {
                if let Ingress::Audio(pcm) = ingress {
                    prop_assert!(pcm.len() % 2 == 0);
                    heard.extend_from_slice(&pcm);
                }
            }
            prop_assert_eq!(heard, sent);
        }
    }
}
