//! What the commands that ask a control plane share: where it is, who asks, how answers look.

pub(crate) mod artifacts;
pub(crate) mod shape;

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use rspp_controlplane_api::{
    Client, ClientConfig, ConfigError, ControlError, reason, tls::TlsFiles,
};
use serde_json::Value;

pub(crate) use shape::{json_of, table, when};

use crate::{
    problem::{Problem, Told},
    terminal,
};

/// How long a command waits for an answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Where the control plane is, and who asks.
#[derive(Debug, Args)]
pub(crate) struct Remote {
    /// Control plane: `http://host:port` or `https://host:port`; several replicas by commas
    #[arg(
        long = "control-plane",
        value_name = "URL",
        env = "RSPP_CONTROL_PLANE",
        default_value = "http://127.0.0.1:7400",
        value_delimiter = ',',
        global = true
    )]
    addresses: Vec<String>,
    /// Authorities whose certificates are believed (PEM), with --cert and --key
    #[arg(long, value_name = "FILE", env = "RSPP_TLS_CA", requires_all = ["cert", "key"], global = true)]
    ca: Option<PathBuf>,
    /// Certificate that says who you are (PEM)
    #[arg(long, value_name = "FILE", env = "RSPP_TLS_CERT", requires_all = ["ca", "key"], global = true)]
    cert: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", env = "RSPP_TLS_KEY", requires_all = ["ca", "cert"], global = true)]
    key: Option<PathBuf>,
    /// File with the token that says who you are
    #[arg(long, value_name = "FILE", env = "RSPP_TOKEN_FILE", global = true)]
    token_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl Remote {
    /// Asks, and prints what came.
    pub(crate) fn run<F>(&self, ask: impl FnOnce(Client) -> F) -> Result<(), Problem>
    where
        F: Future<Output = Result<(), Problem>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Problem::failure)?;
        runtime.block_on(async { ask(self.client()?).await })
    }

    fn client(&self) -> Result<Client, Problem> {
        let tls = match (&self.ca, &self.cert, &self.key) {
            (Some(ca), Some(cert), Some(key)) => Some(TlsFiles {
                authorities: ca.clone(),
                certificate: cert.clone(),
                key: key.clone(),
            }),
            (None | Some(_), _, _) => None,
        };
        let token = self.token_file.as_ref().map(|path| {
            let text = std::fs::read_to_string(path);
            text.map_err(|error| Problem::input(format!("cannot read {}: {error}", path.display())))
        });
        let bearer = token
            .transpose()?
            .map(|token| -> rspp_controlplane_api::Bearer {
                let token = token.trim().to_owned();
                Arc::new(move || Some(token.clone()))
            });
        Client::new(ClientConfig {
            addresses: self.addresses.clone(),
            tls,
            bearer,
            deadline: DEADLINE,
        })
        .map_err(|error| match error {
            ConfigError::NoCredentials(_) => Problem::Input(Box::new(
                Told::new(reason::CREDENTIALS_MISSING, &error).with_fix(Some(
                    "give --ca, --cert and --key (or RSPP_TLS_CA, RSPP_TLS_CERT and RSPP_TLS_KEY)",
                )),
            )),
            ConfigError::NoAddress | ConfigError::Address(_) | ConfigError::Tls(_) => {
                Problem::input(error)
            }
        })
    }

    /// A table for people, JSON for programs.
    pub(crate) fn print(
        &self,
        people: impl FnOnce() -> String,
        programs: impl FnOnce() -> Value,
    ) -> Result<(), Problem> {
        if self.json {
            terminal::print_json(&programs())
        } else {
            terminal::print(people())
        }
    }
}

/// All pages of a list; `ask` gets the token of the page it is to ask for, and answers with it and the next
/// token.
pub(crate) async fn pages<T>(
    ask: impl AsyncFn(String) -> Result<(Vec<T>, String), ControlError>,
) -> Result<Vec<T>, Problem> {
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let (page, next) = ask(token).await.map_err(refused)?;
        found.extend(page);
        if next.is_empty() {
            return Ok(found);
        }
        token = next;
    }
}

/// Names this run of the program, so that what is sent again by itself has one effect.
pub(crate) fn request_id() -> String {
    format!("cli-{:032x}", rand::random::<u128>())
}

/// Why nothing was done, and what to do about it.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the form that `map_err` takes"
)]
pub(crate) fn refused(error: ControlError) -> Problem {
    let told = Told::new(error.reason(), &error)
        .with_fix(fix(&error))
        .with_retry_after(error.retry_after())
        .with_details(error.details());
    match error {
        ControlError::Unauthenticated { .. }
        | ControlError::Denied { .. }
        | ControlError::Refused { .. }
        | ControlError::UnknownSession
        | ControlError::Ended
        | ControlError::StateConflict { .. }
        | ControlError::Reserved { .. } => Problem::Input(Box::new(told)),
        ControlError::Unavailable { .. }
        | ControlError::Uncertain { .. }
        | ControlError::Held { .. }
        | ControlError::LettingGo { .. }
        | ControlError::Stale { .. }
        | ControlError::Overtaken
        | ControlError::HolderGone { .. }
        | ControlError::NotAdmitted { .. }
        | ControlError::NoRoute { .. }
        | ControlError::Answer(_) => Problem::Failure(Box::new(told)),
    }
}

/// What helps against an error that does not say so itself.
fn fix(error: &ControlError) -> Option<String> {
    if let Some(after) = error.retry_after() {
        let after = terminal::wait(after);
        return Some(format!("run the same command again in {after}"));
    }
    if let Some(fix) = fix_of_tls(error.reason()) {
        return Some(fix.to_owned());
    }
    let fix = match error {
        ControlError::Unavailable { .. } if error.reason() == reason::UNREACHABLE => {
            "is it running, and is --control-plane (or RSPP_CONTROL_PLANE) right?"
        }
        ControlError::Unavailable { .. }
        | ControlError::Uncertain { .. }
        | ControlError::LettingGo { .. } => "run the same command again",
        ControlError::Unauthenticated { .. } => {
            "say who you are by --token-file, or by --ca, --cert and --key"
        }
        ControlError::Denied { .. } => "ask somebody who may, or use their credentials",
        ControlError::Refused { reason, .. } => hint(reason)?,
        ControlError::UnknownSession => {
            "one that has only a route and a token begins when its client connects, and what is known of \
             one that has ended goes after a while"
        }
        ControlError::NotAdmitted { .. } => {
            "not by waiting: `rspp rules usage` shows what the tenant uses, `rspp rules show admission` what it may"
        }
        ControlError::Ended
        | ControlError::StateConflict { .. }
        | ControlError::Reserved { .. }
        | ControlError::Held { .. }
        | ControlError::Stale { .. }
        | ControlError::Overtaken
        | ControlError::HolderGone { .. }
        | ControlError::NoRoute { .. }
        | ControlError::Answer(_) => return None,
    };
    Some(fix.to_owned())
}

/// Which flag, or which file, is wrong where the two sides of a connection do not come together.
fn fix_of_tls(reason: &str) -> Option<&'static str> {
    match reason {
        reason::TLS_SERVER_UNTRUSTED => Some(
            "--ca (or RSPP_TLS_CA) has to name the file of the authority that issued the control plane's certificate",
        ),
        reason::TLS_SERVER_MISNAMED => Some(
            "name the control plane in --control-plane as its certificate does, or have it issued for this name",
        ),
        reason::TLS_SERVER_EXPIRED => {
            Some("have a new one issued, into the file that its setting `tls.certificate` names")
        }
        reason::TLS_CLIENT_UNTRUSTED => Some(
            "--cert and --key (or RSPP_TLS_CERT and RSPP_TLS_KEY) have to be of an authority in the file that \
             its setting `tls.authorities` names",
        ),
        reason::TLS_CLIENT_EXPIRED => {
            Some("have a new one issued for --cert and --key (or RSPP_TLS_CERT and RSPP_TLS_KEY)")
        }
        reason::TLS_EXPECTED => {
            Some("write https:// in --control-plane, and give --ca, --cert and --key")
        }
        reason::TLS_NOT_SPOKEN => {
            Some("write http:// in --control-plane if it speaks in the clear, else check the port")
        }
        _another => None,
    }
}

/// What helps against a refusal that does not say so itself.
fn hint(reason: &str) -> Option<&'static str> {
    match reason {
        reason::NOT_FOUND => Some("the `list` commands show what is there"),
        reason::VERSION_CONFLICT => Some("look at what it is now, then decide again"),
        _another => None,
    }
}
