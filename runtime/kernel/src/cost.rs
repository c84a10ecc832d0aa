//! What a session may spend, and what follows when it is spent (F-058, NF-017).
//!
//! Counts and compares; who stops what is for the nodes that spend.

use rspp_proto::{
    Spending,
    spec::{Cap, CapAction, CostCaps},
};

/// Something that is paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CostKind {
    /// Tokens that models write.
    Tokens,
    /// The user's audio that is recognised, in milliseconds.
    AudioMs,
    /// Characters that voices speak.
    TtsCharacters,
}

/// What a cap holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CapScope {
    /// One turn, and what was heard before it.
    Turn,
    /// The whole session.
    Session,
}

/// What may still be spent of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Of what.
    pub kind: CostKind,
    /// How much is left.
    pub left: u64,
    /// Which cap it is that allows no more.
    pub scope: CapScope,
    /// The whole cap.
    pub limit: u64,
    /// What follows when it is reached.
    pub action: CapAction,
}

impl Allowance {
    /// The reason as `budget_exhausted` carries it, where that follows.
    pub fn reason(&self, follows: CapAction) -> String {
        let kind = match self.kind {
            CostKind::Tokens => "tokens",
            CostKind::AudioMs => "audio_ms",
            CostKind::TtsCharacters => "tts_characters",
        };
        let scope = match self.scope {
            CapScope::Turn => "turn",
            CapScope::Session => "session",
        };
        let action = match follows {
            CapAction::Truncate => "truncate",
            CapAction::Summarize => "summarize",
            CapAction::Refuse => "refuse",
        };
        let limit = self.limit;
        format!("cost_cap_{kind} scope={scope} limit={limit} action={action}")
    }

    /// What follows, for work that has `begun` or not: what may not even begin cannot be cut short.
    pub fn effect(&self, begun: bool) -> CapAction {
        match self.action {
            _ if self.left == 0 && !begun => CapAction::Refuse,
            // Whoever can have it summarised does so before; see [`Self::summary`].
            CapAction::Truncate | CapAction::Summarize => CapAction::Truncate,
            CapAction::Refuse => CapAction::Refuse,
        }
    }

    /// How it is to be spent so that there is enough left to say the rest in short. `None` where it is to
    /// be cut: by policy, or because a summary would take more than the reply itself may.
    pub fn summary(&self) -> Option<Summary> {
        let (least, most) = match self.kind {
            CostKind::Tokens => (8, 48),
            CostKind::TtsCharacters => (40, 240),
            CostKind::AudioMs => return None,
        };
        match self.action {
            CapAction::Summarize => {}
            CapAction::Truncate | CapAction::Refuse => return None,
        }
        let rest = (self.left / 4).clamp(least, most);
        let draft = self.left.checked_sub(rest)?;
        (draft >= rest).then_some(Summary { draft, rest })
    }
}

/// A cap in two parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// What the reply itself may take.
    pub draft: u64,
    /// What is kept for the rest in short.
    pub rest: u64,
}

/// What a session has spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    turn: Spending,
    session: Spending,
}

impl Meter {
    /// Something was spent.
    pub fn spend(&mut self, more: Spending) {
        self.turn += more;
        self.session += more;
    }

    /// The turn is over; what is spent from here on belongs to the next. Tells what this one cost.
    pub fn turn_over(&mut self) -> Spending {
        std::mem::take(&mut self.turn)
    }

    /// What the session has spent so far.
    pub fn session(&self) -> Spending {
        self.session
    }

    /// What may still be spent of `kind`; `None` if nothing limits it.
    pub fn left(&self, caps: &CostCaps, kind: CostKind) -> Option<Allowance> {
        let of = |cap: Cap, spent: Spending, scope| {
            let (limit, spent) = match kind {
                CostKind::Tokens => (cap.tokens?, spent.tokens_written),
                CostKind::AudioMs => (cap.audio_seconds?.saturating_mul(1_000), spent.audio_ms),
                CostKind::TtsCharacters => (cap.tts_characters?, spent.tts_characters),
            };
            Some(Allowance {
                kind,
                left: limit.saturating_sub(spent),
                scope,
                limit,
                action: caps.action,
            })
        };
        let turn = of(caps.turn, self.turn, CapScope::Turn);
        let session = of(caps.session, self.session, CapScope::Session);
        let both = turn.into_iter().chain(session);
        both.min_by_key(|allowance| allowance.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(turn: Option<u64>, session: Option<u64>) -> CostCaps {
        let cap = |tokens| Cap {
            tokens,
            audio_seconds: tokens,
            tts_characters: tokens,
        };
        CostCaps {
            turn: cap(turn),
            session: cap(session),
            action: CapAction::Truncate,
        }
    }

    fn spent(amount: u64) -> Spending {
        Spending {
            tokens_read: 1_000,
            tokens_written: amount,
            audio_ms: amount * 1_000,
            tts_characters: amount,
        }
    }

    /// F-058: the tighter of turn and session holds, and a turn's cap holds anew in the next.
    #[test]
    fn the_tighter_cap_holds() {
        use CapScope::{Session, Turn};
        use CostKind::{AudioMs, Tokens, TtsCharacters};
        let caps = caps(Some(20), Some(50));
        let mut meter = Meter::default();
        let left = |meter: &Meter, kind| {
            let left = meter.left(&caps, kind).expect("there is a cap");
            (left.left, left.scope)
        };
        meter.spend(spent(15));
        assert_eq!(left(&meter, Tokens), (5, Turn));
        assert_eq!(left(&meter, AudioMs), (5_000, Turn));
        assert_eq!(left(&meter, TtsCharacters), (5, Turn));
        meter.spend(spent(10));
        assert_eq!(left(&meter, Tokens), (0, Turn));
        assert_eq!(meter.turn_over().tokens_written, 25);
        assert_eq!(left(&meter, Tokens), (20, Turn));
        meter.spend(spent(12));
        let _ = meter.turn_over();
        assert_eq!(left(&meter, Tokens), (13, Session));
        assert_eq!(meter.session().tokens_read, 3_000);
    }

    /// F-058: what is not capped is not limited, and what is left decides what can follow.
    #[test]
    fn nothing_at_all_cannot_be_cut_short() {
        let meter = Meter::default();
        let none = super::tests::caps(None, None);
        assert_eq!(meter.left(&none, CostKind::Tokens), None);
        let caps = caps(Some(20), None);
        let mut allowance = meter.left(&caps, CostKind::Tokens).unwrap();
        assert_eq!(
            allowance.reason(CapAction::Truncate),
            "cost_cap_tokens scope=turn limit=20 action=truncate"
        );
        allowance.left = 0;
        assert_eq!(allowance.effect(false), CapAction::Refuse);
        assert_eq!(allowance.effect(true), CapAction::Truncate);
        allowance.action = CapAction::Refuse;
        assert_eq!(allowance.effect(true), CapAction::Refuse);
    }

    /// F-058: a summary is kept room for, within the cap, where it is worth it; audio has none.
    #[test]
    fn room_is_kept_for_a_summary() {
        use CapAction::{Refuse, Summarize, Truncate};
        use CostKind::{AudioMs, Tokens, TtsCharacters};
        let of = |kind, left, action| Allowance {
            kind,
            left,
            scope: CapScope::Turn,
            limit: 1_000,
            action,
        };
        for (kind, left, split) in [
            (Tokens, 0, None),
            (Tokens, 15, None),
            (Tokens, 16, Some((8, 8))),
            (Tokens, 100, Some((75, 25))),
            (Tokens, 1_000, Some((952, 48))),
            (TtsCharacters, 79, None),
            (TtsCharacters, 80, Some((40, 40))),
            (TtsCharacters, 400, Some((300, 100))),
            (AudioMs, 60_000, None),
        ] {
            let allowance = of(kind, left, Summarize);
            let summary = allowance.summary().map(|it| (it.draft, it.rest));
            assert_eq!(summary, split, "{kind:?} {left}");
            assert_eq!(of(kind, left, Truncate).summary(), None);
            assert_eq!(of(kind, left, Refuse).summary(), None);
        }
        // What could not be summarised is cut.
        let allowance = of(Tokens, 15, Summarize);
        assert_eq!(allowance.effect(true), Truncate);
        assert_eq!(of(Tokens, 0, Summarize).effect(false), Refuse);
    }
}
