//! Servers of tools that only a rehearsal has: they answer in virtual time, and no network is needed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use rspp_host::ToolRegistry;
use rspp_provider_api::{Tool, ToolFault, ToolFuture, ToolOutput, ToolRun};

use super::scenario::ServerAnswer;

/// The tools of a scenario, by the addresses that its pipeline posts to.
pub(super) fn registry(servers: &BTreeMap<String, Vec<ServerAnswer>>) -> ToolRegistry {
    let stand_ins: BTreeMap<String, Arc<StandIn>> = servers
        .iter()
        .map(|(url, answers)| {
            let stand_in = StandIn {
                answers: answers.clone().into(),
                asked: Arc::default(),
            };
            (url.clone(), Arc::new(stand_in))
        })
        .collect();
    ToolRegistry::with_http(move |server| match stand_ins.get(&server.url) {
        Some(stand_in) => Ok(Arc::clone(stand_in) as Arc<dyn Tool>),
        None => Err(format!("the scenario's `servers` have no `{}`", server.url)),
    })
}

/// Stands in for a server.
struct StandIn {
    /// One by one; the last of them from then on.
    answers: Arc<[ServerAnswer]>,
    asked: Arc<AtomicUsize>,
}

impl Tool for StandIn {
    fn commits_itself(&self) -> bool {
        true
    }

    fn run(&self, run: ToolRun) -> ToolFuture {
        let (answers, asked) = (Arc::clone(&self.answers), Arc::clone(&self.asked));
        Box::pin(async move {
            run.commit()?;
            let nth = asked.fetch_add(1, Relaxed);
            let Some(answer) = answers.get(nth).or(answers.last()) else {
                return Err(ToolFault::new("the scenario has no answer for it"));
            };
            tokio::time::sleep(Duration::from_millis(answer.late_ms)).await;
            match answer.refuses {
                None => Ok(ToolOutput::new(answer.says.clone())),
                Some(status) => {
                    let says = &answer.says;
                    let message = format!("the server refused with status {status}: {says}");
                    Err(if status >= 500 {
                        ToolFault::passing(message)
                    } else {
                        ToolFault::new(message)
                    })
                }
            }
        })
    }
}
