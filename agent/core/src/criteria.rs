//! What a policy wants of a domain beside its name: requirements, an order of preference, and how much
//! better another domain must be before a change pays.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::name::{Name, Shown};
use crate::network::LinkKind;
use crate::plan::Family;
use crate::policy::Origin;

/// What a policy wants of its domains.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Criteria {
    /// What a domain must be.
    #[serde(skip_serializing_if = "Require::is_none")]
    pub require: Require,
    /// What makes one domain better than another, most important first. Empty: the order of `use`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefer: Vec<Criterion>,
    /// How much better another domain must be before a change pays.
    #[serde(skip_serializing_if = "is_default")]
    pub margin: Margin,
}

/// What a domain must be. What is not known of it does not meet a requirement.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Require {
    /// One of these kinds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kind: Vec<LinkKind>,
    /// At least this much, nominal or measured, bit/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_bandwidth: Option<Bandwidth>,
    /// At most this round-trip time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_latency: Option<Duration>,
    /// At most this part of what is asked without an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_loss: Option<Loss>,
    /// At most this cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cost: Option<u32>,
    /// Metered, or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metered: Option<bool>,
    /// At least this secure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security: Option<Security>,
    /// This profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Name>,
    /// An address and a route of this family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
}

/// What makes a domain better than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// The lower `cost`, then what is not metered.
    Cost,
    /// The shorter round-trip time.
    Latency,
    /// The less is lost.
    Loss,
    /// The more bits a second.
    Bandwidth,
    /// The seldomer it was lost in the last ten minutes.
    Stability,
    /// The more secure.
    Security,
    /// The lower metric of its default route.
    Metric,
    /// The network that was well most recently.
    LastGood,
    /// The network that has been known as good for longest.
    FirstGood,
}

/// How far what is sent over a domain is protected on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Security {
    /// Whoever is near can read it.
    Open,
    /// The link is protected: a wire, or encryption on the air.
    Protected,
    /// It is in an encrypted tunnel.
    Encrypted,
}

/// Bits a second.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bandwidth(pub u64);

/// A part of a whole, in thousandths.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Loss(pub u16);

/// How much better another domain must be in what is measured, in hundredths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Margin(pub u8);

impl Default for Margin {
    fn default() -> Self {
        Self(20)
    }
}

/// What a stage of selection asks beside the names in `use`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Wish {
    /// What the policy wants.
    #[serde(skip_serializing_if = "Criteria::is_none")]
    pub criteria: Criteria,
    /// A user named the domains: one behind a portal may be among them.
    #[serde(skip_serializing_if = "is_default")]
    pub by_user: bool,
    /// Where the flows go, as far as that is said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<IpNet>,
}

impl Wish {
    /// What a policy of this origin wants.
    pub fn of(criteria: &Criteria, origin: Origin) -> Self {
        Self {
            criteria: criteria.clone(),
            by_user: matches!(origin, Origin::App | Origin::User),
            to: Vec::new(),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Require {
    /// Whether nothing is required.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl Criteria {
    /// Whether nothing is asked.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl Criterion {
    /// Whether it is measured, and so is never quite the same.
    pub fn is_measured(self) -> bool {
        match self {
            Self::Latency | Self::Loss | Self::Bandwidth | Self::Stability => true,
            Self::Cost | Self::Security | Self::Metric | Self::LastGood | Self::FirstGood => false,
        }
    }
}

impl Wish {
    /// Whether what is measured of domains matters.
    pub(crate) fn is_about_measured(&self) -> bool {
        let Criteria {
            require, prefer, ..
        } = &self.criteria;
        require.max_latency.is_some()
            || require.min_bandwidth.is_some()
            || require.max_loss.is_some()
            || prefer.iter().any(|criterion| criterion.is_measured())
    }

    /// Whether nothing is asked, by nobody in particular.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cost => "cost",
            Self::Latency => "latency",
            Self::Loss => "loss",
            Self::Bandwidth => "bandwidth",
            Self::Stability => "stability",
            Self::Security => "security",
            Self::Metric => "metric",
            Self::LastGood => "last-good",
            Self::FirstGood => "first-good",
        })
    }
}

impl fmt::Display for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Protected => "protected",
            Self::Encrypted => "encrypted",
        })
    }
}

/// Decimal units, as those of links are: `50M` is 50,000,000 bit/s.
impl FromStr for Bandwidth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{} is not a bandwidth like 50M (bit/s)", Shown::new(text));
        let (digits, unit) = match text.strip_suffix(['k', 'K']) {
            Some(digits) => (digits, 1_000),
            None => match text.as_bytes().last() {
                Some(b'M') => (&text[..text.len() - 1], 1_000_000),
                Some(b'G') => (&text[..text.len() - 1], 1_000_000_000),
                _ => (text, 1),
            },
        };
        let plain = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        let number = digits.parse::<u64>().ok().filter(|_| plain);
        let bits = number.and_then(|number| number.checked_mul(unit));
        bits.map(Self).ok_or_else(error)
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
        let whole = |(unit, _): &&(u64, &str)| self.0 != 0 && self.0.is_multiple_of(*unit);
        match units.iter().find(whole) {
            Some((unit, letter)) => write!(f, "{}{letter}", self.0 / unit),
            None => self.0.fmt(f),
        }
    }
}

impl FromStr for Loss {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{} is not a part like 5% or 0.5%", Shown::new(text));
        let number = text.strip_suffix('%').ok_or_else(error)?;
        let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
            text.parse::<u16>().ok().filter(|_| plain)
        };
        let (whole, tenths) = (
            digits(whole).filter(|whole| *whole <= 100),
            digits(tenths).filter(|tenths| *tenths <= 9),
        );
        let permille = whole.zip(tenths).map(|(whole, tenths)| whole * 10 + tenths);
        permille
            .filter(|permille| *permille <= 1_000)
            .map(Self)
            .ok_or_else(error)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 10, self.0 % 10) {
            (whole, 0) => write!(f, "{whole}%"),
            (whole, tenths) => write!(f, "{whole}.{tenths}%"),
        }
    }
}

impl FromStr for Margin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').filter(|number| {
            !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
        });
        let number = number.and_then(|number| number.parse::<u8>().ok());
        number
            .filter(|number| *number <= 90)
            .map(Self)
            .ok_or_else(|| format!("{} is not a part from 0% to 90%", Shown::new(text)))
    }
}

impl fmt::Display for Margin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// Whether one of `routes` covers all of a prefix.
pub(crate) fn covers(routes: impl IntoIterator<Item = IpNet>, wanted: &IpNet) -> bool {
    routes.into_iter().any(|route| {
        let same = matches!(
            (route.addr(), wanted.addr()),
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_))
        );
        same && route.contains(wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::{Bandwidth, Loss, Margin};

    #[test]
    fn quantities_are_read_with_their_units() {
        let bandwidth = |text: &str| text.parse::<Bandwidth>().map(|b| b.0);
        assert_eq!(bandwidth("50M"), Ok(50_000_000));
        assert_eq!(bandwidth("64k"), Ok(64_000));
        assert_eq!(bandwidth("9600"), Ok(9600));
        for wrong in [
            "",
            "M",
            "-1M",
            "+1",
            "1.5M",
            "1 M",
            "50m",
            "99999999999999999999G",
        ] {
            assert!(bandwidth(wrong).is_err(), "{wrong}");
        }
        let loss = |text: &str| text.parse::<Loss>().map(|loss| loss.0);
        assert_eq!(loss("5%"), Ok(50));
        assert_eq!(loss("0.5%"), Ok(5));
        assert_eq!(loss("100%"), Ok(1000));
        for wrong in ["5", "%", "-1%", "100.1%", "0.55%", ".5%", "101%"] {
            assert!(loss(wrong).is_err(), "{wrong}");
        }
        assert_eq!("20%".parse(), Ok(Margin(20)));
        assert!("91%".parse::<Margin>().is_err());
    }

    #[test]
    fn quantities_are_written_as_they_are_read() {
        for text in ["50M", "1G", "64k", "9600", "1500k", "0"] {
            assert_eq!(text.parse::<Bandwidth>().unwrap().to_string(), text);
        }
        for text in ["5%", "0.5%", "0%", "100%"] {
            assert_eq!(text.parse::<Loss>().unwrap().to_string(), text);
        }
    }
}
