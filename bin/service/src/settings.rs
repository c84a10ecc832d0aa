//! Settings in layers, each over the one before:
//!
//! 1. the defaults of the program,
//! 2. a YAML file,
//! 3. the environment: the program's prefix, then the key with `__` between its parts, so that
//!    `listen.health` of a program with the prefix `RSPP_X_` is `RSPP_X_LISTEN__HEALTH`,
//! 4. the command line.
//!
//! A key that nobody knows is an error that names the nearest one there is: a setting that is silently
//! without effect is worse than none. Where each value came from can be printed.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::yaml;

/// Longest file that is read, in bytes.
const MOST_BYTES: u64 = 1 << 20;

/// A program's settings: a tree whose default knows every key there is.
pub trait Settings: Default + Serialize + DeserializeOwned {
    /// How its environment variables begin.
    const PREFIX: &'static str;
    /// Keys below which anything may be named.
    const FREE: &'static [&'static str] = &[];
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said otherwise.
    Default,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// The command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "${name}"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A value of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// As the user wrote it.
    pub flag: String,
    /// The key that it sets.
    pub key: String,
    /// To what.
    pub value: String,
}

impl Flag {
    /// What `--set key=value` says.
    pub fn set(text: &str) -> Result<Self, SettingsError> {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| SettingsError::Set(text.to_owned()))?;
        Ok(Self {
            flag: format!("--set {}", key.trim()),
            key: key.trim().to_owned(),
            value: value.to_owned(),
        })
    }
}

/// Why there are no settings.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("{}: {}", path.display(), unreadable(source))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not YAML, or no map.
    #[error("{}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// `--set` without a value.
    #[error("--set {0}: write it as KEY=VALUE")]
    Set(String),
    /// A key that nobody knows.
    #[error("{origin}: unknown setting `{key}`{}", hint(suggestion.as_deref()))]
    Unknown {
        /// Where it was written.
        origin: Origin,
        /// The key.
        key: String,
        /// The nearest that there is.
        suggestion: Option<String>,
    },
    /// A value that its key cannot have.
    #[error("{origin}: `{key}`: {message}")]
    Value {
        /// Where it was written.
        origin: Origin,
        /// The key.
        key: String,
        /// What is wrong.
        message: String,
    },
}

fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file; name another with --config".to_owned(),
        _ => format!("cannot be read: {error}"),
    }
}

fn hint(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |it| format!("; did you mean `{it}`?"))
}

/// Settings, and where each came from.
#[derive(Clone, Debug)]
pub struct Loaded<S> {
    /// The settings.
    pub settings: S,
    tree: Value,
    origins: BTreeMap<String, Origin>,
}

/// Reads all layers of a program that is told by `--config` where its file is, and by `--set` what stands
/// over it and over what the program has `made` itself.
pub fn gather<S: Settings>(
    file: Option<&Path>,
    made: Vec<Flag>,
    set: &[String],
) -> Result<Loaded<S>, SettingsError> {
    let mut flags = made;
    for text in set {
        flags.push(Flag::set(text)?);
    }
    // The file's own name is no setting.
    let own = format!("{}CONFIG", S::PREFIX);
    let environment = std::env::vars().filter(|(name, _)| *name != own);
    load(file, environment, &flags)
}

/// Reads all layers.
pub fn load<S: Settings>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &[Flag],
) -> Result<Loaded<S>, SettingsError> {
    let defaults = serde_json::to_value(S::default()).expect("settings are plain data");
    let mut layers = Layers {
        tree: defaults.clone(),
        defaults,
        free: S::FREE,
        origins: BTreeMap::new(),
    };
    if let Some(path) = file {
        let values = read(path)?;
        layers.merge("", values, &Origin::File(path.to_owned()))?;
    }
    let mut environment: Vec<_> = environment.into_iter().collect();
    environment.sort();
    for (name, value) in environment {
        let Some(key) = name.strip_prefix(S::PREFIX) else {
            continue;
        };
        let key = key.to_ascii_lowercase().replace("__", ".");
        layers.set(&key, &value, Origin::Environment(name))?;
    }
    for Flag { flag, key, value } in flags {
        layers.set(key, value, Origin::Flag(flag.clone()))?;
    }
    let Layers { tree, origins, .. } = layers;
    let settings = serde_path_to_error::deserialize(&tree).map_err(|error| {
        let key = error.path().to_string();
        let from = match origin(&origins, &key) {
            // What a part lacks is told to whoever said something of it.
            Origin::Default => below(&origins, &key).unwrap_or(&Origin::Default),
            from @ (Origin::File(_) | Origin::Environment(_) | Origin::Flag(_)) => from,
        };
        SettingsError::Value {
            origin: from.clone(),
            message: error.into_inner().to_string(),
            key,
        }
    })?;
    Ok(Loaded {
        settings,
        tree,
        origins,
    })
}

fn read(path: &Path) -> Result<Value, SettingsError> {
    let unreadable = |source| SettingsError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let malformed = |message: String| SettingsError::Malformed {
        path: path.to_owned(),
        message,
    };
    if fs::metadata(path).map_err(unreadable)?.len() > MOST_BYTES {
        return Err(malformed("is longer than 1 MiB".to_owned()));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    if text.trim().is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    let values: Value = yaml::read(&text).map_err(malformed)?;
    match values {
        Value::Object(_) => Ok(values),
        // A file of comments only.
        Value::Null => Ok(Value::Object(Map::new())),
        _other => Err(malformed("settings are a map of keys to values".to_owned())),
    }
}

/// Where the value of a key came from: it may have been written with all of its part at once.
fn origin<'a>(origins: &'a BTreeMap<String, Origin>, key: &str) -> &'a Origin {
    let mut key = key;
    loop {
        if let Some(origin) = origins.get(key) {
            return origin;
        }
        match key.rfind(['.', '[']) {
            Some(end) => key = &key[..end],
            None => return &Origin::Default,
        }
    }
}

/// Where something below a key came from.
fn below<'a>(origins: &'a BTreeMap<String, Origin>, key: &str) -> Option<&'a Origin> {
    let below = format!("{key}.");
    let mut origins = origins.iter();
    origins
        .find(|(key, _)| key.starts_with(&below))
        .map(|(_, origin)| origin)
}

struct Layers {
    tree: Value,
    defaults: Value,
    free: &'static [&'static str],
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    /// Puts a part of a file over what is there.
    fn merge(&mut self, at: &str, values: Value, origin: &Origin) -> Result<(), SettingsError> {
        let Value::Object(values) = values else {
            return self.put(at, values, origin.clone());
        };
        let is_part = match self.known(at) {
            Some(Value::Object(_)) => !self.free.contains(&at),
            Some(_) | None => false,
        };
        if !is_part {
            return self.put(at, Value::Object(values), origin.clone());
        }
        for (name, value) in values {
            let key = join(at, &name);
            if self.known(&key).is_none() {
                return Err(self.unknown(key, origin.clone()));
            }
            self.merge(&key, value, origin)?;
        }
        Ok(())
    }

    /// Puts a text over what is there.
    fn set(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), SettingsError> {
        let Some(default) = self.known(key) else {
            return Err(self.unknown(key.to_owned(), origin));
        };
        let value = match default {
            // What is a text by default is one whatever it looks like.
            Value::String(_) => Value::String(text.to_owned()),
            // Nor is `n` a no where nothing was said by default; a list or a map is one.
            Value::Null if !text.trim_start().starts_with(['[', '{']) => {
                Value::String(text.to_owned())
            }
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => {
                serde_saphyr::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
            }
        };
        self.put(key, value, origin)
    }

    fn put(&mut self, key: &str, value: Value, origin: Origin) -> Result<(), SettingsError> {
        let mut place = &mut self.tree;
        for name in key.split('.') {
            // A part that nobody has said anything of begins with what is said of it here.
            if place.is_null() {
                *place = Value::Object(Map::new());
            }
            let Value::Object(map) = place else {
                return Err(SettingsError::Value {
                    origin,
                    key: key.to_owned(),
                    message: "is below something that has no parts".to_owned(),
                });
            };
            place = map.entry(name).or_insert(Value::Null);
        }
        *place = value;
        self.origins.insert(key.to_owned(), origin);
        Ok(())
    }

    /// The default of a key; `None` if there is no such key.
    fn known(&self, key: &str) -> Option<&Value> {
        const ANYTHING: &Value = &Value::Null;
        if key.is_empty() {
            return Some(&self.defaults);
        }
        let is_free = |free: &&&str| {
            key.strip_prefix(**free)
                .is_some_and(|it| it.starts_with('.'))
        };
        if self.free.iter().any(|free| is_free(&free)) {
            return Some(ANYTHING);
        }
        let mut place = &self.defaults;
        for name in key.split('.') {
            place = place.as_object()?.get(name)?;
        }
        Some(place)
    }

    fn unknown(&self, key: String, origin: Origin) -> SettingsError {
        let mut known = Vec::new();
        leaves("", &self.defaults, &mut |key, _| known.push(key.to_owned()));
        // A whole part may be meant as well.
        let parts: Vec<_> = known
            .iter()
            .filter_map(|key| key.rsplit_once('.'))
            .map(|(part, _)| part.to_owned())
            .collect();
        let nearest = known.into_iter().chain(parts).map(|known| {
            let apart = strsim::damerau_levenshtein(&known, &key);
            // Named right, but in the wrong place.
            let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
            let apart = if last(&known) == last(&key) { 1 } else { apart };
            (apart, known)
        });
        let nearest = nearest
            .min()
            .filter(|(apart, _)| *apart <= 1 + key.len() / 4);
        SettingsError::Unknown {
            origin,
            key,
            suggestion: nearest.map(|(_, known)| known),
        }
    }
}

fn join(at: &str, name: &str) -> String {
    if at.is_empty() {
        name.to_owned()
    } else {
        format!("{at}.{name}")
    }
}

/// Calls `each` for every key that has a value of its own.
fn leaves(at: &str, value: &Value, each: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (name, value) in map {
                leaves(&join(at, name), value, each);
            }
        }
        _a_leaf => each(at, value),
    }
}

impl<S> Loaded<S> {
    /// Where the value of a key came from.
    pub fn origin(&self, key: &str) -> &Origin {
        origin(&self.origins, key)
    }

    /// All settings as a YAML file that would lead to the same, with where each came from.
    pub fn print(&self) -> String {
        let mut text = String::new();
        self.print_part("", &self.tree, 0, &mut text);
        text
    }

    fn print_part(&self, at: &str, value: &Value, depth: usize, text: &mut String) {
        use fmt::Write as _;
        let Value::Object(map) = value else { return };
        for (name, value) in map {
            let key = join(at, name);
            let indent = "  ".repeat(depth);
            match value {
                Value::Object(map) if !map.is_empty() => {
                    writeln!(text, "{indent}{name}:").expect("a string takes anything");
                    self.print_part(&key, value, depth + 1, text);
                }
                value => {
                    let origin = self.origin(&key);
                    // JSON is YAML.
                    writeln!(text, "{indent}{name}: {value}  # {origin}")
                        .expect("a string takes anything");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::span::Span;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Test {
        name: Option<String>,
        listen: Listen,
        deadline: Span,
        addresses: Vec<String>,
        labels: BTreeMap<String, String>,
        store: Store,
    }

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Store {
        cluster: Option<Cluster>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Cluster {
        members: Vec<String>,
        user: Option<String>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Listen {
        calls: String,
        health: String,
        limit: u32,
    }

    impl Default for Listen {
        fn default() -> Self {
            Self {
                calls: "127.0.0.1:1".to_owned(),
                health: "127.0.0.1:2".to_owned(),
                limit: 7,
            }
        }
    }

    impl Default for Test {
        fn default() -> Self {
            Self {
                name: None,
                listen: Listen::default(),
                deadline: Span::seconds(4),
                addresses: Vec::new(),
                labels: BTreeMap::new(),
                store: Store::default(),
            }
        }
    }

    impl Settings for Test {
        const PREFIX: &'static str = "RSPP_TEST_";
        const FREE: &'static [&'static str] = &["labels", "store.cluster"];
    }

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    /// Each layer goes over the one before, and what each value came from is known.
    #[test]
    fn flags_go_before_the_environment_and_that_before_the_file() {
        let file = file(
            "listen:\n  calls: a\n  health: b\n  limit: 9\ndeadline: 250ms\nlabels: {gpu: x}\n",
        );
        let env = env(&[
            ("RSPP_TEST_LISTEN__HEALTH", "c"),
            ("RSPP_TEST_NAME", "7"),
            ("RSPP_TEST_ADDRESSES", "[p, q]"),
            ("OTHER", "ignored"),
        ]);
        let flags = [
            Flag::set("listen.limit=11").unwrap(),
            Flag::set("name=n").unwrap(),
        ];
        let loaded: Loaded<Test> = load(Some(file.path()), env, &flags).unwrap();
        let settings = &loaded.settings;
        assert_eq!(settings.listen.calls, "a");
        assert_eq!(settings.listen.health, "c");
        assert_eq!(settings.listen.limit, 11);
        assert_eq!(settings.name.as_deref(), Some("n"));
        assert_eq!(settings.addresses, ["p", "q"]);
        assert_eq!(settings.labels["gpu"], "x");
        assert_eq!(settings.deadline.to_string(), "250ms");
        let printed = loaded.print();
        for line in [
            r#"  health: "c"  # $RSPP_TEST_LISTEN__HEALTH"#,
            "  limit: 11  # --set listen.limit",
            &format!(r#"deadline: "250ms"  # {}"#, file.path().display()),
        ] {
            assert!(printed.contains(line), "{line} in\n{printed}");
        }
        // What is printed leads to the same.
        let again = super::tests::file(&printed);
        let again: Loaded<Test> = load(Some(again.path()), [], &[]).unwrap();
        assert_eq!(&again.settings, settings);
    }

    /// Parts of a part that is not there by default are set one by one, wherever they are said; what then lacks is
    /// told with who said the rest.
    #[test]
    fn a_part_begins_with_what_is_said_of_it() {
        let file = file("store:\n  cluster:\n");
        let env = || env(&[("RSPP_TEST_STORE__CLUSTER__MEMBERS", "[a, b]")]);
        let flags = [Flag::set("store.cluster.user=otto").unwrap()];
        for file in [Some(file.path()), None] {
            let loaded: Loaded<Test> = load(file, env(), &flags).unwrap();
            let cluster = loaded.settings.store.cluster.as_ref().unwrap();
            assert_eq!(cluster.members, ["a", "b"]);
            assert_eq!(cluster.user.as_deref(), Some("otto"));
            let printed = loaded.print();
            let line = r#"    user: "otto"  # --set store.cluster.user"#;
            assert!(printed.contains(line), "{printed}");
        }
        assert_eq!(
            refused("", Vec::new(), &flags),
            "--set store.cluster.user: `store.cluster`: missing field `members`"
        );
        let wrong = refused("", env(), &[Flag::set("store.cluster.usr=x").unwrap()]);
        assert!(wrong.contains("unknown field `usr`"), "{wrong}");
    }

    #[test]
    fn nobody_says_anything_and_the_defaults_hold() {
        let loaded: Loaded<Test> = load(None, [], &[]).unwrap();
        assert_eq!(loaded.settings, Test::default());
        assert_eq!(loaded.origin("listen.limit"), &Origin::Default);
        let empty = file("# nothing yet\n");
        let loaded: Loaded<Test> = load(Some(empty.path()), [], &[]).unwrap();
        assert_eq!(loaded.settings, Test::default());
    }

    #[track_caller]
    fn refused(text: &str, env: Vec<(String, String)>, flags: &[Flag]) -> String {
        let file = file(text);
        let error = load::<Test>(Some(file.path()), env, flags).unwrap_err();
        error
            .to_string()
            .replace(&file.path().display().to_string(), "FILE")
    }

    /// A typo is an error that names what was meant, wherever it was made.
    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_one() {
        let none = Vec::new;
        assert_eq!(
            refused("listne:\n  calls: a\n", none(), &[]),
            "FILE: unknown setting `listne`; did you mean `listen`?"
        );
        assert_eq!(
            refused("listen:\n  heatlh: a\n", none(), &[]),
            "FILE: unknown setting `listen.heatlh`; did you mean `listen.health`?"
        );
        assert_eq!(
            refused("health: a\n", none(), &[]),
            "FILE: unknown setting `health`; did you mean `listen.health`?"
        );
        assert_eq!(
            refused("", env(&[("RSPP_TEST_DEADLIEN", "1s")]), &[]),
            "$RSPP_TEST_DEADLIEN: unknown setting `deadlien`; did you mean `deadline`?"
        );
        assert_eq!(
            refused("", none(), &[Flag::set("frobnicate=1").unwrap()]),
            "--set frobnicate: unknown setting `frobnicate`"
        );
        assert_eq!(
            Flag::set("name").unwrap_err().to_string(),
            "--set name: write it as KEY=VALUE"
        );
    }

    /// A value that cannot be says where it was written and what it should be.
    #[test]
    fn a_wrong_value_says_where_it_came_from() {
        let none = Vec::new;
        assert_eq!(
            refused("deadline: 4 weeks\n", none(), &[]),
            "FILE: `deadline`: `4 weeks` is no length of time: write it as `250ms`, `4s`, `2m` or `1h`"
        );
        let wrong = refused("", env(&[("RSPP_TEST_LISTEN__LIMIT", "many")]), &[]);
        assert!(
            wrong.starts_with("$RSPP_TEST_LISTEN__LIMIT: `listen.limit`: invalid type"),
            "{wrong}"
        );
        let wrong = refused("listen: 5\n", none(), &[]);
        assert!(wrong.starts_with("FILE: `listen`: invalid type"), "{wrong}");
        let missing = load::<Test>(Some(Path::new("/no/such.yaml")), [], &[]).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "/no/such.yaml: no such file; name another with --config"
        );
    }
}
