//! Models that load when they are first needed.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use rspp_provider_api::Fault;

/// A model that loads once, on first use. A failed load is tried again by the next use, so that
/// models pulled while the process runs are found.
pub(crate) struct Lazy<T> {
    loaded: Mutex<Option<Arc<T>>>,
    load: Box<dyn Fn() -> Result<T, Fault> + Send + Sync>,
}

impl<T> Lazy<T> {
    pub(crate) fn new(load: impl Fn() -> Result<T, Fault> + Send + Sync + 'static) -> Self {
        Self {
            loaded: Mutex::new(None),
            load: Box::new(load),
        }
    }

    /// The model; blocks while it loads, so call it on the inference pool.
    pub(crate) fn get(&self) -> Result<Arc<T>, Fault> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = &*loaded {
            return Ok(Arc::clone(model));
        }
        let model = Arc::new((self.load)()?);
        *loaded = Some(Arc::clone(&model));
        Ok(model)
    }
}

impl<T> fmt::Debug for Lazy<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lazy").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_model_loads_once_and_a_failed_load_is_tried_again() {
        let loads = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&loads);
        let model = Lazy::new(move || match counter.fetch_add(1, Ordering::SeqCst) {
            0 => Err(Fault::model("not there yet")),
            nth => Ok(nth),
        });
        assert!(model.get().is_err());
        assert_eq!(*model.get().unwrap(), 1);
        assert_eq!(*model.get().unwrap(), 1);
        assert_eq!(loads.load(Ordering::SeqCst), 2);
    }
}
