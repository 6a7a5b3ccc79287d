//! What checks of domains ask, and what the servers behind each uplink answer: they can be told while they
//! run, each uplink for itself.
//!
//! HTTP is served at [`HOST4`] and [`HOST6`] as it should be, DNS at every address of the peer, its gateway's
//! included. A portal answers HTTP in place of everybody, and knows who has logged in: see [`Http::Login`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use crate::lab::Lab;

/// Address of the server that answers 204 by HTTP where no portal does; nothing else asks there.
pub const HOST4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 80));
/// The same for IPv6.
pub const HOST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xfffe, 0, 0, 0, 0, 0x80));
/// Its name.
pub const HOST_NAME: &str = "host.example";
/// Address of the portal, whose pages tell and change who is logged in.
pub const PORTAL4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 81));
/// The same for IPv6.
pub const PORTAL6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xfffe, 0, 0, 0, 0, 0x81));
/// The portal's page: `GET` shows it, `POST` logs in.
pub const LOGIN: &str = "http://192.0.2.81/login";
/// Port of DNS.
pub const DNS_PORT: u16 = 53;

/// The addresses above, as peers serve them.
pub(crate) const SERVED4: &str = "192.0.2.80/31";
/// The same for IPv6.
pub(crate) const SERVED6: &str = "2001:db8:fffe::/64";

/// How HTTP is answered behind an uplink, whoever is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Http {
    /// 204 by [`HOST4`] and [`HOST6`], and what else there is by others.
    #[default]
    Right,
    /// 302 to [`LOGIN`]. What is sent to that page by `POST` logs in: all is as it should be from then on,
    /// DNS included.
    Login,
    /// 200 with a page that asks for a login, without a redirection. A login is the same.
    Page,
    /// The request is taken, and never answered.
    Silent,
    /// Something that is not HTTP.
    Garbage,
}

/// How DNS is answered behind an uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dns {
    /// [`HOST_NAME`] has [`HOST4`] and [`HOST6`]; there is no other name.
    #[default]
    Right,
    /// Every name has [`PORTAL4`] and [`PORTAL6`].
    Portal,
    /// The question is taken, and never answered.
    Silent,
    /// There is no name at all.
    NoName,
}

/// How the servers behind an uplink answer at the moment.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<(Http, Dns)>);

impl Answers {
    /// How they do.
    pub(crate) fn now(&self) -> (Http, Dns) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has them change.
    pub(crate) fn change(&self, how: impl FnOnce(&mut (Http, Dns))) {
        how(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Lab {
    /// Has HTTP behind `uplink` be answered like this.
    ///
    /// # Errors
    /// If there is no such uplink.
    pub fn serve_http(&self, uplink: &str, http: Http) -> Result<()> {
        self.answers(uplink)?.change(|(now, _)| *now = http);
        Ok(())
    }

    /// Has DNS behind `uplink` be answered like this.
    ///
    /// # Errors
    /// If there is no such uplink.
    pub fn serve_dns(&self, uplink: &str, dns: Dns) -> Result<()> {
        self.answers(uplink)?.change(|(_, now)| *now = dns);
        Ok(())
    }

    /// How HTTP and DNS are answered behind `uplink`: whether somebody has logged in.
    ///
    /// # Errors
    /// If there is no such uplink.
    pub fn served(&self, uplink: &str) -> Result<(Http, Dns)> {
        Ok(self.answers(uplink)?.now())
    }

    fn answers(&self, uplink: &str) -> Result<&Answers> {
        let attached = self.attached(uplink)?;
        Ok(self.servers[attached.server].answers())
    }
}
