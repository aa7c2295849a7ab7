//! Tests completions in each shell, and the man pages.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Running, TIMEOUT};
use crate::tree::InstallRoot;

/// Runs a script in a shell and returns its output. `$1` is the file of completions.
#[track_caller]
fn shell(program: &str, arguments: &[&str], script: &str, file: &Path) -> String {
    let mut command = Command::new(program);
    command.args(arguments).args(["-c", script]).arg(program).arg(file);
    let ending = Running::start(&mut command).finish(TIMEOUT);
    ending.assert_code(0);
    assert_eq!(ending.stderr, "", "{program}");
    ending.text()
}

#[test]
fn shells_complete_verbs_and_options() {
    let tree = InstallRoot::installed();
    let bash = |line: &str| {
        let words = format!(
            "COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             $(complete -p mayfly | sed 's/.*-F \\([^ ]*\\) .*/\\1/') mayfly \"${{COMP_WORDS[-1]}}\" \
             \"${{COMP_WORDS[-2]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let file = tree.path("usr/local/share/bash-completion/completions/mayfly");
        shell("bash", &["--norc"], &format!("source \"$1\"; {words}"), &file)
    };
    assert_eq!(bash("mayfly im"), "image\n");
    assert_eq!(bash("mayfly image ver"), "verify\n");
    assert_eq!(bash("mayfly run --mem"), "--memory\n");
    assert_eq!(bash("mayfly shep"), "\n", "a hidden subcommand is offered");

    let file = tree.path("usr/local/share/zsh/site-functions/_mayfly");
    shell("zsh", &["-f", "-n"], "source \"$1\"", &file);
    shell(
        "zsh",
        &["-f"],
        "autoload -Uz compinit; compinit -D; source $1; whence -v _mayfly",
        &file,
    );
    let fish = |line: &str| {
        let file = tree.path("usr/local/share/fish/vendor_completions.d/mayfly.fish");
        let mut command = Command::new("fish");
        command.args(["--no-config", "-c", "source $argv[1]; complete -C $argv[2]"]);
        command.arg(file).arg(line).env("HOME", tree.root.path());
        Running::start(&mut command).finish(TIMEOUT).assert_code(0).text()
    };
    let offered = fish("mayfly im");
    assert!(offered.starts_with("image\t") && offered.lines().count() == 1, "{offered}");
    assert!(fish("mayfly image ver").starts_with("verify\t"));
    assert_eq!(fish("mayfly shep"), "");
}

#[test]
fn every_verb_has_a_man_page_without_a_flaw() {
    let tree = InstallRoot::installed();
    let pages = tree.path("usr/local/share/man/man1");
    let names: Vec<_> = fs::read_dir(&pages).unwrap().map(|one| one.unwrap().path()).collect();
    assert!(names.len() > 25, "{names:?}");
    for hidden in ["shepherd", "man", "completions"] {
        assert!(
            !pages.join(format!("mayfly-{hidden}.1")).exists(),
            "hidden {hidden} has a man page"
        );
    }
    for page in &names {
        let mut groff = Command::new("groff");
        groff.args(["-man", "-ww", "-Tutf8"]).arg(page);
        let ending = Running::start(&mut groff).finish(TIMEOUT);
        ending.assert_code(0);
        assert_eq!(ending.stderr, "", "{}", page.display());
    }
    let run = fs::read_to_string(pages.join("mayfly-run.1")).unwrap();
    assert!(run.contains("\n.SH EXAMPLES\n.nf\n"), "{run}");
}
