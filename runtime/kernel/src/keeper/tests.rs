use proptest::prelude::*;

use super::*;

const TTL: Duration = Duration::from_secs(4);

fn ms(ms: u64) -> Monotonic {
    Monotonic::from_millis(ms)
}

fn e(epoch: u64) -> Epoch {
    Epoch::new(epoch).unwrap()
}

fn s(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

fn duties(keeper: &mut Keeper) -> Vec<Duty> {
    std::iter::from_fn(|| keeper.poll_duty()).collect()
}

/// The only request among what is to be done.
#[track_caller]
fn asked(keeper: &mut Keeper) -> (RequestId, Ask) {
    let asked = duties(keeper).into_iter().filter_map(|duty| match duty {
        Duty::Ask { request, ask } => Some((request, ask)),
        _not_a_request => None,
    });
    let asked: Vec<_> = asked.collect();
    assert_eq!(asked.len(), 1, "{asked:?}");
    asked.into_iter().next().unwrap()
}

fn unreachable() -> Answer {
    Answer::Unreachable {
        reason: "a planted fault".to_owned(),
    }
}

fn renewed() -> Answer {
    Answer::Renewed {
        ttl: TTL,
        lost: Vec::new(),
        going: Vec::new(),
    }
}

fn granted(epoch: u64) -> Answer {
    Answer::Granted {
        epoch: e(epoch),
        taken_over: false,
    }
}

fn joined(keeper: &mut Keeper, at: Monotonic) {
    keeper.tick(at);
    let (request, ask) = asked(keeper);
    assert_eq!(ask, Ask::Join);
    keeper.answered(at, request, Answer::Joined { ttl: TTL });
    assert_eq!(
        duties(keeper),
        [
            Duty::Joined,
            Duty::Renewed {
                asked: at,
                ttl: TTL
            }
        ]
    );
}

/// A keeper with one session under epoch 1, joined at 0.
fn holding() -> Keeper {
    let mut keeper = Keeper::new(KeeperPolicy::default());
    joined(&mut keeper, ms(0));
    keeper.want(ms(100), s("a"));
    let (request, _) = asked(&mut keeper);
    keeper.answered(ms(150), request, granted(1));
    let duty = duties(&mut keeper);
    assert_eq!(
        duty,
        [Duty::Granted {
            session: s("a"),
            epoch: e(1),
            asked: ms(0),
            ttl: TTL,
            taken_over: false,
        }],
        "counted from the older of request and renewal"
    );
    keeper
}

/// Design §5: what everything stands on is renewed before half its time, in one request.
#[test]
fn one_request_renews_all_before_half_the_time() {
    let mut keeper = holding();
    keeper.want(ms(200), s("b"));
    let (request, _) = asked(&mut keeper);
    keeper.answered(ms(210), request, granted(5));
    duties(&mut keeper);
    let mut at = ms(0);
    for _ in 0..20 {
        let due = keeper.next_deadline().unwrap();
        assert!(due < at + TTL / 2, "{due:?}");
        keeper.tick(due);
        let (request, ask) = asked(&mut keeper);
        let sessions = vec![(s("a"), e(1)), (s("b"), e(5))];
        assert_eq!(ask, Ask::Renew { sessions });
        keeper.answered(due + Duration::from_millis(90), request, renewed());
        assert_eq!(
            duties(&mut keeper),
            [Duty::Renewed {
                asked: due,
                ttl: TTL
            }]
        );
        at = due;
    }
}

/// Design §5: nobody is asked past nine tenths of the right, counted from when its renewal was sent.
#[test]
fn without_an_answer_it_falls_silent_in_time() {
    let mut keeper = holding();
    let mut asked_again = 0;
    let fell = loop {
        let due = keeper.next_deadline().unwrap();
        keeper.tick(due);
        let done = duties(&mut keeper);
        if done.contains(&Duty::Lost {
            session: s("a"),
            epoch: e(1),
        }) {
            assert!(matches!(done[1], Duty::Left { .. }), "{done:?}");
            break due;
        }
        assert!(keeper.may_speak(due, &s("a"), e(1)));
        asked_again += usize::from(done.iter().any(|duty| matches!(duty, Duty::Ask { .. })));
    };
    assert_eq!(fell, ms(3_600));
    assert!(asked_again >= 3, "{asked_again}");
    assert!(!keeper.may_speak(fell, &s("a"), e(1)));
    // It recovers by itself, in another life that holds nothing of the old one.
    keeper.tick(ms(9_000));
    let again = keeper.next_deadline().unwrap();
    keeper.tick(again);
    let (request, ask) = asked(&mut keeper);
    assert_eq!(ask, Ask::Join);
    keeper.answered(again, request, Answer::Joined { ttl: TTL });
    assert!(keeper.is_in(again) && !keeper.may_speak(again, &s("a"), e(1)));
}

/// P25: a node that was stopped and wakes up late does nothing in the name of what is over, whatever
/// it does first.
#[test]
fn a_node_that_wakes_up_late_speaks_for_nobody() {
    for first in 0..5 {
        let mut keeper = holding();
        keeper.tick(ms(1_200));
        let (renewal, _) = asked(&mut keeper);
        let late = ms(60_000);
        match first {
            0 => keeper.tick(late),
            1 => keeper.answered(late, renewal, renewed()),
            2 => keeper.want(late, s("b")),
            3 => keeper.part(late, &s("a"), e(1), Parting::Release),
            _last => keeper.told_to_let_go(late, &s("a"), e(1), Duration::ZERO),
        }
        let done = duties(&mut keeper);
        let lost = Duty::Lost {
            session: s("a"),
            epoch: e(1),
        };
        assert_eq!(done[0], lost, "{first}");
        assert!(!keeper.may_speak(late, &s("a"), e(1)));
        let sent = done.iter().any(|duty| match duty {
            Duty::Ask { ask, .. } => *ask != Ask::Join,
            _no_request => false,
        });
        assert!(!sent, "{first}: {done:?}");
    }
}

/// Answers are taken once, and never for an older attempt.
#[test]
fn an_answer_counts_once_and_only_for_what_is_still_asked() {
    let mut keeper = Keeper::new(KeeperPolicy::default());
    joined(&mut keeper, ms(0));
    keeper.want(ms(100), s("a"));
    let (first, ask) = asked(&mut keeper);
    let Ask::Acquire { attempt, .. } = ask else {
        panic!("{ask:?}");
    };
    // Lost: asked again, by the same attempt.
    keeper.tick(ms(1_100));
    let second = loop {
        keeper.tick(keeper.next_deadline().unwrap());
        let again = duties(&mut keeper).into_iter().find_map(|duty| match duty {
            Duty::Ask {
                request,
                ask: Ask::Acquire { attempt, .. },
            } => Some((request, attempt)),
            Duty::Ask {
                request,
                ask: Ask::Renew { .. },
            } => {
                keeper.answered(ms(1_250), request, renewed());
                None
            }
            _something_else => None,
        });
        if let Some(again) = again {
            break again;
        }
    };
    assert_eq!(second.1, attempt);
    duties(&mut keeper);
    keeper.answered(ms(1_300), first, granted(7));
    assert_eq!(duties(&mut keeper), [], "the first request was given up");
    keeper.answered(ms(1_310), second.0, granted(1));
    assert!(matches!(duties(&mut keeper)[..], [Duty::Granted { .. }]));
    keeper.answered(ms(1_320), second.0, granted(2));
    assert_eq!(duties(&mut keeper), []);
    assert!(keeper.may_speak(ms(1_330), &s("a"), e(1)));
}

/// An answer to the wish before is not taken for one to the wish that replaced it.
#[test]
fn an_answer_to_an_older_wish_is_not_taken() {
    let mut keeper = Keeper::new(KeeperPolicy::default());
    joined(&mut keeper, ms(0));
    keeper.want(ms(100), s("a"));
    let (first, _) = asked(&mut keeper);
    keeper.want(ms(110), s("a"));
    let done = duties(&mut keeper);
    assert!(matches!(done[0], Duty::Denied { .. }));
    let Duty::Ask {
        request: second, ..
    } = done[1]
    else {
        panic!("{done:?}");
    };
    keeper.answered(ms(120), first, granted(1));
    assert_eq!(duties(&mut keeper), []);
    keeper.answered(ms(130), second, granted(2));
    assert!(keeper.may_speak(ms(130), &s("a"), e(2)));
}

/// F-095: who takes over from a dead node waits until its lease is over, and no longer.
#[test]
fn a_held_session_is_asked_for_until_it_is_free() {
    let mut keeper = Keeper::new(KeeperPolicy::default());
    joined(&mut keeper, ms(0));
    keeper.want(ms(0), s("a"));
    let free = ms(5_000);
    let got = loop {
        let done = duties(&mut keeper);
        let now = keeper.next_deadline().unwrap();
        for duty in done {
            match duty {
                Duty::Ask {
                    request,
                    ask: Ask::Renew { .. },
                } => {
                    keeper.answered(now, request, renewed());
                }
                Duty::Ask { request, .. } if now < free => {
                    let reason = "held by another".to_owned();
                    keeper.answered(now, request, Answer::Busy { reason });
                }
                Duty::Ask { request, .. } => {
                    keeper.answered(now, request, granted(2));
                }
                _nothing_to_send => {}
            }
        }
        if keeper.may_speak(now, &s("a"), e(2)) {
            break now;
        }
        let now = keeper.next_deadline().unwrap();
        keeper.tick(now);
    };
    assert!(got >= free && got < ms(7_100), "{got:?}");
}

/// The wish of somebody who does not wait any more is seen to its end: what may have been granted is
/// given up, and nothing else is asked for.
#[test]
fn what_was_granted_to_nobody_is_given_up() {
    let mut keeper = Keeper::new(KeeperPolicy::default());
    joined(&mut keeper, ms(0));
    keeper.want(ms(100), s("a"));
    let (request, _) = asked(&mut keeper);
    keeper.unwant(ms(120), &s("a"));
    keeper.answered(ms(150), request, granted(3));
    let (request, ask) = asked(&mut keeper);
    assert_eq!(
        ask,
        Ask::Part {
            session: s("a"),
            epoch: e(3),
            how: Parting::Release,
        }
    );
    assert!(!keeper.may_speak(ms(150), &s("a"), e(3)));
    keeper.answered(ms(170), request, Answer::Parted);
    assert!(keeper.sessions.is_empty());

    // Refused while nobody waits: there is nothing to give up.
    keeper.want(ms(200), s("b"));
    let (request, _) = asked(&mut keeper);
    keeper.unwant(ms(210), &s("b"));
    keeper.answered(
        ms(220),
        request,
        Answer::Busy {
            reason: String::new(),
        },
    );
    assert!(keeper.sessions.is_empty());
}

/// F-096: what is to be let go is not prolonged by a later renewal, however often it is told; once its
/// time is up it is silent and given up. Its time is that of its lease, or what it was given to finish what
/// it says, counted from the last renewal that did not know of the order.
#[test]
fn what_is_to_be_let_go_ends_when_it_would_have() {
    for (finish_within, ttl) in [
        (ms(0), ms(4_000)),
        (ms(3_000), ms(4_000)),
        (ms(20_000), ms(20_000)),
    ] {
        let (finish_within, ttl) = (finish_within.as_duration(), ttl.as_duration());
        let mut keeper = holding();
        keeper.told_to_let_go(ms(500), &s("a"), e(1), finish_within);
        let until = Monotonic::ZERO + ttl * 9 / 10;
        let let_go = Duty::LetGo {
            session: s("a"),
            epoch: e(1),
            asked: ms(0),
            ttl,
        };
        assert_eq!(duties(&mut keeper), [let_go]);
        let mut at = ms(1_200);
        while at < until {
            keeper.tick(at);
            let (request, _) = asked(&mut keeper);
            let answer = Answer::Renewed {
                ttl: TTL,
                lost: Vec::new(),
                // It has more time by now for all that is known here, and none of it counts.
                going: vec![(s("a"), e(1), finish_within * 2)],
            };
            keeper.answered(at + Duration::from_millis(10), request, answer);
            let renewed = Duty::Renewed {
                asked: at,
                ttl: TTL,
            };
            assert_eq!(duties(&mut keeper), [renewed]);
            assert!(keeper.may_speak(at, &s("a"), e(1)));
            at = at + Duration::from_millis(1_200);
        }
        keeper.tick(until);
        let done = duties(&mut keeper);
        let lost = Duty::Lost {
            session: s("a"),
            epoch: e(1),
        };
        assert!(done.contains(&lost), "{done:?}");
        let parts = |duty: &Duty| {
            matches!(
                duty,
                Duty::Ask {
                    ask: Ask::Part { .. },
                    ..
                }
            )
        };
        assert!(done.iter().any(parts), "{done:?}");
        assert!(keeper.is_in(until), "the others go on");
    }
}

/// F-096: however long a session was given to finish, it is silent when the right of its node is over.
#[test]
fn who_may_finish_still_has_to_renew() {
    let mut keeper = holding();
    keeper.told_to_let_go(ms(500), &s("a"), e(1), Duration::from_secs(30));
    duties(&mut keeper);
    assert!(keeper.may_speak(ms(3_599), &s("a"), e(1)));
    assert!(!keeper.may_speak(ms(3_600), &s("a"), e(1)));
    keeper.tick(ms(3_600));
    let lost = Duty::Lost {
        session: s("a"),
        epoch: e(1),
    };
    assert_eq!(duties(&mut keeper)[0], lost);
}

/// F-096: an order may overtake the answer that grants what it is about.
#[test]
fn what_is_granted_and_to_be_let_go_already_is_let_go() {
    let mut keeper = Keeper::new(KeeperPolicy::default());
    joined(&mut keeper, ms(0));
    keeper.want(ms(100), s("a"));
    let (request, _) = asked(&mut keeper);
    keeper.told_to_let_go(ms(120), &s("a"), e(2), Duration::ZERO);
    keeper.answered(ms(150), request, granted(2));
    let let_go = Duty::LetGo {
        session: s("a"),
        epoch: e(2),
        asked: ms(0),
        ttl: TTL,
    };
    assert_eq!(duties(&mut keeper)[1..], [let_go]);
}

/// What a renewal names as lost is silent at once; what was granted anew since is not meant.
#[test]
fn a_renewal_tells_of_what_was_lost() {
    let mut keeper = holding();
    keeper.tick(ms(1_200));
    let (request, _) = asked(&mut keeper);
    let answer = Answer::Renewed {
        ttl: TTL,
        lost: vec![(s("a"), e(1)), (s("b"), e(2))],
        going: Vec::new(),
    };
    keeper.answered(ms(1_210), request, answer);
    let done = duties(&mut keeper);
    assert_eq!(
        done[0],
        Duty::Lost {
            session: s("a"),
            epoch: e(1)
        }
    );
    assert_eq!(done.len(), 2);
}

/// The same session asked for again where it is: the older one stops before anything is asked.
#[test]
fn a_second_wish_for_a_session_silences_the_first() {
    let mut keeper = holding();
    keeper.want(ms(500), s("a"));
    let done = duties(&mut keeper);
    assert_eq!(
        done[0],
        Duty::Lost {
            session: s("a"),
            epoch: e(1)
        }
    );
    assert!(matches!(
        &done[1],
        Duty::Ask {
            ask: Ask::Acquire { attempt: 2, .. },
            ..
        }
    ));
    assert!(!keeper.may_speak(ms(500), &s("a"), e(1)));
}

/// Nobody is kept waiting for a control plane that is away: that is known at once.
#[test]
fn without_a_life_nothing_is_taken_on() {
    let mut keeper = Keeper::new(KeeperPolicy::default());
    keeper.want(ms(0), s("a"));
    assert!(matches!(
        &duties(&mut keeper)[..],
        [Duty::Denied {
            denial: Denial::Away { .. },
            ..
        }]
    ));
    let mut keeper = holding();
    keeper.tick(ms(1_200));
    let (request, _) = asked(&mut keeper);
    keeper.answered(ms(1_210), request, Answer::Stranger);
    let done = duties(&mut keeper);
    assert!(
        matches!(done[..], [Duty::Lost { .. }, Duty::Left { .. }]),
        "{done:?}"
    );
    keeper.want(ms(1_220), s("b"));
    assert!(matches!(duties(&mut keeper)[..], [Duty::Denied { .. }]));
}

/// A giving up that is not answered is repeated, since others wait for it.
#[test]
fn a_session_is_given_up_until_that_is_known() {
    let mut keeper = holding();
    keeper.part(ms(300), &s("a"), e(1), Parting::End);
    let (request, _) = asked(&mut keeper);
    keeper.answered(ms(310), request, unreachable());
    assert_eq!(duties(&mut keeper), []);
    keeper.tick(ms(410));
    let (request, ask) = asked(&mut keeper);
    assert_eq!(
        ask,
        Ask::Part {
            session: s("a"),
            epoch: e(1),
            how: Parting::End
        }
    );
    keeper.answered(ms(420), request, Answer::Parted);
    assert!(keeper.sessions.is_empty());
}

/// What may happen to a request.
#[derive(Clone, Copy, Debug)]
struct Fate {
    /// How long it takes to get there; `None`: it does not.
    there: Option<u64>,
    /// How long the answer takes; `None`: it is lost.
    back: Option<u64>,
    /// The answer comes a second time.
    twice: bool,
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The node runs on for so long.
    Run(u64),
    /// The node is stopped for so long.
    Pause(u64),
    /// The control plane wants the session back after so long, and the order reaches the node after so long,
    /// or not.
    Revoke(u64, Option<u64>),
    /// Another node asks for the session.
    Take,
    /// Somebody wants it here.
    Want,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1u64..900).prop_map(Step::Run),
        1 => (1u64..9_000).prop_map(Step::Pause),
        1 => (0u64..12_000, proptest::option::of(0u64..3_000))
            .prop_map(|(within, after)| Step::Revoke(within, after)),
        4 => Just(Step::Take),
        2 => Just(Step::Want),
    ];
    proptest::collection::vec(step, 1..60)
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let leg = || prop_oneof![1 => Just(None), 6 => (1u64..1_500).prop_map(Some)];
    let fate = (leg(), leg(), any::<bool>());
    let fate = fate.prop_map(|(there, back, twice)| Fate { there, back, twice });
    proptest::collection::vec(fate, 8..40)
}

/// The control plane as the keeper's other side: a life ends by its own clock, a second after the holder
/// was told, and not because a later one began; so does a fuse.
#[derive(Default)]
struct Plane {
    /// Until when each life lasts.
    lives: BTreeMap<u64, u64>,
    epoch: u64,
    /// Whose the session is: a life of the node, or another node.
    held_by: Option<Owner>,
    /// The life of the node that held it last, if nobody else has since.
    last: Option<u64>,
    revoked: bool,
    fuse_until: u64,
    finish_within: u64,
    attempt: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Node(u64),
    Another,
}

impl Plane {
    fn is_free(&self, now: u64) -> bool {
        match self.held_by {
            None => true,
            Some(Owner::Another) => false,
            Some(Owner::Node(life)) => {
                let alive = self.is_alive(now, life);
                !alive || (self.revoked && now >= self.fuse_until)
            }
        }
    }

    fn is_alive(&self, now: u64, life: u64) -> bool {
        self.lives.get(&life).is_some_and(|until| now < *until)
    }

    fn serve(&mut self, now: u64, life: u64, ask: &Ask) -> Answer {
        let kept = TTL.as_millis() as u64 + 1_000;
        if *ask == Ask::Join {
            let life = self.lives.len() as u64 + 1;
            self.lives.insert(life, now + kept);
            return Answer::Joined { ttl: TTL };
        }
        if !self.is_alive(now, life) {
            return Answer::Stranger;
        }
        let ours = self.held_by == Some(Owner::Node(life));
        match ask {
            Ask::Join => unreachable!("served above"),
            Ask::Renew { sessions } => {
                self.lives.insert(life, now + kept);
                let named = sessions
                    .iter()
                    .map(|(session, epoch)| (session.clone(), *epoch));
                let holds = |epoch: Epoch| ours && epoch.get() == self.epoch;
                let lost = named.filter(|(_, epoch)| !holds(*epoch)).collect();
                // Whether or not the node knows yet that it holds it.
                let going = (ours && self.revoked).then(|| {
                    let within = Duration::from_millis(self.finish_within);
                    (s("a"), e(self.epoch), within)
                });
                let going = going.into_iter().collect();
                Answer::Renewed {
                    ttl: TTL,
                    lost,
                    going,
                }
            }
            Ask::Acquire { attempt, .. } if self.last == Some(life) && *attempt <= self.attempt => {
                if ours && *attempt == self.attempt && !self.revoked {
                    granted(self.epoch)
                } else {
                    Answer::Refused {
                        reason: "overtaken".to_owned(),
                    }
                }
            }
            Ask::Acquire { attempt, .. } => {
                let free = self.is_free(now) || (ours && !self.revoked);
                if !free {
                    return Answer::Busy {
                        reason: "held".to_owned(),
                    };
                }
                self.epoch += 1;
                self.held_by = Some(Owner::Node(life));
                self.last = Some(life);
                self.attempt = *attempt;
                self.revoked = false;
                granted(self.epoch)
            }
            Ask::Part { epoch, .. } => {
                if ours && epoch.get() == self.epoch {
                    self.held_by = None;
                    self.revoked = false;
                }
                Answer::Parted
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// F-095, design §1 promise 3: whatever is lost, late, doubled or overtaken on the way, and however
    /// long the node is stopped, it never speaks under a right that the control plane has given to
    /// somebody else, and never under an epoch that is not the newest.
    #[test]
    fn nobody_speaks_under_what_is_somebody_elses(steps in steps(), fates in fates()) {
        let mut keeper = Keeper::new(KeeperPolicy { spread: 77, ..KeeperPolicy::default() });
        let mut plane = Plane::default();
        // What is under way: when, in which order, what.
        let mut mail: BTreeMap<(u64, u64), Mail> = BTreeMap::new();
        let mut fates = fates.into_iter().cycle();
        let (mut now, mut count, mut life) = (0u64, 0u64, 0u64);
        let mut node_until = 0u64; // The node sees nothing before.
        for step in steps {
            let mut until = now;
            match step {
                Step::Run(length) => until = now + length,
                Step::Pause(length) => node_until = node_until.max(now + length),
                Step::Revoke(within, after) => {
                    if let Some(Owner::Node(_)) = plane.held_by && !plane.revoked {
                        plane.revoked = true;
                        plane.finish_within = within;
                        plane.fuse_until = now + within.max(TTL.as_millis() as u64) + 1_000;
                        if let Some(after) = after {
                            count += 1;
                            let order = Mail::Order(plane.epoch, within);
                            mail.insert((now + after, count), order);
                        }
                    }
                }
                Step::Take => {
                    if plane.is_free(now) {
                        plane.epoch += 1;
                        plane.held_by = Some(Owner::Another);
                        plane.last = None;
                        plane.revoked = false;
                    } else if plane.held_by == Some(Owner::Another) {
                        plane.held_by = None;
                    }
                }
                Step::Want => {
                    if now >= node_until {
                        keeper.want(ms(now), s("a"));
                    }
                }
            }
            loop {
                while let Some(duty) = keeper.poll_duty() {
                    let Duty::Ask { request, ask } = duty else { continue };
                    let fate = fates.next().expect("it is endless");
                    if let Some(there) = fate.there {
                        count += 1;
                        let at = now.max(node_until) + there;
                        mail.insert((at, count), Mail::There { request, ask, life, fate });
                    }
                }
                // What the control plane believes must be what the node does.
                if now >= node_until {
                    let speaks = (1..=plane.epoch)
                        .filter_map(Epoch::new)
                        .filter(|epoch| keeper.may_speak(ms(now), &s("a"), *epoch));
                    for epoch in speaks {
                        prop_assert_eq!(epoch.get(), plane.epoch, "an old epoch at {}", now);
                        let held = matches!(plane.held_by, Some(Owner::Node(_)));
                        prop_assert!(held && !plane.is_free(now), "not held at {}", now);
                    }
                }
                let post = mail.first_key_value().map(|((at, _), _)| *at);
                let timer = keeper.next_deadline().map(|at| {
                    let due = at.as_duration().as_micros().div_ceil(1_000) as u64;
                    due.max(node_until)
                });
                let next = post.into_iter().chain(timer).min();
                let Some(next) = next.filter(|next| *next <= until) else { break };
                now = now.max(next);
                if post == Some(next) {
                    let (_, item) = mail.pop_first().expect("it was looked at");
                    match item {
                        Mail::There { request, ask, life, fate } => {
                            let answer = plane.serve(now, life, &ask);
                            let copies = if fate.twice { 2 } else { 1 };
                            for copy in 0..copies {
                                if let Some(back) = fate.back {
                                    count += 1;
                                    let at = now + back * (1 + copy);
                                    let news = Mail::Back {
                                        request,
                                        answer: answer.clone(),
                                        life: plane.lives.len() as u64,
                                    };
                                    mail.insert((at, count), news);
                                }
                            }
                        }
                        Mail::Back { .. } | Mail::Order(..) if now < node_until => {
                            count += 1;
                            mail.insert((node_until, count), item);
                        }
                        Mail::Back { request, answer, life: new } => {
                            let before = keeper.is_in(ms(now));
                            keeper.answered(ms(now), request, answer);
                            if !before && keeper.is_in(ms(now)) {
                                life = new;
                            }
                        }
                        Mail::Order(epoch, within) => {
                            let within = Duration::from_millis(within);
                            keeper.told_to_let_go(ms(now), &s("a"), e(epoch), within);
                        }
                    }
                } else {
                    keeper.tick(ms(now));
                }
            }
            now = now.max(until);
        }
    }
}

enum Mail {
    There {
        request: RequestId,
        ask: Ask,
        life: u64,
        fate: Fate,
    },
    Back {
        request: RequestId,
        answer: Answer,
        life: u64,
    },
    /// Which epoch, and how long it may take.
    Order(u64, u64),
}
