//! Builds the kernel programs and leaves them in `OUT_DIR`, where the datapath module embeds them.

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

/// Names the Rust toolchain that can compile for BPF; set by `cargo xtask`.
const TOOLCHAIN_VARIABLE: &str = "STEER_BPF_TOOLCHAIN";
const DEFAULT_TOOLCHAIN: &str = "steer-bpf";

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed={TOOLCHAIN_VARIABLE}");
    println!("cargo:rerun-if-changed=../common/src");
    let toolchain =
        std::env::var(TOOLCHAIN_VARIABLE).unwrap_or_else(|_| DEFAULT_TOOLCHAIN.to_owned());
    let mut features = Vec::new();
    if std::env::var_os("CARGO_FEATURE_LOG_PROGRAMS").is_some() {
        features.push("log-programs");
    }
    aya_build::build_ebpf(
        [Package {
            name: "steer-ebpf",
            root_dir: "../ebpf",
            features: &features,
            ..Package::default()
        }],
        Toolchain::Custom(&toolchain),
    )
    .with_context(|| {
        format!(
            "build the kernel programs with toolchain `{toolchain}`: run `cargo xtask setup`, \
             which finds or installs it and bpf-linker"
        )
    })
}
