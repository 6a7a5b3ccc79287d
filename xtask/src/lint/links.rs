//! Links in Markdown that point into the project: the file is there, and so is the heading.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use super::Finding;
use super::tree::Tree;

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.with_ending(".md") {
        for (line, target) in links(&file.text) {
            if let Some(text) = broken(tree, &file.path, &file.text, target) {
                findings.push(Finding {
                    file: file.path.clone(),
                    line,
                    text,
                });
            }
        }
    }
    findings
}

/// Says what is wrong with a link, if anything is.
fn broken(tree: &Tree, from: &str, own_text: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = match target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (target, None),
    };
    let text = if path.is_empty() {
        own_text
    } else {
        let Some(path) = resolve(from, path) else {
            return Some(format!("`{target}` leads out of the project: link by URL"));
        };
        if !tree.root.join(&path).exists() {
            return Some(format!("`{target}` does not exist: correct the link"));
        }
        let linked = tree.files.iter().find(|file| Path::new(&file.path) == path);
        match linked {
            Some(file) if file.path.ends_with(".md") => &file.text,
            _ => return None,
        }
    };
    let anchor = anchor.filter(|anchor| !anchor.is_empty())?;
    (!anchors(text).contains(anchor))
        .then(|| format!("`{target}`: no heading has the anchor `#{anchor}`: correct the link"))
}

/// The path from the project's root, or nothing if it leads out of it.
fn resolve(from: &str, link: &str) -> Option<PathBuf> {
    let mut path = match link.strip_prefix('/') {
        Some(_) => PathBuf::new(),
        None => Path::new(from).parent()?.to_owned(),
    };
    for component in Path::new(link.trim_start_matches('/')).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(path)
}

/// The lines that are no code block, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fence: Option<&str> = None;
    text.lines().enumerate().filter_map(move |(number, line)| {
        let start = line.trim_start();
        let mark = ["```", "~~~"]
            .into_iter()
            .find(|mark| start.starts_with(mark));
        match (fence, mark) {
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            (None, None) => return Some((number + 1, line)),
            (Some(_), _) => {}
        }
        None
    })
}

/// Targets of `[text](target)` and `[name]: target`, with their lines.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        if let Some((name, target)) = line.trim_start().split_once("]: ")
            && name.starts_with('[')
            && !name.starts_with("[^")
        {
            links.extend(first_word(target).map(|target| (number, target)));
        }
        for (at, sign) in line.match_indices("](") {
            // An odd number of ticks in front: inside of `code`.
            if line[..at].matches('`').count() % 2 == 1 {
                continue;
            }
            let target = &line[at + sign.len()..];
            let end = target.find(')').unwrap_or(target.len());
            links.extend(first_word(&target[..end]).map(|target| (number, target)));
        }
    }
    links
}

/// A target without its title.
fn first_word(target: &str) -> Option<&str> {
    let word = target.split_whitespace().next()?;
    Some(word.trim_matches(['<', '>']))
}

/// The anchors of a page's headings, as code hosts make them.
fn anchors(text: &str) -> HashSet<String> {
    let mut anchors = HashSet::new();
    for (_, line) in prose(text) {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let slug: String = title
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        // The second heading of one name is `name-1`, and so on.
        let unique = (0..)
            .map(|count| match count {
                0 => slug.clone(),
                count => format!("{slug}-{count}"),
            })
            .find(|anchor| !anchors.contains(anchor));
        anchors.extend(unique);
    }
    anchors
}

#[cfg(test)]
mod tests {
    use super::super::tree::File;
    use super::*;

    #[test]
    fn links_are_found_outside_of_code() {
        let text = "[a](b.md) `[c](d)` ![e](<f.png> \"title\")\n```\n[g](h)\n```\n[i]: j/k.md\n";
        assert_eq!(links(text), [(1, "b.md"), (1, "f.png"), (5, "j/k.md")]);
    }

    #[test]
    fn paths_are_resolved_from_the_page() {
        assert_eq!(resolve("docs/a.md", "../b.md"), Some("b.md".into()));
        assert_eq!(resolve("docs/a.md", "./b/c.md"), Some("docs/b/c.md".into()));
        assert_eq!(resolve("docs/a.md", "/b.md"), Some("b.md".into()));
        assert_eq!(resolve("a.md", "../b.md"), None);
    }

    #[test]
    fn anchors_are_those_of_the_headings() {
        let anchors = anchors("# Words, and `code`\n## Twice\n## Twice\n```\n# no\n```\n#no\n");
        let mut anchors: Vec<_> = anchors.into_iter().collect();
        anchors.sort();
        assert_eq!(anchors, ["twice", "twice-1", "words-and-code"]);
    }

    #[test]
    fn what_is_broken_is_said() -> std::io::Result<()> {
        let root = tempfile::tempdir()?;
        let page = "# Here\n[ok](b.md#there) [ok](#here) [ok](https://a.example/b) [bad](c.md) \
                    [bad](b.md#here) [bad](#there) [bad](../x.md)";
        std::fs::write(root.path().join("b.md"), "# There\n")?;
        let file = |path: &str, text: &str| File {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let tree = Tree {
            root: root.path().to_owned(),
            files: vec![file("a.md", page), file("b.md", "# There\n")],
        };
        let findings = check(&tree);
        assert_eq!(findings.len(), 4, "{findings:?}");
        assert!(findings.iter().all(|finding| finding.line == 2));
        Ok(())
    }
}
