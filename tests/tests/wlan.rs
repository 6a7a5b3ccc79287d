//! WLANs, as the kernel's nl80211 tells of them. Few machines for tests have a radio, so this is tested in a virtual
//! one with emulated radios; what it does there is in `src/bin/guest/wlan.rs`.

use anyhow::Result;
use steer_tests::{Vm, wlan};

#[test]
fn a_wlan_is_told_by_its_name_and_its_signal() -> Result<()> {
    let vm = Vm::new()?.modules(wlan::MODULES).programs(wlan::PROGRAMS)?;
    let ended = vm.run("wlan")?;
    println!("{}\n{:.1} s", ended.printed, ended.took.as_secs_f64());
    Ok(())
}
