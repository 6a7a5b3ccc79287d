//! What differs from run to run, made the same: one place for all of it.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};
use steer_tests::Lab;

/// What is replaced in text, in this order, and what by. Where it stands in a table the replacement is as
/// wide.
const PATTERNS: &[(&str, &str)] = &[
    // Times.
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "2026-01-02T03:04:05Z"),
    // The laboratory's cgroup: named after the test's process.
    (r"steer-lab-\d{7}-\d\d", "steer-lab-0000000-00"),
    // Processes.
    (r"\bpid \d+", "pid 1"),
    (r"\b(move|process) \d+", "$1 1"),
    (r"\brun-\d+-\d+", "run-1-1"),
    (r"[ \d]{6}\d steer-pr", "      1 steer-pr"),
    (r">\d+s\b", ">1s"),
    // Cgroups.
    (r"\(id \d+\)", "(id 1)"),
    // Indices of interfaces.
    (r"\b((?:eth|wlan|wwan)\d) \(\d+\)", "$1 (2)"),
    // How much there is, which differs between kernels.
    (
        r"removed \d+ attached programs, \d+ maps",
        "removed 9 attached programs, 9 maps",
    ),
    (r"removed \d+ rules", "removed 9 rules"),
    // The version of steer.
    (
        concat!("version ", env!("CARGO_PKG_VERSION")),
        "version 0.0.0",
    ),
];

static COMPILED: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let compile =
        |(pattern, to): &(&str, &'static str)| Regex::new(pattern).map(|regex| (regex, *to));
    PATTERNS
        .iter()
        .filter_map(|pattern| compile(pattern).ok())
        .collect()
});

/// The text without what differs from run to run or from machine to machine.
pub(crate) fn normal(lab: &Lab, text: &str) -> String {
    assert_eq!(COMPILED.len(), PATTERNS.len(), "a pattern is wrong");
    // Where the cgroup hierarchy is mounted.
    let mount = lab.cgroup().path().parent();
    let mount = mount.map_or_else(String::new, |path| path.display().to_string());
    let text = text.replace(&mount, "/sys/fs/cgroup");
    COMPILED.iter().fold(text, |text, (regex, to)| {
        regex.replace_all(&text, *to).into_owned()
    })
}

/// Likewise for a document, where a number does not say what it is.
pub(crate) fn normal_json(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                match key.as_str() {
                    "ifindex" if value.is_number() => *value = json!(2),
                    "cgroup_id" | "pid" | "age" if value.is_number() => *value = json!(1),
                    "id" => *value = json!("1"),
                    "version" => *value = json!("0.0.0"),
                    _ => normal_json(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(normal_json),
        _ => {}
    }
}
