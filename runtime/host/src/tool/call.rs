//! A tool call as an actor: attempts within one deadline, and the look at the fence before the effect.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use rspp_actors::{
    CancellationToken, Clock, ControlRef, ExitReason, NoData, NoTelemetry, Pump, PumpContext,
};
use rspp_kernel::{
    fence::OutputFence,
    tool::{ToolEnd, ToolOutcome},
};
use rspp_proto::{Epoch, IdempotencyKey, Monotonic, SessionId, TurnNumber, WallClock};
use rspp_provider_api::{Attempt, Permit, Tool, ToolFault, ToolOutput, ToolRun};
use tokio::time::Instant;
use tracing::Span;

use crate::scope;
use crate::session::{Receipt, SessionControl};

/// Most attempts at an idempotent tool.
const ATTEMPTS: u32 = 3;
/// How long to wait after the first failed attempt; twice as long after the second.
const BACKOFF: Duration = Duration::from_millis(100);

const WAITING: u8 = 0;
const BEGAN: u8 = 1;
const CLOSED: u8 = 2;

/// Decides once whether a call begins: its executor opens it where the effect is about to happen,
/// its session closes it when the turn is over, and whoever comes first has decided (P1).
pub(crate) struct Gate {
    state: AtomicU8,
    fence: Arc<OutputFence>,
    clock: Clock,
    turn: TurnNumber,
    epoch: Epoch,
}

impl Gate {
    pub(crate) fn new(
        fence: Arc<OutputFence>,
        clock: Clock,
        turn: TurnNumber,
        epoch: Epoch,
    ) -> Self {
        Self {
            state: AtomicU8::new(WAITING),
            fence,
            clock,
            turn,
            epoch,
        }
    }

    /// The session closes it. Whether the call had begun.
    pub(crate) fn close(&self) -> bool {
        let was = self
            .state
            .compare_exchange(WAITING, CLOSED, Ordering::AcqRel, Ordering::Acquire);
        was == Err(BEGAN)
    }

    /// The executor passes it: turn and epoch are compared here, not when the call was queued.
    fn pass(&self) -> Passed {
        self.fence
            .expire(Monotonic::from_duration(self.clock.now()));
        let to = if self.fence.admits(self.turn, self.epoch) {
            BEGAN
        } else {
            CLOSED
        };
        match self
            .state
            .compare_exchange(WAITING, to, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) if to == BEGAN => Passed::Now,
            // What has begun is seen through, by its later attempts too.
            Err(BEGAN) => Passed::Before,
            Ok(_) | Err(_) => Passed::Refused,
        }
    }

    /// Whether the call has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.state.load(Ordering::Acquire) == BEGAN
    }

    fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) == CLOSED
    }
}

enum Passed {
    Now,
    Before,
    Refused,
}

/// Everything that a call needs.
pub(crate) struct ToolSetup {
    pub(crate) tool: Arc<dyn Tool>,
    /// What it has to wait for before it is carried out.
    pub(crate) leave: Option<Receipt>,
    pub(crate) session_id: SessionId,
    pub(crate) turn: TurnNumber,
    pub(crate) epoch: Epoch,
    /// The epoch under which the session's placement began.
    pub(crate) placed: Epoch,
    pub(crate) call: Arc<str>,
    pub(crate) arguments: Arc<str>,
    pub(crate) timeout: Duration,
    pub(crate) idempotent: bool,
    pub(crate) gate: Arc<Gate>,
    pub(crate) session: ControlRef<SessionControl>,
    pub(crate) cancel: CancellationToken,
    pub(crate) clock: Clock,
    /// The calendar time at the clock's beginning.
    pub(crate) wall_origin: WallClock,
}

/// The actor; a child of its session, since it may outlive its turn (P7).
pub(crate) struct ToolInvocation {
    setup: Option<ToolSetup>,
}

impl ToolInvocation {
    pub(crate) fn new(setup: Option<ToolSetup>) -> Self {
        Self { setup }
    }
}

impl Pump for ToolInvocation {
    type Control = std::convert::Infallible;
    type Data = NoData;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "tool-invocation";

    fn scope(&self) -> Span {
        let setup = self.setup.as_ref();
        setup.map_or_else(Span::none, |setup| scope::of_tool(setup.turn, &setup.call))
    }

    async fn run(&mut self, ctx: &mut PumpContext<Self>) -> ExitReason {
        let Some(setup) = self.setup.take() else {
            return ExitReason::Failed("a tool call is not begun twice".to_owned());
        };
        let stopped = ctx.cancellation().clone();
        let cancel = setup.cancel.clone();
        let limit = tokio::time::timeout(setup.timeout, setup.carried_out());
        let outcome = tokio::select! {
            biased;
            // Given up by its session, which has given it its end.
            () = stopped.cancelled() => None,
            () = cancel.cancelled() => None,
            outcome = limit => Some(outcome.unwrap_or_else(|_| setup.timed_out())),
        };
        // Whatever a tool has left running that asks for leave only now: the call has had its end.
        setup.gate.close();
        let Some(outcome) = outcome else {
            return ExitReason::Finished;
        };
        setup.tell(SessionControl::ToolEnded {
            turn: setup.turn,
            call: Arc::clone(&setup.call),
            outcome,
        });
        ExitReason::Finished
    }
}

impl ToolSetup {
    fn now(&self) -> Monotonic {
        Monotonic::from_duration(self.clock.now())
    }

    /// The session's control lane has a reserve for what ends a call.
    fn tell(&self, message: SessionControl) {
        if self.session.send_reserved(message).is_err() {
            tracing::debug!(call = %self.call, "the session takes no report of a tool");
        }
    }

    /// What has effects is written down first, so that another placement does not order it again.
    async fn carried_out(&self) -> ToolOutcome {
        if let Some(leave) = &self.leave
            && !leave.is_written().await
        {
            let content = "not executed: another placement speaks for the session".to_owned();
            return ended(ToolEnd::Refused, content, Attempt::FIRST);
        }
        self.attempts().await
    }

    async fn attempts(&self) -> ToolOutcome {
        let arguments = serde_json::from_str(&self.arguments).unwrap_or_default();
        let until = Instant::now() + self.timeout;
        let mut attempt = Attempt::FIRST;
        loop {
            if !self.tool.commits_itself() && !self.pass() {
                return refused(attempt);
            }
            let run = self.prepare(attempt, &arguments, until);
            let outcome = self.tool.run(run).await;
            if self.gate.is_closed() {
                return refused(attempt);
            }
            match outcome {
                Ok(ToolOutput { content, action }) => {
                    return ToolOutcome {
                        end: ToolEnd::Finished,
                        content,
                        action,
                        attempts: attempt.get(),
                    };
                }
                Err(fault) if self.may_repeat(&fault, attempt) => {
                    tokio::time::sleep(BACKOFF * attempt.get()).await;
                    attempt = attempt.next();
                }
                Err(fault) => return ended(ToolEnd::Failed, fault.message, attempt),
            }
        }
    }

    fn prepare(&self, attempt: Attempt, arguments: &serde_json::Value, until: Instant) -> ToolRun {
        let turn = self.turn.id();
        let (gate, session) = (Arc::clone(&self.gate), self.session.clone());
        let (number, call, clock) = (self.turn, Arc::clone(&self.call), self.clock);
        ToolRun {
            session: self.session_id.clone(),
            key: IdempotencyKey::of_tool(&self.session_id, self.placed, &turn, &self.call),
            turn,
            epoch: self.epoch,
            call: self.call.to_string(),
            arguments: arguments.clone(),
            attempt,
            within: until.saturating_duration_since(Instant::now()),
            wall: WallClock(self.wall_origin.0 + self.now().as_millis()),
            cancel: self.cancel.clone(),
            permit: Permit::new(move || pass(&gate, &session, number, &call, clock)),
        }
    }

    fn pass(&self) -> bool {
        pass(&self.gate, &self.session, self.turn, &self.call, self.clock)
    }

    fn may_repeat(&self, fault: &ToolFault, attempt: Attempt) -> bool {
        self.idempotent && fault.retryable && attempt.get() < ATTEMPTS
    }

    fn timed_out(&self) -> ToolOutcome {
        let limit = self.timeout.as_millis();
        let mut content = format!("no result within {limit} ms");
        content.push_str(if self.gate.close() {
            "; it may or may not have taken effect"
        } else {
            "; it had not begun, and will not"
        });
        let attempts = NonZeroU32::MIN;
        ended(ToolEnd::TimedOut, content, Attempt(attempts))
    }
}

/// Passes the gate; the session hears of it, with the time at which it was passed.
fn pass(
    gate: &Gate,
    session: &ControlRef<SessionControl>,
    turn: TurnNumber,
    call: &Arc<str>,
    clock: Clock,
) -> bool {
    match gate.pass() {
        Passed::Now => {
            let began = SessionControl::ToolBegan {
                turn,
                call: Arc::clone(call),
                at: Monotonic::from_duration(clock.now()),
            };
            if session.send_reserved(began).is_err() {
                tracing::debug!(%call, "the session takes no report of a tool");
            }
            true
        }
        Passed::Before => true,
        Passed::Refused => false,
    }
}

fn refused(attempt: Attempt) -> ToolOutcome {
    let content = "not executed: its turn was over before it began".to_owned();
    ended(ToolEnd::Refused, content, attempt)
}

fn ended(end: ToolEnd, content: String, attempt: Attempt) -> ToolOutcome {
    ToolOutcome {
        end,
        content,
        action: None,
        attempts: attempt.get(),
    }
}

/// How a call ended whose tool crashed.
pub(crate) fn crashed() -> ToolOutcome {
    let content = "the tool crashed; it may or may not have taken effect".to_owned();
    ended(ToolEnd::Failed, content, Attempt::FIRST)
}
