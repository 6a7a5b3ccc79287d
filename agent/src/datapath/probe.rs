//! What this kernel can have, found by doing: every program is loaded and dropped again. Nothing is
//! pinned; what must be attached is attached in the calling thread's network namespace, which the
//! caller made for it.

use std::{error::Error as _, io, os::fd::AsFd as _};

use aya::programs::ProgramError;
use steer_common::MarkMask;

use super::{attachment::Side, error::Error, program, sys};

/// The loopback interface of every network namespace.
const LOOPBACK: u32 = 1;

/// What came of loading the programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Programs that the kernel refused.
    pub refused: Vec<Refused>,
    /// Whether packet programs can be attached by tcx (Linux 6.6).
    pub tcx: bool,
}

/// A program that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The program.
    pub program: String,
    /// Steer does its work without it.
    pub optional: bool,
    /// The kernel's words, and the last of the verifier's.
    pub why: String,
}

/// Loads every program, and attaches the guard to the loopback interface of the calling thread's network
/// namespace, which is to be one that nobody else uses.
///
/// # Errors
/// The maps or the kernel's types are not to be had: nothing was loaded. The flag says whether
/// it was for want of a permission.
pub fn probe(mask: MarkMask) -> Result<Loaded, (bool, Error)> {
    let tried = program::try_each(mask).map_err(|error| (is_permission(&error), error))?;
    let mut loaded = Loaded::default();
    for tried in tried {
        match tried.result {
            Ok(program) if tried.name == program::GUARD => {
                let attach_type = Side::Guard.attach_type();
                // The link ends with its descriptor.
                loaded.tcx = sys::link_tcx(program.as_fd(), LOOPBACK, attach_type).is_ok();
            }
            Ok(_) => {}
            Err(error) => loaded.refused.push(Refused {
                program: tried.name.to_owned(),
                optional: tried.optional,
                why: words(&error),
            }),
        }
    }
    Ok(loaded)
}

/// The error without the hundreds of lines that a verifier may write.
fn words(error: &ProgramError) -> String {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return error.to_string();
    };
    let log = verifier_log.to_string();
    // The last line counts what was looked at; the one before it says what was wrong.
    let said = log
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with("processed "));
    match said {
        Some(said) => format!("{io_error}: {said}"),
        None => io_error.to_string(),
    }
}

fn is_permission(error: &Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            return true;
        }
        cause = error.source();
    }
    false
}
