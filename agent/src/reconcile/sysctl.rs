//! Settings under /proc/sys that the configuration asks for, and what they were before.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A setting could not be read or written.
#[derive(Debug, Error)]
pub enum Error {
    /// Reading it failed.
    #[error("read /proc/sys/{0}")]
    Read(String, #[source] io::Error),
    /// Writing it failed.
    #[error("write {value:?} to /proc/sys/{path}")]
    Write {
        /// Path below /proc/sys.
        path: String,
        /// The value.
        value: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Settings that were changed, with the values they had.
#[derive(Debug, Default)]
pub struct Sysctls {
    originals: BTreeMap<String, String>,
}

impl Sysctls {
    /// Goes on from what an earlier agent changed.
    pub fn adopt(originals: BTreeMap<String, String>) -> Self {
        Self { originals }
    }

    /// The values that changed settings had before.
    pub fn originals(&self) -> &BTreeMap<String, String> {
        &self.originals
    }

    /// The changed settings with their values now. One that is gone with its interface is forgotten.
    pub fn current(&mut self) -> BTreeMap<String, String> {
        self.originals.retain(|path, _| file(path).exists());
        self.originals
            .keys()
            .filter_map(|path| Some((path.clone(), read(path).ok()?)))
            .collect()
    }

    /// Reads a setting that is about to be changed, unless it was before.
    ///
    /// # Errors
    /// The setting does not exist.
    pub fn remember(&mut self, path: &str) -> Result<(), Error> {
        if !self.originals.contains_key(path) {
            let value = read(path)?;
            self.originals.insert(path.to_owned(), value);
        }
        Ok(())
    }

    /// Writes a setting, and remembers what it was.
    ///
    /// # Errors
    /// The setting does not exist or refuses the value.
    pub fn set(&mut self, path: &str, value: &str) -> Result<(), Error> {
        self.remember(path)?;
        write(path, value)
    }

    /// Gives a setting its old value back. One that is gone is fine.
    ///
    /// # Errors
    /// The setting refuses the value.
    pub fn restore(&mut self, path: &str) -> Result<(), Error> {
        if let Some(old) = self.originals.get(path)
            && file(path).exists()
        {
            write(path, old)?;
        }
        self.originals.remove(path);
        Ok(())
    }
}

fn file(path: &str) -> PathBuf {
    Path::new("/proc/sys").join(path)
}

fn read(path: &str) -> Result<String, Error> {
    fs::read_to_string(file(path))
        .map(|text| text.trim_end().to_owned())
        .map_err(|e| Error::Read(path.to_owned(), e))
}

fn write(path: &str, value: &str) -> Result<(), Error> {
    fs::write(file(path), value).map_err(|source| Error::Write {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}
