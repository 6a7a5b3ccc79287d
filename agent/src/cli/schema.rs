//! What `--json` prints, as one JSON Schema: a definition for each type, and for each command one that
//! bears its name. `docs/json.md` says what is promised of it.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::doctor::Diagnosis;
use super::explain_name::NameExplanation;
use super::policy::Removed;
use crate::api::explain::ExplanationView;
use crate::api::flows::FlowsReply;
use crate::api::methods::{Reloaded, RunReply};
use crate::api::mistake::Mistake;
use crate::api::types::{ChangeView, DomainView, PolicyView, StatusView};
use crate::daemon::DetachReport;

/// Describes what one command prints.
type Describe = fn(&mut SchemaGenerator) -> Value;

/// Each command that takes `--json`, and what it prints.
const COMMANDS: &[(&str, Describe)] = &[
    ("", of::<StatusView>),
    ("check", of::<Vec<Mistake>>),
    ("detach", of::<DetachReport>),
    ("doctor", of::<Diagnosis>),
    ("domain", of::<Vec<DomainView>>),
    ("domain list", of::<Vec<DomainView>>),
    ("domain prefer", of::<Vec<PolicyView>>),
    ("domain show", of::<DomainView>),
    ("explain", of::<ExplanationView>),
    ("explain --name", of::<NameExplanation>),
    ("flows", of::<FlowsReply>),
    ("move", of::<RunReply>),
    ("policy", of::<Vec<PolicyView>>),
    ("policy list", of::<Vec<PolicyView>>),
    ("policy set", of::<PolicyView>),
    ("policy show", of::<PolicyView>),
    ("policy unset", of::<Removed>),
    ("reload", of::<Reloaded>),
    ("status", of::<StatusView>),
    ("watch", of::<ChangeView>),
];

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

/// The schema. What the command `policy list` prints is described by `$defs`, `steer policy list`.
pub fn schema() -> Value {
    // As it is written: every field is always there.
    let mut generator = SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator();
    let mut definitions = Map::new();
    for (command, describe) in COMMANDS {
        let name = super::args::below("steer", command);
        definitions.insert(name.trim_end().to_owned(), describe(&mut generator));
    }
    definitions.extend(generator.take_definitions(true));
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What steer prints with --json",
        "$defs": definitions,
    });
    schema.sort_all_objects();
    schema
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::COMMANDS;
    use crate::cli::args;

    #[test]
    fn every_command_that_prints_json_is_described_and_no_other() {
        let takes_json = |path: &str| {
            let mut command = args::shape();
            for name in path.split_whitespace() {
                command = command.find_subcommand(name).unwrap().clone();
            }
            command.get_arguments().any(|arg| arg.get_id() == "json")
        };
        let commands: BTreeSet<String> = args::paths()
            .into_iter()
            .filter(|path| takes_json(path))
            .collect();
        // With an option it may print something else.
        let paths = COMMANDS.iter().map(|(path, _)| path.split(" --").next());
        let described: BTreeSet<String> = paths.flatten().map(str::to_owned).collect();
        assert_eq!(commands, described, "see cli/schema.rs");
    }
}
