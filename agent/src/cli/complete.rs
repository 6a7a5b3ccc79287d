//! Completion on the command line: of words by the shape of the command line, of names by the agent.
//!
//! A shell calls `steer` itself with `STEER_COMPLETE` set, by a script that `steer generate` writes.

use std::path::Path;
use std::time::Duration;

use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{CompleteEnv, Shells};

use super::args;
use crate::api::SOCKET;
use crate::api::client::Client;
use crate::api::methods::{ListDomains, ListPolicies, Method};

/// Set by a shell that completes, to its name.
const VARIABLE: &str = "STEER_COMPLETE";

/// How long the agent may take: somebody has pressed a key.
const PATIENCE: Duration = Duration::from_secs(1);

/// Completes and ends the process, if a shell asks for that.
pub(super) fn answer_shell() {
    CompleteEnv::with_factory(args::command)
        .var(VARIABLE)
        .bin("steer")
        .completer("steer")
        .complete();
}

/// What a shell reads to complete `steer`.
pub(super) fn script(shell: &str) -> std::io::Result<Vec<u8>> {
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let shell = shells
        .completer(shell)
        .ok_or_else(|| std::io::Error::other(format!("no such shell: {shell}")))?;
    shell.write_registration(VARIABLE, "steer", "steer", "steer", &mut script)?;
    Ok(script)
}

/// Names of domains, with what they are; none if nobody answers.
pub(super) fn domains() -> Vec<CompletionCandidate> {
    let domains = ask(&ListDomains {}).map(|reply| reply.domains);
    let domains = domains.into_iter().flatten();
    domains
        .map(|domain| candidate(&domain.name, format!("{}, {}", domain.kind, domain.state)))
        .collect()
}

/// Names of policies, with what they want; none if nobody answers.
pub(super) fn policies() -> Vec<CompletionCandidate> {
    let policies = ask(&ListPolicies {}).map(|reply| reply.policies);
    let policies = policies.into_iter().flatten();
    policies
        .map(|policy| candidate(&policy.name, policy.use_.join(",")))
        .collect()
}

fn candidate(name: &str, about: String) -> CompletionCandidate {
    let about = Some(about).filter(|about| !about.is_empty());
    CompletionCandidate::new(name).help(about.map(Into::into))
}

fn ask<M: Method>(method: &M) -> Option<M::Reply> {
    let mut client = Client::connect(Path::new(SOCKET)).ok()?;
    client.call_within(method, Some(PATIENCE)).ok()
}
