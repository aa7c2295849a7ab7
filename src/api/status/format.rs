//! Formatting of times, sizes and untrusted texts.

use std::time::Duration;

use maud::{Markup, html};

use crate::types::Time;
use mayfly_common::text::is_deceptive;

/// The maximum number of characters of a text on one line.
pub(super) const LINE: usize = 160;
/// The maximum number of characters of a longer text.
pub(super) const PARAGRAPH: usize = 2000;

/// Formats an untrusted text: truncates it, and makes characters visible that are invisible or
/// change how the text around them reads (control characters, bidirectional overrides). The
/// templates do the escaping.
pub(super) fn text(text: &str, max: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(max * 4));
    let mut rest = text.chars();
    for character in rest.by_ref().take(max) {
        match character {
            '\n' | '\t' => shown.push(' '),
            _ if is_deceptive(character) => shown.extend(character.escape_unicode()),
            _ => shown.push(character),
        }
    }
    if rest.next().is_some() {
        shown.push('…');
    }
    shown
}

/// Formats a duration in one or two units.
pub(super) fn brief(duration: Duration) -> String {
    let (millis, seconds) = (duration.as_millis(), duration.as_secs());
    match seconds {
        _ if millis < 1000 => format!("{millis} ms"),
        0..10 => format!("{seconds}.{} s", (millis % 1000) / 100),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Formats milliseconds as a duration.
pub(super) fn millis(millis: u64) -> String {
    brief(Duration::from_millis(millis))
}

/// Renders how long ago `at` was, with the time itself as a tooltip. The script keeps it current.
pub(super) fn ago(at: Time, now: Time) -> Markup {
    let past = now.since(at).as_secs();
    html! {
        time datetime=(at) title=(moment(at)) data-ago {
            @if past == 0 { "now" } @else { (roughly(past)) " ago" }
        }
    }
}

/// Renders how long something has been going on. The script keeps it current.
pub(super) fn since(at: Time, now: Time) -> Markup {
    let lasted = now.since(at).as_secs();
    html! { time datetime=(at) title=(moment(at)) data-since { (seconds(lasted)) } }
}

/// Formats a past duration in one unit.
fn roughly(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Formats an ongoing duration in whole seconds.
fn seconds(seconds: u64) -> String {
    if seconds < 10 { format!("{seconds} s") } else { brief(Duration::from_secs(seconds)) }
}

/// Formats a time: `2026-03-01 12:00:05 UTC`.
pub(super) fn moment(at: Time) -> String {
    let text = at.to_string();
    let seconds = text.split('.').next().unwrap_or_default();
    format!("{} UTC", seconds.replace('T', " "))
}

/// Formats a time of day: `12:00:05.123`.
pub(super) fn clock(at: Time) -> String {
    let text = at.to_string();
    text.split('T').nth(1).unwrap_or_default().trim_end_matches('Z').to_owned()
}

/// Formats bytes in the largest fitting unit, with factors of 1024.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if tenths >= 1000 || tenths % 10 == 0 {
        format!("{} {}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// Formats a count: `1 job`, `2 jobs`.
pub(super) fn count(number: u64, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_and_sizes_have_the_unit_that_fits() {
        for (given, expected) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_850, "1.8 s"),
            (42_900, "42 s"),
            (192_000, "3 min 12 s"),
            (7_500_000, "2 h 5 min"),
            (273_600_000, "3 d 4 h"),
        ] {
            assert_eq!(millis(given), expected);
        }
        for (given, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (200 << 10, "200 KiB"),
            (3 << 30, "3 GiB"),
            (u64::MAX, "16383 PiB"),
        ] {
            assert_eq!(bytes(given), expected);
        }
    }

    #[test]
    fn deceptive_characters_are_made_visible() {
        assert_eq!(text("a\u{202e}b\0c\nd", 99), "a\\u{202e}b\\u{0}c d");
        assert_eq!(text("abcdef", 3), "abc…");
        assert_eq!(text("äöü", 3), "äöü");
    }

    proptest! {
        #[test]
        fn any_text_is_bounded_and_visible(input in any::<String>(), max in 0_usize..200) {
            let shown = text(&input, max);
            // An escape has ten characters at most.
            prop_assert!(shown.chars().count() <= max * 10 + 1);
            prop_assert!(!shown.chars().any(is_deceptive));
        }
    }
}
