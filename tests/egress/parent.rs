//! A real squid as the parent proxy.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::support::{Guest, TlsServer, WebServer};

const PROXY: &str = "http://172.31.0.1:3128";

/// The distribution's squid with a configuration of its own.
pub struct Squid {
    address: SocketAddr,
    directory: TempDir,
    child: Child,
}

impl Squid {
    /// Starts it; `hosts` is what it resolves names by, `rules` what it allows.
    fn new(hosts: &str, rules: &str) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self::at(&free.to_string(), hosts, rules)
    }

    /// Starts it to listen at an address.
    pub fn at(address: &str, hosts: &str, rules: &str) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        // Squid leaves root for a user of its own, who writes the logs.
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
        std::fs::write(path.join("hosts"), hosts).unwrap();
        std::fs::write(path.join("users"), format!("ci:{}\n", crypt("secret"))).unwrap();
        let at = path.display();
        let configuration = format!(
            "http_port {address}\npid_filename none\ncache deny all\nhosts_file {at}/hosts\n\
             cache_log {at}/cache.log\naccess_log stdio:{at}/access.log\ncoredump_dir {at}\n\
             auth_param basic program /usr/lib/squid/basic_ncsa_auth {at}/users\n\
             acl users proxy_auth REQUIRED\nshutdown_lifetime 0 seconds\n{rules}\n\
             http_access deny all\n"
        );
        std::fs::write(path.join("squid.conf"), configuration).unwrap();
        let child = Command::new("squid")
            .args(["-N", "-f"])
            .arg(path.join("squid.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("this test needs squid (package squid)");
        let squid = Self { address, directory, child };
        for _ in 0..400 {
            if TcpStream::connect(address).is_ok() {
                return squid;
            }
            std::thread::sleep(std::time::Duration::from_millis(25));
        }
        panic!("squid doesn't listen: {}", squid.file("cache.log"));
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn crypt(password: &str) -> String {
    let output = Command::new("openssl").args(["passwd", "-apr1", password]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn requests_and_tunnels_go_through_squid_by_name() {
    // Port 80 is what plain HTTP is about; the address is this test's alone.
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
    let log = squid.file("access.log");
    for part in [
        "GET http://web.example/x ci HIER_DIRECT/127.31.0.80",
        "GET http://web.example/y ci HIER_DIRECT/127.31.0.80",
        &format!("CONNECT tls.example:{port} ci HIER_DIRECT/127.0.0.1"),
    ] {
        assert!(log.contains(part), "{part} in\n{log}");
    }
    assert!(guest.access_log().contains(" FIRSTUP_PARENT/127.0.0.1 "), "{}", guest.access_log());
    assert!(!origin.requests().concat().contains("secret"), "{:?}", origin.requests());
}

#[test]
fn what_squid_refuses_is_told_with_its_words() {
    let squid = Squid::new("", "http_access deny all");
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"web.example\" }}]\nparent = \"http://{}\"",
        squid.address
    ));
    let error = guest.curl(&["-x", PROXY, "https://web.example/"]).unwrap_err();
    assert!(error.contains("502"), "{error}");
    let refused = guest.events().into_iter().find(|event| event["cause"] == "parent").unwrap();
    assert_eq!(refused["detail"], "the parent proxy failed: it answered 403 Forbidden");
    // An answer to a request is squid's own, and the client sees it.
    let answer = guest.curl(&["-x", PROXY, "http://web.example/"]).unwrap();
    assert!(answer.ends_with(" 403") && answer.contains("squid"), "{answer}");
}

#[test]
fn wrong_credentials_are_told() {
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
