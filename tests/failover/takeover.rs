//! A machine that is gone: its calls go on elsewhere, once their time is up (CP-07, RK-24).

use std::{sync::Arc, time::Duration};

use rspp_controlplane_api::{LeaseError, MemoryStore};
use rspp_host::SessionHandle;
use rspp_proto::{
    Epoch, SessionId,
    abi::{Emitter, Signal},
};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Cast, LONG},
    sim::SimLeases,
    wire::{Opening, Over, Wire},
};
use rspp_timeline::Entry;
use tokio::time::Instant;

/// How long a lease lasts unless it is renewed.
const TTL: Duration = Duration::from_secs(5);

fn talkative() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG.repeat(4), "All right.".to_owned()])),
        ..Cast::default()
    }
}

/// A machine with a runtime of its own; leases and durable state are the cluster's.
async fn machine(leases: &Arc<SimLeases>) -> Wire {
    let leases = Arc::clone(leases);
    let opening = Opening {
        configure: Box::new(move |config| {
            config.store = Some(Arc::new(MemoryStore::new(Arc::<SimLeases>::clone(&leases))));
            config.leases = leases;
        }),
        ..Opening::default()
    };
    Wire::open(&talkative(), opening).await
}

/// Who said it, why, and under which epoch.
fn given(over: &Over, wanted: Signal) -> Vec<(Emitter, String, Option<Epoch>)> {
    let signals = over.entries.iter().filter_map(|entry| match entry {
        Entry::Signal(signal) if signal.signal == wanted => Some(signal),
        _another_entry => None,
    });
    signals
        .map(|signal| {
            let reason = signal.reason.as_ref();
            (
                signal.emitted_by,
                reason.map_or_else(String::new, ToString::to_string),
                signal.envelope.authority_epoch,
            )
        })
        .collect()
}

fn id(session: &SessionHandle) -> SessionId {
    session.id().clone()
}

/// P25, F-095, F8: a machine that is cut off from everybody in the middle of a reply loses its call, to
/// nobody before its lease has run out and to another machine right after: that one goes on with the
/// session under the newer epoch, while the old one has fallen silent in time, by itself, and can neither
/// speak nor open a turn any more.
#[tokio::test(start_paused = true)]
async fn a_call_of_a_machine_that_is_gone_goes_on_elsewhere() {
    let leases = Arc::new(SimLeases::new(Some(TTL), false));
    let old = machine(&leases).await;
    let session = id(&old.session);
    old.types("tell me a story");
    old.until(Signal::PlaybackStarted, 1).await;
    leases.cut(&session);
    let gone_at = Instant::now();
    let held = leases.acquire(&session);
    assert!(
        matches!(held, Err(LeaseError::Unreachable { .. })),
        "{held:?}"
    );

    old.until(Signal::Abort, 1).await;
    let silent_after = gone_at.elapsed();
    let (peer, taken) = (old.peer.clone(), old.peer.taken());
    assert!(
        silent_after < TTL,
        "before anybody else may speak: {silent_after:?}"
    );
    let early = leases.acquire(&session);
    assert!(early.is_err(), "nor may anybody yet: {early:?}");
    tokio::time::sleep(TTL.saturating_sub(silent_after) + Duration::from_millis(100)).await;

    let new = machine(&leases).await;
    assert_eq!(id(&new.session), session);
    new.types("are you still there");
    new.until(Signal::PlaybackCompleted, 1).await;
    let (old, new) = (old.end_by_itself().await, new.end().await);

    assert_eq!(peer.taken(), taken, "the old machine still speaks");
    assert_eq!(old.endings(), ["authority_loss"]);
    assert!(
        given(&old, Signal::SessionHandoff).is_empty(),
        "nobody could tell it"
    );
    let after = Epoch::FIRST.next();
    assert!(new.report.epoch >= after, "{}", new.report.epoch);
    assert_eq!(new.endings(), ["commit"]);
    let rotated = given(&new, Signal::LeaseRotated);
    assert_eq!(rotated.len(), 1);
    assert_eq!(rotated[0].0, Emitter::PlacementLease);
    assert_eq!(given(&new, Signal::MigrationFinish).len(), 1);
    for over in [&old, &new] {
        assert_eq!(over.report.authority.stale_epoch_outputs_accepted, 0);
    }
}
