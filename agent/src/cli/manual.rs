//! Manual pages, one for each command, made of the command line's own shape.

use std::io;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{args, examples};

/// Exit codes, as far as all commands share them.
const EXIT_CODES: &[(&str, &str)] = &[
    ("0", "Done."),
    ("1", "Failed."),
    ("2", "The command line is wrong."),
    ("3", "The agent is not reachable."),
    ("4", "No domain fits."),
];

/// What else `run` ends with.
const EXIT_CODES_OF_RUN: &[(&str, &str)] = &[
    ("126", "COMMAND cannot be run."),
    ("127", "COMMAND is not found."),
    ("other", "COMMAND's own."),
];

/// Files that a reader may look for.
const FILES: &[(&str, &str)] = &[
    (
        "/etc/steer/steer.toml, /etc/steer/steer.d/*.toml",
        "Domains, groups and policies.",
    ),
    (
        "/run/steer/agent.sock",
        "The API, by which every command asks the agent.",
    ),
    (
        "/run/steer/",
        "What the next agent goes on from, until the next boot.",
    ),
    ("/sys/fs/bpf/steer/", "Kernel programs and maps in force."),
];

/// Environment that is looked at.
const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "NO_COLOR",
        "If set, text has no colour. Without a terminal it never has.",
    ),
    (
        "COLUMNS",
        "Width of text. Without it: the terminal's, or 80.",
    ),
    (
        "STEER_LOG",
        "What the agent logs: error, warn, info, debug, trace.",
    ),
];

/// A page: name of its file, and text.
pub(super) type Page = (String, Vec<u8>);

/// All pages.
///
/// # Errors
/// Never in practice: they are written to memory.
pub(super) fn pages() -> io::Result<Vec<Page>> {
    // `steer help` has no page of its own.
    let mut root = args::shape()
        .disable_help_subcommand(true)
        .mut_subcommands(|command| command.disable_help_subcommand(true));
    root.build();
    args::paths()
        .into_iter()
        .map(|path| page(&root, &path))
        .collect()
}

fn page(root: &Command, path: &str) -> io::Result<Page> {
    let mut names = path.split_whitespace();
    let command = names.try_fold(root, |command, name| command.find_subcommand(name));
    let command = command.unwrap_or(root).clone();
    let name = file_name(path);
    // On the first page they have a section.
    let notes = command.get_after_help().map(ToString::to_string);
    let notes = notes.filter(|_| !path.is_empty());
    // The usage names the command with spaces, the page with hyphens.
    let command = command.display_name(name.clone());
    let source = concat!("steer ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command)
        .title(&name)
        .source(source)
        .manual("steer");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if args::has_commands(path) {
        man.render_subcommands_section(&mut text)?;
    }
    let mut rest = Roff::new();
    if let Some(notes) = notes {
        rest.control("SH", ["NOTES"]);
        rest.text([roman(notes.replace('\n', " "))]);
    }
    rest.control("SH", ["EXAMPLES"]);
    for (line, about) in examples::of(path) {
        rest.control("TP", []);
        rest.text([bold(*line)]);
        rest.text([roman(*about)]);
    }
    rest.control("SH", ["EXIT STATUS"]);
    list(&mut rest, EXIT_CODES);
    if path == "run" {
        list(&mut rest, EXIT_CODES_OF_RUN);
    }
    if matches!(path, "" | "agent") {
        rest.control("SH", ["FILES"]);
        list(&mut rest, FILES);
        rest.control("SH", ["ENVIRONMENT"]);
        list(&mut rest, ENVIRONMENT);
    }
    rest.control("SH", ["SEE ALSO"]);
    rest.text([roman(see_also(path))]);
    rest.to_writer(&mut text)?;
    Ok((format!("{name}.1"), text))
}

fn list(page: &mut Roff, items: &[(&str, &str)]) {
    for (name, about) in items {
        page.control("TP", []);
        page.text([bold(*name)]);
        page.text([roman(*about)]);
    }
}

/// The pages about the command above, and those below.
fn see_also(path: &str) -> String {
    let above = path.rsplit_once(' ').map_or("", |(above, _)| above);
    let related = args::paths().into_iter().filter(|other| {
        let parent = other.rsplit_once(' ').map_or("", |(parent, _)| parent);
        other != path && (*other == above || parent == path)
    });
    let pages: Vec<String> = related
        .map(|path| format!("{}(1)", file_name(&path)))
        .collect();
    pages.join(", ")
}

fn file_name(path: &str) -> String {
    args::below("steer", path).trim_end().replace(' ', "-")
}
