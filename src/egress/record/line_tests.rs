//! Tests of `line`, in a separate file for length.

use proptest::prelude::*;

use super::*;

fn subject() -> Subject {
    Subject {
        via: Via::Transparent,
        host: "github.com".into(),
        port: 443,
        original: "198.18.0.7:443".parse().ok(),
        method: "CONNECT".into(),
        url: None,
    }
}

fn context<'a>(verdict: &'a Verdict, end: Option<&'a FlowEnd>) -> LineContext<'a> {
    LineContext {
        now: UNIX_EPOCH + Duration::from_millis(1_700_000_000_042),
        microvm: "vm1",
        policy: "ci",
        client: "172.31.0.2",
        id: Some(3),
        verdict,
        rule: Some("allow[0] github.com"),
        end,
    }
}

fn end() -> FlowEnd {
    FlowEnd {
        up: 100,
        down: 2000,
        elapsed: Duration::from_millis(684),
        reason: None,
        status: None,
        named: None,
        peer: Some(Peer::Direct("140.82.121.4:443".parse().unwrap())),
    }
}

#[test]
fn an_allowed_tunnel_has_a_line_in_each_format() {
    let end = end();
    let context = context(&Verdict::Allowed, Some(&end));
    assert_eq!(
        squid(&context, &subject()),
        "1700000000.042    684 172.31.0.2 TCP_TUNNEL/200 2000 CONNECT github.com:443 - \
         HIER_DIRECT/140.82.121.4 -\n"
    );
    let line: serde_json::Value = serde_json::from_str(&json(&context, &subject())).unwrap();
    assert_eq!(
        line,
        serde_json::json!({
            "time": "2023-11-14T22:13:20.042Z", "event": "closed", "microvm": "vm1",
            "policy": "ci", "id": 3, "via": "transparent", "method": "CONNECT",
            "host": "github.com", "port": 443, "original": "198.18.0.7:443",
            "verdict": "allowed", "rule": "allow[0] github.com",
            "peer": "140.82.121.4:443", "up": 100, "down": 2000, "milliseconds": 684,
        })
    );
}

#[test]
fn a_refusal_names_its_cause() {
    let verdict = Verdict::Refused(RefusalCause::SniMismatch("evil.example".into()));
    let context = context(&verdict, None);
    let line: serde_json::Value = serde_json::from_str(&json(&context, &subject())).unwrap();
    assert_eq!(line["event"], "verdict");
    assert_eq!(line["verdict"], "refused");
    assert_eq!(line["cause"], "sni-mismatch");
    assert_eq!(line["detail"], "the ClientHello names another server, \"evil.example\"");
    assert_eq!(
        squid(&context, &subject()),
        "1700000000.042      0 172.31.0.2 TCP_DENIED/000 0 CONNECT github.com:443 - HIER_NONE/- -\n"
    );
}

#[test]
fn each_path_has_its_result_in_the_access_log() {
    let refused = Verdict::Refused(RefusalCause::NoRule);
    let proxied = Subject { via: Via::Proxy, url: Some("http://a/b".into()), ..subject() };
    let end = FlowEnd { status: Some(404), peer: Some(Peer::Parent("squid".into())), ..end() };
    for (subject, verdict, end, part) in [
        (
            Subject { via: Via::Dns, method: "DNS".into(), port: 0, ..subject() },
            &refused,
            None,
            " UDP_DENIED/000 0 DNS github.com - HIER_NONE/- -",
        ),
        (
            Subject { via: Via::Packet, method: "SYN".into(), ..subject() },
            &refused,
            None,
            " TCP_DENIED/000 0 SYN github.com:443 - ",
        ),
        (proxied.clone(), &refused, None, " TCP_DENIED/403 0 CONNECT http://a/b - "),
        (
            Subject { method: "GET".into(), ..proxied },
            &Verdict::Allowed,
            Some(&end),
            " TCP_MISS/404 2000 GET http://a/b - FIRSTUP_PARENT/squid -",
        ),
    ] {
        let line = squid(&context(verdict, end), &subject);
        assert!(line.contains(part), "{line}");
    }
}

proptest! {
    #[test]
    fn no_guest_text_breaks_a_line(
        host in ".{0,400}", method in ".{0,400}", url in prop::option::of(".{0,400}"),
        control in "[\\x00-\\x1f\"\\\\]{0,400}", at in 0_usize..5,
    ) {
        let mut texts = [host, method, url.clone().unwrap_or_default(), control.clone(), control];
        texts.rotate_left(at);
        let [host, method, said, detail, _] = texts;
        let url = url.map(|_| said);
        let subject = Subject { host, method, url, ..subject() }.truncated();
        let verdict = Verdict::Refused(RefusalCause::HostMismatch(detail));
        let context = context(&verdict, None);
        let line = squid(&context, &subject);
        prop_assert_eq!(line.matches('\n').count(), 1);
        prop_assert_eq!(line.split_whitespace().count(), 10);
        prop_assert!(line.is_ascii());
        let line = json(&context, &subject);
        prop_assert_eq!(line.matches('\n').count(), 1);
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        prop_assert_eq!(read["host"].as_str(), Some(&*subject.host));
        prop_assert!(line.len() < 4 * (MAX_TEXT + 3) + 512, "{}", line.len());
    }
}
