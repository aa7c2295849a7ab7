//! Egress from a guest's point of view: real clients in their own network namespace, connected by a
//! veth pair to the namespace that a gate serves, as a microVM's tap device connects them.
//!
//! Requires root or `unshare --user --map-root-user`, and the programs `ip`, `nft`, `curl`, `git`,
//! `python3`, `openssl` and `squid`.

#![expect(unreachable_pub, reason = "a test has no other crate to be reached from")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

mod bypass;
mod byte_limits;
mod clients;
mod connect_results;
mod corpus;
mod deny_rules;
mod http_compatibility;
mod limits;
mod memory;
mod packets;
mod parent;
mod proxy;
mod rates;
