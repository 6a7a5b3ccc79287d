//! What became of live flows, in words.

use crate::api::types::SessionsView;

/// In a few words; empty: there is nothing to say.
pub(super) fn words(sessions: Option<&SessionsView>) -> String {
    let Some(sessions) = sessions else {
        return String::new();
    };
    let counts = [
        (sessions.kept, "kept where they are"),
        (sessions.moved, "moved"),
        (sessions.reset, "reset"),
        (sessions.failed, "could not be reset"),
    ];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    let counts: Vec<String> = counts
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    match (&sessions.changed, counts.is_empty()) {
        (_, true) => String::new(),
        (Some(at), false) => format!("{} (last at {at})", counts.join(", ")),
        (None, false) => counts.join(", "),
    }
}

/// As a sentence about what a command did.
pub(super) fn sentence(sessions: Option<&SessionsView>) -> Option<String> {
    let words = words(
        sessions
            .map(|sessions| SessionsView {
                changed: None,
                ..sessions.clone()
            })
            .as_ref(),
    );
    (!words.is_empty()).then(|| format!("live flows: {words}"))
}

#[cfg(test)]
mod tests {
    use super::{sentence, words};
    use crate::api::types::SessionsView;

    #[test]
    fn only_what_happened_is_told() {
        let mut sessions = SessionsView::default();
        assert_eq!(words(None), "");
        assert_eq!(words(Some(&sessions)), "");
        assert_eq!(sentence(Some(&sessions)), None);
        (sessions.kept, sessions.reset) = (2, 3);
        sessions.changed = Some("2026-01-02T03:04:05Z".to_owned());
        assert_eq!(
            words(Some(&sessions)),
            "2 kept where they are, 3 reset (last at 2026-01-02T03:04:05Z)"
        );
        assert_eq!(
            sentence(Some(&sessions)).as_deref(),
            Some("live flows: 2 kept where they are, 3 reset")
        );
    }
}
