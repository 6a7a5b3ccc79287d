//! Rust source as words and signs with their lines, without comments and literals.
//!
//! As much of the lexical grammar as the module borders need, and no parser crate: xtask is the
//! first thing that a fresh machine compiles.

/// A word or a sign. `::` is one sign; literals and comments are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    pub(super) line: usize,
}

impl Token<'_> {
    pub(super) fn is_word(&self) -> bool {
        self.text
            .starts_with(|c: char| c == '_' || c.is_alphabetic())
    }
}

/// Splits Rust source into tokens.
pub(super) fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    let mut line = 1;
    while let Some(first) = source[at..].chars().next() {
        let rest = &source[at..];
        let (length, kept) = piece(rest, first);
        let text = &rest[..length];
        if kept {
            tokens.push(Token {
                // `r#type` is the word `type`.
                text: text.strip_prefix("r#").unwrap_or(text),
                line,
            });
        }
        line += text.matches('\n').count();
        at += length;
    }
    tokens
}

/// Length of the next piece, and whether it is a token that is kept.
fn piece(rest: &str, first: char) -> (usize, bool) {
    if first.is_whitespace() {
        (first.len_utf8(), false)
    } else if rest.starts_with("//") {
        (rest.find('\n').unwrap_or(rest.len()), false)
    } else if rest.starts_with("/*") {
        (block_comment(rest), false)
    } else if let Some(length) = string(rest) {
        (length, false)
    } else if first == '\'' {
        (character_or_lifetime(rest), false)
    } else if first == '_' || first.is_alphabetic() {
        let raw = if rest.starts_with("r#") { 2 } else { 0 };
        (raw + word(&rest[raw..]), true)
    } else if first.is_ascii_digit() {
        (word(rest), false)
    } else if rest.starts_with("::") {
        (2, true)
    } else {
        (first.len_utf8(), true)
    }
}

fn word(rest: &str) -> usize {
    rest.find(|c: char| c != '_' && !c.is_alphanumeric())
        .unwrap_or(rest.len())
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// Length of a string literal of any kind, if one begins here.
fn string(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r", "b", "c", ""].into_iter().find(|prefix| {
        rest.strip_prefix(prefix)
            .is_some_and(|after| after.trim_start_matches('#').starts_with('"'))
    })?;
    let after = &rest[prefix.len()..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    if prefix.ends_with('r') {
        let end = format!("\"{}", "#".repeat(hashes));
        let body = prefix.len() + hashes + 1;
        return Some(
            rest[body..]
                .find(&end)
                .map_or(rest.len(), |at| body + at + end.len()),
        );
    }
    if hashes > 0 {
        return None;
    }
    Some(quoted(rest, prefix.len() + 1, '"'))
}

/// End of a literal whose first character is at `from`, with backslash escapes.
fn quoted(rest: &str, from: usize, end: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest[from..].char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == end {
            return from + at + c.len_utf8();
        }
    }
    rest.len()
}

/// `'a'` is a character, `'a` a lifetime or label.
fn character_or_lifetime(rest: &str) -> usize {
    let mut characters = rest[1..].chars();
    match (characters.next(), characters.next()) {
        (Some('\\'), _) | (Some(_), Some('\'')) => quoted(rest, 1, '\''),
        _ => 1 + word(&rest[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str) -> Vec<(&str, usize)> {
        tokens(source)
            .into_iter()
            .map(|token| (token.text, token.line))
            .collect()
    }

    #[test]
    fn comments_and_literals_are_no_words() {
        assert_eq!(
            words("a // b\n/* c /* d */\n e */ f \"g \\\" h\ni\" j"),
            [("a", 1), ("f", 3), ("j", 4)]
        );
        assert_eq!(
            words("r#\"unsafe \"aya\"\"# x br\"y\" b\"z\" c\"w\" v"),
            [("x", 1), ("v", 1)]
        );
    }

    #[test]
    fn characters_and_lifetimes_are_told_apart() {
        assert_eq!(
            words(r"x('a', '\'', '\u{41}', b'c') &'static y 'label: z '"),
            [
                ("x", 1),
                ("(", 1),
                (",", 1),
                (",", 1),
                (",", 1),
                ("b", 1),
                (")", 1),
                ("&", 1),
                ("y", 1),
                (":", 1),
                ("z", 1)
            ]
        );
    }

    #[test]
    fn raw_identifiers_and_paths_are_words() {
        assert_eq!(
            words("r#type::b 1u32..2"),
            [("type", 1), ("::", 1), ("b", 1), (".", 1), (".", 1)]
        );
    }

    #[test]
    fn unfinished_source_ends() {
        for source in ["\"a", "/* a", "r#\"a\"", "'", "'\\", "é'é", "r#"] {
            drop(tokens(source));
        }
    }
}
