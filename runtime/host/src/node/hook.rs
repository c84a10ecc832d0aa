//! Calling a node's hooks: each once where the contract says so, none for longer than its time.

use std::{fmt, time::Duration};

use rspp_actors::Context;
use rspp_kernel::CancelReason;

use super::{NodeError, NodeHost, NodeReport, Step};

/// A hook of a node, beside the handlers that events and answers go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// [`Node::init`](super::Node::init).
    Init,
    /// [`Node::start`](super::Node::start).
    Start,
    /// [`Node::on_barge_in`](super::Node::on_barge_in).
    BargeIn,
    /// [`Node::on_cancel`](super::Node::on_cancel).
    Cancel(CancelReason),
    /// [`Node::on_budget_exhausted`](super::Node::on_budget_exhausted).
    BudgetExhausted,
    /// [`Node::stop`](super::Node::stop).
    Stop,
}

impl Hook {
    /// The method's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Start => "start",
            Self::BargeIn => "on_barge_in",
            Self::Cancel(_) => "on_cancel",
            Self::BudgetExhausted => "on_budget_exhausted",
            Self::Stop => "stop",
        }
    }

    /// Whether it is pointless once the node is not wanted any more. The others are how a node is
    /// told that it is not.
    fn is_of_the_beginning(self) -> bool {
        match self {
            Self::Init | Self::Start => true,
            Self::BargeIn | Self::Cancel(_) | Self::BudgetExhausted | Self::Stop => false,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl NodeHost {
    /// Initialises and starts the node. One that was initialised but does not start is stopped.
    pub(super) async fn begin(&mut self, ctx: &Context<Self>) -> Result<(), NodeError> {
        self.begun = true;
        self.ended = true;
        self.hook(ctx, Hook::Init).await?;
        self.ended = false;
        let started = self.hook(ctx, Hook::Start).await;
        if started.is_err() {
            self.end_node(ctx).await;
        }
        started
    }

    /// Calls a hook whose failure does not decide anything any more: it is told, that is all.
    pub(super) async fn notify(&mut self, ctx: &Context<Self>, hook: Hook) {
        if let Err(error) = self.hook(ctx, hook).await {
            self.report(NodeReport::HookFailed {
                hook,
                message: error.message.as_str().into(),
            });
        }
    }

    /// Stops the node, once.
    pub(super) async fn end_node(&mut self, ctx: &Context<Self>) {
        if !self.ended && self.begun {
            self.ended = true;
            self.notify(ctx, Hook::Stop).await;
            self.cx.emitted.clear();
        }
    }

    async fn hook(&mut self, ctx: &Context<Self>, hook: Hook) -> Result<(), NodeError> {
        let cx = &mut self.cx;
        let step = match hook {
            Hook::Init => self.node.init(cx),
            Hook::Start => self.node.start(cx),
            Hook::BargeIn => self.node.on_barge_in(cx),
            Hook::Cancel(reason) => self.node.on_cancel(cx, reason),
            Hook::BudgetExhausted => self.node.on_budget_exhausted(cx),
            Hook::Stop => self.node.stop(cx),
        };
        let work = match step {
            Step::Done(outcome) => return outcome,
            Step::Wait(work) | Step::Work(work) => work,
        };
        let limit = Duration::from_millis(self.setup.settings.budgets.hook_timeout_ms);
        let unwanted = async {
            if hook.is_of_the_beginning() {
                tokio::select! {
                    () = self.work.cancelled() => {}
                    () = ctx.cancellation().cancelled() => {}
                }
            } else {
                std::future::pending::<()>().await;
            }
        };
        // Boxed: hooks that wait are rare, and every host would have room for this.
        Box::pin(async {
            tokio::select! {
                biased;
                outcome = work => outcome,
                () = unwanted => Err(NodeError::new(format!("`{hook}` was cancelled"))),
                () = tokio::time::sleep(limit) => Err(NodeError::new(format!(
                    "`{hook}` took longer than {} ms",
                    limit.as_millis()
                ))),
            }
        })
        .await
    }
}
