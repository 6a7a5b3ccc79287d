//! The pages for users say what the code does: every key of the files, and examples that parse.

use std::collections::BTreeSet;

use steer_core::config::keys::TABLES;
use steer_core::config::{AgentConfig, parse};
use steer_core::plan::ROUTE_PROTOCOL;
use steer_core::plan::rules::offset;

const CONFIGURATION: &str = include_str!("../../../docs/configuration.md");
const HOST: &str = include_str!("../../../docs/host.md");
const README: &str = include_str!("../../../README.md");

/// The text below the heading that is `title` as code, up to the next heading.
fn section<'a>(page: &'a str, title: &str) -> Option<&'a str> {
    let mut below = page.split("\n#").filter_map(|part| {
        let (heading, text) = part.split_once('\n')?;
        (heading.trim_start_matches(['#', ' ']) == format!("`{title}`")).then_some(text)
    });
    below.next()
}

/// The keys that a section describes: entries of its list that begin with one.
fn described(section: &str) -> BTreeSet<&str> {
    let entries = section
        .lines()
        .filter_map(|line| line.strip_prefix("- **`"));
    entries
        .filter_map(|entry| Some(entry.split_once("`**")?.0))
        .collect()
}

/// The fenced blocks of a language.
fn blocks<'a>(page: &'a str, language: &'a str) -> impl Iterator<Item = &'a str> {
    page.split("\n```")
        .skip(1)
        .step_by(2)
        .filter_map(move |block| block.strip_prefix(language)?.strip_prefix('\n'))
}

#[test]
fn every_key_that_the_parser_knows_is_described_and_no_other() {
    let (file, tables) = TABLES.split_first().unwrap();
    for table in tables {
        let section = section(CONFIGURATION, table.table);
        let section = section.unwrap_or_else(|| panic!("no section `{}`", table.table));
        let known = table.names().collect();
        assert_eq!(described(section), known, "{}", table.table);
    }
    for key in file.names() {
        let heading = format!("\n## `[{key}");
        assert!(CONFIGURATION.contains(&heading), "no section for {key}");
    }
}

/// Set to write the tables anew instead of failing.
const WRITE: &str = "STEER_WRITE_DOCS";

#[test]
fn the_tables_of_keys_are_made_of_the_schema() {
    let mut page = CONFIGURATION.to_owned();
    for table in &TABLES[1..] {
        let begin = format!("<!-- keys of {}: made from the schema -->\n", table.table);
        let end = "<!-- end of keys -->";
        let (before, rest) = page
            .split_once(&begin)
            .unwrap_or_else(|| panic!("no {begin}"));
        let (_, after) = rest.split_once(end).unwrap();
        page = format!("{before}{begin}\n{}\n{end}{after}", table.to_markdown());
    }
    if std::env::var_os(WRITE).is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        std::fs::write(path, &page).unwrap();
    } else {
        assert!(
            page == CONFIGURATION,
            "docs/configuration.md is stale: run `{WRITE}=1 cargo test -p steer-core --test docs`"
        );
    }
}

#[test]
fn every_example_of_a_file_parses() {
    for (name, page) in [("configuration.md", CONFIGURATION), ("README.md", README)] {
        let mut count = 0;
        for block in blocks(page, "toml") {
            count += 1;
            if let Err(errors) = parse(&[(name, block)]) {
                panic!("{}:\n{block}", errors[0]);
            }
        }
        assert!(count > 0, "{name} has no example");
    }
}

#[test]
fn the_defaults_of_the_agent_are_those_on_the_page() {
    let section = section(CONFIGURATION, "[agent]").unwrap();
    let agent = blocks(section, "toml").next().unwrap();
    assert_eq!(parse(&[("", agent)]).unwrap().agent, AgentConfig::default());
    let keys = TABLES.iter().find(|t| t.table == "[agent]").unwrap();
    // These have no default to write down.
    let without = ["cgroup-root", "check", "primary"];
    for key in keys.names() {
        let written = agent.lines().any(|line| line.starts_with(key));
        assert_eq!(written, !without.contains(&key), "{key}");
    }
}

#[test]
fn every_priority_is_in_the_list_of_rules() {
    let listed: BTreeSet<u32> = HOST
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" |")?.0.parse().ok())
        .collect();
    let base = AgentConfig::default().rule_base;
    let priorities = [
        offset::SPLIT,
        offset::NEVER,
        offset::SOURCE,
        offset::SOURCE_END,
        offset::OTHERS,
        offset::MARK,
        offset::DEVICE,
        offset::END,
        offset::UNMARKED,
        offset::UNMARKED_NEAR,
        offset::UNMARKED_HOST,
        offset::UNMARKED_FAR,
        offset::UNMARKED_END,
    ];
    assert_eq!(listed, priorities.map(|offset| base + offset).into());
    assert!(HOST.contains(&format!("protocol {ROUTE_PROTOCOL}")));
    let mask = format!("{:#x}", AgentConfig::default().mark_mask.bits());
    assert!(HOST.contains(&mask), "{mask}");
}
