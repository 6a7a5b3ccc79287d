//! What programs rest on only grows: the JSON of `--json`, and the Varlink interface.
//!
//! `agent/tests/released` holds both as the last release had them. They are replaced when a release is
//! made, and at no other time.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod promises {
    pub(crate) mod json;
    pub(crate) mod varlink;
}

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    let file = file(path);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

#[test]
fn the_schema_in_the_docs_is_that_of_the_types() {
    let path = "../docs/json.schema.json";
    let schema = format!("{:#}\n", steer::cli::schema());
    if std::env::var_os("STEER_WRITE_DOCS").is_some() {
        fs::write(file(path), &schema).unwrap();
    }
    assert!(
        read(path) == schema,
        "docs/json.schema.json is stale: run `STEER_WRITE_DOCS=1 cargo test -p steer --test promises`"
    );
}

#[test]
fn json_only_grows() {
    let released = serde_json::from_str(&read("tests/released/json.schema.json")).unwrap();
    assert_eq!(
        promises::json::broken(&released, &steer::cli::schema()),
        [""; 0]
    );
}

#[test]
fn the_interface_only_grows() {
    let released = read("tests/released/net.steer.Agent.varlink");
    let now = read("src/api/net.steer.Agent.varlink");
    assert_eq!(promises::varlink::broken(&released, &now), [""; 0]);
}

#[test]
fn every_broken_promise_about_json_is_found() {
    let released = json!({"$defs": {
        "A": {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}},
        "B": {"oneOf": [{"const": "x"}, {"const": "y"}]},
        "C": {"type": "array", "items": {"$ref": "#/$defs/A"}},
    }});
    let changed = |pointer: &str, value: Value| {
        let mut schema = released.clone();
        *schema.pointer_mut(pointer).unwrap() = value;
        promises::json::broken(&released, &schema)
    };
    let more = json!({"a": {"type": "string"}, "b": {"type": "integer"}});
    assert_eq!(changed("/$defs/A/properties", more), [""; 0]);
    assert_eq!(
        changed(
            "/$defs/B/oneOf",
            json!([{"const": "x"}, {"const": "y"}, {"const": "z"}])
        ),
        [""; 0]
    );
    for (pointer, value) in [
        ("/$defs/A/properties", json!({})),
        ("/$defs/A/required", json!([])),
        ("/$defs/A/properties/a/type", json!("integer")),
        ("/$defs/A/properties/a/type", json!(["string", "null"])),
        ("/$defs/B/oneOf", json!([{"const": "x"}])),
        ("/$defs/C/items", json!({"type": "string"})),
        ("/$defs/C", json!({"type": "object"})),
        ("/$defs", json!({})),
    ] {
        assert!(
            !changed(pointer, value.clone()).is_empty(),
            "{pointer} {value}"
        );
    }
}

#[test]
fn every_broken_promise_about_the_interface_is_found() {
    let text = "interface a.b\n\ntype K (x, y)\n\ntype T (\n  # About.\n  a: string\n)\n\n\
                method M(p: int) -> (r: ?T)\n\nerror E (why: string)\n";
    for more in [
        ("(x, y)", "(x, y, z)"),
        ("a: string", "a: string,\n  b: int"),
        ("p: int", "p: int, q: ?string"),
        ("r: ?T", "r: ?T, s: int"),
        ("error E", "method N() -> ()\n\nerror E"),
    ] {
        let now = text.replace(more.0, more.1);
        assert_ne!(now, text, "{more:?}");
        assert_eq!(promises::varlink::broken(text, &now), [""; 0], "{more:?}");
    }
    for less in [
        ("(x, y)", "(x)"),
        ("a: string", "a: ?string"),
        ("a: string", "b: string"),
        ("p: int", "p: int, q: string"),
        ("p: int", ""),
        ("r: ?T", "r: T"),
        ("method M", "method N"),
        ("error E", "error F"),
        ("why: string", "why: int"),
        ("interface a.b", "interface a.c"),
    ] {
        let now = text.replace(less.0, less.1);
        assert_ne!(now, text, "{less:?}");
        assert!(
            !promises::varlink::broken(text, &now).is_empty(),
            "{less:?}"
        );
    }
}
