//! What may be spent: caps cut a reply where a clause ends, or end the turn, and say so.

use std::sync::{Arc, Mutex};

use rspp_proto::{
    Spending,
    abi::Signal,
    spec::{Cap, CapAction, CostCaps},
};
use rspp_provider_api::{
    Fault, LlmRequest, Role,
    scripted::{Conduct, Script, ScriptedLlm},
};
use rspp_tests::call::{Builder, Cast, Ended, after_reply, first, says};

/// Three clauses: of 5, 7 and 6 tokens; of 24, 31 and 32 characters.
const STORY: &str =
    "It was a bright morning. The sea was calm and very blue. Nobody went there any more then.";

fn cast() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([STORY])),
        ..Cast::default()
    }
}

fn tokens(tokens: u64) -> Cap {
    Cap {
        tokens: Some(tokens),
        ..Cap::default()
    }
}

fn characters(characters: u64) -> Cap {
    Cap {
        tts_characters: Some(characters),
        ..Cap::default()
    }
}

async fn hold(caps: CostCaps, turns: usize) -> (Cast, Ended) {
    let cast = cast();
    let said = (0..turns).map(|n| says(if n == 0 { first() } else { after_reply() }));
    let mut builder = Builder::new(&cast, said.collect());
    builder.script.reply_timeout = std::time::Duration::from_secs(4);
    let ended = builder
        .pipeline(|spec| spec.providers.caps = Some(Box::new(caps)))
        .hold()
        .await;
    (cast, ended)
}

/// F-058: a reply that is longer than its tokens allow ends where a clause does, and the turn goes on
/// to its commit; the model is not asked for more than is paid for.
#[tokio::test(start_paused = true)]
async fn a_reply_is_cut_where_a_clause_ends() {
    let caps = CostCaps {
        turn: tokens(15),
        ..CostCaps::default()
    };
    let (_, ended) = hold(caps, 2).await;
    assert_eq!(ended.endings(), ["commit", "commit"]);
    for turn in [1, 2] {
        let turn = ended.turn(turn);
        let fits = "It was a bright morning. The sea was calm and very blue.";
        assert_eq!(turn.agent_text_played, fits);
        assert_eq!(turn.spending.tokens_written, 15);
    }
    assert_eq!(
        ended.log.reasons_of(Signal::BudgetExhausted),
        ["cost_cap_tokens scope=turn limit=15 action=truncate"; 2]
    );
}

/// F-058: a reply whose first clause does not fit is cut at a word; one that fits is left alone.
#[tokio::test(start_paused = true)]
async fn a_clause_that_does_not_fit_is_cut_at_a_word() {
    let with = |turn| CostCaps {
        turn,
        ..CostCaps::default()
    };
    for (cap, heard) in [
        (tokens(3), "It was a"),
        (characters(10), "It was a"),
        (
            characters(80),
            "It was a bright morning. The sea was calm and very blue.",
        ),
        (tokens(100), STORY),
        (characters(200), STORY),
    ] {
        let (_, ended) = hold(with(cap), 1).await;
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.turn(1).agent_text_played, heard, "{cap:?}");
        let told = ended.log.signals_of(Signal::BudgetExhausted).len();
        assert_eq!(told, usize::from(heard != STORY), "{cap:?}");
    }
}

/// F-058: where policy refuses instead, the turn ends as soon as the cap is reached.
#[tokio::test(start_paused = true)]
async fn a_cap_may_end_the_turn() {
    for turn in [tokens(15), characters(80)] {
        let caps = CostCaps {
            turn,
            action: CapAction::Refuse,
            ..CostCaps::default()
        };
        let (_, ended) = hold(caps, 1).await;
        assert_eq!(ended.endings(), ["budget_exhausted"], "{turn:?}");
        let reasons = ended.log.reasons_of(Signal::BudgetExhausted);
        assert!(reasons[0].ends_with("action=refuse"), "{reasons:?}");
    }
}

/// F-058, NF-017: what a session has spent stays spent: once nothing is left no provider is asked.
#[tokio::test(start_paused = true)]
async fn a_session_cannot_spend_more_than_its_cap() {
    let caps = CostCaps {
        session: tokens(20),
        ..CostCaps::default()
    };
    let (cast, ended) = hold(caps, 3).await;
    assert_eq!(ended.endings(), ["commit", "commit", "budget_exhausted"]);
    assert_eq!(ended.report.spending.tokens_written, 20);
    assert_eq!(cast.llm.tally().calls, 2, "nobody was asked in vain");
    assert_eq!(
        ended.log.reasons_of(Signal::BudgetExhausted),
        [
            "cost_cap_tokens scope=session limit=20 action=truncate",
            "cost_cap_tokens scope=session limit=20 action=refuse",
        ]
    );
}

/// F-058: only as much of the user's audio is recognised as is paid for.
#[tokio::test(start_paused = true)]
async fn recognition_ends_where_its_cap_does() {
    let caps = CostCaps {
        session: Cap {
            audio_seconds: Some(1),
            ..Cap::default()
        },
        ..CostCaps::default()
    };
    let (cast, ended) = hold(caps, 2).await;
    assert!(
        ended.report.spending.audio_ms <= 1_000,
        "{:?}",
        ended.report.spending
    );
    assert_eq!(cast.stt.tally().calls, 1);
    let reasons = ended.log.reasons_of(Signal::BudgetExhausted);
    assert_eq!(
        reasons.first().map(String::as_str),
        Some("cost_cap_audio_ms scope=session limit=1000 action=truncate")
    );
}

/// F-075: a session's report says what it cost, and its turns add up to it.
#[tokio::test(start_paused = true)]
async fn a_session_knows_what_it_cost() {
    let (_, ended) = hold(CostCaps::default(), 2).await;
    let mut sum = Spending::default();
    for turn in &ended.report.turns {
        assert_eq!(turn.spending.tokens_written, 18);
        let spoken: usize = turn.agent_text.chars().count();
        // The blanks between clauses are not spoken.
        assert_eq!(turn.spending.tts_characters, spoken as u64 - 2);
        assert!(turn.spending.audio_ms >= 1_000 && turn.spending.audio_ms <= 2_000);
        assert!(turn.spending.tokens_read > 0);
        sum += turn.spending;
    }
    assert_eq!(sum, ended.report.spending);
}

/// A model that tells its story, and a short end to it when it is asked for one.
fn teller(asked: &Arc<Mutex<Vec<LlmRequest>>>, end: &'static str) -> Cast {
    let asked = Arc::clone(asked);
    let llm = ScriptedLlm::new("llm").answer_with(move |request: &LlmRequest| {
        asked.lock().unwrap().push(request.clone());
        match request.messages.last().unwrap().role {
            Role::System => end,
            Role::User | Role::Assistant | Role::Tool => STORY,
        }
    });
    Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    }
}

async fn tell(cast: &Cast, turn: Cap) -> Ended {
    let caps = CostCaps {
        turn,
        action: CapAction::Summarize,
        ..CostCaps::default()
    };
    Builder::new(cast, vec![says(first())])
        .pipeline(|spec| spec.providers.caps = Some(Box::new(caps)))
        .hold()
        .await
}

/// F-058: where policy says so, the rest of a reply that a cap cuts is said in short by its model, within
/// the cap, and the enforcement is told.
#[tokio::test(start_paused = true)]
async fn the_rest_of_a_long_reply_is_said_in_short() {
    for (cap, kind, limit) in [
        (tokens(16), "tokens", 16),
        (characters(80), "tts_characters", 80),
    ] {
        let asked = Arc::default();
        let cast = teller(&asked, "Nobody went there.");
        let ended = tell(&cast, cap).await;
        assert_eq!(ended.endings(), ["commit"]);
        let heard = "It was a bright morning. Nobody went there.";
        assert_eq!(ended.turn(1).agent_text_played, heard, "{kind}");
        assert_eq!(
            ended.log.reasons_of(Signal::BudgetExhausted),
            [format!(
                "cost_cap_{kind} scope=turn limit={limit} action=summarize"
            )]
        );
        let spent = ended.turn(1).spending;
        assert!(spent.tts_characters <= 80, "{spent:?}");
        if kind == "tokens" {
            assert!(spent.tokens_written <= limit, "{spent:?}");
        }
        // It is told what was heard, is offered no tools, and may not write more than is left.
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len(), 2, "once, and not again");
        let [.., told, wish] = &asked[1].messages[..] else {
            panic!("{:?}", asked[1]);
        };
        assert_eq!((told.role, wish.role), (Role::Assistant, Role::System));
        assert_eq!(told.content, "It was a bright morning.");
        assert!(asked[1].max_tokens.is_some_and(|most| most <= 40));
        assert!(asked[1].tools.is_empty());
    }
}

/// F-058: a summary that is too long itself, one that fails, and one that cannot be afforded: the rest is
/// left out, and that is told.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_said_in_short_is_cut() {
    let truncated =
        |limit: u64| format!("cost_cap_tokens scope=turn limit={limit} action=truncate");
    let summarized =
        |limit: u64| format!("cost_cap_tokens scope=turn limit={limit} action=summarize");
    // Too long: no end of a clause within what is left.
    let asked = Arc::default();
    let long = "Nobody at all ever went there any more then since it was so far away.";
    let ended = tell(&teller(&asked, long), tokens(16)).await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, "It was a bright morning.");
    let told = ended.log.reasons_of(Signal::BudgetExhausted);
    assert_eq!(told, [summarized(16), truncated(16)]);
    assert_eq!(ended.turn(1).spending.tokens_written, 16);
    // Fails.
    let asked = Arc::default();
    let mut cast = teller(&asked, "Nobody went there.");
    let fault = Fault::blocked("provider_client_error", "no");
    let conducts = [Conduct::good(), Conduct::good().failing_after(0, fault)];
    cast.llm = Arc::new(
        ScriptedLlm::new("llm")
            .answers([STORY])
            .script(Script::calls(conducts)),
    );
    let ended = tell(&cast, tokens(16)).await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, "It was a bright morning.");
    let told = ended.log.reasons_of(Signal::BudgetExhausted);
    assert_eq!(told, [summarized(16), truncated(16)]);
    // Not worth it.
    let asked = Arc::default();
    let ended = tell(&teller(&asked, "Nobody went there."), tokens(15)).await;
    assert_eq!(ended.endings(), ["commit"]);
    let fits = "It was a bright morning. The sea was calm and very blue.";
    assert_eq!(ended.turn(1).agent_text_played, fits);
    assert_eq!(
        ended.log.reasons_of(Signal::BudgetExhausted),
        [truncated(15)]
    );
    assert_eq!(asked.lock().unwrap().len(), 1);
}
