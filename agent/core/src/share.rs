//! Sharing flows between domains: which member each slot belongs to, by weighted rendezvous hashing.
//!
//! Every slot has a number for each domain that depends on both alone, and goes to the member with the
//! best one. So when a member goes, its slots alone change, and when one comes, it takes slots from the
//! others and moves none between them.

use std::collections::BTreeSet;

use steer_common::ShareEntry;

use crate::ids::DomainIndex;
use crate::name::Name;
use crate::plan::Family;

/// A domain that has a part of the flows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Its name: what its slots depend on.
    pub domain: Name,
    /// Its part, not 0.
    pub weight: u16,
    /// Its index: what its slots hold.
    pub index: DomainIndex,
    /// Families whose flows it has.
    pub families: BTreeSet<Family>,
}

/// The slots of `members`, of each family among those that have its flows; where none has, all of them refuse
/// their part. With no member every slot is of domain 0.
pub fn slots(members: &[Member]) -> ShareEntry {
    let of_family = |family| {
        let serving = members
            .iter()
            .filter(|member| member.families.contains(&family));
        let serving: Vec<&Member> = serving.collect();
        if serving.is_empty() {
            among(&members.iter().collect::<Vec<_>>())
        } else {
            among(&serving)
        }
    };
    ShareEntry::new(of_family(Family::Ipv4), of_family(Family::Ipv6))
}

fn among(members: &[&Member]) -> [u8; ShareEntry::SLOTS] {
    let seeds: Vec<u64> = members
        .iter()
        .map(|member| hash(member.domain.as_str()))
        .collect();
    let mut domains = [0; ShareEntry::SLOTS];
    for (slot, domain) in (0_u64..).zip(&mut domains) {
        let scores = members
            .iter()
            .zip(&seeds)
            .map(|(member, seed)| (score(*seed, slot, member.weight), member));
        let best = scores.reduce(|best, next| if next.0 > best.0 { next } else { best });
        let index = best.and_then(|(_, member)| u8::try_from(member.index.0).ok());
        *domain = index.unwrap_or(0);
    }
    domains
}

/// `-weight / ln(u)`, where `u` is evenly spread between 0 and 1: the greatest of several is a member's as
/// often as its weight is part of all.
fn score(seed: u64, slot: u64, weight: u16) -> f64 {
    let bits = mix(seed ^ mix(slot)) >> 11;
    #[expect(
        clippy::cast_precision_loss,
        reason = "53 bits are what a number of this type holds"
    )]
    let u = (bits as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(weight) / u.ln()
}

/// FNV-1a: the same in every version, which `std`'s is not.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The finalizer of splitmix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}
