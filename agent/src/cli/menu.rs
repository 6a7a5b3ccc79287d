//! A choice of domains, offered on the controlling terminal: standard input may be data.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{FlushArg, tcflush};

use super::clean;
use super::output::{Cell, Look, Page};
use crate::api::types::Choice;

/// The terminal that this process is controlled by.
const TERMINAL: &str = "/dev/tty";

/// Longest line that a terminal gives.
const LINE: usize = 4096;

/// The controlling terminal, with what is offered there.
pub(super) struct Menu {
    terminal: File,
    offer: Vec<Choice>,
    /// What an empty line stands for.
    default: Option<usize>,
    /// What was typed of a line.
    typed: Vec<u8>,
}

/// What became of an offer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Picked {
    /// This domain.
    Domain(String),
    /// An empty line that stands for nothing.
    Nothing,
    /// The input has ended.
    End,
    /// The other descriptor has something to read.
    Other,
}

/// A domain that may be chosen, as it is shown.
pub(super) struct Row {
    /// The domain.
    pub(super) choice: Choice,
    /// The policies that have it now.
    pub(super) taken_by: Vec<String>,
}

impl Menu {
    /// None: there is no terminal to ask on.
    pub(super) fn open() -> Option<Self> {
        let terminal = OpenOptions::new().read(true).write(true).open(TERMINAL);
        Some(Self {
            terminal: terminal.ok()?,
            offer: Vec::new(),
            default: None,
            typed: Vec::new(),
        })
    }

    /// Shows what there is to choose from. `default`: what an empty line stands for; `empty`: what it does
    /// else.
    pub(super) fn offer(
        &mut self,
        title: &str,
        rows: Vec<Row>,
        default: Option<usize>,
        empty: &str,
    ) -> io::Result<()> {
        let mut page = Page::for_terminal(&self.terminal);
        page.line(title, Look::Heading);
        page.gap();
        let taken = rows.iter().any(|row| !row.taken_by.is_empty());
        let mut headings = vec!["#", "DOMAIN", "KIND", "COST", "METERED"];
        if taken {
            headings.push("TAKEN BY");
        }
        headings.push("STATE");
        let lines = rows.iter().enumerate().map(|(at, row)| {
            let Row { choice, taken_by } = row;
            let mut cells: Vec<Cell> = vec![
                (at + 1).to_string().into(),
                Cell::name(&choice.domain),
                choice.kind.as_str().into(),
                choice.cost.to_string().into(),
                if choice.metered { "yes" } else { "no" }.into(),
            ];
            if taken {
                cells.push(super::list(taken_by).into());
            }
            let look = if is_up(choice) { Look::Good } else { Look::Bad };
            cells.push(Cell::new(&health(choice), look));
            cells
        });
        page.table(&headings, lines.collect());
        page.gap();
        self.terminal.write_all(page.text().as_bytes())?;
        self.offer = rows.into_iter().map(|row| row.choice).collect();
        self.default = default.filter(|at| *at < self.offer.len());
        self.prompt(empty)
    }

    fn prompt(&mut self, empty: &str) -> io::Result<()> {
        let count = self.offer.len();
        let default = self.default.map_or_else(
            || format!(" ({empty})"),
            |at| format!(" [{}]", at.saturating_add(1)),
        );
        write!(self.terminal, "Number (1 to {count}) or name{default}: ")?;
        self.terminal.flush()
    }

    /// Waits for a line that names one of the domains, and asks again for any other; or until `other` can
    /// be read.
    pub(super) fn pick(
        &mut self,
        other: Option<BorrowedFd<'_>>,
        empty: &str,
    ) -> io::Result<Picked> {
        loop {
            let line = match self.line(other)? {
                Line::Typed(line) => line,
                Line::End => return Ok(Picked::End),
                Line::Other => return Ok(Picked::Other),
            };
            match meant(&self.offer, self.default, &line) {
                Some(picked) => return Ok(picked),
                None => {
                    let line = clean(line.trim());
                    writeln!(self.terminal, "There is no `{line}` to choose.")?;
                    self.prompt(empty)?;
                }
            }
        }
    }

    /// A line of the terminal, as soon as it is whole.
    fn line(&mut self, other: Option<BorrowedFd<'_>>) -> io::Result<Line> {
        loop {
            if let Some(end) = self.typed.iter().position(|&byte| byte == b'\n') {
                let rest = self.typed.split_off(end + 1);
                let line = std::mem::replace(&mut self.typed, rest);
                return Ok(Line::Typed(String::from_utf8_lossy(&line).into_owned()));
            }
            let mut ready = vec![PollFd::new(self.terminal.as_fd(), PollFlags::POLLIN)];
            ready.extend(other.map(|other| PollFd::new(other, PollFlags::POLLIN)));
            match poll(&mut ready, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other.map_err(io::Error::from)?,
            };
            let any = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
            // Who has answered elsewhere was first.
            if ready.get(1).is_some_and(any) {
                return Ok(Line::Other);
            }
            let mut buffer = [0; LINE];
            match self.terminal.read(&mut buffer) {
                Ok(0) => return Ok(Line::End),
                Ok(length) => self.typed.extend(buffer.iter().take(length)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Says something in a line of its own, and asks again.
    pub(super) fn again(&mut self, words: &str, empty: &str) -> io::Result<()> {
        writeln!(self.terminal, "{}", clean(words))?;
        self.prompt(empty)
    }

    /// Ends the line that the prompt began. What was typed there is not for who reads next.
    pub(super) fn close(mut self, words: &str) {
        // The terminal may be gone: then nobody misses this.
        let _gone = tcflush(&self.terminal, FlushArg::TCIFLUSH);
        let _gone = writeln!(self.terminal, "{}", clean(words));
    }
}

enum Line {
    Typed(String),
    End,
    Other,
}

/// What a line stands for; none: nothing that is offered.
fn meant(offer: &[Choice], default: Option<usize>, line: &str) -> Option<Picked> {
    let line = line.trim();
    let at = |at: usize| {
        let choice = offer.get(at)?;
        Some(Picked::Domain(choice.domain.clone()))
    };
    if line.is_empty() {
        return default.map_or(Some(Picked::Nothing), at);
    }
    // A name before a number: a domain may be called `1`.
    let name = offer.iter().position(|choice| choice.domain == line);
    let number = || line.parse::<usize>().ok()?.checked_sub(1);
    at(name.or_else(number)?)
}

/// A domain's state, with what is missing.
pub(super) fn health(choice: &Choice) -> String {
    if is_up(choice) {
        choice.state.clone()
    } else {
        format!("{}: {}", choice.state, choice.reason)
    }
}

/// Whether flows can be put on it.
pub(super) fn is_up(choice: &Choice) -> bool {
    choice.state == "up"
}

/// An offer in one sentence, for where there is no terminal.
pub(super) fn in_words(offer: &[Choice]) -> String {
    let words: Vec<String> = offer
        .iter()
        .map(|choice| {
            let metered = if choice.metered { ", metered" } else { "" };
            format!(
                "{} ({}, cost {}{metered}, {})",
                choice.domain,
                choice.kind,
                choice.cost,
                health(choice)
            )
        })
        .collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(domain: &str, state: &str) -> Choice {
        Choice {
            domain: domain.to_owned(),
            kind: "wlan".to_owned(),
            state: state.to_owned(),
            reason: "no carrier".to_owned(),
            cost: 5,
            metered: domain == "lte",
        }
    }

    #[test]
    fn a_line_means_a_number_or_a_name_of_the_offer() {
        let offer = [
            choice("eth0", "up"),
            choice("lte", "down"),
            choice("1", "up"),
        ];
        let domain = |name: &str| Some(Picked::Domain(name.to_owned()));
        assert_eq!(meant(&offer, None, "2\n"), domain("lte"));
        assert_eq!(meant(&offer, None, "lte\n"), domain("lte"));
        assert_eq!(meant(&offer, None, "1\n"), domain("1"), "a name first");
        assert_eq!(meant(&offer, None, "\n"), Some(Picked::Nothing));
        assert_eq!(meant(&offer, Some(1), " \n"), domain("lte"));
        for wrong in ["0", "4", "-1", "et", "99999999999999999999", "eth0 lte"] {
            assert_eq!(meant(&offer, Some(1), wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_offer_in_words_says_what_the_menu_says() {
        assert_eq!(
            in_words(&[choice("eth0", "up"), choice("lte", "down")]),
            "eth0 (wlan, cost 5, up), lte (wlan, cost 5, metered, down: no carrier)"
        );
    }
}
