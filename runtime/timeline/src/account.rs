//! What a session came to, for whoever is accounted for it: turns, tokens, audio, characters, and an
//! estimate of what that cost (F-075).

use std::{collections::BTreeMap, fmt};

use rspp_proto::{PipelineVersion, ProviderId, SessionId, Spending, TenantId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Entry, TerminalOutcome};

/// What an account calls its own format.
pub const ACCOUNT_SCHEMA: &str = "rspp.account.v1";

/// What providers charge, by provider, in whatever money the list is in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Prices(pub BTreeMap<ProviderId, UnitPrices>);

/// What one provider charges; what is absent is free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnitPrices {
    /// For a million tokens that it reads.
    pub million_tokens_read: f64,
    /// For a million tokens that it writes.
    pub million_tokens_written: f64,
    /// For a minute of audio that it recognises.
    pub audio_minute: f64,
    /// For a million characters that it speaks.
    pub million_characters: f64,
}

impl UnitPrices {
    fn cost(&self, spent: &Spending) -> f64 {
        let millions = |count: u64, price: f64| count as f64 / 1e6 * price;
        millions(spent.tokens_read, self.million_tokens_read)
            + millions(spent.tokens_written, self.million_tokens_written)
            + millions(spent.tts_characters, self.million_characters)
            + spent.audio_ms as f64 / 60e3 * self.audio_minute
    }
}

/// A session's account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// `rspp.account.v1`.
    pub schema: String,
    /// Who is accounted for the session.
    pub tenant_id: TenantId,
    /// The session.
    pub session_id: SessionId,
    /// The pipeline that it ran.
    pub pipeline_version: PipelineVersion,
    /// Turns that were accepted.
    pub turns: u64,
    /// Those of them that ended well.
    pub committed: u64,
    /// What its provider calls spent, those of discarded guesses and failed turns included.
    pub spending: Spending,
    /// The same by provider.
    pub by_provider: BTreeMap<ProviderId, Spending>,
    /// What that cost by the given prices; `None` without any.
    pub estimated_cost: Option<f64>,
    /// Providers that were asked and have no price: the estimate is without them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unpriced: Vec<ProviderId>,
}

/// Why there is no account. The codes are those of observability.md §7.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AccountError {
    /// The recording is another tenant's.
    #[error("cross_tenant_denied: the recording is not of tenant `{asked}`")]
    CrossTenant {
        /// Who asked.
        asked: TenantId,
    },
    /// The recording says nothing of a tenant.
    #[error("policy_tenant_scope_missing: the recording says nothing of who is accounted for it")]
    NoTenant,
    /// The recording does not say which session it is of.
    #[error("the recording has no header")]
    NoHeader,
}

impl Account {
    /// The account of a recorded session, for its own tenant and nobody else.
    pub fn of(
        entries: &[Entry],
        tenant: &TenantId,
        prices: Option<&Prices>,
    ) -> Result<Self, AccountError> {
        let mut header = None;
        let mut accounted = None;
        let (mut turns, mut committed) = (0, 0);
        let mut by_provider = BTreeMap::<ProviderId, Spending>::new();
        for entry in entries {
            match entry {
                Entry::Header(it) => {
                    accounted = accounted.or(it.tenant_id.as_ref());
                    header = Some(it);
                }
                Entry::Opening(opening) => accounted = Some(&opening.tenant_id),
                Entry::Turn(turn) if turn.turn_open_at.is_some() => {
                    turns += 1;
                    committed += u64::from(turn.terminal_outcome == Some(TerminalOutcome::Commit));
                }
                Entry::Invocation(call) => {
                    *by_provider.entry(call.provider_id.clone()).or_default() += call.spending;
                }
                Entry::Turn(_)
                | Entry::Plan(_)
                | Entry::Signal(_)
                | Entry::Event(_)
                | Entry::Outcome(_)
                | Entry::Transition(_)
                | Entry::Attempt(_)
                | Entry::Handoff(_)
                | Entry::Playout(_)
                | Entry::Level(_)
                | Entry::Dropped(_)
                | Entry::Footer(_)
                | Entry::Journal(_)
                | Entry::Tool(_)
                | Entry::Capture(_) => {}
            }
        }
        let header = header.ok_or(AccountError::NoHeader)?;
        let accounted = accounted.ok_or(AccountError::NoTenant)?;
        if accounted != tenant {
            let asked = tenant.clone();
            return Err(AccountError::CrossTenant { asked });
        }
        by_provider.retain(|_, spent| !spent.is_zero());
        let mut spending = Spending::default();
        for spent in by_provider.values() {
            spending += *spent;
        }
        let priced = |(id, spent): (&ProviderId, &Spending)| {
            let price = prices?.0.get(id)?;
            Some(price.cost(spent))
        };
        let unpriced = by_provider.iter().filter(|it| priced(*it).is_none());
        Ok(Self {
            schema: ACCOUNT_SCHEMA.to_owned(),
            tenant_id: tenant.clone(),
            session_id: header.session_id.clone(),
            pipeline_version: header.pipeline_version.clone(),
            turns,
            committed,
            spending,
            estimated_cost: prices.map(|_| by_provider.iter().filter_map(priced).sum()),
            unpriced: match prices {
                Some(_) => unpriced.map(|(id, _)| id.clone()).collect(),
                None => Vec::new(),
            },
            by_provider,
        })
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spending {
            tokens_read,
            tokens_written,
            audio_ms,
            tts_characters,
        } = self.spending;
        write!(
            f,
            "{}  {}  {} turns, {} committed; tokens {tokens_read} read, {tokens_written} written; \
             {:.1} s recognised; {tts_characters} characters spoken",
            self.tenant_id,
            self.session_id,
            self.turns,
            self.committed,
            audio_ms as f64 / 1e3,
        )?;
        if let Some(cost) = self.estimated_cost {
            write!(f, "; about {cost:.4}")?;
        }
        if !self.unpriced.is_empty() {
            let unpriced: Vec<_> = self.unpriced.iter().map(ToString::to_string).collect();
            write!(f, " without {}", unpriced.join(", "))?;
        }
        Ok(())
    }
}
