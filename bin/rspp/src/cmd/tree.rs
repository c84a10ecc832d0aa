//! `rspp tree`: the supervision tree of a running conversation.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use rspp_actors::{ActorId, ActorInfo, ActorState};
use rspp_host::{Config, Notice, Pools, Runtime, SessionRequest};
use rspp_proto::{SessionId, TenantId, abi::Signal, control::Versions, spec::PipelineSpec};
use rspp_timeline::Recorder;
use rspp_transport_api::loopback::{self, Script, Start, USER_RATE, Utterance};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{call::scripted, problem::Problem, terminal};

/// Show the supervision tree of a conversation, caught while the agent speaks.
///
/// The conversation is held in virtual time with scripted providers, so that no model is needed.
/// For the tree of a real one use `rspp loopback --tree`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp tree            Who supervises whom
  rspp tree --json     With every counter, for programs")]
pub(crate) struct Tree {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Tree {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let actors = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .map_err(Problem::failure)?
            .block_on(observe())?;
        if self.json {
            terminal::print_json(&actors)
        } else {
            terminal::print(text(&actors))
        }
    }
}

/// Holds a short conversation and looks at the tree as soon as the agent is heard.
async fn observe() -> Result<Vec<ActorInfo>, Problem> {
    let providers =
        scripted::cast(["Hello! This reply is long enough to be looked at while it is heard."]);
    let speech = vec![8_000; USER_RATE.samples_in(Duration::from_millis(800)) as usize];
    let (transport, line) = loopback::call(Script {
        utterances: vec![Utterance {
            audio: speech,
            start: Start::At(Duration::from_millis(200)),
        }],
        ..Script::default()
    })
    .map_err(Problem::failure)?;

    let runtime = Runtime::start(Config::new(providers, Pools::in_virtual_time(1)))
        .await
        .map_err(Problem::failure)?;
    let session = runtime
        .open(SessionRequest {
            tenant: TenantId::new("local").map_err(Problem::failure)?,
            session: SessionId::new("tree").map_err(Problem::failure)?,
            pipeline: PipelineSpec::simple(),
            policy: None,
            settings: scripted::settings()?,
            versions: Versions::default(),
            attributes: BTreeMap::new(),
            transport,
            recorder: Recorder::null(),
        })
        .await
        .map_err(Problem::failure)?;
    let heard = is_heard(session.subscribe());
    let heard = tokio::time::timeout(Duration::from_secs(30), heard).await;
    let actors = runtime.tree();
    line.hang_up();
    runtime.shut_down(Duration::from_secs(2)).await;
    if heard != Ok(true) {
        return Err(Problem::failure(
            "the agent of the scripted conversation never spoke",
        ));
    }
    Ok(actors)
}

/// Waits until the agent is heard; `false` if it never is.
pub(crate) async fn is_heard(mut notices: Receiver<Notice>) -> bool {
    loop {
        match notices.recv().await {
            Ok(Notice::Signal(signal)) if signal.signal == Signal::PlaybackStarted => return true,
            Ok(
                Notice::Signal(_)
                | Notice::Event(_)
                | Notice::State(_)
                | Notice::Turn(_)
                | Notice::Foreign(_),
            )
            | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return false,
        }
    }
}

/// The tree as text: a line an actor, drawn with branches.
pub(crate) fn text(actors: &[ActorInfo]) -> String {
    let mut children: BTreeMap<Option<ActorId>, Vec<&ActorInfo>> = BTreeMap::new();
    for actor in actors {
        children.entry(actor.parent).or_default().push(actor);
    }
    let mut drawn = Vec::new();
    for root in children.get(&None).into_iter().flatten() {
        drawn.push((name(root).to_owned(), *root));
        branch(root.id, "", &children, &mut drawn);
    }
    let width = drawn.iter().map(|(name, _)| name.chars().count()).max();
    let width = width.unwrap_or(0);
    let mut lines = vec![format!(
        "{:width$}  {:19}  {:10}  restarts  waiting  handled",
        "actor", "kind", "state"
    )];
    lines.extend(drawn.into_iter().map(|(name, actor)| {
        let depths = actor.depths;
        format!(
            "{name:width$}  {:19}  {:10}  {:>8}  {:>7}  {:>7}",
            actor.kind,
            state(actor.state),
            actor.restarts,
            depths.control + depths.data + depths.telemetry,
            actor.handled
        )
    }));
    terminal::of_lines(&lines)
}

fn branch<'a>(
    parent: ActorId,
    before: &str,
    children: &BTreeMap<Option<ActorId>, Vec<&'a ActorInfo>>,
    drawn: &mut Vec<(String, &'a ActorInfo)>,
) {
    let Some(siblings) = children.get(&Some(parent)) else {
        return;
    };
    for (n, actor) in siblings.iter().enumerate() {
        let (arm, below) = if n + 1 == siblings.len() {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        drawn.push((format!("{before}{arm}{}", name(actor)), *actor));
        branch(actor.id, &format!("{before}{below}"), children, drawn);
    }
}

/// The last part of an actor's path.
fn name(actor: &ActorInfo) -> &str {
    actor
        .path
        .rsplit_once('/')
        .map_or(actor.path.as_str(), |(_, name)| name)
}

fn state(state: ActorState) -> &'static str {
    match state {
        ActorState::Starting => "starting",
        ActorState::Idle => "idle",
        ActorState::Busy => "busy",
        ActorState::Stopping => "stopping",
        ActorState::Restarting => "restarting",
        ActorState::Ended => "ended",
    }
}
