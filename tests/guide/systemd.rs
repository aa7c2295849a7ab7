//! Runs the commands of all pages that need systemd, on one machine. The first block installs
//! Mayfly, the last one removes it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::blocks::{Block, Environment, commands, project};
use crate::machine::Machine;
use crate::support::{Running, images};

/// The time limit of a block: an installation and a first boot.
const BLOCK_TIMEOUT: Duration = Duration::from_secs(240);

/// Links the source tree `$1` with the build outputs `$2` and `$3`, copies the image `$4`, and
/// adapts the machine to the test: emulation instead of KVM, and a log file instead of a journal.
const PREPARE: &str = "\
    mkdir -p /root/mayfly/target/release /run/systemd/system/mayfly.service.d /var/lib/mayfly/images
    cd /root/mayfly
    ln -s $1/scripts $1/images $1/packaging $1/docs .
    ln -s $2/mayfly target/release/mayfly
    ln -s $3 target/libexec
    cp -a --sparse=always $4 /var/lib/mayfly/images/base
    printf '#!/bin/sh\\nexec \"$@\"\\n' >/usr/local/bin/sudo
    chmod 755 /usr/local/bin/sudo
    printf '[Service]\\nEnvironment=MAYFLY_HOST__ALLOW_EMULATION=true\\nStandardError=append:/run/mayfly.log\\n' \\
        >/run/systemd/system/mayfly.service.d/test.conf
    touch app.pem";

fn prepared_machine() -> Machine {
    let binaries = Path::new(env!("CARGO_BIN_EXE_mayfly")).parent().unwrap().to_owned();
    let libexec = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| project().join("target"), Into::into)
        .join("libexec");
    let libexec = fs::canonicalize(libexec).unwrap();
    let image = fs::canonicalize(images().join("base")).unwrap();
    let machine = Machine::boot(&[project(), &binaries, &libexec, &image]);
    let mut prepare = machine.command(["bash", "-euc", PREPARE, "prepare"]);
    prepare.arg(project()).args([&binaries, &libexec, &image]);
    Running::start(&mut prepare).finish(BLOCK_TIMEOUT).assert_code(0);
    machine
}

#[test]
fn the_commands_of_administrators_do_what_they_are_for() {
    let all = commands().into_iter();
    let mut blocks: Vec<_> =
        all.filter(|block| block.environment() == Some(Environment::Machine)).collect();
    // The installation comes first, the removal last.
    let rank = |block: &Block| {
        (block.text.contains("scripts/uninstall"), block.page != "docs/guide/bare-metal.md")
    };
    blocks.sort_by_key(rank);
    assert!(blocks.first().unwrap().text.contains("scripts/install"));
    assert!(blocks.last().unwrap().text.contains("scripts/uninstall"));
    let machine = prepared_machine();
    for block in &blocks {
        let script = format!("cd /root/mayfly; {}", block.text);
        let mut bash = machine.command(["bash", "-xeuo", "pipefail", "-c", &script]);
        let ending = Running::start(&mut bash).finish(BLOCK_TIMEOUT);
        let log = machine.run(["cat", "/run/mayfly.log"]).text();
        assert_eq!(ending.code(), 0, "{}\n{}\n{ending:?}\n{log}", block.location(), block.text);
    }
    machine.run(["sh", "-c", "! command -v mayfly && ! [ -e /etc/mayfly ]"]).assert_code(0);
}
