//! Reading values of the right type out of a parsed file, with errors at their place.

use std::fmt::Display;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Source};
use super::keys::{Keys, TABLES};
use crate::name::{Name, Shown};
use crate::suggest::nearest;

/// A file that is being read, and the mistakes found so far.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) source: Source<'a>,
    pub(super) errors: Vec<ConfigError>,
}

/// A table of the file, and what it is called in messages.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    pub(super) entries: &'a DeTable<'a>,
    pub(super) span_start: usize,
    pub(super) span_end: usize,
    pub(super) title: &'a str,
}

/// A value with its place.
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

impl Reader<'_> {
    pub(super) fn error(
        &mut self,
        span: Range<usize>,
        message: impl Display,
        help: Option<String>,
    ) {
        let error = self.source.place(&span).error(message.to_string());
        self.errors.push(error.help(help));
    }

    /// As [`Reader::error`], with words for the place itself.
    pub(super) fn labelled(
        &mut self,
        span: &Range<usize>,
        message: impl Display,
        label: impl Into<String>,
        help: Option<String>,
    ) {
        let error = self.source.place(span).error(message.to_string());
        self.errors.push(error.label(label).help(help));
    }

    /// A value as a table.
    pub(super) fn table<'b>(&mut self, title: &'b str, value: &'b Value<'b>) -> Option<Table<'b>> {
        let DeValue::Table(entries) = value.get_ref() else {
            self.wrong_type(title, "a table", value);
            return None;
        };
        let span = value.span();
        Some(Table {
            entries,
            span_start: span.start,
            span_end: span.end,
            title,
        })
    }

    /// Refuses keys of `table` that are not `known`.
    pub(super) fn known_keys(&mut self, table: Table<'_>, known: Keys) {
        let known: Vec<&str> = known.names().collect();
        for key in table.entries.keys() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let meant = nearest(name, known.iter().copied());
                let meant = meant.map(|meant| format!("did you mean `{meant}`?"));
                let cures = [meant, elsewhere(name)].into_iter().flatten();
                let cures: Vec<String> = cures.collect();
                let help = match cures.is_empty() {
                    true => (known.len() <= 12).then(|| format!("known are {}", list(&known))),
                    false => Some(cures.join(" or: ")),
                };
                let message = format!("unknown key {} in {}", Shown::new(name), table.title);
                self.labelled(&key.span(), message, "there is no such key", help);
            }
        }
    }

    pub(super) fn wrong_type(&mut self, what: &str, wanted: &str, value: &Value<'_>) {
        let found = value.get_ref().type_str();
        let article = if matches!(found, "integer" | "array") {
            "an"
        } else {
            "a"
        };
        let message = format!("{what} must be {wanted}, not {article} {found}");
        self.labelled(&value.span(), message, format!("{article} {found}"), None);
    }

    pub(super) fn boolean(&mut self, table: Table<'_>, key: &str) -> Option<bool> {
        let value = table.entries.get(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_type(&format!("`{key}`"), "true or false", value);
        }
        found
    }

    /// An integer between `low` and `high`.
    pub(super) fn integer(
        &mut self,
        table: Table<'_>,
        key: &str,
        low: i64,
        high: i64,
    ) -> Option<i64> {
        let value = table.entries.get(key)?;
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(&format!("`{key}`"), "an integer", value);
            return None;
        };
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let fits = number.filter(|number| (low..=high).contains(number));
        if fits.is_none() {
            let message = format!("`{key}` must be from {low} to {high}");
            self.labelled(&value.span(), message, "out of range", None);
        }
        fits
    }

    /// A string that `make` takes.
    pub(super) fn parsed<T, E: Display>(
        &mut self,
        what: &str,
        value: &Value<'_>,
        make: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(what, "a string", value);
            return None;
        };
        match make(text) {
            Ok(made) => Some(made),
            Err(error) => {
                self.error(value.span(), error, None);
                None
            }
        }
    }

    /// A key with a string that `make` takes.
    pub(super) fn string<T, E: Display>(
        &mut self,
        table: Table<'_>,
        key: &str,
        make: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = table.entries.get(key)?;
        self.parsed(&format!("`{key}`"), value, make)
    }

    /// As [`Reader::string`], for a number with a unit.
    pub(super) fn quantity<T, E: Display>(
        &mut self,
        table: Table<'_>,
        key: &str,
        unit: &str,
        make: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = table.entries.get(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(number) => number.as_str(),
            DeValue::Float(number) => number.as_str(),
            _ => return self.string(table, key, make),
        };
        let message = format!("`{key}` is a number without a unit");
        // What is meant by a fraction cannot be guessed: half of it, or half a per cent?
        let example = if number.contains('.') { "5" } else { number };
        let help = format!("write it with one, in quotes, such as `{key} = \"{example}{unit}\"`");
        self.labelled(&value.span(), message, "of what?", Some(help));
        None
    }

    /// A key with one of some words.
    pub(super) fn word<T: Copy>(
        &mut self,
        table: Table<'_>,
        key: &str,
        words: &[(&str, T)],
    ) -> Option<T> {
        let value = table.entries.get(key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(&format!("`{key}`"), "a string", value);
            return None;
        };
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let message = format!(
                "`{key}` must be {}, not {}",
                either(&names),
                Shown::new(text)
            );
            let meant = nearest(text, names).map(|meant| format!("did you mean `{meant}`?"));
            self.labelled(&value.span(), message, "no such word", meant);
        }
        found.map(|(_, meaning)| *meaning)
    }

    /// A key with a list of strings, or one string alone, that `make` takes; with their places.
    pub(super) fn strings<T, E: Display>(
        &mut self,
        table: Table<'_>,
        key: &str,
        make: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<(T, Range<usize>)>> {
        self.list(table, key, "strings", |reader, what, value| {
            reader.parsed(what, value, &make)
        })
    }

    /// As [`Reader::strings`], but numbers may stand there without quotes.
    pub(super) fn words<T, E: Display>(
        &mut self,
        table: Table<'_>,
        key: &str,
        make: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<(T, Range<usize>)>> {
        self.list(table, key, "strings and numbers", |reader, what, value| {
            let text = match value.get_ref() {
                DeValue::Integer(integer) => {
                    let number = i64::from_str_radix(integer.as_str(), integer.radix());
                    number.map_or_else(|_| integer.as_str().to_owned(), |number| number.to_string())
                }
                DeValue::String(text) => text.to_string(),
                _ => {
                    reader.wrong_type(what, "a string or a number", value);
                    return None;
                }
            };
            make(&text)
                .map_err(|error| reader.error(value.span(), error, None))
                .ok()
        })
    }

    /// A key with a list, or one item alone, each read by `read`; with their places.
    fn list<T>(
        &mut self,
        table: Table<'_>,
        key: &str,
        kind: &str,
        read: impl Fn(&mut Self, &str, &Value<'_>) -> Option<T>,
    ) -> Option<Vec<(T, Range<usize>)>> {
        let value = table.entries.get(key)?;
        let what = format!("`{key}`");
        let mut made = Vec::new();
        match value.get_ref() {
            DeValue::Array(values) if values.is_empty() => {
                self.error(
                    value.span(),
                    format!("`{key}` of {} is empty", table.title),
                    None,
                );
            }
            DeValue::Array(values) => {
                let what = format!("what is in `{key}`");
                for value in values.iter() {
                    let one = read(self, &what, value);
                    made.extend(one.map(|one| (one, value.span())));
                }
            }
            DeValue::Table(_) | DeValue::Boolean(_) | DeValue::Float(_) | DeValue::Datetime(_) => {
                self.wrong_type(&what, &format!("a list of {kind}"), value);
            }
            DeValue::Integer(_) if kind == "strings" => {
                self.wrong_type(&what, "a list of strings", value);
            }
            DeValue::String(_) | DeValue::Integer(_) => {
                made.extend(read(self, &what, value).map(|one| (one, value.span())));
            }
        }
        Some(made)
    }

    /// The name in a table's key.
    pub(super) fn name(&mut self, key: &str, span: Range<usize>) -> Option<Name> {
        Name::new(key)
            .map_err(|error| self.error(span, error, None))
            .ok()
    }
}

impl Table<'_> {
    pub(super) fn span(&self) -> Range<usize> {
        self.span_start..self.span_end
    }
}

/// Where a key belongs that is none where it stands.
fn elsewhere(key: &str) -> Option<String> {
    let has = |keys: &&Keys| keys.names().any(|name| name == key);
    // A table of the file is told by its brackets.
    let sections = TABLES.iter().skip(1).filter(has);
    let titles: Vec<&str> = sections.map(|keys| keys.table).collect();
    (!titles.is_empty()).then(|| format!("it is a key of {}", titles.join(" and ")))
}

fn list(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}

fn either(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}
