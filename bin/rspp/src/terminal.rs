//! How things look on a terminal, and how they look in a file.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use rspp_local::models::{ModelId, Progress};

use crate::problem::Problem;

/// Tells the user something that is no result: on standard error.
pub(crate) fn note(text: impl AsRef<str>) {
    // Nobody to tell is no reason to stop.
    let _ = writeln!(io::stderr(), "{}", text.as_ref());
}

/// Prints a result.
pub(crate) fn print(text: impl AsRef<str>) -> Result<(), Problem> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref().as_bytes())?;
    if !text.as_ref().ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}

/// Prints a result for programs.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), Problem> {
    let text = serde_json::to_string_pretty(value).map_err(Problem::failure)?;
    print(text)
}

/// Text of whole lines.
pub(crate) fn of_lines(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

/// A size as downloads count it.
pub(crate) fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    if bytes < 1e9 {
        format!("{:.1} MB", bytes / 1e6)
    } else {
        format!("{:.1} GB", bytes / 1e9)
    }
}

/// Milliseconds with as many digits as help.
pub(crate) fn millis(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    match ms {
        ..0.995 => format!("{ms:.2} ms"),
        ..9.95 => format!("{ms:.1} ms"),
        _ => format!("{ms:.0} ms"),
    }
}

/// How long to wait, never said too short: `200 ms`, `12 s`.
pub(crate) fn wait(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_micros().div_ceil(1_000))
    } else {
        format!("{} s", duration.as_millis().div_ceil(1_000))
    }
}

/// One line that tells what goes on at the moment; only on a terminal.
pub(crate) struct Live(Option<ProgressBar>);

impl Live {
    pub(crate) fn new(wanted: bool) -> Self {
        let shown = wanted && io::stderr().is_terminal();
        Self(shown.then(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg}")
                .expect("the template is valid");
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        }))
    }

    /// Replaces the line.
    pub(crate) fn say(&self, text: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(text.to_owned());
        }
    }

    /// Prints a result above the line.
    pub(crate) fn print_above(&self, text: &str) -> Result<(), Problem> {
        match &self.0 {
            Some(bar) => bar.suspend(|| print(format!("{text}\n"))),
            None => print(format!("{text}\n")),
        }
    }

    /// Takes the line away.
    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Shows the pull of models: a bar on a terminal, a line a step elsewhere.
pub(crate) struct PullDisplay {
    bar: Option<ProgressBar>,
    shown: Option<Step>,
}

/// What of a progress is worth a line of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Waiting,
    Downloading(ModelId),
    Unpacking(ModelId),
    Preparing(ModelId),
}

impl PullDisplay {
    pub(crate) fn new() -> Self {
        Self {
            bar: io::stderr().is_terminal().then(|| {
                let bar = ProgressBar::new(0);
                bar.enable_steady_tick(Duration::from_millis(120));
                bar
            }),
            shown: None,
        }
    }

    pub(crate) fn show(&mut self, progress: Progress) {
        let step = match progress {
            Progress::Waiting => Step::Waiting,
            Progress::Downloading { id, .. } => Step::Downloading(id),
            Progress::Unpacking(id) => Step::Unpacking(id),
            Progress::Preparing(id) => Step::Preparing(id),
            Progress::Present(id) => {
                return self.line(&format!("{id}: already there"));
            }
            Progress::Ready(id) => return self.line(&format!("{id}: ready")),
        };
        let is_new = self.shown.replace(step) != Some(step);
        let text = match step {
            Step::Waiting => "waiting for another `rspp models pull`".to_owned(),
            Step::Downloading(id) => {
                format!("{id}: fetching {}", size(id.model().download_bytes()))
            }
            Step::Unpacking(id) => format!("{id}: unpacking and checking"),
            Step::Preparing(id) => format!("{id}: preparing, takes up to a minute"),
        };
        let Some(bar) = &self.bar else {
            if is_new {
                note(text);
            }
            return;
        };
        if is_new {
            bar.set_style(style(step));
            bar.set_message(text);
            bar.reset_elapsed();
            bar.reset_eta();
        }
        if let Progress::Downloading { bytes, total, .. } = progress {
            bar.set_length(total);
            bar.set_position(bytes);
        }
    }

    fn line(&mut self, text: &str) {
        self.shown = None;
        match &self.bar {
            Some(bar) => bar.println(text),
            None => note(text),
        }
    }
}

impl Drop for PullDisplay {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(step: Step) -> ProgressStyle {
    let template = match step {
        Step::Downloading(_) => "{msg}  [{bar:30}] {percent}%  {eta} left",
        Step::Waiting | Step::Unpacking(_) | Step::Preparing(_) => "{spinner} {msg}  {elapsed}",
    };
    ProgressStyle::with_template(template)
        .expect("the templates above are valid")
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_megabytes_until_they_are_gigabytes() {
        assert_eq!(size(1_280_000), "1.3 MB");
        assert_eq!(size(71_100_000_000), "71.1 GB");
    }

    #[test]
    fn a_wait_is_never_too_short() {
        assert_eq!(wait(Duration::from_millis(200)), "200 ms");
        assert_eq!(wait(Duration::from_secs(1)), "1 s");
        assert_eq!(wait(Duration::from_millis(11_001)), "12 s");
    }

    #[test]
    fn milliseconds_have_the_digits_that_help() {
        assert_eq!(millis(Duration::from_micros(123)), "0.12 ms");
        assert_eq!(millis(Duration::from_micros(2_340)), "2.3 ms");
        assert_eq!(millis(Duration::from_micros(812_400)), "812 ms");
    }
}
