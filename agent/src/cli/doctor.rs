//! `steer doctor`: what stands in steer's way on this host. Works without an agent.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueHint};
use schemars::JsonSchema;
use serde::Serialize;

use super::FAILED;
use super::args::Output;
use super::output::{Look, Page, print_json};
use crate::doctor::{self, Code, Finding, Options, Report, Severity, Unchecked};

/// `steer doctor`
#[derive(Args, Debug)]
#[command(after_help = "\
Nothing is changed, and no agent is needed. Exit codes: 0 there is no problem (but
perhaps warnings and notes), 1 there is one.")]
pub(super) struct DoctorArgs {
    /// Explain a code instead of looking.
    #[arg(long, value_name = "CODE", conflicts_with = "config")]
    code: Option<Code>,
    /// Take this file, and steer.d/*.toml beside it, for the configuration.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    #[command(flatten)]
    pub(super) output: Output,
}

/// What `steer doctor --json` prints: what was found, or with `--code` what a code means.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Diagnosis {
    /// What was found.
    Report(Report),
    /// What a code means.
    Meaning(Meaning),
}

/// What a code means.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Meaning {
    /// The code.
    code: Code,
    /// How bad it is.
    severity: Severity,
    /// What it is, in a few words.
    title: &'static str,
    /// What one sees.
    symptom: &'static str,
    /// Why it is so.
    cause: &'static str,
    /// What to do.
    mend: &'static str,
}

pub(super) fn doctor(socket: &Path, args: DoctorArgs, json: bool) -> anyhow::Result<ExitCode> {
    if let Some(code) = args.code {
        explain(code, json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let facts = doctor::gather(&Options {
        config: args.config,
        socket: socket.to_owned(),
    });
    let report = doctor::judge(&facts.context("start the asynchronous runtime")?);
    let code = match report.summary.problems {
        0 => ExitCode::SUCCESS,
        _ => FAILED.into(),
    };
    if json {
        print_json(&Diagnosis::Report(report))?;
    } else {
        page(&report).print()?;
    }
    Ok(code)
}

fn explain(code: Code, json: bool) -> anyhow::Result<()> {
    let entry = code.entry();
    if json {
        return print_json(&Diagnosis::Meaning(Meaning {
            code,
            severity: entry.severity,
            title: entry.title,
            symptom: entry.symptom,
            cause: entry.cause,
            mend: entry.mend,
        }));
    }
    let mut page = Page::new();
    page.line(&format!("{code}: {}", entry.title), Look::Heading);
    page.gap();
    page.facts(vec![
        ("severity", entry.severity.to_string().into()),
        ("symptom", entry.symptom.into()),
        ("cause", entry.cause.into()),
        ("mend", entry.mend.into()),
    ]);
    page.print()
}

fn page(report: &Report) -> Page {
    let mut page = Page::new();
    for (severity, heading, look) in [
        (Severity::Problem, "PROBLEMS", Look::Bad),
        (Severity::Warning, "WARNINGS", Look::Warning),
        (Severity::Note, "NOTES", Look::Plain),
    ] {
        let found: Vec<&Finding> = report
            .findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .collect();
        if found.is_empty() {
            continue;
        }
        page.gap();
        page.line(heading, Look::Heading);
        for finding in found {
            page.item(finding.code.name(), &finding.text, look);
            if let Some(mend) = &finding.mend {
                page.item("", &format!("mend: {mend}"), Look::Plain);
            }
        }
    }
    if !report.unchecked.is_empty() {
        page.gap();
        page.line("NOT CHECKED", Look::Heading);
        for Unchecked { what, why } in &report.unchecked {
            page.item("-", &format!("{what}: {why}"), Look::Plain);
        }
    }
    page.gap();
    page.line(&summary(report), Look::Plain);
    page
}

fn summary(report: &Report) -> String {
    let counted = |count: usize, what: &str| match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        _ => Some(format!("{count} {what}s")),
    };
    let summary = &report.summary;
    let parts: Vec<String> = [
        counted(summary.problems, "problem"),
        counted(summary.warnings, "warning"),
        counted(summary.notes, "note"),
        counted(summary.unchecked, "check").map(|checks| format!("{checks} not made")),
    ]
    .into_iter()
    .flatten()
    .collect();
    match parts.as_slice() {
        [] => "nothing found".to_owned(),
        parts => format!(
            "{}; `steer doctor --code CODE` explains a code",
            parts.join(", ")
        ),
    }
}
