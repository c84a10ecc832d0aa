//! `rspp credential`: certificates that say who asks a control plane.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rspp_proto::{Actor, TenantId};
use rspp_service::credentials::Authority;
use serde_json::json;

use crate::{problem::Problem, terminal};

/// Issue a certificate that says who asks a control plane, and as what
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp credential vera --role viewer                          For somebody who looks
  rspp credential otto --role operator --tenant acme          Who also moves acme's sessions, and only those
  rspp credential runtime-9 --role runtime --state /srv/rspp  For one more runtime
  eval \"$(rspp credential vera --role viewer)\"               And ask as vera from now on

It is signed by the authority that `rspp up --nodes` or `rspp-control-plane --dev` made in the directory. With an
authority of your own, issue certificates to the URI spiffe://<domain>/<role>/<name>[/tenant/<tenant>]…")]
pub(crate) struct Credential {
    /// Who it is for: the actor in the audit trail
    name: Actor,
    /// What they may do
    #[arg(long, value_enum)]
    role: Role,
    /// Only for this tenant; all without. May be repeated
    #[arg(long, value_name = "TENANT")]
    tenant: Vec<TenantId>,
    /// Directory of the authority; the certificate is put there
    #[arg(long, value_name = "DIR", default_value = ".rspp")]
    state: PathBuf,
    /// Domain of the control plane (`domain` of its settings)
    #[arg(long, value_name = "DOMAIN", default_value = "rspp.local")]
    domain: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Role {
    /// Look
    Viewer,
    /// Look; route, move and end sessions; empty runtimes and regions
    Operator,
    /// Everything that people do: publish, roll out, approve, set rules, turn keys, back up and restore
    Admin,
    /// What runtimes do: join, hold sessions, keep their state
    Runtime,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Runtime => "runtime",
        }
    }
}

impl Credential {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let name = self.name.as_str();
        if name.contains('/') || name.starts_with('.') {
            let what = format!(
                "`{name}`: names of people and runtimes have no `/`, and begin with no dot"
            );
            return Err(Problem::input(what));
        }
        let there = self.state.join(format!("{name}.pem"));
        if there.exists() {
            let what = format!(
                "{} is there already: choose another name, or delete it and its key first",
                there.display()
            );
            return Err(Problem::input(what));
        }
        let authority = Authority::existing(&self.state, &self.domain).map_err(Problem::input)?;
        let files = authority.person_of(name, self.role.as_str(), &self.tenant);
        let files = files.map_err(Problem::failure)?;
        let (certificate, key) = (files.certificate.display(), files.key.display());
        if self.json {
            return terminal::print_json(&json!({
                "name": name,
                "role": self.role.as_str(),
                "tenants": self.tenant,
                "authorities": authority.certificate(),
                "certificate": files.certificate,
                "key": files.key,
            }));
        }
        let authorities = authority.certificate();
        let line = format!(
            "export RSPP_TLS_CA={} RSPP_TLS_CERT={certificate} RSPP_TLS_KEY={key}",
            authorities.display()
        );
        terminal::print(terminal::of_lines(&[line]))
    }
}
