//! The DNS stub: allowed names get a synthetic address, all others are refused at once, and
//! nothing that a guest asks is ever forwarded.

pub mod message;
