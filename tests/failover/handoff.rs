//! F8: what one node shows of a handoff (CP-07, CP-08, RK-24).

use std::{sync::Arc, time::Duration};

use rspp_controlplane_api::{Leases, LocalLeases};
use rspp_proto::{Epoch, SessionId, abi::Signal};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::call::{Builder, Cast, LONG, after_reply, first, says};

use crate::row::{assert_aborted, assert_committed, evidence};

fn cast() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "All right."])),
        ..Cast::default()
    }
}

/// F8, F-156, AE-003: when another placement takes the session over, the old one drains: its turn is
/// aborted, and it opens no other; the new one speaks under the newer epoch.
#[tokio::test(start_paused = true)]
async fn the_old_writer_drains_and_the_new_one_speaks() {
    let leases = Arc::new(LocalLeases::default());
    let place = |leases: Arc<LocalLeases>| {
        Builder::new(&cast(), vec![says(first()), says(after_reply())])
            .configure(move |config| config.leases = leases)
    };
    let old = place(Arc::clone(&leases)).start().await;
    old.log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let new = place(leases).start().await;
    old.session.revoke();
    let (old, new) = tokio::join!(old.end(), new.end());
    assert_aborted(&old, 1, "authority_loss");
    assert_eq!(old.endings(), ["authority_loss"], "it opens no other");
    assert!(old.heard()[0].cut);
    assert_eq!(old.report.epoch, Epoch::FIRST);
    assert_committed(&new, 1);
    assert_eq!(new.report.epoch, Epoch::FIRST.next());
    let baseline = evidence(&new, 1);
    assert_eq!(baseline.lease_epoch_at_turn_open, Some(Epoch::FIRST.next()));
}

/// F8, F-156: an epoch that is rotated in place ends the turn of the older one, and nothing of it is
/// heard after the newer; the session goes on under that.
#[tokio::test(start_paused = true)]
async fn a_rotation_in_place_moves_the_session_on() {
    let leases = Arc::new(LocalLeases::default());
    let granted = Arc::clone(&leases);
    let call = Builder::new(&cast(), vec![says(first()), says(after_reply())])
        .configure(move |config| config.leases = granted)
        .start()
        .await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let newer = leases.acquire(&SessionId::new("call").unwrap()).unwrap();
    call.session.rotate(newer.epoch);
    let ended = call.end().await;
    assert_aborted(&ended, 1, "authority_loss");
    assert_committed(&ended, 2);
    let old = evidence(&ended, 1);
    assert_eq!(old.lease_epoch_at_turn_open, Some(Epoch::FIRST));
    assert_eq!(old.lease_epoch_at_terminal, Some(newer.epoch));
    let new = evidence(&ended, 2);
    assert_eq!(new.lease_epoch_at_turn_open, Some(newer.epoch));
    assert_eq!(new.accepted_stale_epoch_outputs, 0);
}
