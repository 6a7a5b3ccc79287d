//! What a package carries beside the program: manual pages that groff takes, and completion scripts
//! that complete.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use tempfile::TempDir;

const STEER: &str = env!("CARGO_BIN_EXE_steer");

fn generated() -> TempDir {
    let directory = TempDir::new().unwrap();
    let output = Command::new(STEER)
        .arg("generate")
        .arg(directory.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    directory
}

/// Names of all commands as their pages have them: `steer-policy-set`.
fn commands() -> BTreeSet<String> {
    fn add(command: &clap::Command, name: &str, names: &mut BTreeSet<String>) {
        names.insert(name.to_owned());
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            add(sub, &format!("{name}-{}", sub.get_name()), names);
        }
    }
    let mut names = BTreeSet::new();
    add(&steer::cli::command(), "steer", &mut names);
    names
}

fn pages(directory: &Path) -> Vec<PathBuf> {
    let pages = fs::read_dir(directory.join("share/man/man1")).unwrap();
    pages.map(|page| page.unwrap().path()).collect()
}

#[test]
fn every_command_has_a_page_and_no_other() {
    let directory = generated();
    let found: BTreeSet<String> = pages(directory.path())
        .iter()
        .map(|page| page.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(found, commands());
}

#[test]
fn every_page_has_its_sections_and_refers_to_pages_that_are_there() {
    let directory = generated();
    let known = commands();
    for page in pages(directory.path()) {
        let text = fs::read_to_string(&page).unwrap();
        let name = page.file_stem().unwrap().to_str().unwrap();
        assert!(text.contains(&format!(".TH {name} 1")), "{name}: {text}");
        let sections: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix(".SH "))
            .collect();
        let mut wanted = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES"].iter();
        let mut next = wanted.next();
        for section in &sections {
            if next == Some(&section.trim_matches('"')) {
                next = wanted.next();
            }
        }
        assert_eq!(next, None, "{name} has {sections:?}");
        for (before, _) in text.match_indices("(1)") {
            let refers = text[..before].rsplit([' ', '\n', ',']).next().unwrap();
            let refers = refers.replace("\\-", "-");
            assert!(known.contains(&refers), "{name} refers to {refers}");
        }
        // A line that begins with one of these is an order to roff, not text.
        for line in text.lines().filter(|line| line.starts_with(['.', '\''])) {
            let order = line.trim_start_matches('.').split(' ').next().unwrap();
            let known = [
                "TH", "SH", "TP", "RS", "RE", "IP", "PP", "br", "ie", "el", "sp",
            ];
            assert!(known.contains(&order), "{name}: {line}");
        }
    }
}

/// What needs no groff to be seen, the test above sees too.
#[test]
fn groff_finds_nothing_wrong_with_a_page() {
    let directory = generated();
    for page in pages(directory.path()) {
        let checked = Command::new("groff")
            .args(["-ww", "-man", "-Tutf8", "-z"])
            .arg(&page)
            .output()
            .expect("groff is needed (Debian: groff-base)");
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(
            checked.status.success() && said.is_empty(),
            "{}: {said}",
            page.display()
        );
    }
}

/// What bash offers for the last word of a line.
fn completed(line: &str) -> Vec<String> {
    let directory = generated();
    let script = directory
        .path()
        .join("share/bash-completion/completions/steer");
    let bash = r#"
        source "$1"
        [[ $(complete -p steer) == *"-F _clap_complete_steer steer" ]] || exit 9
        read -ra COMP_WORDS <<< "$2"
        [[ $2 == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_TYPE=9
        _clap_complete_steer steer "${COMP_WORDS[COMP_CWORD]}" "" 2>/dev/null
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let path = [
        Path::new(STEER).parent().unwrap().to_owned(),
        "/usr/bin".into(),
        "/bin".into(),
    ];
    let output = Command::new("bash")
        .args(["-c", bash, "bash"])
        .arg(&script)
        .arg(line)
        .env("PATH", env::join_paths(path).unwrap())
        .output()
        .expect("bash is needed");
    assert!(output.status.success(), "{line}: {output:?}");
    let words = String::from_utf8(output.stdout).unwrap();
    words
        .lines()
        .map(|word| word.trim_end().to_owned())
        .collect()
}

#[test]
fn bash_completes_commands_options_and_values() {
    assert_eq!(completed("steer pol"), ["policy"]);
    assert_eq!(completed("steer policy un"), ["unset"]);
    assert_eq!(completed("steer run --str"), ["--strict"]);
    assert_eq!(
        completed("steer policy set web --otherwise "),
        ["block", "pass", "next"]
    );
    assert!(
        !completed("steer ").contains(&"generate".to_owned()),
        "hidden"
    );
}
