//! Where and when it was measured.

use std::fmt;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

/// The machine and the day.
#[derive(Debug)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    date: String,
}

impl Machine {
    /// This one, today.
    pub(crate) fn read() -> Result<Self> {
        let facts = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
        let cpu = facts
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let cpu = cpu
            .and_then(|rest| rest.split_once(": "))
            .map_or("unknown CPU", |(_, name)| name);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")
            .context("read the kernel's release")?;
        let date = Command::new("date")
            .args(["-u", "+%F"])
            .output()
            .context("start date")?
            .stdout;
        Ok(Self {
            cpu: cpu.to_owned(),
            cores: std::thread::available_parallelism()
                .context("count CPUs")?
                .get(),
            // What follows the number names a build, which tells readers nothing.
            kernel: kernel
                .trim()
                .split('-')
                .next()
                .unwrap_or_default()
                .to_owned(),
            date: String::from_utf8_lossy(&date).trim().to_owned(),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            cores,
            kernel,
            date,
        } = self;
        write!(f, "{cpu}, {cores} cores, Linux {kernel}, {date}")
    }
}
