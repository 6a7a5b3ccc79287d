//! The paths that a Rust file names: in `use` trees, expanded, and in code, resolved through what
//! the file imports.

use std::collections::HashMap;

use super::code::{Token, tokens};

/// A path as the compiler would see it, and where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// Segments joined by `::`; a glob import ends in `*`.
    pub(super) text: String,
    pub(super) line: usize,
}

/// What a file says: its paths, and the lines with the keyword `unsafe`.
pub(super) struct Names {
    pub(super) paths: Vec<Path>,
    pub(super) unsafe_lines: Vec<usize>,
}

impl Names {
    pub(super) fn of(source: &str) -> Self {
        let tokens = tokens(source);
        let mut imports = Imports::default();
        let mut code = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            let token = tokens[at];
            let previous = at.checked_sub(1).map(|before| tokens[before].text);
            // `use<'a>` bounds captures and imports nothing.
            if token.text == "use" && tokens.get(at + 1).is_some_and(|next| next.text != "<") {
                at = imports.read_tree(&tokens, at + 1, &mut Vec::new());
            } else if token.is_word() && !matches!(previous, Some("." | "::")) {
                let (segments, after) = inline_path(&tokens, at);
                code.push((segments, token.line));
                at = after;
            } else {
                at += 1;
            }
        }

        let unsafe_lines = code
            .iter()
            .filter(|(segments, _)| segments == &["unsafe"])
            .map(|(_, line)| *line)
            .collect();
        let inline = code.into_iter().map(|(segments, line)| Path {
            text: imports.resolve(&segments),
            line,
        });
        let mut paths: Vec<_> = inline.filter(|path| path.text.contains("::")).collect();
        paths.append(&mut imports.paths);
        paths.sort_by_key(|path| path.line);
        Self {
            paths,
            unsafe_lines,
        }
    }
}

/// Reads `a::b::c` from a word on; returns the segments and the index after them.
fn inline_path<'a>(tokens: &[Token<'a>], from: usize) -> (Vec<&'a str>, usize) {
    let mut segments = vec![tokens[from].text];
    let mut at = from + 1;
    while let [separator, word, ..] = &tokens[at..]
        && separator.text == "::"
        && word.is_word()
    {
        segments.push(word.text);
        at += 2;
    }
    (segments, at)
}

/// Everything that the file's `use` items bring in.
#[derive(Default)]
struct Imports {
    paths: Vec<Path>,
    /// The name in the file -> the whole path.
    aliases: HashMap<String, String>,
}

impl Imports {
    /// Reads one tree of a `use` item below `prefix`; returns the index after it.
    fn read_tree(&mut self, tokens: &[Token<'_>], from: usize, prefix: &mut Vec<String>) -> usize {
        let depth = prefix.len();
        let mut at = from;
        let mut alias = None;
        while let Some(token) = tokens.get(at) {
            match token.text {
                "::" => at += 1,
                "{" => {
                    at += 1;
                    while let Some(token) = tokens.get(at) {
                        match token.text {
                            "}" => break,
                            "," => at += 1,
                            _ => at = self.read_tree(tokens, at, prefix),
                        }
                    }
                    prefix.truncate(depth);
                    return at + 1;
                }
                "as" => {
                    alias = tokens.get(at + 1).map(|token| token.text.to_owned());
                    at += 2;
                }
                "," | "}" | ";" => break,
                segment => {
                    prefix.push(segment.to_owned());
                    at += 1;
                }
            }
        }
        if prefix.len() > depth {
            let line = tokens[from].line;
            self.add(prefix, alias, line);
        }
        prefix.truncate(depth);
        // The `;` ends the item; `,` and `}` belong to the tree above.
        if tokens.get(at).is_some_and(|token| token.text == ";") {
            at += 1;
        }
        at
    }

    fn add(&mut self, segments: &[String], alias: Option<String>, line: usize) {
        // `a::{self}` imports `a`.
        let segments = match segments {
            [path @ .., last] if last == "self" && !path.is_empty() => path,
            all => all,
        };
        let text = segments.join("::");
        let name = alias.or_else(|| segments.last().cloned());
        if let Some(name) = name.filter(|name| name != "*" && name != "_") {
            self.aliases.insert(name, text.clone());
        }
        self.paths.push(Path { text, line });
    }

    /// Replaces the first segment by what it was imported as.
    fn resolve(&self, segments: &[&str]) -> String {
        match segments {
            [first, rest @ ..] => match self.aliases.get(*first) {
                Some(path) => std::iter::once(path.as_str())
                    .chain(rest.iter().copied())
                    .collect::<Vec<_>>()
                    .join("::"),
                None => segments.join("::"),
            },
            [] => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(source: &str) -> Vec<(String, usize)> {
        Names::of(source)
            .paths
            .into_iter()
            .map(|path| (path.text, path.line))
            .collect()
    }

    fn expected(paths: &[(&str, usize)]) -> Vec<(String, usize)> {
        paths
            .iter()
            .map(|(text, line)| ((*text).to_owned(), *line))
            .collect()
    }

    #[test]
    fn use_trees_are_expanded_with_their_lines() {
        assert_eq!(
            paths("use std::{\n  fs,\n  time::{self, Instant},\n};\nuse aya as a;\nuse b::*;"),
            expected(&[
                ("std::fs", 2),
                ("std::time", 3),
                ("std::time::Instant", 3),
                ("aya", 5),
                ("b::*", 6),
            ])
        );
    }

    #[test]
    fn code_is_resolved_through_the_imports() {
        assert_eq!(
            paths("use std::time;\nuse aya as a;\nfn f() { time::Instant::now(); a::X; x.aya; }"),
            expected(&[
                ("std::time", 1),
                ("aya", 2),
                ("std::time::Instant::now", 3),
                ("aya::X", 3),
            ])
        );
    }

    #[test]
    fn a_module_of_a_crates_name_below_another_is_not_that_crate() {
        assert_eq!(
            paths("crate::datapath::aya::load()"),
            expected(&[("crate::datapath::aya::load", 1)])
        );
    }

    #[test]
    fn unsafe_is_found_as_keyword_alone() {
        let names = Names::of("// unsafe\n#![forbid(unsafe_code)]\nunsafe { f() }\n\"unsafe\"");
        assert_eq!(names.unsafe_lines, [3]);
    }

    #[test]
    fn unfinished_use_items_end() {
        for source in [
            "use",
            "use a::{b",
            "use a as",
            "use {",
            "use ;",
            "use a::{,}",
        ] {
            drop(Names::of(source));
        }
    }
}
