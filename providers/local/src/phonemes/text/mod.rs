//! From what is written to what is spoken: figures, abbreviations, addresses and symbols as words.

mod abbreviation;
mod address;
mod clean;
mod figure;
mod number;

/// One thing to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    /// A word of a to z and apostrophes, in lower case.
    Word(String),
    /// Letters and figures to name one by one, in lower case.
    Letters(String),
    /// A pause: one of `, . ? ! ; :`.
    Mark(char),
}

/// Characters of a clause that are read; a voice's clauses are far shorter.
pub(super) const LONGEST_CLAUSE: usize = 2000;

/// What to say for a clause. Characters nobody reads aloud are passed over.
pub(super) fn read(clause: &str) -> Vec<Spoken> {
    let clause = clean::to_ascii(clause.chars().take(LONGEST_CLAUSE));
    let chunks: Vec<&str> = clause.split_ascii_whitespace().collect();
    let mut reader = Reader {
        shouting: is_shouting(&chunks),
        chunks,
        at: 0,
        out: Vec::new(),
    };
    while reader.at < reader.chunks.len() {
        reader.chunk();
    }
    reader.out
}

/// A clause in capitals is emphasis, not a list of acronyms.
fn is_shouting(chunks: &[&str]) -> bool {
    let mut words = 0;
    for chunk in chunks {
        if chunk.bytes().any(|b| b.is_ascii_lowercase()) {
            return false;
        }
        words += usize::from(chunk.bytes().filter(u8::is_ascii_uppercase).count() > 1);
    }
    words > 2
}

struct Reader<'a> {
    chunks: Vec<&'a str>,
    at: usize,
    shouting: bool,
    out: Vec<Spoken>,
}

impl Reader<'_> {
    /// Reads the chunk between two blanks, sometimes with those after it.
    fn chunk(&mut self) {
        let chunk = self.chunks[self.at];
        if let Some(taken) = figure::telephone(&self.chunks[self.at..], &mut self.out) {
            self.at += taken;
            return;
        }
        let start =
            chunk.trim_start_matches(['(', '[', '{', '<', '"', '\'', '*', '_', '`', '~', '|']);
        let opened = start.len() < chunk.len() && chunk.starts_with(['(', '[']);
        if opened {
            self.mark(',');
        }
        let body = start.trim_end_matches([
            ',', '.', '?', '!', ';', ':', ')', ']', '}', '>', '"', '\'', '*', '_', '`', '~', '|',
        ]);
        let tail = &start[body.len()..];
        let next = self.chunks.get(self.at + 1).copied();
        self.at += 1;
        let dotted = tail.starts_with('.');
        let mut keeps_dot = dotted && self.abbreviation(body, next);
        let mut tail = tail;
        if !keeps_dot && !body.is_empty() {
            let taken = self.body(body);
            if let Some(&last) = self.chunks[..self.at].last().filter(|_| taken > 0) {
                // The marks are those of the last chunk that was read.
                tail = &last[last.trim_end_matches([',', '.', '?', '!', ';', ':']).len()..];
                keeps_dot = last.matches('.').count() > 1;
            }
        }
        let next = self.chunks.get(self.at).copied();
        for (index, mark) in tail.chars().enumerate() {
            let is_abbreviation_dot = index == 0 && keeps_dot && (next.is_some() || tail.len() > 1);
            match mark {
                ',' | '.' | '?' | '!' | ';' | ':' if !is_abbreviation_dot => self.mark(mark),
                ')' | ']' if next.is_some() => self.mark(','),
                _ => {}
            }
        }
    }

    /// Reads a body before a dot if the two are an abbreviation.
    fn abbreviation(&mut self, body: &str, next: Option<&str>) -> bool {
        let Some(words) = abbreviation::expand(body, next, &self.out) else {
            return false;
        };
        self.say(words);
        true
    }

    /// Reads a chunk without the marks around it; says how many chunks went with it.
    fn body(&mut self, body: &str) -> usize {
        if address::read(body, &mut self.out) {
            return 0;
        }
        let followers = &self.chunks[self.at..];
        if body.bytes().any(|b| b.is_ascii_digit())
            && let Some(taken) = figure::read(body, followers, &mut self.out)
        {
            self.at += taken;
            return taken;
        }
        if let Some(words) = abbreviation::expand_undotted(body) {
            self.say(words);
            return 0;
        }
        for part in split_keeping_symbols(body) {
            match symbol(part) {
                Some(word) => self.say(word),
                None if part.bytes().any(|b| b.is_ascii_digit()) => {
                    figure::mixed(part, &mut self.out);
                }
                None => self.word(part),
            }
        }
        0
    }

    /// Reads letters and apostrophes.
    fn word(&mut self, word: &str) {
        let word = word.trim_matches('\'');
        let letters = word.bytes().filter(u8::is_ascii_alphabetic).count();
        if letters == 0 {
            return;
        }
        let stem = word
            .strip_suffix("'s")
            .or_else(|| word.strip_suffix('s'))
            .filter(|stem| stem.len() > 1 && stem.bytes().all(|b| b.is_ascii_uppercase()));
        let capitals = word.bytes().all(|b| b.is_ascii_uppercase());
        let is_acronym =
            capitals && letters > 1 && !self.shouting && abbreviation::is_spelled(word);
        let is_letter = letters == 1 && !word.eq_ignore_ascii_case("i") && !self.is_article(word);
        if let Some(stem) = stem.filter(|stem| abbreviation::is_spelled(stem)) {
            self.out.push(Spoken::Letters(stem.to_ascii_lowercase()));
            // The s joins the last letter's name when the phrase is put together.
            self.out.push(Spoken::Word("'s".to_owned()));
        } else if is_acronym || is_letter {
            self.out.push(Spoken::Letters(word.to_ascii_lowercase()));
        } else {
            self.say_camel_case(word);
        }
    }

    /// "a", or "A" before another word.
    fn is_article(&self, word: &str) -> bool {
        let starts = self
            .out
            .last()
            .is_none_or(|last| matches!(last, Spoken::Mark(_)));
        word == "a" || word == "A" && starts && self.at < self.chunks.len()
    }

    /// "LiveKit" is two words, "McDonald" and "iPhone" are as good as that.
    fn say_camel_case(&mut self, word: &str) {
        let bytes = word.as_bytes();
        let mut start = 0;
        for at in 1..bytes.len() {
            let turns = bytes[at - 1].is_ascii_lowercase() && bytes[at].is_ascii_uppercase();
            if turns && at - start > 2 && bytes.len() - at > 2 {
                self.out
                    .push(Spoken::Word(word[start..at].to_ascii_lowercase()));
                start = at;
            }
        }
        self.out
            .push(Spoken::Word(word[start..].to_ascii_lowercase()));
    }

    fn say(&mut self, words: &str) {
        say(words, &mut self.out);
    }

    /// Adds a pause; of several, the strongest stays.
    fn mark(&mut self, mark: char) {
        match self.out.last_mut() {
            Some(Spoken::Mark(last)) if strength(mark) > strength(*last) => *last = mark,
            None | Some(Spoken::Mark(_)) => {}
            Some(Spoken::Word(_) | Spoken::Letters(_)) => self.out.push(Spoken::Mark(mark)),
        }
    }
}

/// Adds words; what is in capitals is spelled, a comma is a pause.
fn say(words: &str, out: &mut Vec<Spoken>) {
    for word in words.split_ascii_whitespace() {
        if word == "," {
            out.push(Spoken::Mark(','));
        } else if word.bytes().all(|b| b.is_ascii_uppercase()) {
            out.push(Spoken::Letters(word.to_ascii_lowercase()));
        } else {
            out.push(Spoken::Word(word.to_owned()));
        }
    }
}

fn strength(mark: char) -> u8 {
    match mark {
        ',' => 0,
        ';' | ':' => 1,
        '.' => 2,
        '!' => 3,
        _ => 4,
    }
}

/// Runs of letters, digits and apostrophes, and single other characters.
fn split_keeping_symbols(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '\'';
        let first = rest.chars().next()?;
        let length = if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (part, after) = rest.split_at(length);
        rest = after;
        Some(part)
    })
}

/// How a symbol inside or between words is read; "" if it is not.
fn symbol(part: &str) -> Option<&'static str> {
    Some(match part {
        "&" => "and",
        "@" => "at",
        "+" => "plus",
        "=" => "equals",
        "%" => "percent",
        "\x01" => "degrees",
        "$" => "dollar",
        "\x02" => "euro",
        "\x03" => "pound",
        _ if part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '\'') => return None,
        _ => "",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said, with spelled letters in capitals.
    fn spoken(text: &str) -> String {
        read(text)
            .into_iter()
            .map(|spoken| match spoken {
                Spoken::Word(word) => word,
                Spoken::Letters(letters) => letters.to_ascii_uppercase(),
                Spoken::Mark(mark) => mark.to_string(),
            })
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn written_things_are_read_as_people_read_them() {
        #[track_caller]
        fn check(written: &str, expected: &str) {
            assert_eq!(spoken(written), expected, "{written}");
        }
        // Numbers.
        check("0 7 15 42 100", "zero seven fifteen forty two one hundred");
        check(
            "1,234,567",
            "one million two hundred thirty four thousand five hundred sixty seven",
        );
        check("3.14", "three point one four");
        check("-5 degrees", "minus five degrees");
        check("1st, 2nd and 23rd.", "first , second and twenty third .");
        check("5-7 days", "five to seven days");
        check("24/7", "twenty four seven");
        check("1/2 and 3/4", "one half and three quarters");
        check("version 1.2.3", "version one point two point three");
        check("007", "zero zero seven");
        check("50%", "fifty percent");
        check("12.5 %", "twelve point five percent");
        // Years and dates.
        check("in 1984", "in nineteen eighty four");
        check("in 2004", "in two thousand four");
        check("by 2026.", "by twenty twenty six .");
        check("1900 or 1905", "nineteen hundred or nineteen oh five");
        check("the 1990s", "the nineteen nineties");
        check(
            "November 22, 2026",
            "november twenty second , twenty twenty six",
        );
        check("2026-11-22", "november twenty second twenty twenty six");
        check("11/22/2026", "november twenty second twenty twenty six");
        check("Nov. 3rd", "november third");
        // Money.
        check("$5", "five dollars");
        check("$1", "one dollar");
        check("$12.50", "twelve dollars and fifty cents");
        check("$0.99", "ninety nine cents");
        check("$3 million", "three million dollars");
        check("$2.5M", "two point five million dollars");
        check("€20 or £1,000", "twenty euros or one thousand pounds");
        // Times.
        check("at 3:30pm", "at three thirty PM");
        check("9:05 a.m.", "nine oh five AM .");
        check("at 7:00", "at seven o'clock");
        check("3 p.m. today", "three PM today");
        check("5pm", "five PM");
        // Telephones, digit by digit.
        check("555-0123", "five five five , zero one two three");
        check(
            "(555) 123-4567",
            "five five five , one two three , four five six seven",
        );
        check(
            "+1 555 123 4567.",
            "plus one , five five five , one two three , four five six seven .",
        );
        check(
            "4155550199",
            "four one five five five five zero one nine nine",
        );
        // Units.
        check("5km", "five kilometers");
        check("1 kg", "one kilogram");
        check("300 ms", "three hundred milliseconds");
        check("20°C", "twenty degrees celsius");
        check("72° today", "seventy two degrees today");
        check("16GB", "sixteen gigabytes");
        check("60 mph", "sixty miles per hour");
        // Abbreviations and acronyms.
        check(
            "Mr. Smith met Dr. Jones.",
            "mister smith met doctor jones .",
        );
        check("12 Main St. in town", "twelve main street in town");
        check("St. Paul", "saint paul");
        check(
            "e.g. tea, i.e. this, etc.",
            "for example tea , that is this , et cetera .",
        );
        check("No. 5", "number five");
        check("The LLM uses a GPU", "the LLM uses a GPU");
        check("two GPUs", "two GPU 's");
        check("the U.S. and NASA", "the US and nasa");
        check("PLEASE HOLD THE LINE", "please hold the line");
        check("this is NOT it", "this is not it");
        check("plan B, a plan", "plan B , a plan");
        check("GPT-4 and B2B", "GPT four and B two B");
        // Addresses.
        check("bob.smith@example.com", "bob dot smith at example dot com");
        check(
            "https://www.example.org/help",
            "WWW dot example dot org slash help",
        );
        check("example.io.", "example dot IO .");
        // Symbols, quotes, mark-up and what nobody says.
        check("salt & pepper", "salt and pepper");
        check("**Bold** _and_ `code`", "bold and code");
        check("“It’s fine” — she said…", "it's fine , she said .");
        check("well-known", "well known");
        check("yes/no", "yes no");
        check("naïve café", "naive cafe");
        check("Hi 👋 there!", "hi there !");
        check("Really?!", "really ?");
        check("(an aside) here", "an aside , here");
        check("LiveKit", "live kit");
        check("#1 in 3x3", "number one in three by three");
        check("", "");
        check("👋 … 漢字", "");
    }
}
