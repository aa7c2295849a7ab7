//! Small pure functions that several folders use.

pub mod backoff;
pub mod text;
