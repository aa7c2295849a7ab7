//! Limits on the record: lines per second, and bytes.

/// The limits on a microVM's record, for allowed traffic and for verdicts without traffic
/// separately, so that neither displaces the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordLimits {
    /// Lines per second on average.
    pub per_second: u64,
    /// Lines in a burst.
    pub burst: u64,
    /// Bytes in each file.
    pub bytes: u64,
}

impl Default for RecordLimits {
    /// Enough for a build with thousands of downloads; a flood of refusals fills at most 32 MiB per
    /// file, beside allowed traffic.
    fn default() -> Self {
        Self { per_second: 500, burst: 5_000, bytes: 32 << 20 }
    }
}
