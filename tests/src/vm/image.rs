//! The initial file system of a virtual machine: an archive that the kernel unpacks into its memory
//! (<https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::newc::{self, ModeFileType};

/// An archive that is being written. Paths are relative to the machine's root.
pub(super) struct Image<W> {
    out: W,
    directories: BTreeSet<PathBuf>,
    /// The kernel makes links of files with one number.
    next_inode: u32,
}

impl<W: Write> Image<W> {
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            directories: BTreeSet::new(),
            next_inode: 1,
        }
    }

    /// A directory, with those that it is in. Idempotent.
    pub(super) fn directory(&mut self, path: &Path) -> Result<()> {
        let new: Vec<_> = path
            .ancestors()
            .filter(|path| !path.as_os_str().is_empty() && !self.directories.contains(*path))
            .map(Path::to_owned)
            .collect();
        for path in new.into_iter().rev() {
            self.entry(&path, ModeFileType::Directory, 0o755, 0, io::empty())?;
            self.directories.insert(path);
        }
        Ok(())
    }

    /// A file of this machine, whatever links lead to it.
    pub(super) fn copy(&mut self, from: &Path, path: &Path, mode: u32) -> Result<()> {
        let file = File::open(from).with_context(|| format!("open {}", from.display()))?;
        let size = file.metadata().map(|about| about.len());
        let size = size.with_context(|| format!("read the size of {}", from.display()))?;
        self.file(path, mode, size, file)
    }

    /// A file that says this.
    pub(super) fn text(&mut self, path: &Path, mode: u32, text: &str) -> Result<()> {
        self.file(path, mode, text.len() as u64, text.as_bytes())
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &Path, target: &Path) -> Result<()> {
        let target = target.as_os_str().as_bytes();
        self.parent(path)?;
        self.entry(
            path,
            ModeFileType::Symlink,
            0o777,
            target.len() as u64,
            target,
        )
    }

    /// Writes the end.
    pub(super) fn finish(self) -> Result<()> {
        let mut out = newc::trailer(self.out).context("end the initial file system")?;
        out.flush().context("end the initial file system")
    }

    fn file(&mut self, path: &Path, mode: u32, size: u64, content: impl Read) -> Result<()> {
        self.parent(path)?;
        self.entry(path, ModeFileType::Regular, mode, size, content)
    }

    fn parent(&mut self, path: &Path) -> Result<()> {
        path.parent()
            .map_or(Ok(()), |parent| self.directory(parent))
    }

    fn entry(
        &mut self,
        path: &Path,
        kind: ModeFileType,
        mode: u32,
        size: u64,
        mut content: impl Read,
    ) -> Result<()> {
        let name = path.to_str().context("a name that is not UTF-8")?;
        let size = u32::try_from(size).with_context(|| format!("{name} is too large"))?;
        let entry = newc::Builder::new(name)
            .ino(self.next_inode)
            .nlink(1)
            .mode(mode)
            .set_mode_file_type(kind);
        self.next_inode += 1;
        let mut writer = entry.write(&mut self.out, size);
        io::copy(&mut content, &mut writer)
            .and_then(|_| writer.finish())
            .with_context(|| format!("add {name} to the initial file system"))?;
        Ok(())
    }
}
