//! Reads the statistics of the machine from `/proc`.

use std::fs;

use mayfly_protocol::message::Statistics;
use nix::sys::statvfs::statvfs;

/// Reads all statistics. A value that can't be read is zero: a heartbeat without it still shows
/// that the machine is alive.
pub(crate) fn read() -> Statistics {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    let memory = text("/proc/meminfo");
    let (disk_total, disk_available) = statvfs("/").map_or((0, 0), |root| {
        let unit = root.fragment_size();
        (root.blocks().saturating_mul(unit), root.blocks_available().saturating_mul(unit))
    });
    Statistics {
        load_percent: parse_load(&text("/proc/loadavg")),
        memory_total: parse_field(&memory, "MemTotal:").saturating_mul(1024),
        memory_available: parse_field(&memory, "MemAvailable:").saturating_mul(1024),
        disk_total,
        disk_available,
        oom_kills: parse_field(&text("/proc/vmstat"), "oom_kill"),
    }
}

/// Returns the first number of `/proc/loadavg`, which always has two decimals, times 100.
fn parse_load(text: &str) -> u32 {
    let first = text.split_whitespace().next().unwrap_or_default();
    first.replace('.', "").parse().unwrap_or_default()
}

/// Returns the number after a name, in a file of such lines.
fn parse_field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next())?
    });
    value.and_then(|value| value.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_in_hundredths() {
        assert_eq!(parse_load("0.42 0.10 0.01 1/80 300\n"), 42);
        assert_eq!(parse_load("12.05 0.10 0.01 1/80 300\n"), 1205);
        assert_eq!(parse_load(""), 0);
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "oom_kill_disable 0\noom_kill 3\nMemTotal:     496 kB\n";
        assert_eq!(parse_field(text, "oom_kill"), 3);
        assert_eq!(parse_field(text, "MemTotal:"), 496);
        assert_eq!(parse_field(text, "MemFree:"), 0);
    }

    #[test]
    fn this_machine_has_memory_and_a_disk() {
        let statistics = read();
        assert!(statistics.memory_total > statistics.memory_available);
        assert!(statistics.disk_total >= statistics.disk_available);
        assert!(statistics.disk_total > 0);
    }
}
