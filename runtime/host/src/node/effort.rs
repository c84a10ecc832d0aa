//! What a node takes, and what it may: time by event or by turn, processor time, memory (F-045, F-107).

use std::time::Duration;

use rspp_actors::{Context, Failure};
use rspp_kernel::limit::CpuAllowance;
use rspp_proto::{Monotonic, spec::BudgetPer};
use tokio::time::Instant;

use super::{NodeError, NodeHost, NodeReport, NodeSetup, handler::Handled};

/// What one node has taken so far.
#[derive(Debug, Default)]
pub(super) struct Effort {
    /// Its processor time, where that is limited and anything was taken.
    cpu: Option<Box<CpuAllowance>>,
    /// When the handler at hand began, where handlers share a budget.
    began: Option<Monotonic>,
    /// What the handlers so far took of it.
    spent: Duration,
    /// Whether it was told that nothing is left of it.
    is_told: bool,
}

impl Effort {
    /// Whether the handlers of the node share one budget.
    fn is_shared(setup: &NodeSetup) -> bool {
        match setup.settings.limits.budget_per {
            BudgetPer::Event => false,
            BudgetPer::Turn => setup.settings.turn.is_some(),
        }
    }

    /// Whether the node may take the next event at once.
    pub(super) fn is_free(&mut self, setup: &NodeSetup) -> bool {
        let Some(cpu) = &mut self.cpu else {
            return true;
        };
        cpu.hold(now(setup)).is_none_or(|hold| {
            if hold.is_news {
                let wait = hold.until.since(now(setup));
                setup.tell(NodeReport::Throttled { wait });
                if let Some((_, meter)) = &setup.meters {
                    meter.was_throttled();
                }
            }
            false
        })
    }

    fn held_until(&mut self, setup: &NodeSetup) -> Option<Monotonic> {
        let hold = self.cpu.as_mut()?.hold(now(setup))?;
        Some(hold.until)
    }

    /// A handler begins.
    pub(super) fn begins(&mut self, setup: &NodeSetup) {
        self.began = Self::is_shared(setup).then(|| now(setup));
    }

    /// What is left of the budget; `None` if nothing is, and that was told.
    pub(super) fn left(&self, setup: &NodeSetup) -> Option<Duration> {
        let budget = setup.settings.budget;
        if Self::is_shared(setup) {
            (!self.is_told).then(|| budget.saturating_sub(self.spent))
        } else {
            Some(budget)
        }
    }

    /// The handler at hand has ended.
    pub(super) fn ends(&mut self, setup: &NodeSetup, charged: Duration, overran: bool) {
        if let Some(began) = self.began.take() {
            self.spent += now(setup).since(began);
            self.is_told |= overran;
        }
        let Some(per_second) = setup.settings.limits.cpu else {
            return;
        };
        let busy = setup.watched.take_busy() + charged;
        let now = now(setup);
        let cpu = self
            .cpu
            .get_or_insert_with(|| Box::new(CpuAllowance::new(per_second, now)));
        cpu.spend(now, busy);
        if let Some((_, meter)) = &setup.meters {
            meter.computed(busy);
        }
    }
}

fn now(setup: &NodeSetup) -> Monotonic {
    Monotonic::from_duration(setup.clock.now())
}

impl NodeHost {
    /// Waits until the node has processor time again; `false` if a cancel or the end came first, or
    /// what was to be done is overdue. What comes for it waits meanwhile, on its edges.
    pub(super) async fn wait_for_time(&mut self, ctx: &mut Context<Self>) -> Result<bool, Failure> {
        let stopped = ctx.cancellation().clone();
        while let Some(until) = self.effort.held_until(&self.setup) {
            let until: Instant = self.setup.clock.instant_at(until.as_duration());
            tokio::select! {
                biased;
                () = stopped.cancelled() => return Ok(false),
                () = ctx.stirred() => {}
                () = tokio::time::sleep_until(until) => continue,
            }
            if self.gives_up_waiting(ctx) {
                let waits = NodeError::new("a handler waits for processor time");
                self.conclude(ctx, Handled::Done(Err(waits)), None).await?;
                return Ok(false);
            }
            if self.hears_of_a_stop() {
                self.conclude(ctx, Handled::Cancelled, None).await?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What a handler came to, once what the node keeps is weighed.
    pub(super) fn weighed(&self, handled: Handled) -> Handled {
        let Some((kept, limit)) = self.cx.keeps_too_much() else {
            return handled;
        };
        match handled {
            Handled::Done(Ok(())) => {}
            other @ (Handled::Done(Err(_))
            | Handled::Cancelled
            | Handled::Deaf(_)
            | Handled::Hung(_)
            | Handled::Panicked(_)
            | Handled::TooLarge(_)
            | Handled::Shed(_)) => return other,
        }
        self.setup.tell(NodeReport::OverMemory { kept, limit });
        if let Some((_, meter)) = &self.setup.meters {
            meter.kept_too_much();
        }
        let message = format!("keeps {kept} bytes, and may keep {limit}");
        Handled::TooLarge(NodeError::new(message))
    }
}
