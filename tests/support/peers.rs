//! The ways that members of a cluster of etcd have to each other, of which each member's can be cut.
//!
//! All peers of a member come in at one address, so who is calling is learnt from whose socket it is.

use std::{
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use rustix::process::Pid;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::link::{Weather, carry};

/// The ways of all members.
#[derive(Debug)]
pub(crate) struct Peers {
    doors: Vec<SocketAddr>,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Who runs each member, as long as somebody does.
    pids: Mutex<Vec<Option<Pid>>>,
    /// How it goes from each member, to each.
    weathers: Vec<Vec<watch::Sender<Weather>>>,
}

impl Peers {
    /// Opens a door before each of these addresses.
    pub(crate) async fn before(members: &[SocketAddr]) -> Self {
        let fair = || members.iter().map(|_| watch::Sender::default()).collect();
        let shared = Arc::new(Shared {
            pids: Mutex::new(vec![None; members.len()]),
            weathers: members.iter().map(|_| fair()).collect(),
        });
        let mut doors = Vec::new();
        let mut tasks = Vec::new();
        for (index, member) in members.iter().enumerate() {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            doors.push(listener.local_addr().expect("it is bound"));
            tasks.push(tokio::spawn(accept(
                listener,
                *member,
                index,
                Arc::clone(&shared),
            )));
        }
        Self {
            doors,
            shared,
            tasks,
        }
    }

    /// Where its peers find a member.
    pub(crate) fn door(&self, index: usize) -> SocketAddr {
        self.doors[index]
    }

    /// Says who runs a member.
    pub(crate) fn is_run_by(&self, index: usize, pid: Pid) {
        self.shared.pids.lock().expect("nobody panics here")[index] = Some(pid);
    }

    /// Changes what becomes of all that a member says to others, and they to it.
    pub(crate) fn set(&self, index: usize, weather: Weather) {
        for (from, ways) in self.shared.weathers.iter().enumerate() {
            for (to, way) in ways.iter().enumerate() {
                if from == index || to == index {
                    way.send_replace(weather);
                }
            }
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn accept(listener: TcpListener, member: SocketAddr, to: usize, shared: Arc<Shared>) {
    // Ends with the task, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, address)) = accepted else { return };
                // Somebody who is gone already has nothing to say.
                if let Some(from) = shared.caller(address) {
                    connections.spawn(carry(client, member, shared.weathers[from][to].subscribe()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

impl Shared {
    /// The member that has the socket at this address.
    fn caller(&self, address: SocketAddr) -> Option<usize> {
        let socket = format!("socket:[{}]", inode(address)?);
        let pids = self.pids.lock().expect("nobody panics here").clone();
        pids.into_iter().position(|pid| {
            let files =
                pid.and_then(|pid| fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).ok());
            let mut files = files.into_iter().flatten().flatten();
            files.any(|it| fs::read_link(it.path()).is_ok_and(|it| it.as_os_str() == &*socket))
        })
    }
}

/// The number of the socket that is bound to an address of IPv4.
fn inode(address: SocketAddr) -> Option<String> {
    let port = format!(":{:04X}", address.port());
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().skip(1).find_map(|line| {
        // The socket's own address, then its peer's; its number is the tenth.
        let mut fields = line.split_whitespace();
        fields.nth(1)?.ends_with(&port).then_some(())?;
        let number = fields.nth(7).filter(|number| *number != "0");
        number.map(str::to_owned)
    })
}
