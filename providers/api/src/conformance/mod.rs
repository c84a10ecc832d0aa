//! What every provider must do, checked: one suite per modality, run by every implementation.
//!
//! Each suite has the four categories of the provider profile (providers.md §8): `contract_shape`,
//! `streaming_lifecycle`, `cancel_path` and `outcome_normalization`. They panic with what was
//! promised and what came instead. A provider is done when the suite it did not write passes:
//!
//! ```ignore
//! rspp_provider_api::conformance_tests! {
//!     #[tokio::test(start_paused = true)]
//!     mod my_model: llm = llm::Subject::new(Arc::new(MyModel::new()));
//! }
//! ```

pub mod end_of_turn;
pub mod llm;
pub mod stt;
mod support;
pub mod tts;
pub mod voice;

use std::{fmt, sync::Arc, time::Duration};

use rspp_proto::OutcomeClass;

/// How patient a suite is; generous for an answer, strict about stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a whole answer.
    pub answer: Duration,
    /// For a stream to end once its call was cancelled.
    pub stop: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            stop: Duration::from_millis(500),
        }
    }
}

/// A provider set up to fail, and the class its fault must have.
pub struct Failing<P: ?Sized> {
    /// What is wrong, for messages.
    pub what: &'static str,
    /// The provider.
    pub provider: Arc<P>,
    /// What its fault must be.
    pub class: OutcomeClass,
}

impl<P: ?Sized> fmt::Debug for Failing<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failing")
            .field("what", &self.what)
            .field("class", &self.class)
            .finish_non_exhaustive()
    }
}

/// Makes a test of each category of a modality's suite: `stt`, `llm`, `tts`, `voice`, `end_of_turn`.
///
/// The subject is made anew for each test, inside an async function, so it may `.await`.
#[macro_export]
macro_rules! conformance_tests {
    ($(#[$attribute:meta])+ mod $name:ident: $modality:ident = $subject:expr;) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            use $crate::conformance::$modality as suite;

            $crate::conformance_tests!(@each [$(#[$attribute])+] $subject =>
                contract_shape streaming_lifecycle cancel_path outcome_normalization);
        }
    };
    (@each $attributes:tt $subject:expr => $($category:ident)+) => {
        $($crate::conformance_tests!(@one $attributes $category $subject);)+
    };
    (@one [$(#[$attribute:meta])+] $category:ident $subject:expr) => {
        $(#[$attribute])+
        async fn $category() {
            suite::$category(&$subject).await;
        }
    };
}
