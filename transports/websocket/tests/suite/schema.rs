//! What is published of the protocol is what is spoken.

use std::{fs, path::Path};

use rspp_websocket::protocol::{ClientMessage, Hello, OfTurn, Resume, ServerMessage, schema};
use serde_json::json;

fn read(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(folder.join(file)).unwrap_or_default()
}

/// F-032. After an intended change, run with `UPDATE_SCHEMAS=1` and commit the file.
#[test]
fn the_committed_schema_is_the_generated_one() {
    let generated = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/protocol.json");
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        fs::write(&file, &generated).unwrap();
    }
    assert!(
        read("schema/protocol.json") == generated,
        "{} differs from the types",
        file.display()
    );
    assert!(jsonschema::meta::is_valid(&schema()));
}

#[test]
fn messages_are_as_the_schema_says() {
    let schema = jsonschema::validator_for(&schema()).unwrap();
    let resume = Resume {
        session: rspp_proto::SessionId::new("s").unwrap(),
        key: "k".to_owned(),
        connection: 1,
        received: 214,
    };
    let hello = Hello {
        resume: Some(resume),
        ..Hello::default()
    };
    let turn = rspp_proto::TurnNumber::FIRST;
    for good in [
        serde_json::to_value(ClientMessage::Hello(hello)).unwrap(),
        serde_json::to_value(ServerMessage::Clear(OfTurn { turn })).unwrap(),
        json!({ "type": "hello" }),
        json!({ "type": "cancel" }),
    ] {
        let error = schema.validate(&good).err().map(|it| it.to_string());
        assert_eq!(error, None, "{good}");
    }
    for bad in [
        json!({}),
        json!({ "type": "sing" }),
        json!({ "type": "text", "text": 1 }),
        json!({ "type": "cancel", "why": "x" }),
    ] {
        assert!(!schema.is_valid(&bad), "{bad}");
    }
}

/// The page about the protocol leaves no message out.
#[test]
fn the_page_knows_every_message() {
    let page = read("PROTOCOL.md");
    let schema = schema();
    let defs = schema["$defs"].as_object().unwrap();
    let mut types = 0;
    for side in ["ClientMessage", "ServerMessage"] {
        for message in defs[side]["oneOf"].as_array().unwrap() {
            let name = message["properties"]["type"]["const"].as_str().unwrap();
            assert!(page.contains(&format!("`{name}`")), "{name}");
            types += 1;
        }
    }
    assert!(types > 20, "{types}");
}
