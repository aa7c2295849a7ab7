//! Tables and durations for people.

use std::time::Duration;

use super::output::{Output, OutputError};

/// Prints rows under a heading, each column as wide as its widest cell.
pub(super) fn print<const N: usize>(
    output: &mut Output,
    heading: [&str; N],
    rows: &[[String; N]],
) -> Result<(), OutputError> {
    lines(heading, rows).into_iter().try_for_each(|line| output.line(line))
}

pub(super) fn lines<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let rows: Vec<[String; N]> = std::iter::once(heading.map(str::to_owned))
        .chain(rows.iter().map(|row| row.each_ref().map(|cell| plain(cell))))
        .collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    });
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// A text without what a terminal would obey: names of jobs are written by others.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// A cell for something that may not be there.
pub(super) fn optional(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A duration in its two largest units, or with a few digits where it is short.
pub(super) fn brief(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        return format!("{}ms", duration.as_millis());
    }
    if duration < Duration::from_secs(10) {
        return format!("{:.1}s", duration.as_secs_f64());
    }
    let text = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them_and_obey_nobody() {
        let rows =
            [["1".to_owned(), "größer".to_owned()], ["200".to_owned(), "\x1b[2J".to_owned()]];
        assert_eq!(lines(["ID", "NAME"], &rows), ["ID   NAME", "1    größer", "200  ?[2J"]);
    }

    #[test]
    fn durations_are_told_briefly() {
        for (milliseconds, text) in
            [(7, "7ms"), (1_250, "1.2s"), (75_400, "1m 15s"), (90_061_000, "1day 1h")]
        {
            assert_eq!(brief(Duration::from_millis(milliseconds)), text);
        }
    }
}
