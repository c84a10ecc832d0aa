use std::{io::Cursor, str::FromStr};

use rspp_proto::{EventType, Lane, Monotonic, NodeId, Speaker, abi::Signal, spec::RecordingLevel};
use rspp_timeline::*;

use crate::{
    conversation::{STARTED_MS, Script, turn},
    file::recorded,
};

fn shown(bytes: Vec<u8>, filter: &Filter) -> String {
    let mut out = Vec::new();
    show::text(
        &mut Timeline::read(Cursor::new(bytes)).unwrap(),
        filter,
        &mut out,
    )
    .unwrap();
    String::from_utf8(out).unwrap()
}

/// F-074.
#[tokio::test]
async fn a_timeline_is_a_line_an_entry() {
    insta::assert_snapshot!(shown(
        recorded(RecordingLevel::L1).await,
        &Filter::default()
    ));
}

#[track_caller]
fn check(bytes: &[u8], filter: &Filter, lines: usize) {
    let shown = shown(bytes.to_vec(), filter);
    assert_eq!(shown.lines().count(), lines, "{filter:?}\n{shown}");
}

/// F-074.
#[tokio::test]
async fn filters_choose_entries() {
    let bytes = recorded(RecordingLevel::L2).await;
    let node = NodeId::from_str("stt").unwrap();
    let ms = |ms| Some(Monotonic::from_millis(STARTED_MS + ms));
    check(
        &bytes,
        &Filter {
            nodes: vec![node],
            ..Filter::default()
        },
        2,
    );
    check(
        &bytes,
        &Filter {
            event_types: vec![EventType::Audio],
            ..Filter::default()
        },
        2,
    );
    check(
        &bytes,
        &Filter {
            signals: vec![Signal::TurnOpen, Signal::Cancel],
            ..Filter::default()
        },
        3,
    );
    check(
        &bytes,
        &Filter {
            kinds: vec![EntryKind::Turn],
            ..Filter::default()
        },
        2,
    );
    check(
        &bytes,
        &Filter {
            lanes: vec![Lane::Telemetry],
            ..Filter::default()
        },
        1,
    );
    check(
        &bytes,
        &Filter {
            since: ms(2_300),
            until: ms(2_302),
            ..Filter::default()
        },
        1,
    );
    let both = Filter {
        turns: vec![turn(1)],
        lanes: vec![Lane::Data],
        ..Filter::default()
    };
    check(&bytes, &both, 2);
}

#[tokio::test]
async fn json_lines_hold_the_recorded_fields() {
    let bytes = recorded(RecordingLevel::L0).await;
    let mut out = Vec::new();
    let mut timeline = Timeline::read(Cursor::new(bytes)).unwrap();
    show::json_lines(&mut timeline, &Filter::default(), &mut out).unwrap();
    let lines: Vec<serde_json::Value> = String::from_utf8(out)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["kind"], "header");
    assert_eq!(lines[0]["entry"]["kinds"]["13"], "turn");
    assert_eq!(lines[1]["entry"]["signal"], "connected");
    assert_eq!(lines[1]["at_us"], STARTED_MS * 1_000);
    assert_eq!(lines.last().unwrap()["kind"], "footer");
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line["index"], index);
    }
}

#[test]
fn recorded_text_cannot_move_the_cursor() {
    let mut script = Script::new();
    script.text(0, None, Speaker::User, "\u{1b}[2J\nforged line", true);
    let line = show::Line {
        entry: &script.entries[0],
        began: Monotonic::ZERO,
    }
    .to_string();
    assert!(
        line.ends_with(r"user final: \u{1b}[2J\nforged line"),
        "{line}"
    );
}
