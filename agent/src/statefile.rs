//! What outlives the agent but not the boot: policies made by the API, and which numbers belong to
//! which names. One JSON file, replaced by rename, so that a reader sees the old or the new.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Directory of the state, the API's socket included.
pub const RUN_DIRECTORY: &str = "/run/steer";

/// Version of the file's content.
const VERSION: u32 = 1;

/// What went wrong with the state file.
#[derive(Debug, Error)]
pub enum Error {
    /// The file could not be read.
    #[error("read state file {0}")]
    Read(PathBuf, #[source] io::Error),
    /// The file is not a state of this version.
    #[error("state file {0} is damaged, or of another version")]
    Damaged(PathBuf, #[source] serde_json::Error),
    /// The file could not be written.
    #[error("write state file {0}")]
    Write(PathBuf, #[source] io::Error),
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    content: T,
}

/// The state file of one agent.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// The file `state.json` in `directory`.
    pub fn new(directory: &Path) -> Self {
        Self::named(directory, "state.json")
    }

    /// Another file in `directory`, which is read and replaced as this one is.
    pub fn named(directory: &Path, name: &str) -> Self {
        Self {
            path: directory.join(name),
        }
    }

    /// What was written last; `None` if nothing was.
    ///
    /// # Errors
    /// The file cannot be read, or is not valid.
    pub fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::Read(self.path.clone(), e)),
        };
        let damaged = |source| Error::Damaged(self.path.clone(), source);
        let state: Versioned<T> = serde_json::from_slice(&bytes).map_err(damaged)?;
        if state.version != VERSION {
            let words = format!("it has version {}, not {VERSION}", state.version);
            return Err(damaged(serde::de::Error::custom(words)));
        }
        Ok(Some(state.content))
    }

    /// Replaces the content. Readers see the old or the new, never a part.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn write<T: Serialize>(&self, content: &T) -> Result<(), Error> {
        let failed = |e| Error::Write(self.path.clone(), e);
        if let Some(directory) = self.path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(failed)?;
        }
        let bytes = serde_json::to_vec(&Versioned {
            version: VERSION,
            content,
        })
        .map_err(|e| failed(io::Error::other(e)))?;
        let next = self.path.with_extension("next");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&next)
            .map_err(failed)?;
        file.write_all(&bytes).map_err(failed)?;
        fs::rename(&next, &self.path).map_err(failed)
    }

    /// Removes the file. One that is gone already is fine.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn remove(&self) -> Result<(), Error> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::Write(self.path.clone(), e))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::{Error, StateFile};

    type Content = BTreeMap<String, u32>;

    #[test]
    fn what_was_written_last_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::new(&directory.path().join("run"));
        assert_eq!(file.read::<Content>().unwrap(), None);
        for value in [1, 2] {
            let content = Content::from([("wifi".to_owned(), value)]);
            file.write(&content).unwrap();
            assert_eq!(file.read::<Content>().unwrap(), Some(content));
        }
    }

    #[test]
    fn a_damaged_file_is_told_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::new(directory.path());
        for damaged in ["{\"version\":1,", "{\"version\":2,\"wifi\":1}"] {
            fs::write(directory.path().join("state.json"), damaged).unwrap();
            for _ in 0..2 {
                let error = file.read::<Content>().unwrap_err();
                assert!(matches!(error, Error::Damaged(..)), "{error}");
            }
            let kept = fs::read_to_string(directory.path().join("state.json")).unwrap();
            assert_eq!(kept, damaged);
        }
    }
}
