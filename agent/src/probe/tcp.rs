//! TCP: whether a connection comes about.

use steer_core::probe::{Host, Outcome};

use super::question::{Asker, place};

/// Connects to `host`, and closes.
pub(super) async fn ask(asker: &Asker<'_>, host: &Host, port: u16) -> Outcome {
    asker
        .reach(host, async |ip| match asker.connect(ip, port).await {
            Ok(_) => Outcome::Passed,
            Err(miss) => {
                let what = format!("TCP {}", place(host, ip, Some(port)));
                Outcome::Failed(asker.sentence(&what, miss))
            }
        })
        .await
}
