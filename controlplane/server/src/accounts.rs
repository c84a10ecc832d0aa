//! Accounts of runtimes that are emptied: what they had is written down when they begin to go, and what became
//! of each session is read off the sessions' records (NF-016).

use std::collections::BTreeMap;

use rspp_controlplane::{
    account::{Account, Drain},
    audit::Record,
    authority::Placement,
    keys,
    store::{Compare, Key, Op, StoreError, Txn, bytes},
};
use rspp_controlplane_api::wire;
use rspp_controlplane_storage::election::Office;
use rspp_proto::{
    Actor, RuntimeId, SessionId,
    control::{Emptying, Holder, Incarnation},
};
use serde_json::json;

use crate::{
    failure::Failure,
    plane::{Plane, wall_clock},
    wire as to,
};

/// Most records of one life that are written in one transaction.
const PARTS_AT_ONCE: usize = 1;
/// Losses that an entry of the audit trail names; the account names all.
const MAX_TOLD: usize = 100;

/// That a runtime goes.
#[derive(Clone)]
pub(crate) struct Word {
    /// What is to become of its sessions.
    pub(crate) how: Emptying,
    /// Whose word it is; `None`: its own.
    pub(crate) by: Option<Actor>,
}

/// An operator's drain that was taken back.
pub(crate) struct Undone {
    /// What the trail has of it.
    pub(crate) detail: serde_json::Value,
    /// Whether the runtime goes on ending all the same.
    pub(crate) ends_by_itself: bool,
}

/// What became of sessions, e.g. `2 moved, 1 ended`.
fn in_words(sums: &BTreeMap<&'static str, usize>) -> String {
    let words = sums
        .iter()
        .map(|(became, count)| format!("{count} {became}"));
    words.collect::<Vec<_>>().join(", ")
}

impl Plane {
    /// An operator empties a runtime: what is placed there is written down.
    pub(crate) async fn goes(
        &self,
        id: &RuntimeId,
        how: Emptying,
        by: Actor,
    ) -> Result<(), Failure> {
        let Some(runtime) = self.runtime(id) else {
            return Ok(()); // It has only just joined: nothing is there.
        };
        let holder = runtime.holder;
        let there = |it: &&Placement| it.holder() == Some(&holder);
        let sessions: Vec<SessionId> = {
            let placements = self.shared.placements.records();
            let there = placements.values().filter(there);
            there.map(|it| it.session.clone()).collect()
        };
        let by = Some(by);
        let word = Word { how, by };
        self.note_drain(&holder, Some(word), sessions).await
    }

    /// Writes down that a life of a runtime goes, and what of this is not known yet. Without a word of it, the
    /// runtime only names what it has because an operator empties it. Repeating it changes nothing.
    pub(crate) async fn note_drain(
        &self,
        holder: &Holder,
        word: Option<Word>,
        sessions: Vec<SessionId>,
    ) -> Result<(), Failure> {
        let had = sessions.len();
        let since = wall_clock();
        let mut is_new = false;
        loop {
            let (wrote, left) = self
                .settle(|| async {
                    let (keys, known) = self.drain_records(holder).await?;
                    let sessions = sessions.iter().cloned();
                    let next = match word.clone() {
                        Some(Word { how, by }) => {
                            let word = Drain {
                                holder: holder.clone(),
                                how,
                                by,
                                since,
                                sessions: std::collections::BTreeSet::new(),
                                accounted: false,
                            };
                            Drain::following(&known, &word, sessions)
                        }
                        None => Drain::naming(&known, sessions),
                    };
                    if next.is_empty() {
                        return Ok((None, (false, 0)));
                    }
                    let mut txn = Txn::default();
                    for (at, record) in next.iter().take(PARTS_AT_ONCE).enumerate() {
                        let key = keys::drain(holder, keys.len() + at);
                        txn = txn
                            .when(Compare::Absent(key.clone()))
                            .put(key, bytes(record));
                    }
                    if keys.is_empty() {
                        // The accounts of this runtime's earlier lives have been read, or never will be.
                        for key in self.older_drains(holder) {
                            txn.then.push(Op::Delete(key));
                        }
                    }
                    // Its own word is the first of what is written for it; an operator's has its entry already.
                    let own = word.as_ref().filter(|it| it.by.is_none());
                    let own = own.filter(|_| Drain::own(&known).is_none());
                    if let Some(Word { how, .. }) = own {
                        let detail = json!({ "holder": holder, "how": how, "sessions": had });
                        let name = holder.runtime.as_str();
                        let record = Record::automatic(since, "runtime_goes", name, detail);
                        txn = self.with_audit(txn, vec![record]).await?;
                    }
                    let left = next.len().saturating_sub(PARTS_AT_ONCE);
                    Ok((Some(txn), (own.is_some() || keys.is_empty(), left)))
                })
                .await?;
            is_new |= wrote;
            if left == 0 {
                break;
            }
        }
        if is_new && let Some(Word { how, .. }) = word {
            tracing::info!(%holder, how = how.as_str(), sessions = had, "a runtime goes");
        }
        Ok(())
    }

    /// An operator takes a runtime back into service: its account is closed, and what became of its sessions until
    /// then is returned for the audit trail. One that ends by itself goes on doing so, and its account stays, as
    /// its own.
    pub(crate) async fn undo_drain(
        &self,
        holder: &Holder,
        mut txn: Txn,
    ) -> Result<(Txn, Option<Undone>), Failure> {
        let (keys, known) = self.drain_records(holder).await?;
        let head = Drain::head(&known).filter(|head| head.by.is_some());
        let Some(head) = head else {
            return Ok((txn, None));
        };
        let account = self.account(&known, self.seems_alive(holder));
        let own = Drain::own(&known).cloned();
        let ends_by_itself = own.is_some();
        let detail = json!({
            "how": head.how,
            "by": head.by,
            "since_ms": head.since.0,
            "had": account.sessions.len(),
            "became": account.sums(),
            "ends_by_itself": ends_by_itself,
        });
        // Nobody names more meanwhile, or some of it would be left.
        txn = txn.when(Compare::Absent(keys::drain(holder, keys.len())));
        for (key, record) in keys.into_iter().zip(known) {
            txn = match &own {
                Some(own) => {
                    let record = Drain {
                        sessions: record.sessions,
                        ..own.clone()
                    };
                    txn.put(key, bytes(&record))
                }
                None => txn.delete(key),
            };
        }
        let undone = Undone {
            detail,
            ends_by_itself,
        };
        Ok((txn, Some(undone)))
    }

    /// What is written of a life, in order, from the store itself.
    async fn drain_records(&self, holder: &Holder) -> Result<(Vec<Key>, Vec<Drain>), Failure> {
        let (mut found, mut known) = (Vec::new(), Vec::new());
        loop {
            let key = keys::drain(holder, known.len());
            let (Some(drain), _) = self.read::<Drain>(&key).await? else {
                return Ok((found, known));
            };
            found.push(key);
            known.push(drain);
        }
    }

    /// What is known of lives of the same runtime before that one and the one before it.
    fn older_drains(&self, holder: &Holder) -> Vec<Key> {
        let of_runtime = keys::drains_of(&holder.runtime);
        let drains = self.shared.drains.records();
        let lives = drains.iter().filter(|(key, _)| of_runtime.holds(key));
        let kept = holder.incarnation.get().saturating_sub(1);
        let older = lives.filter(|(_, it)| it.holder.incarnation.get() < kept);
        older.map(|(key, _)| key.clone()).take(64).collect()
    }

    /// What became of each session of a runtime that was emptied; of its newest life that was, for 0.
    pub(crate) async fn drain_account(
        &self,
        id: &RuntimeId,
        incarnation: u64,
    ) -> Result<wire::DrainAccount, Failure> {
        let newest = {
            let of_runtime = keys::drains_of(id);
            let drains = self.shared.drains.records();
            let lives = drains.iter().filter(|(key, _)| of_runtime.holds(key));
            lives.map(|(_, it)| it.holder.incarnation).max()
        };
        let not_found = || Failure::NotFound {
            what: "drain",
            name: id.to_string(),
        };
        let incarnation = Incarnation::new(incarnation)
            .or(newest)
            .ok_or_else(not_found)?;
        let holder = Holder {
            runtime: id.clone(),
            incarnation,
        };
        let (_, known) = self.drain_records(&holder).await?;
        let head = Drain::head(&known).ok_or_else(not_found)?;
        let alive = self.seems_alive(&holder);
        let account = self.account(&known, alive);
        Ok(wire::DrainAccount {
            holder: Some((&holder).into()),
            how: wire::DrainHow::from(head.how).into(),
            by: head
                .by
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
            since_ms: head.since.0,
            alive,
            sessions: account
                .sessions
                .iter()
                .map(|(session, it)| to::accounted(session, it))
                .collect(),
        })
    }

    fn account(&self, known: &[Drain], alive: bool) -> Account {
        let placements = self.shared.placements.records();
        Account::of(known, alive, |session| {
            placements.get(&keys::placement(session)).cloned()
        })
    }

    /// Puts the account of each runtime of which nothing is left into the audit trail, once. A duty of the
    /// leader's.
    pub(crate) async fn account_drains(&self, office: &Office) -> Result<(), Failure> {
        let mut lives = BTreeMap::<Holder, Vec<Drain>>::new();
        {
            let drains = self.shared.drains.records();
            for drain in drains.values().filter(|it| !it.accounted) {
                lives.entry(drain.holder.clone()).or_default();
            }
            for drain in drains.values() {
                if let Some(known) = lives.get_mut(&drain.holder) {
                    known.push(drain.clone());
                }
            }
        }
        for (holder, known) in lives {
            let alive = self.seems_alive(&holder);
            let account = self.account(&known, alive);
            if !account.is_settled() {
                continue;
            }
            // What is followed may be a moment old: what seems lost is looked up.
            let mut found = BTreeMap::new();
            for (session, _) in account.losses() {
                let (placement, _) = self.read::<Placement>(&keys::placement(session)).await?;
                found.insert(session.clone(), placement);
            }
            let account = Account::of(&known, alive, |session| match found.get(session) {
                Some(placement) => placement.clone(),
                None => self.shared.placements.get(&keys::placement(session)),
            });
            if account.is_settled() {
                self.note_account(office, &holder, &account).await?;
            }
        }
        Ok(())
    }

    async fn note_account(
        &self,
        office: &Office,
        holder: &Holder,
        account: &Account,
    ) -> Result<(), Failure> {
        let mut txn = Txn::default().when(office.fence());
        let (parts, known) = self.drain_records(holder).await?;
        let Some(head) = Drain::head(&known).cloned() else {
            return Ok(());
        };
        for (key, drain) in parts.into_iter().zip(known) {
            let entry = self.store().get(&key).await?;
            let drain = Drain {
                accounted: true,
                ..drain
            };
            txn = txn
                .when(Compare::unchanged(&key, entry.as_ref()))
                .put(key, bytes(&drain));
        }
        let told = |(session, it): (&SessionId, &rspp_controlplane::account::Accounted)| {
            let told = to::accounted(session, it);
            json!({ "session": told.session, "became": told.became, "to": told.to, "why": told.why })
        };
        let out_of_order: Vec<_> = account.losses().take(MAX_TOLD).map(told).collect();
        let sums = account.sums();
        let detail = json!({
            "holder": holder,
            "how": head.how,
            "had": account.sessions.len(),
            "became": sums,
            "out_of_order": out_of_order,
        });
        let name = holder.runtime.as_str();
        let record = Record::automatic(wall_clock(), "drain_accounted", name, detail);
        let txn = self.with_audit(txn, vec![record]).await?;
        match self.store().commit(txn).await {
            Ok(_) => {
                let had = account.sessions.len();
                if out_of_order.is_empty() {
                    tracing::info!(%holder, had, became = %in_words(&sums), "a runtime was emptied");
                } else {
                    let out_of_order = serde_json::Value::Array(out_of_order);
                    tracing::warn!(%holder, had, became = %in_words(&sums), %out_of_order, "sessions were lost in a drain");
                }
                Ok(())
            }
            // In the next round.
            Err(StoreError::Conflict | StoreError::Uncertain(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
