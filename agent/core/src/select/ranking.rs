//! The order of the candidates, and why the first of them is the first.

use std::cmp::Ordering;

use super::candidates::{Fit, Looked};
use crate::criteria::Wish;
use crate::health::Grade;

/// Candidates that fit, best first, by their place.
pub(super) fn ranked(wish: &Wish, looked: &[Looked]) -> Vec<usize> {
    by(wish, looked, |one| one.in_use)
}

/// As [`ranked`]; what is favoured counts as better by the margin.
fn by(wish: &Wish, looked: &[Looked], favoured: impl Fn(&Looked) -> bool) -> Vec<usize> {
    let measured = wish.criteria.prefer.iter().any(|one| one.is_measured());
    let fits = |at: &usize| looked[*at].fit.is_ok();
    let mut ranked: Vec<usize> = (0..looked.len()).filter(fits).collect();
    ranked.sort_by(|a, b| {
        let (one, other) = (&looked[*a], &looked[*b]);
        let (Ok(fit), Ok(than)) = (&one.fit, &other.fit) else {
            return Ordering::Equal;
        };
        let values = |fit: &Fit, favoured: bool| -> Vec<u64> {
            let values = fit.values.iter();
            values
                .map(|value| {
                    if favoured {
                        value.favoured
                    } else {
                        value.number
                    }
                })
                .collect()
        };
        let stays = |one: &Looked| measured && favoured(one);
        fit.grade
            .cmp(&than.grade)
            .then(other.preferred.cmp(&one.preferred))
            .then_with(|| values(fit, favoured(one)).cmp(&values(than, favoured(other))))
            .then(stays(other).cmp(&stays(one)))
            .then(a.cmp(b))
    });
    ranked
}

/// Why the first of those that fit is the first, as a sentence without a full stop. `alone`: no policy before
/// this one was asked.
pub(super) fn why(wish: &Wish, looked: &[Looked], ranked: &[usize], alone: bool) -> String {
    let Some(&best) = ranked.first() else {
        return String::new();
    };
    let chosen = &looked[best];
    let name = &chosen.name;
    if chosen.preferred {
        return format!("{name} is preferred (steer domain prefer) and fits");
    }
    match chosen.grade() {
        Grade::Well => {}
        Grade::Settling | Grade::Unproven => {
            return format!("{name} is the best that fits, though it is not proven yet");
        }
        Grade::Limited | Grade::Portal => {
            return format!("{name} is the best that fits: nothing that fits is well");
        }
    }
    let well = |at: &&usize| looked[**at].grade() == Grade::Well;
    let rivals: Vec<usize> = ranked[1..].iter().filter(well).copied().collect();
    if let Some(&rival) = rivals.first()
        && let Some(words) = by_criterion(wish, looked, best, rival)
    {
        return words;
    }
    let worse = |at: &usize| *at < best && looked[*at].grade() != Grade::Well;
    if ranked.iter().any(worse) {
        format!("{name} is the first that fits and is well")
    } else if alone && best == 0 {
        format!("{name} is the first choice and fits")
    } else {
        format!("{name} is the first that fits")
    }
}

/// What of the policy's criteria puts one domain before another.
fn by_criterion(wish: &Wish, looked: &[Looked], best: usize, rival: usize) -> Option<String> {
    let unfavoured = by(wish, looked, |_| false);
    let name = &looked[best].name;
    if let Some(&first) = unfavoured.first().filter(|first| **first != best) {
        let other = &looked[first].name;
        return Some(format!(
            "{name} stays: {other} is not better by more than the margin of {}",
            wish.criteria.margin
        ));
    }
    let (Ok(one), Ok(other)) = (&looked[best].fit, &looked[rival].fit) else {
        return None;
    };
    let mut compared = wish
        .criteria
        .prefer
        .iter()
        .zip(one.values.iter().zip(&other.values));
    let (criterion, (own, theirs)) =
        compared.find(|(_, (own, theirs))| own.number != theirs.number)?;
    Some(format!(
        "{name} is best by {criterion} ({}; {}: {})",
        own.words, looked[rival].name, theirs.words
    ))
}
