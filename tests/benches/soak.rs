//! Does memory stay flat? 10,000 sessions in one process, one after the other, some dozens at a time.
//!
//! `cargo bench -p rspp-tests --bench soak` prints a table, with `-- --json` JSON, with `-- --quick`
//! hastily; `-- --sessions N` holds so many. Scripted providers, real actors, virtual time.
//!
//! Each session is a conversation of two turns with a timeline in memory: one that goes well or is
//! interrupted, one whose model stalls, fails, or does well, by the session's number. Memory is what the
//! process occupies after each tenth of the sessions, when all of them have ended.

use std::{sync::Arc, time::Duration};

use rspp_proto::SessionId;
use rspp_provider_api::{
    Fault,
    scripted::{Conduct, Script, ScriptedLlm, ScriptedTts},
};
use rspp_tests::{
    bench::{Aim, Args, Table, resident},
    call::{Builder, Cast, LONG, after_reply, assert_nothing_left, first, over_reply, says},
};

/// Sessions at a time.
const AT_ONCE: usize = 50;

fn main() {
    let args = Args::read();
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let table = tokio.block_on(measure(args));
    table.print(args);
}

async fn measure(args: Args) -> Table {
    let sessions = args.sessions.unwrap_or(args.pick(10_000, 500));
    let cast = cast();
    let runtime = Builder::new(&cast, Vec::new()).runtime().await;
    let mut table = Table::new(
        "soak",
        format!(
            "{sessions} sessions of two turns, {AT_ONCE} at a time, in one process; virtual time"
        ),
    );
    let step = (sessions / 10).max(AT_ONCE);
    let mut sizes = Vec::new();
    let mut held = 0;
    while held < sessions {
        let mut ending = Vec::with_capacity(AT_ONCE);
        for n in held..(held + AT_ONCE).min(sessions) {
            let second = if n % 3 == 0 {
                says(over_reply(600))
            } else {
                says(after_reply())
            };
            let mut builder = Builder::new(&cast, vec![says(first()), second]);
            builder.session = SessionId::new(format!("call-{n}")).expect("not blank");
            builder.script.reply_timeout = Duration::from_secs(4);
            let placed = builder.open(&runtime).await.expect("the session opens");
            ending.push(placed.end());
        }
        held += ending.len();
        futures::future::join_all(ending).await;
        assert_nothing_left(&runtime);
        if held % step < AT_ONCE {
            let size = resident() / f64::from(1 << 20);
            table.note("resident", format!("after {held} sessions"), size, "MiB");
            sizes.push(size);
        }
    }
    // What is still learned in the first tenths, such as how large queues get, is no leak.
    let (settled, last) = (sizes.get(2).or(sizes.first()), sizes.last());
    let growth = match (settled, last) {
        (Some(settled), Some(last)) => (last / settled - 1.0) * 100.0,
        _ => f64::NAN,
    };
    table.aim(
        "growth",
        "growth from the third tenth to the last",
        growth,
        "%",
        Aim::AtMost(5.0),
    );
    runtime.shut_down(Duration::from_secs(5)).await;
    table
}

/// Providers that do well most of the time.
fn cast() -> Cast {
    let now_and_then = |trouble: Conduct| {
        let well = || vec![Conduct::good(); 6];
        let mut steps = well();
        steps.push(trouble);
        Script::calls((0..2_000).flat_map(move |_| steps.clone()))
    };
    let stalls = now_and_then(Conduct::good().stalling_after(2));
    let breaks = now_and_then(Conduct::good().failing_after(5, Fault::stream("broken pipe")));
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG]).script(stalls)),
        tts: Arc::new(ScriptedTts::new("tts").script(breaks)),
        ..Cast::default()
    }
}
