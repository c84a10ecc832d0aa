//! Seeing a handler through: until it is done, until a cancel, until its time is up.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures::FutureExt;
use rspp_actors::{CancellationToken, Context};
use rspp_proto::Monotonic;
use tokio::time::Instant;

use rspp_provider_api::GatePermit;

use super::{
    NodeControl, NodeError, NodeHost, NodeReport, NodeSettings, NodeSetup, Step, outlet::Outlet,
};
use crate::{
    pulse::HandlerInProgress,
    schedule::{NodeSchedule, Shed},
};

/// How many budgets a handler of a listening node may take before it counts as hung: its session
/// cannot do without it, so it is made anew (P16).
pub(super) const HUNG_AFTER: u32 = 3;

/// What a handler came to.
pub(super) enum Handled {
    Done(Result<(), NodeError>),
    /// A cancel came first, and the handler ended in time.
    Cancelled,
    /// A cancel came first, and the handler was deaf to it for this long.
    Deaf(Duration),
    /// It took longer than a handler of a listening node may.
    Hung(Duration),
    /// It panicked, in a node whose panics are its own matter.
    Panicked(String),
    /// The node keeps more than it may.
    TooLarge(NodeError),
    /// There was no room for it.
    Shed(Shed),
}

/// What a handler is watched for.
pub(super) struct Watch<'a> {
    pub(super) setup: &'a NodeSetup,
    /// Fires when the work is no longer wanted.
    pub(super) token: &'a CancellationToken,
    /// What is left of its budget; `None` if all of it is spent, and that was told.
    pub(super) budget: Option<Duration>,
    /// Whether somebody could take over: then a budget is a limit (F-007), else it is only told.
    pub(super) is_limited: bool,
    /// Whether a panic is caught, and not the host's end.
    pub(super) is_guarded: bool,
    /// Whether a cancel lets what is in flight end (F-041).
    pub(super) is_soft: bool,
}

/// Sees a handler through, unless it panicked at once. Says whether it took longer than its budget.
pub(super) async fn finish(
    step: Result<Step<'_>, Handled>,
    ctx: &mut Context<NodeHost>,
    deferred: &mut std::collections::VecDeque<NodeControl>,
    outlet: &mut Outlet,
    watch: Watch<'_>,
) -> (Handled, bool) {
    let (work, winds_up) = match step {
        Ok(Step::Done(outcome)) => return (Handled::Done(outcome), false),
        Ok(Step::Wait(work)) => (work, false),
        Ok(Step::Work(work)) => (work, true),
        Err(panicked) => return (panicked, false),
    };
    let waits = watch.setup.waits();
    // A handler does nothing before it is polled: it begins with its slot.
    let slot = match held(&watch.setup.settings) {
        Some(schedule) => match Box::pin(slot(&schedule, watch.setup, ctx, deferred)).await {
            Ok(slot) => slot,
            Err(handled) => return (handled, false),
        },
        None => None,
    };
    let finished = if watch.is_guarded {
        let work = AssertUnwindSafe(watch.setup.watched.watch(work))
            .catch_unwind()
            .map(flatten);
        Box::pin(waited(work, winds_up, &waits, ctx, deferred, outlet, watch)).await
    } else {
        let work = watch.setup.watched.watch(work).map(Handled::Done);
        Box::pin(waited(work, winds_up, &waits, ctx, deferred, outlet, watch)).await
    };
    drop(slot);
    finished
}

/// The schedule that handlers of a node wait for, if they do.
fn held(settings: &NodeSettings) -> Option<NodeSchedule> {
    let schedule = &settings.schedule;
    let held = schedule.holds_handlers(&settings.spec.kind) || schedule.session().is_shed();
    held.then(|| schedule.clone())
}

/// Waits for a slot until there is one or a cancel comes.
async fn slot(
    schedule: &NodeSchedule,
    setup: &NodeSetup,
    ctx: &mut Context<NodeHost>,
    deferred: &mut std::collections::VecDeque<NodeControl>,
) -> Result<Option<GatePermit>, Handled> {
    let slot = schedule.slot(Duration::MAX);
    tokio::pin!(slot);
    let stopped = ctx.cancellation().clone();
    loop {
        tokio::select! {
            biased;
            () = ctx.stirred() => {
                setup.listen(ctx, deferred);
                // What has not begun is not finished either, however soft the cancel.
                if deferred.iter().any(|message| message.stops(false)) {
                    return Err(Handled::Cancelled);
                }
                if deferred.contains(&NodeControl::Unstick) {
                    let hangs = NodeError::new("a handler waits for its slot");
                    return Err(Handled::Done(Err(hangs)));
                }
            }
            () = stopped.cancelled() => return Err(Handled::Cancelled),
            slot = &mut slot => return slot.map_err(Handled::Shed),
        }
    }
}

/// Calls a handler whose panic is not the host's end.
pub(super) fn guarded<'a>(call: impl FnOnce() -> Step<'a>) -> Result<Step<'a>, Handled> {
    std::panic::catch_unwind(AssertUnwindSafe(call))
        .map_err(|panic| Handled::Panicked(told(&*panic)))
}

fn flatten(outcome: std::thread::Result<Result<(), NodeError>>) -> Handled {
    match outcome {
        Ok(outcome) => Handled::Done(outcome),
        Err(panic) => Handled::Panicked(told(&*panic)),
    }
}

fn told(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}

/// Runs a handler's future; control messages that do not concern it are kept for after it.
async fn waited(
    work: impl Future<Output = Handled>,
    winds_up: bool,
    waits: &HandlerInProgress,
    ctx: &mut Context<NodeHost>,
    deferred: &mut std::collections::VecDeque<NodeControl>,
    outlet: &mut Outlet,
    watch: Watch<'_>,
) -> (Handled, bool) {
    tokio::pin!(work);
    let Watch { setup, token, .. } = watch;
    let left = watch.budget;
    let hung_after = setup.settings.budget * HUNG_AFTER;
    let grace = Duration::from_millis(setup.settings.budgets.cancel_grace_ms);
    let is_listening = setup.settings.turn.is_none();
    // What downstream keeps it waiting for is none of its own time.
    let mut began = Instant::now();
    // What emits does not hang.
    let mut alive = began;
    let stopped = ctx.cancellation().clone();
    let mut overran = false;
    let mut until: Option<Instant> = None;
    loop {
        let is_cancelled = until.is_some();
        tokio::select! {
            biased;
            () = ctx.stirred(), if !is_cancelled => {
                setup.listen(ctx, deferred);
                if !deferred.iter().any(|message| message.stops(watch.is_soft)) {
                    if deferred.contains(&NodeControl::Unstick) {
                        let hangs = NodeError::new("a handler hangs");
                        return (Handled::Done(Err(hangs)), true);
                    }
                    continue;
                }
            }
            // Asked to stop: what the handler waits for is nobody's business any more.
            () = stopped.cancelled(), if !is_cancelled => {}
            event = outlet.streamed() => {
                if is_cancelled {
                    continue; // Nobody wants it any more.
                }
                let emitted = Instant::now();
                let passed = outlet.pass_on(ctx, deferred, setup, event).await;
                alive = Instant::now();
                began += alive - emitted;
                waits.emits(Monotonic::from_duration(setup.clock.now()));
                if passed {
                    continue;
                }
            }
            handled = &mut work => {
                if !is_cancelled
                    && matches!(handled, Handled::Done(Ok(())))
                    && let Some(event) = outlet.last_streamed()
                {
                    outlet.pass_on(ctx, deferred, setup, event).await;
                }
                // What cancelled work complains about is that it was cancelled.
                let handled = match handled {
                    Handled::Done(_) if is_cancelled => Handled::Cancelled,
                    handled => handled,
                };
                return (handled, overran);
            }
            () = tokio::time::sleep_until(until.unwrap_or(began)), if is_cancelled => {
                return (Handled::Deaf(grace), overran);
            }
            () = tokio::time::sleep_until(began + left.unwrap_or_default()),
                if !overran && left.is_some() =>
            {
                overran = true;
                let is_given_up = watch.is_limited;
                setup.tell(NodeReport::OverBudget { is_given_up });
                if watch.is_limited {
                    let late = NodeError::new("a handler took longer than the node's budget");
                    return (Handled::Done(Err(late)), true);
                }
                continue;
            }
            () = tokio::time::sleep_until(alive + hung_after), if is_listening => {
                return (Handled::Hung(hung_after), true);
            }
        }
        if !winds_up {
            return (Handled::Cancelled, overran);
        }
        token.cancel();
        until = Some(Instant::now() + grace);
    }
}
