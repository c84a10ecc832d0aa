//! What a coordinator is: state, and one handler per lane.

use std::future::{Future, ready};

use tokio::time::Instant;
use tracing::Span;

use crate::context::Context;
use crate::exit::{ExitReason, Failure};
use crate::lane::Buffer;
use crate::refs::Address;
use crate::supervisor::ChildExit;

/// Where a coordinator can be reached.
pub type Handle<A> =
    Address<<A as Actor>::Control, <<A as Actor>::Data as Buffer>::Item, <A as Actor>::Telemetry>;

/// An actor that handles one item at a time.
///
/// Handlers run one after the other, control before data before telemetry, looked at anew between any two items. A
/// handler that returns an error, or panics, ends the actor; its parent's policy decides what follows. Between handlers
/// the parent's stop and the ends of children are looked at after at most a short batch of items.
pub trait Actor: Send + Sized + 'static {
    /// What its parent and peers tell it; never shed.
    type Control: Send + 'static;
    /// What its data lane keeps its items in; [`NoData`](crate::NoData) for none.
    type Data: Buffer;
    /// What may be lost under load; [`NoTelemetry`](crate::NoTelemetry) for none.
    type Telemetry: Send + 'static;
    /// What it is, in reports.
    const KIND: &'static str;

    /// Whose the actor is: what is logged while it works is said to be within. Made within its parent's.
    fn scope(&self) -> Span {
        Span::none()
    }

    /// Runs before anything else, while the parent waits: an error or a panic here is the parent's `Err` of spawn.
    fn started(
        &mut self,
        ctx: &mut Context<Self>,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = ctx;
        ready(Ok(()))
    }

    /// Handles one control message.
    fn on_control(
        &mut self,
        ctx: &mut Context<Self>,
        message: Self::Control,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Handles one data item.
    fn on_data(
        &mut self,
        ctx: &mut Context<Self>,
        item: <Self::Data as Buffer>::Item,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Handles one telemetry item. Ignored by default.
    fn on_telemetry(
        &mut self,
        ctx: &mut Context<Self>,
        item: Self::Telemetry,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (ctx, item);
        ready(Ok(()))
    }

    /// A child has ended and the restart policy has decided. Ignored by default.
    fn on_child_exit(
        &mut self,
        ctx: &mut Context<Self>,
        exit: ChildExit,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (ctx, exit);
        ready(Ok(()))
    }

    /// The moment set with [`Context::wake_at`] has passed. Ignored by default.
    fn on_deadline(
        &mut self,
        ctx: &mut Context<Self>,
        now: Instant,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (ctx, now);
        ready(Ok(()))
    }

    /// The lanes ran empty, or it is time to let others run: the place to flush what handlers batched.
    fn on_drained(
        &mut self,
        ctx: &mut Context<Self>,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = ctx;
        ready(Ok(()))
    }

    /// Runs last, after children and tasks have ended, within what is left of the grace. Not after a panic or a kill.
    fn stopped(
        &mut self,
        ctx: &mut Context<Self>,
        reason: &ExitReason,
    ) -> impl Future<Output = ()> + Send {
        let _ = (ctx, reason);
        ready(())
    }
}
