//! `rspp node`: the runtimes of the fleet.

use std::time::Duration;

use clap::{Args, Subcommand};
use rspp_controlplane_api::{Client, millis, wire};
use rspp_service::span::Span;
use serde_json::json;

use crate::{
    control::{
        Remote, json_of, refused, request_id,
        shape::{Shape as _, drained_how},
        table, when,
    },
    problem::Problem,
    terminal,
};

/// See the runtimes of the fleet, and empty them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp node list                          All runtimes, and how they fare
  rspp node drain eu-1                    Nothing new goes there; its sessions end by themselves
  rspp node drain eu-1 --migrate --wait   Its sessions move once they have finished what they say; returns
                                          when none is left, and says what became of each
  rspp node account eu-1                  What became of each session of a runtime that was emptied, or
                                          that went by itself
  rspp node drain eu-1 --undo             It takes sessions again")]
pub(crate) struct Node {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List runtimes
    List,
    /// Empty a runtime
    Drain {
        /// Which
        runtime: String,
        /// Move its sessions instead of letting them end there
        #[arg(long, conflicts_with = "undo")]
        migrate: bool,
        /// Let it serve again
        #[arg(long)]
        undo: bool,
        /// How long they may take to finish what they say before they move, e.g. `10s`; without, as the
        /// control plane has it (75 s unless set otherwise)
        #[arg(long, value_name = "TIME", requires = "migrate")]
        finish_within: Option<Span>,
        /// Wait until no session is left, and tell what became of each
        #[arg(long, conflicts_with = "undo")]
        wait: bool,
    },
    /// What became of each session of a runtime that was emptied
    Account {
        /// Which
        runtime: String,
        /// In which of its lives; without, in the newest that was emptied
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        life: u64,
    },
}

/// How often it is looked whether a runtime is empty.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Node {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let remote = &self.remote;
        match self.what {
            What::List => remote.run(|client| list(remote, client)),
            What::Drain {
                runtime,
                migrate,
                undo,
                finish_within,
                wait,
            } => {
                let request = wire::DrainRuntimeRequest {
                    runtime,
                    serve: undo,
                    migrate,
                    finish_within_ms: finish_within.map(|it| millis(it.0)),
                    request_id: request_id(),
                };
                remote.run(|client| drain(remote, client, request, wait))
            }
            What::Account { runtime, life } => {
                remote.run(|client| account(remote, client, runtime, life))
            }
        }
    }
}

fn rows(runtimes: &[wire::Runtime]) -> String {
    let rows: Vec<_> = runtimes
        .iter()
        .map(|it| {
            let holder = it.holder.clone().unwrap_or_default();
            let description = it.description.clone().unwrap_or_default();
            let load = it.load.clone().unwrap_or_default();
            let state = match (
                it.presence.as_str(),
                it.draining,
                load.ready,
                load.overloaded,
            ) {
                ("alive", true, _, _) => "draining",
                ("alive", false, false, _) => "not ready",
                ("alive", false, true, true) => "overloaded",
                ("alive", false, true, false) => "serving",
                (presence, _, _, _) => presence,
            };
            [
                holder.runtime,
                description.region,
                state.to_owned(),
                format!("{}/{}", it.placed, description.capacity),
                format!("{} %", load.cpu_percent),
                format!("#{}", holder.incarnation),
                description.build,
            ]
        })
        .collect();
    table(
        [
            "runtime", "region", "state", "sessions", "cpu", "life", "build",
        ],
        &rows,
    )
}

async fn runtimes(client: &Client) -> Result<Vec<wire::Runtime>, Problem> {
    let answer = client.list_runtimes(wire::ListRuntimesRequest {}).await;
    Ok(answer.map_err(refused)?.runtimes)
}

async fn list(remote: &Remote, client: Client) -> Result<(), Problem> {
    let found = runtimes(&client).await?;
    remote.print(|| rows(&found), || json_of(&found))
}

async fn accounted(
    client: &Client,
    runtime: &str,
    incarnation: u64,
) -> Result<wire::DrainAccount, Problem> {
    let request = wire::AccountDrainRequest {
        runtime: runtime.to_owned(),
        incarnation,
    };
    client.account_drain(request).await.map_err(refused)
}

/// How many became what: all of them, adding up.
fn sums(account: &wire::DrainAccount) -> String {
    let names = [
        "remains",
        "moved",
        "finished",
        "waits",
        "taken_over",
        "lost",
    ];
    let count = |name: &str| {
        account
            .sessions
            .iter()
            .filter(|it| it.became == name)
            .count()
    };
    let counts = names.map(|name| (name, count(name)));
    let counts = counts.iter().filter(|(_, count)| *count > 0);
    let counts: Vec<_> = counts
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    let had = account.sessions.len();
    match counts.as_slice() {
        [] => "it had no sessions".to_owned(),
        counts if had == 1 => format!("1 session: {}", counts.join(", ")),
        counts => format!("{had} sessions: {}", counts.join(", ")),
    }
}

fn report(account: &wire::DrainAccount) -> String {
    let holder = account.holder.clone().unwrap_or_default();
    let by = match account.by.as_str() {
        "" => "by itself",
        by => by,
    };
    let head = format!(
        "{} #{}, {} ({by}) since {}; {}\n",
        holder.runtime,
        holder.incarnation,
        drained_how(account.how()),
        when(account.since_ms),
        sums(account)
    );
    if account.sessions.is_empty() {
        return head;
    }
    let rows: Vec<_> = account
        .sessions
        .iter()
        .map(|it| {
            let to = match (it.to.as_str(), it.epoch) {
                ("", _) => "-".to_owned(),
                (to, 0) => to.to_owned(),
                (to, epoch) => format!("{to} e{epoch}"),
            };
            [
                it.session.clone(),
                it.tenant.clone(),
                it.became.clone(),
                to,
                it.why.clone(),
            ]
        })
        .collect();
    head + &table(["session", "tenant", "became", "to", "why"], &rows)
}

async fn account(
    remote: &Remote,
    client: Client,
    runtime: String,
    life: u64,
) -> Result<(), Problem> {
    let found = accounted(&client, &runtime, life).await?;
    remote.print(|| report(&found), || found.shape())
}

async fn drain(
    remote: &Remote,
    client: Client,
    request: wire::DrainRuntimeRequest,
    wait: bool,
) -> Result<(), Problem> {
    let serves = request.serve;
    let answer = client.drain_runtime(request).await.map_err(refused)?;
    let mut runtime = answer.runtime.unwrap_or_default();
    runtime.placed = answer.left;
    if serves {
        if runtime.draining && !remote.json {
            terminal::note("it ends by itself, and goes on doing so: it takes no sessions again");
        }
        return remote.print(
            || rows(std::slice::from_ref(&runtime)),
            || json!({ "runtime": runtime.shape(), "left": runtime.placed }),
        );
    }
    let holder = runtime.holder.clone().unwrap_or_default();
    let look = || accounted(&client, &holder.runtime, holder.incarnation);
    let mut account = look().await?;
    let remains = |account: &wire::DrainAccount| {
        let mut sessions = account.sessions.iter();
        sessions.any(|it| it.became == "remains")
    };
    while wait && remains(&account) {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = look().await?;
        if sums(&now) != sums(&account) && !remote.json {
            terminal::note(sums(&now));
        }
        account = now;
    }
    let left = account.sessions.iter().filter(|it| it.became == "remains");
    runtime.placed = u32::try_from(left.count()).unwrap_or(u32::MAX);
    remote.print(
        || {
            format!(
                "{}\n{}",
                rows(std::slice::from_ref(&runtime)),
                report(&account)
            )
        },
        || {
            json!({
                "runtime": runtime.shape(),
                "left": runtime.placed,
                "account": account.shape(),
            })
        },
    )
}
