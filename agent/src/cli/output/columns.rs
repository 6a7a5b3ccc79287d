//! How text is laid out in columns of a terminal: pure, by the width that characters take there.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Spaces between columns.
pub(super) const GAP: usize = 2;

/// Least width of a last column, columns.
const LEAST_LAST: usize = 24;

/// Least width of a column that is shortened, columns.
const LEAST: usize = 8;

/// Where a text may be broken when a word is too long for a line: behind these.
const JOINTS: [char; 2] = ['/', ','];

/// A column before it is laid out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Column {
    /// Width of its widest cell.
    pub(super) natural: usize,
    /// Whether nothing in it may be shortened.
    pub(super) whole: bool,
}

/// Widths of all columns, so that a row fits into `width`; none: they cannot.
///
/// The last one is wrapped, the others are shortened if they must be.
pub(super) fn widths(columns: &[Column], width: usize) -> Option<Vec<usize>> {
    let (last, middle) = columns.split_last()?;
    let mut widths: Vec<usize> = middle.iter().map(|column| column.natural).collect();
    let gaps = GAP * widths.len();
    loop {
        let taken = widths.iter().sum::<usize>() + gaps;
        let left = width.saturating_sub(taken);
        if left >= last.natural.min(LEAST_LAST) {
            widths.push(left);
            return Some(widths);
        }
        let widest = middle.iter().zip(&mut widths);
        let widest = widest.filter(|(column, width)| !column.whole && **width > LEAST);
        *widest.max_by_key(|(_, width)| **width)?.1 -= 1;
    }
}

/// Columns that a text takes.
pub(super) fn length(text: &str) -> usize {
    text.width()
}

/// The text, with an ellipsis in place of what does not fit.
pub(super) fn shorten(text: &str, width: usize) -> String {
    if length(text) <= width {
        return text.to_owned();
    }
    let mut short = text[..fitting(text, width.saturating_sub(1))].to_owned();
    short.push('…');
    short
}

/// Breaks a text between words. A word that is longer than a line is broken too, so that nothing is lost
/// and nothing is wider.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    for mut word in text.split(' ') {
        let room = if line.is_empty() {
            0
        } else {
            length(&line) + 1
        };
        if room > 0 && room + length(word) > width {
            lines.push(std::mem::take(&mut line));
        } else if room > 0 {
            line.push(' ');
        }
        while line.is_empty() && length(word) > width {
            let (part, rest) = word.split_at(joint(word, width));
            lines.push(part.to_owned());
            word = rest;
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// Bytes of the beginning of `text` that fits into `width`.
fn fitting(text: &str, width: usize) -> usize {
    let mut taken = 0;
    let beyond = text.char_indices().find(|(_, c)| {
        taken += c.width().unwrap_or(0);
        taken > width
    });
    beyond.map_or(text.len(), |(at, _)| at)
}

/// Where to break a word that is too long: behind a joint, else where the line ends.
fn joint(word: &str, width: usize) -> usize {
    let end = fitting(word, width);
    // A character that alone is wider than the line has one of its own.
    let first = word.chars().next().map_or(0, char::len_utf8);
    word[..end]
        .rfind(JOINTS)
        .map_or(end, |at| at + 1)
        .max(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(natural: usize, whole: bool) -> Column {
        Column { natural, whole }
    }

    #[test]
    fn what_fits_is_as_wide_as_it_is() {
        let columns = [column(4, true), column(10, false), column(60, false)];
        assert_eq!(widths(&columns, 80), Some(vec![4, 10, 62]));
        assert_eq!(widths(&columns[..1], 80), Some(vec![80]));
        assert_eq!(widths(&[], 80), None);
    }

    #[test]
    fn the_widest_column_that_is_no_name_is_shortened_first() {
        let columns = [
            column(30, true),
            column(40, false),
            column(10, false),
            column(50, false),
        ];
        assert_eq!(widths(&columns, 80), Some(vec![30, 10, 10, 24]));
        assert_eq!(widths(&columns, 76), Some(vec![30, 8, 8, 24]));
        assert_eq!(widths(&columns, 75), None, "names stay whole");
    }

    #[test]
    fn a_short_last_column_needs_no_more_than_it_is_wide() {
        let columns = [column(70, true), column(8, false)];
        assert_eq!(widths(&columns, 80), Some(vec![70, 8]));
    }

    #[test]
    fn text_is_measured_as_a_terminal_shows_it() {
        assert_eq!(length("größe"), 5);
        assert_eq!(length("日本"), 4);
        assert_eq!(length("e\u{301}"), 1, "a combining accent takes none");
        assert_eq!(shorten("日本語", 5), "日本…");
        assert_eq!(shorten("日本語", 4), "日…");
        assert_eq!(shorten("abc", 3), "abc");
    }

    #[test]
    fn nothing_is_wider_than_its_line_and_nothing_is_lost() {
        let text = "policies overrule it on 12 cgroups: user.slice/user-1000.slice/app.slice/x 日本語日本語";
        for width in 1..40 {
            let lines = wrap(text, width);
            for line in &lines {
                let one = line.chars().count() == 1;
                assert!(length(line) <= width || one, "{width}: {line}");
            }
            let without = |text: &str| text.replace(' ', "");
            assert_eq!(without(&lines.concat()), without(text), "{width}");
        }
        assert_eq!(
            wrap("see app.slice/web.service", 14),
            ["see", "app.slice/", "web.service"]
        );
        assert_eq!(wrap("", 10), [""]);
    }
}
