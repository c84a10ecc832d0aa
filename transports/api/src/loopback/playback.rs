//! The agent's side of the line: a playback buffer on the call's clock.
//!
//! Positions are samples since the call began, so that what was heard when can be read off.

use std::{collections::VecDeque, time::Duration};

use bytes::{Buf, Bytes};
use rspp_proto::{SampleRate, TurnNumber};

use crate::{SinkError, audio};

/// Plays what it is given, one piece after the other, and keeps what was heard.
#[derive(Debug)]
pub(crate) struct Playback {
    rate: SampleRate,
    /// Most audio that may wait, in samples.
    room: u64,
    /// What it waits for before it begins to play, and when it has run out.
    cushion: Duration,
    waiting: VecDeque<Piece>,
    /// Where playback stands; everything before it has been heard or was silence.
    position: u64,
    /// Where the waiting audio will have been played.
    end: u64,
    heard: Vec<i16>,
    reply: Option<Reply>,
    cleared: Option<TurnNumber>,
    leaked: u64,
}

#[derive(Debug)]
struct Piece {
    turn: TurnNumber,
    start: u64,
    /// When it comes: what is still under way does not wait here.
    arrives: u64,
    pcm: Bytes,
}

/// The newest turn in which the agent was heard or gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) turn: TurnNumber,
    /// When it became audible; `None` if it never was.
    pub(crate) began: Option<Duration>,
    /// When the runtime said that there is no more, or took the rest back.
    pub(crate) closed: Option<Duration>,
    pub(crate) cut: bool,
    /// When the last of its audio has been played, as far as is known now.
    pub(crate) audible_until: Duration,
}

impl Playback {
    /// A buffer with `room` beside what it waits for before it begins.
    pub(crate) fn new(rate: SampleRate, room: Duration, cushion: Duration) -> Self {
        Self {
            rate,
            room: rate.samples_in(room + cushion),
            cushion,
            waiting: VecDeque::new(),
            position: 0,
            end: 0,
            heard: Vec::new(),
            reply: None,
            cleared: None,
            leaked: 0,
        }
    }

    /// Moves playback on to `now`.
    pub(crate) fn advance(&mut self, now: Duration) {
        let now = self.rate.samples_in(now);
        while let Some(piece) = self.waiting.front_mut() {
            if piece.start >= now {
                break;
            }
            let gap = piece.start.saturating_sub(self.position) as usize;
            self.heard.resize(self.heard.len() + gap, 0);
            let samples = (piece.pcm.len() / 2) as u64;
            let due = samples.min(now - piece.start);
            self.heard
                .extend(audio::samples(&piece.pcm[..due as usize * 2]));
            self.position = piece.start + due;
            if due < samples {
                piece.pcm.advance(due as usize * 2);
                piece.start += due;
                break;
            }
            self.waiting.pop_front();
        }
        let silence = now.saturating_sub(self.position) as usize;
        self.heard.resize(self.heard.len() + silence, 0);
        self.position = self.position.max(now);
    }

    /// Plays what is sent `now` and comes at `arrives`, which is not before what was sent before it.
    pub(crate) fn play(
        &mut self,
        now: Duration,
        arrives: Duration,
        turn: TurnNumber,
        pcm: Bytes,
    ) -> Result<(), SinkError> {
        self.advance(now);
        if self.cleared.is_some_and(|cleared| turn <= cleared) {
            // The fence stands before the sink, so this is a fault worth counting, not hearing.
            self.leaked += 1;
            return Ok(());
        }
        let is_first = self.reply.is_none_or(|reply| reply.turn != turn);
        let begins = self.rate.samples_in(arrives + self.cushion);
        let arrives = self.rate.samples_in(arrives);
        let next = self.end.max(self.position);
        // What has run out begins anew.
        let start = if is_first || arrives > self.end {
            next.max(begins)
        } else {
            next
        };
        let samples = (pcm.len() / 2) as u64;
        let here = self
            .waiting
            .iter()
            .filter(|piece| piece.arrives <= self.position);
        let waits: u64 = here.map(|piece| (piece.pcm.len() / 2) as u64).sum();
        if waits + samples > self.room {
            return Err(SinkError::Full);
        }
        self.end = start + samples;
        let audible_until = self.rate.duration_of(self.end);
        let began = self.rate.duration_of(start);
        match &mut self.reply {
            Some(reply) if reply.turn == turn => {
                reply.audible_until = audible_until;
                reply.began.get_or_insert(began);
                reply.closed = None;
            }
            reply => {
                *reply = Some(Reply {
                    turn,
                    began: Some(began),
                    closed: None,
                    cut: false,
                    audible_until,
                });
            }
        }
        self.waiting.push_back(Piece {
            turn,
            start,
            arrives,
            pcm,
        });
        Ok(())
    }

    /// The runtime has no more audio for `turn`.
    pub(crate) fn close(&mut self, now: Duration, turn: TurnNumber) {
        self.advance(now);
        self.know(now, turn);
        if let Some(reply) = self.reply.as_mut().filter(|reply| reply.turn == turn) {
            reply.closed.get_or_insert(now);
        }
    }

    /// A turn that ends without a sound is a reply too: a mute one.
    fn know(&mut self, now: Duration, turn: TurnNumber) {
        if self.reply.is_none_or(|newest| newest.turn < turn) {
            self.reply = Some(Reply {
                turn,
                began: None,
                closed: None,
                cut: false,
                audible_until: now,
            });
        }
    }

    /// Takes back what has not been heard of `turn` and the turns before it. What is under way comes before
    /// the news of it, and is heard until then.
    pub(crate) fn clear(&mut self, now: Duration, turn: TurnNumber) {
        self.advance(now);
        self.cleared = self.cleared.max(Some(turn));
        let last = self.waiting.back().map_or(0, |piece| piece.arrives);
        let until = self.position.max(last);
        let dropped = self.waiting.iter().any(|piece| piece.turn <= turn);
        self.waiting.retain_mut(|piece| {
            if piece.turn <= turn {
                let heard = until.saturating_sub(piece.start) as usize * 2;
                piece.pcm.truncate(heard);
            }
            !piece.pcm.is_empty()
        });
        self.end = self.position;
        for piece in &mut self.waiting {
            if piece.turn > turn {
                piece.start = self.end.max(piece.arrives);
            }
            self.end = piece.start + (piece.pcm.len() / 2) as u64;
        }
        self.know(now, turn);
        let until = self.rate.duration_of(until);
        if let Some(reply) = self.reply.as_mut().filter(|reply| reply.turn <= turn) {
            reply.audible_until = reply.audible_until.min(until);
            // Clearing a turn that has already been heard to its end cuts nothing.
            reply.cut |= dropped || reply.closed.is_none();
            reply.closed.get_or_insert(now);
        }
    }

    pub(crate) fn reply(&self) -> Option<Reply> {
        self.reply
    }

    pub(crate) fn leaked(&self) -> u64 {
        self.leaked
    }

    /// Hands out what was heard since the last call.
    pub(crate) fn take_heard(&mut self) -> Vec<i16> {
        std::mem::take(&mut self.heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: TurnNumber = TurnNumber::FIRST;
    const SECOND: TurnNumber = TurnNumber(2);

    /// At 1 kHz a sample is a millisecond.
    fn playback() -> Playback {
        Playback::new(SampleRate::new(1_000).unwrap(), ms(80), ms(0))
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn piece(value: i16) -> Bytes {
        audio::to_bytes(&[value; 20])
    }

    /// Lengths of equal stretches, such as `[(0, 10), (7, 20)]`.
    fn stretches(samples: &[i16]) -> Vec<(i16, usize)> {
        samples
            .chunk_by(|a, b| a == b)
            .map(|stretch| (stretch[0], stretch.len()))
            .collect()
    }

    #[test]
    fn pieces_follow_each_other_and_gaps_are_silence() {
        let mut playback = playback();
        playback.play(ms(10), ms(10), FIRST, piece(7)).unwrap();
        playback.play(ms(10), ms(10), FIRST, piece(8)).unwrap();
        playback.play(ms(100), ms(100), FIRST, piece(9)).unwrap();
        playback.advance(ms(105));
        let heard = playback.take_heard();
        assert_eq!(
            stretches(&heard),
            [(0, 10), (7, 20), (8, 20), (0, 50), (9, 5)]
        );
        playback.advance(ms(130));
        assert_eq!(stretches(&playback.take_heard()), [(9, 15), (0, 10)]);
    }

    /// P5: what is held is bounded, and taken back at once.
    #[test]
    fn what_was_not_heard_can_be_taken_back_to_the_sample() {
        let mut playback = playback();
        for value in 1..=4 {
            playback.play(ms(0), ms(0), FIRST, piece(value)).unwrap();
        }
        let more = playback.play(ms(0), ms(0), FIRST, piece(5));
        assert_eq!(more, Err(SinkError::Full));
        playback.clear(ms(33), FIRST);
        playback.play(ms(40), ms(40), SECOND, piece(9)).unwrap();
        playback.advance(ms(80));
        assert_eq!(
            stretches(&playback.take_heard()),
            [(1, 20), (2, 13), (0, 7), (9, 20), (0, 20)]
        );
        let reply = playback.reply().unwrap();
        assert_eq!((reply.turn, reply.began), (SECOND, Some(ms(40))));
    }

    #[test]
    fn clearing_spares_later_turns_and_moves_them_up() {
        let mut playback = playback();
        playback.play(ms(0), ms(0), FIRST, piece(1)).unwrap();
        playback.play(ms(0), ms(0), SECOND, piece(2)).unwrap();
        playback.clear(ms(5), FIRST);
        playback.advance(ms(40));
        assert_eq!(
            stretches(&playback.take_heard()),
            [(1, 5), (2, 20), (0, 15)]
        );
    }

    /// P1, P4: a frame of a cleared turn is never heard, and is counted.
    #[test]
    fn a_frame_of_a_cleared_turn_is_counted_not_heard() {
        let mut playback = playback();
        playback.clear(ms(0), FIRST);
        playback.play(ms(10), ms(10), FIRST, piece(1)).unwrap();
        playback.advance(ms(50));
        assert_eq!(stretches(&playback.take_heard()), [(0, 50)]);
        assert_eq!(playback.leaked(), 1);
        assert_eq!(playback.reply().unwrap().began, None);
    }

    #[test]
    fn a_reply_knows_whether_it_was_cut() {
        let mut whole = playback();
        whole.play(ms(0), ms(0), FIRST, piece(1)).unwrap();
        whole.close(ms(5), FIRST);
        whole.clear(ms(60), FIRST);
        assert!(!whole.reply().unwrap().cut);

        let mut cut = playback();
        cut.play(ms(0), ms(0), FIRST, piece(1)).unwrap();
        cut.close(ms(5), FIRST);
        cut.clear(ms(12), FIRST);
        let reply = cut.reply().unwrap();
        assert!(reply.cut);
        assert_eq!(reply.audible_until, ms(12));

        let mut mute = playback();
        mute.close(ms(5), SECOND);
        assert_eq!(mute.reply().unwrap().began, None);
    }

    /// P29: what comes late is heard late, and leaves a gap; the cushion makes up for as much as it is.
    #[test]
    fn a_late_piece_leaves_a_gap_that_a_cushion_fills() {
        for (cushion, heard) in [
            (0, [(0, 10), (7, 20), (0, 15), (8, 20), (0, 15)]),
            (15, [(0, 25), (7, 20), (8, 20), (0, 15), (0, 0)]),
        ] {
            let mut playback = Playback::new(SampleRate::new(1_000).unwrap(), ms(80), ms(cushion));
            playback.play(ms(10), ms(10), FIRST, piece(7)).unwrap();
            playback.play(ms(30), ms(45), FIRST, piece(8)).unwrap();
            playback.advance(ms(80));
            let heard: Vec<_> = heard
                .into_iter()
                .filter(|(_, length)| *length > 0)
                .collect();
            assert_eq!(stretches(&playback.take_heard()), heard);
        }
    }

    /// P5: what is under way comes before the news that it is taken back, and is heard until that comes.
    #[test]
    fn what_is_under_way_is_heard_until_the_news_come() {
        let mut playback = playback();
        for (sent, comes) in [(0, 30), (20, 50), (40, 70)] {
            playback.play(ms(sent), ms(comes), FIRST, piece(7)).unwrap();
        }
        playback.clear(ms(45), FIRST);
        playback.play(ms(60), ms(90), SECOND, piece(9)).unwrap();
        playback.advance(ms(120));
        let heard = [(0, 30), (7, 40), (0, 20), (9, 20), (0, 10)];
        assert_eq!(stretches(&playback.take_heard()), heard);
    }
}
