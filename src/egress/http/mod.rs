//! Plain HTTP: the forward proxy, and requests on connections to port 80.

mod strict;

pub use strict::{Strict, Violation};
