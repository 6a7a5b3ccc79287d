//! The command line: a file per subcommand. All but `agent`, `detach` and `status` without an
//! agent go by the API alone.

mod agent;
mod args;
mod detach;
mod domain;
mod output;
mod policy;
mod run;
mod status;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::api::client::{self, Client, PATIENCE};
use crate::api::error::ApiError;
use crate::api::methods::Method;
use args::{Command, DomainCommand, Output, PolicyCommand};

pub use args::Cli;
pub use output::clean;

/// How long to try again while the agent is busy.
const PERSISTENCE: Duration = Duration::from_secs(5);

/// Exit code: it failed.
const FAILED: u8 = 1;
/// Exit code: the agent is not reachable.
const NOT_REACHABLE: u8 = 3;
/// Exit code: no domain fits.
const NO_DOMAIN_FITS: u8 = 4;

/// Does what the command line says.
///
/// # Errors
/// It cannot be done; [`exit_code`] tells what to exit with.
pub fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let socket = &cli.socket;
    // `-j` counts wherever it stands.
    let json = |outputs: &[Output]| cli.output.json || outputs.iter().any(|output| output.json);
    match cli.command {
        None => status::status(socket, json(&[])),
        Some(Command::Status(output)) => status::status(socket, json(&[output])),
        Some(Command::Agent(args)) => done(agent::agent(args, cli.socket)),
        Some(Command::Run(args)) => run::run(socket, args),
        Some(Command::Policy { output, command }) => done(match command {
            None => policy::list(socket, json(&[output])),
            Some(PolicyCommand::List(own)) => policy::list(socket, json(&[output, own])),
            Some(PolicyCommand::Show { name, output: own }) => {
                policy::show(socket, name, json(&[output, own]))
            }
            Some(PolicyCommand::Set(args)) => {
                let json = json(&[output, args.output]);
                policy::set(socket, *args, json)
            }
            Some(PolicyCommand::Unset {
                name,
                save,
                output: own,
            }) => policy::unset(socket, name, save, json(&[output, own])),
        }),
        Some(Command::Domain { output, command }) => done(match command {
            None => domain::list(socket, json(&[output])),
            Some(DomainCommand::List(own)) => domain::list(socket, json(&[output, own])),
            Some(DomainCommand::Show { name, output: own }) => {
                domain::show(socket, name, json(&[output, own]))
            }
        }),
        Some(Command::Detach(output)) => done(detach::detach(socket, json(&[output]))),
    }
}

fn done(result: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

/// What to exit with after an error.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let code = error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<run::Error>() {
            return Some(error.exit_code());
        }
        match cause.downcast_ref::<client::Error>()? {
            client::Error::NotRunning(_) => Some(NOT_REACHABLE),
            client::Error::Api(ApiError::NoDomainFits { .. }) => Some(NO_DOMAIN_FITS),
            _ => None,
        }
    });
    code.unwrap_or(FAILED).into()
}

/// Calls the agent, which answers at once.
fn call<M: Method>(socket: &Path, method: &M) -> Result<M::Reply, client::Error> {
    Client::call_persistently(socket, method, Some(PATIENCE), PERSISTENCE)
}

/// A list as people read it.
fn list(items: &[String]) -> String {
    items.join(", ")
}
