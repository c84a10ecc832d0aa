//! Traces of calls that go on, to a collector.

use std::time::Duration;

use rspp_otlp::{Config as OtlpConfig, Otlp, SpanCounts};
use rspp_proto::{
    MetricSample,
    metric::{Metric, MetricLabel},
};
use rspp_provider_http::SecretStore;

use crate::{Problem, config::Config};

/// How long what waits may take to be sent once all sessions are over.
pub(crate) const FLUSH: Duration = Duration::from_secs(3);

/// Begins to send traces, if somebody is to have them.
pub(crate) fn start(config: &Config) -> Result<Option<Otlp>, Problem> {
    let settings = &config.telemetry.otlp;
    let Some(url) = &settings.url else {
        return Ok(None);
    };
    let otlp = OtlpConfig {
        protocol: settings.protocol,
        token: settings.token.clone(),
        queue: settings.queue,
        resource: vec![
            ("service.name", "rspp-runtime".to_owned()),
            ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("service.instance.id", config.name.clone()),
            ("rspp.region", config.region.clone()),
        ],
        ..OtlpConfig::new(url)
    };
    let started = Otlp::start(&otlp, SecretStore::environment())
        .map_err(|error| Problem::input(format!("telemetry.otlp.{error}")))?;
    Ok(Some(started))
}

/// What became of spans, for a metrics backend.
pub(crate) fn samples(counts: SpanCounts) -> [MetricSample; 3] {
    let SpanCounts {
        exported,
        dropped,
        failed,
    } = counts;
    [
        ("exported", exported),
        ("dropped", dropped),
        ("failed", failed),
    ]
    .map(|(outcome, count)| {
        MetricSample::of(
            Metric::TelemetrySpans,
            count as f64,
            [(MetricLabel::Outcome, outcome)],
        )
    })
}
