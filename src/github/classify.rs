//! What an answer means. Pure: status, headers and body in, class out.

use std::time::{Duration, SystemTime};

use hyper::HeaderMap;
use serde::Deserialize;

use super::budget::Rate;

/// What GitHub asks to wait at least, where it says nothing more precise.
const LEAST_WAIT: Duration = Duration::from_secs(60);
/// The longest that a header can make us wait: a primary limit's window and some.
const MOST_WAIT: Duration = Duration::from_secs(65 * 60);
/// How much of GitHub's words goes into an error.
const MESSAGE_LIMIT: usize = 300;

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// 2xx: it took effect.
    Success,
    /// 304: as it was.
    NotModified,
    /// 401: no effect; the credentials are not accepted.
    Unauthorized,
    /// 429, or a 403 that is a rate limit: no effect; not to be asked before then.
    RateLimited(SystemTime),
    /// 404: not there, or not visible.
    NotFound,
    /// 409.
    Conflict,
    /// Any other 3xx or 4xx: no effect, and the same again would be refused again.
    Refused,
    /// 5xx, 408, 1xx: it may have taken effect.
    Unclear,
}

/// Classes an answer that came at `now`. `strikes` is how many rate limits without a time came in
/// a row: each doubles the wait.
pub fn classify(
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    now: SystemTime,
    strikes: u32,
) -> Class {
    match status {
        200..=299 => Class::Success,
        304 => Class::NotModified,
        401 => Class::Unauthorized,
        403 | 429 => match limited_until(status, headers, body, now, strikes) {
            Some(until) => Class::RateLimited(until),
            None => Class::Refused,
        },
        404 => Class::NotFound,
        409 => Class::Conflict,
        408 => Class::Unclear,
        300..=499 => Class::Refused,
        _ => Class::Unclear,
    }
}

/// Until when a 403 or 429 limits; `None` for a 403 that is about rights.
fn limited_until(
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    now: SystemTime,
    strikes: u32,
) -> Option<SystemTime> {
    if let Some(seconds) = number(headers, "retry-after") {
        // 0 would be a tight loop.
        return Some(now + Duration::from_secs(seconds.max(1)).min(MOST_WAIT));
    }
    if let Some(rate) = rate(headers).filter(|rate| rate.remaining == 0) {
        // A reset in the past is a clock that is wrong; one second more because resets are whole.
        let wait = rate.reset.duration_since(now).unwrap_or(LEAST_WAIT) + Duration::from_secs(1);
        return Some(now + wait.min(MOST_WAIT));
    }
    let secondary = message(body).to_lowercase().contains("rate limit");
    (status == 429 || secondary)
        .then(|| now + LEAST_WAIT.saturating_mul(1 << strikes.min(6)).min(MOST_WAIT))
}

/// The rate limit that the headers tell.
pub fn rate(headers: &HeaderMap) -> Option<Rate> {
    Some(Rate {
        limit: number(headers, "x-ratelimit-limit")?,
        remaining: number(headers, "x-ratelimit-remaining")?,
        reset: SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(number(headers, "x-ratelimit-reset")?))?,
    })
}

/// Whether a rate limit is the common one, and not that of one kind of call.
pub fn is_core(headers: &HeaderMap) -> bool {
    headers.get("x-ratelimit-resource").is_none_or(|resource| resource == "core")
}

/// Whether a rate limit leaves other kinds of calls free: a primary one that is not the common one.
pub fn is_of_one_kind(headers: &HeaderMap) -> bool {
    !is_core(headers)
        && !headers.contains_key("retry-after")
        && rate(headers).is_some_and(|rate| rate.remaining == 0)
}

/// The address of the next page.
pub fn next_page(headers: &HeaderMap) -> Option<String> {
    let link = headers.get("link")?.to_str().ok()?;
    link.split(',').find_map(|entry| {
        let (address, parameters) = entry.split_once(';')?;
        let is_next = parameters.split(';').any(|parameter| parameter.trim() == "rel=\"next\"");
        let address = address.trim().strip_prefix('<')?.strip_suffix('>')?;
        is_next.then(|| address.to_owned())
    })
}

/// GitHub's own words, in one bounded line: `message`, or `TYPE: message` of a scale set's service.
pub fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Problem {
        #[serde(default, alias = "typeName")]
        type_name: Option<String>,
        message: String,
    }
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let text = match serde_json::from_slice::<Problem>(body) {
        Ok(Problem { type_name: Some(kind), message }) => format!("{kind}: {message}"),
        Ok(Problem { type_name: None, message }) => message,
        Err(_) if body.is_empty() => "no reason given".to_owned(),
        Err(_) => "the answer is no JSON with a message".to_owned(),
    };
    let printable = |character: char| if character.is_control() { ' ' } else { character };
    text.chars().map(printable).take(MESSAGE_LIMIT).collect()
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
    }

    fn headers(entries: &[(&'static str, String)]) -> HeaderMap {
        entries
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    fn limited(seconds: u64) -> Class {
        Class::RateLimited(now() + Duration::from_secs(seconds))
    }

    fn rated(remaining: u64, reset: u64) -> Vec<(&'static str, String)> {
        vec![
            ("x-ratelimit-limit", "5000".into()),
            ("x-ratelimit-remaining", remaining.to_string()),
            ("x-ratelimit-reset", reset.to_string()),
        ]
    }

    #[test]
    fn each_status_has_its_class() {
        let table = [
            (100, Class::Unclear),
            (200, Class::Success),
            (201, Class::Success),
            (202, Class::Success),
            (204, Class::Success),
            (301, Class::Refused),
            (304, Class::NotModified),
            (307, Class::Refused),
            (400, Class::Refused),
            (401, Class::Unauthorized),
            (403, Class::Refused),
            (404, Class::NotFound),
            (408, Class::Unclear),
            (409, Class::Conflict),
            (410, Class::Refused),
            (422, Class::Refused),
            (429, limited(60)),
            (500, Class::Unclear),
            (502, Class::Unclear),
            (503, Class::Unclear),
            (504, Class::Unclear),
        ];
        for (status, class) in table {
            let none = HeaderMap::new();
            assert_eq!(classify(status, &none, b"", now(), 0), class, "{status}");
        }
    }

    #[test]
    fn a_limit_says_until_when() {
        let secondary = br#"{"message":"You have exceeded a secondary rate limit"}"#;
        let rights = br#"{"message":"Resource not accessible by integration"}"#;
        for status in [403, 429] {
            let class = |entries: &[_], body: &[u8], strikes| {
                classify(status, &headers(entries), body, now(), strikes)
            };
            assert_eq!(class(&[("retry-after", "7".into())], b"", 3), limited(7));
            assert_eq!(class(&[("retry-after", "0".into())], b"", 0), limited(1));
            assert_eq!(class(&rated(0, NOW + 100), b"", 0), limited(101));
            assert_eq!(class(&rated(0, NOW - 100), b"", 0), limited(61));
            assert_eq!(class(&rated(0, NOW + 1_000_000), b"", 0), limited(65 * 60));
            assert_eq!(class(&rated(10, NOW + 100), secondary, 0), limited(60));
            assert_eq!(class(&[], secondary, 2), limited(240));
            assert_eq!(class(&[], secondary, 99), limited(3840));
        }
        let refused = classify(403, &headers(&rated(4999, NOW + 100)), rights, now(), 0);
        assert_eq!(refused, Class::Refused);
    }

    #[test]
    fn the_next_page_is_the_one_called_next() {
        let link = r#"<https://h/a?page=1>; rel="prev", <https://h/a?page=3>; rel="next""#;
        let next = next_page(&headers(&[("link", link.to_owned())]));
        assert_eq!(next.as_deref(), Some("https://h/a?page=3"));
        let last = r#"<https://h/a?page=1>; rel="first""#;
        assert_eq!(next_page(&headers(&[("link", last.to_owned())])), None);
    }

    #[test]
    fn words_are_one_bounded_line() {
        assert_eq!(message(b"{\"message\":\"a\\nb\"}"), "a b");
        let service = b"\xef\xbb\xbf{\"typeName\":\"AgentExistsException\",\"message\":\"x\"}";
        assert_eq!(message(service), "AgentExistsException: x");
        let long = format!("{{\"message\":\"{}\"}}", "x".repeat(10_000));
        assert_eq!(message(long.as_bytes()).len(), MESSAGE_LIMIT);
        assert_eq!(message(b"<html>secret"), "the answer is no JSON with a message");
    }

    proptest! {
        #[test]
        fn no_answer_makes_us_hurry_or_stop_forever(
            status in 100_u16..1000,
            retry in proptest::option::of("[0-9]{0,20}|soon"),
            remaining in proptest::option::of(0_u64..3),
            reset in any::<u64>(),
            body in proptest::collection::vec(any::<u8>(), 0..64),
            strikes in any::<u32>(),
        ) {
            let mut entries = remaining.map_or(vec![], |remaining| rated(remaining, reset));
            entries.extend(retry.map(|retry| ("retry-after", retry)));
            let class = classify(status, &headers(&entries), &body, now(), strikes);
            if let Class::RateLimited(until) = class {
                prop_assert!(until > now());
                prop_assert!(until <= now() + MOST_WAIT);
            }
            prop_assert_eq!(class == Class::Success, (200..300).contains(&status));
        }
    }
}
