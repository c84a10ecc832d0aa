//! A connection that a test can break: bytes pass, come late, get lost on one way, or nobody is there.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

/// How much is kept of each way of a connection that is silent; then its sender waits.
const MAX_KEPT: usize = 256 * 1024;

/// What becomes of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weather {
    /// They pass.
    #[default]
    Fair,
    /// They pass, each piece so much later.
    Slow(Duration),
    /// What the server answers is lost. A connection that lost something ends when the weather changes.
    AnswersLost,
    /// What the client asks is lost.
    RequestsLost,
    /// What the client asks is kept, and passes as soon as the weather changes.
    RequestsLate,
    /// Nothing passes and nobody is told, newcomers neither; what was sent passes when the weather changes.
    Silent,
    /// Every connection is closed, and no new one is taken.
    Cut,
}

/// A way to a server that runs over us.
pub struct Link {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    task: JoinHandle<()>,
}

impl Link {
    /// Opens a way to `server`.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (weather, forecast) = watch::channel(Weather::default());
        Self {
            address,
            weather,
            task: tokio::spawn(accept(listener, server, forecast)),
        }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what becomes of bytes, of connections that are open too.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, forecast: watch::Receiver<Weather>) {
    // Ends with the task, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { return };
                if *forecast.borrow() != Weather::Cut {
                    connections.spawn(carry(client, server, forecast.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection to its end.
pub(crate) async fn carry(
    client: TcpStream,
    server: SocketAddr,
    mut forecast: watch::Receiver<Weather>,
) {
    let is_heard = |weather: &Weather| *weather != Weather::Silent;
    if forecast.wait_for(is_heard).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    for stream in [&client, &server] {
        let _only_slower = stream.set_nodelay(true);
    }
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    // Either end closes both.
    tokio::select! {
        () = pump(client_in, server_out, Way::There, forecast.clone()) => {}
        () = pump(server_in, client_out, Way::Back, forecast) => {}
    }
}

#[derive(Clone, Copy)]
enum Way {
    There,
    Back,
}

enum Then {
    Pass,
    PassAfter(Duration),
    Keep,
    Lose,
    End,
}

fn then(weather: Weather, way: Way) -> Then {
    match (weather, way) {
        (Weather::Cut, Way::There | Way::Back) => Then::End,
        (Weather::AnswersLost, Way::Back) | (Weather::RequestsLost, Way::There) => Then::Lose,
        (Weather::RequestsLate, Way::There) | (Weather::Silent, Way::There | Way::Back) => {
            Then::Keep
        }
        (Weather::Slow(by), Way::There | Way::Back) => Then::PassAfter(by),
        (Weather::Fair, Way::There | Way::Back)
        | (Weather::AnswersLost, Way::There)
        | (Weather::RequestsLost | Weather::RequestsLate, Way::Back) => Then::Pass,
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    way: Way,
    mut forecast: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut kept = Vec::new();
    let mut has_lost = false;
    let mut is_open = true;
    loop {
        let weather = *forecast.borrow_and_update();
        match then(weather, way) {
            Then::End => return,
            // A stream with a hole in it is of no use to anybody.
            Then::Pass | Then::PassAfter(_) if has_lost => return,
            Then::Pass | Then::PassAfter(_) => {
                if to.write_all(&kept).await.is_err() {
                    return;
                }
                kept.clear();
                if !is_open {
                    return;
                }
            }
            Then::Keep | Then::Lose => {}
        }
        tokio::select! {
            changed = forecast.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            read = from.read(&mut buffer), if is_open && kept.len() < MAX_KEPT => {
                let count = read.unwrap_or(0);
                let bytes = &buffer[..count];
                match then(weather, way) {
                    Then::End => return,
                    // What was kept still comes, even if nobody waits for the answer any more.
                    Then::Keep if count == 0 => is_open = false,
                    Then::Pass | Then::PassAfter(_) | Then::Lose if count == 0 => return,
                    Then::PassAfter(by) => {
                        sleep(by).await;
                        if to.write_all(bytes).await.is_err() {
                            return;
                        }
                    }
                    Then::Pass => {
                        if to.write_all(bytes).await.is_err() {
                            return;
                        }
                    }
                    Then::Keep => kept.extend_from_slice(bytes),
                    Then::Lose => has_lost = true,
                }
            }
        }
    }
}
