//! What answers mean: pure functions over what the network said.

use serde::Deserialize;
use steer_core::probe::{Expect, Outcome};
use url::Url;

/// An address of a portal is no longer than this, in bytes.
const ADDRESS: usize = 2048;

/// The head of an HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    /// `Location`, as it came.
    pub(super) location: Option<Vec<u8>>,
    /// `Content-Type`, if it is text.
    pub(super) media_type: Option<String>,
}

/// The body of an HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// All of it.
    Whole(Vec<u8>),
    /// Longer than what is read.
    TooLong,
}

/// What `head` alone tells of an answer that a request for `asked` got.
pub(super) fn judge_head(expect: &Expect, asked: &Url, head: &Head) -> Option<Outcome> {
    match expect {
        Expect::Status(status) if *status == head.status => return Some(Outcome::Passed),
        Expect::Body(_) if head.status == 200 => return None,
        _ => {}
    }
    match head.status {
        300..=399 => {
            let location = head.location.as_deref();
            let address = location.and_then(|location| page(asked, location));
            Some(Outcome::Portal(address))
        }
        // RFC 6585, section 6.
        511 => Some(Outcome::Portal(None)),
        // The target is there, and ill: a portal wants to be seen.
        400..=599 => Some(Outcome::Failed(format!(
            "HTTP {asked}: answered {}",
            head.status
        ))),
        _ => None,
    }
}

/// What the rest tells, where the head did not: an answer that is not the target's own.
pub(super) fn judge_body(expect: &Expect, head: &Head, body: &Body) -> Outcome {
    match (expect, body) {
        (Expect::Body(text), Body::Whole(body))
            if head.status == 200 && body.starts_with(text.as_bytes()) =>
        {
            Outcome::Passed
        }
        _ => Outcome::Portal(None),
    }
}

/// The address of a portal's page that a `Location` names. `None`: it is none that a person may be
/// sent to.
pub(super) fn page(asked: &Url, location: &[u8]) -> Option<String> {
    let location = plain(location)?;
    let address = asked.join(location).ok()?;
    let web = matches!(address.scheme(), "http" | "https") && address.has_host();
    (web && address.as_str().len() <= ADDRESS).then(|| address.into())
}

/// An address that is reached by HTTPS alone, as the API of RFC 8908 and its page have to be.
pub(super) fn secure(address: &str) -> Option<Url> {
    let address = Url::parse(plain(address.as_bytes())?).ok()?;
    let secure = address.scheme() == "https" && address.has_host();
    (secure && address.as_str().len() <= ADDRESS).then_some(address)
}

/// Text without control characters that is not too long. (The parser of addresses would drop some of
/// these characters without a word.)
fn plain(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?.trim_ascii();
    let fits = text.len() <= ADDRESS && !text.chars().any(char::is_control);
    fits.then_some(text)
}

/// What the API of RFC 8908 said.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Captive {
    captive: bool,
    user_portal_url: Option<String>,
}

/// Whether an answer has the media type of RFC 8908, section 4.
pub(super) fn is_captive_json(head: &Head) -> bool {
    let kind = head.media_type.as_deref().unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    head.status == 200 && essence.eq_ignore_ascii_case("application/captive+json")
}

/// What the answer of the API of RFC 8908 means. One that cannot be read says nothing.
pub(super) fn captive(body: &Body) -> Outcome {
    let Body::Whole(body) = body else {
        return Outcome::Passed;
    };
    match serde_json::from_slice::<Captive>(body) {
        Ok(Captive {
            captive: true,
            user_portal_url: address,
        }) => Outcome::Portal(address.and_then(|address| secure(&address)).map(Into::into)),
        _ => Outcome::Passed,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked() -> Url {
        Url::parse("http://check.example:8080/a/b?c").expect("an address")
    }

    fn head(status: u16, location: Option<&str>) -> Head {
        Head {
            status,
            location: location.map(|location| location.as_bytes().to_vec()),
            media_type: None,
        }
    }

    fn portal(address: &str) -> Option<Outcome> {
        Some(Outcome::Portal(Some(address.to_owned())))
    }

    #[test]
    fn a_location_is_taken_where_a_person_may_be_sent() {
        for (location, page_is) in [
            (
                "https://portal.example/login?x=1",
                Some("https://portal.example/login?x=1"),
            ),
            ("http://192.0.2.1:8000", Some("http://192.0.2.1:8000/")),
            ("/login", Some("http://check.example:8080/login")),
            ("login", Some("http://check.example:8080/a/login")),
            ("//portal.example/", Some("http://portal.example/")),
            (" https://portal.example/ ", Some("https://portal.example/")),
            (
                "http://p\u{f6}rtal.example/\u{fc}",
                Some("http://xn--prtal-jua.example/%C3%BC"),
            ),
            ("", Some("http://check.example:8080/a/b?c")),
            ("javascript:alert(1)", None),
            ("file:///etc/passwd", None),
            ("ftp://portal.example/", None),
            ("http://", None),
            ("http://[::1", None),
            ("https://portal.example/\r\nX: y", None),
            ("https://portal.example/\u{1b}[2J", None),
            ("ht\ttps://portal.example/", None),
            ("https://portal.example/\u{85}", None),
        ] {
            let page = page(&asked(), location.as_bytes());
            assert_eq!(page.as_deref(), page_is, "{location:?}");
        }
        assert_eq!(page(&asked(), b"http://portal.example/\xff"), None);
        let fits = format!("http://p.example/{}", "a".repeat(ADDRESS - 17));
        assert_eq!(page(&asked(), fits.as_bytes()), Some(fits.clone()));
        assert_eq!(page(&asked(), format!("{fits}a").as_bytes()), None);
        // Three bytes each, once they are written as an address has them.
        let grows = format!("http://p.example/{}", "\u{fc}".repeat(ADDRESS / 4));
        assert_eq!(page(&asked(), grows.as_bytes()), None);
    }

    #[test]
    fn an_answer_is_judged_by_its_head_where_that_is_enough() {
        let empty = Expect::Status(204);
        let text = Expect::Body("success".to_owned());
        let judged = |expect, head| judge_head(expect, &asked(), &head);
        let none = Some(Outcome::Portal(None));
        assert_eq!(judged(&empty, head(204, None)), Some(Outcome::Passed));
        assert_eq!(judged(&empty, head(200, None)), None);
        assert_eq!(
            judged(&empty, head(302, Some("/x"))),
            portal("http://check.example:8080/x")
        );
        assert_eq!(judged(&empty, head(302, Some("data:,x"))), none);
        assert_eq!(judged(&empty, head(303, None)), none);
        assert_eq!(judged(&empty, head(511, Some("/x"))), none);
        for status in [400, 404, 503] {
            let why = format!("HTTP http://check.example:8080/a/b?c: answered {status}");
            assert_eq!(
                judged(&empty, head(status, None)),
                Some(Outcome::Failed(why))
            );
        }
        assert_eq!(judged(&text, head(200, None)), None);
        assert_eq!(judged(&text, head(204, None)), None);
        assert_eq!(
            judged(&text, head(307, Some("/x"))),
            portal("http://check.example:8080/x")
        );
        // What is expected is no portal's, whatever it is.
        assert_eq!(
            judged(&Expect::Status(302), head(302, Some("/x"))),
            Some(Outcome::Passed)
        );
        assert_eq!(
            judged(&Expect::Status(511), head(511, None)),
            Some(Outcome::Passed)
        );
    }

    #[test]
    fn a_body_proves_the_target_by_how_it_begins() {
        let text = Expect::Body("success".to_owned());
        let whole = |text: &str| Body::Whole(text.as_bytes().to_vec());
        let ok = head(200, None);
        assert_eq!(judge_body(&text, &ok, &whole("success\n")), Outcome::Passed);
        assert_eq!(
            judge_body(&text, &ok, &whole("a success")),
            Outcome::Portal(None)
        );
        assert_eq!(
            judge_body(&text, &ok, &whole("succ")),
            Outcome::Portal(None)
        );
        assert_eq!(
            judge_body(&text, &ok, &Body::TooLong),
            Outcome::Portal(None)
        );
        let other = head(404, None);
        assert_eq!(
            judge_body(&text, &other, &whole("success")),
            Outcome::Portal(None)
        );
        let status = Expect::Status(204);
        assert_eq!(
            judge_body(&status, &ok, &whole("success")),
            Outcome::Portal(None)
        );
    }

    #[test]
    fn the_api_tells_a_portal_whose_page_is_secure() {
        let told = |text: &str| captive(&Body::Whole(text.as_bytes().to_vec()));
        let page = "https://portal.example/";
        assert_eq!(
            told(r#"{"captive":true,"user-portal-url":"https://portal.example/","x":[1]}"#),
            Outcome::Portal(Some(page.to_owned()))
        );
        for text in [
            r#"{"captive":true}"#,
            r#"{"captive":true,"user-portal-url":null}"#,
            r#"{"captive":true,"user-portal-url":"http://portal.example/"}"#,
            r#"{"captive":true,"user-portal-url":"javascript:alert(1)"}"#,
            r#"{"captive":true,"user-portal-url":"https://portal.example/\n"}"#
                .replace("\\n", "\\n\\u001b")
                .as_str(),
        ] {
            assert_eq!(told(text), Outcome::Portal(None), "{text}");
        }
        for text in [
            r#"{"captive":false,"user-portal-url":"https://portal.example/"}"#,
            r#"{"captive":"true"}"#,
            r#"{"user-portal-url":"https://portal.example/"}"#,
            r#"{"captive":true"#,
            "[]",
            "",
            &"[".repeat(60_000),
        ] {
            assert_eq!(told(text), Outcome::Passed, "{text}");
        }
        assert_eq!(captive(&Body::TooLong), Outcome::Passed);
    }

    #[test]
    fn the_api_answers_with_its_own_media_type() {
        let answer = |status, media_type: &str| Head {
            status,
            location: None,
            media_type: Some(media_type.to_owned()),
        };
        assert!(is_captive_json(&answer(200, "application/captive+json")));
        assert!(is_captive_json(&answer(
            200,
            "Application/Captive+JSON; charset=utf-8"
        )));
        assert!(!is_captive_json(&answer(200, "application/json")));
        assert!(!is_captive_json(&answer(404, "application/captive+json")));
        assert!(!is_captive_json(&head(200, None)));
    }

    proptest! {
        #[test]
        fn a_page_is_always_a_short_web_address_without_control_characters(
            location in prop_oneof![
                any::<Vec<u8>>(),
                "(https?:)?/{0,2}\\PC{0,40}".prop_map(String::into_bytes),
                "[a-z]{1,6}:[ -~\u{0}-\u{20}]{0,40}".prop_map(String::into_bytes),
            ],
        ) {
            if let Some(page) = page(&asked(), &location) {
                prop_assert!(page.starts_with("http://") || page.starts_with("https://"));
                prop_assert!(page.len() <= ADDRESS && page.is_ascii());
                prop_assert!(!page.chars().any(char::is_control));
            }
        }

        #[test]
        fn a_page_that_the_api_names_is_always_secure(
            json in "\\{\"captive\":true,\"user-portal-url\":\"[ -~]{0,60}\"\\}",
        ) {
            if let Outcome::Portal(Some(page)) = captive(&Body::Whole(json.into_bytes())) {
                prop_assert!(page.starts_with("https://") && page.is_ascii());
            }
        }

        #[test]
        fn any_body_of_the_api_is_read_without_panic(body: Vec<u8>) {
            captive(&Body::Whole(body));
        }
    }
}
