//! What drivers say of interfaces in /sys/class/net.

use std::fs;
use std::path::Path;
use std::str::FromStr;

use steer_core::health::Counted;

/// Where interfaces are.
pub(super) const INTERFACES: &str = "/sys/class/net";

/// What went over an interface; nothing if it has gone.
pub(super) fn counted(interfaces: &Path, name: &str) -> Option<Counted> {
    let statistics = interfaces.join(name).join("statistics");
    Some(Counted {
        received: number(&statistics.join("rx_bytes"))?,
        sent: number(&statistics.join("tx_bytes"))?,
    })
}

/// At which rate a wired interface is connected, bit/s, if its driver says so: it is Mbit/s there, and -1 where it is not
/// known (Documentation/ABI/testing/sysfs-class-net).
pub(super) fn speed(interfaces: &Path, name: &str) -> Option<u64> {
    let megabits: i64 = number(&interfaces.join(name).join("speed"))?;
    let megabits = u64::try_from(megabits).ok().filter(|speed| *speed > 0)?;
    // 32 bits of ones is what some drivers call not known.
    let known = megabits != u64::from(u32::MAX);
    megabits.checked_mul(1_000_000).filter(|_| known)
}

fn number<T: FromStr>(file: &Path) -> Option<T> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_speed_is_told_where_the_driver_knows_one() {
        let interfaces = tempfile::tempdir().expect("a directory");
        let eth0 = interfaces.path().join("eth0");
        fs::create_dir(&eth0).expect("an interface");
        let of = |text: &str| {
            fs::write(eth0.join("speed"), text).expect("a file");
            speed(interfaces.path(), "eth0")
        };
        assert_eq!(of("1000\n"), Some(1_000_000_000));
        for unknown in ["-1\n", "0\n", "4294967295\n", "\n", "9223372036854775807\n"] {
            assert_eq!(of(unknown), None, "{unknown}");
        }
        assert_eq!(speed(interfaces.path(), "eth1"), None);
    }

    #[test]
    fn what_went_over_an_interface_is_counted_while_it_is_there() {
        let here = Path::new(INTERFACES);
        assert!(counted(here, "lo").is_some());
        assert_eq!(counted(here, "none-such"), None);
    }
}
