//! ONNX Runtime: loaded once a process, from the library in the model store.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ort::{environment::Environment, session::Session};
use rspp_provider_api::Fault;

/// The process's one environment. ONNX Runtime allows no second, and unloading it is not safe
/// while sessions live, so it stays until the process ends.
static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);

/// Makes sessions; cloning is cheap, and all clones use the process's one ONNX Runtime.
#[derive(Clone, Debug)]
pub struct OnnxRuntime {
    library: Arc<Path>,
    threads: usize,
}

impl OnnxRuntime {
    /// Sessions that use the shared library at `library` and run on `threads` threads each, the
    /// caller's included. Nothing is loaded yet.
    pub fn new(library: impl Into<PathBuf>, threads: usize) -> Self {
        Self {
            library: library.into().into(),
            threads: threads.max(1),
        }
    }

    /// Loads a model; blocks for 0.1 to 2 s, so it belongs on the inference pool.
    pub fn session(&self, model: &Path) -> Result<Session, Fault> {
        let environment = self.environment()?;
        self.load(&environment, model)
            .map_err(|error| fault(&format!("loading {}", model.display()), error))
    }

    fn load(&self, environment: &Environment, model: &Path) -> ort::Result<Session> {
        Session::builder(environment)?
            .with_intra_threads(self.threads)?
            .with_inter_threads(1)?
            // A spinning thread takes a core from the calls that share this machine.
            .with_intra_op_spinning(false)?
            .commit_from_file(model)
    }

    fn environment(&self) -> Result<Environment, Fault> {
        let mut environment = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(environment) = &*environment {
            return Ok(environment.clone());
        }
        let doing = format!("loading ONNX Runtime from {}", self.library.display());
        if !self.library.is_file() {
            return Err(fault(&doing, "no such file; run `rspp models pull`"));
        }
        let loaded = ort::init_from(&self.library)
            .map_err(|error| fault(&doing, error))?
            .with_telemetry(false)
            .build()
            .map_err(|error| fault(&doing, error))?;
        *environment = Some(loaded.clone());
        Ok(loaded)
    }
}

/// What went wrong in a model, for people. `ort`'s own errors cannot cross threads.
pub(crate) fn fault(doing: &str, error: impl Display) -> Fault {
    Fault::model(format!("{doing}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_says_how_to_get_it() {
        let runtime = OnnxRuntime::new("/nonexistent/libonnxruntime.so", 1);
        let fault = runtime.session(Path::new("model.onnx")).unwrap_err();
        assert!(fault.message.contains("rspp models pull"), "{fault}");
        assert!(!fault.retryable);
    }
}
