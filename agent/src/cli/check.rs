//! `steer check`: what is wrong in the files, and what is worth knowing of them.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use super::output::{colour, print_json, write_out};
use super::{FAILED, clean};
use crate::daemon::{Checked, check_files};
use crate::draw::draw;

pub(super) fn check(file: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let checked = check_files(file)?;
    if json {
        print_json(&checked.found)?;
    } else {
        let colour = colour(std::io::stdout().is_terminal());
        let mut text = draw(&checked.found, colour);
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        write_out(&format!("{text}{}\n", summary(&checked)))?;
    }
    let bad = checked.found.iter().any(|found| found.is_bad());
    Ok(if bad {
        FAILED.into()
    } else {
        ExitCode::SUCCESS
    })
}

/// All in one line.
fn summary(checked: &Checked) -> String {
    let count = |count: usize, one: &str, more: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        count => Some(format!("{count} {more}")),
    };
    let files = match &checked.files[..] {
        [] => return "there are no files: what is found on the host is used as it is".to_owned(),
        [one] => clean(one),
        several => format!("{} files", several.len()),
    };
    let of = |kind: &str| checked.found.iter().filter(|f| f.kind == kind).count();
    let bad = checked.found.iter().filter(|found| found.is_bad()).count();
    let said = [
        Some(count(bad, "mistake", "mistakes").unwrap_or_else(|| "no mistake".to_owned())),
        count(of("replaced"), "section replaced", "sections replaced"),
        count(of("shadowed"), "policy shadowed", "policies shadowed"),
        count(of("overlapping"), "overlap", "overlaps"),
        count(of("unreachable"), "thing unreachable", "things unreachable"),
        count(
            of("unenforceable"),
            "thing unenforceable",
            "things unenforceable",
        ),
    ];
    let mut said: Vec<String> = said.into_iter().flatten().collect();
    if !checked.complete {
        said.push("not all policies and rules were compared: there are too many".to_owned());
    }
    format!("{files}: {}", said.join(", "))
}
