//! The control plane's tokens at the transport's door.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rspp_controlplane::token::{KeyId, Keyring, LeaseClaims, SessionClaims, SigningKey};
use rspp_proto::{PipelineVersion, RuntimeId, SessionId, TenantId, WallClock, control::Versions};
use rspp_tests::call::Cast;
use rspp_transport_api::{Grant, Guard, TokenValidator, TransportKind, Unauthorized};
use rspp_websocket::{
    protocol::{ClientMessage, ErrorCode, Hello, ServerMessage},
    testing::{Client, Refused},
};

use crate::line::Line;

/// Knows the control plane's public keys.
struct Keys {
    keyring: Keyring,
    runtime: RuntimeId,
}

impl TokenValidator for Keys {
    fn validate(
        &self,
        token: &str,
        kind: TransportKind,
        now: WallClock,
    ) -> Result<Grant, Unauthorized> {
        let refuse =
            |error: rspp_controlplane::token::TokenError| Unauthorized::Refused(error.as_str());
        let claims: SessionClaims = self.keyring.verify(token, now).map_err(refuse)?;
        claims
            .is_for(&self.runtime, &claims.session, kind.as_str())
            .map_err(refuse)?;
        Ok(Grant {
            token_id: claims.jti,
            tenant: claims.tenant,
            session: claims.session,
            pipeline: Some(claims.pipeline),
            versions: claims.versions,
            epoch: claims.epoch,
            expires_at: WallClock(claims.exp * 1_000),
        })
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn claims(session: &str) -> SessionClaims {
    SessionClaims {
        jti: format!("token-of-{session}"),
        session: SessionId::new(session).unwrap(),
        tenant: TenantId::new("acme").unwrap(),
        pipeline: PipelineVersion::new("simple-1").unwrap(),
        versions: Versions::default(),
        runtime: RuntimeId::new("runtime-a").unwrap(),
        epoch: None,
        transport: "websocket".to_owned(),
        iat: now() - 1,
        exp: now() + 60,
    }
}

fn altered(token: &str, from: &str, to: &str) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    assert!(claims.contains(from), "{claims}");
    let claims = claims.replace(from, to);
    format!(
        "{}.{}.{}",
        parts[0],
        URL_SAFE_NO_PAD.encode(claims),
        parts[2]
    )
}

/// F-088, F-099, F-119: a signed token lets its session in, for its tenant and version; an altered claim, an
/// expired token, a token of another kind, for another runtime, another transport or another version does
/// not.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_control_planes_tokens_open_sessions() {
    let key = SigningKey::from_seed(KeyId::new("key-1").unwrap(), &[7; 32]);
    let stranger = SigningKey::from_seed(KeyId::new("key-1").unwrap(), &[8; 32]);
    let mut keyring = Keyring::default();
    let added = WallClock((now() - 10) * 1_000);
    keyring.add(key.id().clone(), key.public(), added).unwrap();
    let runtime = RuntimeId::new("runtime-a").unwrap();
    let guard = Guard::Tokens(Arc::new(Keys { keyring, runtime }));
    let line = Line::guarded(&Cast::default(), guard).await;
    let connect = async |token: &str| {
        let token = format!("rspp.token.{token}");
        Client::connect(line.address, &["rspp.v1.json", &token], &[]).await
    };

    let good = key.sign(&claims("s-1"));
    let old = SessionClaims {
        iat: now() - 100,
        exp: now() - 1,
        ..claims("s-2")
    };
    let elsewhere = SessionClaims {
        runtime: RuntimeId::new("runtime-b").unwrap(),
        ..claims("s-3")
    };
    let by_phone = SessionClaims {
        transport: "telephony".to_owned(),
        ..claims("s-4")
    };
    let lease = LeaseClaims {
        session: SessionId::new("s-5").unwrap(),
        tenant: TenantId::new("acme").unwrap(),
        runtime: RuntimeId::new("runtime-a").unwrap(),
        incarnation: rspp_controlplane::authority::Incarnation::FIRST,
        epoch: rspp_proto::Epoch::FIRST,
        iat: now() - 1,
        exp: now() + 60,
    };
    for (token, code) in [
        (altered(&good, "acme", "evil"), "token_bad_signature"),
        (
            altered(&good, "simple-1", "simple-2"),
            "token_bad_signature",
        ),
        (stranger.sign(&claims("s-1")), "token_bad_signature"),
        (key.sign(&old), "token_expired"),
        (key.sign(&elsewhere), "token_wrong_audience"),
        (key.sign(&by_phone), "token_wrong_audience"),
        (key.sign(&lease), "token_wrong_type"),
        ("a.b.c".to_owned(), "token_malformed"),
    ] {
        let Err(Refused(status, body)) = connect(&token).await else {
            panic!("{code} was let in");
        };
        assert_eq!(status, 401);
        assert!(body.contains(code), "{code}: {body}");
    }

    let mut client = connect(&good).await.unwrap();
    let ready = client.hello(Hello::default()).await;
    assert_eq!(ready.session.as_str(), "s-1");

    let other_version = SessionClaims {
        pipeline: PipelineVersion::new("simple-9").unwrap(),
        ..claims("s-6")
    };
    let mut misled = connect(&key.sign(&other_version)).await.unwrap();
    misled.say(ClientMessage::Hello(Hello::default())).await;
    let Some(ServerMessage::Error(trouble)) = misled.next().await else {
        panic!("no error");
    };
    assert_eq!(trouble.code, ErrorCode::NotOpened);
    assert!(trouble.message.contains("simple-9"), "{}", trouble.message);
    client.bye().await;
    client.until(|_| false).await;
    line.close().await;
}
