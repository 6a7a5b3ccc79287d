//! Names of domains, groups and policies.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A name: 1 to [`Name::MAX_LEN`] visible ASCII characters without `,`, `/`, quotes and backslash,
/// and not beginning with `-`, so that it stands unquoted in a list, a path and a command line.
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has no characters.
    #[error("a name is empty")]
    Empty,
    /// It is too long.
    #[error("the name {shown} has {len} characters, more than the limit of {limit}", limit = Name::MAX_LEN)]
    TooLong {
        /// Its beginning.
        shown: Shown,
        /// Its length, characters.
        len: usize,
    },
    /// It contains a character that no name may contain.
    #[error(
        "the name {shown} contains {character:?}; a name is made of visible ASCII characters \
         without `,`, `/`, quotes and backslash"
    )]
    Character {
        /// Its beginning.
        shown: Shown,
        /// The first such character.
        character: char,
    },
    /// It begins with `-`.
    #[error("the name {0} begins with `-` and would be taken for an option")]
    Dash(Shown),
}

/// Foreign text made fit for a message: in backquotes, control characters escaped, cut when long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    /// Characters that are shown of a longer text.
    pub const LIMIT: usize = 40;

    /// Makes `text` fit for a message.
    pub fn new(text: &str) -> Self {
        let mut shown: String = text
            .chars()
            .take(Self::LIMIT)
            .flat_map(|c| {
                let escaped = c.is_control();
                escaped
                    .then(|| c.escape_default())
                    .into_iter()
                    .flatten()
                    .chain((!escaped).then_some(c))
            })
            .collect();
        if text.chars().nth(Self::LIMIT).is_some() {
            shown.push_str("...");
        }
        Self(shown)
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

impl Name {
    /// Longest name, characters.
    pub const MAX_LEN: usize = 64;

    /// Checks `text` and makes a name of it.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let len = text.chars().count();
        if len > Self::MAX_LEN {
            return Err(NameError::TooLong {
                shown: Shown::new(text),
                len,
            });
        }
        if let Some(character) = text
            .chars()
            .find(|c| !c.is_ascii_graphic() || matches!(c, ',' | '/' | '"' | '\'' | '\\'))
        {
            return Err(NameError::Character {
                shown: Shown::new(text),
                character,
            });
        }
        if text.starts_with('-') {
            return Err(NameError::Dash(Shown::new(text)));
        }
        Ok(Self(text.into()))
    }

    /// The name of the host's default policy.
    pub fn default_policy() -> Self {
        Self(Self::DEFAULT_POLICY.into())
    }

    /// Text of [`Name::default_policy`].
    pub const DEFAULT_POLICY: &str = "default";

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::new(&text).map_err(de::Error::custom)
    }
}

/// The name of an interface (`dev_valid_name` of the kernel), or a pattern of it.
pub(crate) fn interface_name(text: &str, pattern: bool) -> Result<String, String> {
    let foreign = |c: char| {
        c.is_whitespace() || c.is_control() || matches!(c, '/' | ':') || (!pattern && c == '*')
    };
    if text.is_empty() || text.len() > 15 || matches!(text, "." | "..") || text.contains(foreign) {
        return Err(format!(
            "{} cannot be the name of an interface",
            Shown::new(text)
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Name, NameError};

    #[test]
    fn a_name_of_300_characters_is_refused_with_the_limit() {
        let error = Name::new(&"x".repeat(300)).unwrap_err().to_string();
        assert!(error.contains("300") && error.contains("64"), "{error}");
        assert!(error.len() < 160, "{error}");
    }

    #[test]
    fn names_that_would_be_misread_are_refused() {
        assert_eq!(Name::new(""), Err(NameError::Empty));
        for text in ["a,b", "a/b", "a b", "a\"", "a'", "a\\", "ä", "a\n"] {
            assert!(
                matches!(Name::new(text), Err(NameError::Character { .. })),
                "{text:?}"
            );
        }
        assert!(matches!(Name::new("-x"), Err(NameError::Dash(_))));
        assert!(Name::new("wlan0.100@x:y_z").is_ok());
    }
}
