//! The distribution's squid.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// The distribution's squid with a configuration of its own.
pub struct Squid {
    pub address: SocketAddr,
    pub directory: TempDir,
    pub child: Child,
}

impl Squid {
    /// Starts squid; `hosts` is its hosts file, `rules` its access rules.
    pub fn new(hosts: &str, rules: &str) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self::at(&free.to_string(), hosts, rules)
    }

    /// Starts squid at an address.
    pub fn at(address: &str, hosts: &str, rules: &str) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        // Squid drops root for its own user, which writes the logs.
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
        panic!("squid is not listening: {}", squid.file("cache.log"));
    }

    pub fn file(&self, name: &str) -> String {
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
