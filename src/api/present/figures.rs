//! Times, durations, sizes and counts.

use std::time::Duration;

use crate::types::Time;

/// Formats a duration in one or two units: `192 ms`, `1.8 s`, `3 min 12 s`.
pub fn brief(duration: Duration) -> String {
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
pub fn millis(millis: u64) -> String {
    brief(Duration::from_millis(millis))
}

/// Formats a duration that goes on, in whole seconds. The page's script has the same format.
pub fn ongoing(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..10 => format!("{seconds} s"),
        seconds => brief(Duration::from_secs(seconds)),
    }
}

/// Formats how long ago something was, in one unit. The page's script has the same format.
pub fn ago(at: Time, now: Time) -> String {
    match now.since(at).as_secs() {
        0 => "now".to_owned(),
        seconds @ 1..60 => format!("{seconds} s ago"),
        seconds @ 60..3600 => format!("{} min ago", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} d ago", seconds / 86_400),
    }
}

/// Formats a time: `2026-03-01 12:00:05 UTC`.
pub fn moment(at: Time) -> String {
    let text = at.to_string();
    let seconds = text.split('.').next().unwrap_or_default();
    format!("{} UTC", seconds.replace('T', " "))
}

/// Formats a time of day: `12:00:05.123`.
pub fn clock(at: Time) -> String {
    let text = at.to_string();
    text.split('T').nth(1).unwrap_or_default().trim_end_matches('Z').to_owned()
}

/// Formats bytes in the largest fitting unit, with factors of 1024.
pub fn bytes(bytes: u64) -> String {
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
pub fn count(number: u64, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_changes_while_it_is_read_has_whole_seconds() {
        for (given, lasting, past) in [
            (900, "0 s", "now"),
            (1_850, "1 s", "1 s ago"),
            (192_000, "3 min 12 s", "3 min ago"),
            (7_500_000, "2 h 5 min", "2 h ago"),
            (273_600_000, "3 d 4 h", "3 d ago"),
        ] {
            assert_eq!(ongoing(Duration::from_millis(given)), lasting);
            assert_eq!(ago(Time(1_000), Time(1_000 + given)), past);
        }
    }
}
