//! Markup of times, untrusted texts, and what is good or bad.

use maud::{Markup, html};

use crate::present::{self, Tone};
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

/// Renders how long ago `at` was, with the time itself as a tooltip. The script keeps it current.
pub(super) fn ago(at: Time, now: Time) -> Markup {
    html! { time datetime=(at) title=(present::moment(at)) data-ago { (present::ago(at, now)) } }
}

/// Renders how long something has been going on. The script keeps it current.
pub(super) fn since(at: Time, now: Time) -> Markup {
    let lasted = present::ongoing(now.since(at));
    html! { time datetime=(at) title=(present::moment(at)) data-since { (lasted) } }
}

/// Returns the class of a tone in the style sheet.
pub(super) fn class(tone: Tone) -> &'static str {
    match tone {
        Tone::Bad => "bad",
        Tone::Warning => "warn",
        Tone::Active => "active",
        Tone::Plain => "",
        Tone::Good => "good",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
