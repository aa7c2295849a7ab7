//! A real squid as the parent proxy.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::Duration;

use crate::support::{FakeResolver, Guest, Options, Squid, TlsServer, WebServer};

const PROXY: &str = "http://172.31.0.1:3128";

#[test]
fn requests_and_tunnels_go_through_squid_by_name() {
    // Plain HTTP uses port 80; only this test uses the address.
    let origin = WebServer::at("127.31.0.80:80", "hello");
    let tls = TlsServer::new(&["tls.example"]);
    let squid =
        Squid::new("127.31.0.80 web.example\n127.0.0.1 tls.example\n", "http_access allow users");
    let credentials = squid.directory.path().join("credentials");
    std::fs::write(&credentials, "ci:secret\n").unwrap();
    let port = tls.address.port();
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"web.example\" }}, {{ host = \"tls.example\", ports = [{port}] }}]\n\
         parent = \"http://{}\"\nparent_credentials = {credentials:?}",
        squid.address
    ));
    assert_eq!(guest.curl(&["http://web.example/x"]).unwrap(), "hello 200");
    assert_eq!(guest.curl(&["-x", PROXY, "http://web.example/y"]).unwrap(), "hello 200");
    let certificate = tls.certificate();
    let url = format!("https://tls.example:{port}/index.html");
    let over_tls = ["--cacert", &certificate, &url];
    assert_eq!(guest.curl(&over_tls).unwrap(), "over TLS\n 200");
    let proxied = [&["-x", PROXY][..], &over_tls].concat();
    assert_eq!(guest.curl(&proxied).unwrap(), "over TLS\n 200");
    for part in [
        "GET http://web.example/x ci HIER_DIRECT/127.31.0.80",
        "GET http://web.example/y ci HIER_DIRECT/127.31.0.80",
        &format!("CONNECT tls.example:{port} ci HIER_DIRECT/127.0.0.1"),
    ] {
        // Squid, too, writes a tunnel's line when the tunnel ends.
        guest.wait_for(part, |_| squid.file("access.log").contains(part).then_some(()));
    }
    guest.wait_for_access(" FIRSTUP_PARENT/127.0.0.1 ");
    assert!(!origin.requests().concat().contains("secret"), "{:?}", origin.requests());
}

#[test]
fn refusals_by_squid_are_reported_with_its_status() {
    let squid = Squid::new("", "http_access deny all");
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"web.example\" }}]\nparent = \"http://{}\"",
        squid.address
    ));
    let error = guest.curl(&["-x", PROXY, "https://web.example/"]).unwrap_err();
    assert!(error.contains("502"), "{error}");
    let refused = guest.events().into_iter().find(|event| event["cause"] == "parent").unwrap();
    assert_eq!(refused["detail"], "the parent proxy failed: it answered 403 Forbidden");
    // The response to a request is squid's own, and the client sees it.
    let answer = guest.curl(&["-x", PROXY, "http://web.example/"]).unwrap();
    assert!(answer.ends_with(" 403") && answer.contains("squid"), "{answer}");
}

#[test]
fn wrong_credentials_are_reported() {
    let squid = Squid::new("", "http_access allow users");
    let credentials = squid.directory.path().join("credentials");
    std::fs::write(&credentials, "ci:wrong\n").unwrap();
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"web.example\" }}]\nparent = \"http://{}\"\n\
         parent_credentials = {credentials:?}",
        squid.address
    ));
    assert!(guest.curl(&["-x", PROXY, "https://web.example/"]).is_err());
    let refused = guest.events().into_iter().find(|event| event["cause"] == "parent").unwrap();
    assert_eq!(
        refused["detail"],
        "the parent proxy failed: it answered 407 Proxy Authentication Required"
    );
}

/// Sends a request to the proxy, which must respond with an error.
fn expect_error(guest: &Guest, request: &[u8], what: &str) {
    guest.within(|| {
        let mut stream = TcpStream::connect(&PROXY["http://".len()..]).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(request).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        let head = String::from_utf8_lossy(&head);
        assert!(head.starts_with("HTTP/1.1 4") || head.starts_with("HTTP/1.1 5"), "{what}: {head}");
    });
}

#[test]
fn names_of_internal_hosts_are_not_passed_to_the_parent() {
    let squid = Squid::new("", "http_access allow all");
    let names = FakeResolver(Mutex::new(vec![
        ("inside.example", vec!["10.1.2.3".parse().unwrap()]),
        ("loopback.example", vec!["127.0.0.1".parse().unwrap()]),
        ("metadata.example", vec!["169.254.169.254".parse().unwrap()]),
    ]));
    let policy = format!("mode = \"open\"\nparent = \"http://{}\"", squid.address);
    let guest = Guest::with(&policy, Options { names, ..Options::default() });
    for (target, cause) in [
        ("localhost:22", "special-name"),
        ("LocalHost.:22", "special-name"),
        ("a.localhost:22", "special-name"),
        ("localhost.localdomain:22", "special-name"),
        ("ip6-localhost:22", "special-name"),
        ("metadata.google.internal:80", "special-name"),
        ("metadata:80", "special-name"),
        ("instance-data.ec2.internal:80", "special-name"),
        ("host.docker.internal:80", "special-name"),
        ("db.internal:5432", "special-name"),
        ("printer.local:631", "special-name"),
        ("router.home.arpa:80", "special-name"),
        ("db:5432", "special-name"),
        ("inside.example:80", "address"),
        ("loopback.example:22", "address"),
        ("metadata.example:80", "address"),
        ("2130706433:22", "host"),
        ("0x7f000001:22", "host"),
        ("0177.0.0.1:22", "host"),
        ("127.1:22", "host"),
        ("[::ffff:127.0.0.1]:22", "address"),
        ("[::1]:22", "address"),
        ("127.0.0.1:22", "address"),
    ] {
        for (url, tunnel) in
            [(format!("https://{target}/"), true), (format!("http://{target}/"), false)]
        {
            let before = guest.events().len();
            let request = if tunnel {
                format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
            } else {
                format!("GET {url} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n")
            };
            expect_error(&guest, request.as_bytes(), target);
            guest.wait_for_refusal(before, &format!(" {cause}"), &url);
        }
    }
    let log = std::fs::read_to_string(squid.directory.path().join("access.log"));
    let log = log.unwrap_or_default();
    // The check that squid is listening connects and sends nothing.
    let requested = log.lines().find(|line| !line.contains("error:transaction-end-before-headers"));
    assert_eq!(requested, None);
}
