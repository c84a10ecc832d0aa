//! Asking another model to go on with an answer that its predecessor did not end (P14).

use rspp_provider_api::{Message, Role};

use crate::node::CallRequest;

/// What a model is told that has to go on.
const GO_ON: &str = "Your last message broke off, and all of it has been heard. Go on exactly where it broke \
    off. Repeat nothing of it, and do not mention this.";

/// The question as it is put to whoever has to go on after `said`; `None` if the answer has not begun, or is
/// none that can be gone on with in words.
pub(super) fn request(asked: &CallRequest, said: &str) -> Option<CallRequest> {
    match asked {
        CallRequest::Llm(asked) if !said.trim().is_empty() => {
            let mut asked = asked.clone();
            let said = Message::new(Role::Assistant, said.trim());
            asked.messages.push(said);
            asked.messages.push(Message::new(Role::System, GO_ON));
            Some(CallRequest::Llm(asked))
        }
        CallRequest::Llm(_) | CallRequest::Stt(_) | CallRequest::Tts(_) => None,
    }
}

/// The first words of who goes on, set apart from the last ones before.
pub(super) fn joined(said: &str, next: String) -> String {
    let is_apart = said.is_empty() || said.ends_with(char::is_whitespace);
    if is_apart || !next.starts_with(char::is_alphanumeric) {
        next
    } else {
        format!(" {next}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P14: what goes on after a break is a word of its own, and a mark stays with its word.
    #[test]
    fn words_after_a_break_are_set_apart() {
        assert_eq!(joined("One two", "three".into()), " three");
        assert_eq!(joined("One two ", "three".into()), "three");
        assert_eq!(joined("One two", ", three".into()), ", three");
        assert_eq!(joined("One two", " three".into()), " three");
        assert_eq!(joined("", "three".into()), "three");
    }
}
