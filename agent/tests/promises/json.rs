//! Whether a JSON Schema of answers still says all that an earlier one did.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// What the schema `now` no longer promises that `released` did: where, and what.
pub(crate) fn broken(released: &Value, now: &Value) -> Vec<String> {
    let mut broken = Vec::new();
    compare(released, now, "", &mut broken);
    broken
}

fn compare(released: &Value, now: &Value, at: &str, broken: &mut Vec<String>) {
    let (Some(old), Some(new)) = (released.as_object(), now.as_object()) else {
        if released != now {
            broken.push(format!("{at}: {released} became {now}"));
        }
        return;
    };
    // What a value may be: a reader that knows all of it must go on knowing all of it.
    for key in ["type", "$ref", "const", "additionalProperties", "anyOf"] {
        if old.get(key) != new.get(key) {
            broken.push(format!(
                "{at}/{key}: {:?} became {:?}",
                old.get(key),
                new.get(key)
            ));
        }
    }
    for key in ["$defs", "properties"] {
        let (old, new) = (members(old, key), members(new, key));
        for (name, schema) in old {
            let at = format!("{at}/{key}/{name}");
            match new.get(name) {
                Some(now) => compare(schema, now, &at, broken),
                None => broken.push(format!("{at} is gone")),
            }
        }
    }
    // Always there, and words that have a meaning.
    for key in ["required", "enum", "oneOf"] {
        for gone in words(old, key).difference(&words(new, key)) {
            broken.push(format!("{at}/{key}: {gone} is gone"));
        }
    }
    match (old.get("items"), new.get("items")) {
        (Some(old), Some(new)) => compare(old, new, &format!("{at}/items"), broken),
        (None, None) => {}
        _ => broken.push(format!("{at}/items changed")),
    }
}

fn members<'a>(schema: &'a Map<String, Value>, key: &str) -> &'a Map<String, Value> {
    static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    schema.get(key).and_then(Value::as_object).unwrap_or(&NONE)
}

/// Elements of a list; of alternatives, the constants or what else they are, without their description.
fn words(schema: &Map<String, Value>, key: &str) -> BTreeSet<String> {
    let list = schema.get(key).and_then(Value::as_array);
    let word = |value: &Value| match value.clone() {
        Value::Object(mut object) => {
            object.remove("description");
            object.remove("type");
            Value::Object(object).to_string()
        }
        other => other.to_string(),
    };
    list.into_iter().flatten().map(word).collect()
}
