//! What every command prints, as text and as JSON, compared with the files in `tests/tests/commands`.
//!
//! `STEER_WRITE_DOCS=1 cargo test -p steer-tests --test commands` writes them anew.

mod commands {
    pub(crate) mod cases;
    pub(crate) mod normal;
}

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use steer_tests::{Lab, Output};

use commands::cases;
use commands::normal::{normal, normal_json};

/// Where the expected outputs are.
fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/commands")
}

/// The schema of the docs, closed: what it does not know is no document of it.
fn schema() -> Result<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.schema.json");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let mut schema: Value = serde_json::from_str(&text)?;
    close(&mut schema);
    Ok(schema)
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.contains_key("properties") && !object.contains_key("additionalProperties") {
                object.insert("additionalProperties".to_owned(), false.into());
            }
            object.values_mut().for_each(close);
        }
        Value::Array(list) => list.iter_mut().for_each(close),
        _ => {}
    }
}

/// Every command for people, without `steer`: as the names of the manual pages have them.
fn known_commands(lab: &Lab) -> Result<BTreeSet<String>> {
    lab.steer(&["generate", "/run/assets"])?.success()?;
    lab.host().run(|| {
        let pages = fs::read_dir("/run/assets/share/man/man1").context("list the pages")?;
        let name = |page: fs::DirEntry| {
            let name = page.file_name().to_string_lossy().into_owned();
            let name = name.trim_end_matches(".1").trim_start_matches("steer");
            name.trim_start_matches('-').replace('-', " ")
        };
        Ok(pages.flatten().map(name).collect())
    })
}

/// The command that a line gives: the longest that its first words are.
fn command_of<'a>(known: &'a BTreeSet<String>, args: &[&str]) -> &'a str {
    let line = format!("{} ", args.join(" "));
    let begins = |command: &&String| line.starts_with(&format!("{command} "));
    let found = known
        .iter()
        .filter(begins)
        .max_by_key(|command| command.len());
    found.map_or("", String::as_str)
}

/// Compares a document with what the docs say that the command prints.
fn check_schema(schema: &Value, command: &str, document: &Value) -> Result<()> {
    let name = format!("steer {command}");
    let mut own = schema.clone();
    own["$ref"] = json!(format!("#/$defs/{}", name.trim_end().replace(' ', "%20")));
    let validator = jsonschema::validator_for(&own).context("the schema itself")?;
    let wrong: Vec<_> = validator
        .iter_errors(document)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    ensure!(
        wrong.is_empty(),
        "not as docs/json.schema.json says: {wrong:#?}"
    );
    Ok(())
}

/// What is kept of a command's output.
fn rendered(lab: &Lab, command: &str, output: &Output, schema: &Value) -> Result<String> {
    let line = normal(lab, &output.command);
    let (stdout, stderr) = (normal(lab, &output.stdout), normal(lab, &output.stderr));
    let mut text = format!("$ {line}\n");
    let json = output.command.contains(" --json");
    let wide = stdout.lines().find(|line| line.chars().count() > 80);
    ensure!(json || wide.is_none(), "wider than 80 columns: {wide:?}");
    if json && !output.stdout.is_empty() {
        let mut document: Value = serde_json::from_str(&output.stdout)?;
        ensure!(
            output.stdout == format!("{document:#}\n"),
            "not sorted: {}",
            output.stdout
        );
        check_schema(schema, command, &document)?;
        normal_json(&mut document);
        text.push_str(&normal(lab, &format!("{document:#}\n")));
    } else {
        text.push_str(&stdout);
    }
    if !stderr.is_empty() {
        text.push_str("--- standard error\n");
        text.push_str(&stderr);
    }
    if output.code != 0 {
        text.push_str(&format!("--- exit code {}\n", output.code));
    }
    Ok(text)
}

#[test]
fn every_command_prints_what_is_expected() -> Result<()> {
    let lab = Lab::new()?;
    let known = known_commands(&lab)?;
    let schema = schema()?;
    let write = std::env::var_os("STEER_WRITE_DOCS").is_some();
    let mut seen = BTreeSet::new();
    let mut stale = Vec::new();
    let mut shown = BTreeSet::new();
    let mut shown_json = BTreeSet::new();
    cases::play(&lab, &mut |name, args| {
        ensure!(
            seen.insert(format!("{name}.txt")),
            "two cases are named {name}"
        );
        let output = lab.steer(args)?;
        let command = command_of(&known, args);
        shown.insert(command.to_owned());
        // It prints something else with a name.
        let printed = if args.contains(&"--name") {
            format!("{command} --name")
        } else {
            command.to_owned()
        };
        let text = rendered(&lab, &printed, &output, &schema).with_context(|| name.to_owned())?;
        if output.command.contains(" --json") {
            shown_json.insert(printed);
        }
        let file = directory().join(format!("{name}.txt"));
        if write {
            fs::write(&file, &text).with_context(|| format!("write {}", file.display()))?;
        }
        let expected = fs::read_to_string(&file).unwrap_or_default();
        if expected != text {
            stale.push(format!("{name}: expected\n{expected}\nbut it is\n{text}"));
        }
        Ok(output)
    })?;
    if !stale.is_empty() {
        bail!(
            "{}\n{} differ; if that is right, run `STEER_WRITE_DOCS=1 cargo test -p steer-tests --test \
             commands` and look at the difference",
            stale.join("\n"),
            stale.len()
        );
    }

    for entry in fs::read_dir(directory())? {
        let path = entry?.path();
        let name = path
            .file_name()
            .context("a name")?
            .to_string_lossy()
            .into_owned();
        ensure!(
            !name.ends_with(".txt") || seen.contains(&name),
            "no case prints {name}"
        );
    }
    let missing: Vec<_> = known.difference(&shown).collect();
    ensure!(
        missing.is_empty(),
        "no case of {missing:?}: add one in commands/cases.rs"
    );
    let definitions = schema["$defs"].as_object().context("definitions")?;
    let json = definitions
        .keys()
        .filter_map(|name| name.strip_prefix("steer"));
    let mut json: BTreeSet<String> = json.map(|name| name.trim_start().to_owned()).collect();
    // It has no end; `failover.rs` reads what it prints.
    json.remove("watch");
    let missing: Vec<_> = json.difference(&shown_json).collect();
    ensure!(
        missing.is_empty(),
        "no case of {missing:?} with --json: add one in commands/cases.rs"
    );
    Ok(())
}

#[test]
fn what_is_not_in_the_schema_is_found() -> Result<()> {
    let schema = schema()?;
    let removed = |document: Value| check_schema(&schema, "policy unset", &document);
    removed(json!({"removed": "web", "sessions": null}))?;
    ensure!(removed(json!({"removed": 1, "sessions": null})).is_err());
    ensure!(removed(json!({})).is_err());
    ensure!(removed(json!({"removed": "web", "sessions": null, "more": 1})).is_err());
    Ok(())
}
