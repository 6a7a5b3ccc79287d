//! Whether an interface still has all that an earlier one had.

use std::collections::BTreeMap;

/// Fields or words of a member, with their types.
type Fields = BTreeMap<String, String>;

/// What an interface says: by kind and name, and for methods by direction.
type Members = BTreeMap<String, Fields>;

/// What the interface `now` no longer has that `released` had, or asks for that it did not.
pub(crate) fn broken(released: &str, now: &str) -> Vec<String> {
    let (released, now) = (members(released), members(now));
    let mut broken = Vec::new();
    for (member, fields) in &released {
        let Some(has) = now.get(member) else {
            broken.push(format!("{member} is gone"));
            continue;
        };
        for (field, kind) in fields {
            match has.get(field) {
                None => broken.push(format!("{member}: {field} is gone")),
                Some(is) if is != kind => {
                    broken.push(format!("{member}: {field} was {kind} and is {is}"));
                }
                Some(_) => {}
            }
        }
        // A caller that does not know a parameter cannot give it.
        let asked = has.iter().filter(|(field, kind)| {
            member.ends_with(" takes") && !fields.contains_key(*field) && !kind.starts_with('?')
        });
        broken.extend(asked.map(|(field, _)| format!("{member}: {field} must be given")));
    }
    broken
}

/// Reads the interface's definition, which the agent's own test compares with what is served.
fn members(text: &str) -> Members {
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let text = lines.collect::<Vec<_>>().join(" ");
    let mut members = Members::new();
    let mut rest = text.as_str();
    while let Some((start, word)) = next_keyword(rest) {
        rest = rest[start + word.len()..].trim_start();
        let end = rest.find([' ', '(']).unwrap_or(rest.len());
        let name = rest[..end].to_owned();
        rest = &rest[end..];
        match word {
            "interface" => drop(members.insert(format!("interface {name}"), Fields::new())),
            "method" => {
                let (takes, after) = group(rest);
                let (gives, after) = group(after);
                rest = after;
                members.insert(format!("method {name} takes"), fields(takes));
                members.insert(format!("method {name} gives"), fields(gives));
            }
            _ => {
                let (inside, after) = group(rest);
                rest = after;
                members.insert(format!("{word} {name}"), fields(inside));
            }
        }
    }
    members
}

fn next_keyword(text: &str) -> Option<(usize, &'static str)> {
    let words = ["interface", "type", "method", "error"];
    let found = words.iter().filter_map(|word| {
        let spaced = format!("{word} ");
        let mut places = text.match_indices(&spaced).map(|(at, _)| at);
        let at = places.find(|&at| at == 0 || text[..at].ends_with([' ', ')']))?;
        Some((at, *word))
    });
    found.min()
}

/// What the next parentheses hold, and what comes after.
fn group(text: &str) -> (&str, &str) {
    let start = text.find('(').unwrap();
    let mut depth = 0;
    for (at, c) in text[start..].char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return (&text[start + 1..start + at], &text[start + at + 1..]);
        }
    }
    panic!("unbalanced: {text}");
}

fn fields(inside: &str) -> Fields {
    let fields = inside
        .split(',')
        .map(str::trim)
        .filter(|field| !field.is_empty());
    fields
        .map(|field| {
            let (name, kind) = field.split_once(':').unwrap_or((field, ""));
            (name.trim().to_owned(), kind.trim().to_owned())
        })
        .collect()
}
