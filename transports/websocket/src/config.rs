//! What a server of WebSockets allows.

use std::{path::PathBuf, time::Duration};

use rspp_transport_api::Guard;

use crate::realtime::Realtime;

/// How a server serves.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Who may connect. Nobody, unless it is said.
    pub guard: Guard,
    /// From which pages a browser may connect.
    pub origins: Origins,
    /// How much of everything.
    pub limits: Limits,
    /// How clients of the OpenAI Realtime protocol are served.
    pub realtime: Realtime,
    /// Where calls are recorded as they cross the wire, if they are: a stereo WAV file each, left the user,
    /// right the agent, with every gap that whoever plays what comes would hear.
    pub recordings: Option<PathBuf>,
}

/// From which pages a browser may connect. Programs name no origin, and are not asked for one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    /// From those that this server serves itself.
    #[default]
    Own,
    /// From these too, such as `https://app.example.com`.
    Also(Vec<String>),
    /// From any.
    Any,
}

/// How much of everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Sockets that are open at once.
    pub sockets: usize,
    /// The longest message that is taken, in bytes.
    pub message_bytes: usize,
    /// The longest text that a user may type, in bytes.
    pub text_bytes: usize,
    /// How long a client may take to say `hello`.
    pub hello: Duration,
    /// How often a client is pinged.
    pub ping: Duration,
    /// A client that has not answered for so long takes no more audio.
    pub stalled: Duration,
    /// A client of which nothing is heard for so long is gone; it may come back.
    pub dead: Duration,
    /// Audio that waits for the socket, at most 200 ms.
    pub lead: Duration,
    /// Messages that may come at once, and in each second.
    pub messages: (u32, u32),
    /// Audio that may come at once, in seconds; and in each second.
    pub audio: (f32, f32),
    /// Messages on one socket that may be wrong.
    pub errors: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sockets: 4_096,
            message_bytes: 64 << 10,
            text_bytes: 8 << 10,
            hello: Duration::from_secs(5),
            ping: Duration::from_secs(1),
            stalled: Duration::from_secs(2),
            dead: Duration::from_secs(10),
            lead: Duration::from_millis(200),
            messages: (200, 50),
            audio: (10.0, 1.5),
            errors: 20,
        }
    }
}
