//! `steer run`: becomes COMMAND, once the agent has put this process under a policy.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use nix::unistd::{AccessFlags, access};

use super::args::{RunArgs, time};
use super::{USAGE, ask, clean};
use crate::api::client::{Client, PATIENCE};
use crate::api::methods::{Run, RunReply};
use crate::cgroup::process;

/// How long to try again while the agent is busy: scripts start many commands at once.
const PERSISTENCE: Duration = Duration::from_secs(30);

/// Where commands are looked for if PATH is not set, as by the C library.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Longest command line that is given to the agent for display, characters.
const SHOWN: usize = 200;

/// COMMAND cannot be run.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("command not found: {0}")]
    NotFound(String),
    #[error("command not found: {0}; for a time to wait, write --wait={0}")]
    Time(String),
    #[error("not an executable file: {0}")]
    NotExecutable(String),
    #[error("cannot run {0}")]
    Exec(String, #[source] io::Error),
}

impl Error {
    /// As shells have it.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Time(_) => USAGE,
            Self::NotFound(_) => 127,
            Self::Exec(_, e) if e.kind() == ErrorKind::NotFound => 127,
            Self::NotExecutable(_) | Self::Exec(..) => 126,
        }
    }
}

pub(super) fn run(socket: &Path, args: RunArgs) -> anyhow::Result<ExitCode> {
    let Some((name, arguments)) = args.command.split_first() else {
        return Err(Error::NotFound(String::new()).into());
    };
    // Before anything is made for it.
    let program = match find(name, std::env::var_os("PATH")) {
        Err(Error::NotFound(name)) if args.wait == Some(None) && time(&name).is_ok() => {
            return Err(Error::Time(name).into());
        }
        found => found?,
    };
    let (wait_ms, patience) = match args.wait {
        // An answer takes its time.
        None if args.ask => (None, None),
        None => (None, Some(PATIENCE)),
        Some(None) => (Some(-1), None),
        Some(Some(time)) => (
            Some(i64::try_from(time.as_millis()).unwrap_or(i64::MAX)),
            time.checked_add(PATIENCE),
        ),
    };
    let run = Run {
        via: args.via,
        strict: args.strict.then_some(true),
        wait_ms,
        command: shown(&args.command),
        ask: args.ask.then_some(true),
    };
    let not_started = || format!("{} was not started", name.display());
    Client::persist(socket, PERSISTENCE, |client| {
        if args.ask {
            return ask::ask(client, socket, &run, patience);
        }
        let reply = client.call_in_parts(&run, patience, |part| tell_waiting(&part))?;
        Ok(Ok(reply))
    })
    .with_context(not_started)?
    .with_context(not_started)?;

    tell_who();
    let error = process::replace(&program, name, arguments);
    // What the agent made for this process goes with it.
    Err(Error::Exec(name.display().to_string(), error).into())
}

/// Finds the file that a command stands for, as `execvp` does.
fn find(name: &OsStr, path: Option<OsString>) -> Result<PathBuf, Error> {
    let shown = || name.display().to_string();
    if name.as_bytes().contains(&b'/') {
        let file = PathBuf::from(name);
        return match state(&file) {
            State::Executable => Ok(file),
            State::Missing => Err(Error::NotFound(shown())),
            State::Other => Err(Error::NotExecutable(shown())),
        };
    }
    let path = path.unwrap_or_else(|| DEFAULT_PATH.into());
    let mut other = false;
    if !name.is_empty() {
        for directory in std::env::split_paths(&path) {
            let file = Path::new(".").join(&directory).join(name);
            match state(&file) {
                State::Executable => return Ok(file),
                State::Missing => {}
                State::Other => other = true,
            }
        }
    }
    Err(if other {
        Error::NotExecutable(shown())
    } else {
        Error::NotFound(shown())
    })
}

enum State {
    Executable,
    Missing,
    Other,
}

fn state(file: &Path) -> State {
    match file.metadata() {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            State::Missing
        }
        Ok(about) if about.is_file() && access(file, AccessFlags::X_OK).is_ok() => {
            State::Executable
        }
        _ => State::Other,
    }
}

/// The command line as the agent shows it.
fn shown(command: &[OsString]) -> String {
    let words: Vec<String> = command
        .iter()
        .map(|word| word.display().to_string())
        .collect();
    words.join(" ").chars().take(SHOWN).collect()
}

/// Says what the command waits for.
pub(super) fn tell_waiting(part: &RunReply) {
    if let Some(reason) = &part.waits {
        eprintln!("steer: waiting: {}", clean(reason));
    }
}

/// Under sudo, COMMAND would run as another than who typed it.
fn tell_who() {
    if let Ok(user) = std::env::var("SUDO_USER") {
        let (user, me) = (clean(&user), nix::unistd::geteuid());
        let me = nix::unistd::User::from_uid(me)
            .ok()
            .flatten()
            .map_or_else(|| me.to_string(), |me| clean(&me.name));
        if me != user {
            eprintln!(
                "steer: the command runs as {me}, not as {user} (without sudo it runs as {user})"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_command_is_found_as_a_shell_finds_it() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
        for (file, mode) in [
            ("first/text", 0o644),
            ("first/both", 0o644),
            ("second/both", 0o755),
        ] {
            let file = directory.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        let path = std::env::join_paths([&first, &second]).unwrap();
        let code = |name: &OsStr| find(name, Some(path.clone())).map_err(|e| e.exit_code());
        assert_eq!(code("both".as_ref()), Ok(second.join("both")));
        assert_eq!(code("text".as_ref()), Err(126));
        assert_eq!(code("nothing".as_ref()), Err(127));
        assert_eq!(code("".as_ref()), Err(127));
        assert_eq!(code(first.join("text").as_ref()), Err(126));
        assert_eq!(code(first.as_ref()), Err(126), "a directory");
        assert_eq!(code(first.join("nothing").as_ref()), Err(127));
        assert_eq!(code(second.join("both").as_ref()), Ok(second.join("both")));
        assert!(find("sh".as_ref(), None).is_ok());
    }
}
