//! Whether two patterns can match one path, and whether one matches all that another does: walks along
//! both at once, level by level.

use std::collections::{BTreeSet, VecDeque};

use super::{CgroupPattern, glob};
use crate::policy::Match;

/// Longest name of a directory, bytes.
const NAME_MAX: usize = 255;

/// Most levels of a path at which patterns match.
const MAX_LEVELS: usize = 64;

/// Most states that are looked at to tell whether one pattern holds all of another.
const MAX_STATES: usize = 4096;

/// A step of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part<'a> {
    /// One level, in which `*` stands for any characters.
    Level(&'a str),
    /// Any number of levels, none too.
    Any,
}

/// A match as steps from the root down.
#[derive(Clone, Debug)]
pub(crate) struct Walk<'a>(Vec<Part<'a>>);

impl<'a> Walk<'a> {
    /// The steps of a match; `None` for one by id, which has no path.
    pub(crate) fn of(wanted: &'a Match) -> Option<Self> {
        match wanted {
            Match::Cgroup(pattern) => Some(Self::of_pattern(pattern)),
            Match::Unit(unit) => Some(Self(vec![Part::Any, Part::Level(unit.as_str())])),
            Match::CgroupId(_) => None,
        }
    }

    fn of_pattern(pattern: &'a CgroupPattern) -> Self {
        let mut parts: Vec<Part<'a>> = pattern
            .as_str()
            .split('/')
            .map(|part| match part {
                "**" => Part::Any,
                level => Part::Level(level),
            })
            .collect();
        // At the end it stands for one level or more.
        if parts.last() == Some(&Part::Any) {
            parts.insert(parts.len() - 1, Part::Level("*"));
        }
        Self(parts)
    }

    /// A path without wildcards.
    pub(crate) fn path(path: &'a str) -> Self {
        let levels = path.split('/').filter(|level| !level.is_empty());
        Self(levels.map(Part::Level).collect())
    }

    /// What it matches, and all below.
    pub(crate) fn and_below(&self) -> Self {
        let mut parts = self.0.clone();
        parts.push(Part::Any);
        Self(parts)
    }

    /// What is below what it matches.
    pub(crate) fn below(&self) -> Self {
        let mut parts = self.0.clone();
        parts.extend([Part::Level("*"), Part::Any]);
        Self(parts)
    }

    /// A path that both match, one of the shortest; `None` if there is none that can exist.
    pub(crate) fn meet(&self, other: &Self) -> Option<String> {
        let (a, b) = (&self.0, &other.0);
        let mut seen = BTreeSet::new();
        // Steps that take no level go before those that do, so that the first path found is a shortest.
        let mut queue = VecDeque::from([(0, 0, Vec::<String>::new())]);
        while let Some((i, j, path)) = queue.pop_front() {
            if !seen.insert((i, j)) || path.len() > MAX_LEVELS {
                continue;
            }
            match (a.get(i), b.get(j)) {
                (None, None) if !path.is_empty() => return Some(path.join("/")),
                (None, None) => {}
                (Some(Part::Any), next) => {
                    queue.push_front((i + 1, j, path.clone()));
                    if let Some(Part::Level(level)) = next {
                        queue.push_back((i, j + 1, with(path, example(level)?)));
                    } else if next == Some(&Part::Any) {
                        queue.push_front((i, j + 1, path));
                    }
                }
                (next, Some(Part::Any)) => {
                    queue.push_front((i, j + 1, path.clone()));
                    if let Some(Part::Level(level)) = next {
                        queue.push_back((i + 1, j, with(path, example(level)?)));
                    }
                }
                (Some(Part::Level(one)), Some(Part::Level(two))) => {
                    if let Some(level) = meet_level(one, two) {
                        queue.push_back((i + 1, j + 1, with(path, level)));
                    }
                }
                (None, Some(Part::Level(_))) | (Some(Part::Level(_)), None) => {}
            }
        }
        None
    }

    /// Whether it surely matches all that `inner` does. What is not sure is not said.
    pub(crate) fn holds(&self, inner: &Self) -> bool {
        let mut seen = BTreeSet::new();
        let mut states = vec![(0, self.skip(BTreeSet::from([0])))];
        while let Some((at, positions)) = states.pop() {
            if positions.is_empty() || seen.len() > MAX_STATES {
                return false;
            }
            if !seen.insert((at, positions.clone())) {
                continue;
            }
            match inner.0.get(at) {
                None if positions.contains(&self.0.len()) => {}
                None => return false,
                Some(Part::Level(level)) => states.push((at + 1, self.step(&positions, level))),
                Some(Part::Any) => {
                    states.push((at, self.step(&positions, "*")));
                    states.push((at + 1, positions));
                }
            }
        }
        true
    }

    /// Where it surely is after a level.
    fn step(&self, positions: &BTreeSet<usize>, level: &str) -> BTreeSet<usize> {
        let next = positions.iter().filter_map(|&at| match self.0.get(at)? {
            Part::Any => Some(at),
            // A star of `level` stands for any characters, and only a star holds these.
            Part::Level(wanted) => glob(wanted, level).then_some(at + 1),
        });
        self.skip(next.collect())
    }

    /// Adds the steps behind those that may take no level.
    fn skip(&self, mut positions: BTreeSet<usize>) -> BTreeSet<usize> {
        for at in 0..self.0.len() {
            if self.0[at] == Part::Any && positions.contains(&at) {
                positions.insert(at + 1);
            }
        }
        positions
    }
}

fn with(mut path: Vec<String>, level: String) -> Vec<String> {
    path.push(level);
    path
}

/// A name that a level's pattern matches.
fn example(level: &str) -> Option<String> {
    meet_level(level, level)
}

/// A name that both match, if one can exist.
///
/// With a star in both all that counts is what stands before the first star and behind the last: what is
/// between can follow one after the other.
fn meet_level(one: &str, two: &str) -> Option<String> {
    let name = match (one.contains('*'), two.contains('*')) {
        (false, _) => glob(two, one).then(|| one.to_owned()),
        (_, false) => glob(one, two).then(|| two.to_owned()),
        (true, true) => {
            let (head, middle, tail) = ends(one);
            let (other_head, other_middle, other_tail) = ends(two);
            let head = longer(head, other_head, |long, short| long.starts_with(short))?;
            let tail = longer(tail, other_tail, |long, short| long.ends_with(short))?;
            let middle = if one == two {
                middle
            } else {
                middle + &other_middle
            };
            let name = format!("{head}{middle}{tail}");
            match name.as_str() {
                "" | "." | ".." => Some(format!("{head}x{tail}")),
                _ => Some(name),
            }
        }
    };
    name.filter(|name| name.len() <= NAME_MAX)
}

/// What stands before the first star, between the stars, and behind the last.
fn ends(pattern: &str) -> (&str, String, &str) {
    let (head, rest) = pattern.split_once('*').unwrap_or((pattern, ""));
    match rest.rsplit_once('*') {
        Some((middle, tail)) => (head, middle.replace('*', ""), tail),
        None => (head, String::new(), rest),
    }
}

/// The longer of two, if it `fits` the shorter.
fn longer<'a>(one: &'a str, two: &'a str, fits: fn(&str, &str) -> bool) -> Option<&'a str> {
    let (long, short) = if one.len() >= two.len() {
        (one, two)
    } else {
        (two, one)
    };
    fits(long, short).then_some(long)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{CgroupPattern, Match, Walk, glob, meet_level};

    fn pattern(text: &str) -> CgroupPattern {
        CgroupPattern::new(text).unwrap()
    }

    fn meet(one: &str, two: &str) -> Option<String> {
        let (one, two) = (pattern(one), pattern(two));
        Walk::of_pattern(&one).meet(&Walk::of_pattern(&two))
    }

    fn holds(outer: &str, inner: &str) -> bool {
        let (outer, inner) = (pattern(outer), pattern(inner));
        Walk::of_pattern(&outer).holds(&Walk::of_pattern(&inner))
    }

    #[test]
    fn patterns_meet_where_one_path_fits_both() {
        for (one, two, path) in [
            ("a/b", "a/b", Some("a/b")),
            ("a/b", "a/c", None),
            ("a/*", "*/b", Some("a/b")),
            ("a/**", "a", None),
            ("a/**", "**/b", Some("a/b")),
            ("a/**/z", "**/y/*", Some("a/y/z")),
            ("**/x", "x", Some("x")),
            ("a*c", "ab*", Some("abc")),
            ("a*", "b*", None),
            ("*.service", "web*", Some("web.service")),
            ("*a*b*", "*c*", Some("abc")),
            (".*", "*.", Some(".x.")),
            ("*", "*", Some("x")),
            ("a/**/b", "c/**", None),
        ] {
            assert_eq!(meet(one, two).as_deref(), path, "{one} {two}");
            assert_eq!(meet(two, one).is_some(), path.is_some(), "{two} {one}");
        }
    }

    #[test]
    fn a_pattern_holds_another_where_that_is_sure() {
        for (outer, inner) in [
            ("a/*", "a/b"),
            ("a/**", "a/b/*"),
            ("a/**", "a/**"),
            ("**", "a/**/b"),
            ("**/x", "a/**/x"),
            ("a/**/x", "a/x"),
            ("*.service", "web-*.service"),
            ("a/**/*", "a/**"),
            ("**/a/**", "**/a/b/**"),
        ] {
            assert!(holds(outer, inner), "{outer} {inner}");
        }
        for (outer, inner) in [
            ("a/b", "a/*"),
            ("a/*", "a/**"),
            ("a/**", "a"),
            ("**/x", "a/**"),
            ("web-*", "*.service"),
            ("a/*/c", "a/**/c"),
        ] {
            assert!(!holds(outer, inner), "{outer} {inner}");
        }
    }

    #[test]
    fn a_name_that_no_directory_can_have_is_no_meeting() {
        let long = "x".repeat(200);
        assert_eq!(
            meet_level(&format!("{long}*"), &format!("*{}", "y".repeat(200))),
            None
        );
    }

    fn patterns() -> impl Strategy<Value = String> {
        let level = prop_oneof![3 => "[ab]{1,2}", 2 => "[ab]?\\*[ab]?", 2 => Just("**".to_owned())];
        proptest::collection::vec(level, 1..5).prop_map(|levels| levels.join("/"))
    }

    fn paths() -> impl Strategy<Value = String> {
        proptest::collection::vec("[abx]{1,3}", 1..6).prop_map(|levels| levels.join("/"))
    }

    proptest! {
        #[test]
        fn a_meeting_fits_both_and_none_is_missed(
            one in patterns(), two in patterns(), paths in proptest::collection::vec(paths(), 20)
        ) {
            match meet(&one, &two) {
                Some(path) => {
                    prop_assert!(pattern(&one).matches(&path), "{one} {two} {path}");
                    prop_assert!(pattern(&two).matches(&path), "{one} {two} {path}");
                }
                None => for path in paths {
                    let both = pattern(&one).matches(&path) && pattern(&two).matches(&path);
                    prop_assert!(!both, "{one} {two} {path}");
                }
            }
        }

        #[test]
        fn what_is_held_is_matched(
            outer in patterns(), inner in patterns(), paths in proptest::collection::vec(paths(), 20)
        ) {
            if holds(&outer, &inner) {
                for path in paths {
                    prop_assert!(!pattern(&inner).matches(&path) || pattern(&outer).matches(&path),
                        "{outer} {inner} {path}");
                }
            }
            prop_assert!(holds("**", &inner) && holds(&inner, &inner), "{inner}");
        }

        #[test]
        fn names_that_two_levels_share_are_found(
            one in "[ab]{0,2}\\*[ab]{0,2}(\\*[ab]{0,2})?", two in "[ab]{0,2}\\*[ab]{0,2}",
            name in "[ab]{1,6}"
        ) {
            let found = meet_level(&one, &two);
            if glob(&one, &name) && glob(&two, &name) {
                prop_assert!(found.is_some(), "{one} {two} {name}");
            }
            if let Some(found) = found {
                prop_assert!(glob(&one, &found) && glob(&two, &found), "{one} {two} {found}");
            }
        }
    }

    #[test]
    fn a_unit_is_a_name_at_any_depth() {
        let unit = Match::Unit(super::super::UnitName::new("x.service").unwrap());
        let path = pattern("a/b/*");
        let met = Walk::of(&unit).unwrap().meet(&Walk::of_pattern(&path));
        assert_eq!(met.as_deref(), Some("a/b/x.service"));
    }
}
