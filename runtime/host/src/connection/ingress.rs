//! What comes in beside plain audio: events under an epoch and a key, records of the Event ABI, frames
//! that say where they belong. What is refused changes nothing, and is told.

use rspp_kernel::authority::Checkpoint;
use rspp_proto::{
    Epoch, Extension, IdempotencyKey, Monotonic, Payload, SampleIndex, Speaker,
    abi::{DecodeError, Decoded, Encoding, EventRecord, MediaTime, Record, Wire},
};
use rspp_transport_api::{Frame, Ingress, Stamped};

use super::{
    Line,
    media::{Placed, Verdict},
};
use crate::{
    event::{Event, Stamp},
    session::{Foreign, TransportEvent, measurement},
};

impl Line {
    pub(super) fn come_in(&mut self, ingress: Ingress) {
        match ingress {
            Ingress::Audio(pcm) => self.hear(pcm),
            Ingress::Frame(frame) => self.take_frame(frame),
            Ingress::EndOfUtterance => self.tell(TransportEvent::EndOfUtterance),
            Ingress::Cancel => self.tell(TransportEvent::Cancel),
            Ingress::Text(text) => self.tell(TransportEvent::Text(text)),
            Ingress::Stamped(stamped) => self.take_stamped(*stamped),
            Ingress::Record { encoding, bytes } => self.take_record(encoding, &bytes, None),
            Ingress::Link(link) => self.relink(link),
            Ingress::Extension(extension) => self.take_extension(extension, None),
            Ingress::ToolResult(result) => self.tell(TransportEvent::ToolResult(result)),
            Ingress::Played(receipt) => {
                self.attachment.line.receipted(receipt);
                // What a turn that is over left behind is the session's to correct.
                if !self.attachment.fence.is_live(receipt.turn) {
                    self.tell(TransportEvent::Played(receipt));
                }
            }
        }
    }

    fn take_stamped(&mut self, stamped: Stamped) {
        let Stamped { epoch, key, event } = stamped;
        if !self.admits(epoch) {
            return;
        }
        let event = match event {
            Ingress::EndOfUtterance => TransportEvent::EndOfUtterance,
            Ingress::Cancel => TransportEvent::Cancel,
            Ingress::Text(text) => TransportEvent::Text(text),
            Ingress::ToolResult(result) => TransportEvent::ToolResult(result),
            Ingress::Record { encoding, bytes } => return self.take_record(encoding, &bytes, key),
            Ingress::Extension(extension) => return self.take_extension(extension, key),
            of_the_link @ (Ingress::Audio(_)
            | Ingress::Frame(_)
            | Ingress::Link(_)
            | Ingress::Played(_)) => {
                return self.come_in(of_the_link);
            }
            Ingress::Stamped(_) => return self.refuse("an event is stamped once"),
        };
        self.tell_keyed(key, event);
    }

    fn tell_keyed(&self, key: Option<IdempotencyKey>, event: TransportEvent) {
        match key {
            Some(key) => {
                let event = Box::new(event);
                self.tell(TransportEvent::Keyed { key, event });
            }
            None => self.tell(event),
        }
    }

    /// Whether what came in speaks under the session's epoch. What says nothing does (AE-004).
    fn admits(&self, epoch: Option<Epoch>) -> bool {
        let Some(epoch) = epoch else { return true };
        match self.attachment.fence.check(Checkpoint::Ingress, epoch) {
            Ok(()) => true,
            Err(fault) => {
                self.tell(TransportEvent::Stale(fault));
                false
            }
        }
    }

    fn refuse(&self, message: impl Into<String>) {
        self.tell(TransportEvent::Malformed(message.into()));
    }

    // --- records -----------------------------------------------------------------------------

    fn take_record(&mut self, encoding: Encoding, bytes: &[u8], key: Option<IdempotencyKey>) {
        let action = self.attachment.policy.unknown_event_action;
        let wire = Wire::new(encoding).with_unknown_events(action);
        match wire.decode(bytes) {
            Ok(Decoded::Record(record)) => match *record {
                Record::Event(event) => self.take_event(event, key),
                Record::Signal(signal) => {
                    let signal = signal.signal;
                    self.refuse(format!("signal: `{signal}` is not a client's to say"));
                }
            },
            Ok(Decoded::PassThrough { audit, raw }) => {
                if self.admits(audit.envelope.authority_epoch) {
                    let raw = Some((encoding, raw));
                    let foreign = Box::new(Foreign { audit: *audit, raw });
                    self.tell(TransportEvent::Foreign(foreign));
                }
            }
            Ok(Decoded::Dropped { audit }) => self.tell_refused(*audit),
            Err(error) => {
                self.refuse(error.to_string());
                if let DecodeError::UnknownType(audit) = error {
                    self.tell_refused(*audit);
                }
            }
        }
    }

    fn tell_refused(&self, audit: rspp_proto::abi::UnknownEvent) {
        let foreign = Box::new(Foreign { audit, raw: None });
        self.tell(TransportEvent::Foreign(foreign));
    }

    fn take_event(&mut self, record: EventRecord, key: Option<IdempotencyKey>) {
        let EventRecord { envelope, payload } = record;
        let ours = &self.attachment.session_id;
        if envelope.session_id != *ours {
            let theirs = &envelope.session_id;
            return self.refuse(format!("session_id: is `{theirs}`, but this is `{ours}`"));
        }
        let position = match envelope.media_time {
            Some(MediaTime::SampleIndex(position)) => Some(position),
            Some(MediaTime::PtsMs(_)) | None => None,
        };
        if let Some(Payload::AudioChunk(chunk)) = payload {
            let wanted = rspp_proto::AudioFormat::pcm16(self.source_rate);
            if chunk.format != wanted {
                return self.refuse("payload.body.format: is not what the transport announced");
            }
            return match (envelope.transport_sequence, position) {
                (Some(sequence), Some(position)) => self.take_frame(Frame {
                    sequence,
                    position,
                    epoch: envelope.authority_epoch,
                    pcm: chunk.data,
                }),
                (Some(_) | None, Some(_) | None) => {
                    if self.admits(envelope.authority_epoch) {
                        self.hear(chunk.data);
                    }
                }
            };
        }
        if !self.admits(envelope.authority_epoch) {
            return;
        }
        let key = key.or(envelope.idempotency_key);
        match payload {
            Some(Payload::Text(text)) if text.speaker == Speaker::User && text.is_final => {
                self.tell_keyed(key, TransportEvent::Text(text.text.to_string()));
            }
            Some(Payload::AudioEnd) => self.tell_keyed(key, TransportEvent::EndOfUtterance),
            Some(payload @ (Payload::Extension(_) | Payload::Metrics(_) | Payload::Debug(_))) => {
                self.pass(payload, position, key);
            }
            Some(
                Payload::Text(_)
                | Payload::TextEnd
                | Payload::Speech(_)
                | Payload::Error(_)
                | Payload::AudioChunk(_),
            )
            | None => self.refuse("payload.type: is not a client's to say"),
        }
    }

    fn take_extension(&mut self, extension: Box<Extension>, key: Option<IdempotencyKey>) {
        if extension.is_namespaced() {
            self.pass(Payload::Extension(extension), None, key);
        } else {
            self.refuse("extension: its name needs a namespace, as `telephony.dtmf` has");
        }
    }

    /// Data that this runtime does not look into: for nodes that asked for it, and for subscribers.
    fn pass(
        &mut self,
        payload: Payload,
        position: Option<SampleIndex>,
        key: Option<IdempotencyKey>,
    ) {
        let Some(epoch) = self.attachment.fence.epoch() else {
            return;
        };
        self.inbound.sequence += 1;
        let stamp = Stamp {
            turn: None,
            epoch,
            sequence: self.inbound.sequence,
            made: self.now(),
            media: position.unwrap_or(SampleIndex(self.inbound.position)),
            segment: 0,
        };
        let event = Event::new(stamp, payload);
        // Handed to nodes by the session, which knows whether it came before under its key.
        self.tell_keyed(key, TransportEvent::Extension(Box::new(event)));
    }

    // --- frames that say where they belong ---------------------------------------------------

    fn take_frame(&mut self, frame: Frame) {
        let Frame {
            sequence,
            position,
            epoch,
            pcm,
        } = frame;
        let second = self.source_rate.hertz() as usize * 2;
        if pcm.is_empty() || pcm.len() % 2 == 1 || pcm.len() > second {
            let bytes = pcm.len();
            return self.refuse(format!(
                "frame: {bytes} bytes are no whole samples of a second"
            ));
        }
        if let Some(epoch) = epoch {
            match self.attachment.fence.check(Checkpoint::Ingress, epoch) {
                Ok(()) => self.refusing = false,
                Err(fault) => {
                    if !std::mem::replace(&mut self.refusing, true) {
                        self.tell(TransportEvent::Stale(fault));
                    }
                    return;
                }
            }
        }
        let now = self.now();
        let (policy, rate) = (self.attachment.policy, self.source_rate);
        let stream = self
            .inbound
            .stream
            .get_or_insert_with(|| Box::new(super::MediaStream::new(&policy, rate)));
        stream.push(now, sequence, position, pcm);
        self.listen_on();
    }

    /// Hears what is next in order, and what has been waited for long enough.
    pub(super) fn listen_on(&mut self) {
        let now = self.now();
        let wall = rspp_proto::WallClock(self.attachment.wall_origin.0 + now.as_millis());
        while let Some(stream) = &mut self.inbound.stream {
            let Some(placed) = stream.pop(now, wall) else {
                let report = stream.report();
                let line = &self.attachment.line;
                *line.media.lock().expect("no code panics while locked") = Some(report);
                return;
            };
            let Placed {
                missing,
                skipped,
                broken,
                mapping,
                pcm,
            } = placed;
            if let Some(verdict) = mapping {
                self.judge(verdict, now);
            }
            if let Some(reason) = broken {
                self.tell(TransportEvent::Discontinuity(reason));
            }
            if missing > 0 {
                self.hear(super::silence(missing * 2));
            }
            self.skip(skipped);
            self.hear(pcm);
        }
    }

    /// Measures how well media time is told, and says when that has become another matter.
    fn judge(&self, verdict: Verdict, now: Monotonic) {
        let Verdict { mapping, is_news } = verdict;
        if is_news {
            self.tell(TransportEvent::Mapping(mapping));
        }
        let attachment = &self.attachment;
        let (Some(meters), Some(epoch)) = (&attachment.meters, attachment.fence.epoch()) else {
            return;
        };
        let measured = meters.mapping(&attachment.ingress_node, mapping.p99_ms);
        let sample = measurement(measured, epoch, now);
        let _unwatched = attachment.telemetry.offer(sample);
    }

    /// Moves on in the user's audio without hearing anything.
    fn skip(&mut self, samples: u64) {
        if samples > 0 {
            self.inbound.framer.clear();
            let time = self.source_rate.duration_of(samples);
            self.inbound.position += super::INGRESS_RATE.samples_in(time);
        }
    }

    /// A new stream of frames begins: the transport had lost its link.
    pub(super) fn restart_stream(&mut self) {
        if let Some(stream) = &mut self.inbound.stream {
            stream.restart();
        }
    }
}
