//! Draws what is wrong in files as compilers do: the line, the words underlined, and what would be right.
//! What the files say cannot control a terminal.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use crate::api::mistake::{MISTAKE, Mistake};
use crate::cli::clean;

/// Most that are drawn where nobody asked for all: who has more starts with these.
const MOST: usize = 50;

/// Draws the first ones, and says how many more there are.
pub fn draw_first(mistakes: &[Mistake], colour: bool) -> String {
    let drawn = draw(&mistakes[..mistakes.len().min(MOST)], colour);
    match mistakes.len().checked_sub(MOST) {
        None | Some(0) => drawn,
        Some(more) => format!("{drawn}\n\nand {more} more"),
    }
}

/// Draws each, with an empty line between.
pub fn draw(mistakes: &[Mistake], colour: bool) -> String {
    let renderer = if colour {
        Renderer::styled().hyperlink(false)
    } else {
        Renderer::plain()
    };
    let drawn: Vec<String> = mistakes
        .iter()
        .map(|mistake| draw_one(mistake, &renderer))
        .collect();
    drawn.join("\n\n")
}

fn draw_one(mistake: &Mistake, renderer: &Renderer) -> String {
    let level = match mistake.kind.as_str() {
        _ if mistake.is_bad() => Level::ERROR,
        "replaced" | "overlapping" => Level::NOTE,
        _ => Level::WARNING,
    };
    let message = clean(&mistake.message);
    let mut title = level.primary_title(message);
    if mistake.kind != MISTAKE {
        title = title.id(clean(&mistake.kind));
    }
    let file = clean(&mistake.file);
    let group = match line(mistake) {
        Some((source, span)) => {
            let mut annotation = AnnotationKind::Primary.span(span);
            if let Some(label) = &mistake.label {
                annotation = annotation.label(clean(label));
            }
            let snippet = Snippet::source(source)
                .path(file)
                .line_start(mistake.line as usize)
                .annotation(annotation);
            title.element(snippet)
        }
        None => {
            let mut origin = Origin::path(file);
            if mistake.line > 0 {
                origin = origin
                    .line(mistake.line as usize)
                    .char_column(mistake.column as usize);
            }
            title.element(origin)
        }
    };
    let help = mistake.help.as_ref().map(|help| {
        let title = Level::HELP.secondary_title(clean(help));
        Group::with_title(title)
    });
    let groups: Vec<Group<'_>> = std::iter::once(group).chain(help).collect();
    renderer.render(&groups)
}

/// The line, harmless, and the part of it to underline, bytes.
fn line(mistake: &Mistake) -> Option<(String, Range<usize>)> {
    let source = mistake.source.as_ref().filter(|_| mistake.line > 0)?;
    let first = mistake.column.saturating_sub(1) as usize;
    let last = if mistake.end_line > mistake.line {
        usize::MAX
    } else {
        mistake.end_column.saturating_sub(1) as usize
    };
    let mut text = String::with_capacity(source.len());
    let (mut start, mut end) = (None, None);
    for (column, character) in source.chars().enumerate() {
        if column == first {
            start = Some(text.len());
        }
        if column == last {
            end = Some(text.len());
        }
        match character {
            // It is drawn as spaces.
            '\t' => text.push('\t'),
            other => text.push_str(&clean(other.encode_utf8(&mut [0; 4]))),
        }
    }
    let start = start.unwrap_or(text.len());
    let end = end.unwrap_or(text.len()).max(start);
    Some((text, start..end))
}
