//! Tables for terminals.

use unicode_width::UnicodeWidthChar;

use super::output::{Output, OutputError};
use mayfly_common::text::replace_deceptive;

/// The maximum width of a cell in columns. Names of jobs can have any length.
const MAX_CELL_WIDTH: usize = 160;

/// Prints rows under a heading in capitals, each column as wide as its widest cell.
pub(super) fn print<const N: usize>(
    output: &mut Output,
    heading: [&str; N],
    rows: &[[String; N]],
) -> Result<(), OutputError> {
    lines(heading, rows).into_iter().try_for_each(|line| output.line(line))
}

pub(super) fn lines<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let rows: Vec<[(String, usize); N]> =
        std::iter::once(heading.map(|name| cell(&name.to_uppercase())))
            .chain(rows.iter().map(|row| row.each_ref().map(|text| cell(text))))
            .collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].1).max().unwrap_or_default()
    });
    let line = |row: &[(String, usize); N]| {
        let mut line = String::new();
        for ((text, taken), width) in row.iter().zip(widths) {
            line.push_str(text);
            // A format width is limited, and counts characters instead of columns.
            line.extend(std::iter::repeat_n(' ', width - taken + 2));
        }
        line.truncate(line.trim_end().len());
        line
    };
    rows.iter().map(line).collect()
}

/// Returns the text of a cell and its width in columns.
fn cell(text: &str) -> (String, usize) {
    let (mut shown, mut taken) = (String::new(), 0);
    // Characters without a width are not limited by the width of the cell.
    for letter in sanitize(text).chars().take(2 * MAX_CELL_WIDTH) {
        let width = letter.width().unwrap_or(1);
        if taken + width > MAX_CELL_WIDTH {
            break;
        }
        shown.push(letter);
        taken += width;
    }
    if text.chars().nth(shown.chars().count()).is_some() {
        shown.push('…');
        taken += 1;
    }
    (shown, taken)
}

/// Replaces characters that a terminal interprets. Names of jobs are untrusted.
pub(super) fn sanitize(text: &str) -> String {
    replace_deceptive(text, '?')
}

/// Returns the cell of an optional value.
pub(super) fn optional(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use mayfly_common::text::is_deceptive;
    use proptest::prelude::*;
    use unicode_width::UnicodeWidthStr;

    use super::*;

    #[test]
    fn columns_fit_their_cells_and_control_characters_are_replaced() {
        let rows =
            [["1".to_owned(), "größer".to_owned()], ["200".to_owned(), "\x1b[2J".to_owned()]];
        assert_eq!(lines(["Id", "Name"], &rows), ["ID   NAME", "1    größer", "200  ?[2J"]);
    }

    #[test]
    fn columns_are_aligned_for_any_text() {
        for (text, shown) in [
            ("日本", "日本"),
            ("e\u{301}", "e\u{301}"),
            ("a\u{202e}b", "a?b"),
            ("a\nb\r\u{2028}c", "a?b??c"),
            ("שלום", "שלום"),
            ("", ""),
        ] {
            let rows = [[text.to_owned(), "|".to_owned()], ["123456".to_owned(), "|".to_owned()]];
            let lines = lines(["A", "B"], &rows);
            let gap = " ".repeat(8 - shown.width());
            assert_eq!(lines[1], format!("{shown}{gap}|"), "{text:?}");
        }
    }

    #[test]
    fn long_cells_are_cut() {
        for letter in ["x", "日", "\u{301}", "\u{200b}", "\u{1b}", "👩\u{200d}"] {
            for length in [400, 65_535, 65_536, 100_000] {
                let text = letter.repeat(length);
                let lines = lines(["NAME", "STATE"], &[[text, "running".to_owned()]]);
                let [name, state] = lines[1].rsplit_once(' ').map(<[&str; 2]>::from).unwrap();
                assert!(name.trim_end().ends_with('…'), "{letter:?} {length}");
                assert_eq!(state, "running");
                assert!(lines[1].width() <= MAX_CELL_WIDTH + 10, "{letter:?} {length}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_a_table(
            cells in prop::collection::vec(any::<[String; 3]>(), 0..8),
            unit in any::<String>(),
            times in 0_usize..70_000,
        ) {
            let mut rows = cells;
            rows.push([unit.repeat(times.min(200_000 / unit.len().max(1))), unit.clone(), unit]);
            let lines = lines(["A", "B", "C"], &rows);
            prop_assert_eq!(lines.len(), rows.len() + 1);
            for line in lines {
                prop_assert!(!line.contains(is_deceptive));
                let columns: usize = line.chars().filter_map(UnicodeWidthChar::width).sum();
                prop_assert!(columns <= 3 * (MAX_CELL_WIDTH + 3));
            }
        }
    }
}
