//! The forward proxy.

use crate::support::{Guest, TlsServer, WebServer};

const PROXY: &str = "http://172.31.0.1:3128";

#[test]
fn curl_reaches_an_allowed_name_through_the_proxy() {
    let origin = WebServer::new("hello");
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"web.example\" }}]\nresolve = {{ \"web.example\" = \"{}\" }}",
        origin.address
    ));
    let twice = ["-x", PROXY, "http://web.example/x", "http://web.example/y"];
    assert_eq!(guest.curl(&twice).unwrap(), "hello 200hello 200");
    let upload = ["-x", PROXY, "-d", "some data", "http://web.example/z"];
    assert_eq!(guest.curl(&upload).unwrap(), "hello 200");
    let requests = origin.requests();
    assert_eq!(requests.len(), 3);
    assert!(requests[0].starts_with("GET /x HTTP/1.1\r\n"), "{requests:?}");
    assert!(!requests[0].to_lowercase().contains("proxy-connection"), "{requests:?}");
    assert!(requests[2].ends_with("\r\n\r\nsome data"), "{requests:?}");
    let sums = guest.wait_for("all bytes", |guest| {
        let row = &guest.report().rows[0];
        // Heads are counted, too.
        (row.connections == 3 && row.down > 3 * 40).then_some(row.up)
    });
    assert!(sums > 3 * 40, "{sums}");
}

#[test]
fn curl_reaches_an_allowed_name_through_a_tunnel() {
    let origin = TlsServer::new(&["tls.example"]);
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"tls.example\" }}]\nresolve = {{ \"tls.example\" = \"{}\" }}",
        origin.address
    ));
    let certificate = origin.certificate();
    let through = ["-x", PROXY, "--cacert", &certificate, "https://tls.example/index.html"];
    assert_eq!(guest.curl(&through).unwrap(), "over TLS\n 200");
    guest.wait_for_access(" TCP_TUNNEL/200 ");
}

#[test]
fn a_refusal_names_policy_and_host() {
    let guest = Guest::new("allow = [{ host = \"web.example\" }]");
    let answer = guest.curl(&["-x", PROXY, "http://evil.example/"]).unwrap();
    assert_eq!(
        answer,
        "mayfly: egress policy ci refuses evil.example:80: no rule allows the name\n 403"
    );
    let error = guest.curl(&["-x", PROXY, "https://evil.example/"]).unwrap_err();
    assert!(error.contains("403"), "{error}");
    guest.expect_refusals(&["evil.example:443 no-rule", "evil.example:80 no-rule"]);
    guest.wait_for_access(" TCP_DENIED/403 0 CONNECT evil.example:443 - HIER_NONE/- -");
}

#[test]
fn a_tunnel_refuses_a_hello_for_another_name() {
    let origin = TlsServer::new(&["tls.example", "evil.example"]);
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"tls.example\" }}]\nresolve = {{ \"tls.example\" = \"{}\" }}",
        origin.address
    ));
    let certificate = origin.certificate();
    let fronted = [
        "-x",
        PROXY,
        "--cacert",
        &certificate,
        "--connect-to",
        "evil.example:443:tls.example:443",
        "https://evil.example/index.html",
    ];
    assert!(guest.curl(&fronted).is_err());
    guest.expect_refusals(&["tls.example:443 sni-mismatch"]);
}

#[test]
fn requests_in_a_tunnel_to_port_80_are_checked_individually() {
    let origin = WebServer::new("hello");
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"web.example\" }}]\nresolve = {{ \"web.example\" = \"{}\" }}",
        origin.address
    ));
    let tunnel = |extra: &[&str]| {
        guest.curl(&[&["-p", "-x", PROXY][..], extra, &["http://web.example/"]].concat())
    };
    assert_eq!(tunnel(&[]).unwrap(), "hello 200");
    let fronted = tunnel(&["-H", "Host: evil.example"]).unwrap();
    assert!(fronted.ends_with(" 400"), "{fronted}");
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn programs_use_the_proxy_from_their_environment() {
    let origin = WebServer::new("hello");
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"web.example\" }}]\nresolve = {{ \"web.example\" = \"{}\" }}",
        origin.address
    ));
    let program = "import urllib.request as r; print(r.urlopen('http://web.example/').read())";
    let output = guest.run_with(&["python3", "-c", program], &[("http_proxy", PROXY)]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "b'hello'\n", "{output:?}");
    assert!(guest.events().iter().any(|event| event["via"] == "proxy"));
}

#[test]
fn an_upgrade_request_is_served_without_the_upgrade() {
    let origin = WebServer::new("hello");
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"web.example\" }}]\nresolve = {{ \"web.example\" = \"{}\" }}",
        origin.address
    ));
    let upgrade = ["-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "http://web.example/"];
    for proxy in [&[][..], &["-x", "http://172.31.0.1:3128"], &["-p", "-x", "172.31.0.1:3128"]] {
        assert_eq!(guest.curl(&[proxy, &upgrade].concat()).unwrap(), "hello 200", "{proxy:?}");
    }
    for request in origin.requests() {
        assert!(!request.to_lowercase().contains("upgrade"), "{request}");
    }
}
