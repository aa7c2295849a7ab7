//! Packages from this machine's own mirror, and clients installed from it.

use std::fs;
use std::net::{IpAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mayfly_egress::address::{AddressClass, classify};

use super::servers::WebServer;
use super::{Guest, Outcome};
use crate::support::{Host, TIMEOUT, until};

/// The Debian mirror in this machine's sources.
struct Mirror {
    uri: String,
    name: String,
    port: u16,
    /// Its address if it is not public, so that a policy must allow it explicitly.
    inner: Option<IpAddr>,
}

impl Mirror {
    /// Finds the mirror, or returns the reason why none can be used.
    fn of_this_machine() -> Result<Self, String> {
        let uri = sources().into_iter().find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
        let uri = uri.ok_or("the sources of apt name no archive of Debian by HTTP")?;
        let (scheme, rest) = uri.split_once("://").unwrap();
        let authority = rest.split('/').next().unwrap();
        let usual = if scheme == "https" { 443 } else { 80 };
        let (name, port) = authority
            .rsplit_once(':')
            .map_or((authority, usual), |(name, port)| (name, port.parse().unwrap()));
        let addresses: Vec<_> = (name, port)
            .to_socket_addrs()
            .map_err(|error| format!("the mirror of this machine can't be resolved: {error}"))?
            .collect();
        let connect =
            |address| std::net::TcpStream::connect_timeout(address, Duration::from_secs(5));
        if !addresses.iter().any(|address| connect(address).is_ok()) {
            return Err("the mirror of this machine can't be reached".into());
        }
        let mut inner = addresses.iter().map(std::net::SocketAddr::ip);
        let inner = inner.find(|address| classify(*address) != AddressClass::Global);
        let name = name.to_owned();
        Ok(Self { uri, name, port, inner })
    }

    /// Returns the policy rule that allows it.
    fn rule(&self) -> String {
        format!("{{ host = {:?}, ports = [{}] }},", self.name, self.port)
    }

    /// Returns a line for `resolve`.
    fn resolve(&self) -> String {
        self.inner.map_or_else(String::new, |address| format!("{:?} = \"{address}\"", self.name))
    }
}

/// Returns the URLs in this machine's sources, in both formats.
fn sources() -> Vec<String> {
    let directory = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten();
    let paths = directory.map(|entry| entry.unwrap().path());
    let text: String = std::iter::once("/etc/apt/sources.list".into())
        .chain(paths)
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect();
    let lines = text.lines().filter(|line| line.starts_with("URIs:") || line.starts_with("deb "));
    let words = lines.flat_map(str::split_whitespace);
    words.filter(|word| word.starts_with("http")).map(str::to_owned).collect()
}

/// Returns a script that configures only this mirror for apt in the guest.
fn sources_script(mirror: &Mirror, suite: &str) -> String {
    format!(
        "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*\n\
         echo 'deb {} {suite} main' > /etc/apt/sources.list\n\
         export DEBIAN_FRONTEND=noninteractive\n",
        mirror.uri
    )
}

#[test]
fn apt_reads_only_the_allowed_mirror() {
    // The image was built from the mirror, so it must be usable.
    let mirror = Mirror::of_this_machine().unwrap();
    let host = Host::new();
    let policy =
        format!("allow = [{}]\n[egress.policy.ci.resolve]\n{}", mirror.rule(), mirror.resolve());
    let script = sources_script(&mirror, "trixie-updates")
        + r"
        probe update apt-get update
        rm -rf /var/lib/apt/lists/*
        probe direct env -u http_proxy -u HTTP_PROXY -u https_proxy -u HTTPS_PROXY apt-get update
        echo 'deb http://other.test/debian trixie main' > /etc/apt/sources.list
        probe other apt-get -o APT::Update::Error-Mode=any update
        # By itself apt tries a failed lookup again, after 1, 2 and 4 s.
        probe other-direct env -u http_proxy -u HTTP_PROXY \
            apt-get -o Acquire::Retries=0 -o APT::Update::Error-Mode=any update
        ";
    let outcome = Guest::new(&host, &policy).run(&script);
    outcome.print_refusals();
    outcome.assert_works("update", "Reading package lists");
    outcome.assert_works("direct", "Reading package lists");
    for probe in ["update", "direct"] {
        let text = &outcome.probe(probe).output;
        assert!(text.contains("Fetched") && !text.contains("Failed"), "{probe}: {text}");
    }
    outcome.assert_fails("other", "403");
    outcome.assert_fails("other-direct", "Could not resolve 'other.test'");
    let Mirror { name, port, .. } = &mirror;
    outcome.assert_recorded(&format!("proxy {name}:{port} allowed"));
    outcome.assert_recorded(&format!("transparent {name}:{port} allowed"));
    outcome.assert_recorded("proxy other.test:80 refused no-rule");
    outcome.assert_recorded("dns other.test:0 refused no-rule");
    host.assert_clean();
}

/// A server program of the distribution, killed when dropped.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Starts it with arguments for a free port.
    fn start(program: &str, arguments: impl FnOnce(u16) -> Vec<String>) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(program)
            .args(arguments(port))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let server = Self { child, port };
        until(program, TIMEOUT, || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Starts an SSH server for root, with a key and a repository in the directory.
fn ssh_server(directory: &Path) -> Server {
    let script = "ssh-keygen -q -t ed25519 -N '' -f host && ssh-keygen -q -t ed25519 -N '' -f user \
         && git init -q -b main repository && cd repository && echo content > file && git add file \
         && git -c user.name=t -c user.email=t@example.com commit -q -m first \
         && mkdir -p /run/sshd";
    let made = Command::new("sh").args(["-ec", script]).current_dir(directory).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let path = |name: &str| directory.join(name).display().to_string();
    Server::start("/usr/sbin/sshd", |port| {
        let options = [
            format!("ListenAddress=127.0.0.1:{port}"),
            format!("HostKey={}", path("host")),
            format!("AuthorizedKeysFile={}", path("user.pub")),
            "StrictModes=no".into(),
            "PermitRootLogin=yes".into(),
            "PidFile=none".into(),
        ];
        let none = ["-D", "-e", "-f", "/dev/null"].map(str::to_owned);
        none.into_iter().chain(options.into_iter().flat_map(|text| ["-o".into(), text])).collect()
    })
}

/// Tests the installed clients, allowed destinations first. The argument is the repository's path.
const INSTALLED: &str = r#"
        probe update apt-get -q update
        probe install apt-get -q install -y --no-install-recommends \
            wget python3 openssh-client redis-tools
        fetch() { python3 -c "import urllib.request as u; print(u.urlopen('$1').read())"; }
        direct() { env -u http_proxy -u HTTP_PROXY "$@"; }
        export GIT_SSH_COMMAND='ssh -i /key -o StrictHostKeyChecking=no -o BatchMode=yes'
        chmod 600 /key
        probe wget wget -qO- http://web.test/
        probe wget-direct direct wget -qO- http://web.test/
        probe urllib fetch http://web.test/
        probe ssh $GIT_SSH_COMMAND root@ssh.test echo from ssh
        probe git git clone -q "root@ssh.test:$1/repository" /tmp/repository
        probe cloned cat /tmp/repository/file
        probe redis redis-cli -h redis.test ping

        probe wget-other wget -qO- http://other.test/
        probe urllib-other fetch http://other.test/
        probe ssh-other $GIT_SSH_COMMAND root@other.test true
        probe ssh-port $GIT_SSH_COMMAND -p 6379 root@ssh.test true
        probe redis-other redis-cli -h other.test ping
"#;

/// Tests clients that use the proxy with a server in the guest, by each of the guest's own names
/// and addresses, including one of a container network.
const INSIDE: &str = r#"
        echo "127.0.1.1 $HOSTNAME" >>/etc/hosts
        python3 -c "
import fcntl, socket, struct
address = struct.pack('16sH2s4s8s', b'lo:1', 2, b'', socket.inet_aton('172.17.0.1'), b'')
fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8916, address)  # SIOCSIFADDR
"
        mkdir /tmp/inside
        echo from inside >/tmp/inside/index.html
        python3 -m http.server --directory /tmp/inside 8080 >/dev/null 2>&1 &
        server=$!
        until curl -s --noproxy '*' http://127.0.0.1:8080/ >/dev/null; do sleep 0.2; done
        names="localhost 127.0.0.1 127.0.1.1 172.31.0.2 172.17.0.1 service-a $HOSTNAME"
        for name in $names; do
            probe "curl ${name/$HOSTNAME/own}" curl -sS -m 20 "http://$name:8080/"
        done
        probe python python3 -c "
import http.client, sys, urllib.request
for name in sys.argv[1:]:
    print('urllib', urllib.request.urlopen(f'http://{name}:8080/', timeout=20).read())
    connection = http.client.HTTPConnection(name, 8080, timeout=20)
    connection.request('GET', '/')
    print('http.client', connection.getresponse().read())
" $names
        kill $server
"#;

/// Writes a hosts file for the guest, without the guest's own name.
fn hosts(directory: &Path) -> PathBuf {
    let hosts = directory.join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n172.31.0.2 service-a # a service\n").unwrap();
    hosts
}

/// Checks the probes of [`INSIDE`].
#[track_caller]
fn assert_inside(outcome: &Outcome) {
    let names =
        ["localhost", "127.0.0.1", "127.0.1.1", "172.31.0.2", "172.17.0.1", "service-a", "own"];
    for name in names {
        outcome.assert_works(&format!("curl {name}"), "from inside");
    }
    outcome.assert_works("python", "from inside");
    let text = &outcome.probe("python").output;
    assert_eq!(text.matches("from inside").count(), 2 * names.len(), "{text}");
    let external = outcome.recorded().into_iter().find(|line| line.contains(":8080"));
    assert_eq!(external, None, "a request for an internal host left the guest");
}

#[test]
#[ignore = "takes minutes"]
fn clients_installed_from_the_mirror_reach_only_allowed_destinations() {
    // The image was built from the mirror, so it must be usable.
    let mirror = Mirror::of_this_machine().unwrap();
    let host = Host::new();
    let directory = tempfile::tempdir().unwrap();
    let ssh = ssh_server(directory.path());
    let redis = Server::start("redis-server", |port| {
        ["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""].map(str::to_owned).into()
    });
    let web = WebServer::new("from the web\n");
    let policy = format!(
        "allow = [{} {{ host = \"web.test\" }}, {{ host = \"ssh.test\", ports = [22] }}, \
         {{ host = \"redis.test\", ports = [6379] }}]\n[egress.policy.ci.resolve]\n{}\n\
         \"web.test\" = \"{}\"\n\"ssh.test\" = \"127.0.0.1:{}\"\n\"redis.test\" = \"127.0.0.1:{}\"",
        mirror.rule(),
        mirror.resolve(),
        web.address,
        ssh.port,
        redis.port
    );
    let script = sources_script(&mirror, "trixie") + INSTALLED + INSIDE;
    let script = format!("set -- '{}'\n{script}", directory.path().display());
    let outcome = Guest::new(&host, &policy)
        .copy(directory.path().join("user"), "/key")
        .copy(hosts(directory.path()), "/etc/hosts")
        .run(&script);
    for (name, probe) in &outcome.probes {
        eprintln!("{:>6} ms: {name}", probe.milliseconds);
    }
    outcome.print_refusals();
    for (probe, expected) in [
        ("install", "Setting up redis-tools"),
        ("wget", "from the web"),
        ("wget-direct", "from the web"),
        ("urllib", "from the web"),
        ("ssh", "from ssh"),
        ("git", ""),
        ("cloned", "content"),
        ("redis", "PONG"),
    ] {
        outcome.assert_works(probe, expected);
    }
    for (probe, expected) in [
        ("wget-other", ""),
        ("urllib-other", "HTTP Error 403: Forbidden"),
        ("ssh-other", "Could not resolve hostname other.test"),
        ("ssh-port", "Connection refused"),
        ("redis-other", "Could not connect to Redis"),
    ] {
        outcome.assert_fails(probe, expected);
    }
    assert_inside(&outcome);
    for line in [
        "transparent ssh.test:22 allowed",
        "transparent redis.test:6379 allowed",
        "transparent ssh.test:6379 refused port",
        "dns other.test:0 refused no-rule",
        "proxy other.test:80 refused no-rule",
    ] {
        outcome.assert_recorded(line);
    }
    host.assert_clean();
}
