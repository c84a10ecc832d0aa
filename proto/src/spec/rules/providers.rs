//! The rules of what a pipeline or policy says about providers.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{
    Bindings, ChoicePolicy, CircuitPolicy, CostCaps, FailurePolicy, Modality, ProvidersSpec,
    parse::Check,
};

/// Checks everything below `path`.
pub(super) fn providers(path: &str, spec: &ProvidersSpec, check: &mut Check<'_, '_>) {
    if let Some(choice) = &spec.choice {
        self::choice(&format!("{path}.choice"), choice, check);
    }
    if let Some(calls) = &spec.calls {
        for (modality, after) in &calls.hedge_after_ms {
            let path = format!("{path}.calls.hedge_after_ms.{}", modality.as_str());
            match modality {
                Modality::Stt | Modality::Llm | Modality::Tts if *after == 0 => {
                    let hint = "leave it out to hedge nothing".to_owned();
                    check.error("out_of_range", &path, "must be at least 1", hint);
                }
                // The schema has refused the others by name.
                Modality::Stt
                | Modality::Llm
                | Modality::Tts
                | Modality::Vad
                | Modality::EndOfTurn
                | Modality::External => {}
            }
        }
    }
    if let Some(circuit) = &spec.circuit {
        self::circuit(&format!("{path}.circuit"), **circuit, check);
    }
    if let Some(caps) = &spec.caps {
        self::caps(&format!("{path}.caps"), **caps, check);
    }
    if let Some(failure) = &spec.failure {
        self::failure(&format!("{path}.failure"), failure, check);
    }
}

fn choice(path: &str, choice: &ChoicePolicy, check: &mut Check<'_, '_>) {
    for (rule, named) in [
        ("tenant", &choice.tenant),
        ("language", &choice.language),
        ("region", &choice.region),
        ("cost_tier", &choice.cost_tier),
    ] {
        for (name, bindings) in named {
            let path = format!("{path}.{rule}.{name}");
            if name.trim().is_empty() {
                check.error("blank", &path, "must not be blank", None);
            }
            self::bindings(&path, bindings, check);
        }
    }
}

/// Providers by modality: each list names at least one, and none twice.
pub(super) fn bindings(path: &str, bindings: &Bindings, check: &mut Check<'_, '_>) {
    if bindings.is_empty() {
        check.error("too_few", path, "needs at least 1 entry", None);
    }
    for (modality, providers) in bindings {
        let path = format!("{path}.{}", modality.as_str());
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

fn circuit(path: &str, circuit: CircuitPolicy, check: &mut Check<'_, '_>) {
    if circuit.least_calls > circuit.window {
        check.error(
            "never_reached",
            &format!("{path}.least_calls"),
            format!(
                "{} is above window, {}, so the circuit never opens",
                circuit.least_calls, circuit.window
            ),
            format!("e.g. `least_calls: {}`", circuit.window),
        );
    }
}

fn caps(path: &str, caps: CostCaps, check: &mut Check<'_, '_>) {
    let (turn, session) = (caps.turn, caps.session);
    let pairs: BTreeMap<&str, _> = BTreeMap::from([
        ("tokens", (turn.tokens, session.tokens)),
        ("audio_seconds", (turn.audio_seconds, session.audio_seconds)),
        (
            "tts_characters",
            (turn.tts_characters, session.tts_characters),
        ),
    ]);
    for (name, limits) in pairs {
        if let (Some(turn), Some(session)) = limits
            && turn > session
        {
            let message = format!("{turn} is above the session's, {session}");
            check.error(
                "never_reached",
                &format!("{path}.turn.{name}"),
                message,
                None,
            );
        }
    }
}

fn failure(path: &str, failure: &FailurePolicy, check: &mut Check<'_, '_>) {
    for (name, text) in [("reply", &failure.reply), ("recording", &failure.recording)] {
        if text.as_ref().is_some_and(|text| text.trim().is_empty()) {
            let hint = "leave it out to say nothing".to_owned();
            check.error(
                "blank",
                &format!("{path}.{name}"),
                "must not be blank",
                hint,
            );
        }
    }
    if failure.recording.is_some() && failure.reply.is_none() {
        let hint = "write what the recording says, so that the conversation knows".to_owned();
        check.error(
            "missing_field",
            &format!("{path}.recording"),
            "a recording needs its words",
            hint,
        );
    }
}
