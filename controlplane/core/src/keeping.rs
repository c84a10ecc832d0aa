//! How long what sessions leave behind is kept, tenant by tenant (F-116).
//!
//! That is timelines, with the recordings and traces that are in them. It is decided by names and ages; nothing
//! is opened.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rspp_proto::{SessionId, TenantId, WallClock};
use serde::{Deserialize, Serialize};

/// How long timelines are kept. What is held stays, whatever its age.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keeping {
    /// The least that may be asked for, in milliseconds: what the law, or a contract, wants kept.
    pub at_least_ms: u64,
    /// How long where a tenant has no rule of its own, in milliseconds; for ever without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_ms: Option<u64>,
    /// What tenants have of their own.
    pub tenants: BTreeMap<TenantId, TenantKeeping>,
}

/// How long a tenant's timelines are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TenantKeeping {
    /// How long, in milliseconds; as everybody's without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_ms: Option<u64>,
    /// Nothing of this tenant's goes until that is taken back.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hold_all: bool,
    /// Sessions of which nothing goes until they are taken out.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub hold: BTreeSet<SessionId>,
}

/// What is to become of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lot {
    /// It stays: it is young, or nothing of it is ever to go.
    Kept,
    /// It is old enough to go, and held. That is told.
    Held,
    /// It goes.
    Over,
}

impl Keeping {
    /// Whether nobody has decided anything.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// How long a tenant's timelines are kept; for ever if `None`.
    pub fn keep(&self, tenant: Option<&TenantId>) -> Option<Duration> {
        let own = tenant.and_then(|it| self.tenants.get(it)?.keep_ms);
        own.or(self.keep_ms).map(Duration::from_millis)
    }

    /// What is to become of a tenant's recording that the archive has had, as it is, since `last`. `is_session`
    /// says whether it is of a session.
    pub fn lot(
        &self,
        tenant: Option<&TenantId>,
        is_session: impl Fn(&SessionId) -> bool,
        last: WallClock,
        now: WallClock,
    ) -> Lot {
        let age = Duration::from_millis(now.0.saturating_sub(last.0));
        if self.keep(tenant).is_none_or(|keep| age < keep) {
            return Lot::Kept;
        }
        let own = tenant.and_then(|it| self.tenants.get(it));
        let is_held = own.is_some_and(|it| it.hold_all || it.hold.iter().any(is_session));
        if is_held { Lot::Held } else { Lot::Over }
    }

    /// How long something of a session may wait on a machine's own disk; for ever if `None`, as what is held does.
    pub fn spooled(
        &self,
        tenant: Option<&TenantId>,
        is_session: impl Fn(&SessionId) -> bool,
    ) -> Option<Duration> {
        let own = tenant.and_then(|it| self.tenants.get(it));
        let is_held = own.is_some_and(|it| it.hold_all || it.hold.iter().any(is_session));
        if is_held { None } else { self.keep(tenant) }
    }

    /// What of it cannot be meant: which rule, and why.
    pub fn check(&self) -> Result<(), String> {
        let least = self.at_least_ms;
        let all = self
            .tenants
            .iter()
            .map(|(tenant, own)| (tenant.as_str(), own.keep_ms))
            .chain([("everybody", self.keep_ms)]);
        for (who, keep) in all {
            match keep {
                Some(0) => {
                    return Err(format!(
                        "{who}: 0 ms keep nothing; leave it out to keep for ever"
                    ));
                }
                Some(keep) if keep < least => {
                    return Err(format!(
                        "{who}: {keep} ms are less than at_least_ms, {least}, which has to be kept"
                    ));
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    fn rules() -> Keeping {
        let own = |keep_ms, hold_all, hold: &[&str]| TenantKeeping {
            keep_ms,
            hold_all,
            hold: hold.iter().map(|it| SessionId::new(*it).unwrap()).collect(),
        };
        Keeping {
            at_least_ms: 100,
            keep_ms: Some(1_000),
            tenants: BTreeMap::from([
                (tenant("brief"), own(Some(100), false, &[])),
                (tenant("sued"), own(None, false, &["call-7"])),
                (tenant("all"), own(Some(200), true, &[])),
            ]),
        }
    }

    /// F-116: each tenant by its own rule, nobody's by everybody's, and what is held stays and is told.
    #[test]
    fn each_tenants_timelines_go_by_its_own_rule() {
        let now = WallClock(10_000);
        let lot = |who: Option<&str>, session: &str, age: u64| {
            let who = who.map(tenant);
            let is_it = |held: &SessionId| held.as_str() == session;
            rules().lot(who.as_ref(), is_it, WallClock(10_000 - age), now)
        };
        let table = [
            (Some("acme"), "a", 999, Lot::Kept),
            (Some("acme"), "a", 1_000, Lot::Over),
            (None, "a", 1_000, Lot::Over),
            (Some("brief"), "a", 99, Lot::Kept),
            (Some("brief"), "a", 100, Lot::Over),
            (Some("sued"), "call-7", 999, Lot::Kept),
            (Some("sued"), "call-7", 1_000, Lot::Held),
            (Some("sued"), "call-8", 1_000, Lot::Over),
            (Some("all"), "a", 200, Lot::Held),
        ];
        for (who, session, age, expected) in table {
            assert_eq!(lot(who, session, age), expected, "{who:?} {session} {age}");
        }
        // Taken by a clock that goes ahead of ours.
        let ahead = rules().lot(None, |_| false, WallClock(20_000), now);
        assert_eq!(ahead, Lot::Kept);
        let for_ever = Keeping::default().lot(None, |_| false, WallClock(0), now);
        assert_eq!(for_ever, Lot::Kept);
    }

    /// F-116: nobody can set a rule that lets go what has to be kept.
    #[test]
    fn a_rule_below_the_least_is_refused() {
        assert_eq!(rules().check(), Ok(()));
        let mut short = rules();
        short.at_least_ms = 150;
        assert_eq!(
            short.check(),
            Err("brief: 100 ms are less than at_least_ms, 150, which has to be kept".to_owned())
        );
        short.tenants.clear();
        short.keep_ms = Some(0);
        assert!(short.check().unwrap_err().starts_with("everybody: 0 ms"));
    }
}
