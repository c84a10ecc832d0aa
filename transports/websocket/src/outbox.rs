//! What is on its way to a client: bounded, cleared at once, and kept until it is known to have come.

use std::collections::VecDeque;

use bytes::Bytes;
use rspp_proto::{Speaker, TurnNumber};
use rspp_transport_api::SinkError;

use crate::protocol::{Said, ServerMessage};

/// Messages other than audio that may wait for the socket.
const MESSAGES: usize = 256;
/// What is kept of what was sent, for clients whose socket breaks: most messages, and most bytes.
const KEPT: usize = 512;
const KEPT_BYTES: usize = 512 << 10;

/// One message to the client.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Item {
    Frame { turn: TurnNumber, pcm: Bytes },
    Start(TurnNumber),
    End(TurnNumber),
    Clear(TurnNumber),
    Message(Box<ServerMessage>),
}

impl Item {
    /// The turn whose sound it is about.
    fn speaks_of(&self) -> Option<TurnNumber> {
        match self {
            Self::Frame { turn, .. } | Self::Start(turn) | Self::End(turn) => Some(*turn),
            Self::Clear(_) | Self::Message(_) => None,
        }
    }

    fn weight(&self) -> usize {
        match self {
            Self::Frame { pcm, .. } => pcm.len(),
            Self::Start(_) | Self::End(_) | Self::Clear(_) => 16,
            Self::Message(_) => 256,
        }
    }

    fn is_frame(&self) -> bool {
        match self {
            Self::Frame { .. } => true,
            Self::Start(_) | Self::End(_) | Self::Clear(_) | Self::Message(_) => false,
        }
    }
}

/// A client says that it received what was never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NeverSent;

#[derive(Debug)]
pub(crate) struct Outbox {
    /// Frames that may wait.
    room: usize,
    waiting: VecDeque<Item>,
    frames: usize,
    /// The newest of what was sent on this connection; `gone` before it are not kept any more.
    sent: VecDeque<Item>,
    sent_bytes: usize,
    gone: u64,
    /// The turn whose audio was announced last.
    announced: Option<TurnNumber>,
    /// Of this turn and those before it nothing is heard any more.
    cleared: Option<TurnNumber>,
    /// The client does not answer: it takes no more audio.
    pub(crate) stalled: bool,
}

impl Outbox {
    pub(crate) fn new(room: usize) -> Self {
        Self {
            room,
            waiting: VecDeque::new(),
            frames: 0,
            sent: VecDeque::new(),
            sent_bytes: 0,
            gone: 0,
            announced: None,
            cleared: None,
            stalled: false,
        }
    }

    /// Some audio of a turn.
    pub(crate) fn play(&mut self, turn: TurnNumber, pcm: Bytes) -> Result<(), SinkError> {
        if self.cleared.is_some_and(|cleared| turn <= cleared) {
            return Ok(()); // The fence stands before the sink; nothing of this is to be heard.
        }
        if self.stalled || self.frames >= self.room {
            return Err(SinkError::Full);
        }
        if self.announced != Some(turn) {
            self.announced = Some(turn);
            self.waiting.push_back(Item::Start(turn));
        }
        self.frames += 1;
        self.waiting.push_back(Item::Frame { turn, pcm });
        Ok(())
    }

    /// A turn's audio is complete.
    pub(crate) fn end(&mut self, turn: TurnNumber) {
        if self.cleared.is_none_or(|cleared| turn > cleared) {
            self.waiting.push_back(Item::End(turn));
        }
    }

    /// Forgets a turn and all before it, and has the client do so.
    pub(crate) fn clear(&mut self, turn: TurnNumber) {
        if self.cleared.is_some_and(|cleared| turn <= cleared) {
            return;
        }
        self.cleared = Some(turn);
        let is_dead = |item: &Item| item.speaks_of().is_some_and(|of| of <= turn);
        self.waiting
            .retain(|item| !is_dead(item) && !matches!(item, Item::Clear(_)));
        self.frames = self.waiting.iter().filter(|item| item.is_frame()).count();
        // Before what follows it: the next turn may wait already.
        self.waiting.push_front(Item::Clear(turn));
        if self.announced.is_some_and(|announced| announced <= turn) {
            self.announced = None;
        }
    }

    /// Something else. Of a partial text only the newest waits. `Full` if the client does not keep up.
    pub(crate) fn say(&mut self, message: ServerMessage) -> Result<(), SinkError> {
        if let Some(Item::Message(last)) = self.waiting.back_mut()
            && replaces(&message, last)
        {
            **last = message;
            return Ok(());
        }
        if self.waiting.len() - self.frames >= MESSAGES {
            return Err(SinkError::Full);
        }
        self.waiting.push_back(Item::Message(Box::new(message)));
        Ok(())
    }

    /// What is sent next; kept until it is known to have come.
    pub(crate) fn next(&mut self) -> Option<Item> {
        let item = self.waiting.pop_front()?;
        self.frames -= usize::from(item.is_frame());
        self.sent_bytes += item.weight();
        self.sent.push_back(item.clone());
        while self.sent.len() > KEPT || self.sent_bytes > KEPT_BYTES {
            let Some(oldest) = self.sent.pop_front() else {
                break;
            };
            self.sent_bytes -= oldest.weight();
            self.gone += 1;
        }
        Some(item)
    }

    /// A client takes over that has heard nothing: what was sent is over for it, what waits is for it.
    pub(crate) fn begin_anew(&mut self) {
        let sent = self.gone + self.sent.len() as u64;
        self.resume(sent).expect("so much was sent");
    }

    /// A new connection begins, `received` messages having come on the one before. What did not come is
    /// sent again, but for what is not to be heard any more; the number of those that are not kept.
    pub(crate) fn resume(&mut self, received: u64) -> Result<u64, NeverSent> {
        let sent = self.gone + self.sent.len() as u64;
        if received > sent {
            return Err(NeverSent);
        }
        let lost = self.gone.saturating_sub(received);
        let came = received.saturating_sub(self.gone) as usize;
        let cleared = self.cleared;
        let missed = self.sent.drain(..).skip(came).filter(|item| {
            let of = item.speaks_of();
            of.is_none_or(|of| cleared.is_none_or(|cleared| of > cleared))
        });
        let missed: Vec<Item> = missed.collect();
        let mut turn = None;
        // A client that missed the beginning of a turn is told it anew.
        let first = missed.iter().chain(&self.waiting);
        for item in first {
            match item {
                Item::Start(_) => break,
                Item::Frame { turn: of, .. } => {
                    turn = Some(*of);
                    break;
                }
                Item::End(_) | Item::Clear(_) | Item::Message(_) => {}
            }
        }
        for item in missed.into_iter().rev() {
            self.waiting.push_front(item);
        }
        if let Some(turn) = turn {
            self.waiting.push_front(Item::Start(turn));
        }
        self.frames = self.waiting.iter().filter(|item| item.is_frame()).count();
        self.sent_bytes = 0;
        self.gone = 0;
        self.stalled = false;
        Ok(lost)
    }
}

/// Whether one message makes another, not sent yet, needless.
fn replaces(new: &ServerMessage, old: &ServerMessage) -> bool {
    let (ServerMessage::Text(new), ServerMessage::Text(old)) = (new, old) else {
        return false;
    };
    let is_users = |said: &Said| said.speaker == Speaker::User;
    is_users(new) && is_users(old) && new.segment == old.segment && !old.is_final
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::Nothing;

    const T1: TurnNumber = TurnNumber(1);
    const T2: TurnNumber = TurnNumber(2);

    fn frame(turn: TurnNumber, n: u8) -> Item {
        Item::Frame {
            turn,
            pcm: Bytes::from(vec![n, 0]),
        }
    }

    fn play(outbox: &mut Outbox, turn: TurnNumber, n: u8) {
        assert_eq!(outbox.play(turn, vec![n, 0].into()), Ok(()));
    }

    fn all(outbox: &mut Outbox) -> Vec<Item> {
        std::iter::from_fn(|| outbox.next()).collect()
    }

    fn partial(segment: u32, text: &str, is_final: bool) -> ServerMessage {
        ServerMessage::Text(Said {
            speaker: Speaker::User,
            text: text.into(),
            segment,
            is_final,
        })
    }

    /// P23: what waits is bounded, and says so.
    #[test]
    fn a_client_that_does_not_keep_up_is_told_by_full() {
        let mut outbox = Outbox::new(2);
        play(&mut outbox, T1, 1);
        play(&mut outbox, T1, 2);
        let full = Err(SinkError::Full);
        assert_eq!(outbox.play(T1, vec![3, 0].into()), full);
        assert_eq!(
            all(&mut outbox),
            [Item::Start(T1), frame(T1, 1), frame(T1, 2)]
        );
        outbox.stalled = true;
        assert_eq!(outbox.play(T1, vec![3, 0].into()), full);
        for _ in 0..MESSAGES {
            assert_eq!(outbox.say(ServerMessage::Draining(Nothing {})), Ok(()));
        }
        assert_eq!(outbox.say(ServerMessage::Draining(Nothing {})), full);
    }

    /// P5: what was taken back is not sent, and the next turn is.
    #[test]
    fn a_cleared_turn_is_forgotten_and_the_next_one_kept() {
        let mut outbox = Outbox::new(9);
        play(&mut outbox, T1, 1);
        play(&mut outbox, T2, 2);
        outbox.clear(T1);
        outbox.clear(T1);
        play(&mut outbox, T1, 3);
        outbox.end(T1);
        outbox.end(T2);
        let left = [
            Item::Clear(T1),
            Item::Start(T2),
            frame(T2, 2),
            Item::End(T2),
        ];
        assert_eq!(all(&mut outbox), left);
    }

    #[test]
    fn of_a_partial_text_only_the_newest_waits() {
        let mut outbox = Outbox::new(9);
        for said in [
            partial(0, "he", false),
            partial(0, "hello", true),
            partial(1, "and", false),
        ] {
            assert_eq!(outbox.say(said), Ok(()));
        }
        let texts: Vec<Item> = [partial(0, "hello", true), partial(1, "and", false)]
            .map(|it| Item::Message(Box::new(it)))
            .into();
        assert_eq!(all(&mut outbox), texts);
    }

    /// F-091, F-158: what the broken connection lost is sent again, and nothing twice.
    #[test]
    fn a_new_connection_gets_what_the_old_one_lost() {
        let mut outbox = Outbox::new(9);
        for n in 1..=4 {
            play(&mut outbox, T1, n);
        }
        assert_eq!(all(&mut outbox).len(), 5);
        play(&mut outbox, T1, 5);
        assert_eq!(outbox.resume(6), Err(NeverSent));
        assert_eq!(outbox.resume(3), Ok(0));
        let again = [Item::Start(T1), frame(T1, 3), frame(T1, 4), frame(T1, 5)];
        assert_eq!(all(&mut outbox), again);
        outbox.clear(T1);
        assert_eq!(outbox.resume(0), Ok(0));
        assert_eq!(all(&mut outbox), [Item::Clear(T1)]);
    }

    #[test]
    fn what_was_too_much_to_keep_is_counted_as_lost() {
        let mut outbox = Outbox::new(9);
        for _ in 0..KEPT + 10 {
            outbox.end(T1);
            let _sent = outbox.next();
        }
        assert_eq!(outbox.resume(4), Ok(6));
        assert_eq!(all(&mut outbox).len(), KEPT);
    }

    proptest! {
        /// F-158: whatever is lost on however many connections, a client hears every frame once, in order.
        #[test]
        fn every_frame_comes_once(breaks in prop::collection::vec((1usize..9, 0u64..9), 0..8)) {
            let mut outbox = Outbox::new(1_000);
            let mut next = 0u8;
            let mut heard = Vec::new();
            let mut listen = |items: &[Item]| {
                for item in items {
                    if let Item::Frame { pcm, .. } = item {
                        heard.push(pcm[0]);
                    }
                }
            };
            for (frames, came) in breaks {
                for _ in 0..frames {
                    play(&mut outbox, T1, next);
                    next += 1;
                }
                let sent = all(&mut outbox);
                let came = (came as usize).min(sent.len());
                listen(&sent[..came]);
                prop_assert_eq!(outbox.resume(came as u64), Ok(0));
            }
            listen(&all(&mut outbox));
            prop_assert_eq!(heard, (0..next).collect::<Vec<u8>>());
        }
    }
}
