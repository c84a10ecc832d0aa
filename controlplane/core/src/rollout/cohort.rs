//! Which share of all sessions a session belongs to, the same on every machine and at all times.

use rspp_proto::{SessionId, TenantId};

/// How many cohorts there are: one a percent.
pub const COHORTS: u8 = 100;

/// A session's cohort: FNV-1a (32 bits) of `tenant:session`, modulo 100 (controlplane §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cohort(u8);

impl Cohort {
    /// The cohort of a tenant's session.
    pub fn of(tenant: &TenantId, session: &SessionId) -> Self {
        let bytes = tenant
            .as_str()
            .bytes()
            .chain(*b":")
            .chain(session.as_str().bytes());
        let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        Self((hash % u32::from(COHORTS)) as u8)
    }

    /// Its number, from 0.
    pub fn number(self) -> u8 {
        self.0
    }

    /// Whether it is among the first `percent`.
    pub fn is_within(self, percent: u8) -> bool {
        self.0 < percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By its definition in wider numbers: offset basis 2166136261, prime 16777619.
    #[test]
    fn the_hash_is_plain_fnv() {
        let reference = b"acme:call-1".iter().fold(2_166_136_261_u64, |hash, byte| {
            ((hash ^ u64::from(*byte)) * 16_777_619) % (1 << 32)
        });
        let found = Cohort::of(
            &TenantId::new("acme").unwrap(),
            &SessionId::new("call-1").unwrap(),
        );
        assert_eq!(u64::from(found.number()), reference % 100);
    }

    #[test]
    fn nobody_is_within_nothing_and_everybody_within_all() {
        for number in 0..COHORTS {
            assert!(!Cohort(number).is_within(0));
            assert!(Cohort(number).is_within(100));
            assert_eq!(Cohort(number).is_within(10), number < 10);
        }
    }
}
