//! Who may connect (transports.md §2). Fails closed: without somebody who knows tokens nobody comes in.

use std::{collections::BTreeMap, fmt, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use rspp_proto::{Epoch, PipelineVersion, SessionId, TenantId, WallClock, control::Versions};
use thiserror::Error;

use crate::{Elsewhere, TransportKind};

/// Knows which tokens are good: the control plane's keys, in whatever form a program has them.
pub trait TokenValidator: Send + Sync + 'static {
    /// What a token grants to a client that connects in this way, at this runtime, now.
    fn validate(
        &self,
        token: &str,
        kind: TransportKind,
        now: WallClock,
    ) -> Result<Grant, Unauthorized>;

    /// Looks anew where other runtimes are, after [`Unauthorized::ViewStale`] (F-159). Whether that came to
    /// something tells the next [`validate`](Self::validate).
    fn refresh_view(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}

/// What a good token grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The token's own name. It lets one session in, once.
    pub token_id: String,
    /// Whose session it is.
    pub tenant: TenantId,
    /// The session.
    pub session: SessionId,
    /// The version that it is meant to run; the door's own choice without.
    pub pipeline: Option<PipelineVersion>,
    /// The versions of policy and provider settings that go with it (F-102).
    pub versions: Versions,
    /// The epoch under which this runtime holds the session, if it does already.
    pub epoch: Option<Epoch>,
    /// From when on the token is worth nothing.
    pub expires_at: WallClock,
}

/// Why a client may not connect. Says nothing of what is in the token.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unauthorized {
    /// Nobody here knows tokens.
    #[error("no token can be checked here")]
    NoValidator,
    /// It showed none.
    #[error("a token is needed")]
    NoToken,
    /// It is too long to be one.
    #[error("the token is too long")]
    TooLong,
    /// Whoever knows tokens refused it.
    #[error("the token is refused: {0}")]
    Refused(&'static str),
    /// It is good, and for another runtime.
    #[error("the token is for another runtime, which is at {}", .0.url)]
    Elsewhere(Elsewhere),
    /// It is good, and for another runtime; where that is is not known lately enough to send anybody there.
    #[error(
        "the token is for another runtime, and where that is is not known just now; ask for a route again"
    )]
    ViewStale,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It has let a session in already.
    #[error("the token was used before")]
    UsedBefore,
    /// Too many tokens are in use at once to remember one more.
    #[error("too many tokens are in use; try again in a moment")]
    TooMany,
}

impl Unauthorized {
    /// A stable word for clients, records and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NoValidator => "no_validator",
            Self::NoToken => "token_missing",
            Self::TooLong => "token_too_long",
            Self::Refused(reason) => reason,
            Self::Elsewhere(_) => "elsewhere",
            Self::ViewStale => "routing_view_stale",
            Self::Expired => "token_expired",
            Self::UsedBefore => "token_used_before",
            Self::TooMany => "too_many_tokens",
        }
    }
}

/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = rspp_proto::MAX_LEASE_TOKEN_BYTES;
/// Used tokens that are remembered until they expire.
const MOST_USED: usize = 65_536;

/// The guard at a transport's door.
#[derive(Clone, Default)]
pub enum Guard {
    /// Nobody comes in.
    #[default]
    Closed,
    /// Whoever has a good token.
    Tokens(Arc<dyn TokenValidator>),
    /// Whoever reaches this machine's own loopback address, or knows one shared word.
    Local {
        /// Who its sessions are accounted to.
        tenant: TenantId,
        /// The word; `None` if being here is enough.
        password: Option<String>,
    },
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "Closed",
            Self::Tokens(_) => "Tokens",
            Self::Local { .. } => "Local",
        })
    }
}

/// Whom a guard let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Somebody with a token.
    Granted(Grant),
    /// Somebody on this machine; the door names the session.
    Local(TenantId),
}

impl Guard {
    /// Whether a client that shows `token` may connect.
    pub fn admit(
        &self,
        token: Option<&str>,
        kind: TransportKind,
        now: WallClock,
    ) -> Result<Admitted, Unauthorized> {
        if token.is_some_and(|token| token.len() > MAX_TOKEN_BYTES) {
            return Err(Unauthorized::TooLong);
        }
        match self {
            Self::Closed => Err(Unauthorized::NoValidator),
            Self::Local { tenant, password } => match password {
                None => Ok(Admitted::Local(tenant.clone())),
                Some(password) => {
                    let token = token.ok_or(Unauthorized::NoToken)?;
                    if is_same(token, password) {
                        Ok(Admitted::Local(tenant.clone()))
                    } else {
                        Err(Unauthorized::Refused("token_wrong"))
                    }
                }
            },
            Self::Tokens(validator) => {
                let token = token.ok_or(Unauthorized::NoToken)?;
                let grant = validator.validate(token, kind, now)?;
                // Whoever validates looks at the time too; that it forgets must not open the door.
                if grant.expires_at <= now {
                    return Err(Unauthorized::Expired);
                }
                Ok(Admitted::Granted(grant))
            }
        }
    }
}

impl Guard {
    /// Has it be known lately where a client is to be sent that came to the wrong runtime, before it is told
    /// (F-159).
    pub async fn freshen(&self, token: Option<&str>, kind: TransportKind, now: WallClock) {
        if let Self::Tokens(validator) = self
            && self.admit(token, kind, now) == Err(Unauthorized::ViewStale)
        {
            validator.refresh_view().await;
        }
    }
}

/// Whether two secrets are one, without telling by the time it takes how much was right.
pub fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let differ = one.iter().zip(other).fold(0, |acc, (a, b)| acc | (a ^ b));
    one.len() == other.len() && differ == 0
}

/// Tokens that have let a session in, until they expire: a token that was overheard is worth nothing
/// afterwards.
#[derive(Debug, Default)]
pub struct UsedTokens {
    until: BTreeMap<String, WallClock>,
}

impl UsedTokens {
    /// Uses a token, if it was not used before.
    pub fn claim(&mut self, grant: &Grant, now: WallClock) -> Result<(), Unauthorized> {
        if self.until.get(&grant.token_id).is_some_and(|at| *at > now) {
            return Err(Unauthorized::UsedBefore);
        }
        if self.until.len() >= MOST_USED {
            self.until.retain(|_, expires_at| *expires_at > now);
            // Better nobody than somebody twice.
            if self.until.len() >= MOST_USED {
                return Err(Unauthorized::TooMany);
            }
        }
        self.until.insert(grant.token_id.clone(), grant.expires_at);
        Ok(())
    }

    /// Gives a token back that let nobody in after all.
    pub fn release(&mut self, grant: &Grant) {
        self.until.remove(&grant.token_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallClock = WallClock(1_000);
    const KIND: TransportKind = TransportKind::Websocket;

    fn grant(id: &str, expires_at: u64) -> Grant {
        Grant {
            token_id: id.to_owned(),
            tenant: TenantId::new("tenant").unwrap(),
            session: SessionId::new("session").unwrap(),
            pipeline: None,
            versions: Versions::default(),
            epoch: None,
            expires_at: WallClock(expires_at),
        }
    }

    /// Takes any token, and knows no time.
    struct Careless;

    impl TokenValidator for Careless {
        fn validate(
            &self,
            token: &str,
            _kind: TransportKind,
            _now: WallClock,
        ) -> Result<Grant, Unauthorized> {
            match token {
                "forged" => Err(Unauthorized::Refused("token_bad_signature")),
                "old" => Ok(grant("old", 1_000)),
                other => Ok(grant(other, 2_000)),
            }
        }
    }

    /// F-088, transports.md §2: the original let everybody in where nobody could check.
    #[test]
    fn without_a_validator_nobody_comes_in() {
        let closed = Guard::default().admit(Some("good"), KIND, NOW);
        assert_eq!(closed, Err(Unauthorized::NoValidator));
    }

    #[test]
    fn only_good_tokens_come_in() {
        let guard = Guard::Tokens(Arc::new(Careless));
        let long = "x".repeat(MAX_TOKEN_BYTES + 1);
        for (token, refused) in [
            (None, "token_missing"),
            (Some("forged"), "token_bad_signature"),
            (Some("old"), "token_expired"),
            (Some(long.as_str()), "token_too_long"),
        ] {
            let error = guard.admit(token, KIND, NOW).unwrap_err();
            assert_eq!(error.as_str(), refused);
        }
        let admitted = guard.admit(Some("good"), KIND, NOW);
        assert_eq!(admitted, Ok(Admitted::Granted(grant("good", 2_000))));
    }

    #[test]
    fn a_local_guard_may_ask_for_a_word() {
        let tenant = TenantId::new("local").unwrap();
        let mut guard = Guard::Local {
            tenant: tenant.clone(),
            password: None,
        };
        let inside = Ok(Admitted::Local(tenant.clone()));
        assert_eq!(guard.admit(None, KIND, NOW), inside);
        guard = Guard::Local {
            tenant,
            password: Some("sesame".to_owned()),
        };
        assert_eq!(guard.admit(None, KIND, NOW), Err(Unauthorized::NoToken));
        for wrong in ["", "sesam", "sesamo", "sesame!"] {
            let refused = Err(Unauthorized::Refused("token_wrong"));
            assert_eq!(guard.admit(Some(wrong), KIND, NOW), refused);
        }
        assert_eq!(guard.admit(Some("sesame"), KIND, NOW), inside);
    }

    /// F-119: a token lets one session in.
    #[test]
    fn a_token_is_used_once() {
        let mut used = UsedTokens::default();
        let token = grant("a", 2_000);
        assert_eq!(used.claim(&token, NOW), Ok(()));
        assert_eq!(used.claim(&token, NOW), Err(Unauthorized::UsedBefore));
        used.release(&token);
        assert_eq!(used.claim(&token, NOW), Ok(()));
        for n in 1..MOST_USED {
            assert_eq!(used.claim(&grant(&format!("b{n}"), 1_500), NOW), Ok(()));
        }
        let more = grant("c", 2_000);
        assert_eq!(used.claim(&more, NOW), Err(Unauthorized::TooMany));
        assert_eq!(used.claim(&more, WallClock(1_500)), Ok(()), "room again");
        let again = used.claim(&token, WallClock(1_500));
        assert_eq!(again, Err(Unauthorized::UsedBefore));
    }
}
