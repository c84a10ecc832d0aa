//! Latencies in the text format that metrics backends scrape (F-068).

use std::fmt::Write as _;

use rspp_proto::metric::escaped;

use crate::LatencySeries;

/// What the format is called where it is asked for.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All series, a summary each: three quantiles, the sum and the count.
///
/// # Panics
/// Never: a string takes all that is written to it.
pub fn text(series: &[LatencySeries]) -> String {
    let mut text = String::new();
    let mut written = None;
    for LatencySeries {
        metric,
        labels,
        latency,
        sum_ms,
    } in series
    {
        let name = metric.as_str();
        if written.replace(*metric) != Some(*metric) {
            line(&mut text, format_args!("# TYPE {name} summary"));
        }
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{}=\"{}\"", label.as_str(), escaped(value)))
            .collect();
        let labels = labels.join(",");
        for (quantile, value) in [
            ("0.5", latency.p50_ms),
            ("0.95", latency.p95_ms),
            ("0.99", latency.p99_ms),
        ] {
            line(
                &mut text,
                format_args!("{name}{{{labels},quantile=\"{quantile}\"}} {value}"),
            );
        }
        line(&mut text, format_args!("{name}_sum{{{labels}}} {sum_ms}"));
        let samples = latency.samples;
        line(
            &mut text,
            format_args!("{name}_count{{{labels}}} {samples}"),
        );
    }
    if text.is_empty() {
        text.push_str(
            "# no latencies: set `observe: { metrics_every_ms: 1000 }` in the pipeline\n",
        );
    }
    text
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes all that is written to it");
}

#[cfg(test)]
mod tests {
    use crate::Latency;
    use rspp_proto::metric::{Metric, MetricLabel};

    use super::*;

    /// F-068: one type line a metric, a line a quantile, and no name breaks out of its quotes.
    #[test]
    fn a_series_is_a_summary() {
        let series = |node: &str| LatencySeries {
            metric: Metric::NodeLatency,
            labels: vec![
                (MetricLabel::NodeId, node.to_owned()),
                (MetricLabel::ProviderId, "a\"b".to_owned()),
            ],
            latency: Latency {
                samples: 4,
                p50_ms: 1.5,
                p95_ms: 2.0,
                p99_ms: 3.0,
                max_ms: 3.0,
            },
            sum_ms: 7.0,
        };
        let told = text(&[series("llm"), series("tts")]);
        let expected = "# TYPE node_latency_ms summary\n\
            node_latency_ms{node_id=\"llm\",provider_id=\"a\\\"b\",quantile=\"0.5\"} 1.5\n\
            node_latency_ms{node_id=\"llm\",provider_id=\"a\\\"b\",quantile=\"0.95\"} 2\n\
            node_latency_ms{node_id=\"llm\",provider_id=\"a\\\"b\",quantile=\"0.99\"} 3\n\
            node_latency_ms_sum{node_id=\"llm\",provider_id=\"a\\\"b\"} 7\n\
            node_latency_ms_count{node_id=\"llm\",provider_id=\"a\\\"b\"} 4\n";
        assert!(told.starts_with(expected), "{told}");
        assert_eq!(told.matches("# TYPE").count(), 1);
        assert!(text(&[]).contains("metrics_every_ms"));
    }
}
