//! People who talk while everything breaks: each says its name anew and asks for it, and notices when the
//! agent has forgotten what it had answered to.

use std::{sync::Arc, time::Duration};

use rspp_controlplane_api::{Client as PlaneClient, ControlError};
use rspp_proto::SessionId;
use rspp_tests::sim::Dice;
use rspp_transport_api::Elsewhere;
use rspp_websocket::{
    protocol::{ClientMessage, Hello, Resume, ServerMessage},
    testing::{Client, typed},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::processes::Fleet;

/// How long a caller waits for anything, before it takes the line for dead.
const WAITS: Duration = Duration::from_secs(10);
/// How long a handshake may take.
const CONNECTS: Duration = Duration::from_secs(2);
/// How long a runtime keeps the session of somebody who is away, less what a clock may be read late by.
const KEPT_FOR: Duration = Duration::from_secs(29);
/// How long somebody may be without a runtime once all is well again.
const BACK_WITHIN: Duration = Duration::from_mins(1);

/// What a caller has seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Diary {
    pub(crate) committed: u32,
    pub(crate) aborted: u32,
    /// Turns of which it never heard how they ended.
    pub(crate) unheard: u32,
    /// How often it was told where its session goes on.
    pub(crate) sent_on: u32,
    /// How often it came back to the runtime it had, and to whichever it was given.
    pub(crate) resumed: u32,
    pub(crate) rerouted: u32,
    /// How often its session was over, as it had been away for too long.
    pub(crate) missed: u32,
    /// The longest that it was without a runtime.
    pub(crate) longest: Duration,
}

impl std::ops::AddAssign for Diary {
    fn add_assign(&mut self, other: Self) {
        self.committed += other.committed;
        self.aborted += other.aborted;
        self.unheard += other.unheard;
        self.sent_on += other.sent_on;
        self.resumed += other.resumed;
        self.rerouted += other.rerouted;
        self.missed += other.missed;
        self.longest = self.longest.max(other.longest);
    }
}

struct Caller {
    operator: Arc<PlaneClient>,
    session: SessionId,
    dice: Dice,
    stop: watch::Receiver<bool>,
    diary: Diary,
    names: u64,
    /// What the agent may answer when it is asked for the name: what it answered to last, and all that was
    /// said since without a word of how that ended.
    possible: Vec<Option<String>>,
    line: Option<Line>,
    /// Where a session may still wait for it, and what to say there.
    left: Option<(String, Resume)>,
}

/// People who talk until they are told to stop.
pub(crate) struct Party {
    callers: Vec<JoinHandle<Result<Diary, String>>>,
    stop: watch::Sender<bool>,
}

impl Party {
    /// So many begin, as `caller-0` and so on.
    pub(crate) fn begin(operator: &Arc<PlaneClient>, callers: u64, dice: &mut Dice) -> Self {
        let (stop, stopped) = watch::channel(false);
        let begin = |number| {
            let session = SessionId::new(format!("caller-{number}")).unwrap();
            let dice = Dice::new(dice.roll());
            let caller = Caller::new(Arc::clone(operator), session, dice, stopped.clone());
            tokio::spawn(caller.talk())
        };
        Self {
            callers: (0..callers).map(begin).collect(),
            stop,
        }
    }

    /// What all of them have seen, once all is well again; a promise that was broken is the error.
    pub(crate) async fn end(self) -> Result<Diary, String> {
        self.stop.send_replace(true);
        let mut sum = Diary::default();
        for caller in self.callers {
            sum += caller.await.expect("it does not panic")?;
        }
        Ok(sum)
    }
}

/// A connection.
struct Line {
    client: Client,
    url: String,
}

/// How waiting for a reply ended.
enum Reply {
    Committed(String),
    Aborted,
    /// The line is dead, or the session goes on elsewhere.
    Gone(Option<Elsewhere>),
}

impl Caller {
    fn new(
        operator: Arc<PlaneClient>,
        session: SessionId,
        dice: Dice,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            operator,
            session,
            dice,
            stop,
            diary: Diary::default(),
            names: 0,
            possible: vec![None],
            line: None,
            left: None,
        }
    }

    /// Talks until it is told to stop and all is well again; a promise that was broken is the error.
    async fn talk(mut self) -> Result<Diary, String> {
        while !*self.stop.borrow() {
            self.connect(None).await?;
            if self.dice.chance(60) {
                self.gives_a_name().await?;
            } else {
                self.asks_for_it().await?;
            }
        }
        let until = Instant::now() + BACK_WITHIN;
        loop {
            self.connect(Some(until)).await?;
            if self.asks_for_it().await? {
                return Ok(self.diary);
            }
            if Instant::now() > until {
                return Err(format!("{}: no answer at the end", self.session));
            }
        }
    }

    async fn gives_a_name(&mut self) -> Result<(), String> {
        self.names += 1;
        let name = name(self.names);
        self.possible.push(Some(name.clone()));
        if self.says(&format!("My name is {name}.")).await?.is_some() {
            self.possible = vec![Some(name)];
        }
        Ok(())
    }

    /// Whether it was answered.
    async fn asks_for_it(&mut self) -> Result<bool, String> {
        let Some(heard) = self.says("What is my name?").await? else {
            return Ok(false);
        };
        let is_it = |name: &&Option<String>| match name {
            Some(name) => heard.contains(name.as_str()),
            None => heard.contains("not told me"),
        };
        let Some(known) = self.possible.iter().rev().find(is_it) else {
            return Err(format!(
                "{}: it heard {heard:?}, and can only be {:?}",
                self.session, self.possible
            ));
        };
        self.possible = vec![known.clone()];
        Ok(true)
    }

    /// What was heard in reply, if the turn was committed and this caller was told so.
    async fn says(&mut self, text: &str) -> Result<Option<String>, String> {
        let Some(line) = &mut self.line else {
            return Ok(None);
        };
        let _it_breaks_where_it_is_read = line.send(&typed(text)).await;
        loop {
            let Some(line) = &mut self.line else {
                self.diary.unheard += 1;
                return Ok(None);
            };
            match line.reply().await {
                Reply::Committed(heard) => {
                    self.diary.committed += 1;
                    return Ok(Some(heard));
                }
                Reply::Aborted => {
                    self.diary.aborted += 1;
                    return Ok(None);
                }
                Reply::Gone(Some(to)) => {
                    self.diary.unheard += 1;
                    self.diary.sent_on += 1;
                    let began = Instant::now();
                    let token = to.token.unwrap_or_default();
                    self.line = self.follow(&to.url, &token).await?;
                    self.without(began);
                    return Ok(None);
                }
                // It may be there still: comes back, and hears the rest.
                Reply::Gone(None) => {
                    let gone = self.line.take().expect("it was read from");
                    let began = Instant::now();
                    self.left = Some((gone.url, gone.client.resume()));
                    self.come_back().await;
                    if self.line.is_some() {
                        self.without(began);
                    }
                }
            }
        }
    }

    /// Comes back to the runtime that it was at, where the session waits for a while.
    async fn come_back(&mut self) {
        if let Some((url, resume)) = &self.left {
            self.line = Line::resume(url, resume).await;
        }
        if self.line.is_some() {
            self.diary.resumed += 1;
        }
    }

    fn without(&mut self, since: Instant) {
        self.diary.longest = self.diary.longest.max(since.elapsed());
    }

    /// Asks where the session runs until somebody lets it in.
    async fn connect(&mut self, until: Option<Instant>) -> Result<(), String> {
        let began = Instant::now();
        let mut last = String::new();
        while self.line.is_none() {
            if until.is_some_and(|until| Instant::now() > until) {
                return Err(format!("{}: nobody takes it: {last}", self.session));
            }
            if until.is_none() && *self.stop.borrow() {
                return Ok(());
            }
            match Fleet::route_once(&self.operator, &self.session).await {
                Ok(route) => {
                    last = format!("{} does not let it in", route.runtime);
                    let (url, token) = (route.endpoint.url, route.token.token);
                    self.line = self.follow(&url, &token).await?;
                    if self.line.is_none() && self.left.as_ref().is_some_and(|it| it.0 == url) {
                        self.come_back().await;
                    }
                }
                Err(ControlError::Ended) if began.elapsed() > KEPT_FOR => self.begin_anew(),
                Err(ControlError::Ended) => {
                    let after = began.elapsed();
                    return Err(format!("{}: has ended after {after:?}", self.session));
                }
                Err(error) => last = error.to_string(),
            }
            if self.line.is_none() {
                sleep(Duration::from_millis(self.dice.within(50..250))).await;
            } else {
                self.diary.rerouted += 1;
            }
        }
        self.without(began);
        Ok(())
    }

    /// Another conversation, with an agent that knows nothing of the last one.
    fn begin_anew(&mut self) {
        self.diary.missed += 1;
        let name = format!("{}-again", self.session);
        self.session = SessionId::new(name).expect("it grows a few times at most");
        self.possible = vec![None];
        self.left = None;
    }

    /// Connects to an address, and to where that says to go.
    async fn follow(&mut self, url: &str, token: &str) -> Result<Option<Line>, String> {
        let (mut url, mut token) = (url.to_owned(), token.to_owned());
        for _ in 0..3 {
            let Some(mut line) = Line::open(&url, &format!("rspp.token.{token}")).await else {
                return Ok(None);
            };
            let hello = Hello {
                events: true,
                ..Hello::default()
            };
            match line.hello(hello).await {
                Some(ServerMessage::Ready(ready)) => {
                    if ready.session != self.session {
                        return Err(format!("{}: became {}", self.session, ready.session));
                    }
                    return Ok(Some(line));
                }
                Some(ServerMessage::Error(trouble)) => match trouble.elsewhere {
                    Some(to) => {
                        self.diary.sent_on += 1;
                        url = to.url;
                        token = to.token.unwrap_or(token);
                    }
                    None => return Ok(None),
                },
                Some(_) | None => return Ok(None),
            }
        }
        Ok(None)
    }
}

impl Line {
    async fn open(url: &str, shows: &str) -> Option<Self> {
        let at = url.strip_prefix("ws://")?.split('/').next()?.parse().ok()?;
        let protocols = ["rspp.v1.json", shows];
        let connecting = Client::connect(at, &protocols, &[]);
        let client = timeout(CONNECTS, connecting).await.ok()?.ok()?;
        let url = url.to_owned();
        Some(Self { client, url })
    }

    async fn hello(&mut self, hello: Hello) -> Option<ServerMessage> {
        self.send(&ClientMessage::Hello(hello)).await.ok()?;
        let first = timeout(WAITS, self.client.next()).await.ok()??;
        if let ServerMessage::Ready(ready) = &first {
            self.client.received = 0;
            self.client.ready = Some((**ready).clone());
        }
        Some(first)
    }

    async fn resume(url: &str, resume: &Resume) -> Option<Self> {
        let shows = format!("rspp.resume.{}", resume.key);
        let mut line = Self::open(url, &shows).await?;
        let hello = Hello {
            resume: Some(resume.clone()),
            ..Hello::default()
        };
        let first = line.hello(hello).await;
        matches!(first, Some(ServerMessage::Ready(_))).then_some(line)
    }

    async fn send(&mut self, message: &ClientMessage) -> Result<(), ()> {
        use futures::SinkExt as _;
        let text = serde_json::to_string(message).expect("plain data");
        let sending = self.client.socket.send(text.into());
        let sent = timeout(CONNECTS, sending).await.map_err(|_| ())?;
        sent.map_err(|_| ())
    }

    async fn reply(&mut self) -> Reply {
        loop {
            let Ok(Some(message)) = timeout(WAITS, self.client.next()).await else {
                return Reply::Gone(None);
            };
            match message {
                ServerMessage::Turn(turn) if turn.outcome == "commit" => {
                    return Reply::Committed(turn.heard_text.clone());
                }
                ServerMessage::Turn(_) => return Reply::Aborted,
                ServerMessage::End(ended) => return Reply::Gone(ended.elsewhere),
                ServerMessage::Error(trouble) if trouble.fatal => {
                    return Reply::Gone(trouble.elsewhere);
                }
                _other_messages => {}
            }
        }
    }
}

/// A word of its own for each number.
fn name(number: u64) -> String {
    let mut name = String::from("Q");
    let mut left = number;
    for vowel in ["a", "o", "i", "u"] {
        name.push_str(vowel);
        name.push(char::from(b"bdfgklmnprstvz"[(left % 14) as usize]));
        left /= 14;
    }
    name + "a"
}
