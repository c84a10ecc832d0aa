//! Whether this build knows the version of the Event ABI that a recording is written in (F-021).

use rspp_proto::abi::{AbiViolation, VersionWindow};
use rspp_timeline::Entry;

/// Refuses what was written in a version that this build does not read, with what to do about it.
pub(crate) fn check(entries: &[Entry]) -> Result<(), AbiViolation> {
    let envelopes = entries.iter().filter_map(Entry::envelope);
    let mut versions = envelopes.map(|envelope| envelope.schema_version);
    versions.try_for_each(|version| VersionWindow::CURRENT.check(version))
}
