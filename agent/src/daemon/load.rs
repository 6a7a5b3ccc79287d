//! Reads and checks the files: when the agent starts, and when it is told to read them again.

use std::path::{Path, PathBuf};

use steer_core::config::{self, AgentConfig, Config};
use steer_core::state::Event;
use thiserror::Error;
use tracing::{error, info, warn};

use super::{Daemon, Look, files};
use crate::api::error::ApiError;
use crate::api::methods::Reloaded;
use crate::api::mistake::{MISTAKE, Mistake, QUARANTINED};
use crate::draw::draw_first;
use crate::heap;
use crate::reconcile::chain;

/// What the files say, and what is wrong with single policies of theirs.
pub(super) struct Loaded {
    pub(super) config: Config,
    pub(super) quarantined: Vec<Mistake>,
    /// How many files there are.
    pub(super) files: usize,
}

/// The files cannot be taken.
#[derive(Debug, Error)]
pub(super) enum Error {
    /// One cannot be read.
    #[error(transparent)]
    Read(#[from] files::Error),
    /// Something is wrong in them.
    #[error(transparent)]
    Wrong(#[from] Mistakes),
}

impl Error {
    /// The error itself, for who looks for [`Mistakes`] among causes.
    pub(super) fn into_cause(self) -> anyhow::Error {
        match self {
            Self::Read(error) => error.into(),
            Self::Wrong(mistakes) => mistakes.into(),
        }
    }
}

/// What is wrong in the files, each with its place.
#[derive(Debug, Error)]
#[error("{}", one_line(.0))]
pub struct Mistakes(pub Vec<Mistake>);

fn one_line(mistakes: &[Mistake]) -> String {
    let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

/// Reads and checks the files.
///
/// # Errors
/// One cannot be read, or something is wrong that makes them bad as a whole.
pub(super) fn load(named: Option<&Path>) -> Result<Loaded, Error> {
    let texts = files::read(named)?;
    let named: Vec<(&str, &str)> = texts
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    let mistake = |kind, error| Mistake::new(kind, error, &texts);
    match config::parse(&named) {
        Ok(config) => Ok(Loaded {
            quarantined: config.mistakes().map(|e| mistake(QUARANTINED, e)).collect(),
            config,
            files: texts.len(),
        }),
        Err(errors) => {
            let mistakes = errors.iter().map(|e| mistake(MISTAKE, e)).collect();
            Err(Mistakes(mistakes).into())
        }
    }
}

/// Keys of `[agent]` that hold from the agent's start to its end, with what they say.
fn fixed(agent: &AgentConfig) -> [(&'static str, String); 4] {
    let root = agent.cgroup_root.as_deref();
    [
        ("cgroup-root", root.unwrap_or("not given").to_owned()),
        ("mark-mask", format!("{:#010x}", agent.mark_mask.bits())),
        ("table-base", agent.table_base.to_string()),
        ("rule-base", agent.rule_base.to_string()),
    ]
}

impl Daemon {
    /// Reads the files again, and takes them as the configuration; bad ones change nothing. They are in
    /// force after [`Daemon::converge`].
    pub(super) fn load_again(&mut self) -> Result<Reloaded, Error> {
        let Loaded {
            config,
            quarantined,
            files,
        } = load(self.config.as_deref())?;
        let unfit = self.needs_restart(&config);
        if !unfit.is_empty() {
            return Err(Mistakes(unfit).into());
        }
        let policies = config.policies.len() as u64;
        self.access.look_up_again(&config);
        self.fact(Event::Config(Box::new(config)));
        Ok(Reloaded {
            files: files as u64,
            policies,
            quarantined,
        })
    }

    /// What a running agent cannot take over.
    fn needs_restart(&self, config: &Config) -> Vec<Mistake> {
        let now = &self.engine.state().config.agent;
        let texts = files::read(self.config.as_deref()).unwrap_or_default();
        let pairs = fixed(now).into_iter().zip(fixed(&config.agent));
        let changed = pairs.filter(|((_, was), (_, is))| was != is);
        let mistakes = changed.map(|((key, was), _)| {
            let at = match config.agent_places.get(key) {
                Some(place) => Mistake::at(MISTAKE, place, &texts),
                None => Mistake {
                    kind: MISTAKE.to_owned(),
                    file: self.main_file().display().to_string(),
                    ..Mistake::default()
                },
            };
            Mistake {
                message: format!("`{key}` cannot be changed while the agent runs (it is {was})"),
                label: Some(format!("{was} is in force")),
                help: Some(
                    "put it back, or start the agent again: `systemctl restart steer`".to_owned(),
                ),
                ..at
            }
        });
        mistakes.collect()
    }

    pub(super) fn main_file(&self) -> PathBuf {
        let default = Path::new(files::DEFAULT_FILE);
        self.config.as_deref().unwrap_or(default).to_owned()
    }

    /// Reads the files again and brings what they say into force, as a caller asks for it.
    pub(super) async fn reload(&mut self) -> Result<Reloaded, ApiError> {
        tell_reloading();
        let result = self.reload_and_converge().await;
        heap::release();
        tell_ready();
        self.bad_files = result.as_ref().err().map(ToString::to_string);
        match &result {
            Ok(reloaded) => {
                info!(
                    files = reloaded.files,
                    policies = reloaded.policies,
                    "the files were read again"
                );
                tell_quarantined(&reloaded.quarantined);
            }
            Err(ApiError::BadFiles { reason, mistakes }) => {
                error!("{reason}\n{}", draw_first(mistakes, false));
            }
            Err(other) => error!("{other}"),
        }
        result
    }

    async fn reload_and_converge(&mut self) -> Result<Reloaded, ApiError> {
        let reloaded = self.load_again()?;
        self.converge(Look::Nothing)
            .await
            .map_err(|error| ApiError::Failed {
                reason: chain(&error),
            })?;
        Ok(reloaded)
    }
}

/// Logs what is wrong with single policies.
pub(super) fn tell_quarantined(quarantined: &[Mistake]) {
    if !quarantined.is_empty() {
        error!(
            "policies of the files are in quarantine; what the strict ones match is blocked\n{}",
            draw_first(quarantined, false)
        );
    }
}

/// systemd is told only if it asked (NOTIFY_SOCKET).
fn tell_reloading() {
    let told = sd_notify::NotifyState::monotonic_usec_now()
        .and_then(|now| sd_notify::notify(&[sd_notify::NotifyState::Reloading, now]));
    if let Err(error) = told {
        warn!("tell systemd: {error}");
    }
}

fn tell_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        warn!("tell systemd: {error}");
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match error {
            Error::Read(error) => error.into(),
            Error::Wrong(Mistakes(mut mistakes)) => {
                let reason = match mistakes.len() {
                    1 => "nothing was taken of the files: there is a mistake in them".to_owned(),
                    count => format!("nothing was taken of the files: there are {count} mistakes"),
                };
                mistakes.truncate(MOST);
                Self::BadFiles { reason, mistakes }
            }
        }
    }
}

/// Most mistakes that an answer holds.
const MOST: usize = 100;
