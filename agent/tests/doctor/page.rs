use std::collections::BTreeSet;

use steer::doctor::{TABLE, troubleshooting};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/troubleshooting.md");

/// `STEER_WRITE_DOCS=1 cargo test -p steer --test doctor` writes the page anew.
#[test]
fn the_page_has_a_section_for_every_code() {
    let page = troubleshooting();
    if std::env::var_os("STEER_WRITE_DOCS").is_some() {
        std::fs::write(PATH, &page).unwrap();
    }
    assert_eq!(std::fs::read_to_string(PATH).unwrap(), page);
    for entry in TABLE {
        let heading = format!("\n### {}: {}\n", entry.code, entry.title);
        assert_eq!(page.matches(&heading).count(), 1, "{heading}");
    }
}

#[test]
fn every_code_is_written_as_it_is_read_and_stands_in_its_place() {
    let mut names = BTreeSet::new();
    for (place, entry) in TABLE.iter().enumerate() {
        let name = entry.code.to_string();
        assert_eq!(
            name.to_lowercase().parse::<steer::doctor::Code>().unwrap(),
            entry.code
        );
        assert_eq!(entry.code as usize, place);
        for text in [entry.title, entry.symptom, entry.cause, entry.mend] {
            assert!(!text.is_empty(), "{name}");
        }
        assert!(names.insert(name));
    }
    assert!("X99".parse::<steer::doctor::Code>().is_err());
}
