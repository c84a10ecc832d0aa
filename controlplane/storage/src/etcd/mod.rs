//! An etcd cluster, for more than one machine.
//!
//! The client is our own and small: the calls that the store needs, each with a deadline, tried at one
//! member after the other. The ready-made one builds only where `protoc` and its includes are
//! installed, and nothing else here asks for them; and it leaves open what became of a write whose
//! answer was lost, which [`once`] finds out.

mod client;
mod config;
mod lease;
mod once;
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::pedantic,
    clippy::enum_variant_names,
    clippy::unwrap_used,
    reason = "generated from protos/etcd.proto; a test generates it anew and compares"
)]
#[rustfmt::skip]
#[path = "generated.rs"]
mod pb;
mod secret;
mod watch;
mod wire;

use std::{num::NonZeroU64, time::Duration};

use bytes::Bytes;
use rspp_controlplane::store::{
    Answer, Changes, Entry, Granted, Key, LeaseId, MAX_PAGE, MIN_LEASE, Page, Prefix, Query,
    Revision, Store, StoreError, Txn,
};
use tonic::Status;

pub use self::config::{EtcdConfig, EtcdConfigError, EtcdIdentity, EtcdLogin, EtcdTls};
use self::{
    client::{Client, Member},
    once::Receipts,
};

/// A store in an etcd cluster.
pub struct Etcd {
    client: Client,
    receipts: Receipts,
}

impl Etcd {
    /// A store that connects when it is first asked.
    pub fn new(config: &EtcdConfig) -> Result<Self, EtcdConfigError> {
        Ok(Self {
            client: Client::new(config)?,
            receipts: Receipts::new(),
        })
    }

    async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        let send = |member: Member| {
            let request = request.clone();
            async move { member.kv().range(request).await }
        };
        // Reading twice does no harm, so whatever became of it, it is asked again.
        self.client.call(send).await
    }

    async fn read_failed(&self, status: &Status, asked: Revision) -> StoreError {
        if wire::is_compacted(status) {
            let oldest = self.oldest(asked).await;
            return StoreError::Compacted { oldest };
        }
        if wire::is_future(status) {
            return StoreError::Future { asked };
        }
        wire::not_done(status)
    }

    /// etcd does not say in its error from where on it can be read; what is there now can.
    async fn oldest(&self, asked: Revision) -> Revision {
        let request = pb::RangeRequest {
            key: Bytes::from_static(b"/"),
            limit: 1,
            ..pb::RangeRequest::default()
        };
        match self.range(request).await {
            Ok(answer) => wire::revision(answer.header.as_ref()),
            Err(_) => Revision(asked.0 + 1),
        }
    }

    async fn page(&self, query: Query) -> Result<Page, StoreError> {
        if query.at == Some(Revision(0)) {
            // 0 means now to etcd, and its store begins at 1.
            return Err(StoreError::Compacted {
                oldest: Revision(1),
            });
        }
        let key = match &query.after {
            Some(after) => format!("{}\0", after.as_str()).into(),
            None => wire::begin(&query.prefix),
        };
        let mut limit = query.limit.clamp(1, MAX_PAGE);
        let found = loop {
            let request = pb::RangeRequest {
                key: key.clone(),
                range_end: wire::behind(&query.prefix),
                limit: limit.cast_signed() as i64,
                revision: query.at.map_or(0, wire::number),
            };
            match self.range(request).await {
                Ok(found) => break found,
                // etcd bounds the entries of a page, not its bytes; so a page is shorter where
                // entries are long.
                Err(status) if wire::is_too_large(&status) && limit > 1 => {
                    limit = limit.div_ceil(2);
                }
                Err(status) => {
                    let asked = query.at.unwrap_or_default();
                    return Err(self.read_failed(&status, asked).await);
                }
            }
        };
        let entries: Result<Vec<_>, _> = found.kvs.into_iter().map(wire::entry).collect();
        Ok(Page {
            entries: entries?,
            more: found.more,
            revision: query
                .at
                .unwrap_or_else(|| wire::revision(found.header.as_ref())),
        })
    }
}

impl Store for Etcd {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        Box::pin(async move {
            let request = pb::RangeRequest {
                key: wire::key(key),
                limit: 1,
                ..pb::RangeRequest::default()
            };
            match self.range(request).await {
                Ok(found) => found.kvs.into_iter().next().map(wire::entry).transpose(),
                Err(status) => Err(wire::not_done(&status)),
            }
        })
    }

    fn list(&self, query: Query) -> Answer<'_, Page> {
        Box::pin(self.page(query))
    }

    fn commit(&self, txn: Txn) -> Answer<'_, Revision> {
        Box::pin(async move {
            txn.validate()?;
            if !txn.then.is_empty() {
                return self.receipts.commit(&self.client, txn).await;
            }
            let request = wire::txn(txn);
            let send = |member: Member| {
                let request = request.clone();
                async move { member.kv().txn(request).await }
            };
            match self.client.call(send).await {
                Ok(answer) if answer.succeeded => Ok(wire::revision(answer.header.as_ref())),
                Ok(_) => Err(StoreError::Conflict),
                Err(status) => Err(wire::not_done(&status)),
            }
        })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> Changes {
        watch::follow(self.client.clone(), &prefix, after)
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, Granted> {
        Box::pin(async move {
            let seconds = ttl.max(MIN_LEASE).as_millis().div_ceil(1_000) as i64;
            let granted = lease::grant(&self.client, seconds).await?;
            let id = NonZeroU64::new(granted.id as u64).expect("a lease's number is positive");
            Ok(Granted {
                id: LeaseId(id),
                ttl: granted.ttl,
            })
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, Duration> {
        Box::pin(async move {
            let kept = lease::keep_alive(&self.client, wire::lease_number(lease)).await?;
            kept.ok_or(StoreError::LeaseGone { lease })
        })
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        Box::pin(async move {
            if lease::revoke(&self.client, wire::lease_number(lease)).await? {
                Ok(())
            } else {
                Err(StoreError::LeaseGone { lease })
            }
        })
    }

    fn compact(&self, before: Revision) -> Answer<'_, ()> {
        Box::pin(async move {
            let send = |member: Member| async move {
                let request = pb::CompactionRequest {
                    revision: wire::number(before),
                    physical: false,
                };
                member.kv().compact(request).await
            };
            match self.client.call(send).await {
                Ok(_) => Ok(()),
                // Somebody has done it, or more, already.
                Err(status) if wire::is_compacted(&status) => Ok(()),
                Err(status) if wire::is_future(&status) => {
                    Err(StoreError::Future { asked: before })
                }
                Err(status) => Err(wire::failed(&status)),
            }
        })
    }

    fn name(&self) -> &'static str {
        "etcd"
    }
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}
