//! `rspp node`: the runtimes of the fleet.

use std::time::Duration;

use clap::{Args, Subcommand};
use rspp_controlplane_api::{Client, wire};
use serde_json::json;

use crate::{
    control::{Remote, json_of, refused, request_id, shape::Shape as _, table},
    problem::Problem,
    terminal,
};

/// See the runtimes of the fleet, and empty them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp node list                          All runtimes, and how they fare
  rspp node drain eu-1                    Nothing new goes there; its sessions end by themselves
  rspp node drain eu-1 --migrate --wait   Its sessions move; returns when none is left
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
        /// Wait until no session is left
        #[arg(long, conflicts_with = "undo")]
        wait: bool,
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
                wait,
            } => {
                let request = wire::DrainRuntimeRequest {
                    runtime,
                    serve: undo,
                    migrate,
                    request_id: request_id(),
                };
                remote.run(|client| drain(remote, client, request, wait))
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
            let load = it.load.unwrap_or_default();
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

async fn drain(
    remote: &Remote,
    client: Client,
    request: wire::DrainRuntimeRequest,
    wait: bool,
) -> Result<(), Problem> {
    let name = request.runtime.clone();
    let answer = client.drain_runtime(request).await.map_err(refused)?;
    let mut runtime = answer.runtime.unwrap_or_default();
    runtime.placed = answer.left;
    while wait && runtime.placed > 0 {
        tokio::time::sleep(LOOK_EVERY).await;
        let is_it = |it: &wire::Runtime| it.holder.as_ref().is_some_and(|it| it.runtime == name);
        let Some(now) = runtimes(&client).await?.into_iter().find(is_it) else {
            break;
        };
        if now.placed != runtime.placed && !remote.json {
            terminal::note(format!("{} sessions left", now.placed));
        }
        runtime = now;
    }
    remote.print(
        || rows(std::slice::from_ref(&runtime)),
        || json!({ "runtime": runtime.shape(), "left": runtime.placed }),
    )
}
