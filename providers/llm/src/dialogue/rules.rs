//! The rules of a conversation, as data.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use thiserror::Error;

use super::{pattern::Pattern, template::Template};

/// The rules that are built in; also an example of a `dialogue_file`.
const BUILT_IN: &str = include_str!("rules.yaml");
/// Largest file of rules, in bytes.
const MOST_BYTES: u64 = 1024 * 1024;
/// Most rules of a file.
const MOST_RULES: usize = 1_000;
/// What is always known: this utterance, the one before it, and what the agent was last heard to say.
const ALWAYS_NAMED: [&str; 3] = ["said", "previous", "heard"];

/// One thing the partner can say, and when.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Unique; a rule of a file replaces the built-in one of that name.
    pub name: String,
    /// Patterns, any of which will do; none at all fit whatever is said.
    #[serde(default)]
    pub when: Vec<String>,
    /// Only right after one of these rules.
    #[serde(default)]
    pub after: Vec<String>,
    /// What is said, in turn; a text that needs something unknown is left out.
    pub say: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    rules: Vec<Rule>,
}

/// Why rules cannot be used.
#[derive(Debug, Error)]
pub enum DialogueError {
    /// The file cannot be read.
    #[error("could not read the dialogue file {}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is too large.
    #[error("the dialogue file is larger than {MOST_BYTES} bytes or {MOST_RULES} rules")]
    TooLarge,
    /// The text is no list of rules.
    #[error("not a list of rules: {0}")]
    Malformed(String),
    /// A rule cannot work.
    #[error("rule `{rule}`: {problem}")]
    Rule {
        /// Which.
        rule: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// Rules in order of precedence: the first that fits speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules(pub(super) Vec<Ready>);

/// A rule, ready to be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) name: String,
    pub(super) when: Vec<Pattern>,
    pub(super) after: Vec<String>,
    pub(super) say: Vec<Template>,
}

impl Rules {
    /// The built-in rules: a restaurant's telephone, with some small talk.
    pub fn built_in() -> Self {
        let rules = parse(BUILT_IN).and_then(Self::new);
        rules.expect("the built-in rules are checked by the tests")
    }

    /// The rules of a YAML or JSON text, tried before the built-in ones.
    pub fn extended_by(text: &str) -> Result<Self, DialogueError> {
        let mut rules = parse(text)?;
        let replaced: HashSet<String> = rules.iter().map(|rule| rule.name.clone()).collect();
        let built_in = parse(BUILT_IN)?;
        rules.extend(
            built_in
                .into_iter()
                .filter(|rule| !replaced.contains(&rule.name)),
        );
        Self::new(rules)
    }

    /// The rules of a YAML or JSON file, tried before the built-in ones.
    pub fn load(path: &Path) -> Result<Self, DialogueError> {
        let unreadable = |source| DialogueError::Unreadable {
            path: path.to_owned(),
            source,
        };
        if fs::metadata(path).map_err(unreadable)?.len() > MOST_BYTES {
            return Err(DialogueError::TooLarge);
        }
        Self::extended_by(&fs::read_to_string(path).map_err(unreadable)?)
    }

    /// Just these rules.
    pub fn new(rules: Vec<Rule>) -> Result<Self, DialogueError> {
        if rules.len() > MOST_RULES {
            return Err(DialogueError::TooLarge);
        }
        let names: BTreeSet<String> = rules.iter().map(|rule| rule.name.clone()).collect();
        let ready: Vec<Ready> = rules.into_iter().map(prepare).collect::<Result<_, _>>()?;
        let captured: HashSet<&str> = ready
            .iter()
            .flat_map(|rule| rule.when.iter().flat_map(Pattern::names))
            .chain(ALWAYS_NAMED)
            .collect();
        let mut seen = HashSet::new();
        for rule in &ready {
            if !seen.insert(&rule.name) {
                return Err(problem(rule, "the name is used twice; give it another one"));
            }
            if let Some(other) = rule.after.iter().find(|other| !names.contains(*other)) {
                return Err(problem(
                    rule,
                    format!("`after` names `{other}`, which is no rule"),
                ));
            }
            let mut needed = rule.say.iter().flat_map(Template::names);
            if let Some(name) = needed.find(|name| !captured.contains(name)) {
                let text = format!("`{{{name}}}` is said, but no pattern remembers it");
                return Err(problem(rule, text));
            }
        }
        Ok(Self(ready))
    }
}

fn parse(text: &str) -> Result<Vec<Rule>, DialogueError> {
    let file: RuleFile = serde_saphyr::from_str(text)
        .map_err(|error| DialogueError::Malformed(error.to_string()))?;
    Ok(file.rules)
}

fn prepare(rule: Rule) -> Result<Ready, DialogueError> {
    let say: Result<Vec<Template>, String> =
        rule.say.iter().map(|say| Template::parse(say)).collect();
    let failed = |problem: String| DialogueError::Rule {
        rule: rule.name.clone(),
        problem,
    };
    let say = say.map_err(|gap| failed(format!("`{gap}` is no gap; write `{{name}}`")))?;
    if rule.say.iter().all(|say| say.trim().is_empty()) {
        return Err(failed("it says nothing; add a text to `say`".to_owned()));
    }
    Ok(Ready {
        when: rule.when.iter().map(|when| Pattern::parse(when)).collect(),
        name: rule.name,
        after: rule.after,
        say,
    })
}

fn problem(rule: &Ready, problem: impl Into<String>) -> DialogueError {
    DialogueError::Rule {
        rule: rule.name.clone(),
        problem: problem.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_rules_are_sound() {
        assert!(Rules::built_in().0.len() > 20);
    }

    #[test]
    fn files_come_first_and_replace_by_name_as_yaml_or_json() {
        let yaml = "rules:\n  - name: greeting\n    when: [hello]\n    say: [Ahoy!]\n";
        let json = r#"{"rules":[{"name":"greeting","when":["hello"],"say":["Ahoy!"]}]}"#;
        for text in [yaml, json] {
            let rules = Rules::extended_by(text).unwrap();
            assert_eq!(rules.0.len(), Rules::built_in().0.len());
            assert_eq!(rules.0[0].name, "greeting");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rules.yaml");
        assert!(matches!(
            Rules::load(&path),
            Err(DialogueError::Unreadable { .. })
        ));
        fs::write(&path, yaml).unwrap();
        assert_eq!(
            Rules::load(&path).unwrap(),
            Rules::extended_by(yaml).unwrap()
        );
    }

    #[test]
    fn what_is_wrong_with_a_rule_is_said() {
        #[track_caller]
        fn check(rule: &str, complaint: &str) {
            let text = format!("{{\"rules\":[{rule}]}}");
            let error = Rules::extended_by(&text).unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
        }
        check(r#"{"name":"a","say":[]}"#, "says nothing");
        check(r#"{"name":"a","say":["{x}"]}"#, "no pattern remembers it");
        check(r#"{"name":"a","say":["{x"]}"#, "is no gap");
        check(
            r#"{"name":"a","after":["b"],"say":["c"]}"#,
            "`b`, which is no rule",
        );
        check(
            r#"{"name":"a","say":["b"]},{"name":"a","say":["c"]}"#,
            "used twice",
        );
        check(r#"{"name":"a","says":["b"]}"#, "says");
    }
}
