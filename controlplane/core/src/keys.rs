//! Where each record lies in the store. Every key of the control plane is made here and nowhere else.

use rspp_proto::{RuntimeId, SessionId, TenantId};

use crate::{
    authority::Holder,
    registry::Kind,
    store::{Key, Prefix},
};

/// What the records' layout is called; a store of another layout is refused.
pub const LAYOUT: &str = "rspp.store.v1";

fn key<'a>(segments: impl IntoIterator<Item = &'a str>) -> Key {
    Key::of(std::iter::once("rspp").chain(segments))
}

/// Everything that belongs to a control plane.
pub fn all() -> Prefix {
    Key::of(["rspp"]).below()
}

/// Names the layout.
pub fn layout() -> Key {
    key(["layout"])
}

/// Who speaks for a session.
pub fn placement(session: &SessionId) -> Key {
    key(["placements", session.as_str()])
}

/// All sessions.
pub fn placements() -> Prefix {
    key(["placements"]).below()
}

/// Burns, by the store's clock, for as long as a revoked holder may still believe in its lease.
pub fn fuse(session: &SessionId) -> Key {
    key(["fuses", session.as_str()])
}

/// All fuses that burn.
pub fn fuses() -> Prefix {
    key(["fuses"]).below()
}

/// The order to let go of a session, as a holder reads it with each renewal.
pub fn revocation(holder: &Holder, session: &SessionId) -> Key {
    let incarnation = holder.incarnation.to_string();
    key([
        "revocations",
        holder.runtime.as_str(),
        &incarnation,
        session.as_str(),
    ])
}

/// All orders to let go that a holder has not followed yet.
pub fn revocations(holder: &Holder) -> Prefix {
    let incarnation = holder.incarnation.to_string();
    key(["revocations", holder.runtime.as_str(), &incarnation]).below()
}

/// All orders to let go that any life of a runtime was given.
pub fn revocations_of(runtime: &RuntimeId) -> Prefix {
    key(["revocations", runtime.as_str()]).below()
}

/// All orders to let go, of whatever holder.
pub fn all_revocations() -> Prefix {
    key(["revocations"]).below()
}

/// There as long as this life of a runtime renews its lease.
pub fn liveness(holder: &Holder) -> Key {
    let incarnation = holder.incarnation.to_string();
    key(["alive", holder.runtime.as_str(), &incarnation])
}

/// All runtimes that renew.
pub fn livenesses() -> Prefix {
    key(["alive"]).below()
}

/// What a runtime says of itself.
pub fn runtime(runtime: &RuntimeId) -> Key {
    key(["runtimes", runtime.as_str()])
}

/// All runtimes that ever registered and were not removed.
pub fn runtimes() -> Prefix {
    key(["runtimes"]).below()
}

/// The latest life of all runtimes whose records were removed.
pub fn removed_lives() -> Key {
    key(["removed-lives"])
}

/// How busy a runtime says it is; written often, and gone with its lease.
pub fn load(runtime: &RuntimeId) -> Key {
    key(["loads", runtime.as_str()])
}

/// How busy all runtimes are.
pub fn loads() -> Prefix {
    key(["loads"]).below()
}

/// That a life of a runtime goes, and what it had; numbered where one record does not hold it.
pub fn drain(holder: &Holder, part: usize) -> Key {
    let incarnation = holder.incarnation.to_string();
    key([
        "drains",
        holder.runtime.as_str(),
        &incarnation,
        &part.to_string(),
    ])
}

/// What is known of all lives of a runtime that went.
pub fn drains_of(runtime: &RuntimeId) -> Prefix {
    key(["drains", runtime.as_str()]).below()
}

/// What is known of all runtimes that went.
pub fn drains() -> Prefix {
    key(["drains"]).below()
}

/// What an operator wants of a region.
pub fn region(region: &rspp_proto::Region) -> Key {
    key(["regions", region.as_str()])
}

/// What operators want of regions.
pub fn regions() -> Prefix {
    key(["regions"]).below()
}

/// A published version.
pub fn artifact(kind: Kind, version: &str) -> Key {
    key(["artifacts", kind.as_str(), version])
}

/// All published versions of a kind.
pub fn artifacts(kind: Kind) -> Prefix {
    key(["artifacts", kind.as_str()]).below()
}

/// Which version new sessions get.
pub fn rollout(kind: Kind, line: &str) -> Key {
    key(["rollouts", kind.as_str(), line])
}

/// All rollouts of a kind.
pub fn rollouts(kind: Kind) -> Prefix {
    key(["rollouts", kind.as_str()]).below()
}

/// All rollouts.
pub fn all_rollouts() -> Prefix {
    key(["rollouts"]).below()
}

/// What was measured of a line's versions.
pub fn readings(kind: Kind, line: &str) -> Key {
    key(["readings", kind.as_str(), line])
}

/// What a runtime told last of a line's versions.
pub fn reported(runtime: &RuntimeId, kind: Kind, line: &str) -> Key {
    key(["reported", runtime.as_str(), kind.as_str(), line])
}

/// What a runtime told last of all lines.
pub fn reported_by(runtime: &RuntimeId) -> Prefix {
    key(["reported", runtime.as_str()]).below()
}

/// A change that waits for approval, or waited.
pub fn proposal(id: &str) -> Key {
    key(["proposals", id])
}

/// All such changes.
pub fn proposals() -> Prefix {
    key(["proposals"]).below()
}

/// Limits, residency and what needs approval.
pub fn governance() -> Key {
    key(["governance"])
}

/// What a tenant uses.
pub fn usage(tenant: &TenantId) -> Key {
    key(["usage", tenant.as_str()])
}

/// What all tenants use.
pub fn usages() -> Prefix {
    key(["usage"]).below()
}

/// How a session goes, as its runtime says.
pub fn status(session: &SessionId) -> Key {
    key(["status", session.as_str()])
}

/// How all sessions go.
pub fn statuses() -> Prefix {
    key(["status"]).below()
}

/// A value that a session keeps over its placements.
pub fn state(session: &SessionId, name: &str) -> Key {
    key(["state", session.as_str(), name])
}

/// All that a session keeps.
pub fn states(session: &SessionId) -> Prefix {
    key(["state", session.as_str()]).below()
}

/// One entry of the audit trail; keys sort by sequence.
pub fn audit(sequence: u64) -> Key {
    key(["audit", &format!("{sequence:020}")])
}

/// The audit trail.
pub fn audits() -> Prefix {
    key(["audit"]).below()
}

/// The last entry of the audit trail.
pub fn audit_head() -> Key {
    key(["audit-head"])
}

/// What became of a request, for as long as it may be repeated.
pub fn request(actor: &str, id: &str) -> Key {
    key(["requests", actor, id])
}

/// Public keys that signatures are checked with.
pub fn keyring() -> Key {
    key(["keyring"])
}

/// Held by the replica that has the duties which one alone may have.
pub fn leader() -> Key {
    key(["leader"])
}
