//! Egress as a guest sees it: real clients in a network namespace of their own, joined by a veth
//! pair to the namespace that a gate serves, as a microVM's tap device joins them.
//!
//! Needs root or `unshare --user --map-root-user`, and the programs `ip`, `nft`, `curl`, `git`,
//! `python3`, `openssl` and `squid`.

#![expect(unreachable_pub, reason = "a test has no other crate to be reached from")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

mod answered;
mod bypass;
mod clients;
mod corpus;
mod denied;
mod lenient;
mod limits;
mod memory;
mod packets;
mod parent;
mod proxy;
mod rates;
