//! Tests of `dial`, in a separate file for length.

use std::path::Path;
use std::sync::Mutex;

use tokio::net::TcpListener;

use super::*;
use crate::address::AddressClass;

/// Answers each lookup with the next of its answers, and repeats the last one.
struct ScriptedResolver(Mutex<Vec<Vec<IpAddr>>>);

impl Resolve for ScriptedResolver {
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
        Arc::new(ScriptedResolver(Mutex::new(answers))),
        Duration::from_secs(5),
    )
    .unwrap()
}

async fn refusal(dialer: &Dialer, host: &str, allow_private: bool) -> RefusalCause {
    dialer.dial(&Host::parse(host).unwrap(), 443, allow_private).await.unwrap_err()
}

#[tokio::test]
async fn a_name_at_a_forbidden_address_is_not_dialed() {
    for (address, class) in [
        ("127.0.0.1", AddressClass::Loopback),
        ("169.254.169.254", AddressClass::LinkLocal),
        ("10.0.0.1", AddressClass::Private),
        ("100.100.100.200", AddressClass::Metadata),
        ("1.2.3.4", AddressClass::Host),
        ("::ffff:127.0.0.1", AddressClass::Reserved),
        ("fd00:ec2::254", AddressClass::Metadata),
    ] {
        let dialer = scripted("", &[&[address]], &["1.2.3.4"]);
        assert_eq!(
            refusal(&dialer, "a.example", false).await,
            RefusalCause::Address(class),
            "{address}"
        );
        if class != AddressClass::Private {
            let cause = refusal(&dialer, "a.example", true).await;
            assert_eq!(cause, RefusalCause::Address(class), "{address}, private allowed");
        }
    }
}

#[tokio::test]
async fn one_forbidden_address_among_others_is_enough() {
    let dialer = scripted("", &[&["192.0.32.8", "127.0.0.1"]], &[]);
    assert_eq!(
        refusal(&dialer, "a.example", false).await,
        RefusalCause::Address(AddressClass::Loopback)
    );
}

#[tokio::test]
async fn a_resolver_that_flips_is_checked_each_time() {
    // The first answer is refused for another reason; no cached result may help the second.
    let dialer = scripted("", &[&["10.0.0.1"], &["127.0.0.1"]], &[]);
    assert_eq!(
        refusal(&dialer, "a.example", false).await,
        RefusalCause::Address(AddressClass::Private)
    );
    assert_eq!(
        refusal(&dialer, "a.example", false).await,
        RefusalCause::Address(AddressClass::Loopback)
    );
}

#[tokio::test]
async fn a_literal_is_checked_like_a_name() {
    let dialer = scripted("mode = \"open\"", &[&[]], &["1.2.3.4"]);
    assert_eq!(refusal(&dialer, "1.2.3.4", true).await, RefusalCause::Address(AddressClass::Host));
    assert_eq!(
        refusal(&dialer, "127.0.0.1", true).await,
        RefusalCause::Address(AddressClass::Loopback)
    );
    assert_eq!(
        refusal(&dialer, "10.0.0.1", false).await,
        RefusalCause::Address(AddressClass::Private)
    );
    let parented =
        scripted("mode = \"open\"\nparent = \"http://127.0.0.1:1\"", &[&[]], &["1.2.3.4"]);
    assert_eq!(
        refusal(&parented, "1.2.3.4", true).await,
        RefusalCause::Address(AddressClass::Host)
    );
}

#[tokio::test]
async fn an_operator_override_is_exempt_from_the_check() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let policy = format!("resolve = {{ \"git.internal\" = \"{address}\" }}");
    let dialer = scripted(&policy, &[&[]], &["127.0.0.1"]);
    let host = Host::parse("git.internal").unwrap();
    let dialed = dialer.dial(&host, 443, false).await.unwrap();
    assert_eq!(dialed.peer, Peer::Direct(address));
}

#[tokio::test]
async fn failures_of_the_network_have_their_own_causes() {
    let empty = scripted("", &[&[]], &[]);
    let cause = refusal(&empty, "a.example", false).await;
    assert_eq!(cause, RefusalCause::Resolve("the name has no address".into()));
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gone = scripted(&format!("parent = \"http://{closed}\""), &[&[]], &[]);
    let cause = refusal(&gone, "a.example", false).await;
    assert!(matches!(&cause, RefusalCause::Parent(text) if text.contains("refused")), "{cause}");
}

#[tokio::test(start_paused = true)]
async fn an_endless_lookup_fails_at_the_deadline() {
    struct Never;
    impl Resolve for Never {
        fn resolve<'a>(&'a self, _: &'a HostName) -> Lookup<'a> {
            Box::pin(std::future::pending())
        }
    }
    let dialer = Dialer { resolver: Arc::new(Never), ..scripted("", &[&[]], &[]) };
    assert_eq!(refusal(&dialer, "a.example", false).await, RefusalCause::ConnectDeadline);
}
