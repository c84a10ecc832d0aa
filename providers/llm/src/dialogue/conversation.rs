//! A conversation re-read from its messages: what is known, and what is to be said.
//!
//! Nothing is kept between calls. The same messages always give the same answer, so a conversation
//! can be replayed, and what was not heard by the user (and is not in the history) is not known.

use std::collections::HashMap;

use rspp_provider_api::{Message, Role};

use super::{
    pattern::{Captures, Utterance},
    rules::{Ready, Rules},
};

/// As many messages as are looked back upon.
const LOOK_BACK: usize = 400;

/// Said if no rule fits, which only rules without a fallback allow.
const SPEECHLESS: &str = "I am sorry, I do not know what to say to that.";

/// What the partner says to the last of `messages`.
pub(super) fn reply(rules: &Rules, messages: &[Message]) -> String {
    let recent = &messages[messages.len().saturating_sub(LOOK_BACK)..];
    let mut conversation = Conversation::default();
    let mut answer = None;
    for message in recent {
        match message.role {
            Role::System | Role::Tool => {}
            Role::Assistant => conversation.hear(&message.content),
            Role::User => answer = Some(conversation.answer(rules, &message.content)),
        }
    }
    answer.unwrap_or_else(|| conversation.answer(rules, ""))
}

#[derive(Default)]
struct Conversation<'a> {
    known: Captures,
    last_rule: Option<&'a str>,
    /// How often each rule has spoken.
    spoken: HashMap<&'a str, usize>,
}

impl<'a> Conversation<'a> {
    fn hear(&mut self, assistant: &str) {
        self.learn("heard", assistant);
    }

    fn answer(&mut self, rules: &'a Rules, said: &str) -> String {
        let said = said.trim();
        let utterance = Utterance::new(said);
        let fitting = rules.0.iter().find_map(|rule| {
            let (known, text) = self.try_rule(rule, said, &utterance)?;
            Some((rule, known, text))
        });
        let text = if let Some((rule, known, text)) = fitting {
            self.known = known;
            self.last_rule = Some(&rule.name);
            *self.spoken.entry(&rule.name).or_default() += 1;
            text
        } else {
            self.last_rule = None;
            SPEECHLESS.to_owned()
        };
        self.learn("previous", said);
        text
    }

    /// What would be known and said by this rule, if it fits.
    fn try_rule(
        &self,
        rule: &Ready,
        said: &str,
        utterance: &Utterance,
    ) -> Option<(Captures, String)> {
        let in_place = rule.after.is_empty()
            || self
                .last_rule
                .is_some_and(|last| rule.after.iter().any(|name| name == last));
        if !in_place {
            return None;
        }
        let captures = if rule.when.is_empty() {
            Captures::new()
        } else {
            rule.when
                .iter()
                .find_map(|pattern| pattern.matches(utterance))?
        };
        let mut known = self.known.clone();
        known.extend(captures);
        let mut sayable = known.clone();
        sayable.insert(
            "said".to_owned(),
            said.trim_end_matches(['.', '!', '?']).to_owned(),
        );
        let texts: Vec<String> = rule
            .say
            .iter()
            .filter_map(|say| say.render(&sayable))
            .collect();
        let turn = self
            .spoken
            .get(rule.name.as_str())
            .copied()
            .unwrap_or_default();
        let text = texts.get(turn % texts.len().max(1))?.clone();
        Some((known, text))
    }

    fn learn(&mut self, name: &str, text: &str) {
        let text = text.trim();
        if !text.is_empty() {
            self.known.insert(name.to_owned(), text.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a conversation in which the agent was always heard to its end; the last answer.
    fn talk(said: &[&str]) -> String {
        let rules = Rules::built_in();
        let mut messages = vec![Message::new(Role::System, "Be kind.")];
        let mut last = String::new();
        for text in said {
            messages.push(Message::new(Role::User, *text));
            last = reply(&rules, &messages);
            messages.push(Message::new(Role::Assistant, last.clone()));
        }
        last
    }

    #[track_caller]
    fn check(said: &[&str], expected: &str) {
        let answer = talk(said);
        assert!(answer.contains(expected), "{said:?}: {answer}");
    }

    #[test]
    fn each_rule_answers() {
        check(&[""], "this is the Blue Door");
        check(&["Hello."], "How can I help you today?");
        check(&["Hello.", "Hello?"], "still here");
        check(&["My name is Anna."], "Nice to meet you, Anna.");
        check(&["My name is Anna.", "Hi!"], "Hello Anna!");
        check(
            &[
                "My name is Anna.",
                "What's the weather like?",
                "What is my name?",
            ],
            "Your name is Anna",
        );
        check(&["What's my name?"], "not told me your name");
        check(&["My name is Anna.", "Spell my name."], "A, N, N, A");
        check(
            &["How do you spell table?"],
            "table is spelled T, A, B, L, E",
        );
        check(&["Count to five, please."], "one, two, three, four, five.");
        check(&["Can you count?"], "nine, ten.");
        check(&["Are you open today?"], "from noon until ten");
        check(&["Where are you located?"], "Harbour Street");
        check(&["Is there anything vegetarian?"], "vegetarian dish");
        check(&["How much is it?"], "twenty-five euros");
        check(&["I want a real person."], "my best");
        check(&["How are you?"], "And how are you?");
        check(&["How are you?", "I'm fine."], "glad to hear it");
        check(&["Who are you?"], "telephone assistant");
        check(&["What can you do?"], "book a table, spell, count");
        check(&["What time is it?"], "no clock");
        check(&["Will it be raining?"], "warm and dry");
        check(&["Tell me a joke."], "other tide");
        check(&["A joke!", "Another joke!"], "soup");
        check(&["Thank you."], "You are welcome");
        check(&["Bye."], "Goodbye, and thank you");
        check(&["Call me Tom.", "Bye."], "Goodbye, Tom");
        check(&["Yes."], "Would you like to book");
        check(&["No."], "Just tell me");
        check(&["Stop!"], "when you are ready");
        check(
            &["Colourless green ideas."],
            "I heard: Colourless green ideas.",
        );
        check(&["Green ideas.", "Sleep furiously."], "in other words?");
    }

    #[test]
    fn a_table_is_booked_question_by_question_or_at_once() {
        let asked = [
            "I'd like to book a table.",
            "For four people.",
            "At half past seven.",
            "Anna.",
        ];
        check(&asked[..1], "For how many people?");
        check(&asked[..2], "A table for four. At what time");
        check(&asked[..3], "At half past seven, very well.");
        check(
            &asked,
            "Thank you, Anna. Your table for four at half past seven is booked.",
        );
        let later = [&asked[..], &["Thanks!", "What did I book?"]].concat();
        check(&later, "a table for four at half past seven");
        check(
            &["A table for two at eight, please."],
            "What name shall I put it under?",
        );
        check(&["A table for two."], "A table for two, gladly.");
        let known = ["My name is Anna.", "A table for two at 7:30."];
        check(
            &known,
            "With pleasure, Anna. A table for two at 7:30 is booked.",
        );
    }

    #[test]
    fn what_was_said_can_be_said_again() {
        check(&["Hello.", "What did I say?"], "You said: Hello.");
        check(&["What did I say?"], "not said anything before");
        check(
            &["Are you open?", "Pardon?"],
            "I said: We are open from noon",
        );
        check(&["Repeat that."], "not said anything yet");
    }

    /// P2, P3: the history holds what was heard, and nothing else is known.
    #[test]
    fn an_interrupted_story_is_known_as_far_as_it_was_heard() {
        let rules = Rules::built_in();
        let mut messages = vec![Message::new(Role::User, "Tell me a story.")];
        let story = reply(&rules, &messages);
        assert!(
            story.matches('.').count() >= 10,
            "long enough to be interrupted"
        );
        messages.push(Message::new(
            Role::Assistant,
            "Once upon a time there was a",
        ));
        messages.push(Message::new(Role::User, "What were you saying?"));
        let answer = reply(&rules, &messages);
        assert!(
            answer.starts_with("I was saying: Once upon a time there was a That"),
            "{answer}"
        );

        // Cut before a word was heard.
        messages.remove(1);
        assert!(reply(&rules, &messages).contains("not said anything yet"));
    }

    #[test]
    fn the_same_conversation_gives_the_same_answer() {
        let said = ["Hello.", "Whatever.", "My name is Bo.", "Whatever."];
        assert_eq!(talk(&said), talk(&said));
    }

    #[test]
    fn rules_of_a_file_come_first() {
        let text = "rules:\n  - {name: pets, when: ['my {pet} is called {petname}'], say: ['{petname} is a fine name for a {pet}.']}\n";
        let rules = Rules::extended_by(text).unwrap();
        let said = [Message::new(Role::User, "My cat is called Miso.")];
        assert_eq!(reply(&rules, &said), "Miso is a fine name for a cat.");
        let said = [Message::new(Role::User, "Hello")];
        assert_eq!(reply(&rules, &said), "Hello! How can I help you today?");
    }
}
