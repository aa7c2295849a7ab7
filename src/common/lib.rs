//! What several crates share: retry delays, a token bucket, safe text.
//!
//! All of it is pure: no clock, no input or output. Uses no other crate.

pub mod backoff;
pub mod text;
pub mod token_bucket;
