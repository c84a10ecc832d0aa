use std::time::Duration;

use proptest::prelude::*;
use rspp_proto::{
    Monotonic,
    spec::RecordingLevel::{self, L0, L1, L2},
};
use rspp_timeline::{Fidelity, FidelityPolicy, LevelChange, LevelTrigger, Pressure};

fn at(ms: u64) -> Monotonic {
    Monotonic::from_millis(ms)
}

fn pressure(fill: f64, lag_ms: u64) -> Pressure {
    Pressure {
        fill,
        export_lag: Duration::from_millis(lag_ms),
    }
}

/// F-176: the thresholds of observability.md §3, row by row, in virtual time.
#[test]
fn the_level_goes_down_exactly_at_its_thresholds() {
    /// Observes `steps` from `level`; expects the last one to lead to `end` by `trigger`.
    #[track_caller]
    fn check(
        level: RecordingLevel,
        steps: &[(u64, f64, u64)],
        end: RecordingLevel,
        trigger: Option<LevelTrigger>,
    ) {
        let mut fidelity = Fidelity::new(FidelityPolicy::default(), level);
        let mut last = None;
        for (ms, fill, lag) in steps {
            assert_eq!(last, None, "went down before the last step");
            last = fidelity.observe(at(*ms), pressure(*fill, *lag));
        }
        assert_eq!(fidelity.level(), end);
        assert_eq!(last.map(|change| change.trigger), trigger);
    }
    let (fill, lag) = (Some(LevelTrigger::QueueFill), Some(LevelTrigger::ExportLag));
    check(L2, &[(0, 0.80, 0), (499, 0.80, 0)], L2, None);
    check(L2, &[(0, 0.80, 0), (500, 0.80, 0)], L1, fill);
    check(L2, &[(0, 0.79, 0), (9_000, 0.79, 1_999)], L2, None);
    check(
        L2,
        &[
            (0, 0.80, 0),
            (400, 0.79, 0),
            (600, 0.80, 0),
            (1_099, 0.99, 0),
        ],
        L2,
        None,
    );
    check(
        L2,
        &[
            (0, 0.80, 0),
            (400, 0.79, 0),
            (600, 0.80, 0),
            (1_100, 0.80, 0),
        ],
        L1,
        fill,
    );
    check(L2, &[(0, 0.0, 2_000)], L1, lag);
    check(L2, &[(0, 1.0, 60_000)], L1, lag); // never two levels at once
    check(L1, &[(0, 0.90, 0), (499, 0.90, 0)], L1, None);
    check(L1, &[(0, 0.90, 0), (500, 0.90, 0)], L0, fill);
    check(L1, &[(0, 0.89, 4_999), (9_000, 0.89, 4_999)], L1, None);
    check(L1, &[(0, 0.0, 5_000)], L0, lag);
    check(L0, &[(0, 1.0, 60_000), (9_000, 1.0, 60_000)], L0, None);
}

#[test]
fn each_level_holds_for_its_own_time() {
    let mut fidelity = Fidelity::new(FidelityPolicy::default(), L2);
    let path: Vec<_> = (0..=12)
        .filter_map(|tenth| fidelity.observe(at(tenth * 100), pressure(0.95, 0)))
        .map(|change| (change.at.as_millis(), change.from, change.to))
        .collect();
    // Down at 500; the second hold begins with the observation after it.
    assert_eq!(path, [(500, L2, L1), (1_100, L1, L0)]);
}

#[test]
fn it_goes_up_only_at_a_turn_boundary_after_a_stable_window() {
    let mut fidelity = Fidelity::new(FidelityPolicy::default(), L2);
    assert!(fidelity.observe(at(0), pressure(0.0, 2_000)).is_some());
    assert!(fidelity.observe(at(1), pressure(0.0, 5_000)).is_some());
    assert_eq!(fidelity.level(), L0);

    assert_eq!(fidelity.observe(at(1_000), pressure(0.1, 0)), None);
    assert_eq!(
        fidelity.turn_boundary(at(10_999)),
        None,
        "the window is not over"
    );
    assert_eq!(
        fidelity.observe(at(60_000), pressure(0.1, 0)),
        None,
        "never by itself"
    );
    let up = fidelity.turn_boundary(at(60_000)).unwrap();
    assert_eq!((up.from, up.to, up.trigger), (L0, L1, LevelTrigger::Stable));
    assert!(!up.is_downgrade());
    assert_eq!(
        fidelity.turn_boundary(at(60_001)),
        None,
        "one level a window"
    );
    assert_eq!(fidelity.turn_boundary(at(70_000)).map(|up| up.to), Some(L2));
    assert_eq!(fidelity.turn_boundary(at(99_000)), None);
}

#[test]
fn it_never_goes_above_what_the_plan_asks_for() {
    let mut fidelity = Fidelity::new(FidelityPolicy::default(), L0);
    assert_eq!(fidelity.observe(at(0), pressure(0.0, 0)), None);
    assert_eq!(fidelity.turn_boundary(at(99_000)), None);
}

proptest! {
    /// F-176: one step at a time, named in full; equal observations give an equal path.
    #[test]
    fn the_path_is_deterministic_and_skips_no_level(
        steps in prop::collection::vec((0_u64..2_000, 0.5_f64..1.0, 0_u64..6_000, any::<bool>()), 0..60),
    ) {
        let run = || {
            let mut fidelity = Fidelity::new(FidelityPolicy::default(), L2);
            let (mut now, mut path) = (0, Vec::<LevelChange>::new());
            for (wait, fill, lag, boundary) in &steps {
                now += wait;
                path.extend(fidelity.observe(at(now), pressure(*fill, *lag)));
                if *boundary {
                    path.extend(fidelity.turn_boundary(at(now)));
                }
            }
            path
        };
        let path = run();
        prop_assert_eq!(&path, &run());
        let mut level = L2;
        for change in &path {
            prop_assert_eq!(change.from, level);
            prop_assert_eq!((change.from as i8 - change.to as i8).abs(), 1);
            prop_assert_eq!(change.is_downgrade(), change.trigger != LevelTrigger::Stable);
            prop_assert!(!change.policy_id.is_empty());
            level = change.to;
        }
    }
}
