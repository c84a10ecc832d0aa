//! Who did what: a chain of entries, each holding the hash of the one before (F-097, F-170).
//!
//! Whoever alters, removes or inserts an entry breaks the chain from there on; whoever cuts its end off
//! is found by the head, which is stored beside it and signed into every export.

use rspp_proto::{Actor, TenantId, WallClock};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::{
    ContentHash,
    access::Role,
    token::{KeyId, Keyring, SigningKey, TokenError},
};

/// Largest detail of an entry, as JSON, in bytes; more is replaced by its hash and size.
pub const MAX_DETAIL_BYTES: usize = 16 * 1024;
/// What exports are written in.
pub const EXPORT_SCHEMA: &str = "rspp.audit.v1";

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Done,
    /// The caller may not.
    Denied,
    /// The caller may, but a rule was in the way: an approval, a freeze, an immutable version.
    Refused,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Done, Self::Denied, Self::Refused];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Denied => "denied",
            Self::Refused => "refused",
        }
    }
}

/// What is to be put down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// When.
    pub at: WallClock,
    /// Who; `None` if nobody could be made out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// As what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// For whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// What: an operation's name, or `automatic_rollback`, `failover` and the like.
    pub operation: String,
    /// To what: a version, a session, a runtime.
    pub subject: String,
    /// What became of it.
    pub outcome: Outcome,
    /// What else there is to know. Holds no secrets: it is made from typed fields, never from requests.
    pub detail: Value,
}

impl Record {
    /// What the control plane did by itself.
    pub fn automatic(at: WallClock, operation: &str, subject: &str, detail: Value) -> Self {
        Self {
            at,
            actor: None,
            role: None,
            tenant: None,
            operation: operation.to_owned(),
            subject: subject.to_owned(),
            outcome: Outcome::Done,
            detail,
        }
    }
}

/// An entry of the chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Counts from 1 without gaps.
    pub sequence: u64,
    /// What was put down.
    pub record: Record,
    /// The hash of the entry before; zeros before the first.
    pub before: ContentHash,
    /// The hash of all the above.
    pub hash: ContentHash,
}

/// The end of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The last entry's number; 0 if there is none.
    pub sequence: u64,
    /// Its hash.
    pub hash: ContentHash,
}

impl Head {
    /// The end of a chain that nothing is in yet.
    pub fn empty() -> Self {
        Self {
            sequence: 0,
            hash: ContentHash::zero(),
        }
    }
}

/// The entry that follows, and the new end.
pub fn append(head: &Head, mut record: Record) -> (Entry, Head) {
    let size = record.detail.to_string().len();
    if size > MAX_DETAIL_BYTES {
        let hash = ContentHash::of_value(&record.detail);
        record.detail = serde_json::json!({ "sha256": hash.as_str(), "bytes": size });
    }
    let sequence = head.sequence + 1;
    let hash = hash_of(sequence, &record, &head.hash);
    let entry = Entry {
        sequence,
        record,
        before: head.hash.clone(),
        hash: hash.clone(),
    };
    (entry, Head { sequence, hash })
}

fn hash_of(sequence: u64, record: &Record, before: &ContentHash) -> ContentHash {
    let record = serde_json::to_value(record).expect("a record is plain data");
    ContentHash::of_value(&serde_json::json!({
        "sequence": sequence,
        "record": record,
        "before": before.as_str(),
    }))
}

/// Where a chain is broken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Broken {
    /// Entries are missing, or come twice.
    #[error("entry {found} follows where {expected} should")]
    Gap {
        /// What should come.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// An entry does not name the one before it.
    #[error("entry {sequence} does not follow the one before it")]
    Link {
        /// Its number.
        sequence: u64,
    },
    /// An entry says something else than was put down.
    #[error("entry {sequence} was altered")]
    Altered {
        /// Its number.
        sequence: u64,
    },
    /// The chain ends elsewhere than its head says.
    #[error("the trail ends at entry {found}, and its head says {expected}")]
    End {
        /// What the head says.
        expected: u64,
        /// Where it ends.
        found: u64,
    },
    /// An export cannot be read.
    #[error("line {line} of the export is not readable")]
    Unreadable {
        /// Its number, from 1.
        line: usize,
    },
    /// An export's head is not signed by a trusted key.
    #[error("the export's end is not vouched for: {0}")]
    Unsigned(TokenError),
}

/// Follows a chain from its beginning, entry by entry.
#[derive(Clone, Debug)]
pub struct Verifier {
    head: Head,
}

impl Default for Verifier {
    fn default() -> Self {
        Self {
            head: Head::empty(),
        }
    }
}

impl Verifier {
    /// Takes the next entry.
    pub fn push(&mut self, entry: &Entry) -> Result<(), Broken> {
        let expected = self.head.sequence + 1;
        if entry.sequence != expected {
            return Err(Broken::Gap {
                expected,
                found: entry.sequence,
            });
        }
        if entry.before != self.head.hash {
            return Err(Broken::Link {
                sequence: entry.sequence,
            });
        }
        if entry.hash != hash_of(entry.sequence, &entry.record, &entry.before) {
            return Err(Broken::Altered {
                sequence: entry.sequence,
            });
        }
        self.head = Head {
            sequence: entry.sequence,
            hash: entry.hash.clone(),
        };
        Ok(())
    }

    /// Whether the chain ends where it should.
    pub fn finish(self, head: &Head) -> Result<(), Broken> {
        if self.head == *head {
            Ok(())
        } else {
            Err(Broken::End {
                expected: head.sequence,
                found: self.head.sequence,
            })
        }
    }
}

/// The last line of an export: its end, signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// [`EXPORT_SCHEMA`].
    pub schema: String,
    /// The end of the chain.
    pub head: Head,
    /// When it was sealed.
    pub at: WallClock,
    /// The key that vouches for it.
    pub key: KeyId,
    /// The signature over all the above.
    pub signature: String,
}

fn sealed_bytes(head: &Head, at: WallClock) -> String {
    format!(
        "{EXPORT_SCHEMA}\n{}\n{}\n{}",
        head.sequence, head.hash, at.0
    )
}

/// Vouches for the end of a chain.
pub fn seal(head: &Head, at: WallClock, key: &SigningKey) -> Seal {
    Seal {
        schema: EXPORT_SCHEMA.to_owned(),
        head: head.clone(),
        at,
        key: key.id().clone(),
        signature: key.sign_bytes(sealed_bytes(head, at).as_bytes()),
    }
}

/// Checks an export as a file of JSON lines: entries, then the seal. Returns how many entries it has.
pub fn verify_export(text: &str, keys: &Keyring) -> Result<u64, Broken> {
    let mut verifier = Verifier::default();
    let lines: Vec<_> = text.lines().collect();
    let Some((last, entries)) = lines.split_last() else {
        return Err(Broken::Unreadable { line: 1 });
    };
    for (index, line) in entries.iter().enumerate() {
        let entry: Entry =
            serde_json::from_str(line).map_err(|_| Broken::Unreadable { line: index + 1 })?;
        verifier.push(&entry)?;
    }
    let seal: Seal =
        serde_json::from_str(last).map_err(|_| Broken::Unreadable { line: lines.len() })?;
    let bytes = sealed_bytes(&seal.head, seal.at);
    // As of when it was sealed: an old export stays good after its key has retired.
    keys.verify_bytes(&seal.key, bytes.as_bytes(), &seal.signature, seal.at)
        .map_err(Broken::Unsigned)?;
    verifier.finish(&seal.head)?;
    Ok(seal.head.sequence)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn record(n: u64) -> Record {
        Record {
            at: WallClock(1_000 + n),
            actor: Some(Actor::new("ana").unwrap()),
            role: Some(Role::Admin),
            tenant: None,
            operation: "publish".to_owned(),
            subject: format!("greeter-{n}"),
            outcome: Outcome::Done,
            detail: json!({ "n": n }),
        }
    }

    fn chain(length: u64) -> (Vec<Entry>, Head) {
        let mut head = Head::empty();
        let entries = (1..=length).map(|n| {
            let (entry, next) = append(&head, record(n));
            head = next;
            entry
        });
        (entries.collect(), head)
    }

    fn verify(entries: &[Entry], head: &Head) -> Result<(), Broken> {
        let mut verifier = Verifier::default();
        entries.iter().try_for_each(|entry| verifier.push(entry))?;
        verifier.finish(head)
    }

    /// F-170: each way to tamper is found, and where.
    #[test]
    fn whoever_tampers_is_found() {
        let (entries, head) = chain(5);
        assert_eq!(verify(&entries, &head), Ok(()));
        assert_eq!(verify(&[], &Head::empty()), Ok(()));

        let mut altered = entries.clone();
        altered[2].record.actor = Some(Actor::new("bob").unwrap());
        assert_eq!(
            verify(&altered, &head),
            Err(Broken::Altered { sequence: 3 })
        );

        // Even if the entry's own hash is made to fit, the next one does not follow.
        let mut rehashed = altered;
        let entry = &mut rehashed[2];
        entry.hash = hash_of(entry.sequence, &entry.record, &entry.before);
        assert_eq!(verify(&rehashed, &head), Err(Broken::Link { sequence: 4 }));

        let mut removed = entries.clone();
        removed.remove(1);
        let gap = Broken::Gap {
            expected: 2,
            found: 3,
        };
        assert_eq!(verify(&removed, &head), Err(gap));

        let cut = &entries[..4];
        let end = Broken::End {
            expected: 5,
            found: 4,
        };
        assert_eq!(verify(cut, &head), Err(end));
    }

    /// F-097: an export is checked by whoever has the public key, without the control plane.
    #[test]
    fn an_export_is_vouched_for() {
        let (entries, head) = chain(3);
        let key = SigningKey::from_seed(KeyId::new("k").unwrap(), &[7; 32]);
        let mut keys = Keyring::default();
        keys.add(key.id().clone(), key.public(), WallClock(0))
            .unwrap();
        let seal = seal(&head, WallClock(9), &key);
        let lines = entries
            .iter()
            .map(|entry| serde_json::to_string(entry).unwrap());
        let mut lines: Vec<_> = lines.collect();
        lines.push(serde_json::to_string(&seal).unwrap());
        assert_eq!(verify_export(&lines.join("\n"), &keys), Ok(3));

        let forged = Seal {
            head: Head {
                sequence: 2,
                hash: entries[1].hash.clone(),
            },
            ..seal
        };
        let shortened = [
            lines[0].clone(),
            lines[1].clone(),
            serde_json::to_string(&forged).unwrap(),
        ];
        let found = verify_export(&shortened.join("\n"), &keys);
        assert_eq!(found, Err(Broken::Unsigned(TokenError::BadSignature)));
        assert_eq!(
            verify_export("", &keys),
            Err(Broken::Unreadable { line: 1 })
        );
    }

    #[test]
    fn a_giant_detail_is_kept_as_its_hash() {
        let giant = Record {
            detail: json!("x".repeat(MAX_DETAIL_BYTES)),
            ..record(1)
        };
        let (entry, _) = append(&Head::empty(), giant);
        assert_eq!(entry.record.detail["bytes"], json!(MAX_DETAIL_BYTES + 2));
    }

    proptest! {
        /// F-170: no single entry can be changed, moved or left out unnoticed.
        #[test]
        fn one_change_anywhere_is_noticed(length in 1..20u64, at in any::<prop::sample::Index>(), way in 0..4) {
            let (mut entries, head) = chain(length);
            let index = at.index(entries.len());
            match way {
                0 => entries[index].record.subject.push('x'),
                1 => entries[index].record.at.0 += 1,
                2 => { entries.remove(index); }
                _ => entries.insert(index, entries[index].clone()),
            }
            prop_assert!(verify(&entries, &head).is_err());
        }
    }
}
