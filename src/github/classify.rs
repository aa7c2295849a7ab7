//! Classification of responses. Pure: status, headers and body in, class out.

use std::time::{Duration, SystemTime};

use hyper::HeaderMap;
use serde::Deserialize;

use super::budget::RateLimit;
use mayfly_common::backoff::delay;
use mayfly_common::text::replace_deceptive;

/// The minimum wait that GitHub requests if a response has no exact time.
const MIN_WAIT: Duration = Duration::from_secs(60);
/// The longest wait that a response can cause: a primary limit's window plus a margin.
const MAX_WAIT: Duration = Duration::from_secs(65 * 60);
/// The maximum length of GitHub's message in an error.
const MESSAGE_LIMIT: usize = 300;

/// The class of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseClass {
    /// 2xx: the call took effect.
    Success,
    /// 304: unchanged.
    NotModified,
    /// 401: no effect; GitHub rejected the credentials.
    Unauthorized,
    /// 429, or a 403 that is a rate limit: no effect; don't call again before this time.
    RateLimited(SystemTime),
    /// 404: not found, or not visible.
    NotFound,
    /// 409.
    Conflict,
    /// Any other 3xx or 4xx: no effect, and a retry would be refused again.
    Refused,
    /// 5xx, 408, 1xx: the call may have taken effect.
    Ambiguous,
}

/// Classifies a response that arrived at `now`. `refusals` is the number of consecutive rate
/// limits without an exact time: each doubles the wait.
pub(super) fn classify(
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    now: SystemTime,
    refusals: u32,
) -> ResponseClass {
    match status {
        200..=299 => ResponseClass::Success,
        304 => ResponseClass::NotModified,
        401 => ResponseClass::Unauthorized,
        403 | 429 => match limited_until(status, headers, body, now, refusals) {
            Some(until) => ResponseClass::RateLimited(until),
            None => ResponseClass::Refused,
        },
        404 => ResponseClass::NotFound,
        409 => ResponseClass::Conflict,
        408 => ResponseClass::Ambiguous,
        300..=499 => ResponseClass::Refused,
        _ => ResponseClass::Ambiguous,
    }
}

/// Returns when the rate limit of a 403 or 429 ends; `None` for a 403 that is about permissions.
fn limited_until(
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    now: SystemTime,
    refusals: u32,
) -> Option<SystemTime> {
    if let Some(seconds) = number(headers, "retry-after") {
        // 0 would be a tight loop.
        return Some(now + Duration::from_secs(seconds.max(1)).min(MAX_WAIT));
    }
    if let Some(rate) = rate(headers).filter(|rate| rate.remaining == 0) {
        // A reset in the past means a wrong clock. One second is added: resets are whole seconds.
        let wait = rate.reset.duration_since(now).unwrap_or(MIN_WAIT) + Duration::from_secs(1);
        return Some(now + wait.min(MAX_WAIT));
    }
    let secondary = message(body).to_lowercase().contains("rate limit");
    (status == 429 || secondary).then(|| now + delay(refusals.min(6), MIN_WAIT, MAX_WAIT))
}

/// Returns the rate limit in the headers.
pub(super) fn rate(headers: &HeaderMap) -> Option<RateLimit> {
    Some(RateLimit {
        limit: number(headers, "x-ratelimit-limit")?,
        remaining: number(headers, "x-ratelimit-remaining")?,
        reset: SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(number(headers, "x-ratelimit-reset")?))?,
    })
}

/// Whether a rate limit is the primary `core` one, not that of one category of calls.
pub(super) fn is_core_limit(headers: &HeaderMap) -> bool {
    headers.get("x-ratelimit-resource").is_none_or(|resource| resource == "core")
}

/// Whether a rate limit applies to one category of calls only: a primary one that is not `core`.
pub(super) fn is_category_limit(headers: &HeaderMap) -> bool {
    !is_core_limit(headers)
        && !headers.contains_key("retry-after")
        && rate(headers).is_some_and(|rate| rate.remaining == 0)
}

/// Returns the URL of the next page.
pub(super) fn next_page(headers: &HeaderMap) -> Option<String> {
    let link = headers.get("link")?.to_str().ok()?;
    link.split(',').find_map(|entry| {
        let (address, parameters) = entry.split_once(';')?;
        let is_next = parameters.split(';').any(|parameter| parameter.trim() == "rel=\"next\"");
        let address = address.trim().strip_prefix('<')?.strip_suffix('>')?;
        is_next.then(|| address.to_owned())
    })
}

/// Returns GitHub's message in one bounded line: `message`, or `TYPE: message` from the scale set
/// service.
pub(super) fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct ErrorBody {
        #[serde(default, alias = "typeName")]
        type_name: Option<String>,
        message: String,
    }
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let text = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(ErrorBody { type_name: Some(kind), message }) => format!("{kind}: {message}"),
        Ok(ErrorBody { type_name: None, message }) => message,
        Err(_) if body.is_empty() => "no reason given".to_owned(),
        Err(_) => "the response is not JSON with a message".to_owned(),
    };
    replace_deceptive(&text, ' ').chars().take(MESSAGE_LIMIT).collect()
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

    fn limited(seconds: u64) -> ResponseClass {
        ResponseClass::RateLimited(now() + Duration::from_secs(seconds))
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
            (100, ResponseClass::Ambiguous),
            (200, ResponseClass::Success),
            (201, ResponseClass::Success),
            (202, ResponseClass::Success),
            (204, ResponseClass::Success),
            (301, ResponseClass::Refused),
            (304, ResponseClass::NotModified),
            (307, ResponseClass::Refused),
            (400, ResponseClass::Refused),
            (401, ResponseClass::Unauthorized),
            (403, ResponseClass::Refused),
            (404, ResponseClass::NotFound),
            (408, ResponseClass::Ambiguous),
            (409, ResponseClass::Conflict),
            (410, ResponseClass::Refused),
            (422, ResponseClass::Refused),
            (429, limited(60)),
            (500, ResponseClass::Ambiguous),
            (502, ResponseClass::Ambiguous),
            (503, ResponseClass::Ambiguous),
            (504, ResponseClass::Ambiguous),
        ];
        for (status, class) in table {
            let none = HeaderMap::new();
            assert_eq!(classify(status, &none, b"", now(), 0), class, "{status}");
        }
    }

    #[test]
    fn a_rate_limit_has_an_end() {
        let secondary = br#"{"message":"You have exceeded a secondary rate limit"}"#;
        let forbidden = br#"{"message":"Resource not accessible by integration"}"#;
        for status in [403, 429] {
            let class = |entries: &[_], body: &[u8], refusals| {
                classify(status, &headers(entries), body, now(), refusals)
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
        let refused = classify(403, &headers(&rated(4999, NOW + 100)), forbidden, now(), 0);
        assert_eq!(refused, ResponseClass::Refused);
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
    fn a_message_is_one_bounded_line() {
        assert_eq!(message(b"{\"message\":\"a\\nb\"}"), "a b");
        let service = b"\xef\xbb\xbf{\"typeName\":\"AgentExistsException\",\"message\":\"x\"}";
        assert_eq!(message(service), "AgentExistsException: x");
        let long = format!("{{\"message\":\"{}\"}}", "x".repeat(10_000));
        assert_eq!(message(long.as_bytes()).len(), MESSAGE_LIMIT);
        assert_eq!(message(b"<html>secret"), "the response is not JSON with a message");
    }

    proptest! {
        #[test]
        fn no_response_causes_a_tight_loop_or_an_endless_wait(
            status in 100_u16..1000,
            retry in proptest::option::of("[0-9]{0,20}|soon"),
            remaining in proptest::option::of(0_u64..3),
            reset in any::<u64>(),
            body in proptest::collection::vec(any::<u8>(), 0..64),
            refusals in any::<u32>(),
        ) {
            let mut entries = remaining.map_or(vec![], |remaining| rated(remaining, reset));
            entries.extend(retry.map(|retry| ("retry-after", retry)));
            let class = classify(status, &headers(&entries), &body, now(), refusals);
            if let ResponseClass::RateLimited(until) = class {
                prop_assert!(until > now());
                prop_assert!(until <= now() + MAX_WAIT);
            }
            prop_assert_eq!(class == ResponseClass::Success, (200..300).contains(&status));
        }
    }
}
