//! What the sessions of a node have shown of the versions that they run, until the control plane has counted it
//! (NF-030): each session once, at its end, and each turn's first audio.

use std::collections::BTreeMap;

use rspp_proto::{
    control::{Binding, Holder, Kind},
    reading::{VersionCount, latency_bound},
};

use crate::turn::{AbortReason, Terminal};

/// Most versions that are counted apart: those of as many lines as a node serves at a time.
const MAX_VERSIONS: usize = 256;

/// Something to be counted by the control plane; repeated as it is until that is known to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadingsReport {
    /// Who told it first.
    pub by: Holder,
    /// Which it is.
    pub number: u64,
    /// By version.
    pub counts: Vec<VersionCount>,
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It was counted, now or before.
    Counted,
    /// Nobody knows, or nobody could: it is to be told again.
    NotNow,
    /// It never will be.
    Refused,
}

/// What was not counted yet.
#[derive(Debug, Default)]
pub struct ReadingsBook {
    counts: BTreeMap<(Kind, String), VersionCount>,
    report: Option<ReadingsReport>,
    is_told: bool,
    number: u64,
    given_up: u64,
}

/// Whether a turn that ended so is its version's fault, or that of whom it calls: what the user and the network
/// did, and who speaks for the session, is not.
pub fn is_failure(terminal: Terminal) -> bool {
    match terminal {
        Terminal::Commit
        | Terminal::Abort(
            AbortReason::Cancelled
            | AbortReason::AuthorityLoss
            | AbortReason::TransportDisconnectOrStall,
        ) => false,
        Terminal::Abort(
            AbortReason::RecordingEvidenceUnavailable
            | AbortReason::ProviderFailure
            | AbortReason::NodeTimeoutOrFailure
            | AbortReason::BudgetExhausted,
        ) => true,
    }
}

impl ReadingsBook {
    /// The first audio of a turn came so long after the end of speech.
    pub fn first_audio(&mut self, of: &Binding, ms: u64) {
        self.each(of, |count| {
            *count.first_audio.entry(latency_bound(ms)).or_default() += 1;
        });
    }

    /// A session is over.
    pub fn session(&mut self, of: &Binding, failed: bool) {
        let all = self.each(of, |count| {
            count.sessions += 1;
            count.failed += u64::from(failed);
        });
        self.given_up += u64::from(!all);
    }

    /// Counts with every version that a session runs; whether there was room for all.
    fn each(&mut self, of: &Binding, mut add: impl FnMut(&mut VersionCount)) -> bool {
        let versions = [
            (Kind::Pipeline, Some(of.pipeline.as_str())),
            (Kind::Policy, of.policy.as_deref()),
            (Kind::Providers, of.providers.as_deref()),
        ];
        let mut all = true;
        for (kind, version) in versions {
            let Some(version) = version else { continue };
            let key = (kind, version.to_owned());
            if self.counts.len() >= MAX_VERSIONS && !self.counts.contains_key(&key) {
                all = false;
                continue;
            }
            add(self.counts.entry(key).or_insert_with(|| VersionCount {
                kind,
                version: version.to_owned(),
                sessions: 0,
                failed: 0,
                first_audio: BTreeMap::new(),
            }));
        }
        all
    }

    /// What is to be told now, if anything: one report at a time.
    pub fn tell(&mut self, by: &Holder) -> Option<ReadingsReport> {
        if self.is_told {
            return None;
        }
        if self.report.is_none() && !self.counts.is_empty() {
            self.number += 1;
            self.report = Some(ReadingsReport {
                by: by.clone(),
                number: self.number,
                counts: std::mem::take(&mut self.counts).into_values().collect(),
            });
        }
        self.is_told = self.report.is_some();
        self.report.clone()
    }

    /// What became of the report that was told.
    pub fn heard(&mut self, heard: Heard) {
        self.is_told = false;
        match heard {
            Heard::NotNow => {}
            Heard::Counted => self.report = None,
            Heard::Refused => {
                let given_up = self.report.take();
                let counts = given_up.iter().flat_map(|it| &it.counts);
                let sessions = counts.filter(|it| it.kind == Kind::Pipeline);
                self.given_up += sessions.map(|it| it.sessions).sum::<u64>();
            }
        }
    }

    /// Whether a report is under way.
    pub fn is_told(&self) -> bool {
        self.is_told
    }

    /// Sessions that no control plane will ever count.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }
}

#[cfg(test)]
mod tests {
    use rspp_proto::{PipelineVersion, RuntimeId, TenantId, control::Incarnation};

    use super::*;

    fn holder(life: u64) -> Holder {
        Holder {
            runtime: RuntimeId::new("a").unwrap(),
            incarnation: Incarnation::new(life).unwrap(),
        }
    }

    fn binding(pipeline: &str) -> Binding {
        Binding {
            tenant: TenantId::new("acme").unwrap(),
            pipeline: PipelineVersion::new(pipeline).unwrap(),
            policy: Some("strict-1".to_owned()),
            providers: None,
        }
    }

    fn sums(report: &ReadingsReport) -> Vec<(&str, u64, u64)> {
        let counts = report.counts.iter();
        counts
            .map(|it| (it.version.as_str(), it.sessions, it.failed))
            .collect()
    }

    /// NF-030: what is told is told as it was until it is known to be counted, by whoever told it first, and what
    /// comes meanwhile goes with the next.
    #[test]
    fn every_session_is_counted_once() {
        let mut book = ReadingsBook::default();
        assert_eq!(book.tell(&holder(1)), None);
        book.session(&binding("desk-1"), false);
        book.session(&binding("desk-2"), true);
        book.first_audio(&binding("desk-2"), 1_990);
        let first = book.tell(&holder(1)).unwrap();
        assert_eq!(
            sums(&first),
            [("desk-1", 1, 0), ("desk-2", 1, 1), ("strict-1", 2, 1)]
        );
        assert_eq!(first.counts[1].first_audio, BTreeMap::from([(2_000, 1)]));
        book.session(&binding("desk-1"), false);
        assert_eq!(book.tell(&holder(1)), None, "one at a time");
        book.heard(Heard::NotNow);
        assert_eq!(book.tell(&holder(2)), Some(first), "as it was");
        book.heard(Heard::Counted);
        let second = book.tell(&holder(2)).unwrap();
        assert_eq!((second.number, &second.by), (2, &holder(2)));
        assert_eq!(sums(&second), [("desk-1", 1, 0), ("strict-1", 1, 0)]);
        book.heard(Heard::Refused);
        assert_eq!((book.tell(&holder(2)), book.given_up()), (None, 1));
    }

    /// NF-004: versions that nobody knows do not fill the memory, and what is not counted for it is.
    #[test]
    fn there_is_an_end_to_versions() {
        let mut book = ReadingsBook::default();
        for number in 0..1_000 {
            book.session(&binding(&format!("desk-{number}")), false);
        }
        let report = book.tell(&holder(1)).unwrap();
        assert_eq!(report.counts.len(), MAX_VERSIONS);
        assert_eq!(book.given_up(), 1_000 - (MAX_VERSIONS as u64 - 1));
    }

    /// NF-030: what users and networks do spends nobody's budget.
    #[test]
    fn a_turn_that_was_interrupted_has_not_failed() {
        let failed = |reason| is_failure(Terminal::Abort(reason));
        assert!(!is_failure(Terminal::Commit));
        assert!(!failed(AbortReason::Cancelled));
        assert!(!failed(AbortReason::TransportDisconnectOrStall));
        assert!(!failed(AbortReason::AuthorityLoss));
        assert!(failed(AbortReason::ProviderFailure));
        assert!(failed(AbortReason::NodeTimeoutOrFailure));
        assert!(failed(AbortReason::BudgetExhausted));
        assert!(failed(AbortReason::RecordingEvidenceUnavailable));
    }
}
