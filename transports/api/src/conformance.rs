//! What every transport must do, checked: one suite, run by every implementation (F-086).
//!
//! The suite takes the runtime's side; a [`Rig`] brings the transport with a peer on its other end.
//! Tests panic with what was promised and what came instead:
//!
//! ```ignore
//! rspp_transport_api::transport_tests! {
//!     #[tokio::test]
//!     mod my_transport = MyRig::default();
//! }
//! ```

use std::{future::Future, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use rspp_proto::{AudioChunk, TurnNumber};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    Capabilities, Ingress, Outgoing, Sink, SinkError, Transport,
    audio::{FRAME, samples, to_bytes},
};

/// Longest that audio may be held unplayed (P5).
const LONGEST_LEAD: Duration = Duration::from_millis(200);
/// How long the suite waits for what is to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes connections.
pub trait Rig {
    /// Whoever is at the other end.
    type Peer: Peer;

    /// A connection whose peer begins at once to say `says`: mono, at the rate that the transport
    /// announces, no sample of it zero.
    fn connect(&self, says: Vec<i16>) -> impl Future<Output = (Transport, Self::Peer)>;
}

/// The other end of a connection.
pub trait Peer {
    /// All that was played to its user so far; silence may stand between.
    fn heard(&mut self) -> impl Future<Output = Vec<i16>>;

    /// Hangs up.
    fn hang_up(&mut self) -> impl Future<Output = ()>;

    /// Takes nothing off the wire any more. A peer without a wire has nothing to leave on it, and goes on.
    fn freeze(&mut self) -> impl Future<Output = ()>;

    /// Takes what comes again.
    fn thaw(&mut self) -> impl Future<Output = ()>;
}

/// Makes a test of each promise.
#[macro_export]
macro_rules! transport_tests {
    ($(#[$attribute:meta])+ mod $name:ident = $rig:expr;) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $crate::transport_tests!(@each [$(#[$attribute])+] $rig =>
                shape hears speaks falls_silent takes_back_what_waits never_blocks hangs_up);
        }
    };
    (@each $attributes:tt $rig:expr => $($promise:ident)+) => {
        $($crate::transport_tests!(@one $attributes $promise $rig);)+
    };
    (@one [$(#[$attribute:meta])+] $promise:ident $rig:expr) => {
        $(#[$attribute])+
        async fn $promise() {
            $crate::conformance::$promise(&$rig).await;
        }
    };
}

/// It can do what its kind can do, at rates that can be converted, with a bounded lead (P5).
pub async fn shape(rig: &impl Rig) {
    let (transport, _peer) = rig.connect(Vec::new()).await;
    assert_eq!(Capabilities::of(transport.kind).check(), Ok(()));
    let lead = transport.sink.lead();
    assert!(lead <= LONGEST_LEAD, "a lead of {lead:?} is too long");
    for rate in [transport.source_rate, transport.sink.sample_rate()] {
        assert!((8_000..=48_000).contains(&rate.hertz()), "{rate}");
    }
}

/// What the user says comes in whole, in order, in whole samples.
pub async fn hears(rig: &impl Rig) {
    let said = tone(16_000);
    let (mut transport, _peer) = rig.connect(said.clone()).await;
    let heard = listen(&mut transport.source, said.len()).await;
    assert_eq!(heard.len(), said.len(), "samples that came in");
    assert!(heard == said, "what came in is not what was said");
}

/// What the agent says arrives whole and in order.
pub async fn speaks(rig: &impl Rig) {
    let (mut transport, mut peer) = rig.connect(Vec::new()).await;
    let listening = drain(transport.source);
    let sink = &mut transport.sink;
    let frame = samples_of_a_frame(&**sink);
    let said = tone(frame * 25);
    for (nth, chunk) in said.chunks(frame).enumerate() {
        let played = sink.play(TurnNumber::FIRST, &chunk_of(&**sink, chunk));
        assert_eq!(played, Ok(()), "frame {nth}");
        sleep(FRAME).await;
    }
    assert_eq!(sink.send(Outgoing::AudioEnd(TurnNumber::FIRST)), Ok(()));
    let heard = until(&mut peer, |heard| heard.len() >= said.len()).await;
    assert!(heard == said, "heard {} of {}", heard.len(), said.len());
    drop(listening);
}

/// A turn that is taken back falls silent, whatever was under way, and the next one is heard (P4, P5).
pub async fn falls_silent(rig: &impl Rig) {
    let (mut transport, mut peer) = rig.connect(Vec::new()).await;
    let listening = drain(transport.source);
    let sink = &mut transport.sink;
    let frame = samples_of_a_frame(&**sink);
    let first = vec![1_000; frame];
    let most = LONGEST_LEAD.as_millis() / FRAME.as_millis() + 1;
    let mut taken = 0;
    while taken < most && sink.play(TurnNumber(1), &chunk_of(&**sink, &first)).is_ok() {
        taken += 1;
    }
    assert!(taken > 0, "nothing is taken");
    sleep(FRAME * 2).await;
    sink.clear(TurnNumber(1));
    // The fence stands before a sink; what slips through must not be heard either.
    let late = vec![3_000; frame];
    let _refused_or_swallowed = sink.play(TurnNumber(1), &chunk_of(&**sink, &late));
    let heard = next_turn(sink, &mut peer).await;
    let of_first = heard.iter().take_while(|sample| **sample == 1_000).count();
    assert!(!heard.contains(&3_000), "a cleared turn was heard");
    assert_eq!(heard.len() - of_first, frame * 5, "the second turn, alone");
    // Two frames were due before it was taken back; one more may be under way.
    assert!(
        of_first <= frame * 4,
        "{of_first} samples of a cleared turn"
    );
    drop(listening);
}

/// What waits anywhere between the runtime and a peer that does not read for a while is taken back with its
/// turn: when the peer reads again it hears none of it, but for what was due at that moment (P5).
pub async fn takes_back_what_waits(rig: &impl Rig) {
    let (mut transport, mut peer) = rig.connect(Vec::new()).await;
    let listening = drain(transport.source);
    let sink = &mut transport.sink;
    let frame = samples_of_a_frame(&**sink);
    let before = play_for(sink, 5, 1_000).await;
    peer.freeze().await;
    let meanwhile = play_for(sink, 25, 3_000).await;
    assert!(
        before + meanwhile > 5,
        "it takes what a peer has no time for"
    );
    let went_on = peer.heard().await.iter().filter(|it| **it == 3_000).count();
    sink.clear(TurnNumber(1));
    peer.thaw().await;
    let heard = next_turn(sink, &mut peer).await;
    let of_second = heard.iter().filter(|sample| **sample == 2_000).count();
    assert_eq!(of_second, frame * 5);
    let taken_back = heard.iter().filter(|sample| **sample == 3_000).count();
    assert!(
        taken_back <= went_on + frame * 2,
        "{taken_back} samples of a cleared turn, {went_on} of them before"
    );
    drop(listening);
}

/// Plays a second turn, five frames of 2,000; all that was heard once they were.
async fn next_turn(sink: &mut Box<dyn Sink>, peer: &mut impl Peer) -> Vec<i16> {
    let frame = samples_of_a_frame(&**sink);
    let second = chunk_of(&**sink, &vec![2_000; frame]);
    for _ in 0..5 {
        let played = sink.play(TurnNumber(2), &second);
        assert_eq!(played, Ok(()), "the next turn");
        sleep(FRAME).await;
    }
    until(peer, |heard| {
        heard.iter().filter(|sample| **sample == 2_000).count() >= frame * 5
    })
    .await
}

/// Plays so many frames of that value at the pace of speech; how many were taken.
async fn play_for(sink: &mut Box<dyn Sink>, frames: usize, value: i16) -> usize {
    let pcm = vec![value; samples_of_a_frame(&**sink)];
    let mut taken = 0;
    for _ in 0..frames {
        let played = sink.play(TurnNumber(1), &chunk_of(&**sink, &pcm));
        taken += usize::from(played.is_ok());
        sleep(FRAME).await;
    }
    taken
}

/// A peer that does not keep up is told by `Full`, and nothing grows (P23).
pub async fn never_blocks(rig: &impl Rig) {
    let (mut transport, _peer) = rig.connect(Vec::new()).await;
    let sink = &mut transport.sink;
    let chunk = vec![1_000; samples_of_a_frame(&**sink)];
    let chunk = chunk_of(&**sink, &chunk);
    let began = Instant::now();
    let offers = (0..1_000).map(|_| sink.play(TurnNumber::FIRST, &chunk));
    let taken = offers.flatten().count();
    assert!(began.elapsed() < Duration::from_secs(1), "it blocks");
    let most = LONGEST_LEAD.as_millis() / FRAME.as_millis() + 1;
    assert!((1..=most as usize).contains(&taken), "took {taken} frames");
    assert_eq!(sink.play(TurnNumber::FIRST, &chunk), Err(SinkError::Full));
}

/// A user who hangs up ends the source, and nothing is played to nobody.
pub async fn hangs_up(rig: &impl Rig) {
    let (mut transport, mut peer) = rig.connect(Vec::new()).await;
    peer.hang_up().await;
    let ends = async { while transport.source.next().await.is_some() {} };
    timeout(PATIENCE, ends).await.expect("the source ends");
    let sink = &mut transport.sink;
    let chunk = vec![1_000; samples_of_a_frame(&**sink)];
    let played = sink.play(TurnNumber::FIRST, &chunk_of(&**sink, &chunk));
    assert_eq!(played, Err(SinkError::Closed));
}

/// Samples none of which is zero, and which tell their places.
pub fn tone(length: usize) -> Vec<i16> {
    (1..=9_973).cycle().take(length).collect()
}

fn samples_of_a_frame(sink: &dyn Sink) -> usize {
    sink.sample_rate().samples_in(FRAME) as usize
}

fn chunk_of(sink: &dyn Sink, pcm: &[i16]) -> AudioChunk {
    AudioChunk::pcm16(sink.sample_rate(), to_bytes(pcm))
}

/// So many samples of what comes in; silence left out.
async fn listen(source: &mut (impl Stream<Item = Ingress> + Unpin), most: usize) -> Vec<i16> {
    let mut heard = Vec::new();
    let all = async {
        while heard.len() < most {
            let pcm: Bytes = match source.next().await {
                Some(Ingress::Audio(pcm)) => pcm,
                Some(Ingress::Frame(frame)) => frame.pcm,
                Some(_something_else) => continue,
                None => break,
            };
            assert_eq!(pcm.len() % 2, 0, "half a sample came in");
            heard.extend(samples(&pcm).filter(|sample| *sample != 0));
        }
    };
    let _in_time = timeout(PATIENCE, all).await;
    heard
}

/// Somebody has to take what comes in.
fn drain(mut source: crate::Source) -> impl Drop {
    struct Draining(tokio::task::JoinHandle<()>);
    impl Drop for Draining {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    Draining(tokio::spawn(async move {
        while source.next().await.is_some() {}
    }))
}

/// What was heard once it is enough, or when it is not waited for any longer; silence left out.
async fn until(peer: &mut impl Peer, enough: impl Fn(&[i16]) -> bool) -> Vec<i16> {
    let began = Instant::now();
    loop {
        let mut heard = peer.heard().await;
        heard.retain(|sample| *sample != 0);
        if enough(&heard) || began.elapsed() > PATIENCE {
            // What should not come would come now.
            sleep(FRAME * 3).await;
            let mut heard = peer.heard().await;
            heard.retain(|sample| *sample != 0);
            return heard;
        }
        sleep(FRAME).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loopback::{self, Line, Script, Start, Utterance};

    struct Loopback;

    struct Listener {
        line: Line,
        heard: Vec<i16>,
    }

    impl Rig for Loopback {
        type Peer = Listener;

        async fn connect(&self, says: Vec<i16>) -> (Transport, Listener) {
            let utterance = Utterance {
                audio: says,
                start: Start::At(Duration::ZERO),
            };
            let (transport, line) = loopback::call(Script {
                utterances: vec![utterance],
                hang_up_after: Duration::from_mins(1),
                reply_timeout: Duration::from_mins(1),
                ..Script::default()
            })
            .expect("the rates can be converted");
            let heard = Vec::new();
            (transport, Listener { line, heard })
        }
    }

    impl Peer for Listener {
        async fn heard(&mut self) -> Vec<i16> {
            self.heard.extend(self.line.take_recorded().agent);
            self.heard.clone()
        }

        async fn hang_up(&mut self) {
            self.line.hang_up();
        }

        // It has no wire.
        async fn freeze(&mut self) {}

        async fn thaw(&mut self) {}
    }

    crate::transport_tests! {
        /// F-086, P4, P5, P23
        #[tokio::test(start_paused = true)]
        mod loopback_line = Loopback;
    }
}
