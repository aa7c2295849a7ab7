//! Small pure functions and types that several crates use.

pub mod backoff;
pub mod text;
pub mod token_bucket;
