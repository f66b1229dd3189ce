//! Reads a TOML table key by key, and keeps every problem with its place instead of stopping at the first.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::text::on_one_line;

/// One thing that is wrong with a configuration file: where, what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, counted from 1.
    pub line: usize,
    /// Column, counted from 1.
    pub column: usize,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {}; {}",
            self.line, self.column, self.cause, self.remedy
        )
    }
}

/// Collects problems; shared by all readers of one file.
#[derive(Clone)]
pub(super) struct Problems {
    line_starts: Rc<[usize]>,
    found: Rc<RefCell<Vec<Problem>>>,
}

impl Problems {
    pub fn new(source: &str) -> Self {
        let starts = std::iter::once(0)
            .chain(source.match_indices('\n').map(|(at, _)| at + 1))
            .collect::<Vec<_>>();
        Self {
            line_starts: starts.into(),
            found: Rc::default(),
        }
    }

    pub fn add(&self, span: Range<usize>, cause: impl Into<String>, remedy: impl Into<String>) {
        let line = self.line_of(span.start);
        let column = span.start - self.line_starts[line - 1] + 1;
        // They quote the file, where a string may have several lines.
        self.found.borrow_mut().push(Problem {
            line,
            column,
            cause: on_one_line(cause.into()),
            remedy: on_one_line(remedy.into()),
        });
    }

    /// The line that an octet is on, counted from 1.
    pub fn line_of(&self, at: usize) -> usize {
        self.line_starts.partition_point(|&start| start <= at).max(1)
    }

    /// Whether none was found so far.
    pub fn is_empty(&self) -> bool {
        self.found.borrow().is_empty()
    }

    /// All problems by place.
    pub fn take(&self) -> Vec<Problem> {
        let mut found = self.found.take();
        found.sort_by_key(|p| (p.line, p.column));
        found.dedup();
        found
    }
}

/// A limit as an operator would write it: in the largest unit of which it is a whole number.
fn in_one_unit(limit: Duration) -> String {
    let ms = limit.as_millis();
    let units = [
        (86_400_000, "days"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1000, "s"),
        (1, "ms"),
    ];
    let whole = units
        .into_iter()
        .find(|(unit, _)| ms >= *unit && ms.is_multiple_of(*unit));
    whole.map_or_else(|| "0s".to_owned(), |(unit, name)| format!("{}{name}", ms / unit))
}

/// Longest name, octets: it is in records of the journal.
const NAME_MAX: usize = 128;

/// A value with the place where it stands.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// A table being read. Keys that nobody asked for are reported by [`Reader::finish`].
pub(super) struct Reader<'a> {
    table: &'a DeTable<'a>,
    name: &'static str,
    span: Range<usize>,
    asked: Vec<&'static str>,
    problems: Problems,
}

impl<'a> Reader<'a> {
    pub fn new(table: &'a DeTable<'a>, name: &'static str, span: Range<usize>, problems: &Problems) -> Self {
        Self {
            table,
            name,
            span,
            asked: Vec::new(),
            problems: problems.clone(),
        }
    }

    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Where the value of a key stands; the table's place where it is not given.
    pub fn span_of(&self, key: &str) -> Range<usize> {
        let found = self.table.iter().find(|(k, _)| k.get_ref().as_ref() == key);
        found.map_or_else(|| self.span(), |(_, value)| value.span())
    }

    fn get(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.asked.push(key);
        self.table
            .iter()
            .find(|(k, _)| k.get_ref().as_ref() == key)
            .map(|(_, v)| v)
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, want: &str) {
        self.problems.add(
            value.span(),
            format!("'{key}' in [{}] is a {}", self.name, value.get_ref().type_str()),
            format!("give {want}"),
        );
    }

    /// Reports that `key` is missing.
    pub fn missing(&self, key: &str, hint: &str) {
        self.problems.add(
            self.span(),
            format!("[{}] has no '{key}'", self.name),
            format!("add {hint}"),
        );
    }

    pub fn string(&mut self, key: &'static str) -> Option<At<String>> {
        let value = self.get(key)?;
        match value.get_ref().as_str() {
            Some(text) => Some(At {
                value: text.to_owned(),
                span: value.span(),
            }),
            None => {
                self.wrong_type(key, value, "a string in quotes");
                None
            }
        }
    }

    pub fn required_string(&mut self, key: &'static str, hint: &str) -> Option<At<String>> {
        let present = self.has(key);
        let found = self.string(key);
        if !present {
            self.missing(key, hint);
        }
        found
    }

    /// The name of something. Logs, tables and metrics show it on one line.
    pub fn name(&mut self, hint: &str) -> Option<At<String>> {
        let name = self.required_string("name", hint)?;
        if name.value.is_empty() || name.value.len() > NAME_MAX || name.value.contains(char::is_control) {
            self.problems.add(
                name.span.clone(),
                format!("'name' in [{}] is '{}'", self.name, name.value),
                format!("give 1 to {NAME_MAX} octets without line ends and other control characters"),
            );
        }
        Some(name)
    }

    /// Where a key's value stands, if the key is there.
    pub fn place(&mut self, key: &'static str) -> Option<Range<usize>> {
        self.get(key).map(Spanned::span)
    }

    pub fn has(&self, key: &str) -> bool {
        self.table.iter().any(|(k, _)| k.get_ref().as_ref() == key)
    }

    /// Whether a key is this very word.
    pub fn is_text(&mut self, key: &'static str, word: &str) -> bool {
        self.get(key)
            .is_some_and(|value| value.get_ref().as_str() == Some(word))
    }

    /// A string that `T` can be made of.
    pub fn parsed<T: FromStr>(&mut self, key: &'static str, want: &str) -> Option<At<T>> {
        let text = self.string(key)?;
        match text.value.parse() {
            Ok(value) => Some(At {
                value,
                span: text.span,
            }),
            Err(_) => {
                self.problems.add(
                    text.span,
                    format!("'{key}' in [{}] is '{}'", self.name, text.value),
                    format!("give {want}"),
                );
                None
            }
        }
    }

    /// One of a few words.
    pub fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let text = self.string(key)?;
        let found = words
            .iter()
            .find(|(word, _)| *word == text.value)
            .map(|(_, value)| *value);
        if found.is_none() {
            let choice = words
                .iter()
                .map(|(word, _)| format!("\"{word}\""))
                .collect::<Vec<_>>()
                .join(" or ");
            self.problems.add(
                text.span,
                format!("'{key}' in [{}] is '{}'", self.name, text.value),
                format!("give {choice}"),
            );
        }
        found
    }

    pub fn duration(&mut self, key: &'static str, range: Range<Duration>) -> Option<Duration> {
        let text = self.string(key)?;
        match humantime::parse_duration(&text.value) {
            Ok(duration) if range.contains(&duration) => Some(duration),
            Ok(_) => {
                self.problems.add(
                    text.span,
                    format!("'{key}' in [{}] is '{}'", self.name, text.value),
                    format!(
                        "give at least {} and less than {}",
                        in_one_unit(range.start),
                        in_one_unit(range.end)
                    ),
                );
                None
            }
            Err(error) => {
                self.problems.add(
                    text.span,
                    format!("'{key}' in [{}] is no duration ({error})", self.name),
                    "write for example \"20ms\", \"30s\" or \"1h\"",
                );
                None
            }
        }
    }

    pub fn integer(&mut self, key: &'static str, range: std::ops::RangeInclusive<u64>) -> Option<At<u64>> {
        let value = self.get(key)?;
        let want = format!("a number from {} to {}", range.start(), range.end());
        let Some(number) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, &want);
            return None;
        };
        match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) if range.contains(&number) => Some(At {
                value: number,
                span: value.span(),
            }),
            _ => {
                self.problems.add(
                    value.span(),
                    format!("'{key}' in [{}] is {}", self.name, number.as_str()),
                    format!("give {want}"),
                );
                None
            }
        }
    }

    /// Text that `parse` makes a value of; a number is taken for its text.
    pub fn read_at<T>(
        &mut self,
        key: &'static str,
        want: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<At<T>> {
        let value = self.get(key)?;
        let (number, text);
        let given = if let Some(given) = value.get_ref().as_str() {
            text = given;
            text
        } else if let Some(integer) = value.get_ref().as_integer() {
            number = u64::from_str_radix(integer.as_str(), integer.radix())
                .map_or_else(|_| integer.as_str().to_owned(), |n| n.to_string());
            &number
        } else {
            self.wrong_type(key, value, want);
            return None;
        };
        match parse(given) {
            Some(parsed) => Some(At {
                value: parsed,
                span: value.span(),
            }),
            None => {
                self.problems.add(
                    value.span(),
                    format!("'{key}' in [{}] is '{given}'", self.name),
                    format!("give {want}"),
                );
                None
            }
        }
    }

    /// [`Reader::read_at`] without the place.
    pub fn read<T>(&mut self, key: &'static str, want: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.read_at(key, want, parse).map(|at| at.value)
    }

    pub fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.get(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_type(key, value, "true or false");
        }
        found
    }

    /// A list of strings.
    pub fn strings(&mut self, key: &'static str) -> Option<At<Vec<At<String>>>> {
        let value = self.get(key)?;
        let Some(list) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "a list of strings");
            return None;
        };
        let mut out = Vec::new();
        for item in list.iter() {
            match item.get_ref().as_str() {
                Some(text) => out.push(At {
                    value: text.to_owned(),
                    span: item.span(),
                }),
                None => self.wrong_type(key, item, "strings in quotes"),
            }
        }
        Some(At {
            value: out,
            span: value.span(),
        })
    }

    /// A string, as a list of one, or a list of strings.
    pub fn string_or_strings(&mut self, key: &'static str) -> Option<At<Vec<At<String>>>> {
        let value = self.get(key)?;
        if let Some(text) = value.get_ref().as_str() {
            let span = value.span();
            let one = At {
                value: text.to_owned(),
                span: span.clone(),
            };
            return Some(At {
                value: vec![one],
                span,
            });
        }
        if value.get_ref().as_array().is_none() {
            self.wrong_type(key, value, "a string or a list of strings");
            return None;
        }
        self.strings(key)
    }

    pub fn table(&mut self, key: &'static str, name: &'static str) -> Option<Reader<'a>> {
        let value = self.get(key)?;
        match value.get_ref().as_table() {
            Some(table) => Some(Reader::new(table, name, value.span(), &self.problems)),
            None => {
                self.wrong_type(key, value, &format!("a table: [{name}]"));
                None
            }
        }
    }

    pub fn tables(&mut self, key: &'static str, name: &'static str) -> Vec<Reader<'a>> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let Some(list) = value.get_ref().as_array() else {
            self.wrong_type(key, value, &format!("tables: [[{name}]]"));
            return Vec::new();
        };
        let mut out = Vec::new();
        for item in list.iter() {
            match item.get_ref().as_table() {
                Some(table) => out.push(Reader::new(table, name, item.span(), &self.problems)),
                None => self.wrong_type(key, item, &format!("a table: [[{name}]]")),
            }
        }
        out
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(self) {
        for key in self.table.keys() {
            if self.asked.contains(&key.get_ref().as_ref()) {
                continue;
            }
            let mut known = self.asked.clone();
            known.sort_unstable();
            self.problems.add(
                key.span(),
                format!("[{}] has an unknown key '{}'", self.name, key.get_ref()),
                format!("remove it, or use one of: {}", known.join(", ")),
            );
        }
    }
}
