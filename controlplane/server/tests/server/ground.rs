//! What the control planes of this suite stand on: a file each. The same suite runs on etcd, in
//! `tests/stores`, on a ground of its own.

use std::{path::Path, sync::Arc};

use rspp_controlplane::store::Store;
use rspp_controlplane_storage::Embedded;

/// An empty store.
#[expect(clippy::unused_async, reason = "a cluster has to be waited for")]
pub(crate) async fn fresh(dir: &Path) -> Arc<dyn Store> {
    Arc::new(Embedded::open(&dir.join("store")).unwrap())
}
