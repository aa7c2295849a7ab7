//! A host for the commands of a page: this machine's file system, with its own `/etc/mayfly` and
//! `/var/lib/mayfly`, and temporary overlays on `/etc` and `/var/lib`.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::blocks::{Block, project};
use crate::support::image::TestImage;
use crate::support::{Host, images, require_root, until};

/// Mounts the overlays below `$0`, an empty directory. `$1` becomes the state directory, `$2`
/// `/etc/mayfly`.
const ENTER: &str = "\
    mount -t tmpfs -o mode=755 tmpfs $0
    for tree in etc var/lib; do
        mkdir -p $0/$tree/upper $0/$tree/work
        mount -t overlay -o lowerdir=/$tree,upperdir=$0/$tree/upper,workdir=$0/$tree/work overlay /$tree
    done
    mkdir -p /var/lib/mayfly /etc/mayfly
    mount --bind $1 /var/lib/mayfly
    mount --bind $2 /etc/mayfly
    echo mounted
    exec cat";

/// A host for one page.
pub(crate) struct PageHost {
    pub(crate) host: Host,
    holder: Child,
    // The holder exits when this closes.
    _stdin: ChildStdin,
    /// The environment variables of the commands.
    pub(crate) variables: Vec<(&'static str, String)>,
}

impl PageHost {
    /// Creates a host with the images that pages boot.
    pub(crate) fn new() -> Self {
        let page_host = Self::bare();
        for name in ["base", "runner"] {
            page_host.link_image(name);
        }
        let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join("verified");
        fs::create_dir_all(&shared).unwrap();
        symlink(shared, page_host.host.state().join("verified")).unwrap();
        page_host
    }

    /// Creates a host with two unbootable builds of an image `runner`.
    pub(crate) fn with_store() -> Self {
        let page_host = Self::bare();
        let mut image = TestImage::unbootable();
        image.name = "runner";
        let latest = page_host.host.images().join("runner/latest");
        let previous = image.install(&page_host.host);
        fs::remove_file(&latest).unwrap();
        symlink(previous.file_name().unwrap(), latest.with_file_name("previous")).unwrap();
        image.kernel.push(b'!');
        image.install(&page_host.host);
        page_host
    }

    fn bare() -> Self {
        require_root();
        let host = Host::bare();
        for directory in ["work", "etc", "layers", "bin"] {
            fs::create_dir(host.root().join(directory)).unwrap();
        }
        let root = host.root();
        symlink(env!("CARGO_BIN_EXE_mayfly"), root.join("bin/mayfly")).unwrap();
        // The commands already run as root, and the other host is this one.
        script(&root.join("bin/sudo"), "exec \"$@\"");
        script(&root.join("bin/ssh"), "shift; exec \"$@\"");
        for tree in ["images", "docs", "scripts"] {
            symlink(project().join(tree), root.join("work").join(tree)).unwrap();
        }
        let mut enter = Command::new("setpriv");
        enter.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation=private"]);
        enter.args(["bash", "-euc", ENTER]).arg(root.join("layers"));
        enter.arg(host.state()).arg(root.join("etc"));
        let mut holder = enter.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "mounted\n");
        let stdin = holder.stdin.take().unwrap();
        Self { host, holder, _stdin: stdin, variables: Vec::new() }
    }

    /// Copies a test image into the store: its own directories, hard links to the files if
    /// possible.
    fn link_image(&self, name: &str) {
        let from = images().join(name);
        let copy = |arguments: &[&str]| {
            let mut copy = Command::new("cp");
            let copied = copy.args(arguments).arg(&from).arg(self.host.images()).output().unwrap();
            copied.status.success()
        };
        let linked = copy(&["-a", "--link"]) || copy(&["-a", "--sparse=always"]);
        assert!(linked, "can't copy {}", from.display());
    }

    /// Returns the working directory of the commands.
    pub(crate) fn work(&self) -> PathBuf {
        self.host.root().join("work")
    }

    /// Writes a file of `/etc/mayfly` that only its owner can read.
    pub(crate) fn write_secret(&self, name: &str, text: &str) {
        let path = self.host.root().join("etc").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }

    /// Returns the command for a bash script that traces its commands.
    pub(crate) fn script(&self, name: &str, text: &str) -> Command {
        let file = self.host.root().join(name);
        fs::write(&file, text).unwrap();
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.holder.id().to_string()).args(["--mount", "--"]);
        command.args(["env", "-i", "-C"]).arg(self.work());
        let path = std::env::join_paths(
            std::iter::once(self.host.root().join("bin"))
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
        );
        let mut path_variable = std::ffi::OsString::from("PATH=");
        path_variable.push(path.unwrap());
        command.arg(path_variable).arg("TERM=xterm").arg("HOME=/root");
        if let Some(guest) = std::env::var_os("MAYFLY_GUEST") {
            let mut variable = std::ffi::OsString::from("MAYFLY_GUEST=");
            variable.push(guest);
            command.arg(variable);
        }
        command.args(self.variables.iter().map(|(name, value)| format!("{name}={value}")));
        if text.contains("-it ") {
            // On a terminal, as for a user.
            let bash = format!("bash -xeuo pipefail {}", file.display());
            command.args(["script", "-qefc", &bash, "/dev/null"]);
        } else {
            command.args(["bash", "-xeuo", "pipefail"]).arg(file);
        }
        command
    }

    /// Writes the page's settings file, and the secrets that it names.
    pub(crate) fn write_settings(&self, blocks: &[Block]) {
        for (name, text) in [
            ("github-token", "ghp_simulated"),
            ("webhook-secret", "a secret of the tests"),
            ("api-token", "0123456789abcdef"),
            ("status-token", "0123456789abcdef"),
        ] {
            self.write_secret(name, text);
        }
        let settings: String = settings(blocks).map(|block| block.text.as_str()).collect();
        fs::write(self.work().join("mayfly.toml"), settings).unwrap();
    }
}

/// Returns the blocks of a page that make up its settings file.
pub(crate) fn settings(blocks: &[Block]) -> impl Iterator<Item = &Block> {
    blocks.iter().filter(|block| block.comment == "<!-- settings -->")
}

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

impl Drop for PageHost {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        // The namespace ends with its last process, which may be a shepherd.
        let gone = || fs::remove_dir_all(self.host.root().join("layers")).is_ok().then_some(());
        if !std::thread::panicking() {
            until("removal of the layers", crate::support::TIMEOUT, gone);
        }
    }
}
