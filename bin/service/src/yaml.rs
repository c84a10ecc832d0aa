//! YAML that people write, and what is wrong with it in words for them.

use serde::de::DeserializeOwned;
use serde_saphyr::Error;

/// Reads a document. What is wrong is told with its line.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| wrong(&error))
}

fn wrong(error: &Error) -> String {
    let error = error.without_snippet();
    let what = match error {
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().unwrap_or("a key");
            format!("`{key}` stands twice; keep one of the two")
        }
        Error::MultipleDocuments { .. } => {
            "a second document begins here; a file holds one".to_owned()
        }
        Error::InvalidScalar { ty, .. } => match number(ty) {
            Some(number) => format!("needs {number}"),
            None => format!("is no {ty}"),
        },
        Error::Unexpected { expected, .. } => match *expected {
            "mapping start" => "needs a map of keys to values".to_owned(),
            "sequence start" => "needs a list".to_owned(),
            other => format!("expected {other}"),
        },
        // The library's own words, which end with the place.
        _ => {
            let text = error.to_string();
            let text = text.trim_start_matches("error: ").lines().next();
            let text = text.unwrap_or_default();
            let end = text.rfind(" at line ").unwrap_or(text.len());
            text[..end].to_owned()
        }
    };
    match error.location() {
        Some(at) => format!("line {} column {}: {what}", at.line(), at.column()),
        None => what,
    }
}

/// The numbers that a type has, in words.
fn number(ty: &str) -> Option<String> {
    let most = match ty {
        "u8" => u64::from(u8::MAX),
        "u16" => u64::from(u16::MAX),
        "u32" => u64::from(u32::MAX),
        "u64" | "usize" => u64::MAX,
        "f32" | "f64" | "floating point" => return Some("a number".to_owned()),
        signed if signed.starts_with('i') => return Some("a whole number".to_owned()),
        _ => return None,
    };
    Some(format!("a whole number from 0 to {most}"))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// A key that stands twice is told by its name and its line, without the library's own advice.
    #[test]
    fn a_key_that_stands_twice_is_named() {
        let wrong = read::<Value>("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n").unwrap_err();
        assert_eq!(
            wrong,
            "line 5 column 3: `c` stands twice; keep one of the two"
        );
        let other = read::<Value>("a: [1\n").unwrap_err();
        assert!(!other.starts_with("error:"), "{other}");
        assert_eq!(read::<Value>("a: 1\n").unwrap()["a"], 1);
    }

    /// What a number or a part may be is said in words, on one line, and where.
    #[test]
    fn what_does_not_fit_is_told_on_one_line_with_its_place() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "they are only read")]
        struct Wanted {
            count: u32,
            gain: f32,
            list: Vec<u64>,
        }
        for (text, told) in [
            (
                "count: -1",
                "line 1 column 8: needs a whole number from 0 to 4294967295",
            ),
            (
                "count: soon",
                "line 1 column 8: needs a whole number from 0 to 4294967295",
            ),
            ("gain: loud", "line 1 column 7: needs a number"),
            ("count: 1\nlist: 3", "line 2 column 7: needs a list"),
            ("[1]", "line 1 column 1: needs a map of keys to values"),
            (
                "count: 1\ngain: 1\nlist: []\n---\ncount: 1",
                "line 5 column 1: a second document begins here; a file holds one",
            ),
            (
                "colour: 1",
                "line 1 column 1: unknown field `colour`, expected one of count, gain, list",
            ),
        ] {
            assert_eq!(read::<Wanted>(text).unwrap_err(), told, "{text}");
        }
    }
}
