//! `steer run --ask`: which domain? Asked on the terminal, answered there or anywhere else.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use super::menu::{Menu, Picked, Row, in_words, is_up};
use super::{call, clean, run};
use crate::api::client::{self, Client};
use crate::api::methods::{Prefer, Run, RunReply};
use crate::api::types::Choice;

/// What an empty line does.
const EMPTY: &str = "Ctrl-C: none";

/// The question had no end that lets COMMAND start.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no domain was chosen")]
    NothingChosen,
    #[error("ask on the terminal")]
    Terminal(#[from] io::Error),
}

/// Makes the call, and asks while it waits for an answer.
pub(super) fn ask(
    client: &mut Client,
    socket: &Path,
    run: &Run,
    patience: Option<Duration>,
) -> Result<Result<RunReply, Error>, client::Error> {
    let mut asking = Asking {
        menu: None,
        policy: String::new(),
        run,
    };
    let answered = asking.serve(client, socket, patience);
    if let Some(menu) = asking.menu {
        menu.close(match &answered {
            Ok(Ok(_)) => "answered elsewhere",
            _ => "",
        });
    }
    answered
}

struct Asking<'a> {
    /// As long as the question is open, and there is a terminal.
    menu: Option<Menu>,
    policy: String,
    run: &'a Run,
}

impl Asking<'_> {
    fn serve(
        &mut self,
        client: &mut Client,
        socket: &Path,
        patience: Option<Duration>,
    ) -> Result<Result<RunReply, Error>, client::Error> {
        let mut parts = client.parts(self.run, patience)?;
        loop {
            if let Some(menu) = self.menu.as_mut()
                && !parts.arrived()
            {
                match menu.pick(Some(parts.as_fd()), EMPTY) {
                    Ok(Picked::Domain(domain)) => match self.answer(socket, domain)? {
                        Ok(()) => continue,
                        Err(error) => return Ok(Err(error)),
                    },
                    Ok(Picked::Nothing) => {
                        if let Err(error) = menu.again("Which one?", EMPTY) {
                            return Ok(Err(error.into()));
                        }
                        continue;
                    }
                    Ok(Picked::End) => return Ok(Err(Error::NothingChosen)),
                    Ok(Picked::Other) => {}
                    Err(error) => return Ok(Err(error.into())),
                }
            }
            let (reply, continues) = parts.receive()?;
            if !continues {
                return Ok(Ok(reply));
            }
            if let Err(error) = self.told(reply) {
                return Ok(Err(error.into()));
            }
        }
    }

    /// A part of the agent's answer has come.
    fn told(&mut self, part: RunReply) -> io::Result<()> {
        let Some(offer) = part.question else {
            if let Some(menu) = self.menu.take() {
                menu.close("answered elsewhere");
            }
            run::tell_waiting(&part);
            return Ok(());
        };
        self.policy = part.policy;
        if self.menu.is_none() {
            self.menu = Menu::open();
        }
        let Some(menu) = self.menu.as_mut() else {
            eprintln!(
                "steer: which domain? Answer by `steer domain prefer NAME --policy {}`; NAME is one of {}",
                clean(&self.policy),
                clean(&in_words(&offer))
            );
            return Ok(());
        };
        // The order is the caller's wish only where it gave one.
        let default = (!self.run.via.is_empty())
            .then(|| offer.iter().position(is_up))
            .flatten();
        let title = format!("Which domain for `{}`?", self.run.command);
        let rows = offer.into_iter().map(|choice: Choice| Row {
            choice,
            taken_by: Vec::new(),
        });
        menu.offer(&title, rows.collect(), default, EMPTY)
    }

    /// Answers by another connection: this one waits.
    fn answer(
        &mut self,
        socket: &Path,
        domain: String,
    ) -> Result<Result<(), Error>, client::Error> {
        let prefer = Prefer {
            domain: Some(domain),
            policy: vec![self.policy.clone()],
        };
        match call(socket, &prefer) {
            Ok(_) => {
                self.menu = None;
                Ok(Ok(()))
            }
            // Somebody was faster: what came of it is on its way.
            Err(client::Error::Api(error)) => {
                let Some(menu) = self.menu.as_mut() else {
                    return Ok(Ok(()));
                };
                Ok(menu
                    .again(&error.to_string(), EMPTY)
                    .map_err(Error::Terminal))
            }
            Err(error) => Err(error),
        }
    }
}
