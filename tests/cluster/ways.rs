//! Ways between processes that can be made bad: a port of their own, forwarded to another.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

/// How it goes on a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// All of it, at once.
    Flows,
    /// All of it, each piece so much later.
    Slow(Duration),
    /// What is asked comes through, what is answered does not: the connection is of no use any more, and
    /// nobody is told until it is well again. Whoever asked asks again, for what was done.
    AnswersLost,
    /// Nothing comes through, nobody is told, and what was sent meanwhile comes late.
    Cut,
}

/// A way.
pub(crate) struct Way {
    pub(crate) at: SocketAddr,
    traffic: watch::Sender<Traffic>,
    accepts: JoinHandle<()>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

impl Way {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (traffic, seen) = watch::channel(Traffic::Flows);
        let accepts = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((near, _)) => {
                        tokio::spawn(carry(near, target, seen.clone()));
                    }
                    Err(_too_many) => sleep(Duration::from_millis(10)).await,
                }
            }
        });
        Self {
            at,
            traffic,
            accepts,
        }
    }

    pub(crate) fn set(&self, traffic: Traffic) {
        self.traffic.send_replace(traffic);
    }
}

async fn carry(near: TcpStream, target: SocketAddr, mut seen: watch::Receiver<Traffic>) {
    if open(&mut seen).await.is_none() {
        return;
    }
    let Ok(far) = TcpStream::connect(target).await else {
        return;
    };
    for stream in [&near, &far] {
        let _only_slower = stream.set_nodelay(true);
    }
    let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
    // Either end closes both, as a process that is gone does.
    tokio::select! {
        () = pump(from_near, to_far, seen.clone(), false) => {}
        () = pump(from_far, to_near, seen, true) => {}
    }
}

/// Waits while the way is cut; `None` once there is no way any more.
async fn open(seen: &mut watch::Receiver<Traffic>) -> Option<Traffic> {
    let traffic = seen.wait_for(|traffic| *traffic != Traffic::Cut).await;
    traffic.ok().map(|traffic| *traffic)
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut seen: watch::Receiver<Traffic>,
    answers: bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        match open(&mut seen).await {
            None => return,
            Some(Traffic::AnswersLost) if answers => {
                // A stream with a hole in it is of no use to anybody.
                let is_well = |traffic: &Traffic| *traffic == Traffic::Flows;
                let _gone = seen.wait_for(is_well).await.is_err();
                return;
            }
            Some(Traffic::Slow(by)) => sleep(by).await,
            Some(Traffic::Flows | Traffic::AnswersLost | Traffic::Cut) => {}
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
