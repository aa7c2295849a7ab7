//! Tests of `dial`, beside it because they are as long.

use std::path::Path;
use std::sync::Mutex;

use tokio::net::TcpListener;

use super::*;
use crate::egress::address::Class;

/// Answers each lookup with the next of its answers, and the last one for ever.
struct Script(Mutex<Vec<Vec<IpAddr>>>);

impl Resolve for Script {
    fn resolve<'a>(&'a self, _: &'a HostName) -> Lookup<'a> {
        let mut answers = self.0.lock().unwrap();
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        Box::pin(async move { Ok(answer) })
    }
}

fn scripted(policy: &str, answers: &[&[&str]], host: &[&str]) -> Dialer {
    let policy = Policy::check(Path::new("f"), "ci", &toml::from_str(policy).unwrap()).unwrap();
    let parse = |text: &&str| text.parse().unwrap();
    let answers = answers.iter().map(|answer| answer.iter().map(parse).collect()).collect();
    Dialer::new(
        Arc::new(policy),
        AddressCheck::new(host.iter().map(parse)),
        Arc::new(Script(Mutex::new(answers))),
        Duration::from_secs(5),
    )
    .unwrap()
}

async fn refusal(dialer: &Dialer, host: &str, allow_private: bool) -> Cause {
    dialer.dial(&Host::parse(host).unwrap(), 443, allow_private).await.unwrap_err()
}

#[tokio::test]
async fn a_name_at_a_forbidden_address_is_not_dialled() {
    for (address, class) in [
        ("127.0.0.1", Class::Loopback),
        ("169.254.169.254", Class::LinkLocal),
        ("10.0.0.1", Class::Private),
        ("100.100.100.200", Class::Metadata),
        ("1.2.3.4", Class::Host),
        ("::ffff:127.0.0.1", Class::Reserved),
        ("fd00:ec2::254", Class::Metadata),
    ] {
        let dialer = scripted("", &[&[address]], &["1.2.3.4"]);
        assert_eq!(refusal(&dialer, "a.example", false).await, Cause::Address(class), "{address}");
        if class != Class::Private {
            let cause = refusal(&dialer, "a.example", true).await;
            assert_eq!(cause, Cause::Address(class), "{address}, private allowed");
        }
    }
}

#[tokio::test]
async fn one_forbidden_address_among_others_is_enough() {
    let dialer = scripted("", &[&["192.0.32.8", "127.0.0.1"]], &[]);
    assert_eq!(refusal(&dialer, "a.example", false).await, Cause::Address(Class::Loopback));
}

#[tokio::test]
async fn a_resolver_that_flips_is_checked_each_time() {
    // The first answer is refused for another reason; the second must not profit from any memory.
    let dialer = scripted("", &[&["10.0.0.1"], &["127.0.0.1"]], &[]);
    assert_eq!(refusal(&dialer, "a.example", false).await, Cause::Address(Class::Private));
    assert_eq!(refusal(&dialer, "a.example", false).await, Cause::Address(Class::Loopback));
}

#[tokio::test]
async fn a_literal_is_checked_like_a_name() {
    let dialer = scripted("mode = \"open\"", &[&[]], &["1.2.3.4"]);
    assert_eq!(refusal(&dialer, "1.2.3.4", true).await, Cause::Address(Class::Host));
    assert_eq!(refusal(&dialer, "127.0.0.1", true).await, Cause::Address(Class::Loopback));
    assert_eq!(refusal(&dialer, "10.0.0.1", false).await, Cause::Address(Class::Private));
    let parented =
        scripted("mode = \"open\"\nparent = \"http://127.0.0.1:1\"", &[&[]], &["1.2.3.4"]);
    assert_eq!(refusal(&parented, "1.2.3.4", true).await, Cause::Address(Class::Host));
}

#[tokio::test]
async fn the_operators_word_on_an_address_counts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let policy = format!("resolve = {{ \"git.internal\" = \"{address}\" }}");
    let dialer = scripted(&policy, &[&[]], &["127.0.0.1"]);
    let host = Host::parse("git.internal").unwrap();
    let dialled = dialer.dial(&host, 443, false).await.unwrap();
    assert_eq!(dialled.peer, Peer::Direct(address));
}

#[tokio::test]
async fn failures_of_the_network_have_their_own_causes() {
    let empty = scripted("", &[&[]], &[]);
    let cause = refusal(&empty, "a.example", false).await;
    assert_eq!(cause, Cause::Resolve("it has no address".into()));
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gone = scripted(&format!("parent = \"http://{closed}\""), &[&[]], &[]);
    let cause = refusal(&gone, "a.example", false).await;
    assert!(matches!(&cause, Cause::Parent(text) if text.contains("refused")), "{cause}");
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_never_ends_meets_the_deadline() {
    struct Never;
    impl Resolve for Never {
        fn resolve<'a>(&'a self, _: &'a HostName) -> Lookup<'a> {
            Box::pin(std::future::pending())
        }
    }
    let dialer = Dialer { resolver: Arc::new(Never), ..scripted("", &[&[]], &[]) };
    assert_eq!(refusal(&dialer, "a.example", false).await, Cause::ConnectDeadline);
}
