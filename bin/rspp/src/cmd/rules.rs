//! `rspp rules`: what operators decide once for everybody.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use rspp_controlplane::{
    governance::Governance,
    keeping::{Keeping, TenantKeeping},
};
use rspp_controlplane_api::{Client, wire};
use rspp_proto::{SessionId, TenantId, parse_age};
use rspp_service::yaml;
use serde_json::{Value, json};

use crate::{
    control::{Remote, artifacts, refused, request_id, shape::Shape as _, table},
    problem::Problem,
};

/// See and set the rules for everybody: limits, approvals, regions, error budget.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp rules show                        All rules
  rspp rules show admission              What tenants may open
  rspp rules show --json > rules.json    As a document, to be edited …
  rspp rules diff rules.json             … looked at …
  rspp rules set rules.json              … and set as a whole; YAML is read too
  rspp rules approvals 1 --within 24     Rollouts wait for somebody else, for a day
  rspp rules slo 99.5                    Half a percent of sessions may fail; rollouts freeze beyond it
  rspp rules retention 30d               Timelines go after 30 days …
  rspp rules retention 7d --tenant acme  … and a tenant's after 7
  rspp rules retention --tenant acme --hold call-7
                                         Of one session nothing goes, until --release call-7
  rspp rules retention --at-least 1d     Nobody can set less
  rspp rules usage acme                  What a tenant uses of its limits")]
pub(crate) struct Rules {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    what: What,
}

/// What a file may say, with the values that hold where it says nothing unless told otherwise.
const SAMPLE: &str = "\
A file of rules; what it leaves out is as nobody had set it:

  admission:
    mode: strict                # or availability: what is done when nothing can be counted
    default: {sessions: {limit: 100, over: reject}}   # none by default; or over: defer
    pipelines: {}               # by line, instead of `default`
    tenants:                    # by tenant, instead of both
      acme: {sessions: {limit: 20, over: defer}, tokens_per_minute: {limit: 50000, over: reject}}
  residency:
    tenants: {acme: [eu]}       # where else nobody of theirs may be; anywhere by default
  approvals: {approvals: 1, expires_after_ms: 86400000}   # nobody by default
  regions: {mode: drain, ill_percent: 60, well_percent: 25, min_runtimes: 2}
  outages: {answers: [alternates, region], out_percent: 50, well_after_seconds: 30}
  error_budget: {allowed_per_10k: 100, min_sessions: 50}
  retention:
    keep_ms: 2592000000         # for ever by default
    at_least_ms: 86400000
    tenants: {acme: {keep_ms: 604800000, hold: [call-7]}}";

/// A part of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// How many sessions tenants may open, and what is done when nothing can be counted
    Admission,
    /// Where tenants' sessions may be
    Residency,
    /// How many have to agree to a rollout
    Approvals,
    /// When regions are left for their health
    Regions,
    /// What is done where providers fail
    Outages,
    /// How many sessions may fail before rollouts freeze
    ErrorBudget,
    /// How long timelines are kept
    Retention,
}

impl Part {
    fn as_str(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Residency => "residency",
            Self::Approvals => "approvals",
            Self::Regions => "regions",
            Self::Outages => "outages",
            Self::ErrorBudget => "error_budget",
            Self::Retention => "retention",
        }
    }
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show the rules
    Show {
        /// Only this part
        part: Option<Part>,
    },
    /// Set all rules, in place of those before
    #[command(after_help = SAMPLE)]
    Set {
        /// YAML or JSON; `-` is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Only if nobody has changed them since this version
        #[arg(long, default_value_t = 0, value_name = "VERSION")]
        if_version: u64,
        /// Only check
        #[arg(long)]
        dry_run: bool,
    },
    /// Show what a file would change
    Diff {
        /// YAML or JSON; `-` is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Set how many people have to agree to a rollout, beside its author; to fewer than before as many have to agree
    Approvals {
        /// How many; 0 is nobody
        people: u8,
        /// How long a proposal waits, in hours; 0 is for ever
        #[arg(long, default_value_t = 0, value_name = "HOURS")]
        within: u32,
    },
    /// Set the share of sessions that must go well
    Slo {
        /// In percent, e.g. 99.5
        #[arg(value_parser = percent)]
        objective: u32,
        /// Sessions that must have been seen before anything is said
        #[arg(long, value_name = "SESSIONS")]
        after: Option<u64>,
    },
    /// Set how long timelines are kept, and what of them is held
    Retention(Kept),
    /// What a tenant uses of its limits
    Usage {
        /// Whose
        tenant: String,
    },
}

/// What is set of how long timelines are kept.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true)
    .args(["keep", "for_ever", "at_least", "hold", "release", "hold_all", "release_all"]))]
struct Kept {
    /// How long, e.g. 30d, 12h; counted from when an archive has all of one
    #[arg(value_name = "TIME", value_parser = age)]
    keep: Option<u64>,
    /// For ever; with --tenant, as everybody's
    #[arg(long, conflicts_with = "keep")]
    for_ever: bool,
    /// Of one tenant, instead of everybody who has no rule of their own
    #[arg(long, value_name = "TENANT")]
    tenant: Option<TenantId>,
    /// The least that anybody may set; 0s for none
    #[arg(long, value_name = "TIME", value_parser = age, conflicts_with = "tenant")]
    at_least: Option<u64>,
    /// Sessions of which nothing goes
    #[arg(long, value_name = "SESSION", requires = "tenant")]
    hold: Vec<SessionId>,
    /// Sessions that are held no longer
    #[arg(long, value_name = "SESSION", requires = "tenant")]
    release: Vec<SessionId>,
    /// Nothing of the tenant's goes
    #[arg(long, requires = "tenant", conflicts_with = "release_all")]
    hold_all: bool,
    /// What is held is held session by session only
    #[arg(long, requires = "tenant")]
    release_all: bool,
}

impl Kept {
    fn alter(self, rules: &mut Keeping) {
        if let Some(least) = self.at_least {
            rules.at_least_ms = least;
        }
        let is_set = self.keep.is_some() || self.for_ever;
        let Some(tenant) = self.tenant else {
            if is_set {
                rules.keep_ms = self.keep;
            }
            return;
        };
        let own = rules.tenants.entry(tenant.clone()).or_default();
        if is_set {
            own.keep_ms = self.keep;
        }
        own.hold.extend(self.hold);
        for session in &self.release {
            own.hold.remove(session);
        }
        own.hold_all = (own.hold_all || self.hold_all) && !self.release_all;
        if *own == TenantKeeping::default() {
            rules.tenants.remove(&tenant);
        }
    }
}

/// A length of time in milliseconds.
fn age(text: &str) -> Result<u64, String> {
    let ms = parse_age(text).and_then(|age| u64::try_from(age.as_millis()).ok());
    ms.ok_or_else(|| "write it as 30d, 12h, 15m or 90s".to_owned())
}

/// Sessions per 10,000 that may fail under an objective in percent.
fn percent(text: &str) -> Result<u32, String> {
    let wrong = || "write it in percent, with two decimals at most: 99.5".to_owned();
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let is_plain = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_plain(whole) || !is_plain(decimals) || decimals.len() > 2 {
        return Err(wrong());
    }
    let whole: u32 = whole.parse().map_err(|_| wrong())?;
    let hundredths: u32 = format!("{decimals:0<2}").parse().map_err(|_| wrong())?;
    let good = whole.saturating_mul(100).saturating_add(hundredths);
    if good == 0 {
        return Err("an objective of 0 % is none".to_owned());
    }
    match 10_000_u32.checked_sub(good) {
        Some(allowed) => Ok(allowed),
        None => Err("more than 100 % cannot go well".to_owned()),
    }
}

impl Rules {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let remote = &self.remote;
        match self.what {
            What::Show { part } => remote.run(|client| show(remote, client, part)),
            What::Set {
                file,
                if_version,
                dry_run,
            } => {
                let rules = read(&file)?;
                if dry_run {
                    let can = || "they can be set".to_owned();
                    return remote.print(can, || json!({ "valid": true }));
                }
                remote.run(async |client| {
                    let answer = set(&client, &rules, if_version).await?;
                    tell(remote, &answer, None)
                })
            }
            What::Diff { file } => {
                let rules = read(&file)?;
                remote.run(|client| diff(remote, client, rules))
            }
            What::Approvals { people, within } => remote.run(|client| {
                change(remote, client, Part::Approvals, move |rules| {
                    rules.approvals.approvals = people;
                    rules.approvals.expires_after_ms = u64::from(within) * 3_600_000;
                })
            }),
            What::Slo { objective, after } => remote.run(|client| {
                change(remote, client, Part::ErrorBudget, move |rules| {
                    rules.error_budget.allowed_per_10k = objective;
                    if let Some(after) = after {
                        rules.error_budget.min_sessions = after;
                    }
                })
            }),
            What::Retention(keep) => remote.run(|client| {
                change(remote, client, Part::Retention, move |rules| {
                    keep.alter(&mut rules.retention);
                })
            }),
            What::Usage { tenant } => remote.run(|client| usage(remote, client, tenant)),
        }
    }
}

fn read(file: &std::path::Path) -> Result<Governance, Problem> {
    let text = artifacts::read(file)?;
    let rules: Governance = yaml::read(&text)
        .map_err(|error| Problem::input(format!("{}: {error}", file.display())))?;
    rules.check().map_err(Problem::input)?;
    Ok(rules)
}

async fn fetch(client: &Client) -> Result<wire::Governance, Problem> {
    let request = wire::GetGovernanceRequest {};
    client.get_governance(request).await.map_err(refused)
}

fn parsed(answer: &wire::Governance) -> Result<Governance, Problem> {
    serde_json::from_str(&answer.document).map_err(|error| {
        Problem::failure(format!("the control plane's rules are not ours: {error}"))
    })
}

async fn set(
    client: &Client,
    rules: &Governance,
    if_version: u64,
) -> Result<wire::Governance, Problem> {
    let request = wire::SetGovernanceRequest {
        document: json!(rules).to_string(),
        if_version,
        request_id: request_id(),
    };
    client.set_governance(request).await.map_err(refused)
}

/// Changes a part of the rules as they are now; refused if somebody else does at the same time.
async fn change(
    remote: &Remote,
    client: Client,
    part: Part,
    alter: impl FnOnce(&mut Governance),
) -> Result<(), Problem> {
    let before = fetch(&client).await?;
    let mut rules = parsed(&before)?;
    alter(&mut rules);
    rules.check().map_err(Problem::input)?;
    let answer = set(&client, &rules, before.version).await?;
    tell(remote, &answer, Some(part))
}

async fn show(remote: &Remote, client: Client, part: Option<Part>) -> Result<(), Problem> {
    let answer = fetch(&client).await?;
    tell(remote, &answer, part)
}

fn tell(remote: &Remote, answer: &wire::Governance, part: Option<Part>) -> Result<(), Problem> {
    if let Some(proposal) = &answer.proposal {
        let id = &proposal.id;
        return remote.print(
            || {
                format!(
                    "fewer approvals have to be approved: proposed, and waits for somebody else: rspp rollout approve {id}"
                )
            },
            || json!({ "proposal": proposal.shape() }),
        );
    }
    let all = json!(parsed(answer)?);
    let shown = match part {
        Some(part) => all.get(part.as_str()).cloned().unwrap_or_default(),
        None => all,
    };
    remote.print(
        || {
            let mut rows = Vec::new();
            flatten(part.map_or("", Part::as_str), &shown, &mut rows);
            let version = format!("version {}\n", answer.version);
            version + &table(["rule", "value"], &rows)
        },
        || shown.clone(),
    )
}

/// Every leaf with the path to it.
fn flatten(path: &str, value: &Value, rows: &mut Vec<[String; 2]>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                flatten(&path, value, rows);
            }
        }
        // What has a default for everybody has nothing to show of its own.
        Value::Object(_) | Value::Null => rows.push([path.to_owned(), "-".to_owned()]),
        Value::Array(items) => {
            let texts: Vec<_> = items.iter().map(text).collect();
            rows.push([path.to_owned(), texts.join(", ")]);
        }
        leaf @ (Value::Bool(_) | Value::Number(_) | Value::String(_)) => {
            rows.push([path.to_owned(), text(leaf)]);
        }
    }
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

async fn diff(remote: &Remote, client: Client, rules: Governance) -> Result<(), Problem> {
    let answer = fetch(&client).await?;
    let before = parsed(&answer)?;
    // The version is given when they are set.
    let mut after = rules;
    after.admission.version = before.admission.version;
    let pretty = |rules: &Governance| serde_json::to_string_pretty(rules).map_err(Problem::failure);
    let name = format!("version {}", answer.version);
    let (before, after) = (pretty(&before)?, pretty(&after)?);
    artifacts::changed(remote, (&name, &before), ("file", &after))
}

async fn usage(remote: &Remote, client: Client, tenant: String) -> Result<(), Problem> {
    let request = wire::GetUsageRequest {
        tenant: tenant.clone(),
    };
    let usage = client.get_usage(request).await.map_err(refused)?;
    let row = [
        tenant.clone(),
        usage.open.to_string(),
        usage.opened_per_minute.to_string(),
        usage.tokens_per_minute.to_string(),
    ];
    remote.print(
        || table(["tenant", "open", "opened/min", "tokens/min"], &[row]),
        || {
            json!({
                "tenant": tenant,
                "open": usage.open,
                "opened_per_minute": usage.opened_per_minute,
                "tokens_per_minute": usage.tokens_per_minute,
            })
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_is_read_in_its_unit() {
        assert_eq!(age("30d"), Ok(2_592_000_000));
        assert_eq!(age("90s"), Ok(90_000));
        for bad in [
            "",
            "d",
            "30",
            "30w",
            "-1d",
            "+1d",
            "1.5h",
            "99999999999999999999d",
        ] {
            assert!(age(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_objective_leaves_so_many_failures() {
        for (text, allowed) in [
            ("99.5", 50),
            ("99", 100),
            ("99.99", 1),
            ("100", 0),
            ("0.01", 9_999),
        ] {
            assert_eq!(percent(text), Ok(allowed), "{text}");
        }
        for bad in ["", "0", "100.01", "99.555", "-1", "99,5", "+5", "5.", "x"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }
}
