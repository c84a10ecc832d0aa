//! YAML that people write, and what is wrong with it in words for them.

use serde::de::DeserializeOwned;
use serde_saphyr::Error;

/// Reads a document. What is wrong is told with its line.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| wrong(&error))
}

fn wrong(error: &Error) -> String {
    if let Error::DuplicateMappingKey { key, location } = error.without_snippet() {
        let (line, key) = (location.line(), key.as_deref().unwrap_or("a key"));
        return format!("line {line}: `{key}` stands twice; keep one of the two");
    }
    let text = error.to_string();
    text.trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// A key that stands twice is told by its name and its line, without the library's own advice.
    #[test]
    fn a_key_that_stands_twice_is_named() {
        let wrong = read::<Value>("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n").unwrap_err();
        assert_eq!(wrong, "line 5: `c` stands twice; keep one of the two");
        let other = read::<Value>("a: [1\n").unwrap_err();
        assert!(!other.starts_with("error:"), "{other}");
        assert_eq!(read::<Value>("a: 1\n").unwrap()["a"], 1);
    }
}
