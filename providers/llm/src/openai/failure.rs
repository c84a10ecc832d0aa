//! What went wrong at the server, in the taxonomy's words and without what was said or secret.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use rspp_provider_api::Fault;
use rspp_provider_http::REDACTED;
use serde_json::Value;

/// Longest text of a server that a fault repeats, in characters.
const MOST_TEXT: usize = 240;
/// Longest wait that a server can ask for.
const MOST_BACKOFF: Duration = Duration::from_hours(1);
/// Shorter texts are words anybody uses, and taking them out would make an error unreadable.
const LEAST_PRIVATE: usize = 8;

/// An HTTP error status with its body.
pub(super) fn from_response(
    status: u16,
    retry_after: Option<Duration>,
    body: &[u8],
    private: &[&str],
) -> Fault {
    let text = match serde_json::from_slice::<Value>(body) {
        Ok(json) => error_text(json.get("error").unwrap_or(&json)),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let text = presentable(&text, private);
    let message = if text.is_empty() {
        format!("the server answered with status {status}")
    } else {
        format!("the server answered with status {status}: {text}")
    };
    Fault::from_http(status, retry_after, message)
}

/// An error object in the middle of a stream.
pub(super) fn in_stream(error: &Value, private: &[&str]) -> Fault {
    let text = presentable(&error_text(error), private);
    let message = format!("the server broke off: {text}");
    let code = error.get("code");
    let status = code.and_then(|code| code.as_u64().or_else(|| code.as_str()?.parse().ok()));
    match status.and_then(|status| u16::try_from(status).ok()) {
        Some(status @ 400..=599) => Fault::from_http(status, None, message),
        Some(_) | None if is_rate_limit(error) => Fault::overload(message, None),
        Some(_) | None => Fault::stream(message),
    }
}

/// `Retry-After` in seconds or as a date (RFC 9110 §10.2.3), no longer than an hour.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if let Ok(seconds) = value.parse() {
        Duration::from_secs(seconds)
    } else {
        let until = httpdate::parse_http_date(value).ok()?;
        until.duration_since(now).unwrap_or_default()
    };
    Some(wait.min(MOST_BACKOFF))
}

/// One line, without what is private, cut to size.
pub(super) fn presentable(text: &str, private: &[&str]) -> String {
    let mut text = text.to_owned();
    for private in private {
        if private.chars().count() >= LEAST_PRIVATE {
            text = text.replace(private, REDACTED);
        }
    }
    let words = text.split_whitespace().map(|word| {
        // Keys that are not ours, e.g. one that the server quotes shortened.
        let is_key = word
            .trim_start_matches(['"', '\'', '(', '`'])
            .starts_with("sk-");
        if is_key { REDACTED } else { word }
    });
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST_TEXT) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line,
    }
}

fn error_text(error: &Value) -> String {
    let part = |key| error.get(key).and_then(Value::as_str);
    let message = part("message").or(error.as_str()).unwrap_or_default();
    match part("type") {
        Some(kind) => format!("{kind}: {message}"),
        None => message.to_owned(),
    }
}

fn is_rate_limit(error: &Value) -> bool {
    let names = ["type", "code"].map(|key| error.get(key).and_then(Value::as_str));
    names
        .into_iter()
        .flatten()
        .any(|name| name.contains("rate_limit") || name.contains("overloaded"))
}

#[cfg(test)]
mod tests {
    use rspp_provider_api::OutcomeClass;
    use serde_json::json;

    use super::*;

    /// providers.md §2
    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 22 Nov 2026 12:00:00 GMT").unwrap();
        let check = |value: &str, expected: Option<u64>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(&headers, now), expected, "{value}");
        };
        check("7", Some(7));
        check("Sun, 22 Nov 2026 12:00:30 GMT", Some(30));
        check("Sun, 22 Nov 2026 11:00:00 GMT", Some(0));
        check("99999999", Some(3_600));
        check("soon", None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    /// F-061, F-136
    #[test]
    fn texts_are_one_short_line_without_secrets() {
        let private = ["secret-key", "what I said"];
        let shown = presentable("bad\n key secret-key sk-12 in: what I said", &private);
        assert_eq!(
            shown,
            format!("bad key {REDACTED} {REDACTED} in: {REDACTED}")
        );
        assert_eq!(
            presentable(&"é".repeat(500), &[]).chars().count(),
            MOST_TEXT + 1
        );
    }

    #[test]
    fn errors_in_a_stream_are_told_apart() {
        let class = |error: Value| in_stream(&error, &[]).class;
        assert_eq!(class(json!({"code": 429})), OutcomeClass::Overload);
        assert_eq!(
            class(json!({"type": "rate_limit_error"})),
            OutcomeClass::Overload
        );
        assert_eq!(class(json!({"code": "403"})), OutcomeClass::Blocked);
        let other = in_stream(&json!({"type": "server_error", "message": "gone"}), &[]);
        assert_eq!(other.reason, "provider_stream_error");
        assert_eq!(other.message, "the server broke off: server_error: gone");
    }
}
