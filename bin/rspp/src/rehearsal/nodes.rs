//! The nodes that only a rehearsal has.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use rspp_host::{
    Event, Port,
    node::{Node, NodeContext, NodeError, Step, builtin::NodeRegistry},
};

use super::scenario::{Hook, NodeConduct, NodeTrouble};

/// The kinds of a scenario, by name.
pub(super) fn registry(kinds: &BTreeMap<String, NodeConduct>) -> NodeRegistry {
    let mut registry = NodeRegistry::default();
    for (name, conduct) in kinds {
        let conduct = *conduct;
        let struck = Arc::new(AtomicU32::new(0));
        registry.register(
            name,
            Arc::new(move |_| {
                Box::new(Scripted {
                    conduct,
                    struck: Arc::clone(&struck),
                    taken: 0,
                })
            }),
        );
    }
    registry
}

/// Forwards what it gets, until the trouble comes.
struct Scripted {
    conduct: NodeConduct,
    /// How often the trouble came, to all nodes of the kind.
    struck: Arc<AtomicU32>,
    taken: u32,
}

impl Scripted {
    /// The trouble that this event brings, if it does.
    fn of_event(&mut self) -> Option<NodeTrouble> {
        if self.conduct.hook.is_some() {
            return None;
        }
        self.taken += 1;
        (self.taken > self.conduct.after_events).then(|| self.strike())?
    }

    fn strike(&mut self) -> Option<NodeTrouble> {
        let trouble = self.conduct.trouble?;
        let times = self.conduct.times.unwrap_or(u32::MAX);
        (self.struck.fetch_add(1, Relaxed) < times).then_some(trouble)
    }

    fn hook<'a>(&mut self, hook: Hook, cx: &NodeContext) -> Step<'a> {
        if self.conduct.hook != Some(hook) {
            return Step::OK;
        }
        self.strike()
            .map_or(Step::OK, |trouble| befall(trouble, cx))
    }
}

#[expect(clippy::panic, reason = "a node that panics is what is rehearsed")]
fn befall<'a>(trouble: NodeTrouble, cx: &NodeContext) -> Step<'a> {
    match trouble {
        NodeTrouble::Panic => panic!("as the scenario has it"),
        NodeTrouble::Fail => Step::Done(Err(NodeError::new("as the scenario has it"))),
        NodeTrouble::Hang => Step::Wait(Box::pin(std::future::pending())),
        NodeTrouble::WorkOn => {
            let cancelled = cx.cancellation().clone();
            Step::Work(Box::pin(async move {
                cancelled.cancelled().await;
                Ok(())
            }))
        }
        NodeTrouble::Deaf => Step::Work(Box::pin(std::future::pending())),
    }
}

impl Node for Scripted {
    fn init<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        self.hook(Hook::Init, cx)
    }

    fn start<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        self.hook(Hook::Start, cx)
    }

    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        match self.of_event() {
            Some(trouble) => befall(trouble, cx),
            None if self.conduct.takes_ms == 0 => {
                cx.forward(event);
                Step::OK
            }
            None => {
                let takes = Duration::from_millis(self.conduct.takes_ms);
                Step::Wait(Box::pin(async move {
                    tokio::time::sleep(takes).await;
                    cx.forward(event);
                    Ok(())
                }))
            }
        }
    }

    fn stop<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        self.hook(Hook::Stop, cx)
    }
}
