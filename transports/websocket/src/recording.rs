//! Calls as they crossed the wire, in files (P29).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rspp_proto::SessionId;
use rspp_transport_api::{
    loopback::Recorded,
    wav::{StereoWriter, WavError},
};
use tokio_util::sync::CancellationToken;

use crate::crossing::Crossing;

/// How often what was heard is written out.
const WRITE_EVERY: Duration = Duration::from_millis(500);

/// The file of a session's call. A session is named by whoever issued its token, and a file by us.
pub(crate) fn path(folder: &Path, session: &SessionId) -> PathBuf {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
    let name = session.as_str().chars().take(100);
    let name: String = name
        .map(|letter| if plain(letter) { letter } else { '_' })
        .collect();
    folder.join(name).with_extension("wav")
}

/// Records a call until it is over. A disk that takes no more costs the recording, and not the call.
pub(crate) async fn keep(
    session: SessionId,
    crossing: Arc<Crossing>,
    done: CancellationToken,
    path: PathBuf,
) {
    if let Err(error) = written(&crossing, &done, &path).await {
        tracing::warn!(session_id = %session, %error, "the call is not recorded");
    }
    crossing.stop_recording();
    let wire = crossing.report();
    tracing::info!(
        session_id = %session,
        file = %path.display(),
        frames = wire.frames,
        gaps = wire.gaps,
        longest_gap_ms = wire.longest_gap_ms,
        jitter_us = wire.jitter_us,
        "the call was recorded at the wire"
    );
}

async fn written(
    crossing: &Crossing,
    done: &CancellationToken,
    path: &Path,
) -> Result<(), WavError> {
    let Some(rate) = crossing.recorded_rate() else {
        return Ok(());
    };
    let at = path.to_owned();
    let mut writer = blocking(move || StereoWriter::create(&at, rate)).await?;
    loop {
        let is_over = tokio::time::timeout(WRITE_EVERY, done.cancelled())
            .await
            .is_ok();
        let Recorded { user, agent } = crossing.take_recorded(is_over);
        writer = blocking(move || {
            writer.write(&user, &agent)?;
            Ok(writer)
        })
        .await?;
        if is_over {
            return blocking(move || writer.finish()).await;
        }
    }
}

/// Runs what waits for a disk where nothing else waits.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WavError> + Send + 'static,
) -> Result<T, WavError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NF-013: no name of a session leads out of the folder.
    #[test]
    fn a_session_names_a_file_in_the_folder() {
        for (session, file) in [
            ("ws-00ff", "/calls/ws-00ff.wav"),
            ("../../etc/passwd", "/calls/______etc_passwd.wav"),
            ("a.b/c\u{0}d", "/calls/a_b_c_d.wav"),
        ] {
            let session = SessionId::new(session).unwrap();
            assert_eq!(path(Path::new("/calls"), &session), Path::new(file));
        }
    }
}
