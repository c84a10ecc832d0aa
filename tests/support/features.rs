//! Which feature is shown by which test, and whether that is true.
//!
//! `FEATURES.md` is for people; this reads it, and holds it to the list of ids and to the tests that
//! the sources really contain.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Functional rows, `F-001` to `F-176`.
const FUNCTIONAL: RangeInclusive<u16> = 1..=176;
/// Non-functional rows, `NF-001` to `NF-038`.
const NON_FUNCTIONAL: RangeInclusive<u16> = 1..=38;
/// Functional rows that come after the first release.
const LATER: [RangeInclusive<u16>; 3] = [84..=85, 110..=113, 161..=174];
/// Non-functional rows that come after the first release.
const LATER_NON_FUNCTIONAL: [RangeInclusive<u16>; 1] = [33..=37];

/// When a feature is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// In the first release.
    Mvp,
    /// Afterwards.
    PostMvp,
}

impl Phase {
    /// The word for it in the table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mvp => "mvp",
            Self::PostMvp => "post_mvp",
        }
    }
}

/// All 214 features of the catalogue, in its order of numbers.
pub fn features() -> Vec<(String, Phase)> {
    let row = |prefix: &str, number: u16, later: &[RangeInclusive<u16>]| {
        let is_later = later.iter().any(|range| range.contains(&number));
        let phase = if is_later { Phase::PostMvp } else { Phase::Mvp };
        (format!("{prefix}-{number:03}"), phase)
    };
    let functional = FUNCTIONAL.map(|number| row("F", number, &LATER));
    let others = NON_FUNCTIONAL.map(|number| row("NF", number, &LATER_NON_FUNCTIONAL));
    functional.chain(others).collect()
}

/// What users of other runtimes suffer from (`P`), the rows of the turn's lifecycle table (`T`), the
/// classes of failure (`F1` to `F8`) and the conformance cases; in the order in which a citation
/// such as `T6 to T10` counts.
pub fn promises() -> Vec<String> {
    let pains = (1..=30).map(|n| format!("P{n}"));
    let turns = [
        "1", "2", "3", "4", "5", "5a", "6", "7", "8", "9", "10", "11", "12",
    ];
    let turns = turns.into_iter().map(|n| format!("T{n}"));
    let failures = (1..=8).map(|n| format!("F{n}"));
    let cases = [("CT", 6), ("RD", 5), ("CF", 4), ("AE", 5), ("ML", 4)];
    let cases = cases
        .into_iter()
        .flat_map(|(family, last)| (1..=last).map(move |n| format!("{family}-{n:03}")));
    pains.chain(turns).chain(failures).chain(cases).collect()
}

/// How far a feature is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not at all.
    Open,
    /// The tests show a part of it.
    Part,
    /// The tests show all of it.
    Done,
}

/// A line of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// Its line in the file, from one.
    pub line: usize,
    /// The feature, promise or case.
    pub id: String,
    /// What the cell says, for those that have a phase.
    pub phase: Option<String>,
    /// The word in the state cell.
    pub state: String,
    /// The tests that show it, by the names that [`Tests`] gives them.
    pub tests: Vec<String>,
}

/// The rows of all tables in `document` whose first cell is an id. Their last two cells are the
/// state and the tests; of five, the second is the phase.
pub fn rows(document: &str) -> Vec<Row> {
    let row = |(index, line): (usize, &str)| {
        let cells: Vec<_> = line
            .strip_prefix('|')?
            .strip_suffix('|')?
            .split('|')
            .collect();
        let cells: Vec<_> = cells.into_iter().map(str::trim).collect();
        let [id, .., state, tests] = cells.as_slice() else {
            return None;
        };
        let is_id = id.starts_with(|c: char| c.is_ascii_uppercase())
            && id.ends_with(|c: char| c.is_ascii_alphanumeric())
            && id.chars().any(|c| c.is_ascii_digit());
        is_id.then(|| Row {
            line: index + 1,
            id: (*id).to_owned(),
            phase: (cells.len() == 5).then(|| cells[1].to_owned()),
            state: (*state).to_owned(),
            tests: tests
                .split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect(),
        })
    };
    document.lines().enumerate().filter_map(row).collect()
}

/// Everything in `document` that is not true: an id too many or too few, a wrong phase, a state
/// without a test, a test that does not exist or does not speak of the id.
pub fn complaints(document: &str, tests: &Tests) -> Vec<String> {
    let mut out = Vec::new();
    let mut expected: BTreeMap<String, Option<Phase>> = BTreeMap::new();
    expected.extend(features().into_iter().map(|(id, phase)| (id, Some(phase))));
    expected.extend(promises().into_iter().map(|id| (id, None)));

    let mut seen = BTreeSet::new();
    for row in rows(document) {
        let mut say = |what: String| out.push(format!("line {}: {}: {what}", row.line, row.id));
        match expected.get(&row.id) {
            None => say("is no id of the catalogue".to_owned()),
            Some(phase) => {
                let phase = phase.map(Phase::as_str);
                if row.phase.as_deref() != phase {
                    say(format!("its phase is {phase:?}, not {:?}", row.phase));
                }
            }
        }
        if !seen.insert(row.id.clone()) {
            say("is listed twice".to_owned());
        }
        for (at, test) in row.tests.iter().enumerate() {
            if row.tests[..at].contains(test) {
                say(format!("`{test}` is named twice"));
            }
        }
        let state = match row.state.as_str() {
            "" => Some(State::Open),
            "part" => Some(State::Part),
            "done" => Some(State::Done),
            _ => None,
        };
        match (state, row.tests.is_empty()) {
            (None, _) => say(format!(
                "`{}` is no state; say part, done or nothing",
                row.state
            )),
            (Some(State::Open), false) => say("has tests but no state".to_owned()),
            (Some(State::Part | State::Done), true) => say("has a state but no test".to_owned()),
            (Some(State::Open), true) | (Some(State::Part | State::Done), false) => {}
        }
        for test in &row.tests {
            match tests.cites(test, &row.id) {
                None => say(format!("there is no test `{test}`{}", tests.hint(test))),
                Some(false) => say(format!("`{test}` does not name it in its doc comment")),
                Some(true) => {}
            }
        }
    }
    let missing = expected.keys().filter(|id| !seen.contains(*id));
    out.extend(missing.map(|id| format!("{id} is not listed")));
    out
}

/// The tests in a set of sources, and which ids the doc comment of each cites.
///
/// A unit test is named as `cargo test` shows it, `rspp-kernel edge::tests::final_text_survives`; any
/// other by its file, `rspp-proto tests/golden.rs::reading_never_panics`. A suite made by a macro,
/// `mod name: kind = subject;` or `mod name = subject;` under a test attribute, is named like a test.
#[derive(Debug, Default)]
pub struct Tests(BTreeMap<String, BTreeSet<String>>);

impl Tests {
    /// Reads all sources of `packages`, given by name and directory.
    ///
    /// # Errors
    /// A directory or file that cannot be read, or is not Rust.
    pub fn of(packages: &[(String, PathBuf)]) -> io::Result<Self> {
        let mut tests = Self::default();
        for (package, dir) in packages {
            for file in rust_files(dir)? {
                let inside = file.strip_prefix(dir).map_err(io::Error::other)?;
                tests
                    .read(package, inside, &fs::read_to_string(&file)?)
                    .map_err(|error| io::Error::other(format!("{}: {error}", file.display())))?;
            }
        }
        Ok(tests)
    }

    /// Takes in one file of `package`; `inside` is its path from the package's directory.
    ///
    /// # Errors
    /// A text that does not even consist of Rust's tokens.
    pub fn read(
        &mut self,
        package: &str,
        inside: &Path,
        text: &str,
    ) -> Result<(), proc_macro2::LexError> {
        let tokens: TokenStream = text.parse()?;
        walk(tokens, &format!("{package} {}", place(inside)), &mut self.0);
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the doc comment or the name of `test` cites `id`; `None` if there is no such test.
    fn cites(&self, test: &str, id: &str) -> Option<bool> {
        let cited = self.0.get(test)?;
        let in_name = id.to_lowercase().replace('-', "_");
        let name = test.rsplit("::").next().unwrap_or(test);
        let named = name.contains('_') && format!("_{name}_").contains(&format!("_{in_name}_"));
        Some(named || cited.contains(id))
    }

    /// Where a test of the same name lives, for one that has moved.
    fn hint(&self, test: &str) -> String {
        let wanted = test.rsplit("::").next().unwrap_or(test);
        let mut hint = String::new();
        let same = |name: &&String| name.rsplit("::").next() == Some(wanted);
        for name in self.0.keys().filter(same) {
            let _ = write!(hint, "; did it move to `{name}`?");
        }
        hint
    }
}

/// The ids that a text cites, ranges such as `T6 to T10` included.
pub fn cited(text: &str) -> BTreeSet<String> {
    let known: Vec<_> = features()
        .into_iter()
        .map(|(id, _)| id)
        .chain(promises())
        .collect();
    let words: Vec<_> = text
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter(|word| !word.is_empty())
        .collect();
    let position = |word: &str| known.iter().position(|id| id == word);
    let family = |at: usize| known[at].trim_end_matches(|c: char| !c.is_ascii_uppercase());
    let mut found: BTreeSet<usize> = words.iter().filter_map(|word| position(word)).collect();
    for range in words.windows(3) {
        let (Some(first), "to", Some(last)) = (position(range[0]), range[1], position(range[2]))
        else {
            continue;
        };
        if family(first) == family(last) {
            found.extend(first..=last);
        }
    }
    found.into_iter().map(|at| known[at].clone()).collect()
}

/// What stands before a test's name: the module of a file below `src`, else the file itself.
fn place(inside: &Path) -> String {
    let path = inside.to_string_lossy().replace('\\', "/");
    let Some(module) = path
        .strip_prefix("src/")
        .and_then(|path| path.strip_suffix(".rs"))
    else {
        return format!("{path}::");
    };
    let module = module.strip_suffix("/mod").unwrap_or(module);
    match module {
        "lib" | "main" => String::new(),
        _ => format!("{}::", module.replace('/', "::")),
    }
}

/// Finds functions and suites under a test attribute, also inside macros such as `proptest!`.
fn walk(tokens: TokenStream, prefix: &str, out: &mut BTreeMap<String, BTreeSet<String>>) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let (mut docs, mut is_test) = (String::new(), false);
    let mut rest = tokens.as_slice();
    while let [token, after @ ..] = rest {
        rest = after;
        match token {
            TokenTree::Punct(hash) if hash.as_char() == '#' => {
                if let [TokenTree::Group(attribute), after @ ..] = after {
                    rest = after;
                    let attribute: Vec<_> = attribute.stream().into_iter().collect();
                    is_test |= is_test_attribute(&attribute);
                    if let [TokenTree::Ident(doc), _, TokenTree::Literal(text)] =
                        attribute.as_slice()
                        && doc == "doc"
                    {
                        docs.push_str(&text.to_string());
                        docs.push('\n');
                    }
                }
            }
            TokenTree::Ident(keyword) if keyword == "fn" => {
                if let ([TokenTree::Ident(name), ..], true) = (after, is_test) {
                    out.insert(format!("{prefix}{name}"), cited(&docs));
                }
                (docs, is_test) = (String::new(), false);
            }
            TokenTree::Ident(keyword) if keyword == "mod" => {
                match after {
                    [TokenTree::Ident(name), TokenTree::Group(body), after @ ..] => {
                        walk(body.stream(), &format!("{prefix}{name}::"), out);
                        rest = after;
                    }
                    [TokenTree::Ident(name), TokenTree::Punct(colon), ..]
                        if matches!(colon.as_char(), ':' | '=') && is_test =>
                    {
                        out.insert(format!("{prefix}{name}"), cited(&docs));
                    }
                    _ => {}
                }
                (docs, is_test) = (String::new(), false);
            }
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                walk(group.stream(), prefix, out);
                (docs, is_test) = (String::new(), false);
            }
            TokenTree::Punct(end) if end.as_char() == ';' => {
                (docs, is_test) = (String::new(), false);
            }
            TokenTree::Group(_)
            | TokenTree::Ident(_)
            | TokenTree::Punct(_)
            | TokenTree::Literal(_) => {}
        }
    }
}

/// `#[test]`, `#[tokio::test]`, `#[tokio::test(start_paused = true)]`.
fn is_test_attribute(tokens: &[TokenTree]) -> bool {
    let path = tokens
        .iter()
        .take_while(|token| !matches!(token, TokenTree::Group(_)));
    let last = path
        .filter(|token| !matches!(token, TokenTree::Punct(_)))
        .last();
    matches!(last, Some(TokenTree::Ident(name)) if name == "test")
}

/// All Rust files below `dir` that belong to its package.
fn rust_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut entries = fs::read_dir(dir)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            let is_other = path.join("Cargo.toml").exists() || path.ends_with("target");
            if !is_other {
                found.extend(rust_files(&path)?);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = r#"
        //! F-001: a file's own words are no citation.
        #[cfg(test)]
        mod tests {
            /// F-044, T6 to T8: drops are counted.
            #[test]
            fn drops_are_counted() { let text = "fn not_a_test"; }

            /// F-043
            fn helper() {}

            #[tokio::test(start_paused = true)]
            async fn p14_is_noticed() {}

            proptest! {
                #![proptest_config(x)]
                /// F-008
                #[test]
                fn order_is_kept(n in 0..9u8) {}
            }
            suite! {
                /// F-055
                #[tokio::test]
                mod scripted: llm = subject();
                /// F-086
                #[tokio::test]
                mod sockets = Sockets;
            }
        }
    "#;

    fn tests() -> Tests {
        let mut tests = Tests::default();
        tests
            .read("a", Path::new("src/edge/mod.rs"), SOURCE)
            .unwrap();
        tests
            .read("a", Path::new("tests/run.rs"), "#[test] fn runs() {}")
            .unwrap();
        tests
    }

    /// The whole list, nothing shown, but `row` instead of its own.
    fn document(row: &str) -> String {
        let id = row.split('|').nth(1).unwrap_or_default().trim();
        let features = features().into_iter().map(|(id, phase)| {
            let line = format!("| {id} | {} | words | | |", phase.as_str());
            (id, line)
        });
        let promises = promises().into_iter().map(|id| {
            let line = format!("| {id} | words | | |");
            (id, line)
        });
        let others = features.chain(promises).filter(|(other, _)| other != id);
        let others = others.map(|(_, line)| line + "\n");
        others.collect::<String>() + row
    }

    #[test]
    fn the_catalogue_has_214_rows_and_no_id_twice() {
        let all = features();
        let later = all
            .iter()
            .filter(|(_, phase)| *phase == Phase::PostMvp)
            .count();
        assert_eq!((all.len(), later, all.len() - later), (214, 25, 189));
        let ids: BTreeSet<_> = all
            .into_iter()
            .map(|(id, _)| id)
            .chain(promises())
            .collect();
        assert_eq!(ids.len(), 214 + 30 + 13 + 8 + 24);
    }

    #[test]
    fn tests_are_found_wherever_they_are_written() {
        let names: Vec<_> = tests().0.into_keys().collect();
        assert_eq!(
            names,
            [
                "a edge::tests::drops_are_counted",
                "a edge::tests::order_is_kept",
                "a edge::tests::p14_is_noticed",
                "a edge::tests::scripted",
                "a edge::tests::sockets",
                "a tests/run.rs::runs",
            ]
        );
    }

    #[test]
    fn citations_are_words_and_ranges() {
        let of = |text| cited(text).into_iter().collect::<Vec<_>>();
        assert_eq!(
            of("F-044, CF-001: as NF-029 says."),
            ["CF-001", "F-044", "NF-029"]
        );
        assert_eq!(of("T5 to T6"), ["T5", "T5a", "T6"]);
        assert_eq!(of("P2 to T2, AC-139-1, F-0444, XF-001"), ["P2", "T2"]);
    }

    #[test]
    fn a_true_table_has_no_complaints() {
        for row in [
            "| F-044 | mvp | words | done | `a edge::tests::drops_are_counted` |",
            "| T7 | words | part | `a edge::tests::drops_are_counted` |",
            "| F-008 | mvp | words | part | `a edge::tests::order_is_kept` |",
            "| F-055 | mvp | words | part | `a edge::tests::scripted` |",
            "| P14 | words | done | `a edge::tests::p14_is_noticed` |",
        ] {
            assert_eq!(complaints(&document(row), &tests()), [""; 0], "{row}");
        }
    }

    #[test]
    fn every_untruth_is_found() {
        #[track_caller]
        fn check(row: &str, expected: &str) {
            let found = complaints(&document(row), &tests());
            let [complaint] = found.as_slice() else {
                panic!("{found:#?}");
            };
            assert!(complaint.contains(expected), "{complaint}");
        }
        let renamed = "| F-044 | mvp | words | done | `a edge::tests::drops_were_counted` |";
        check(
            renamed,
            "there is no test `a edge::tests::drops_were_counted`",
        );
        let moved = "| F-044 | mvp | words | done | `a lane::tests::drops_are_counted` |";
        check(moved, "did it move to `a edge::tests::drops_are_counted`?");
        let helper = "| F-043 | mvp | words | done | `a edge::tests::helper` |";
        check(helper, "there is no test");
        let silent = "| F-043 | mvp | words | part | `a tests/run.rs::runs` |";
        check(silent, "does not name it");
        check("| F-044 | mvp | words | done | |", "no test");
        check(
            "| F-044 | mvp | words | | `a edge::tests::drops_are_counted` |",
            "no state",
        );
        check("| F-044 | mvp | words | mostly | |", "is no state");
        check("| F-044 | post_mvp | words | | |", "its phase");
        check(
            "| F-044 | mvp | words | | |\n| F-044 | mvp | words | | |",
            "twice",
        );
        check("| F-777 | mvp | words | | |\n", "F-777: is no id");
        check("nothing | F-044 | in its place", "F-044 is not listed");
    }
}
