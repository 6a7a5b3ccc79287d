//! A kernel to boot: a package of Debian's, unpacked into the cache by `cargo xtask setup`.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::image::Image;

/// An unpacked kernel package, with the list of modules that depmod made.
#[derive(Debug)]
pub(super) struct Kernel {
    directory: PathBuf,
    /// As `uname -r` says it.
    release: String,
}

impl Kernel {
    /// What was unpacked for `package`: `$XDG_CACHE_HOME/steer/vm/PACKAGE`.
    ///
    /// # Errors
    /// If nothing was, with what to do.
    pub(super) fn of(package: &str) -> Result<Self> {
        let directory = cache()?.join("steer/vm").join(package);
        let modules = directory.join("lib/modules");
        let Ok(releases) = fs::read_dir(&modules) else {
            bail!(
                "no kernel for virtual machines at {}: run: cargo xtask setup",
                directory.display()
            );
        };
        let release = releases.flatten().next();
        let release = release.with_context(|| format!("{} is empty", modules.display()))?;
        Ok(Self {
            release: release.file_name().to_string_lossy().into_owned(),
            directory,
        })
    }

    /// What a machine boots.
    pub(super) fn image(&self) -> PathBuf {
        self.directory
            .join(format!("boot/vmlinuz-{}", self.release))
    }

    /// Puts modules, with all that they need, where `modprobe` finds them.
    ///
    /// # Errors
    /// If the kernel has not all of them.
    pub(super) fn install<'a, W: Write>(
        &self,
        image: &mut Image<W>,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<()> {
        let place = Path::new("lib/modules").join(&self.release);
        let from = self.directory.join(&place);
        let read = |name: &str| {
            let path = from.join(name);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let listed = read("modules.dep")?;
        let needed = Needed::find(&listed, &read("modules.builtin")?, names)?;
        for file in &needed.files {
            image.copy(&from.join(file), &place.join(file), 0o644)?;
        }
        let known = |line: &&str| needed.has(line);
        let lines = listed.lines().filter(known);
        image.text(&place.join("modules.dep"), 0o644, &joined(lines))?;
        let aliases = read("modules.alias")?;
        let lines = aliases.lines().filter(|line| {
            let module = line.rsplit(' ').next().unwrap_or_default();
            needed.names.contains(module)
        });
        image.text(&place.join("modules.alias"), 0o644, &joined(lines))
    }
}

/// Modules by their files, and their names with `_` throughout.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needed<'a> {
    files: BTreeSet<&'a str>,
    names: BTreeSet<String>,
}

impl<'a> Needed<'a> {
    /// Reads `modules.dep`, a line for each module: `FILE: FILES`, which are all that it needs.
    fn find<'b>(
        listed: &'a str,
        builtin: &str,
        names: impl IntoIterator<Item = &'b str>,
    ) -> Result<Self> {
        let mut needed = Self::default();
        for wanted in names {
            let wanted = wanted.replace('-', "_");
            let line = listed.lines().find(|line| module(first(line)) == wanted);
            match line {
                Some(line) => needed.add(line),
                None if builtin.lines().any(|file| module(file) == wanted) => {}
                None => bail!("the kernel has no module {wanted}"),
            }
        }
        Ok(needed)
    }

    fn add(&mut self, line: &'a str) {
        for file in line.split([':', ' ']).filter(|file| !file.is_empty()) {
            self.files.insert(file);
            self.names.insert(module(file));
        }
    }

    /// Whether the line of `modules.dep` is about one of them.
    fn has(&self, line: &str) -> bool {
        self.files.contains(first(line))
    }
}

/// The file that a line of `modules.dep` is about.
fn first(line: &str) -> &str {
    line.split(':').next().unwrap_or_default()
}

/// `kernel/crypto/ghash-generic.ko.xz` -> `ghash_generic`
fn module(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or_default();
    let name = name.split(".ko").next().unwrap_or_default();
    name.replace('-', "_")
}

fn joined<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Where `cargo xtask setup` keeps what it made (`xtask/src/setup/cache.rs`).
fn cache() -> Result<PathBuf> {
    let named = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = named.filter(|path| path.is_absolute());
    cache
        .or_else(|| Some(env::home_dir()?.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: set HOME")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "kernel/net/mac80211/mac80211.ko: kernel/net/wireless/cfg80211.ko\n\
                          kernel/drivers/net/mac80211_hwsim.ko: kernel/net/mac80211/mac80211.ko \
                          kernel/net/wireless/cfg80211.ko\n\
                          kernel/crypto/ghash-generic.ko.xz:\n\
                          kernel/net/wireless/cfg80211.ko:\n";

    #[test]
    fn modules_come_with_what_they_need_and_nothing_else() -> Result<()> {
        let needed = Needed::find(LISTED, "kernel/crypto/aes.ko\n", ["mac80211-hwsim", "aes"])?;
        let names: Vec<_> = needed.names.iter().map(String::as_str).collect();
        assert_eq!(names, ["cfg80211", "mac80211", "mac80211_hwsim"]);
        assert_eq!(needed.files.len(), 3);
        assert!(!needed.has("kernel/crypto/ghash-generic.ko.xz:"));
        assert!(Needed::find(LISTED, "", ["nosuch"]).is_err());
        Ok(())
    }

    #[test]
    fn modules_are_named_by_their_files() {
        assert_eq!(module("kernel/crypto/ghash-generic.ko.xz"), "ghash_generic");
        assert_eq!(module("kernel/net/wireless/cfg80211.ko"), "cfg80211");
    }
}
