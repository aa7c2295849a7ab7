//! Common clients, unmodified, with allowed and refused destinations.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;

use super::Guest;
use super::servers::{Echo, TlsServer, WebServer};
use crate::support::Host;

/// The names and servers that the tests' policies allow.
struct Servers {
    web: WebServer,
    tls: TlsServer,
    line: Echo,
}

impl Servers {
    fn new() -> Self {
        let tls = TlsServer::new(&["tls.test", "git.test"]);
        publish_repository(Path::new(&tls.certificate()).parent().unwrap());
        Self { web: WebServer::new("from the web\n"), tls, line: Echo::new(answer_line) }
    }

    fn policy(&self) -> String {
        format!(
            r#"
            mode = "enforce"
            allow = [
                {{ host = "web.test", ports = [80, 8080] }},
                {{ host = "tls.test", ports = [443] }},
                {{ host = "git.test", ports = [443] }},
                {{ host = "line.test", ports = [7777] }},
                {{ host = "nobody.test", ports = [80] }},
            ]
            [egress.policy.ci.resolve]
            "web.test" = "{web}"
            "tls.test" = "{tls}"
            "git.test" = "{tls}"
            "line.test" = "{line}"
            "nobody.test" = "127.0.0.1:1"
            "#,
            web = self.web.address,
            tls = self.tls.address,
            line = self.line.address,
        )
    }
}

/// Sends a greeting, reads a line, and responds with its length.
fn answer_line(mut stream: TcpStream) {
    let mut line = String::new();
    let greeted = stream.write_all(b"hello\n");
    if greeted.is_ok() && BufReader::new(&stream).read_line(&mut line).is_ok() {
        // The client may have disconnected.
        _ = writeln!(stream, "heard {} bytes", line.len());
        _ = stream.shutdown(Shutdown::Write);
    }
}

/// Creates a repository in a directory of static files, for git clients that use a plain HTTP
/// server.
fn publish_repository(directory: &Path) {
    // Such a server treats the query as a part of the file name.
    let script = "git init -q -b main work && cd work && echo content > file && git add file \
        && git -c user.name=t -c user.email=t@example.com commit -q -m first && cd .. \
        && git clone -q --bare work repository.git && cd repository.git \
        && git update-server-info \
        && cp info/refs 'info/refs?service=git-upload-pack'";
    let made = Command::new("sh")
        .args(["-ec", script])
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// The probes, allowed destinations first.
const CLIENTS: &str = r"
        probe web direct http://web.test/
        probe web-8080 direct http://web.test:8080/
        probe web-proxied proxied http://web.test/
        probe tls direct --cacert /ca.pem https://tls.test/index.html
        probe tls-proxied proxied --cacert /ca.pem https://tls.test/index.html
        probe line line line.test 7777 salve
        export GIT_SSL_CAINFO=/ca.pem
        cd /tmp
        probe git git clone -q https://git.test/repository.git proxied
        probe git-direct env -u https_proxy -u HTTPS_PROXY \
            git clone -q https://git.test/repository.git direct
        probe cloned cat proxied/file direct/file

        probe other-name direct http://other.test/
        probe other-name-proxied proxied http://other.test/
        probe other-name-tls proxied https://other.test/
        probe other-port direct http://web.test:7777/
        probe closed-port direct http://web.test:9999/
        probe other-port-proxied proxied -f http://web.test:9999/
        probe plain-on-tls direct http://tls.test:443/
        probe fronted direct -f -H 'Host: other.test' http://web.test/
        probe sni direct -k --connect-to other.test:443:tls.test:443 https://other.test/
        probe sni-proxied proxied -k --connect-to other.test:443:tls.test:443 https://other.test/
        probe literal direct http://192.0.32.8/
        probe literal-proxied proxied -f http://192.0.32.8/
        probe literal-tls direct https://192.0.32.8/
        probe nobody proxied http://nobody.test/
        probe git-other git clone -q https://other.test/repository.git other
        probe line-other line other.test 7777 salve
";

/// The expected record.
const RECORDED: [&str; 21] = [
    "transparent web.test:80 allowed ",
    "transparent web.test:8080 allowed ",
    "proxy web.test:80 allowed ",
    "transparent tls.test:443 allowed ",
    "proxy tls.test:443 allowed ",
    "transparent line.test:7777 allowed ",
    "transparent git.test:443 allowed ",
    "proxy git.test:443 allowed ",
    "dns other.test:0 refused no-rule",
    "proxy other.test:80 refused no-rule",
    "proxy other.test:443 refused no-rule",
    "transparent web.test:7777 refused port",
    "proxy web.test:9999 refused port",
    "transparent tls.test:443 refused not-tls",
    "transparent web.test:80 refused host-mismatch",
    "transparent tls.test:443 refused sni-mismatch",
    "proxy tls.test:443 refused sni-mismatch",
    "transparent 192.0.32.8:80 refused literal",
    "transparent 192.0.32.8:443 refused literal",
    "proxy 192.0.32.8:80 refused literal",
    "proxy nobody.test:80 refused connect",
];

#[test]
fn clients_reach_allowed_destinations_and_are_refused_others_at_once() {
    let host = Host::new();
    let servers = Servers::new();
    let guest = Guest::new(&host, &servers.policy()).copy(servers.tls.certificate(), "/ca.pem");
    let outcome = guest.run(CLIENTS);
    outcome.print_refusals();
    for (probe, expected) in [
        ("web", "from the web"),
        ("web-8080", "from the web"),
        ("web-proxied", "from the web"),
        ("tls", "over TLS"),
        ("tls-proxied", "over TLS"),
        ("line", "hello heard 6 bytes"),
        ("git", ""),
        ("git-direct", ""),
        ("cloned", "content content"),
        // A refusal in HTTP is a response with the reason.
        ("other-name-proxied", "mayfly: egress policy ci refuses other.test:80: no rule allows"),
        ("nobody", "mayfly: egress policy ci can't reach nobody.test:80"),
    ] {
        outcome.assert_works(probe, expected);
    }
    for (probe, expected) in [
        ("other-name", "Could not resolve host: other.test"),
        ("other-name-tls", "403"),
        // Refused or reset: both come at once.
        ("other-port", "onnect"),
        ("closed-port", "Could not connect"),
        ("other-port-proxied", "403"),
        ("plain-on-tls", "reset"),
        ("fronted", "400"),
        ("sni", "reset"),
        ("sni-proxied", "reset"),
        ("literal-proxied", "403"),
        ("literal-tls", "onnect"),
        ("git-other", "403"),
        ("line-other", "other.test"),
    ] {
        outcome.assert_fails(probe, expected);
    }
    outcome.assert_works("literal", "refuses 192.0.32.8:80");
    for line in RECORDED {
        outcome.assert_recorded(line);
    }
    let closed =
        outcome.recorded().into_iter().find(|line| line.ends_with(":9999 refused closed-port"));
    assert!(closed.is_some(), "{:#?}", outcome.recorded());
    assert_eq!(servers.web.requests().len(), 3, "{:?}", servers.web.requests());
    host.assert_clean();
}
