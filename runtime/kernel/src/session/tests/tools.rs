//! Tools of a session: the bugs of others, and every call's one end over generated histories.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use rspp_proto::spec::{NodeSpec, SessionAction};
use serde_json::json;

use super::*;
use crate::{
    conversation::Said,
    tool::{ToolEnd, ToolEvent, ToolOutcome, ToolRequest, ToolStep},
};

/// A journal's step in a few words.
pub(super) fn described(step: &ToolStep) -> String {
    let (turn, call) = (step.turn, &step.call);
    match &step.what {
        ToolEvent::Requested { .. } => format!("{turn} {call} requested"),
        ToolEvent::Began => format!("{turn} {call} began"),
        ToolEvent::Ended { end, .. } => format!("{turn} {call} {}", end.as_str()),
        ToolEvent::Detached => format!("{turn} {call} goes on"),
        ToolEvent::Late { .. } => format!("{turn} {call} late"),
        ToolEvent::ActionCommitted(_) => format!("{turn} {call} action committed"),
        ToolEvent::ActionRefused(_) => format!("{turn} {call} action refused"),
    }
}

fn node() -> Arc<NodeSpec> {
    let node = json!({
        "id": "llm",
        "kind": "llm",
        "tools": [
            { "name": "order", "description": "Orders.", "parameters": { "type": "object" } },
            { "name": "look", "description": "Looks.", "effects": "none" },
            { "name": "end_call", "description": "Hangs up.", "effects": "none" },
        ],
    });
    Arc::new(serde_json::from_value(node).unwrap())
}

fn finished(content: &str) -> ToolOutcome {
    ToolOutcome {
        end: ToolEnd::Finished,
        content: content.to_owned(),
        action: None,
        attempts: 1,
    }
}

impl Rig {
    fn calls(&mut self, turn: u32, call: &str, tool: &str) {
        let request = ToolRequest {
            call: call.into(),
            tool: tool.into(),
            arguments: "{}".into(),
            round: 0,
        };
        self.take(Input::ToolsCalled {
            turn: TurnNumber(turn),
            node: node(),
            calls: vec![request],
        });
    }

    fn begins(&mut self, turn: u32, call: &str) {
        self.began.insert(call.to_owned());
        let (turn, call) = (TurnNumber(turn), call.into());
        self.take(Input::ToolBegan { turn, call });
    }

    fn ends(&mut self, turn: u32, call: &str, outcome: ToolOutcome) {
        let (turn, call) = (TurnNumber(turn), call.into());
        self.take(Input::ToolEnded {
            turn,
            call,
            outcome,
        });
    }

    fn interrupts(&mut self) {
        self.take(Input::Cancel {
            reason: CancelReason::BargeIn,
            scope: CancelScope::Turn,
        });
    }

    fn journal(&self) -> Vec<&str> {
        let lines = self.log.iter().map(String::as_str);
        lines.filter(|line| line.starts_with("turn-")).collect()
    }

    fn shown(&self) -> Vec<String> {
        let said = self.session.conversation().iter();
        said.map(|said| match said {
            Said::User { text } => format!("user: {text}"),
            Said::Agent { text, .. } => format!("agent: {text}"),
            Said::Tool(exchange) => {
                let end = exchange.end.map_or("running", ToolEnd::as_str);
                format!("{} {end}: {}", exchange.tool, exchange.result)
            }
        })
        .collect()
    }
}

/// A call is asked for, begins, ends and is answered; the next turn is shown it.
#[test]
fn a_call_is_written_down_before_it_is_answered() {
    let mut rig = Rig::talking();
    rig.calls(1, "a", "order");
    rig.begins(1, "a");
    rig.ends(1, "a", finished("done"));
    assert_eq!(
        rig.log,
        [
            "turn-0001 a requested",
            "RUN a",
            "turn-0001 a began",
            "turn-0001 a finished",
            "ANSWER a: done",
        ]
    );
    rig.speak(100);
    rig.take(Input::PlaybackFinished { turn: T1 });
    assert_eq!(
        rig.shown(),
        [
            "user: hello",
            "order finished: done",
            "agent: one two three four"
        ]
    );
}

/// P1: what an interrupted reply asked for does not begin, and its `end_call` does not hang up.
#[test]
fn nothing_of_an_interrupted_reply_is_done() {
    let mut rig = Rig::talking();
    rig.calls(1, "bye", "end_call");
    rig.begins(1, "bye");
    let outcome = ToolOutcome {
        action: Some(SessionAction::EndCall),
        ..finished("the call will end")
    };
    rig.ends(1, "bye", outcome);
    rig.calls(1, "late", "order");
    rig.interrupts();
    rig.calls(1, "later", "order");
    assert_eq!(
        rig.journal()[3..],
        [
            "turn-0001 late requested",
            "turn-0001 late refused",
            "turn-0001 bye action refused",
            "turn-0001 later requested",
            "turn-0001 later refused",
        ]
    );
    assert_eq!(rig.session.state(), SessionState::Active);
    assert!(!rig.log.contains(&"ACT EndCall".to_owned()));
}

/// `end_call` hangs up once its reply has been heard, not before.
#[test]
fn a_call_ends_when_the_reply_that_ends_it_has_been_heard() {
    let mut rig = Rig::talking();
    rig.calls(1, "bye", "end_call");
    let outcome = ToolOutcome {
        action: Some(SessionAction::EndCall),
        ..finished("the call will end")
    };
    rig.ends(1, "bye", outcome);
    rig.speak(100);
    assert_eq!(rig.session.state(), SessionState::Active);
    rig.take(Input::PlaybackFinished { turn: T1 });
    assert_eq!(rig.session.state(), SessionState::Ended);
    let position = |line: &str| rig.log.iter().position(|found| found == line);
    assert!(position("ACT EndCall") < position("commit"));
    assert!(position("commit") < position("ended"));
}

/// P7: an order that had begun when the user interrupted is seen through; the next turn knows its
/// result, and a model that could not know asks for nothing a second time.
#[test]
fn an_interruption_never_orders_twice() {
    let mut rig = Rig::talking();
    rig.calls(1, "a", "order");
    rig.begins(1, "a");
    rig.interrupts();
    rig.say("what?");
    assert!(rig.shown()[1].starts_with("order running: still running"));
    rig.calls(2, "b", "order");
    assert!(!rig.log.contains(&"RUN b".to_owned()));
    rig.ends(1, "a", finished("order 17"));
    assert_eq!(
        rig.journal(),
        [
            "turn-0001 a requested",
            "turn-0001 a began",
            "turn-0001 a goes on",
            "turn-0002 b requested",
            "turn-0001 a finished",
            "turn-0002 b finished",
        ]
    );
    assert!(rig.log.contains(&"ANSWER b: order 17".to_owned()));
    // Once the model knows, the same again is another order.
    rig.interrupts();
    rig.say("and another one");
    rig.calls(3, "c", "order");
    assert!(rig.log.contains(&"RUN c".to_owned()));
}

/// P7, P8: a call that was given up and comes back all the same keeps its end; what came of it is told.
#[test]
fn what_comes_back_after_its_end_is_kept_and_changes_no_end() {
    let mut rig = Rig::talking();
    rig.calls(1, "a", "look");
    rig.begins(1, "a");
    rig.interrupts();
    rig.ends(1, "a", finished("found"));
    assert_eq!(
        rig.journal()[2..],
        ["turn-0001 a abandoned", "turn-0001 a late"]
    );
    assert_eq!(rig.shown()[1], "look abandoned: found");
}

/// P7: a session ends only when what was begun for the user has ended.
#[test]
fn a_session_sees_its_orders_through() {
    let mut rig = Rig::talking();
    rig.calls(1, "a", "order");
    rig.begins(1, "a");
    rig.take(Input::Disconnected);
    assert_eq!(rig.session.state(), SessionState::Draining);
    rig.ends(1, "a", finished("done"));
    assert_eq!(rig.session.state(), SessionState::Ended);

    // Without authority nothing is waited for (T8).
    let mut rig = Rig::talking();
    rig.calls(1, "a", "order");
    rig.begins(1, "a");
    rig.interrupts();
    rig.take(Input::Revoked);
    assert_eq!(rig.session.state(), SessionState::Ended);
    assert_eq!(rig.journal().last(), Some(&"turn-0001 a abandoned"));
}

#[derive(Clone, Debug)]
enum Happening {
    Calls(u8, bool),
    Begins(u8),
    Ends(u8, ToolEnd),
    Speaks,
    Finishes,
    Interrupts,
    Says,
    Fails,
    HangsUp,
    Revoked,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    use Happening as H;
    let end = prop_oneof![
        Just(ToolEnd::Finished),
        Just(ToolEnd::Failed),
        Just(ToolEnd::TimedOut),
        Just(ToolEnd::Refused),
    ];
    let one = prop_oneof![
        6 => (0..5u8, any::<bool>()).prop_map(|(call, effects)| H::Calls(call, effects)),
        6 => (0..5u8).prop_map(H::Begins),
        6 => (0..5u8, end).prop_map(|(call, end)| H::Ends(call, end)),
        2 => Just(H::Speaks),
        2 => Just(H::Finishes),
        2 => Just(H::Interrupts),
        3 => Just(H::Says),
        1 => Just(H::Fails),
        1 => Just(H::HangsUp),
        1 => Just(H::Revoked),
    ];
    proptest::collection::vec(one, 0..60)
}

proptest! {
    /// P1, P8: whatever happens, each call of each turn gets exactly one end, and nothing is run that
    /// was asked for by a turn that was over.
    #[test]
    fn every_call_of_a_session_gets_exactly_one_end(happenings in happenings()) {
        use Happening as H;
        let mut rig = Rig::new();
        rig.say("hello");
        for happening in happenings {
            let turn = rig.session.next_turn.0 - 1;
            match happening {
                H::Calls(call, effects) => {
                    let tool = if effects { "order" } else { "look" };
                    let dead = rig.session.current_turn() != Some(TurnNumber(turn));
                    rig.calls(turn, &format!("{turn}-{call}"), tool);
                    let ran = rig.log.last().is_some_and(|line| line.starts_with("RUN"));
                    prop_assert!(!(dead && ran));
                }
                H::Begins(call) => rig.begins(turn, &format!("{turn}-{call}")),
                H::Ends(call, end) => {
                    let outcome = ToolOutcome { end, ..finished("x") };
                    // Of this turn, and of the one before.
                    for turn in [turn, turn.saturating_sub(1)] {
                        rig.ends(turn, &format!("{turn}-{call}"), outcome.clone());
                    }
                }
                H::Speaks => {
                    let turn = TurnNumber(turn);
                    rig.take(Input::PlaybackStarted { turn });
                }
                H::Finishes => {
                    let turn = TurnNumber(turn);
                    rig.take(Input::PlaybackFinished { turn });
                }
                H::Interrupts => rig.interrupts(),
                H::Says => rig.say("more"),
                H::Fails => {
                    let (turn, ending) = (TurnNumber(turn), Ending::NodeFailed);
                    rig.take(Input::TurnFailed { turn, ending });
                }
                H::HangsUp => rig.take(Input::Disconnected),
                H::Revoked => rig.take(Input::Revoked),
            }
        }
        rig.take(Input::ToolsGivenUp);
        rig.take(Input::Disconnected);
        prop_assert_eq!(rig.session.state(), SessionState::Ended);
        let mut calls = BTreeMap::<(String, String), (u32, u32, u32)>::new();
        let ends = ["finished", "failed", "timed_out", "abandoned", "refused"];
        for line in rig.journal() {
            let mut words = line.split(' ');
            let key = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
            let what = words.next().unwrap();
            let counts = calls.entry(key).or_default();
            counts.0 += u32::from(what == "requested");
            counts.1 += u32::from(ends.contains(&what));
        }
        for line in rig.log.iter().filter_map(|line| line.strip_prefix("RUN ")) {
            let of = calls.iter_mut().find(|((_, call), _)| call == line);
            of.expect("what runs was asked for").1.2 += 1;
        }
        for (call, (asked, ended, ran)) in calls {
            // A turn that is over refuses the same request each time that it comes.
            prop_assert!(asked >= 1 && ended == asked && ran <= 1, "{:?}: {:?}", call, rig.log);
        }
    }
}
