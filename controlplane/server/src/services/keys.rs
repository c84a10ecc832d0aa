//! Keys that tokens are signed with, and how they take turns (F-119, F-169).

use bytes::Bytes;
use rspp_controlplane::{
    access::{Operation, Principal},
    audit::Record,
    keys,
    store::{Compare, Store, StoreError, Txn, bytes},
    token::{KeyId, Keyring, SigningKey},
};
use rspp_controlplane_api::{
    WireError,
    wire::{self, keys_server::Keys},
};
use rspp_controlplane_storage::trail;
use serde_json::json;
use tonic::{Request, Response, Status};

use crate::{
    audit::done,
    commit::{Asked, Decided},
    failure::Failure,
    plane::{Plane, wall_clock},
    services::placements::PROOF_TTL,
};

pub(crate) struct KeysService(pub(crate) Plane);

#[tonic::async_trait]
impl Keys for KeysService {
    async fn list_keys(
        &self,
        request: Request<wire::ListKeysRequest>,
    ) -> Result<Response<wire::Keyring>, Status> {
        // Public halves; whoever verifies tokens needs them.
        self.0
            .admit(&request, Operation::ReadFleet, None, "keyring")?;
        let (ring, _) = self.0.read::<Keyring>(&keys::keyring()).await?;
        Ok(Response::new(answer(&ring.unwrap_or_default())))
    }

    async fn add_key(
        &self,
        request: Request<wire::AddKeyRequest>,
    ) -> Result<Response<wire::Keyring>, Status> {
        let message = request.get_ref();
        let (kid, id) = (message.kid.clone(), message.request_id.clone());
        self.turned(request, Turn::Add, &kid, &id).await
    }

    async fn promote_key(
        &self,
        request: Request<wire::PromoteKeyRequest>,
    ) -> Result<Response<wire::Keyring>, Status> {
        let message = request.get_ref();
        let (kid, id) = (message.kid.clone(), message.request_id.clone());
        self.turned(request, Turn::Promote, &kid, &id).await
    }

    async fn retire_key(
        &self,
        request: Request<wire::RetireKeyRequest>,
    ) -> Result<Response<wire::Keyring>, Status> {
        let message = request.get_ref();
        let (kid, id) = (message.kid.clone(), message.request_id.clone());
        self.turned(request, Turn::Retire, &kid, &id).await
    }
}

impl KeysService {
    async fn turned<Q: prost::Message>(
        &self,
        request: Request<Q>,
        turn: Turn,
        kid: &str,
        id: &str,
    ) -> Result<Response<wire::Keyring>, Status> {
        let plane = &self.0;
        let by = plane.admit(&request, Operation::RotateKeys, None, kid)?;
        let encoded = request.into_inner().encode_to_vec();
        let asked = Asked {
            by: &by,
            operation: turn.as_str(),
            subject: kid,
            id,
            message: &encoded,
        };
        let answer = plane.change(asked, || plane.ring_changed(&by, kid, turn));
        Ok(Response::new(answer.await?))
    }
}

/// What becomes of a key.
#[derive(Clone, Copy)]
enum Turn {
    Add,
    Promote,
    Retire,
}

impl Turn {
    fn as_str(self) -> &'static str {
        match self {
            Self::Add => "add_key",
            Self::Promote => "promote_key",
            Self::Retire => "retire_key",
        }
    }
}

fn answer(ring: &Keyring) -> wire::Keyring {
    let keys = ring.keys().iter().map(|(id, record)| wire::PublicKey {
        kid: id.to_string(),
        public: Bytes::copy_from_slice(record.public.as_bytes()),
        added_ms: record.added.0,
        retires_ms: record.retires.map_or(0, |at| at.0),
        signs: ring.signs() == Some(id),
    });
    wire::Keyring {
        keys: keys.collect(),
    }
}

impl Plane {
    async fn ring_changed(
        &self,
        by: &Principal,
        kid: &str,
        turn: Turn,
    ) -> Result<Decided<wire::Keyring>, Failure> {
        let id = KeyId::new(kid).map_err(|error| WireError::new("kid", error))?;
        let (ring, entry) = self.read::<Keyring>(&keys::keyring()).await?;
        let mut ring = ring.unwrap_or_default();
        let now = wall_clock();
        // Who cannot sign with it must not make others believe that it signs.
        let private = self.private_key(&id);
        match turn {
            Turn::Add => ring.add(id, private?.public(), now)?,
            Turn::Promote => {
                private?;
                let longest = self.settings().token_ttl.max(PROOF_TTL).as_millis();
                ring.promote(&id, now, u64::try_from(longest).unwrap_or(u64::MAX))?;
            }
            Turn::Retire => ring.retire(&id, now)?,
        }
        let signs = ring.signs().map(KeyId::as_str);
        Ok(Decided {
            txn: Txn::default()
                .when(Compare::unchanged(&keys::keyring(), entry.as_ref()))
                .put(keys::keyring(), bytes(&ring)),
            record: done(now, by, turn.as_str(), kid, json!({ "signs": signs })),
            answer: answer(&ring),
        })
    }
}

/// The first control plane on a store trusts its first key. A store whose ring is of others is left
/// as it is: keys are added by somebody who may.
pub(crate) async fn trust_first(store: &dyn Store, key: &SigningKey) -> Result<(), StoreError> {
    loop {
        if store.get(&keys::keyring()).await?.is_some() {
            return Ok(());
        }
        let now = wall_clock();
        let mut ring = Keyring::default();
        if ring.add(key.id().clone(), key.public(), now).is_err() {
            return Ok(());
        }
        let txn = Txn::default()
            .when(Compare::Absent(keys::keyring()))
            .put(keys::keyring(), bytes(&ring))
            .put(keys::layout(), keys::LAYOUT);
        let record = Record::automatic(now, "first_key", key.id().as_str(), json!({}));
        let txn = trail::append(store, txn, vec![record]).await?;
        match store.commit(txn).await {
            Ok(_) => return Ok(()),
            Err(StoreError::Conflict | StoreError::Uncertain(_)) => {}
            Err(error) => return Err(error),
        }
    }
}
