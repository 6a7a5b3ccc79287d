//! The files of the configuration: which they are, and their text.

use std::fs;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The file that is read when none is named.
pub(super) const DEFAULT_FILE: &str = "/etc/steer/steer.toml";

/// Largest file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// A file of the configuration could not be read.
#[derive(Debug, Error)]
pub(super) enum Error {
    /// It exists, but cannot be read.
    #[error("read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// It is not text.
    #[error("{0} is not UTF-8 text")]
    NotText(PathBuf),
    /// It is too large.
    #[error("{0} is larger than 1 MiB: split it into drop-ins in steer.d/")]
    TooLarge(PathBuf),
    /// A drop-in could not be written.
    #[error("write {0}")]
    Write(PathBuf, #[source] io::Error),
    /// A drop-in could not be removed.
    #[error("remove {0}")]
    Remove(PathBuf, #[source] io::Error),
}

/// The main file and its drop-ins (`steer.d/*.toml` beside it), in the order in which they count.
///
/// The default main file may be missing; one that was named may not.
///
/// # Errors
/// A file cannot be read, is too large or is no text.
pub(super) fn read(named: Option<&Path>) -> Result<Vec<(String, String)>, Error> {
    let main = named.unwrap_or(Path::new(DEFAULT_FILE));
    let mut files = Vec::new();
    match read_text(main) {
        Err(Error::Read(_, e)) if named.is_none() && e.kind() == io::ErrorKind::NotFound => {}
        text => files.push((main.display().to_string(), text?)),
    }
    for path in drop_ins(main)? {
        let text = read_text(&path)?;
        files.push((path.display().to_string(), text));
    }
    Ok(files)
}

/// File and line of a section's heading, as it is usually written. The last one is the one that counts.
pub(super) fn place_of_section(texts: &[(String, String)], section: &str) -> Option<String> {
    let heading = format!("[{section}]");
    texts.iter().rev().find_map(|(file, text)| {
        let line = text
            .lines()
            .position(|line| line.split('#').next().unwrap_or_default().trim() == heading)?;
        Some(format!("{file}:{}", line + 1))
    })
}

/// Directory of the drop-ins of a main file.
pub(super) fn drop_in_directory(main: &Path) -> PathBuf {
    main.with_file_name("steer.d")
}

/// A drop-in that is about to be changed, as it was before.
pub(super) struct DropIn {
    path: PathBuf,
    before: Option<Vec<u8>>,
}

impl DropIn {
    /// Remembers what is there, if anything.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn read(path: PathBuf) -> Result<Self, Error> {
        let before = match fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::Read(path, e)),
        };
        Ok(Self { path, before })
    }

    /// Writes it anew: a reader sees the old or the new.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub(super) fn replace(&self, bytes: &[u8]) -> Result<(), Error> {
        let next = self.path.with_extension("next");
        let directory = self.path.parent().map_or(Ok(()), fs::create_dir_all);
        directory
            .and_then(|()| fs::File::create(&next))
            .and_then(|mut file| {
                file.write_all(bytes)?;
                // After a power failure the name must not stand for an empty file.
                file.sync_all()
            })
            .and_then(|()| fs::rename(&next, &self.path))
            .map_err(|e| Error::Write(self.path.clone(), e))
    }

    /// Removes it. One that is gone already is fine.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub(super) fn remove(&self) -> Result<(), Error> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::Remove(self.path.clone(), e))
            }
            _ => Ok(()),
        }
    }

    /// Makes it what it was.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub(super) fn put_back(&self) -> Result<(), Error> {
        match &self.before {
            Some(bytes) => self.replace(bytes),
            None => self.remove(),
        }
    }
}

fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, Error> {
    let directory = drop_in_directory(main);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::Read(directory, e)),
    };
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()
        .map_err(|e| Error::Read(directory, e))?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "toml"));
    paths.sort();
    Ok(paths)
}

fn read_text(path: &Path) -> Result<String, Error> {
    let failed = |e| Error::Read(path.to_owned(), e);
    let file = fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large, whatever its metadata say.
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::TooLarge(path.to_owned()));
    }
    String::from_utf8(bytes).map_err(|_| Error::NotText(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{DropIn, Error, MAX_FILE, read};

    #[test]
    fn a_drop_in_is_put_back_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("steer.d/50-x.toml");
        let made = DropIn::read(path.clone()).unwrap();
        made.replace(b"old").unwrap();
        let changed = DropIn::read(path.clone()).unwrap();
        changed.replace(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        changed.put_back().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        changed.remove().unwrap();
        changed.put_back().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        made.put_back().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn drop_ins_follow_the_main_file_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let main = directory.path().join("steer.toml");
        fs::create_dir(directory.path().join("steer.d")).unwrap();
        for (name, text) in [
            ("steer.toml", "1"),
            ("steer.d/20-b.toml", "3"),
            ("steer.d/10-a.toml", "2"),
            ("steer.d/README", "no"),
        ] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let texts: Vec<String> = read(Some(&main))
            .unwrap()
            .into_iter()
            .map(|f| f.1)
            .collect();
        assert_eq!(texts, ["1", "2", "3"]);
    }

    #[test]
    fn a_named_file_must_exist_and_keep_to_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let main = directory.path().join("steer.toml");
        assert!(matches!(read(Some(&main)), Err(Error::Read(..))));
        fs::write(&main, vec![b'#'; usize::try_from(MAX_FILE).unwrap() + 1]).unwrap();
        assert!(matches!(read(Some(&main)), Err(Error::TooLarge(_))));
        fs::write(&main, [0xff]).unwrap();
        assert!(matches!(read(Some(&main)), Err(Error::NotText(_))));
    }
}
