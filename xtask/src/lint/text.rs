//! Checks of single lines: every module says what it is for, and nothing names one machine.

use super::Finding;
use super::tree::{File, Tree};

/// Every Rust file opens with a `//!` line, but for integration tests, whose names are sentences.
pub(super) fn module_docs(tree: &Tree) -> Vec<Finding> {
    tree.with_ending(".rs").filter_map(module_doc).collect()
}

fn module_doc(file: &File) -> Option<Finding> {
    let is_test = file.path.starts_with("tests/tests/")
        || (file.path.contains("/tests/") && !file.path.contains("/src/"))
        || file.path.ends_with("/tests.rs");
    let opens = file.text.trim_start().starts_with("//!");
    (!is_test && !opens).then(|| Finding {
        file: file.path.clone(),
        line: 1,
        text: "the file does not open with a `//!` line: say what the module is for".to_owned(),
    })
}

/// Directories of people's homes.
const HOMES: [&str; 3] = ["/home/", "/Users/", "/root/"];
/// First labels of hosts that serve packages. A name of one belongs into the user's own
/// configuration of cargo, pip or apt.
const REGISTRY_HOSTS: [&str; 10] = [
    "artifactory",
    "crates",
    "goproxy",
    "index",
    "mirror",
    "mirrors",
    "nexus",
    "pypi",
    "registry",
    "static",
];
/// What Cargo.lock says of a crate from the registry that everyone has.
const PUBLIC_REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// No line names a home directory, the directory of this checkout, or a package registry's host.
pub(super) fn machine_names(tree: &Tree) -> Vec<Finding> {
    let root = tree.root.to_string_lossy();
    // A short path such as /src stands in many a sentence.
    let checkout = (root.matches('/').count() > 1).then_some(root.as_ref());
    tree.files
        .iter()
        .flat_map(|file| machine_names_in(file, checkout))
        .collect()
}

fn machine_names_in(file: &File, checkout: Option<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        let mut found = |text: String| {
            findings.push(Finding {
                file: file.path.clone(),
                line: number + 1,
                text,
            });
        };
        let home = HOMES.iter().find(|home| contains_path(line, home));
        let checkout = checkout.filter(|checkout| contains_path(line, checkout));
        if let Some(path) = home.copied().or(checkout) {
            found(format!(
                "`{path}` is a path of one machine: make it relative, or read it from the environment"
            ));
        }
        if let Some(host) = registry_host(line) {
            found(format!(
                "`{host}` is a package registry's host: leave it to the user's configuration"
            ));
        }
        if file.path.ends_with("Cargo.lock")
            && let Some(source) = line.trim().strip_prefix("source = ")
            && source.trim_matches('"').starts_with("registry+")
            && source.trim_matches('"') != PUBLIC_REGISTRY
        {
            found(format!(
                "the crate comes from {source}: take it from {PUBLIC_REGISTRY}"
            ));
        }
    }
    findings
}

/// Whether an absolute path that begins so stands in the line.
fn contains_path(line: &str, beginning: &str) -> bool {
    line.match_indices(beginning).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + beginning.len()..].chars().next();
        // Not the middle of a longer path, and, for a directory's name, something below it.
        let starts =
            before.is_none_or(|c| !is_path_character(c) && !matches!(c, '>' | '}' | '*' | '~'));
        let goes_on = after.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-'));
        starts && (goes_on == beginning.ends_with('/'))
    })
}

fn is_path_character(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-')
}

/// The host of a URL in the line whose first label is one of registries.
fn registry_host(line: &str) -> Option<&str> {
    line.match_indices("://").find_map(|(at, sign)| {
        let host = &line[at + sign.len()..];
        // Credentials may stand in front.
        let authority = host.split(['/', '"', ' ', ')', '>', '?']).next()?;
        let host = authority.rsplit('@').next()?;
        let (label, rest) = host.split_once('.')?;
        (REGISTRY_HOSTS.contains(&label) && !rest.is_empty()).then_some(host)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn modules_say_what_they_are_for_and_tests_need_not() {
        assert!(module_doc(&file("agent/src/lib.rs", "//! The agent.\n")).is_none());
        assert!(module_doc(&file("agent/src/lib.rs", "use std::fs;\n//! late\n")).is_some());
        assert!(module_doc(&file("tests/src/lab.rs", "use std::fs;")).is_some());
        assert!(module_doc(&file("tests/tests/strict.rs", "use std::fs;")).is_none());
        assert!(module_doc(&file("agent/core/tests/plan.rs", "use std::fs;")).is_none());
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        // Put together here, so that this file passes its own check.
        let lines = [
            ["see /home", "/jo/steer"].concat(),
            ["\"/root", "/.cargo\""].concat(),
            ["cd /srv/steer", "/agent"].concat(),
            ["cd /srv/steer", ""].concat(),
        ];
        for line in &lines {
            let found = machine_names_in(&file("README.md", line), Some("/srv/steer"));
            assert_eq!(found.len(), 1, "{line}");
        }
    }

    #[test]
    fn other_paths_are_none() {
        for line in [
            "<cgroup-root>/root/x and {home}/home/jo, ~/.cache/steer, $HOME/home/x",
            "/srv/steering /x/srv/steer/agent /root/ /home/",
            "/sys/fs/cgroup/unified/root/x",
        ] {
            let found = machine_names_in(&file("README.md", line), Some("/srv/steer"));
            assert_eq!(found, [], "{line}");
        }
    }

    #[test]
    fn hosts_of_registries_are_found() {
        let url = |host: &str| format!("see https:{}{host}/simple", "//");
        assert_eq!(
            registry_host(&url("registry.example.net")),
            Some("registry.example.net")
        );
        assert_eq!(
            registry_host(&url("me:pw@mirror.example.net")),
            Some("mirror.example.net")
        );
        assert_eq!(registry_host(&url("docs.kernel.org")), None);
        assert_eq!(registry_host("indexed://x"), None);
    }

    #[test]
    fn crates_come_from_the_public_registry() {
        let lock = |source: &str| file("Cargo.lock", &format!("source = \"{source}\"\n"));
        assert_eq!(machine_names_in(&lock(PUBLIC_REGISTRY), None), []);
        let other = lock("registry+https://example.net/crates");
        assert_eq!(machine_names_in(&other, None).len(), 1);
        let git = lock("git+https://github.com/aya-rs/aya");
        assert_eq!(machine_names_in(&git, None), []);
    }
}
