//! `rspp rollout`: which version new sessions get.

use clap::{Args, Subcommand};
use rspp_controlplane_api::{
    Client,
    wire::{self, Kind, change::Change, change_rollout_response::Outcome},
};
use serde_json::json;

use crate::{
    control::{
        Remote, json_of, pages, refused, request_id,
        shape::{Shape as _, proposed, subject, who},
        table, when,
    },
    problem::Problem,
};

/// Decide which version new sessions get; running ones keep theirs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp rollout set greeter-2                       Everybody new gets greeter-2
  rspp rollout set greeter-3 --percent 10          A tenth of them gets greeter-3
  rspp rollout set greeter-3 --tenant acme         Acme gets it, nobody else
  rspp rollout set greeter-3 --canary 5            A twentieth; a breached gate ends it
  rspp rollout set greeter-3 --canary 5 --max-failed 1 --max-first-audio 1500 --min-sessions 50
                                                   The same with a gate of one's own
  rspp rollout status                              What is rolled out
  rspp rollout pause greeter                       Nobody new gets the candidate for now
  rspp rollout promote greeter                     Everybody gets the candidate
  rspp rollout freeze greeter --reason incident    Nothing new of it is rolled out …
  rspp rollout thaw greeter --reason over          … until it may again; its error budget begins anew
  rspp rollout rollback greeter --reason 'coughs'  Away with it, or back to the version before
  rspp rollout approve 0001792839-1a2b3c4d         Agree to somebody else's change")]
pub(crate) struct Rollout {
    #[command(flatten)]
    remote: Remote,
    /// Of policies instead of pipelines
    #[arg(long, global = true, conflicts_with = "providers")]
    policy: bool,
    /// Of provider configurations instead of pipelines
    #[arg(long, global = true)]
    providers: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Args)]
struct Line {
    /// What all versions have in common, e.g. `greeter`
    line: String,
    /// Why, for the audit trail
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

/// What a canary is held to.
#[derive(Debug, Args)]
#[group(requires = "canary")]
struct Gate {
    /// Sessions that must have ended before anything is judged [default: 20]
    #[arg(long, value_name = "SESSIONS", requires = "canary")]
    min_sessions: Option<u64>,
    /// Most sessions that may fail, in percent [default: 2]
    #[arg(long, value_name = "PERCENT", requires = "canary", value_parser = per_10k)]
    max_failed: Option<u32>,
    /// From the end of speech to the first audio, 95th percentile in milliseconds [default: 2000]
    #[arg(long, value_name = "MS", requires = "canary")]
    max_first_audio: Option<u64>,
    /// Do not judge how long the first audio takes
    #[arg(long, requires = "canary", conflicts_with = "max_first_audio")]
    any_first_audio: bool,
    /// How much worse than the stable version it may be in either, in percent of that
    #[arg(long, value_name = "PERCENT", requires = "canary")]
    max_regression: Option<u32>,
}

impl Gate {
    /// The gate, if anything of it was said.
    fn wire(&self) -> wire::Gate {
        let usual = rspp_controlplane::rollout::Gate::default();
        wire::Gate {
            min_sessions: self.min_sessions.unwrap_or(usual.min_sessions),
            max_failed_per_10k: self.max_failed.unwrap_or(usual.max_failed_per_10k),
            max_first_audio_p95_ms: if self.any_first_audio {
                None
            } else {
                self.max_first_audio.or(usual.max_first_audio_p95_ms)
            },
            max_regression_percent: self.max_regression.or(usual.max_regression_percent),
        }
    }
}

/// A share in percent, with two digits after the point at most, as that of ten thousand.
fn per_10k(text: &str) -> Result<u32, String> {
    let percent: f64 = text
        .parse()
        .map_err(|_| "is no share in percent".to_owned())?;
    if !(0.0..=100.0).contains(&percent) {
        return Err("is no share from 0 to 100 %".to_owned());
    }
    Ok((percent * 100.0).round() as u32)
}

#[derive(Debug, Subcommand)]
enum What {
    /// Give a version to everybody new, or to some
    Set {
        /// The version, which must be published
        version: String,
        /// To this share of all new sessions
        #[arg(long, value_name = "PERCENT", conflicts_with_all = ["tenant", "canary"], value_parser = clap::value_parser!(u32).range(0..=100))]
        percent: Option<u32>,
        /// To these tenants only
        #[arg(long, value_name = "TENANT", conflicts_with = "canary")]
        tenant: Vec<String>,
        /// To this share, watched by a gate that ends the trial on a breach
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
        canary: Option<u32>,
        #[command(flatten)]
        gate: Gate,
        /// Why, for the audit trail
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Show what is rolled out
    Status {
        /// Only this line
        line: Option<String>,
    },
    /// Stop giving the candidate to anybody new
    Pause(Line),
    /// Give the candidate to new sessions again
    Resume(Line),
    /// Give the candidate to everybody
    Promote(Line),
    /// Drop the candidate; without one, go back to the version before
    Rollback {
        #[command(flatten)]
        line: Line,
        /// Back to this version, which must have been rolled out before
        #[arg(
            long,
            value_name = "VERSION",
            default_value = "",
            hide_default_value = true
        )]
        to: String,
    },
    /// Let nothing new be rolled out; pausing and rolling back stay possible
    Freeze(Line),
    /// Let it be rolled out again, whatever froze it; what was spent of its error budget is let go
    Thaw(Line),
    /// Show changes that wait for approval
    Proposals,
    /// Agree to a change
    Approve {
        /// The proposal
        id: String,
    },
    /// Say no to a change
    Reject {
        /// The proposal
        id: String,
    },
}

impl Rollout {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let remote = &self.remote;
        let kind = match (self.policy, self.providers) {
            (true, _) => Kind::Policy,
            (false, true) => Kind::Providers,
            (false, false) => Kind::Pipeline,
        };
        let nothing = wire::Nothing {};
        let change = |line: Line, it| {
            remote.run(|client| change(remote, client, kind, line.line, line.reason, it))
        };
        match self.what {
            What::Set {
                version,
                percent,
                tenant,
                canary,
                gate,
                reason,
            } => {
                let line = line_of(&version)?;
                let canary = canary.map(|percent| (percent, gate.wire()));
                let it = set(version, percent, tenant, canary);
                change(Line { line, reason }, it)
            }
            What::Status { line } => remote.run(|client| status(remote, client, kind, line)),
            What::Pause(line) => change(line, Change::Pause(nothing)),
            What::Resume(line) => change(line, Change::Resume(nothing)),
            What::Promote(line) => change(line, Change::Promote(nothing)),
            What::Rollback { line, to } => change(line, Change::RollBack(to)),
            What::Freeze(line) => change(line, Change::Freeze(nothing)),
            What::Thaw(line) => change(line, Change::Thaw(nothing)),
            What::Proposals => remote.run(|client| proposals(remote, client)),
            What::Approve { id } => remote.run(|client| decide(remote, client, id, true)),
            What::Reject { id } => remote.run(|client| decide(remote, client, id, false)),
        }
    }
}

fn line_of(version: &str) -> Result<String, Problem> {
    let name = version.parse::<rspp_controlplane::registry::VersionName>();
    let name = name.map_err(Problem::input)?;
    Ok(name.line().to_owned())
}

fn set(
    version: String,
    percent: Option<u32>,
    tenants: Vec<String>,
    canary: Option<(u32, wire::Gate)>,
) -> Change {
    use wire::strategy::Strategy;
    let strategy = match (percent, canary) {
        (Some(percent), _) => Strategy::Percent(percent),
        (None, Some((percent, gate))) => Strategy::Canary(wire::Canary {
            percent,
            gate: Some(gate),
            ..wire::Canary::default()
        }),
        (None, None) if tenants.is_empty() => return Change::Direct(version),
        (None, None) => Strategy::Allowlist(wire::TenantList { tenants }),
    };
    Change::Try(wire::Try {
        version,
        strategy: Some(wire::Strategy {
            strategy: Some(strategy),
        }),
    })
}

async fn change(
    remote: &Remote,
    client: Client,
    kind: Kind,
    line: String,
    reason: String,
    change: Change,
) -> Result<(), Problem> {
    let request = wire::ChangeRolloutRequest {
        kind: kind.into(),
        line,
        change: Some(wire::Change {
            change: Some(change),
        }),
        reason,
        if_generation: 0,
        request_id: request_id(),
    };
    let answer = client.change_rollout(request).await.map_err(refused)?;
    tell(remote, answer)
}

async fn decide(remote: &Remote, client: Client, id: String, approve: bool) -> Result<(), Problem> {
    let request = wire::DecideProposalRequest {
        id,
        approve,
        request_id: request_id(),
    };
    let answer = client.decide_proposal(request).await.map_err(refused)?;
    tell(remote, answer)
}

fn tell(remote: &Remote, answer: wire::ChangeRolloutResponse) -> Result<(), Problem> {
    match answer.outcome {
        Some(Outcome::Rollout(rollout)) => {
            remote.print(|| rows(std::slice::from_ref(&rollout)), || rollout.shape())
        }
        Some(Outcome::Proposal(proposal)) => remote.print(
            || {
                let id = &proposal.id;
                match proposal.state.as_str() {
                    "waiting" => {
                        format!("proposed, and waits for somebody else: rspp rollout approve {id}")
                    }
                    state => format!("proposal {id} is {state}"),
                }
            },
            || json!({ "proposal": proposal.shape() }),
        ),
        None => Err(Problem::failure("the control plane's answer says nothing")),
    }
}

fn rows(rollouts: &[wire::Rollout]) -> String {
    let rows: Vec<_> = rollouts
        .iter()
        .map(|it| {
            let (candidate, who) = match &it.candidate {
                Some(candidate) => (candidate.version.clone(), who(candidate)),
                None => ("-".to_owned(), "-".to_owned()),
            };
            let frozen = if it.frozen.is_empty() {
                "-"
            } else {
                &it.frozen
            };
            let before = it.history.first().map_or("-", String::as_str);
            [
                it.line.clone(),
                it.stable.clone(),
                candidate,
                who,
                before.to_owned(),
                frozen.to_owned(),
            ]
        })
        .collect();
    table(
        ["line", "stable", "candidate", "who", "before", "frozen"],
        &rows,
    )
}

async fn status(
    remote: &Remote,
    client: Client,
    kind: Kind,
    line: Option<String>,
) -> Result<(), Problem> {
    let rollouts = if let Some(line) = line {
        let request = wire::GetRolloutRequest {
            kind: kind.into(),
            line,
        };
        vec![client.get_rollout(request).await.map_err(refused)?]
    } else {
        pages(async |page_token| {
            let request = wire::ListRolloutsRequest {
                kind: kind.into(),
                page_token,
                ..wire::ListRolloutsRequest::default()
            };
            let page = client.list_rollouts(request).await?;
            Ok((page.rollouts, page.next_page_token))
        })
        .await?
    };
    remote.print(
        || rows(&rollouts) + &measured(&rollouts),
        || json_of(&rollouts),
    )
}

/// What was measured of versions on trial, beside what they are held to, and of error budgets.
fn measured(rollouts: &[wire::Rollout]) -> String {
    let number = |it: u64| it.to_string();
    let (mut versions, mut budgets) = (Vec::new(), Vec::new());
    for rollout in rollouts {
        let Some(readings) = &rollout.readings else {
            continue;
        };
        let versions_of = [
            (
                &readings.tried,
                &readings.candidate,
                held_to(rollout, &readings.tried),
            ),
            (&rollout.stable, &readings.stable, String::new()),
        ];
        for (version, reading, held_to) in versions_of {
            let Some(reading) = reading else { continue };
            let p95 = reading.first_audio_p95_ms;
            versions.push([
                version.clone(),
                number(reading.sessions),
                number(reading.failed),
                p95.map_or("-".to_owned(), |ms| format!("{ms} ms")),
                held_to,
            ]);
        }
        let budget = readings.budget.unwrap_or_default();
        let windows = [
            budget.five_minutes,
            budget.hour,
            budget.six_hours,
            budget.month,
        ];
        let [five, hour, six, month] = windows.map(|it| {
            let it = it.unwrap_or_default();
            format!("{} of {}", it.failed, it.sessions)
        });
        let alert = match readings.burn_alert.as_str() {
            "" => "-",
            alert => alert,
        };
        budgets.push([
            rollout.line.clone(),
            five,
            hour,
            six,
            month,
            alert.to_owned(),
        ]);
    }
    let mut text = String::new();
    if !versions.is_empty() {
        let names = ["tried", "sessions", "failed", "first audio p95", "held to"];
        text.push('\n');
        text += &table(names, &versions);
    }
    if !budgets.is_empty() {
        let names = ["failed", "5 min", "1 h", "6 h", "30 d", "burns"];
        text.push('\n');
        text += &table(names, &budgets);
    }
    text
}

/// What a canary is held to, in words.
fn held_to(rollout: &wire::Rollout, version: &str) -> String {
    use wire::strategy::Strategy;
    let candidate = rollout
        .candidate
        .as_ref()
        .filter(|it| it.version == version);
    let strategy = candidate
        .and_then(|it| it.strategy.as_ref())
        .and_then(|it| it.strategy.as_ref());
    let gate = match strategy {
        Some(Strategy::Canary(canary)) => canary.gate,
        Some(Strategy::Allowlist(_) | Strategy::Percent(_)) | None => None,
    };
    let Some(gate) = gate else {
        return "-".to_owned();
    };
    let share = f64::from(gate.max_failed_per_10k) / 100.0;
    let mut bounds = vec![format!("{share} % failed")];
    bounds.extend(gate.max_first_audio_p95_ms.map(|ms| format!("{ms} ms")));
    bounds.extend(
        gate.max_regression_percent
            .map(|it| format!("{it} % worse")),
    );
    format!("{} after {} sessions", bounds.join(", "), gate.min_sessions)
}

async fn proposals(remote: &Remote, client: Client) -> Result<(), Problem> {
    let found = pages(async |page_token| {
        let request = wire::ListProposalsRequest {
            open_only: true,
            page_token,
            ..wire::ListProposalsRequest::default()
        };
        let page = client.list_proposals(request).await?;
        Ok((page.proposals, page.next_page_token))
    })
    .await?;
    remote.print(
        || {
            let rows: Vec<_> = found
                .iter()
                .map(|it| {
                    [
                        it.id.clone(),
                        subject(it),
                        proposed(it),
                        it.author.clone(),
                        when(it.at_ms),
                        it.approved_by.join(", "),
                    ]
                })
                .collect();
            table(["id", "of", "change", "by", "at", "approved by"], &rows)
        },
        || json_of(&found),
    )
}
