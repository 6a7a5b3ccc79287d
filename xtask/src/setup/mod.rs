//! `cargo xtask setup`: finds or installs what building and testing need, and says what it does.
//!
//! Every command calls the part that it needs, so nobody has to run `setup` first. What is there is
//! found in well under a second; what is missing is installed, or is an error that names the
//! command which mends it.

mod apt;
mod cache;
mod host;
mod kernel;
mod linker;
mod toolchain;

pub(crate) use toolchain::Toolchain;

use anyhow::Result;

use crate::progress;

/// Everything: for building, testing, the demo and the bench.
pub(crate) fn run() -> Result<()> {
    for_testing()?;
    for_build()?;
    progress::step("ready");
    Ok(())
}

/// What building needs: a C linker, a Rust that compiles for BPF, and the BPF linker.
pub(crate) fn for_build() -> Result<Toolchain> {
    host::c_linker()?;
    let compiler = toolchain::Compiler::find_or_install()?;
    let linker_dir = linker::find_or_build(compiler.llvm_major())?;
    Ok(Toolchain::new(compiler, linker_dir))
}

/// What running kernel programs in network namespaces needs: root, the kernel's abilities, and the
/// programs that are steered.
pub(crate) fn for_running() -> Result<()> {
    host::root()?;
    host::kernel()?;
    host::programs(host::PROGRAMS)
}

/// What the tests need: what running needs, and virtual machines with a kernel of their own.
pub(crate) fn for_testing() -> Result<()> {
    for_running()?;
    host::programs(host::TEST_PROGRAMS)?;
    kernel::find_or_unpack()
}
