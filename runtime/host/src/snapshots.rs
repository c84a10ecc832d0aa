//! Which of the control plane's snapshots are in force.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex},
};

use rspp_kernel::plan::SnapshotProvenance;
use rspp_proto::spec::PolicyBundle;

/// The snapshots in force on a node: written by whoever hears from the control plane, read before each
/// turn opens. A turn keeps those that it opened with (lifecycle.md §4, 13).
#[derive(Debug)]
pub struct Snapshots {
    in_force: Mutex<Option<Arc<SnapshotProvenance>>>,
}

impl Default for Snapshots {
    /// Those of a process that stands alone; they are never stale.
    fn default() -> Self {
        Self {
            in_force: Mutex::new(Some(Arc::new(SnapshotProvenance::local()))),
        }
    }
}

impl Snapshots {
    /// These are in force from now on.
    pub fn publish(&self, snapshots: SnapshotProvenance) {
        self.set(Some(Arc::new(snapshots)));
    }

    /// Nothing newer was heard for as long as the last ones may be trusted: until others come, no turn
    /// opens (T2).
    pub fn expire(&self) {
        self.set(None);
    }

    fn set(&self, snapshots: Option<Arc<SnapshotProvenance>>) {
        *self.in_force.lock().expect("no code panics while locked") = snapshots;
    }

    /// What is in force; `None` if it has gone stale.
    pub(crate) fn in_force(&self) -> Option<Arc<SnapshotProvenance>> {
        self.in_force
            .lock()
            .expect("no code panics while locked")
            .clone()
    }
}

/// The snapshots as they hold for a session: where nobody resolves policies, the one that was handed
/// over with the session is in force.
pub(crate) fn for_policy<'a>(
    snapshots: &'a SnapshotProvenance,
    policy: Option<&PolicyBundle>,
) -> Cow<'a, SnapshotProvenance> {
    match policy {
        Some(policy)
            if snapshots.policy_resolution_snapshot
                == SnapshotProvenance::local().policy_resolution_snapshot =>
        {
            let mut own = snapshots.clone();
            own.policy_resolution_snapshot
                .clone_from(&policy.policy_resolution_snapshot);
            Cow::Owned(own)
        }
        Some(_) | None => Cow::Borrowed(snapshots),
    }
}
