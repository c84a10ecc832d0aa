//! Running a recorded session again, and what differs then.

use std::path::Path;

use rspp_actors::Clock;
use rspp_proto::spec::ReplayMode;
use rspp_replay::{Divergence, Recorded, Rerun, RerunError, Stage, Tolerance, compare, rerun};
use rspp_timeline::{Entry, Options, Recording, Timeline};

use crate::{outputs::make_room, problem::Problem};

/// Runs the session of `baseline` again on this thread's paused clock; the timeline of the replay goes to
/// `file`, which says which mode made it. What differs comes back, in the order of the baseline.
pub(crate) async fn again(
    baseline: &[Entry],
    mode: ReplayMode,
    stage: Stage,
    file: &Path,
    tolerance: Tolerance,
) -> Result<(Rerun, Vec<Divergence>), Problem> {
    let recorded = Recorded::of(baseline).map_err(Problem::input)?;
    let clock = Clock::start();
    let options = Options::under(recorded.recording_policy());
    make_room(file)?;
    let (recorder, recording) = Recording::create(file, recorded.header(mode, clock), options)
        .await
        .map_err(Problem::failure)?;
    let played = rerun(&recorded, mode, stage, clock, recorder).await;
    recording.close().await.map_err(Problem::failure)?;
    let rerun = played.map_err(|error| match error {
        RerunError::Start(_) | RerunError::Endless { .. } => Problem::failure(error),
        RerunError::Version(_)
        | RerunError::NoOpening
        | RerunError::Unreadable { .. }
        | RerunError::Level { .. }
        | RerunError::Withheld { .. }
        | RerunError::Lost { .. }
        | RerunError::NotAllowed { .. }
        | RerunError::Mode(_) => Problem::input(error),
    })?;
    let candidate = Timeline::open(file)
        .map_err(Problem::failure)?
        .entries()
        .map_err(Problem::failure)?;
    let mut found = rerun.divergences.clone();
    found.extend(compare(baseline, &candidate, &tolerance));
    Ok((rerun, found))
}
