//! Paths and patterns of cgroups.

mod overlap;

use std::fmt;

use serde::{Deserialize, Serialize};

pub(crate) use self::overlap::Walk;
use crate::name::Shown;

/// A path in the cgroup tree as in `/proc/PID/cgroup` but without the leading slash, in which `*`
/// stands for any characters within a level and `**` for any number of levels: none or more between
/// levels, one or more at the end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupPattern(Box<str>);

/// Name of a systemd unit that has a cgroup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnitName(Box<str>);

/// Why a cgroup path, pattern or unit name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing left after the leading slash: the root of the tree.
    #[error("the root of the cgroup tree cannot have a policy; use `[policy.default]`")]
    Root,
    /// A level of the path is empty.
    #[error("the cgroup path {0} has an empty level")]
    EmptyLevel(Shown),
    /// A level is `.` or `..`.
    #[error("the cgroup path {0} has a level `{1}`; write the path as in /proc/PID/cgroup")]
    Dots(Shown, &'static str),
    /// `**` is mixed with other characters.
    #[error("in the cgroup path {0}, `**` does not stand for whole levels")]
    Stars(Shown),
    /// It is longer than any path.
    #[error("the cgroup path {shown} has {len} bytes, more than the limit of {limit}", limit = CgroupPattern::MAX_LEN)]
    TooLong {
        /// Its beginning.
        shown: Shown,
        /// Its length, bytes.
        len: usize,
    },
    /// It has too many levels.
    #[error("the cgroup path {0} has more than {limit} levels", limit = CgroupPattern::MAX_LEVELS)]
    TooDeep(Shown),
    /// It contains a control character.
    #[error("the cgroup path {0} contains a control character")]
    Control(Shown),
    /// Not the name of a unit with a cgroup.
    #[error("{0} is not the name of a service, scope or slice unit")]
    Unit(Shown),
}

/// What a new cgroup below some cgroup could mean for a pattern.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Nothing: the pattern cannot match there.
    #[default]
    None,
    /// A new child could match, or lead to a match.
    Child,
    /// New cgroups at any depth below could match.
    Descendants,
}

/// Where along a path a pattern matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathMatch {
    /// Bit `n`: the path's first `n + 1` levels match. Levels from 64 on never match.
    pub levels: u64,
    /// What new cgroups below the whole path could mean.
    pub reach: Reach,
}

impl CgroupPattern {
    /// Longest pattern, bytes (`PATH_MAX`).
    pub const MAX_LEN: usize = 4096;
    /// Most levels of a pattern.
    pub const MAX_LEVELS: usize = 63;

    /// Checks `text` and makes a pattern of it. One leading slash is dropped.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let path = text.strip_prefix('/').unwrap_or(text);
        if path.is_empty() {
            return Err(PatternError::Root);
        }
        if path.len() > Self::MAX_LEN {
            return Err(PatternError::TooLong {
                shown: Shown::new(text),
                len: path.len(),
            });
        }
        if path.contains(char::is_control) {
            return Err(PatternError::Control(Shown::new(text)));
        }
        for level in path.split('/') {
            match level {
                "" => return Err(PatternError::EmptyLevel(Shown::new(text))),
                "." => return Err(PatternError::Dots(Shown::new(text), ".")),
                ".." => return Err(PatternError::Dots(Shown::new(text), "..")),
                "**" => {}
                _ if level.contains("**") => return Err(PatternError::Stars(Shown::new(text))),
                _ => {}
            }
        }
        if path.split('/').count() > Self::MAX_LEVELS {
            return Err(PatternError::TooDeep(Shown::new(text)));
        }
        Ok(Self(path.into()))
    }

    /// The pattern as text, without a leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path, if this is one path without wildcards.
    pub fn exact(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(&self.0)
    }

    /// The levels before the first with a wildcard; all of them if there is none.
    pub fn literal(&self) -> &str {
        let Some(star) = self.0.find('*') else {
            return &self.0;
        };
        self.0[..star]
            .rsplit_once('/')
            .map_or("", |(above, _)| above)
    }

    /// Whether `path` as a whole matches.
    pub fn matches(&self, path: &str) -> bool {
        let levels = path.split('/').count();
        !path.is_empty() && levels <= 64 && self.along(path).levels >> (levels - 1) & 1 == 1
    }

    /// Where along `path` it matches. The empty path is the root.
    ///
    /// Runs all positions of the pattern side by side, so that no pattern takes more than its
    /// length times the path's.
    pub fn along(&self, path: &str) -> PathMatch {
        let parts: Vec<&str> = self.0.split('/').collect();
        let end = 1u64 << parts.len();
        let mut found = PathMatch::default();
        let mut at = skip_stars(&parts, 1);
        let levels = path.split('/').filter(|level| !level.is_empty());
        for (depth, level) in levels.enumerate() {
            let mut next = 0;
            for (i, part) in parts.iter().enumerate() {
                if at >> i & 1 == 0 {
                    continue;
                }
                if *part == "**" {
                    next |= 1 << i;
                    if i + 1 == parts.len() {
                        next |= end;
                    }
                } else if glob(part, level) {
                    next |= 1 << (i + 1);
                }
            }
            at = skip_stars(&parts, next);
            if at & end != 0 && depth < 64 {
                found.levels |= 1 << depth;
            }
        }
        for (i, part) in parts.iter().enumerate() {
            if at >> i & 1 == 1 {
                found.reach = found.reach.max(if *part == "**" {
                    Reach::Descendants
                } else {
                    Reach::Child
                });
            }
        }
        found
    }
}

/// Adds the positions after each `**` that is not the last part: it may stand for no level.
fn skip_stars(parts: &[&str], mut at: u64) -> u64 {
    for (i, part) in parts.iter().enumerate() {
        if at >> i & 1 == 1 && *part == "**" && i + 1 < parts.len() {
            at |= 1 << (i + 1);
        }
    }
    at
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters.
pub fn glob(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return text.ends_with(part);
        }
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    true
}

impl UnitName {
    /// Checks `text` and makes a unit name of it.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let known = [".service", ".scope", ".slice"].iter().any(|suffix| {
            text.strip_suffix(suffix)
                .is_some_and(|stem| !stem.is_empty())
        });
        let foreign = |c: char| c == '/' || c == '*' || c.is_control() || c.is_whitespace();
        if !known || text.len() > 255 || text.contains(foreign) {
            return Err(PatternError::Unit(Shown::new(text)));
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! as_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = PatternError;

            fn try_from(text: String) -> Result<Self, PatternError> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.into()
            }
        }
    };
}

as_text!(CgroupPattern);
as_text!(UnitName);

#[cfg(test)]
mod tests {
    use super::{CgroupPattern, PatternError, Reach, UnitName, glob};

    fn pattern(text: &str) -> CgroupPattern {
        CgroupPattern::new(text).unwrap()
    }

    #[test]
    fn a_star_stays_within_a_level_and_two_cross_levels() {
        assert!(pattern("a/*.service").matches("a/x.service"));
        assert!(!pattern("a/*.service").matches("a/b/x.service"));
        assert!(pattern("a/**/x").matches("a/x"));
        assert!(pattern("a/**/x").matches("a/b/c/x"));
        assert!(!pattern("a/**").matches("a"));
        assert!(pattern("a/**").matches("a/b/c"));
        assert!(pattern("**").matches("a"));
        assert!(pattern("**/x").matches("x"));
        assert!(!pattern("**/x").matches("x/y"));
        assert_eq!(pattern("a/**").along("a/b/c").levels, 0b110);
        assert!(glob("a*b*c", "a12b3bc") && !glob("a*b", "ab1") && glob("*", ""));
        assert!(!glob("ab*ba", "aba"));
    }

    #[test]
    fn new_cgroups_that_could_match_are_seen_coming() {
        let reach = |p: &str, path: &str| pattern(p).along(path).reach;
        assert_eq!(reach("a/*.scope", "a"), Reach::Child);
        assert_eq!(reach("a/*.scope", ""), Reach::Child);
        assert_eq!(reach("a/*.scope", "b"), Reach::None);
        assert_eq!(reach("a/*.scope", "a/x.scope"), Reach::None);
        assert_eq!(reach("a/**/x", "a/b"), Reach::Descendants);
        assert_eq!(reach("**/x", ""), Reach::Descendants);
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        assert!(matches!(
            CgroupPattern::new("a/../b"),
            Err(PatternError::Dots(_, ".."))
        ));
        assert!(matches!(
            CgroupPattern::new("./b"),
            Err(PatternError::Dots(_, "."))
        ));
        assert!(matches!(
            CgroupPattern::new("a//b"),
            Err(PatternError::EmptyLevel(_))
        ));
        assert!(matches!(
            CgroupPattern::new("a/"),
            Err(PatternError::EmptyLevel(_))
        ));
        assert_eq!(CgroupPattern::new("/"), Err(PatternError::Root));
        assert!(matches!(
            CgroupPattern::new("a/b**"),
            Err(PatternError::Stars(_))
        ));
        assert_eq!(pattern("/a/b").as_str(), "a/b");
        assert!(UnitName::new("x.service").is_ok());
        assert!(UnitName::new("x.timer").is_err() && UnitName::new(".service").is_err());
    }
}
