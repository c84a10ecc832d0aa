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
    Event, Port, Tags,
    node::{Node, NodeContext, NodeError, Step, builtin::NodeRegistry},
};

use rspp_kernel::state::StateError;
use rspp_proto::{IdError, Payload, SyncDomain, SyncId};
use serde_json::Value;

use super::scenario::{Hook, Hooks, Kept, NodeConduct, NodeTrouble};

/// How often the hooks of a kind's nodes ran.
#[derive(Debug, Default)]
struct Ran {
    init: AtomicU32,
    start: AtomicU32,
    stop: AtomicU32,
}

/// How often the hooks of each kind ran, kind by kind.
#[derive(Debug, Default)]
pub(super) struct Tally(BTreeMap<String, Arc<Ran>>);

impl Tally {
    /// Of all nodes of a kind so far.
    pub(super) fn of(&self, kind: &str) -> Hooks {
        self.0.get(kind).map_or_else(Hooks::default, |ran| Hooks {
            init: ran.init.load(Relaxed),
            start: ran.start.load(Relaxed),
            stop: ran.stop.load(Relaxed),
        })
    }
}

/// The kinds of a scenario, by name; the nodes of all registries are counted in `tally`.
pub(super) fn registry(kinds: &BTreeMap<String, NodeConduct>, tally: &mut Tally) -> NodeRegistry {
    let mut registry = NodeRegistry::default();
    for (name, conduct) in kinds {
        let conduct = *conduct;
        let struck = Arc::new(AtomicU32::new(0));
        let ran = Arc::clone(tally.0.entry(name.clone()).or_default());
        registry.register(
            name,
            Arc::new(move |_| {
                Box::new(Scripted {
                    conduct,
                    struck: Arc::clone(&struck),
                    ran: Arc::clone(&ran),
                    taken: 0,
                    numbered: 0,
                    moments: 0,
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
    ran: Arc<Ran>,
    taken: u32,
    /// Texts that it has numbered by itself.
    numbered: u64,
    /// Moments that it has said in parts.
    moments: u64,
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

    /// Passes an event on, in parts if it is to be.
    fn forward(&mut self, cx: &mut NodeContext, event: Event) -> Result<(), NodeError> {
        if self.conduct.parts == 0 {
            cx.forward(event);
            return Ok(());
        }
        self.moments += 1;
        let moment = format!("moment-{}", self.moments);
        let unnamed = |error: IdError| NodeError::new(error.to_string());
        let tags = Arc::new(Tags {
            sync_id: Some(SyncId::new(moment.as_str()).map_err(unnamed)?),
            sync_domain: Some(SyncDomain::new("av").map_err(unnamed)?),
            key: Some(moment.into()),
        });
        for _ in 0..self.conduct.parts {
            cx.forward(Event {
                tags: Some(Arc::clone(&tags)),
                ..event.clone()
            });
        }
        Ok(())
    }

    fn hook<'a>(&mut self, hook: Hook, cx: &NodeContext) -> Step<'a> {
        let ran = match hook {
            Hook::Init => &self.ran.init,
            Hook::Start => &self.ran.start,
            Hook::Stop => &self.ran.stop,
        };
        ran.fetch_add(1, Relaxed);
        if self.conduct.hook != Some(hook) {
            return Step::OK;
        }
        self.strike()
            .map_or(Step::OK, |trouble| befall(trouble, cx))
    }
}

/// The number after the one that is kept there, which is kept in its place.
async fn next_number(kept: Kept, own: &mut u64, cx: &mut NodeContext) -> Result<u64, NodeError> {
    const KEY: &str = "n";
    let after = |known: Option<Value>| known.and_then(|it| it.as_u64()).unwrap_or(0) + 1;
    let refused = |error: StateError| NodeError::new(error.to_string());
    let number = match kept {
        Kept::Node => {
            *own += 1;
            *own
        }
        Kept::Turn => {
            let state = cx.turn_state();
            let state = state.ok_or_else(|| NodeError::new("it is of no turn"))?;
            let number = after(state.get(KEY));
            state.put(KEY, &number.into()).map_err(refused)?;
            number
        }
        Kept::Hot => {
            let number = after(cx.hot_state().get(KEY));
            cx.hot_state().put(KEY, &number.into()).map_err(refused)?;
            number
        }
        Kept::Durable => {
            let state = cx.durable_state();
            let known = state.get(KEY).await.map_err(refused)?;
            let number = after(known.map(|(value, _)| value));
            state.put(KEY, &number.into()).await.map_err(refused)?;
            number
        }
    };
    Ok(number)
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

    fn on_event<'a>(
        &'a mut self,
        cx: &'a mut NodeContext,
        _port: Port,
        mut event: Event,
    ) -> Step<'a> {
        match self.of_event() {
            Some(trouble) => befall(trouble, cx),
            None if let Some(kept) = self.conduct.numbers_in => Step::Wait(Box::pin(async move {
                if let Payload::Text(text) = &mut event.payload {
                    let number = next_number(kept, &mut self.numbered, cx).await?;
                    text.text = format!("{number} {}", text.text).into();
                }
                self.forward(cx, event)
            })),
            None if self.conduct.takes_ms == 0 => Step::Done(self.forward(cx, event)),
            None => {
                let takes = Duration::from_millis(self.conduct.takes_ms);
                Step::Wait(Box::pin(async move {
                    tokio::time::sleep(takes).await;
                    self.forward(cx, event)
                }))
            }
        }
    }

    fn stop<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        self.hook(Hook::Stop, cx)
    }
}
