//! Examples of every command, for `--help` and for the manual pages.

use clap::Command;

use super::args;

/// A command line, and what it is for.
pub(super) type Example = (&'static str, &'static str);

/// Each command (without `steer`), and its examples.
const EXAMPLES: &[(&str, &[Example])] = &[
    (
        "",
        &[
            ("steer", "what is in force, and why"),
            ("steer domain list", "the ways out of this host"),
            (
                "steer run --via wlan0 -- curl example.org",
                "one command by one domain",
            ),
            (
                "steer policy set web --cgroup app.slice/browser.scope --via wlan0,eth0",
                "an application",
            ),
        ],
    ),
    (
        "agent",
        &[
            ("steer agent", "in the foreground; Ctrl-C ends it"),
            (
                "steer agent --config ./steer.toml",
                "with another file than /etc/steer/steer.toml",
            ),
        ],
    ),
    (
        "check",
        &[
            ("steer check", "what the agent would say of its files"),
            (
                "steer check ./steer.toml",
                "before it is put into its place",
            ),
        ],
    ),
    (
        "watch",
        &[
            ("steer watch", "until Ctrl-C"),
            ("steer watch --json", "for programs"),
        ],
    ),
    (
        "domain login",
        &[
            ("steer domain login wlan0", "open its page"),
            (
                "steer domain login wlan0 -- firefox --no-remote -P login",
                "in a browser of its own",
            ),
        ],
    ),
    ("reload", &[("steer reload", "after a change of the files")]),
    (
        "run",
        &[
            ("steer run --via wlan0 -- curl https://example.org", ""),
            (
                "steer run --via wlan0,wwan0 --strict --wait=30s -- ./backup.sh",
                "",
            ),
            (
                "steer run --ask -- ./upload.sh",
                "which domain is asked first",
            ),
        ],
    ),
    (
        "move",
        &[
            ("steer move 1234 --via wlan0", ""),
            ("steer move 4711 --via wlan0,wwan0 --strict", ""),
        ],
    ),
    (
        "policy",
        &[
            ("steer policy", "all policies"),
            ("steer policy show web", "one, and what it came to"),
        ],
    ),
    (
        "policy list",
        &[
            ("steer policy list", ""),
            ("steer policy list --json", "for programs"),
        ],
    ),
    ("policy show", &[("steer policy show web", "")]),
    (
        "policy set",
        &[
            (
                "steer policy set web --cgroup app.slice/web.scope --via wlan0,eth0 --strict",
                "",
            ),
            (
                "steer policy set mail --unit postfix.service --via eth0 --save",
                "",
            ),
            ("steer policy set this --pid 1234 --via wwan0", ""),
        ],
    ),
    (
        "policy unset",
        &[
            ("steer policy unset web", ""),
            ("steer policy unset mail --save", "from its file, too"),
        ],
    ),
    (
        "domain",
        &[
            ("steer domain", "all domains"),
            ("steer domain show wlan0", "one, with its mark and table"),
        ],
    ),
    (
        "domain list",
        &[
            ("steer domain list", ""),
            ("steer domain list --json", "for programs"),
        ],
    ),
    ("domain show", &[("steer domain show wlan0", "")]),
    (
        "domain prefer",
        &[
            ("steer domain prefer", "choose on the terminal"),
            (
                "steer domain prefer wlan0",
                "first for all policies that name it",
            ),
            ("steer domain prefer wwan0 --policy web,mail", ""),
            ("steer domain prefer --none", "back to the policies' order"),
        ],
    ),
    (
        "status",
        &[
            ("steer status", ""),
            ("steer status --json", "for programs"),
        ],
    ),
    (
        "flows",
        &[
            ("steer flows", "all that policies have"),
            ("steer flows --policy web --sort bytes", ""),
            ("steer flows 192.0.2.0/24 --all", "whoever talks to them"),
            ("steer flows --watch", "again each second"),
            (
                "steer flows --watch --json",
                "for programs, a line a second",
            ),
        ],
    ),
    (
        "explain",
        &[
            ("steer explain", "what is started from here"),
            (
                "steer explain --pid 1234 192.0.2.1:443",
                "a flow of a program",
            ),
            ("steer explain --unit postfix.service 2001:db8::1", ""),
            (
                "steer explain --pid 1234 --name www.example.org:443",
                "by the name servers of the domain that is chosen",
            ),
            (
                "steer explain --cgroup app.slice/browser.scope --json",
                "for programs",
            ),
        ],
    ),
    (
        "doctor",
        &[
            (
                "steer doctor",
                "as root: everything; else: what may be seen",
            ),
            ("steer doctor --code R05", "what a code means"),
        ],
    ),
    (
        "detach",
        &[("steer detach", "after `systemctl stop steer`")],
    ),
];

/// The examples of a command, by its path without `steer`.
pub(super) fn of(path: &str) -> &'static [Example] {
    let mut all = EXAMPLES.iter();
    all.find(|(command, _)| *command == path)
        .map_or(&[], |(_, examples)| examples)
}

/// The command with examples before what else its help ends with, and so each below it.
pub(super) fn add(command: Command, path: &str) -> Command {
    let names: Vec<String> = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .collect();
    let mut command = names.into_iter().fold(command, |command, name| {
        let path = args::below(path, &name);
        command.mut_subcommand(name, |sub| add(sub, &path))
    });
    let examples = of(path);
    if examples.is_empty() {
        return command;
    }
    let mut help = text(examples);
    if let Some(rest) = command.get_after_help() {
        help.push('\n');
        help.push_str(&rest.to_string());
    }
    command = command.after_help(help.trim_end().to_owned());
    command
}

/// As `--help` shows them: what they are for beside them, or above where there is no room.
fn text(examples: &[Example]) -> String {
    const ROOM: usize = 44;
    let mut text = "Examples:\n".to_owned();
    for (line, about) in examples {
        let words = if about.is_empty() {
            format!("  {line}\n")
        } else if line.len() <= ROOM {
            format!("  {line:ROOM$}  {about}\n")
        } else {
            format!("  {line}\n      {about}\n")
        };
        text.push_str(&words);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_command_has_examples_and_no_other() {
        let commands: BTreeSet<String> = args::paths().into_iter().collect();
        let examples: BTreeSet<String> = EXAMPLES
            .iter()
            .map(|(path, _)| (*path).to_owned())
            .collect();
        assert_eq!(commands, examples, "see cli/examples.rs");
        for (path, _) in EXAMPLES {
            assert!(!of(path).is_empty(), "{path}");
        }
    }

    #[test]
    fn every_example_is_understood_as_its_command() {
        for (path, examples) in EXAMPLES {
            for (line, _) in *examples {
                let found = args::command()
                    .try_get_matches_from(line.split(' '))
                    .unwrap_or_else(|error| panic!("{line}: {error}"));
                let mut matches = &found;
                let mut words = Vec::new();
                while let Some((name, below)) = matches.subcommand() {
                    words.push(name);
                    matches = below;
                }
                // A command without a subcommand means one, and may show others.
                let named = words.join(" ");
                let own = named == *path || named.starts_with(path) && args::has_commands(path);
                assert!(own, "{line} stands with {path}");
            }
        }
    }

    #[test]
    fn help_shows_the_examples_within_80_columns() {
        for path in args::paths() {
            let mut command = args::command();
            command.build();
            let mut found = &command;
            for name in path.split_whitespace() {
                found = found.find_subcommand(name).unwrap();
            }
            let help = found.clone().term_width(80).render_long_help().to_string();
            for (line, _) in of(&path) {
                assert!(help.contains(line), "{path}: {help}");
            }
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{path}: {line}");
            }
        }
    }
}
