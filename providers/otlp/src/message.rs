//! Spans as OTLP writes them.

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as Written, Status, span, status::StatusCode},
};
use rspp_proto::{Monotonic, WallClock};
use rspp_timeline::trace::{Span, SpanBatch};

/// A request with all of these.
pub(crate) fn request(
    resource: &[(&'static str, String)],
    batches: &[SpanBatch],
) -> ExportTraceServiceRequest {
    let spans = batches.iter().flat_map(|batch| {
        let spans = batch.spans.iter();
        spans.map(|span| written(span, batch.tied))
    });
    let scope = InstrumentationScope {
        name: "rspp".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: resource
                    .iter()
                    .map(|(key, value)| pair(key, value))
                    .collect(),
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope),
                spans: spans.collect(),
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
    }
}

fn written(span: &Span, (at, wall): (Monotonic, WallClock)) -> Written {
    let nanos = |moment: Monotonic| {
        let origin = u128::from(wall.0) * 1_000_000;
        let (ahead, behind) = (moment.since(at).as_nanos(), at.since(moment).as_nanos());
        u64::try_from((origin + ahead).saturating_sub(behind)).unwrap_or(u64::MAX)
    };
    let links = span.links.iter().map(|link| span::Link {
        trace_id: link.trace.bytes().to_vec(),
        span_id: link.span.bytes().to_vec(),
        ..span::Link::default()
    });
    let kind = if span.is_call {
        span::SpanKind::Client
    } else {
        span::SpanKind::Internal
    };
    let status = match &span.fault {
        Some(fault) => Status {
            code: StatusCode::Error.into(),
            message: fault.clone(),
        },
        None => Status {
            code: StatusCode::Ok.into(),
            message: String::new(),
        },
    };
    Written {
        trace_id: span.trace.bytes().to_vec(),
        span_id: span.id.bytes().to_vec(),
        parent_span_id: span.parent.map_or_else(Vec::new, |id| id.bytes().to_vec()),
        name: span.name.clone(),
        kind: kind.into(),
        start_time_unix_nano: nanos(span.began),
        end_time_unix_nano: nanos(span.ended),
        attributes: span
            .attributes
            .iter()
            .map(|(key, value)| pair(key, value))
            .collect(),
        links: links.collect(),
        status: Some(status),
        ..Written::default()
    }
}

fn pair(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(value.to_owned())),
        }),
        ..KeyValue::default()
    }
}
