//! Rehearsals: calls by a script, with everything that can go wrong going wrong on cue.
//!
//! A [`Scenario`] says what runs, who serves it and how well, what the users and the operators do at
//! which moment, and what is expected. The runtime is the real one; the providers are scripted, the
//! line is a loopback, and time is virtual unless the scenario asks for real time.

mod archive;
mod cast;
mod expect;
mod measures;
mod nodes;
mod patch;
mod perform;
mod scenario;
mod servers;

pub(crate) use expect::{Finding, wording};
pub(crate) use perform::{Performance, perform};
pub(crate) use scenario::Scenario;

/// The scripted providers of a scenario.
pub(crate) fn providers(
    scenario: &Scenario,
) -> Result<rspp_provider_api::Providers, crate::problem::Problem> {
    Ok(cast::Cast::of(scenario)?.providers)
}
