//! Untrusted text, made safe to show.

/// Returns whether a character is invisible, moves others, or is interpreted by a terminal (Unicode
/// `Bidi_Control` and `Default_Ignorable_Code_Point`, as far as they matter in a line of text).
pub fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// Returns a line without deceptive characters. Keeps tabs.
pub fn printable(line: &str) -> String {
    line.chars().filter(|character| *character == '\t' || !is_deceptive(*character)).collect()
}

/// Returns the first `max` characters that are not deceptive.
pub fn without_deceptive(text: &str, max: usize) -> String {
    text.chars().filter(|character| !is_deceptive(*character)).take(max).collect()
}

/// Returns a text with each deceptive character replaced.
pub fn replace_deceptive(text: &str, with: char) -> String {
    text.chars().map(|character| if is_deceptive(character) { with } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printable_line_neither_moves_the_cursor_nor_reorders_text() {
        assert_eq!(printable("a\tb\u{1b}[2J\r\u{202e}c\u{200b}\u{7}"), "a\tb[2Jc");
        assert_eq!(printable("ordinary: äöü, 日本語, 🦀"), "ordinary: äöü, 日本語, 🦀");
    }

    #[test]
    fn deceptive_characters_are_dropped_or_replaced() {
        let text = "a\tb\u{1b}[\u{202e}ö";
        assert_eq!(without_deceptive(text, 9), "ab[ö");
        // Dropped characters do not count.
        assert_eq!(without_deceptive(text, 3), "ab[");
        assert_eq!(replace_deceptive(text, '?'), "a?b?[?ö");
    }
}
