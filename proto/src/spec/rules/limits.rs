//! The rules of limits, and of what a pipeline does without.

use std::collections::BTreeSet;

use crate::spec::{DegradeSpec, LimitsSpec, OverLimit, QuotasSpec, Threshold, parse::Check};

/// The rules of what a node takes on.
pub(in crate::spec) fn limits(spec: &LimitsSpec, check: &mut Check<'_, '_>) {
    quotas("node", &spec.node, check);
    quotas("tenant", &spec.tenant, check);
    for (tenant, own) in &spec.tenants {
        quotas(&format!("tenants.{tenant}"), own, check);
    }
    let overload = &spec.overload;
    for (name, threshold) in [
        ("cpu_percent", overload.cpu_percent),
        ("scheduler_late_ms", overload.scheduler_late_ms),
        ("output_late_ms", overload.output_late_ms),
        ("queue_depth", overload.queue_depth),
        ("provider_calls", overload.provider_calls),
    ] {
        if let Some(threshold) = threshold {
            rising(&format!("overload.{name}"), threshold, check);
        }
    }
    if overload.newcomers == OverLimit::Throttle && spec.max_wait_ms < overload.recover_after_ms {
        check.error(
            "out_of_range",
            "overload.newcomers",
            "nobody can be kept waiting for as long as a recovery takes",
            format!("set max_wait_ms to {} or more", overload.recover_after_ms),
        );
    }
}

/// The rules of a degrade posture.
pub(super) fn degrade(path: &str, spec: &DegradeSpec, check: &mut Check<'_, '_>) {
    if *spec == DegradeSpec::default() {
        let hint = "say what is done without, e.g. `max_context_messages: 8`".to_owned();
        check.error("too_few", path, "does without nothing", hint);
    }
    for (modality, providers) in &spec.provider_bindings {
        let path = format!("{path}.provider_bindings.{}", modality.as_str());
        if providers.is_empty() {
            check.error("too_few", &path, "needs at least 1 provider", None);
        }
        let mut seen = BTreeSet::new();
        for (index, provider) in providers.iter().enumerate() {
            if !seen.insert(provider) {
                let message = format!("provider `{provider}` is listed twice");
                check.error("duplicate", &format!("{path}[{index}]"), message, None);
            }
        }
    }
}

fn quotas(path: &str, quotas: &QuotasSpec, check: &mut Check<'_, '_>) {
    let waiting_for_ever = [
        ("sessions_per_minute", quotas.sessions_per_minute),
        ("turns_per_minute", quotas.turns_per_minute),
        ("tokens_per_minute", quotas.tokens_per_minute),
    ];
    for (name, quota) in waiting_for_ever {
        let Some(quota) = quota else { continue };
        let waits = match quota.over {
            OverLimit::Defer | OverLimit::Throttle => true,
            OverLimit::Reject | OverLimit::Degrade => false,
        };
        if quota.limit == 0 && waits {
            let hint = "say `over: reject`, or a limit above 0".to_owned();
            let path = format!("{path}.{name}.limit");
            check.error("out_of_range", &path, "there is nothing to wait for", hint);
        }
    }
}

fn rising(path: &str, threshold: Threshold, check: &mut Check<'_, '_>) {
    let Threshold { low, high, severe } = threshold;
    if low >= high || high > severe {
        check.error(
            "out_of_order",
            path,
            format!("low {low}, high {high} and severe {severe} do not rise"),
            "low is below high, which is at most severe".to_owned(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Mode, PipelineSpec, Quota};

    #[track_caller]
    fn wrong(text: &str) -> String {
        let errors = LimitsSpec::parse("limits.yaml", text, Mode::Strict);
        errors.expect_err("it is wrong").to_string()
    }

    /// F-050, F-172: limits are read as they are written, and what is left out is as it was.
    #[test]
    fn limits_are_read() {
        let text = "
node: { sessions: { limit: 500, over: throttle } }
tenant: { turns_per_minute: { limit: 60 } }
tenants:
  acme: { tokens_per_minute: { limit: 9000, over: degrade }, weight: 3, slots: 8 }
overload: { cpu_percent: { low: 60, high: 80, severe: 95 } }
batching: { llm: { window_ms: 20, max_calls: 8 } }
";
        let limits = LimitsSpec::parse("limits.yaml", text, Mode::Strict)
            .unwrap()
            .spec;
        let throttled = Quota::at(500).then(OverLimit::Throttle);
        assert_eq!(limits.node.sessions, Some(throttled));
        assert_eq!(limits.tenant.turns_per_minute, Some(Quota::at(60)));
        assert_eq!(limits.max_wait_ms, LimitsSpec::default().max_wait_ms);
        assert!(limits.overload.output_late_ms.is_some(), "P22 by default");
        assert_eq!(limits.tenants.len(), 1);
        let empty = LimitsSpec::parse("limits.yaml", "{}", Mode::Strict).unwrap();
        assert_eq!(empty.spec, LimitsSpec::default());
    }

    /// What cannot work is refused, where it stands.
    #[test]
    fn limits_that_cannot_work_are_refused() {
        let flat = wrong("overload: { cpu_percent: { low: 80, high: 80, severe: 95 } }");
        assert!(flat.contains("overload.cpu_percent"), "{flat}");
        let never = wrong("tenant: { turns_per_minute: { limit: 0, over: defer } }");
        assert!(never.contains("tenant.turns_per_minute.limit"), "{never}");
        let short = wrong("{ max_wait_ms: 5, overload: { newcomers: throttle } }");
        assert!(short.contains("max_wait_ms"), "{short}");
        let unknown = wrong("node: { session: { limit: 1 } }");
        assert!(unknown.contains("sessions"), "{unknown}");
        let alone = wrong("batching: { llm: { window_ms: 20, max_calls: 1 } }");
        assert!(alone.contains("batching.llm.max_calls"), "{alone}");
    }

    /// F-048: a posture does without something, and names each provider once.
    #[test]
    fn a_posture_does_without_something() {
        #[track_caller]
        fn wrong(degrade: &str) -> String {
            let text = format!("{}\ndegrade: {degrade}\n", PipelineSpec::simple_template());
            let errors = PipelineSpec::parse("p.yaml", &text, Mode::Strict);
            errors.expect_err("it is wrong").to_string()
        }
        assert!(wrong("{}").contains("does without nothing"));
        let twice = wrong("{ provider_bindings: { llm: [a, a] } }");
        assert!(twice.contains("listed twice"), "{twice}");
        let ears = wrong("{ provider_bindings: { stt: [a] } }");
        assert!(ears.contains("provider_bindings"), "{ears}");
    }
}
