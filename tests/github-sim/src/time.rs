//! Times: milliseconds since 1970 internally, GitHub's text externally.

/// Milliseconds since 1970.
pub type Millis = u64;

/// A second.
pub const SECOND: Millis = 1_000;

/// Returns this machine's time.
pub fn now() -> Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// Returns the seconds since 1970.
pub fn seconds(at: Millis) -> u64 {
    at / SECOND
}

/// Formats a time like GitHub: `2026-01-31T12:00:00Z`.
pub fn text(at: Millis) -> String {
    let seconds = at / SECOND;
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Formats a time like the `Date` header: `Sat, 31 Jan 2026 12:00:00 GMT`.
pub fn header(at: Millis) -> String {
    // 1 January 1970 was a Thursday.
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = at / SECOND / 86_400;
    let (year, month, day) = date(days);
    let name = |names: &[&'static str], index: u64| {
        usize::try_from(index).ok().and_then(|index| names.get(index)).copied().unwrap_or_default()
    };
    let (weekday, month) = (name(&DAYS, days % 7), name(&MONTHS, month - 1));
    format!("{weekday}, {day:02} {month} {year:04} {} GMT", &text(at)[11..19])
}

/// Returns the Gregorian date of a day since 1970. Counts years from March, so that the leap day
/// is the last of its year.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_ERA: u64 = 146_097;
    // 1 March of year 0 is 719,468 days before 1970.
    let days = days + 719_468;
    let (era, day) = (days / DAYS_OF_ERA, days % DAYS_OF_ERA);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_github_does() {
        assert_eq!(text(0), "1970-01-01T00:00:00Z");
        assert_eq!(header(1_795_222_800_999), "Sat, 21 Nov 2026 01:00:00 GMT");
        assert_eq!(text(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(text(1_795_222_800_999), "2026-11-21T01:00:00Z");
    }
}
