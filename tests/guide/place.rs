//! A host for the commands of a page: this machine's file system, with `/etc/mayfly` and
//! `/var/lib/mayfly` of its own and layers over what is around them that are thrown away.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::blocks::{Block, project};
use crate::support::image::Forgery;
use crate::support::{Host, images, require_root, until};

/// Makes the place of `$0`, an empty directory; `$1` has the state, `$2` what is in `/etc/mayfly`.
const ENTER: &str = "\
    mount -t tmpfs -o mode=755 tmpfs $0
    for tree in etc var/lib; do
        mkdir -p $0/$tree/upper $0/$tree/work
        mount -t overlay -o lowerdir=/$tree,upperdir=$0/$tree/upper,workdir=$0/$tree/work overlay /$tree
    done
    mkdir -p /var/lib/mayfly /etc/mayfly
    mount --bind $1 /var/lib/mayfly
    mount --bind $2 /etc/mayfly
    echo made
    exec cat";

/// A host for one page.
pub(crate) struct Place {
    pub(crate) host: Host,
    holder: Child,
    // The holder ends with it.
    _stdin: ChildStdin,
    /// What commands are told.
    pub(crate) variables: Vec<(&'static str, String)>,
}

impl Place {
    /// A host with the images that pages boot.
    pub(crate) fn new() -> Self {
        let place = Self::bare();
        for name in ["base", "runner"] {
            place.link_image(name);
        }
        let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join("verified");
        fs::create_dir_all(&shared).unwrap();
        symlink(shared, place.host.state().join("verified")).unwrap();
        place
    }

    /// A host with two builds of an image `runner` that can't boot.
    pub(crate) fn with_store() -> Self {
        let place = Self::bare();
        let mut image = Forgery::hollow();
        image.name = "runner";
        let latest = place.host.images().join("runner/latest");
        let previous = image.install(&place.host);
        fs::remove_file(&latest).unwrap();
        symlink(previous.file_name().unwrap(), latest.with_file_name("previous")).unwrap();
        image.kernel.push(b'!');
        image.install(&place.host);
        place
    }

    fn bare() -> Self {
        require_root();
        let host = Host::bare();
        for directory in ["work", "etc", "layers", "bin"] {
            fs::create_dir(host.root().join(directory)).unwrap();
        }
        let root = host.root();
        symlink(env!("CARGO_BIN_EXE_mayfly"), root.join("bin/mayfly")).unwrap();
        // Who runs these is root already, and the other host is this one.
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
        let mut said = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "made\n");
        let stdin = holder.stdin.take().unwrap();
        Self { host, holder, _stdin: stdin, variables: Vec::new() }
    }

    /// Gives the store an image of the tests' whose files are theirs and whose directories are not.
    fn link_image(&self, name: &str) {
        let from = images().join(name);
        let copy = |arguments: &[&str]| {
            let mut copy = Command::new("cp");
            let copied = copy.args(arguments).arg(&from).arg(self.host.images()).output().unwrap();
            copied.status.success()
        };
        let linked = copy(&["-a", "--link"]) || copy(&["-a", "--sparse=always"]);
        assert!(linked, "{} can't be copied", from.display());
    }

    /// Where commands are run.
    pub(crate) fn work(&self) -> PathBuf {
        self.host.root().join("work")
    }

    /// A file of `/etc/mayfly`, for nobody else.
    pub(crate) fn secret(&self, name: &str, text: &str) {
        let path = self.host.root().join("etc").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }

    /// A script of bash's, not started, which prints what it does.
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
            // At a terminal, as for a person.
            let bash = format!("bash -xeuo pipefail {}", file.display());
            command.args(["script", "-qefc", &bash, "/dev/null"]);
        } else {
            command.args(["bash", "-xeuo", "pipefail"]).arg(file);
        }
        command
    }

    /// Writes the page's settings, and gives it the secrets that they name.
    pub(crate) fn settle(&self, blocks: &[Block]) {
        for (name, text) in [
            ("github-token", "ghp_simulated"),
            ("webhook-secret", "a secret of the tests"),
            ("api-token", "0123456789abcdef"),
            ("status-token", "0123456789abcdef"),
        ] {
            self.secret(name, text);
        }
        let settings: String = settings(blocks).map(|block| block.text.as_str()).collect();
        fs::write(self.work().join("mayfly.toml"), settings).unwrap();
    }
}

/// The blocks of a page that make up its settings file.
pub(crate) fn settings(blocks: &[Block]) -> impl Iterator<Item = &Block> {
    blocks.iter().filter(|block| block.comment == "<!-- settings -->")
}

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        // The namespace goes with its last process, which may be a shepherd's.
        let gone = || fs::remove_dir_all(self.host.root().join("layers")).is_ok().then_some(());
        if !std::thread::panicking() {
            until("the end of the layers", crate::support::PATIENCE, gone);
        }
    }
}
