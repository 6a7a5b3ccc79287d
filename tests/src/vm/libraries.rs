//! The shared libraries of programs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What the programs need to be loaded, the loader included.
pub(super) fn of<'a>(programs: impl Iterator<Item = &'a PathBuf>) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for program in programs {
        found.extend(of_one(program)?);
    }
    Ok(found)
}

fn of_one(program: &Path) -> Result<Vec<PathBuf>> {
    let mut command = Command::new("ldd");
    let output = command.arg(program).env("LC_ALL", "C").output();
    let output = output.context("start ldd (libc-bin)")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return listed(&printed).with_context(|| format!("ldd {}", program.display()));
    }
    if complaint.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    bail!("ldd {}: {}", program.display(), complaint.trim());
}

/// Reads `ldd`'s lines: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)`; the kernel's own library has no path.
fn listed(printed: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in printed.lines() {
        if line.ends_with("not found") {
            bail!("{}", line.trim());
        }
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        found.extend(path.map(PathBuf::from));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldds_lines() -> Result<()> {
        let printed = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                       \tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f50)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f51)\n";
        let paths = [
            "/lib/x86_64-linux-gnu/libm.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(listed(printed)?, paths.map(PathBuf::from));
        assert_eq!(listed("\tstatically linked\n")?, Vec::<PathBuf>::new());
        assert!(listed("\tlibnl-3.so.200 => not found\n").is_err());
        Ok(())
    }
}
