//! Fairness, as whoever shares would measure it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn share(group: &str, member: &str) -> Share {
    Share::new(group, member)
}

fn weighted(group: &str, weight: u32) -> Share {
    Share {
        weight: NonZeroU32::new(weight).unwrap(),
        ..share(group, group)
    }
}

fn background(group: &str) -> Share {
    Share {
        priority: Priority::Background,
        ..share(group, group)
    }
}

/// One server, with everything queued that is ever asked for: who was served, one after the other.
fn serve<'a>(
    queue: &mut FairQueue<&'a str>,
    times: usize,
    cost: impl Fn(&str) -> Duration,
) -> Vec<&'a str> {
    let mut served = Vec::new();
    for _ in 0..times {
        let Some((grant, item)) = queue.pop() else {
            break;
        };
        queue.release(grant, cost(item));
        served.push(item);
    }
    served
}

const UNIT: Duration = Duration::from_millis(10);

/// F-174, NF-033: a tenant that asks for a hundred times as much gets no more for it.
#[test]
fn a_flood_does_not_starve_a_small_tenant() {
    let mut queue = FairQueue::new(1_000);
    for _ in 0..100 {
        assert_eq!(queue.push(&share("big", "b"), "big"), Pushed::Queued);
    }
    for _ in 0..5 {
        assert_eq!(queue.push(&share("small", "s"), "small"), Pushed::Queued);
    }
    let served = serve(&mut queue, 10, |_| UNIT);
    let small = served.iter().filter(|who| **who == "small").count();
    assert_eq!(small, 5, "{served:?}");
}

/// P22: inside a tenant, sessions share evenly.
#[test]
fn sessions_of_a_tenant_share_evenly() {
    let mut queue = FairQueue::new(1_000);
    for _ in 0..50 {
        let _queued = queue.push(&share("t", "busy"), "busy");
    }
    for _ in 0..3 {
        let _queued = queue.push(&share("t", "calm"), "calm");
    }
    let served = serve(&mut queue, 6, |_| UNIT);
    let calm = served.iter().filter(|who| **who == "calm").count();
    assert_eq!(calm, 3, "{served:?}");
}

/// F-174: shares go by weight.
#[test]
fn shares_go_by_weight() {
    let mut queue = FairQueue::new(1_000);
    for _ in 0..100 {
        let _queued = queue.push(&weighted("three", 3), "three");
        let _queued = queue.push(&weighted("one", 1), "one");
    }
    let served = serve(&mut queue, 80, |_| UNIT);
    let three = served.iter().filter(|who| **who == "three").count();
    assert!((58..=62).contains(&three), "{three} of 80");
}

/// F-174: it is time that is shared, not the number of calls.
#[test]
fn long_work_counts_for_more() {
    let mut queue = FairQueue::new(1_000);
    for _ in 0..200 {
        let _queued = queue.push(&share("long", "l"), "long");
        let _queued = queue.push(&share("short", "s"), "short");
    }
    let cost = |who: &str| if who == "long" { UNIT * 9 } else { UNIT };
    let served = serve(&mut queue, 150, cost);
    let time =
        |of: &str| -> Duration { served.iter().filter(|w| **w == of).map(|w| cost(w)).sum() };
    let (long, short) = (time("long"), time("short"));
    assert!(
        long <= short + UNIT * 18 && short <= long + UNIT * 18,
        "{long:?} {short:?}"
    );
}

/// F-173: background work gets what interactive work leaves, and a little, so that it ends one day.
#[test]
fn interactive_work_comes_first() {
    let mut queue = FairQueue::new(1_000);
    for _ in 0..100 {
        let _queued = queue.push(&background("b"), "background");
        let _queued = queue.push(&share("live", "l"), "live");
    }
    let served = serve(&mut queue, 68, |_| UNIT);
    let live = served.iter().filter(|who| **who == "live").count();
    assert!((63..=65).contains(&live), "{live} of 68");
}

/// F-174: a group holds no more than its slots, and others go past it.
#[test]
fn a_group_holds_no_more_than_its_slots() {
    let mut queue = FairQueue::new(100);
    let capped = Share {
        slots: NonZeroU32::new(1),
        ..share("capped", "c")
    };
    let _queued = queue.push(&capped, "c1");
    let _queued = queue.push(&capped, "c2");
    let _queued = queue.push(&share("free", "f"), "f1");
    let (first, item) = queue.pop().unwrap();
    assert_eq!(item, "c1");
    let (second, item) = queue.pop().unwrap();
    assert_eq!(item, "f1");
    assert!(queue.pop().is_none(), "the other slot is not theirs");
    assert!(queue.begin(&capped).is_none());
    queue.release(first, UNIT);
    assert_eq!(queue.pop().unwrap().1, "c2");
    queue.release(second, UNIT);
}

/// A full queue displaces whoever has most waiting, background work first.
#[test]
fn a_full_queue_displaces_the_flood() {
    let mut queue = FairQueue::new(4);
    for n in ["1", "2", "3", "4"] {
        assert_eq!(queue.push(&share("flood", "f"), n), Pushed::Queued);
    }
    assert_eq!(queue.push(&share("flood", "f"), "5"), Pushed::Refused("5"));
    let calm = queue.push(&share("calm", "c"), "c");
    assert_eq!(calm, Pushed::Displaced("4"));
    assert_eq!(queue.len(), 4);
    let _queued = queue.pop();
    let _queued = queue.push(&background("b"), "b");
    let live = queue.push(&share("other", "o"), "o");
    assert_eq!(live, Pushed::Displaced("b"));
}

/// Nothing is kept of those who are gone.
#[test]
fn nothing_is_left_when_all_is_done() {
    let mut queue = FairQueue::new(10_000);
    for n in 0..1_000 {
        let name = format!("g{n}");
        let _queued = queue.push(&share(&name, &name), "x");
    }
    while let Some((grant, _)) = queue.pop() {
        queue.release(grant, UNIT);
    }
    assert!(queue.groups.is_empty());
}

#[derive(Clone, Debug)]
struct Arrivals {
    tenants: Vec<(u32, u32)>,
    slots: usize,
}

fn arrivals() -> impl Strategy<Value = Arrivals> {
    let tenant = (1_u32..5, 1_u32..20);
    (prop::collection::vec(tenant, 2..6), 1_usize..4)
        .prop_map(|(tenants, slots)| Arrivals { tenants, slots })
}

proptest! {
    /// NF-033, F-174: while all tenants always have something waiting, each gets its share of the
    /// time, up to one piece of work of each, whatever its pieces cost; none ever waits longer than
    /// it takes to serve everybody else once by weight.
    #[test]
    fn everybody_gets_their_share(arrivals in arrivals()) {
        let names: Vec<String> = (0..arrivals.tenants.len()).map(|n| format!("t{n}")).collect();
        let mut queue = FairQueue::new(100_000);
        let shares: Vec<Share> = arrivals
            .tenants
            .iter()
            .zip(&names)
            .map(|((weight, _), name)| weighted(name, *weight))
            .collect();
        let cost = |n: usize| Duration::from_millis(u64::from(arrivals.tenants[n].1));
        for (n, share) in shares.iter().enumerate() {
            for _ in 0..3 {
                let _queued = queue.push(share, n);
            }
        }
        let mut used: BTreeMap<usize, f64> = BTreeMap::new();
        let mut running: VecDeque<(Grant, usize)> = VecDeque::new();
        let mut since = vec![0_usize; shares.len()];
        for _ in 0..2_000 {
            while running.len() < arrivals.slots {
                let (grant, n) = queue.pop().expect("everybody always waits");
                let _queued = queue.push(&shares[n], n);
                for waited in &mut since {
                    *waited += 1;
                }
                since[n] = 0;
                running.push_back((grant, n));
                let worst = since.iter().max().copied().unwrap_or_default();
                prop_assert!(worst < 20 * 4 * 6 * 4, "starved for {worst} grants");
            }
            let (grant, n) = running.pop_front().expect("somebody runs");
            *used.entry(n).or_default() += cost(n).as_secs_f64();
            queue.release(grant, cost(n));
        }
        let total: f64 = used.values().sum();
        let weights: u32 = arrivals.tenants.iter().map(|(weight, _)| weight).sum();
        for (n, (weight, _)) in arrivals.tenants.iter().enumerate() {
            let fair = total * f64::from(*weight) / f64::from(weights);
            let got = used.get(&n).copied().unwrap_or_default();
            prop_assert!(got >= fair * 0.8 - 0.1, "t{n} got {got:.3} s of its {fair:.3} s");
        }
    }

    /// Whatever comes and goes, counts stay right and the bound holds.
    #[test]
    fn counts_stay_right(steps in prop::collection::vec((0_u8..4, 0_u8..5), 1..400)) {
        let mut queue = FairQueue::new(8);
        let mut running = Vec::new();
        let mut waiting = 0;
        for (step, who) in steps {
            let name = format!("t{who}");
            match step {
                0 | 1 => match queue.push(&share(&name, &name), who) {
                    Pushed::Queued => waiting += 1,
                    Pushed::Displaced(_) | Pushed::Refused(_) => prop_assert_eq!(waiting, 8),
                },
                2 => {
                    let popped = queue.pop();
                    prop_assert_eq!(popped.is_some(), waiting > 0);
                    waiting -= usize::from(popped.is_some());
                    running.extend(popped.map(|(grant, _)| grant));
                }
                _ => {
                    if let Some(grant) = running.pop() {
                        queue.release(grant, Duration::from_millis(u64::from(who)));
                    }
                }
            }
            prop_assert_eq!(queue.len(), waiting);
        }
        while let Some((grant, _)) = queue.pop() {
            queue.release(grant, UNIT);
        }
        for grant in running {
            queue.release(grant, UNIT);
        }
        prop_assert!(queue.groups.is_empty());
    }
}
