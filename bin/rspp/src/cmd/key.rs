//! `rspp key`: the keys that tokens are signed with.

use std::time::Duration;

use clap::{Args, Subcommand};
use rspp_controlplane_api::{Client, wire};

use crate::{
    control::{Remote, json_of, refused, request_id, table, when},
    problem::Problem,
    terminal,
};

/// See the keys that tokens are signed with, and let them take turns.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp key list              Which keys are trusted, and which one signs
  rspp key rotate k2         Trusts k2, and lets it sign once everybody has heard of it
  rspp key add k2            The first half of that
  rspp key promote k2        The second; the key before retires when its last token is over
  rspp key retire k1         Trusts k1 no more from now on, whatever it has signed

Every replica of the control plane must have the private half first: `openssl rand -hex 32 > k2.seed` in the
directory that its setting `more_keys` names (`.rspp/more-keys` of `rspp up --nodes` and `--dev`).")]
pub(crate) struct Key {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Args)]
struct Named {
    /// The key's name, the `kid` of tokens
    kid: String,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List trusted keys
    List,
    /// Trust a key from now on
    Add(Named),
    /// Let a trusted key sign
    Promote(Named),
    /// Add a key, and promote it when everybody has heard of it
    Rotate {
        #[command(flatten)]
        named: Named,
        /// How long to wait in between
        #[arg(long, default_value_t = 10, value_name = "SECONDS")]
        wait: u64,
    },
    /// Trust a key no more: for one that somebody else may have
    Retire(Named),
}

impl Key {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let remote = &self.remote;
        match self.what {
            What::List => remote.run(|client| list(remote, client)),
            What::Add(Named { kid }) => remote.run(async |client| {
                let ring = add(&client, kid).await?;
                show(remote, &ring)
            }),
            What::Promote(Named { kid }) => remote.run(async |client| {
                let ring = promote(&client, kid).await?;
                show(remote, &ring)
            }),
            What::Rotate { named, wait } => {
                let wait = Duration::from_secs(wait);
                remote.run(|client| rotate(remote, client, named.kid, wait))
            }
            What::Retire(Named { kid }) => remote.run(async |client| {
                let request = wire::RetireKeyRequest {
                    kid,
                    request_id: request_id(),
                };
                let ring = client.retire_key(request).await.map_err(refused)?;
                show(remote, &ring)
            }),
        }
    }
}

async fn list(remote: &Remote, client: Client) -> Result<(), Problem> {
    let ring = client.list_keys(wire::ListKeysRequest {}).await;
    show(remote, &ring.map_err(refused)?)
}

async fn add(client: &Client, kid: String) -> Result<wire::Keyring, Problem> {
    let request = wire::AddKeyRequest {
        kid,
        request_id: request_id(),
    };
    client.add_key(request).await.map_err(refused)
}

async fn promote(client: &Client, kid: String) -> Result<wire::Keyring, Problem> {
    let request = wire::PromoteKeyRequest {
        kid,
        request_id: request_id(),
    };
    client.promote_key(request).await.map_err(refused)
}

async fn rotate(
    remote: &Remote,
    client: Client,
    kid: String,
    wait: Duration,
) -> Result<(), Problem> {
    add(&client, kid.clone()).await?;
    if !remote.json {
        terminal::note(format!(
            "{kid} is trusted; it signs in {} s, when all runtimes have heard of it",
            wait.as_secs()
        ));
    }
    tokio::time::sleep(wait).await;
    let ring = promote(&client, kid).await?;
    show(remote, &ring)
}

fn show(remote: &Remote, ring: &wire::Keyring) -> Result<(), Problem> {
    remote.print(
        || {
            let rows: Vec<_> = ring
                .keys
                .iter()
                .map(|it| {
                    let (state, until) = match (it.signs, it.retires_ms) {
                        (true, _) => ("signs", "-".to_owned()),
                        (false, 0) => ("trusted", "-".to_owned()),
                        (false, at) => ("retiring", when(at)),
                    };
                    [it.kid.clone(), state.to_owned(), when(it.added_ms), until]
                })
                .collect();
            table(["key", "state", "since", "until"], &rows)
        },
        || json_of(&ring.keys),
    )
}
