//! Messages on the wire.

use axum::extract::ws::Message;
use bytes::Bytes;
use rspp_proto::TurnNumber;

use crate::{
    outbox::Item,
    protocol::{AudioData, ClientMessage, OfTurn, ServerMessage},
};

/// How a socket's messages are written: what its subprotocol says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// `rspp.v1.json`: JSON in text messages, audio in binary ones.
    #[default]
    Json,
    /// `rspp.v1.msgpack`: MessagePack in binary messages, audio too.
    Msgpack,
}

/// What came in.
#[derive(Debug, PartialEq)]
pub(crate) enum Incoming {
    Audio(Bytes),
    Message(Box<ClientMessage>),
}

impl Encoding {
    pub(crate) const ALL: [Self; 2] = [Self::Json, Self::Msgpack];

    /// The subprotocol's name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Json => "rspp.v1.json",
            Self::Msgpack => "rspp.v1.msgpack",
        }
    }

    /// The first of those that a client offers which is known here; JSON if it offers none.
    pub(crate) fn negotiate<'a>(offers: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut offers = offers.into_iter().peekable();
        if offers.peek().is_none() {
            return Some(Self::default());
        }
        offers.find_map(|offer| Self::ALL.into_iter().find(|it| it.as_str() == offer))
    }

    pub(crate) fn decode(self, message: Wire) -> Result<Incoming, String> {
        let decoded = match (self, message) {
            (Self::Json, Wire::Binary(pcm)) => return Ok(Incoming::Audio(pcm)),
            (Self::Json, Wire::Text(text)) => {
                serde_json::from_str(&text).map_err(|error| error.to_string())?
            }
            (Self::Msgpack, Wire::Binary(bytes)) => {
                rmp_serde::from_slice(&bytes).map_err(|error| error.to_string())?
            }
            (Self::Msgpack, Wire::Text(_)) => {
                return Err("rspp.v1.msgpack has binary messages only".to_owned());
            }
        };
        match (self, decoded) {
            (Self::Json, ClientMessage::Audio(_)) => {
                Err("rspp.v1.json has audio in binary messages".to_owned())
            }
            (Self::Msgpack, ClientMessage::Audio(AudioData { data })) => Ok(Incoming::Audio(data)),
            (_, message) => Ok(Incoming::Message(Box::new(message))),
        }
    }

    pub(crate) fn encode(self, item: &Item) -> Message {
        let of = |turn: TurnNumber| OfTurn { turn };
        match item {
            Item::Frame { pcm, .. } => match self {
                Self::Json => Message::Binary(pcm.clone()),
                Self::Msgpack => {
                    let data = pcm.clone();
                    self.message(&ServerMessage::Audio(AudioData { data }))
                }
            },
            Item::Start(turn) => self.message(&ServerMessage::AudioStart(of(*turn))),
            Item::End(turn) => self.message(&ServerMessage::AudioEnd(of(*turn))),
            Item::Clear(turn) => self.message(&ServerMessage::Clear(of(*turn))),
            Item::Message(message) => self.message(message),
        }
    }

    pub(crate) fn message(self, message: &ServerMessage) -> Message {
        const PLAIN: &str = "messages are plain data";
        match self {
            Self::Json => {
                let text = serde_json::to_string(message).expect(PLAIN);
                Message::Text(text.into())
            }
            Self::Msgpack => {
                let bytes = rmp_serde::to_vec_named(message).expect(PLAIN);
                Message::Binary(bytes.into())
            }
        }
    }
}

/// What a socket's message holds.
#[derive(Debug)]
pub(crate) enum Wire {
    Text(axum::extract::ws::Utf8Bytes),
    Binary(Bytes),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Dtmf, Hello, Keyed, Played, Typed};

    /// F-030: the client's order decides among what both know.
    #[test]
    fn the_first_known_offer_is_taken() {
        let (json, msgpack) = (Some(Encoding::Json), Some(Encoding::Msgpack));
        for (offers, taken) in [
            (&[][..], json),
            (&["rspp.v1.msgpack", "rspp.v1.json"], msgpack),
            (&["rspp.v2.json", "rspp.v1.json"], json),
            (&["chat"], None),
        ] {
            assert_eq!(
                Encoding::negotiate(offers.iter().copied()),
                taken,
                "{offers:?}"
            );
        }
    }

    /// F-030: both encodings carry the same messages.
    #[test]
    fn every_message_comes_through_both_encodings() {
        let key = Some(rspp_proto::IdempotencyKey::new("k").unwrap());
        let messages = [
            ClientMessage::Hello(Hello::default()),
            ClientMessage::Text(Typed {
                text: "hello".to_owned(),
                key: key.clone(),
            }),
            ClientMessage::Cancel(Keyed::default()),
            ClientMessage::EndOfUtterance(Keyed { key }),
            ClientMessage::Dtmf(Dtmf {
                digit: '5',
                key: None,
            }),
            ClientMessage::Played(Played {
                turn: TurnNumber::FIRST,
                ms: 140,
            }),
        ];
        for message in messages {
            let text = serde_json::to_string(&message).unwrap();
            let bytes = rmp_serde::to_vec_named(&message).unwrap();
            let came = Incoming::Message(Box::new(message));
            assert_eq!(Encoding::Json.decode(Wire::Text(text.into())), Ok(came));
            let came_too = Encoding::Msgpack.decode(Wire::Binary(bytes.into()));
            assert!(came_too.is_ok(), "{came_too:?}");
        }
        let pcm = Bytes::from_static(&[1, 0, 2, 0]);
        let audio = ClientMessage::Audio(AudioData { data: pcm.clone() });
        let bytes = rmp_serde::to_vec_named(&audio).unwrap();
        for (encoding, bytes) in [
            (Encoding::Msgpack, Bytes::from(bytes)),
            (Encoding::Json, pcm.clone()),
        ] {
            let came = encoding.decode(Wire::Binary(bytes));
            assert_eq!(came, Ok(Incoming::Audio(pcm.clone())));
        }
    }

    /// NF-013: what is wrong is said, whatever it is.
    #[test]
    fn what_is_not_a_message_is_refused_with_its_fault() {
        for (text, says) in [
            ("", "EOF while parsing"),
            ("[]", "type"),
            (r#"{"type":"text"}"#, "missing field `text`"),
            (r#"{"type":"text","text":7}"#, "invalid type: integer `7`"),
            (r#"{"type":"sing"}"#, "unknown variant `sing`"),
            (r#"{"type":"cancel","why":"x"}"#, "unknown field `why`"),
            (
                r#"{"type":"text","text":"a","key":" "}"#,
                "must not be blank",
            ),
            (r#"{"type":"audio","data":[1]}"#, "binary messages"),
        ] {
            let error = Encoding::Json.decode(Wire::Text(text.into())).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        let noise = Bytes::from_static(&[0xc1, 0xff, 0x00]);
        assert!(Encoding::Msgpack.decode(Wire::Binary(noise)).is_err());
        let text = Encoding::Msgpack.decode(Wire::Text("{}".into()));
        assert!(text.unwrap_err().contains("binary messages only"));
    }
}
