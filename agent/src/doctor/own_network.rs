//! A network namespace that nobody else sees, for what must be tried and leaves nothing behind.

use std::future::Future;

use nix::sched::{CloneFlags, unshare};

use super::finding::Unchecked;

/// Runs `task` on a thread of its own, in a network namespace that ends with it.
pub(super) fn run<T: Send>(task: impl Future<Output = T> + Send) -> Result<T, Unchecked> {
    let failed = |why: String| Unchecked::failed("whether the kernel takes steer's programs", why);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| failed(format!("make a network namespace: {errno}")))?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| failed(error.to_string()))?;
            Ok(runtime.block_on(task))
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(failed("the check itself failed".to_owned())))
    })
}
