//! Real clients on the transparent path.

use std::io::{Read, Write};
use std::sync::Mutex;

use crate::support::{Echo, FakeResolver, Guest, Options, TlsServer, WebServer};

#[test]
fn curl_reaches_an_allowed_name_over_http() {
    let origin = WebServer::new("hello");
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"web.example\" }}]\nresolve = {{ \"web.example:80\" = \"{}\" }}",
        origin.address
    ));
    assert_eq!(guest.curl(&["http://web.example/x?y"]).unwrap(), "hello 200");
    let requests = origin.requests();
    assert!(requests[0].starts_with("GET /x?y HTTP/1.1\r\n"), "{requests:?}");
    assert!(requests[0].to_lowercase().contains("\r\nhost: web.example\r\n"), "{requests:?}");
    guest.wait_for_access(" GET http://web.example/x - HIER_DIRECT/");
    let row = &guest.report().rows[0];
    assert_eq!((&*row.host, row.port, &*row.verdict), ("web.example", 80, "allowed"));
    // The response head is counted with its body.
    assert!(row.down > 5 && row.up > 0, "{row:?}");
}

#[test]
fn curl_reaches_an_allowed_name_over_https() {
    let origin = TlsServer::new(&["tls.example"]);
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"tls.example\" }}]\nresolve = {{ \"tls.example\" = \"{}\" }}",
        origin.address
    ));
    let answer = guest.curl(&["--cacert", &origin.certificate(), "https://tls.example/index.html"]);
    assert_eq!(answer.unwrap(), "over TLS\n 200");
    guest.expect_refusals(&[]);
}

#[test]
fn a_name_that_no_rule_allows_does_not_resolve() {
    let guest = Guest::new("allow = [{ host = \"web.example\" }]");
    let error = guest.curl(&["http://evil.example/"]).unwrap_err();
    assert!(error.contains("Could not resolve host"), "{error}");
    guest.expect_refusals(&["evil.example:0 no-rule"]);
}

#[test]
fn an_address_is_refused_with_an_http_response() {
    let guest = Guest::new("allow = [{ host = \"web.example\" }]");
    let answer = guest.curl(&["http://169.254.169.254/latest/meta-data/"]).unwrap();
    assert_eq!(
        answer,
        "mayfly: egress policy ci refuses 169.254.169.254:80: the address is link-local\n 403"
    );
    assert!(guest.curl(&["https://1.1.1.1/"]).is_err());
    guest.expect_refusals(&["1.1.1.1:443 literal", "169.254.169.254:80 address"]);
}

#[test]
fn a_server_name_other_than_the_looked_up_one_is_refused() {
    let origin = TlsServer::new(&["tls.example", "evil.example"]);
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"tls.example\" }}]\nresolve = {{ \"tls.example\" = \"{}\" }}",
        origin.address
    ));
    let fronted = [
        "--cacert",
        &origin.certificate(),
        "--connect-to",
        "evil.example:443:tls.example:443",
        "https://evil.example/index.html",
    ];
    assert!(guest.curl(&fronted).is_err());
    assert!(guest.curl(&["http://tls.example:443/"]).is_err());
    guest.expect_refusals(&["tls.example:443 not-tls", "tls.example:443 sni-mismatch"]);
}

#[test]
fn a_host_other_than_the_looked_up_one_is_refused() {
    let origin = WebServer::new("hello");
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"web.example\" }}]\nresolve = {{ \"web.example\" = \"{}\" }}",
        origin.address
    ));
    let answer = guest.curl(&["-H", "Host: evil.example", "http://web.example/"]).unwrap();
    assert!(answer.ends_with(" 400") && answer.contains("evil.example"), "{answer}");
    assert!(origin.requests().is_empty());
    guest.expect_refusals(&["web.example:80 host-mismatch"]);
}

#[test]
fn a_protocol_where_the_server_speaks_first_passes_by_name() {
    let server = Echo::new(|mut stream| {
        stream.write_all(b"220 ready\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        stream.write_all(text.to_uppercase().as_bytes()).unwrap();
    });
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"mail.example\", ports = [25] }}]\n\
         resolve = {{ \"mail.example\" = \"{}\" }}",
        server.address
    ));
    let client = "import socket\n\
        s = socket.create_connection(('mail.example', 25))\n\
        print(s.recv(100))\n\
        s.sendall(b'ehlo')\n\
        s.shutdown(socket.SHUT_WR)\n\
        print(s.recv(100))";
    let output = guest.run(&["python3", "-c", client]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "b'220 ready\\r\\n'\nb'EHLO'\n",
        "{output:?}"
    );
}

#[test]
fn git_clones_over_http() {
    let directory = tempfile::tempdir().unwrap();
    let script = "git init -q -b main work && cd work && git config user.email a@b && \
        git config user.name a && echo x > file && git add file && git commit -qm one && \
        cd .. && git clone -q --bare work repo.git && git -C repo.git update-server-info";
    let made = std::process::Command::new("sh")
        .args(["-c", script])
        .current_dir(directory.path())
        .status()
        .unwrap();
    assert!(made.success());
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut server = std::process::Command::new("python3")
        .args(["-m", "http.server", "--bind", "127.0.0.1", &address.port().to_string()])
        .current_dir(directory.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while std::net::TcpStream::connect(address).is_err() {
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"git.example\" }}]\nresolve = {{ \"git.example\" = \"{address}\" }}"
    ));
    let target = directory.path().join("clone").to_str().unwrap().to_owned();
    let output = guest.run(&["git", "clone", "-q", "http://git.example/repo.git", &target]);
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(std::fs::read_to_string(directory.path().join("clone/file")).unwrap(), "x\n");
}

#[test]
fn open_brings_every_port_to_the_gate_and_refuses_private_addresses() {
    let origin = WebServer::new("hello");
    let guest = Guest::new(&format!(
        "mode = \"open\"\nresolve = {{ \"any.example\" = \"{}\" }}",
        origin.address
    ));
    assert_eq!(guest.curl(&["http://any.example:12345/"]).unwrap(), "hello 200");
    for address in ["10.0.0.1:22", "172.31.0.1:22", "169.254.169.254:80", "127.0.0.1:1"] {
        let url = format!("http://{address}/");
        // The guest's own loopback never leaves it.
        if address.starts_with("127.") {
            continue;
        }
        let answer = guest.curl(&[&url]);
        assert!(answer.as_ref().map_or(true, |text| text.ends_with(" 403")), "{answer:?}");
    }
    guest.expect_refusals(&[
        "10.0.0.1:22 address",
        "169.254.169.254:80 address",
        "172.31.0.1:22 address",
    ]);
}

#[test]
fn in_open_mode_only_existing_public_names_resolve() {
    let origin = WebServer::new("hello");
    let address = |text: &str| vec![text.parse().unwrap()];
    let names = FakeResolver(Mutex::new(vec![
        ("there.example", address("192.0.32.8")),
        ("inside.example", address("10.1.2.3")),
        ("metadata.example", address("169.254.169.254")),
        ("db.internal", address("192.0.32.8")),
        ("localhost", address("192.0.32.8")),
    ]));
    let policy = format!(
        "mode = \"open\"\nresolve = {{ \"any.example\" = \"{}\", \"mine.internal\" = \"{}\" }}",
        origin.address, origin.address
    );
    let guest = Guest::with(&policy, Options { names, ..Options::default() });
    for name in ["there.example", "any.example", "mine.internal"] {
        let found = guest.run(&["getent", "ahostsv4", name]);
        assert!(found.status.success(), "{name}: {found:?}");
    }
    for (name, cause) in [
        ("no-such-name.invalid", "special-name"),
        ("a.localhost", "special-name"),
        ("x.onion", "special-name"),
        ("router.home.arpa", "special-name"),
        ("db.internal", "special-name"),
        ("metadata.google.internal", "special-name"),
        ("missing.example", "resolve"),
        ("inside.example", "address"),
        ("metadata.example", "address"),
    ] {
        let before = guest.events().len();
        let found = guest.run(&["getent", "ahostsv4", name]);
        assert!(!found.status.success(), "{name}: {found:?}");
        guest.wait_for_refusal(before, &format!("{name}:0 {cause}"), name);
    }
    // The proxy reports a name with an internal address like a nonexistent one.
    let fetch = |name: &str| {
        let url = format!("http://{name}/");
        guest.curl(&["-x", "http://172.31.0.1:3128", &url]).unwrap().replace(name, "NAME")
    };
    assert_eq!(fetch("inside.example"), fetch("missing.example"));
    assert_eq!(fetch("metadata.example"), fetch("missing.example"));
}

#[test]
fn audit_allows_and_marks() {
    let origin = WebServer::new("hello");
    let guest = Guest::new(&format!(
        "mode = \"audit\"\nresolve = {{ \"any.example\" = \"{}\" }}",
        origin.address
    ));
    assert_eq!(guest.curl(&["http://any.example/"]).unwrap(), "hello 200");
    let mut marked: Vec<_> =
        guest.report().rows.into_iter().map(|row| (row.host, row.port, row.verdict)).collect();
    // Rows with bytes come first, once the bytes are counted.
    marked.sort();
    assert_eq!(
        marked,
        [0, 80].map(|port| ("any.example".to_owned(), port, "would-refuse".to_owned()))
    );
}

#[test]
fn none_reaches_nothing() {
    let guest = Guest::new("mode = \"none\"");
    assert!(guest.curl(&["http://github.com/"]).is_err());
    assert!(guest.curl(&["http://1.1.1.1/"]).is_err());
    let proxied = guest.curl(&["-x", "http://172.31.0.1:3128", "http://github.com/"]).unwrap();
    assert!(proxied.ends_with(" 403"), "{proxied}");
}

#[test]
fn a_server_may_request_another_hello_for_the_same_name() {
    // The server supports only a group for which the client has not sent a key yet.
    let origin = TlsServer::with(&["tls.example"], &["-groups", "P-384"]);
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"tls.example\", ports = [443, 8443] }}]\n\
         resolve = {{ \"tls.example\" = \"{}\" }}",
        origin.address
    ));
    let certificate = origin.certificate();
    for url in ["https://tls.example/index.html", "https://tls.example:8443/index.html"] {
        let asked = ["--curves", "X25519:P-384", "--cacert", &certificate, url];
        assert_eq!(guest.curl(&asked).unwrap(), "over TLS\n 200", "{url}");
    }
}

#[test]
fn another_hello_for_another_name_is_refused() {
    let retry = [
        &[22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3][..],
        b"\xcf\x21\xad\x74\xe5\x9a\x61\x11\xbe\x1d\x8c\x02\x1e\x65\xb8\x91",
        b"\xc2\xa2\x11\x16\x7a\xbb\x8c\x5e\x07\x9e\x09\xe2\xc8\xa8\x33\x9c",
        &[0; 54],
    ]
    .concat();
    let (sender, receiver) = std::sync::mpsc::channel();
    let sender = Mutex::new(sender);
    let server = Echo::new(move |mut stream| {
        let mut first = vec![0; 4096];
        let length = stream.read(&mut first).unwrap();
        stream.write_all(&retry).unwrap();
        let mut rest = Vec::new();
        _ = stream.read_to_end(&mut rest);
        sender.lock().unwrap().send((length, rest)).unwrap();
    });
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"tls.example\" }}]\nresolve = {{ \"tls.example\" = \"{}\" }}",
        server.address
    ));
    let read = |name: &str| std::fs::read(format!("fuzz/corpus/client_hello/{name}")).unwrap();
    let address = guest.lookup("tls.example");
    let before: [&[u8]; 3] = [&[20, 3, 3, 0, 1, 1], &[21, 3, 3, 0, 2, 1, 0], &[24, 3, 3, 0, 1, 1]];
    let mut rows = vec![("no_name", before[1], false), ("plain", before[2], false)];
    rows.extend(
        [("plain", true), ("no_name", false), ("two_names", false)]
            .map(|(second, passes)| (second, before[0], passes)),
    );
    for (second, before, passes) in rows {
        // Together with the first hello, or after the request for it.
        for burst in [false, true] {
            guest.within(|| {
                let mut stream = std::net::TcpStream::connect((address, 443)).unwrap();
                let (first, second) = (read("plain"), [before, &read(second)[..]].concat());
                if burst {
                    stream.write_all(&[first, second].concat()).unwrap();
                    stream.read_exact(&mut [0; 97]).unwrap();
                } else {
                    stream.write_all(&first).unwrap();
                    stream.read_exact(&mut [0; 97]).unwrap();
                    stream.write_all(&second).unwrap();
                }
                _ = stream.shutdown(std::net::Shutdown::Write);
                _ = stream.read(&mut [0; 1]);
            });
            let (first, rest) = receiver.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
            assert_eq!(first, read("plain").len(), "{second}, {burst}");
            assert_eq!(!rest.is_empty(), passes, "{second}, {before:?}, {burst}: {rest:?}");
        }
    }
    guest.expect_refusals(&["tls.example:443 client-hello", "tls.example:443 sni-missing"]);
}
