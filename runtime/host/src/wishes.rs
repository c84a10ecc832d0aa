//! A pipeline as a client wishes it for its own session: a pipeline of its own from the first turn on, checked,
//! resolved and frozen like any other.

use std::time::Duration;

use rspp_proto::spec::{NodeKind, PipelineSpec, ToolDeclaration};
use rspp_transport_api::{Interruption, TurnEnd, Wishes};
use serde_json::{Value, json};

/// No probability is as high: the end-of-turn model finds no end.
const NEVER_COMPLETE: f64 = 2.0;
/// A silence that no call is long enough for.
const FOR_GOOD: Duration = Duration::from_hours(24);

/// The pipeline with the wishes in it; why not, if it has a tool of its own where a client wishes for another.
pub(crate) fn wished(mut pipeline: PipelineSpec, wishes: &Wishes) -> Result<PipelineSpec, String> {
    let Wishes {
        instructions,
        voice,
        language,
        max_tokens,
        temperature,
        text_only,
        tools,
        speech_from,
        turn_end,
        interruption,
    } = wishes;
    if let Some(instructions) = instructions {
        pipeline.instructions = Some(instructions.clone());
    }
    if let Some(voice) = voice {
        set(&mut pipeline, &NodeKind::Tts, "voice", &json!(voice));
    }
    if let Some(language) = language {
        set(&mut pipeline, &NodeKind::Stt, "language", &json!(language));
    }
    if let Some(most) = max_tokens {
        cap_tokens(&mut pipeline, *most);
    }
    if let Some(temperature) = temperature {
        let temperature = json!(temperature);
        set(&mut pipeline, &NodeKind::Llm, "temperature", &temperature);
    }
    if *text_only {
        set(&mut pipeline, &NodeKind::Tts, "speaks", &json!(false));
    }
    add_tools(&mut pipeline, tools)?;
    if let Some(probability) = speech_from {
        let from = json!(probability);
        set(&mut pipeline, &NodeKind::Vad, "speech_from", &from);
        // Speech that has begun goes on below that, by as much as it does otherwise.
        let goes_on = json!((probability - 0.15).max(0.01));
        set(&mut pipeline, &NodeKind::Vad, "speech_while", &goes_on);
    }
    end_turns(&mut pipeline, *turn_end);
    match interruption {
        None => {}
        Some(Interruption::Never) => pipeline.turns.barge_in = false,
        Some(Interruption::AtOnce) => pipeline.turns.barge_in_min_speech_ms = 0,
    }
    Ok(pipeline)
}

fn add_tools(pipeline: &mut PipelineSpec, tools: &[ToolDeclaration]) -> Result<(), String> {
    for node in &mut pipeline.nodes {
        if node.kind != NodeKind::Llm {
            continue;
        }
        for tool in tools {
            if node.tools.iter().any(|own| own.name == tool.name) {
                let name = &tool.name;
                return Err(format!("tool `{name}`: the pipeline has one of that name"));
            }
            node.tools.push(tool.clone());
        }
    }
    Ok(())
}

fn end_turns(pipeline: &mut PipelineSpec, turn_end: TurnEnd) {
    let detector = &NodeKind::TurnDetector;
    match turn_end {
        TurnEnd::Pipeline => {}
        TurnEnd::Silence(ms) => {
            pipeline.turns.vad_hangover_ms = ms;
            set(pipeline, detector, "complete_from", &json!(0.0));
        }
        TurnEnd::Judged { longest_ms } => pipeline.turns.max_turn_silence_ms = longest_ms,
        TurnEnd::Client => {
            pipeline.turns.max_turn_silence_ms = FOR_GOOD.as_millis() as u64;
            set(pipeline, detector, "complete_from", &json!(NEVER_COMPLETE));
        }
    }
}

fn cap_tokens(pipeline: &mut PipelineSpec, most: u32) {
    for node in &mut pipeline.nodes {
        if node.kind == NodeKind::Llm {
            let own = node.config.get("max_tokens").and_then(Value::as_u64);
            let most = own.map_or(u64::from(most), |own| own.min(u64::from(most)));
            node.config.insert("max_tokens".to_owned(), json!(most));
        }
    }
}

fn set(pipeline: &mut PipelineSpec, kind: &NodeKind, name: &str, value: &Value) {
    for node in &mut pipeline.nodes {
        if node.kind == *kind {
            node.config.insert(name.to_owned(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config<'a>(pipeline: &'a PipelineSpec, node: &str, name: &str) -> Option<&'a Value> {
        let node = pipeline.nodes.iter().find(|it| it.id.as_str() == node);
        node.expect("it has one").config.get(name)
    }

    #[test]
    fn what_is_not_wished_for_stays_as_it_was() {
        let simple = PipelineSpec::simple();
        let same = wished(simple.clone(), &Wishes::default());
        assert_eq!(same, Ok(simple));
    }

    /// F-080: each wish is found where the pipeline says the same thing.
    #[test]
    fn each_wish_is_a_setting_of_the_pipeline() {
        let wishes = Wishes {
            instructions: Some("You are a pirate.".to_owned()),
            voice: Some("anna".to_owned()),
            language: Some("de".to_owned()),
            max_tokens: Some(40),
            temperature: Some(0.3),
            text_only: true,
            tools: vec![ToolDeclaration::new("weather", "Says how it is outside.")],
            speech_from: Some(0.7),
            turn_end: TurnEnd::Silence(700),
            interruption: Some(Interruption::AtOnce),
        };
        let pipeline = wished(PipelineSpec::simple(), &wishes).unwrap();
        let again = wished(pipeline.clone(), &wishes);
        let problem = "tool `weather`: the pipeline has one of that name".to_owned();
        assert_eq!(again, Err(problem));
        assert_eq!(config(&pipeline, "tts", "speaks"), Some(&json!(false)));
        let llm = pipeline.nodes.iter().find(|it| it.id.as_str() == "llm");
        assert_eq!(llm.unwrap().tools, wishes.tools);
        assert_eq!(pipeline.instructions.as_deref(), Some("You are a pirate."));
        assert_eq!(config(&pipeline, "tts", "voice"), Some(&json!("anna")));
        assert_eq!(config(&pipeline, "stt", "language"), Some(&json!("de")));
        assert_eq!(config(&pipeline, "llm", "max_tokens"), Some(&json!(40)));
        assert_eq!(config(&pipeline, "llm", "temperature"), Some(&json!(0.3)));
        assert_eq!(config(&pipeline, "vad", "speech_from"), Some(&json!(0.7)));
        let complete = config(&pipeline, "turn", "complete_from");
        assert_eq!(complete, Some(&json!(0.0)));
        assert_eq!(pipeline.turns.vad_hangover_ms, 700);
        assert_eq!(pipeline.turns.barge_in_min_speech_ms, 0);
        assert!(pipeline.turns.barge_in);
    }

    #[test]
    fn nobody_wishes_for_more_than_the_pipeline_allows() {
        let mut simple = PipelineSpec::simple();
        simple.turns.barge_in = false;
        cap_tokens(&mut simple, 30);
        let wishes = Wishes {
            max_tokens: Some(4_000),
            interruption: Some(Interruption::AtOnce),
            ..Wishes::default()
        };
        let pipeline = wished(simple.clone(), &wishes).unwrap();
        assert_eq!(config(&pipeline, "llm", "max_tokens"), Some(&json!(30)));
        assert!(!pipeline.turns.barge_in);
    }
}
