//! The snapshots that a node decides by: the newest of each kind, for as long as they may be trusted.

use std::{sync::Arc, time::Duration};

use rspp_controlplane_api::{Snapshot, SnapshotKind, SnapshotUpdate};
use rspp_kernel::plan::SnapshotProvenance;
use rspp_proto::Monotonic;

use super::shared::Shared;
use crate::Snapshots;

/// What was heard, and when.
pub(super) struct News {
    shared: Arc<Shared>,
    in_force: Arc<Snapshots>,
    max_staleness: Duration,
    /// When the store was last known to be as shown.
    as_of: Option<Monotonic>,
    names: SnapshotProvenance,
}

impl News {
    /// Nothing was heard: no turn opens before.
    pub(super) fn new(
        shared: Arc<Shared>,
        in_force: Arc<Snapshots>,
        max_staleness: Duration,
    ) -> Self {
        in_force.expire();
        Self {
            shared,
            in_force,
            max_staleness,
            as_of: None,
            names: SnapshotProvenance::local(),
        }
    }

    /// When what was heard is too old.
    pub(super) fn deadline(&self) -> Option<Monotonic> {
        self.as_of.map(|as_of| as_of + self.max_staleness)
    }

    /// Looks whether it is.
    pub(super) fn tick(&mut self, now: Monotonic) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.as_of = None;
            self.in_force.expire();
            self.shared.note(|status| status.fresh = false);
            tracing::warn!(
                "the control plane's snapshots are too old: no turn opens until others come"
            );
        }
    }

    /// Takes news in. An older snapshot is never taken after a newer one.
    pub(super) fn take(&mut self, now: Monotonic, update: SnapshotUpdate) {
        let heard = now.as_duration().saturating_sub(update.age);
        let heard = Monotonic::from_duration(heard);
        let was_fresh = self.as_of.is_some();
        // What was known to be as shown at a later moment does not become older.
        let as_of = self.as_of.map_or(heard, |as_of| as_of.max(heard));
        if as_of + self.max_staleness > now {
            self.as_of = Some(as_of);
        }
        let changed = update.snapshot.is_some_and(|snapshot| self.keep(snapshot));
        self.shared.view_heard(as_of);
        let is_fresh = self.as_of.is_some();
        if is_fresh && (changed || !was_fresh) {
            self.in_force.publish(self.names.clone());
        }
        if is_fresh != was_fresh {
            self.shared.note(|status| status.fresh = is_fresh);
        }
    }

    /// Takes in a view of the fleet that was fetched by itself: it says nothing of how old the rest is.
    pub(super) fn take_view(&mut self, now: Monotonic, view: Snapshot, age: Duration) {
        let changed = self.keep(view);
        let heard = now.as_duration().saturating_sub(age);
        self.shared.view_heard(Monotonic::from_duration(heard));
        if changed && self.as_of.is_some() {
            self.in_force.publish(self.names.clone());
        }
    }

    /// Keeps a snapshot if it is newer; whether plans name it otherwise now.
    fn keep(&mut self, snapshot: Snapshot) -> bool {
        let name = snapshot.name.clone();
        let kind = snapshot.kind;
        let mut is_newer = false;
        self.shared.note(|status| {
            let kept = match kind {
                SnapshotKind::RoutingView => &mut status.routing,
                SnapshotKind::VersionResolution => &mut status.versions,
                SnapshotKind::Governance => &mut status.governance,
                SnapshotKind::Keyring => &mut status.keyring,
            };
            is_newer = kept
                .as_ref()
                .is_none_or(|kept| kept.revision < snapshot.revision);
            if is_newer {
                *kept = Some(snapshot);
            }
        });
        if !is_newer {
            return false;
        }
        match kind {
            SnapshotKind::RoutingView => self.names.routing_view_snapshot = name,
            SnapshotKind::VersionResolution => self.names.version_resolution_snapshot = name,
            SnapshotKind::Governance => self.names.admission_policy_snapshot = name,
            SnapshotKind::Keyring => return false,
        }
        true
    }
}
