//! `rspp region`: the regions of the fleet.

use clap::{Args, Subcommand};
use rspp_controlplane_api::{Client, wire};

use crate::{
    control::{
        Remote, json_of, refused, request_id,
        shape::{Shape as _, duty, failing},
        table,
    },
    problem::Problem,
};

/// See how regions fare, and leave them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp region list                  All regions: how many of their runtimes are well, what is wanted of them
  rspp region drain eu              Nothing new goes there; its sessions end by themselves
  rspp region drain eu --migrate    Its sessions move, each with its id
  rspp region serve eu              It serves, whatever its health
  rspp region auto eu               Its health decides again, by `rspp rules show regions`")]
pub(crate) struct Region {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List regions and their health
    List,
    /// Leave a region
    Drain {
        /// Which
        region: String,
        /// Move its sessions instead of letting them end there
        #[arg(long)]
        migrate: bool,
    },
    /// Let a region serve, whatever its health
    Serve {
        /// Which
        region: String,
    },
    /// Let a region's health decide
    Auto {
        /// Which
        region: String,
    },
}

impl Region {
    pub(crate) fn run(self) -> Result<(), Problem> {
        use wire::RegionDuty as Duty;
        let remote = &self.remote;
        let set = |region, duty| remote.run(|client| set(remote, client, region, duty));
        match self.what {
            What::List => remote.run(|client| list(remote, client)),
            What::Drain {
                region,
                migrate: false,
            } => set(region, Duty::Drain),
            What::Drain {
                region,
                migrate: true,
            } => set(region, Duty::Migrate),
            What::Serve { region } => set(region, Duty::Serving),
            What::Auto { region } => set(region, Duty::Unspecified),
        }
    }
}

fn rows(regions: &[wire::Region]) -> String {
    let rows: Vec<_> = regions
        .iter()
        .map(|it| {
            let by = if it.by_operator { "operator" } else { "health" };
            [
                it.region.clone(),
                duty(it).to_owned(),
                by.to_owned(),
                format!("{}/{}", it.well, it.runtimes),
                if it.dead == 0 {
                    "-".to_owned()
                } else {
                    it.dead.to_string()
                },
                if it.outages.is_empty() {
                    "-".to_owned()
                } else {
                    let failing: Vec<_> = it.outages.iter().map(failing).collect();
                    failing.join("; ")
                },
            ]
        })
        .collect();
    table(
        [
            "region",
            "duty",
            "decided by",
            "well",
            "dead",
            "failing providers",
        ],
        &rows,
    )
}

async fn list(remote: &Remote, client: Client) -> Result<(), Problem> {
    let answer = client.list_regions(wire::ListRegionsRequest {}).await;
    let found = answer.map_err(refused)?.regions;
    remote.print(|| rows(&found), || json_of(&found))
}

async fn set(
    remote: &Remote,
    client: Client,
    region: String,
    duty: wire::RegionDuty,
) -> Result<(), Problem> {
    let request = wire::SetRegionRequest {
        region,
        duty: duty.into(),
        request_id: request_id(),
    };
    let region = client.set_region(request).await.map_err(refused)?;
    remote.print(|| rows(std::slice::from_ref(&region)), || region.shape())
}
