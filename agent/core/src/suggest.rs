//! "Did you mean": the nearest of some known words.

/// Most words that are compared: a mistake among a hundred thousand policies must not hold up the
/// agent.
const MOST: usize = 2_000;

/// The known word nearest to `word`, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Words longer than any name are typing accidents of another kind, and the distance is quadratic.
    if word.len() > 64 {
        return None;
    }
    known
        .into_iter()
        .take(MOST)
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + word.len().min(candidate.len()) / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Damerau-Levenshtein distance (optimal string alignment) in bytes.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut cost = (last[j] + usize::from(x != y))
                .min(last[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                cost = cost.min(before[j - 1] + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn the_nearest_word_is_found_and_a_far_one_is_not() {
        let known = ["use", "strict", "otherwise", "priority"];
        assert_eq!(nearest("usee", known), Some("use"));
        assert_eq!(nearest("stirct", known), Some("strict"));
        assert_eq!(nearest("otherwize", known), Some("otherwise"));
        assert_eq!(nearest("colour", known), None);
    }
}
