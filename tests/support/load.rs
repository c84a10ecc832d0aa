//! Processors that are as busy as a test says.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rspp_host::{Config, CpuProbe};
use rspp_proto::spec::{OverloadSpec, Threshold};

/// The processors; idle until somebody says otherwise.
#[derive(Debug, Default)]
pub struct Cpu(AtomicU64);

/// When they count as busy.
pub const MARKS: Threshold = Threshold {
    low: 50,
    high: 80,
    severe: 95,
};

impl Cpu {
    /// So busy from now on.
    pub fn set(&self, percent: u64) {
        self.0.store(percent, Ordering::Relaxed);
    }

    /// Has a runtime watch them, by [`MARKS`].
    pub fn watched(self: &Arc<Self>) -> impl FnOnce(&mut Config) + use<> + 'static {
        let cpu = Arc::clone(self);
        move |config| {
            config.cpu = cpu;
            config.limits.overload = OverloadSpec {
                cpu_percent: Some(MARKS),
                recover_after_ms: 1_000,
                ..OverloadSpec::default()
            };
        }
    }
}

impl CpuProbe for Cpu {
    fn cpu_percent(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed))
    }
}
