//! `rspp session`: where sessions run, how they go, and away with them.

use std::time::Duration;

use clap::{Args, Subcommand};
use rspp_controlplane_api::{Client, ControlError, millis, wire};
use rspp_proto::SessionId;
use rspp_service::span::Span;
use serde_json::json;

use crate::{
    control::{
        Remote, json_of, pages, refused, request_id,
        shape::{Shape, failing, phase},
        table, when,
    },
    problem::Problem,
    terminal,
};

/// See where sessions run and how they go; let clients in; move sessions.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp session route call-7 --tenant acme              Where to connect, and which version it gets
  rspp session token call-7 --tenant acme              Only the token that a client shows there
  rspp session status call-7 --tenant acme             How it goes
  rspp session list --tenant acme                      All that go on
  rspp session migrate call-7 --tenant acme --to eu-2  To another runtime, with all it knows
  rspp session drain call-7 --tenant acme              Its runtime lets go of it")]
pub(crate) struct Session {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Args)]
struct Named {
    /// The session
    session: SessionId,
    /// Whose session it is
    #[arg(long, env = "RSPP_TENANT")]
    tenant: String,
}

#[derive(Debug, Args)]
struct Finish {
    /// How long it may take to finish what it says, e.g. `10s`; without, as the control plane has it (75 s
    /// unless set otherwise)
    #[arg(long, value_name = "TIME")]
    finish_within: Option<Span>,
}

#[derive(Debug, Args)]
struct Asked {
    #[command(flatten)]
    named: Named,
    /// How the client connects
    #[arg(long, default_value = "websocket")]
    transport: String,
    /// Line or version, where there are several pipelines
    #[arg(long, default_value = "", hide_default_value = true)]
    pipeline: String,
    /// How long the client's packets take to a region, in milliseconds; may come several times
    #[arg(long, value_name = "REGION=MS", value_parser = latency)]
    near: Vec<(String, u32)>,
    /// How long the token is valid, in seconds; 0 is as long as the control plane gives
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    ttl: u32,
}

/// A region and how far it is.
fn latency(text: &str) -> Result<(String, u32), String> {
    let wrong = || "write it as region=milliseconds: eu=20".to_owned();
    let (region, ms) = text.split_once('=').ok_or_else(wrong)?;
    Ok((region.to_owned(), ms.parse().map_err(|_| wrong())?))
}

/// Why a session goes where it does, in words.
fn placed(route: &wire::Route) -> String {
    let passed = route
        .passed
        .iter()
        .map(|it| format!("{}: {}", it.region, it.why));
    let passed = passed.collect::<Vec<_>>().join(", ");
    let outage = route
        .outage
        .as_ref()
        .map(|it| format!("failing: {}", failing(it)));
    let details: Vec<_> = [passed]
        .into_iter()
        .chain(outage)
        .filter(|it| !it.is_empty())
        .collect();
    if details.is_empty() {
        route.placing.clone()
    } else {
        format!("{} ({})", route.placing, details.join("; "))
    }
}

#[derive(Debug, Subcommand)]
enum What {
    /// Where a session runs, or is to run
    Route(Asked),
    /// Print a token for a client, and nothing else
    Token(Asked),
    /// How a session goes
    Status(Named),
    /// Sessions that go on
    List {
        /// Only of this tenant
        #[arg(
            long,
            default_value = "",
            hide_default_value = true,
            env = "RSPP_TENANT"
        )]
        tenant: String,
        /// Only on this runtime
        #[arg(long, default_value = "", hide_default_value = true)]
        runtime: String,
        /// With those that have ended
        #[arg(long)]
        ended: bool,
    },
    /// Tell its runtime to let go of a session
    Drain {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        finish: Finish,
    },
    /// Move a session to another runtime
    Migrate {
        #[command(flatten)]
        named: Named,
        /// To this runtime; without, to whichever is fit
        #[arg(long, default_value = "", hide_default_value = true)]
        to: String,
        #[command(flatten)]
        finish: Finish,
    },
}

impl Session {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let remote = &self.remote;
        match self.what {
            What::Route(asked) => remote.run(|client| route(remote, client, asked)),
            What::Token(asked) => remote.run(|client| token(remote, client, asked)),
            What::Status(named) => remote.run(|client| status(remote, client, named)),
            What::List {
                tenant,
                runtime,
                ended,
            } => {
                let request = wire::ListSessionsRequest {
                    tenant,
                    runtime,
                    ended,
                    ..wire::ListSessionsRequest::default()
                };
                remote.run(|client| list(remote, client, request))
            }
            What::Drain { named, finish } => {
                let order = order(
                    named,
                    finish.finish_within,
                    String::new(),
                    wire::WhyRevoked::Operator,
                );
                remote.run(|client| let_go(remote, client, order))
            }
            What::Migrate { named, to, finish } => {
                let order = order(named, finish.finish_within, to, wire::WhyRevoked::Transfer);
                remote.run(|client| let_go(remote, client, order))
            }
        }
    }
}

/// Refuses a region that is not there: its distance would be told to nobody. Who may not see regions is not
/// told of them either.
async fn check_near(client: &Client, near: &[(String, u32)]) -> Result<(), Problem> {
    if near.is_empty() {
        return Ok(());
    }
    let known = match client.list_regions(wire::ListRegionsRequest {}).await {
        Ok(answer) => answer.regions,
        Err(ControlError::Denied { .. }) => return Ok(()),
        Err(error) => return Err(refused(error)),
    };
    let is_known = |name: &String| known.iter().any(|it| it.region == *name);
    let Some((unknown, _)) = near.iter().find(|(name, _)| !is_known(name)) else {
        return Ok(());
    };
    let known: Vec<_> = known.iter().map(|it| it.region.as_str()).collect();
    let known = if known.is_empty() {
        "none, as no runtime has joined".to_owned()
    } else {
        known.join(", ")
    };
    Err(Problem::input(format!(
        "--near {unknown}: there is no such region; known: {known}"
    )))
}

async fn routed(client: &Client, asked: Asked) -> Result<wire::Route, Problem> {
    let session = asked.named.session.as_str();
    // What is there already may be called anything; what begins is to be typed and read by people.
    if session.contains(char::is_whitespace) {
        return Err(Problem::input(format!(
            "session `{session}`: an id has no blanks: write `{}`",
            session.split_whitespace().collect::<Vec<_>>().join("-")
        )));
    }
    check_near(client, &asked.near).await?;
    let request = wire::RouteRequest {
        tenant: asked.named.tenant,
        session: asked.named.session.to_string(),
        transport: asked.transport,
        pipeline: asked.pipeline,
        token_ttl_seconds: asked.ttl,
        latencies_ms: asked.near.into_iter().collect(),
        ..wire::RouteRequest::default()
    };
    client.route_session(request).await.map_err(refused)
}

async fn route(remote: &Remote, client: Client, asked: Asked) -> Result<(), Problem> {
    let route = routed(&client, asked).await?;
    let url = route.endpoint.clone().unwrap_or_default().url;
    let token = route.token.clone().unwrap_or_default();
    let held = match route.epoch {
        0 => "not placed yet".to_owned(),
        epoch => format!("held at e{epoch}"),
    };
    let silent = match route.silent_ms {
        0 => String::new(),
        ms => format!(
            "silent    its runtime has not been heard for {:.1} s; if it does not answer, ask again in {:.1} s\n",
            Duration::from_millis(ms).as_secs_f64(),
            Duration::from_millis(route.again_after_ms).as_secs_f64()
        ),
    };
    remote.print(
        || {
            format!(
                "endpoint  {url}\nruntime   {} ({}), {held}\n{silent}placed    {}\npipeline  {} ({})\ntoken     until {}; `rspp session token` prints it",
                route.runtime, route.region, placed(&route), route.pipeline, route.why, when(token.expires_at_ms)
            )
        },
        || {
            json!({
                "endpoint": url,
                "runtime": route.runtime,
                "region": route.region,
                "pipeline": route.pipeline,
                "why": route.why,
                "epoch": route.epoch,
                "token": token.token,
                "token_expires_at_ms": token.expires_at_ms,
                "routing_view_snapshot": route.routing_view_snapshot,
                "version_resolution_snapshot": route.version_resolution_snapshot,
                "placing": route.placing,
                "passed": json_of(&route.passed),
                "outage": route.outage.as_ref().map(Shape::shape),
                "silent_ms": route.silent_ms,
                "again_after_ms": route.again_after_ms,
            })
        },
    )
}

async fn token(remote: &Remote, client: Client, asked: Asked) -> Result<(), Problem> {
    let route = routed(&client, asked).await?;
    let token = route.token.unwrap_or_default();
    remote.print(
        || token.token.clone(),
        || {
            json!({
                "token": token.token,
                "id": token.id,
                "expires_at_ms": token.expires_at_ms,
                "endpoint": route.endpoint.clone().unwrap_or_default().url,
            })
        },
    )
}

/// Who had a session last before who has it now, and how it went on.
fn before(status: &wire::SessionStatus) -> String {
    status.past.last().map_or_else(
        || "-".to_owned(),
        |it| {
            let holder = it.holder.clone().unwrap_or_default();
            format!("{} e{}, {}", holder.runtime, it.epoch, it.how)
        },
    )
}

fn rows(sessions: &[wire::SessionStatus]) -> String {
    let rows: Vec<_> = sessions
        .iter()
        .map(|it| {
            let binding = it.binding.clone().unwrap_or_default();
            let or_none = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
            [
                it.session.clone(),
                binding.tenant,
                phase(it).to_owned(),
                or_none(&it.reason),
                binding.pipeline,
                or_none(&it.runtime),
                format!("e{}", it.epoch),
                when(it.since_ms),
                before(it),
            ]
        })
        .collect();
    let names = [
        "session", "tenant", "phase", "reason", "pipeline", "runtime", "epoch", "since", "before",
    ];
    table(names, &rows)
}

async fn status(remote: &Remote, client: Client, named: Named) -> Result<(), Problem> {
    let request = wire::GetStatusRequest {
        tenant: named.tenant,
        session: named.session.to_string(),
    };
    let status = client.get_status(request).await.map_err(refused)?;
    remote.print(|| rows(std::slice::from_ref(&status)), || status.shape())
}

async fn list(
    remote: &Remote,
    client: Client,
    request: wire::ListSessionsRequest,
) -> Result<(), Problem> {
    let found = pages(async |page_token| {
        let request = wire::ListSessionsRequest {
            page_token,
            ..request.clone()
        };
        let page = client.list_sessions(request).await?;
        Ok((page.sessions, page.next_page_token))
    })
    .await?;
    remote.print(|| rows(&found), || json_of(&found))
}

fn order(
    named: Named,
    finish_within: Option<Span>,
    to: String,
    why: wire::WhyRevoked,
) -> wire::MoveSessionRequest {
    wire::MoveSessionRequest {
        tenant: named.tenant,
        session: named.session.to_string(),
        to,
        why: why.into(),
        request_id: request_id(),
        finish_within_ms: finish_within.map(|it| millis(it.0)),
    }
}

async fn let_go(
    remote: &Remote,
    client: Client,
    order: wire::MoveSessionRequest,
) -> Result<(), Problem> {
    let status = client.move_session(order).await.map_err(refused)?;
    if !remote.json {
        terminal::note(
            "its runtime was told, and lets go once it has finished what it says; `rspp session status` \
             shows where it goes on",
        );
    }
    remote.print(|| rows(std::slice::from_ref(&status)), || status.shape())
}
