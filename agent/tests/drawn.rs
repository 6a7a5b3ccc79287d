//! What is wrong in a file is drawn as the text beside it in `drawn/` says. `STEER_WRITE_DOCS=1` writes
//! these anew.

use std::fs;
use std::path::Path;

use steer::api::mistake::{MISTAKE, Mistake, QUARANTINED};
use steer::draw::{draw, draw_first};
use steer_core::config::parse;

fn mistakes(file: &str, text: &str) -> Vec<Mistake> {
    let texts = [(file.to_owned(), text.to_owned())];
    match parse(&[(file, text)]) {
        Ok(config) => config
            .mistakes()
            .map(|error| Mistake::new(QUARANTINED, error, &texts))
            .collect(),
        Err(errors) => errors
            .iter()
            .map(|error| Mistake::new(MISTAKE, error, &texts))
            .collect(),
    }
}

#[test]
fn each_kind_of_mistake_is_drawn_with_its_line_its_words_and_advice() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drawn");
    let write = std::env::var_os("STEER_WRITE_DOCS").is_some();
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        count += 1;
        let text = fs::read_to_string(&path).unwrap();
        let drawn = draw(&mistakes("/etc/steer/steer.toml", &text), false) + "\n";
        let expected = path.with_extension("txt");
        if write {
            fs::write(&expected, &drawn).unwrap();
        }
        if fs::read_to_string(&expected).unwrap_or_default() != drawn {
            wrong.push(format!("{}:\n{drawn}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 20, "only {count} files");
}

#[test]
fn nothing_of_a_file_controls_the_terminal() {
    let text = "[policy.web]\nmatch.cgroup = \"a\"\nuse = \"b\" # \u{202e}\u{200f}\u{9b}\n\
                \"\\u001b[31m\" = 1\n";
    let drawn = draw(&mistakes("\x1b]0;x\x07", text), false);
    let hostile = |c: char| c != '\n' && steer::cli::clean(&c.to_string()) != c.to_string();
    assert!(!drawn.contains(hostile), "{drawn:?}");
    assert!(drawn.contains("unknown key"), "{drawn}");
}

#[test]
fn colour_is_added_only_when_asked_for() {
    let mistakes = mistakes("f", "[agent]\ncolour = 1\n");
    assert!(!draw(&mistakes, false).contains('\x1b'));
    assert!(draw(&mistakes, true).contains("\x1b["));
}

#[test]
fn the_example_of_the_page_is_what_is_drawn() {
    let page = include_str!("../../docs/configuration.md");
    let drawn = include_str!("drawn/unknown-key.txt");
    assert!(page.contains(&format!("```text\n{drawn}```\n")), "{drawn}");
}

#[test]
fn what_is_cut_is_counted() {
    let text: String = (0..60).map(|n| format!("x{n} = 1\n")).collect();
    let drawn = draw_first(&mistakes("f", &text), false);
    assert_eq!(drawn.matches("error").count(), 50);
    assert!(drawn.ends_with("\n\nand 10 more"), "{drawn}");
}
