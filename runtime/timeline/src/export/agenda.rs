//! What is shipped next, and when after a failure. No clock, no I/O: times come in, tasks go out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rspp_proto::Monotonic;

use super::{FaultKind, policy::ExportPolicy};

/// One recording on its way to the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CourseId(pub(super) u64);

/// What is to be put into the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// These bytes of the file. Until they are acknowledged, the same ones are asked for again.
    Segment {
        /// The first.
        from: u64,
        /// The first behind them.
        to: u64,
    },
    /// The word that there is no more.
    Manifest {
        /// How many bytes there are.
        bytes: u64,
    },
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Start(CourseId, Task),
    /// Nothing before then, unless something changes.
    Wait(Option<Monotonic>),
}

/// Where a recording stands that is taken up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    /// Bytes that the archive has.
    pub(super) acknowledged: u64,
    /// Where the segment ends that was under way.
    pub(super) sealed: Option<u64>,
    /// Bytes that there are.
    pub(super) length: u64,
    /// Whether no more are written.
    pub(super) is_closed: bool,
}

#[derive(Clone, Debug)]
struct Course {
    standing: Standing,
    is_at_work: bool,
    /// Since when the oldest byte waits that is not acknowledged.
    since: Option<Monotonic>,
    /// The same for what lies behind the sealed segment.
    since_behind: Option<Monotonic>,
    /// Not again before then: others that wait come first.
    failed_at: Monotonic,
    due: Option<Monotonic>,
}

impl Course {
    fn pending(&self) -> u64 {
        self.standing.length - self.standing.acknowledged
    }

    fn due(&self, policy: &ExportPolicy) -> Option<Monotonic> {
        if self.is_at_work {
            return None;
        }
        let waits_since = self.since.unwrap_or(Monotonic::ZERO);
        let is_ripe = self.standing.is_closed
            || self.standing.sealed.is_some()
            || self.pending() >= policy.segment_bytes;
        let due = if is_ripe {
            waits_since
        } else if self.pending() > 0 {
            waits_since + policy.linger()
        } else {
            return None;
        };
        Some(due.max(self.failed_at))
    }

    fn task(&mut self, policy: &ExportPolicy) -> Task {
        let Standing {
            acknowledged: from,
            length,
            ..
        } = self.standing;
        if from == length {
            return Task::Manifest { bytes: length };
        }
        let to = *self.standing.sealed.get_or_insert_with(|| {
            let to = length.min(from.saturating_add(policy.segment_bytes));
            self.since_behind = self.since.filter(|_| to < length);
            to
        });
        Task::Segment { from, to }
    }
}

/// Everything that is on its way.
#[derive(Debug)]
pub(super) struct Agenda {
    policy: ExportPolicy,
    courses: BTreeMap<CourseId, Course>,
    due: BTreeSet<(Monotonic, CourseId)>,
    at_work: usize,
    /// Failures since something worked.
    failures: u32,
    /// The archive is left alone until then.
    resume_at: Monotonic,
    chance: u64,
}

impl Agenda {
    /// `chance` spreads the waits of several nodes.
    pub(super) fn new(policy: ExportPolicy, chance: u64) -> Self {
        Self {
            policy,
            courses: BTreeMap::new(),
            due: BTreeSet::new(),
            at_work: 0,
            failures: 0,
            resume_at: Monotonic::ZERO,
            chance,
        }
    }

    /// Takes up a recording.
    pub(super) fn add(&mut self, now: Monotonic, id: CourseId, standing: Standing) {
        let waits = standing.length > standing.acknowledged;
        let course = Course {
            standing,
            is_at_work: false,
            since: waits.then_some(now),
            since_behind: standing
                .sealed
                .filter(|to| *to < standing.length)
                .map(|_| now),
            failed_at: Monotonic::ZERO,
            due: None,
        };
        self.courses.insert(id, course);
        self.schedule(id);
    }

    /// So many bytes are there now.
    pub(super) fn grew(&mut self, now: Monotonic, id: CourseId, length: u64) {
        let Some(course) = self.courses.get_mut(&id) else {
            return;
        };
        let before = course.standing.length;
        if length <= before {
            return;
        }
        course.standing.length = length;
        if before == course.standing.acknowledged {
            course.since = Some(now);
        } else if course.standing.sealed == Some(before) {
            course.since_behind = Some(now);
        }
        self.schedule(id);
    }

    /// No more will be written.
    pub(super) fn closed(&mut self, id: CourseId) {
        if let Some(course) = self.courses.get_mut(&id) {
            course.standing.is_closed = true;
            self.schedule(id);
        }
    }

    /// What to do now; asked until it says to wait.
    pub(super) fn next(&mut self, now: Monotonic) -> Next {
        let most = if self.failures == 0 {
            self.policy.uploads.get()
        } else {
            1 // One asks whether the archive is back; the others wait.
        };
        if self.at_work >= most {
            return Next::Wait(None);
        }
        let Some(&(due, id)) = self.due.first() else {
            return Next::Wait(None);
        };
        let at = due.max(self.resume_at);
        if at > now {
            return Next::Wait(Some(at));
        }
        let course = self.courses.get_mut(&id).expect("what is due is known");
        let task = course.task(&self.policy);
        course.is_at_work = true;
        self.at_work += 1;
        self.schedule(id);
        Next::Start(id, task)
    }

    /// The archive has it. `true` if that was all of the recording, which is forgotten then.
    pub(super) fn done(&mut self, now: Monotonic, id: CourseId, task: Task) -> bool {
        self.failures = 0;
        self.resume_at = Monotonic::ZERO;
        let Some(course) = self.courses.get_mut(&id) else {
            return false;
        };
        if std::mem::take(&mut course.is_at_work) {
            self.at_work -= 1;
        }
        match task {
            Task::Segment { to, .. } => {
                course.standing.acknowledged = to;
                course.standing.sealed = None;
                let behind = course.since_behind.take();
                course.since = (course.pending() > 0).then(|| behind.unwrap_or(now));
                self.schedule(id);
                false
            }
            Task::Manifest { .. } => {
                if let Some(due) = course.due {
                    self.due.remove(&(due, id));
                }
                self.courses.remove(&id);
                true
            }
        }
    }

    /// The archive does not have it, or has not said so.
    pub(super) fn failed(&mut self, now: Monotonic, id: CourseId, kind: FaultKind) {
        // Several that were under way fail of one outage.
        if now >= self.resume_at {
            self.failures = self.failures.saturating_add(1);
            self.chance = mixed(self.chance);
            self.resume_at = now
                + match kind {
                    FaultKind::Unavailable => self.policy.wait_after(self.failures, self.chance),
                    FaultKind::Refused => self.policy.longest_wait(),
                };
        }
        if let Some(course) = self.courses.get_mut(&id) {
            if std::mem::take(&mut course.is_at_work) {
                self.at_work -= 1;
            }
            course.failed_at = now;
            self.schedule(id);
        }
    }

    /// Whether nobody writes or sends a recording just now.
    pub(super) fn is_idle(&self, id: CourseId) -> bool {
        let course = self.courses.get(&id);
        course.is_some_and(|it| !it.is_at_work && it.standing.is_closed)
    }

    /// Gives a recording up that nobody writes or sends just now. How many of its bytes were to be sent; `None` if
    /// it is busy.
    pub(super) fn give_up(&mut self, id: CourseId) -> Option<u64> {
        if !self.is_idle(id) {
            return None;
        }
        let course = self.courses.get(&id)?;
        let (pending, due) = (course.pending(), course.due);
        if let Some(due) = due {
            self.due.remove(&(due, id));
        }
        self.courses.remove(&id);
        Some(pending)
    }

    /// Whoever carried out the tasks is gone: none is under way.
    pub(super) fn interrupted(&mut self) {
        self.at_work = 0;
        let ids: Vec<_> = self.courses.keys().copied().collect();
        for id in ids {
            if let Some(course) = self.courses.get_mut(&id) {
                course.is_at_work = false;
            }
            self.schedule(id);
        }
    }

    /// How old the oldest byte is that the archive does not have.
    pub(super) fn lag(&self, now: Monotonic) -> Duration {
        let since = self.courses.values().filter_map(|course| course.since);
        since.min().map_or(Duration::ZERO, |since| now.since(since))
    }

    /// The same for one recording.
    pub(super) fn lag_of(&self, now: Monotonic, id: CourseId) -> Duration {
        let since = self.courses.get(&id).and_then(|course| course.since);
        since.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// Bytes that the archive does not have.
    pub(super) fn pending(&self) -> u64 {
        self.courses.values().map(Course::pending).sum()
    }

    /// Recordings that are not in the archive as a whole.
    pub(super) fn len(&self) -> usize {
        self.courses.len()
    }

    /// Failures since something worked.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    fn schedule(&mut self, id: CourseId) {
        let Some(course) = self.courses.get_mut(&id) else {
            return;
        };
        let due = course.due(&self.policy);
        if let Some(before) = std::mem::replace(&mut course.due, due) {
            self.due.remove(&(before, id));
        }
        if let Some(due) = due {
            self.due.insert((due, id));
        }
    }
}

/// The next of a row of numbers that look like chance (SplitMix64).
fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use proptest::prelude::*;

    use super::*;

    const A: CourseId = CourseId(1);
    const B: CourseId = CourseId(2);

    fn ms(ms: u64) -> Monotonic {
        Monotonic::from_millis(ms)
    }

    fn policy() -> ExportPolicy {
        ExportPolicy {
            segment_bytes: 100,
            uploads: NonZeroUsize::new(2).unwrap(),
            ..ExportPolicy::default()
        }
    }

    fn agenda(ids: &[CourseId]) -> Agenda {
        let mut agenda = Agenda::new(policy(), 7);
        for id in ids {
            agenda.add(ms(0), *id, Standing::default());
        }
        agenda
    }

    fn segment(from: u64, to: u64) -> Task {
        Task::Segment { from, to }
    }

    /// F-116: only what nobody writes or sends is given up, and nothing of it is asked for any more.
    #[test]
    fn what_is_given_up_is_not_asked_for_again() {
        let mut agenda = agenda(&[A, B]);
        agenda.grew(ms(0), A, 250);
        agenda.grew(ms(0), B, 30);
        assert_eq!(agenda.give_up(A), None, "it is still written");
        agenda.closed(A);
        agenda.closed(B);
        assert_eq!(agenda.next(ms(0)), Next::Start(A, segment(0, 100)));
        assert_eq!(agenda.give_up(A), None, "it is under way");
        agenda.failed(ms(0), A, FaultKind::Unavailable);
        assert_eq!((agenda.give_up(A), agenda.give_up(A)), (Some(250), None));
        assert_eq!((agenda.len(), agenda.pending()), (1, 30));
        assert_eq!(agenda.next(ms(1_000)), Next::Start(B, segment(0, 30)));
    }

    #[test]
    fn what_is_little_waits_for_more_and_what_is_much_does_not() {
        let mut agenda = agenda(&[A]);
        agenda.grew(ms(10), A, 30);
        assert_eq!(agenda.next(ms(10)), Next::Wait(Some(ms(510))));
        agenda.grew(ms(20), A, 250);
        assert_eq!(agenda.next(ms(20)), Next::Start(A, segment(0, 100)));
        assert_eq!(agenda.next(ms(20)), Next::Wait(None));
        agenda.done(ms(30), A, segment(0, 100));
        assert_eq!(agenda.next(ms(30)), Next::Start(A, segment(100, 200)));
        agenda.done(ms(40), A, segment(100, 200));
        assert_eq!(agenda.lag(ms(40)), Duration::from_millis(30));
        assert_eq!(agenda.next(ms(40)), Next::Wait(Some(ms(510))));
        agenda.closed(A);
        assert_eq!(agenda.next(ms(40)), Next::Start(A, segment(200, 250)));
        assert!(!agenda.done(ms(50), A, segment(200, 250)));
        assert_eq!(
            agenda.next(ms(50)),
            Next::Start(A, Task::Manifest { bytes: 250 })
        );
        assert!(agenda.done(ms(60), A, Task::Manifest { bytes: 250 }));
        assert_eq!((agenda.len(), agenda.lag(ms(99))), (0, Duration::ZERO));
    }

    #[test]
    fn a_segment_that_failed_is_sent_again_as_it_was() {
        let mut agenda = agenda(&[A]);
        agenda.grew(ms(0), A, 40);
        assert_eq!(agenda.next(ms(500)), Next::Start(A, segment(0, 40)));
        agenda.grew(ms(600), A, 90);
        agenda.failed(ms(700), A, FaultKind::Unavailable);
        let Next::Wait(Some(at)) = agenda.next(ms(700)) else {
            panic!("the archive is left alone for a while");
        };
        assert!((ms(775)..=ms(800)).contains(&at));
        assert_eq!(agenda.next(at), Next::Start(A, segment(0, 40)));
        agenda.done(at, A, segment(0, 40));
        assert_eq!(agenda.lag(ms(1_000)), Duration::from_millis(400));
    }

    #[test]
    fn while_the_archive_fails_one_at_a_time_asks_for_it_and_each_in_its_turn() {
        let mut agenda = agenda(&[A, B]);
        agenda.grew(ms(0), A, 100);
        agenda.grew(ms(1), B, 100);
        assert_eq!(agenda.next(ms(5)), Next::Start(A, segment(0, 100)));
        assert_eq!(agenda.next(ms(5)), Next::Start(B, segment(0, 100)));
        agenda.failed(ms(10), A, FaultKind::Unavailable);
        agenda.failed(ms(11), B, FaultKind::Unavailable);
        assert_eq!(agenda.failures(), 1);
        assert_eq!(agenda.next(ms(110)), Next::Start(A, segment(0, 100)));
        assert_eq!(agenda.next(ms(110)), Next::Wait(None));
        agenda.failed(ms(120), A, FaultKind::Refused);
        assert_eq!(agenda.next(ms(10_000)), Next::Wait(Some(ms(30_120))));
        assert_eq!(agenda.next(ms(30_120)), Next::Start(B, segment(0, 100)));
        agenda.done(ms(30_130), B, segment(0, 100));
        assert_eq!(agenda.next(ms(30_130)), Next::Start(A, segment(0, 100)));
    }

    #[test]
    fn tasks_of_whoever_is_gone_are_given_out_again() {
        let mut agenda = agenda(&[A]);
        agenda.grew(ms(0), A, 100);
        assert_eq!(agenda.next(ms(0)), Next::Start(A, segment(0, 100)));
        agenda.interrupted();
        assert_eq!(agenda.next(ms(0)), Next::Start(A, segment(0, 100)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Grow(u64, u64),
        Close(u64),
        Land(usize, bool),
        Crash,
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..3_u64, 1..260_u64).prop_map(|(id, more)| Step::Grow(id, more)),
            1 => (0..3_u64).prop_map(Step::Close),
            4 => (0..8_usize, any::<bool>()).prop_map(|(which, works)| Step::Land(which, works)),
            1 => Just(Step::Crash),
            4 => (0..2_000_u64).prop_map(Step::Pass),
        ];
        prop::collection::vec(step, 0..120)
    }

    proptest! {
        /// F-154: whatever fails and whenever the exporter dies, every byte arrives once, in order, and the last
        /// word comes last.
        #[test]
        fn every_byte_arrives_in_order_and_the_manifest_last(steps in steps()) {
            let mut agenda = agenda(&[CourseId(0), CourseId(1), CourseId(2)]);
            let (mut now, mut length, mut closed, mut has) = (ms(0), [0; 3], [false; 3], [0; 3]);
            let mut finished = [false; 3];
            let mut under_way: Vec<(CourseId, Task)> = Vec::new();
            // In the end everything is closed, everything works, and time passes.
            let calm = (0..3).map(Step::Close).chain((0..500).flat_map(|_| {
                [Step::Pass(40_000), Step::Land(0, true)]
            }));
            for step in steps.into_iter().chain(calm) {
                match step {
                    Step::Grow(id, more) if !closed[id as usize] => {
                        length[id as usize] += more;
                        agenda.grew(now, CourseId(id), length[id as usize]);
                    }
                    Step::Grow(..) => {}
                    Step::Close(id) => {
                        closed[id as usize] = true;
                        agenda.closed(CourseId(id));
                    }
                    Step::Land(which, works) => {
                        if under_way.is_empty() {
                            continue;
                        }
                        let (id, task) = under_way.remove(which % under_way.len());
                        let it = id.0 as usize;
                        if !works {
                            agenda.failed(now, id, FaultKind::Unavailable);
                            continue;
                        }
                        match task {
                            Task::Segment { from, to } => {
                                prop_assert_eq!(from, has[it]);
                                prop_assert!(to > from && to <= length[it] && to - from <= 100);
                                has[it] = to;
                            }
                            Task::Manifest { bytes } => {
                                prop_assert!(closed[it] && bytes == length[it] && has[it] == bytes);
                            }
                        }
                        finished[it] |= agenda.done(now, id, task);
                    }
                    Step::Crash => {
                        under_way.clear();
                        agenda.interrupted();
                    }
                    Step::Pass(time) => now = now + Duration::from_millis(time),
                }
                while let Next::Start(id, task) = agenda.next(now) {
                    under_way.push((id, task));
                }
                prop_assert!(under_way.len() <= 2);
                let waits: u64 = (0..3).map(|it| length[it] - has[it]).sum();
                prop_assert_eq!(agenda.pending(), waits);
                prop_assert_eq!(agenda.lag(now).is_zero() || waits > 0, true);
            }
            prop_assert_eq!(finished, [true; 3]);
            prop_assert_eq!(agenda.len(), 0);
        }
    }
}
