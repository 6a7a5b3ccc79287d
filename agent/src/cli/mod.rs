//! The command line: a file per subcommand. All but `agent`, `doctor`, `detach` and `status`
//! without an agent go by the API alone. (`menu` and `ask` are what some have in common.)

mod agent;
mod args;
mod ask;
mod check;
mod complete;
mod detach;
mod doctor;
mod domain;
mod examples;
mod explain;
mod explain_name;
mod flows;
mod generate;
mod login;
mod manual;
mod menu;
mod r#move;
mod output;
mod policy;
mod prefer;
mod reload;
mod run;
mod schema;
mod sessions;
mod status;
mod watch;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::api::client::{self, Client, PATIENCE};
use crate::api::error::ApiError;
use crate::api::methods::Method;
use crate::api::mistake::Mistake;
use crate::daemon::{self, Mistakes, Running};
use crate::draw::draw_first;
use args::{Command, DomainCommand, Output, PolicyCommand};

pub use args::{Cli, command, parse};
pub use output::clean;
pub use schema::schema;

/// How long to try again while the agent is busy.
const PERSISTENCE: Duration = Duration::from_secs(5);

/// Exit code: it failed.
const FAILED: u8 = 1;
/// Exit code: the command line is wrong.
const USAGE: u8 = 2;
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
        Some(Command::Move(args)) => {
            let json = json(&[args.output]);
            done(r#move::run(socket, args, json))
        }
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
            Some(DomainCommand::Login(args)) => return login::login(socket, args),
            Some(DomainCommand::Prefer(args)) => {
                let json = json(&[output, args.output]);
                prefer::prefer(socket, args, json)
            }
        }),
        Some(Command::Check { file, output }) => check::check(file.as_deref(), json(&[output])),
        Some(Command::Reload(output)) => done(reload::reload(socket, json(&[output]))),
        Some(Command::Explain(args)) => {
            let json = json(&[args.output]);
            done(explain::explain(socket, *args, json))
        }
        Some(Command::Flows(args)) => {
            let json = json(&[args.output]);
            done(flows::flows(socket, *args, json))
        }
        Some(Command::Watch(output)) => done(watch::watch(socket, json(&[output]))),
        Some(Command::Doctor(args)) => {
            let json = json(&[args.output]);
            doctor::doctor(socket, args, json)
        }
        Some(Command::Detach(output)) => detach::detach(socket, json(&[output])),
        Some(Command::Generate { directory }) => done(generate::generate(&directory)),
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
        if let Some(prefer::Error::NoTerminal(_)) = cause.downcast_ref() {
            return Some(USAGE);
        }
        match cause.downcast_ref::<client::Error>()? {
            client::Error::NotRunning(_) => Some(NOT_REACHABLE),
            client::Error::Api(ApiError::NoDomainFits { .. }) => Some(NO_DOMAIN_FITS),
            _ => None,
        }
    });
    code.unwrap_or(FAILED).into()
}

/// What to print of an error, without what would control a terminal.
pub fn message(error: &anyhow::Error) -> String {
    if let Some((reason, mistakes)) = mistakes(error) {
        let colour = output::colour(std::io::stderr().is_terminal());
        return format!(
            "{}\n\nsteer: {}",
            draw_first(mistakes, colour),
            clean(&reason)
        );
    }
    let words = in_own_words(error).unwrap_or_else(|| format!("{error:#}"));
    format!("steer: {}", clean(&words))
}

/// What is wrong in files, if the error is that.
fn mistakes(error: &anyhow::Error) -> Option<(String, &[Mistake])> {
    error.chain().find_map(|cause| {
        if let Some(Mistakes(mistakes)) = cause.downcast_ref() {
            let reason = match mistakes.len() {
                1 => "the files cannot be taken: there is a mistake in them".to_owned(),
                count => format!("the files cannot be taken: there are {count} mistakes in them"),
            };
            return Some((reason, mistakes.as_slice()));
        }
        match cause.downcast_ref()? {
            client::Error::Api(ApiError::BadFiles { reason, mistakes }) => {
                Some((reason.clone(), mistakes.as_slice()))
            }
            _ => None,
        }
    })
}

/// What the command knows better than the call that failed: where an agent listens that does not listen
/// at the socket, and what a parameter is called on the command line.
fn in_own_words(error: &anyhow::Error) -> Option<String> {
    let failed = error.chain().find_map(|cause| cause.downcast_ref())?;
    let words = match failed {
        client::Error::NotRunning(asked) => elsewhere(&daemon::running()?, asked),
        client::Error::Api(ApiError::InvalidArgument { field, reason }) => {
            format!("{}: {reason}", args::of_parameter(field)?)
        }
        _ => return None,
    };
    // What was not done for it.
    let first = error.chain().next();
    let context = first.is_some_and(|first| !first.is::<client::Error>());
    Some(if context {
        format!("{error}: {words}")
    } else {
        words
    })
}

/// What is to say of an agent that runs and does not listen at `asked`.
fn elsewhere(running: &Running, asked: &Path) -> String {
    let asked = std::path::absolute(asked).unwrap_or_else(|_| asked.to_owned());
    if running.socket == asked {
        return format!("{running}, which was removed: start the agent again");
    }
    let [asked, socket] = [&asked, &running.socket].map(|path| path.display());
    format!("no agent listens at {asked}: {running} (use --socket {socket})")
}

/// Calls the agent, which answers at once.
fn call<M: Method>(socket: &Path, method: &M) -> Result<M::Reply, client::Error> {
    Client::call_persistently(socket, method, Some(PATIENCE), PERSISTENCE)
}

/// A list as people read it.
fn list(items: &[String]) -> String {
    items.join(", ")
}
