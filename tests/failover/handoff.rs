//! F8: what one node shows of a handoff (CP-07, CP-08, RK-24).

use std::{sync::Arc, time::Duration};

use rspp_controlplane_api::LocalLeases;
use rspp_proto::{
    Epoch, SessionId,
    abi::{Emitter, OutcomeKind, Signal},
};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Cast, LONG, after_reply, first, says},
    wire::{Opening, Over, Wire},
};
use rspp_timeline::{Entry, TurnBaseline};
use rspp_transport_api::{Ingress, Stamped};

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

/// A placement that shares its leases with others.
async fn placement(leases: &Arc<LocalLeases>) -> Wire {
    let leases = Arc::clone(leases);
    let opening = Opening {
        configure: Box::new(move |config| config.leases = leases),
        ..Opening::default()
    };
    Wire::open(&cast(), opening).await
}

/// The markers of a move that a placement has given.
fn markers(wire: &Wire) -> Vec<Signal> {
    let given = wire.signals().into_iter();
    given
        .filter(|signal| {
            matches!(
                signal,
                Signal::MigrationStart
                    | Signal::LeaseRotated
                    | Signal::SessionHandoff
                    | Signal::MigrationFinish
            )
        })
        .collect()
}

/// Who gave a signal, why, and under which epoch.
fn given(over: &Over, wanted: Signal) -> (Emitter, Option<&str>, Option<Epoch>) {
    let mut found = over.entries.iter().filter_map(|entry| match entry {
        Entry::Signal(signal) if signal.signal == wanted => Some(signal),
        _another_entry => None,
    });
    let signal = found.next().expect("it was given");
    assert!(found.next().is_none(), "{wanted} was given twice");
    (
        signal.emitted_by,
        signal.reason.as_ref().map(rspp_proto::Reason::as_str),
        signal.envelope.authority_epoch,
    )
}

fn baseline(over: &Over) -> &TurnBaseline {
    let mut found = over.entries.iter().filter_map(|entry| match entry {
        Entry::Turn(baseline) => Some(baseline),
        _another_entry => None,
    });
    let baseline = found.next().expect("the turn left evidence");
    assert!(baseline.is_complete(), "{:?}", baseline.missing());
    baseline
}

/// F8, F-157, AE-003: a move, marked at both ends in order: the old placement begins to leave, the lease
/// is the new one's, the old one hands over and drains with its turn, and it is done when the user is
/// heard at the new one. The session keeps its id; who still speaks under the old epoch is refused.
#[tokio::test(start_paused = true)]
async fn a_move_is_marked_in_order_at_both_ends() {
    let leases = Arc::new(LocalLeases::default());
    let old = placement(&leases).await;
    old.types("tell me a story");
    old.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    old.session.leave();
    old.until(Signal::MigrationStart, 1).await;
    assert_eq!(markers(&old), [Signal::MigrationStart]);

    let new = placement(&leases).await;
    new.until(Signal::LeaseRotated, 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(markers(&old), [Signal::MigrationStart]);
    assert_eq!(markers(&new), [Signal::LeaseRotated]);

    old.session.hand_over();
    old.until(Signal::Ended, 1).await;
    let left = [Signal::MigrationStart, Signal::SessionHandoff];
    assert_eq!(markers(&old), left);
    let of_the_old = Stamped {
        epoch: Some(Epoch::FIRST),
        key: None,
        event: Ingress::Text("is this still you".to_owned()),
    };
    new.send(Ingress::Stamped(Box::new(of_the_old)));
    new.until(Signal::StaleEpochReject, 1).await;
    assert_eq!(markers(&new), [Signal::LeaseRotated]);

    new.types("hello again");
    new.until(Signal::Close, 1).await;
    let arrived = [Signal::LeaseRotated, Signal::MigrationFinish];
    assert_eq!(markers(&new), arrived);
    let (old, new) = (old.end_by_itself().await, new.end().await);

    let (lease, route) = (Emitter::PlacementLease, Emitter::RoutingView);
    let (before, after) = (Some(Epoch::FIRST), Some(Epoch::FIRST.next()));
    for (over, marker, emitter, reason, epoch) in [
        (
            &old,
            Signal::MigrationStart,
            route,
            "region_failover_start",
            before,
        ),
        (
            &new,
            Signal::LeaseRotated,
            lease,
            "authority_epoch_rotation",
            after,
        ),
        (
            &old,
            Signal::SessionHandoff,
            route,
            "authoritative_handoff",
            before,
        ),
        (
            &new,
            Signal::MigrationFinish,
            route,
            "region_failover_complete",
            after,
        ),
    ] {
        assert_eq!(
            given(over, marker),
            (emitter, Some(reason), epoch),
            "{marker}"
        );
    }
    assert_eq!(old.report.session_id, new.report.session_id);
    assert_eq!(old.endings(), ["authority_loss"]);
    let signals = old.signals();
    let drained = [
        "session_handoff",
        "deauthorized_drain",
        "abort",
        "close",
        "ended",
    ];
    let of_the_end: Vec<_> = signals
        .into_iter()
        .filter(|it| drained.contains(it))
        .collect();
    assert_eq!(of_the_end, drained);
    assert_eq!(baseline(&old).lease_epoch_at_turn_open, before);
    assert_eq!(new.endings(), ["commit"]);
    assert_eq!(new.report.turns[0].user_text, "hello again");
    assert_eq!(baseline(&new).lease_epoch_at_turn_open, after);
    let refused = new.entries.iter().filter(|entry| {
        matches!(entry, Entry::Outcome(it) if it.outcome_kind == OutcomeKind::StaleEpochReject)
    });
    assert_eq!(refused.count(), 1);
    for over in [&old, &new] {
        assert_eq!(over.report.authority.stale_epoch_outputs_accepted, 0);
    }
}
