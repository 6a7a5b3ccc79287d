//! What a client of DHCP and router advertisements, and a cable or a radio, do to the host: other prefixes,
//! other gateways, no address, no carrier.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::ip::{ip, ip_batch};
use crate::lab::{Attached, Lab};
use crate::uplink::Uplink;

impl Lab {
    /// Takes `uplink` into another network of the same router: prefix, host's address and gateway are others,
    /// of both families. [`Lab::uplink`] tells the new ones.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn renumber(&self, uplink: &str) -> Result<()> {
        let attached = self.attached(uplink)?;
        self.change(attached, attached.uplink().renumbered())
    }

    /// Puts another router in the place of that of `uplink`: prefix and host's address stay, the gateway has
    /// another address and another MAC address, of both families.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn change_gateway(&self, uplink: &str) -> Result<()> {
        let attached = self.attached(uplink)?;
        let next = attached.uplink().behind_next_router();
        let args = ["link", "set", next.far_end(), "address", &next.peer_mac()];
        ip(&attached.peer, &args)?;
        self.change(attached, next)
    }

    /// Takes the host's addresses on `uplink` away, of both families; the interface stays as it is.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn address_gone(&self, uplink: &str) -> Result<()> {
        let attached = self.attached(uplink)?;
        let lines: Vec<_> = attached
            .uplink()
            .nets()
            .map(|net| {
                let (address, length) = (net.address, net.length);
                format!(
                    "address delete {address}/{length} dev {}",
                    attached.interface
                )
            })
            .collect();
        ip_batch(self.host(), &lines)
    }

    /// Gives them back, with their routes.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn address_back(&self, uplink: &str) -> Result<()> {
        let attached = self.attached(uplink)?;
        let lines = attached.uplink().host_configuration(&attached.interface);
        ip_batch(self.host(), &lines)
    }

    /// Takes the carrier of every uplink away.
    ///
    /// # Errors
    /// As [`Lab::carrier_down`].
    pub fn all_down(&self) -> Result<()> {
        let mut names = self.uplink_names().into_iter();
        names.try_for_each(|uplink| self.carrier_down(uplink))
    }

    /// Gives every uplink its carrier back.
    ///
    /// # Errors
    /// As [`Lab::carrier_up`].
    pub fn all_up(&self) -> Result<()> {
        let mut names = self.uplink_names().into_iter();
        names.try_for_each(|uplink| self.carrier_up(uplink))
    }

    /// Takes the carrier of `uplink` away and gives it back, `times` times: once in each `period`, or as fast
    /// as it goes where that is too short. It has carrier in the end.
    ///
    /// # Errors
    /// As [`Lab::carrier_down`] and [`Lab::carrier_up`].
    pub fn flap(&self, uplink: &str, times: u32, period: Duration) -> Result<()> {
        let mut next = Instant::now();
        // This is what is done to the host, not a wait for what it does.
        let mut pause = || {
            next += period / 2;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        };
        for _ in 0..times {
            self.carrier_down(uplink)?;
            pause();
            self.carrier_up(uplink)?;
            pause();
        }
        Ok(())
    }

    fn change(&self, attached: &Attached, next: Uplink) -> Result<()> {
        let now = attached.uplink();
        let mut lines = now.host_removal(&attached.interface, &next);
        lines.extend(next.host_configuration(&attached.interface));
        // Of one prefix the kernel would take the later address away with the earlier one.
        ip_batch(&attached.peer, &now.peer_removal(&next))?;
        attached.become_like(next);
        attached.configure_far_end()?;
        ip_batch(self.host(), &lines)
    }
}
