//! What is made of an output, whatever it is.

use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

/// An image with every control.
struct Image {
    controls: BTreeMap<String, bool>,
    settings: Settings,
}

impl Image {
    fn new() -> Self {
        let names = CONTROLS.iter().copied().flatten().map(|control| control.name.to_owned());
        let controls = names.map(|name| (name, true)).collect();
        Self { controls, settings: Settings::default() }
    }

    fn script(&self) -> String {
        String::from_utf8(script_of(self.subject())).unwrap()
    }

    fn judge(&self, output: &[u8]) -> Report {
        judge_by(self.subject(), output)
    }

    fn subject(&self) -> Subject<'_> {
        Subject { controls: &self.controls, settings: &self.settings }
    }
}

fn row(report: &Report, name: &str) -> Row {
    report.rows.iter().find(|row| row.control == name).cloned().unwrap()
}

fn block(name: &str, kind: &str, lines: &[&str]) -> String {
    let lines = lines.iter().map(|line| format!(" {line}\n")).collect::<Vec<_>>().concat();
    format!("probe {name} {kind}\n{lines}\nend\n")
}

fn result(name: &str, output: &str) -> (Outcome, String) {
    let row = row(&Image::new().judge(output.as_bytes()), name);
    (row.result, row.evidence)
}

#[test]
fn the_script_is_one_and_looks_at_each_control() {
    let script = Image::new().script();
    for control in CONTROLS.iter().copied().flatten() {
        assert!(!looks(control).is_empty(), "{} is never looked at", control.name);
        assert!(script.contains(&format!("look {} ", control.name)), "{}", control.name);
    }
    let mut check = Command::new("sh");
    let mut check = check.arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut check.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(check.wait().unwrap().success());
}

#[test]
fn every_script_of_a_probe_is_shell() {
    for look in CONTROLS.iter().copied().flatten().flat_map(looks) {
        let check = Command::new("sh").args(["-n", "-c", &look.script]).status().unwrap();
        assert!(check.success(), "{}", look.script);
    }
}

#[test]
fn what_the_script_prints_is_what_is_judged() {
    // Here, without any of the users and files: only the frame of the output matters.
    let mut one = Image::new();
    one.controls.retain(|name, _| name == "kernel.pointers");
    let script = one.script().replace("/proc/sys", "/nowhere");
    let run =
        Command::new("sh").arg("-c").arg(script).current_dir(Path::new("/")).output().unwrap();
    let row = row(&one.judge(&run.stdout), "kernel.pointers");
    assert_eq!(row.result, Outcome::Fail);
    assert!(row.evidence.contains("/nowhere/kernel/kptr_restrict"), "{row:?}");
}

#[test]
fn a_parameter_has_the_value_or_fails_with_the_one_it_has() {
    let name = "kernel.pointers";
    let output = block(name, "parameters", &["/proc/sys/kernel/kptr_restrict:2"]);
    assert_eq!(result(name, &output), (Outcome::Pass, "kernel/kptr_restrict = 2".to_owned()));
    let output = block(name, "parameters", &["/proc/sys/kernel/kptr_restrict:0"]);
    let evidence = "`kernel/kptr_restrict = 0` where `kernel/kptr_restrict = 2` should be";
    assert_eq!(result(name, &output), (Outcome::Fail, evidence.to_owned()));
}

#[test]
fn tabs_between_numbers_are_spaces() {
    let output =
        block("network.ping", "parameters", &["/proc/sys/net/ipv4/ping_group_range:0\t2147483647"]);
    let evidence = "net/ipv4/ping_group_range = 0 2147483647";
    assert_eq!(result("network.ping", &output), (Outcome::Pass, evidence.to_owned()));
}

#[test]
fn what_was_not_looked_at_fails() {
    let name = "kernel.pointers";
    for output in [
        String::new(),
        // Cut off: it has no end.
        block(name, "parameters", &["/proc/sys/kernel/kptr_restrict:2"]).replace("\nend\n", ""),
        block(name, "probe", &["/proc/sys/kernel/kptr_restrict:2"]),
        block("kernel.log", "parameters", &["/proc/sys/kernel/kptr_restrict:2"]),
    ] {
        let expected = (Outcome::Fail, "the probe did not run".to_owned());
        assert_eq!(result(name, &output), expected, "{output}");
    }
}

#[test]
fn a_probe_can_not_end_its_block_by_what_it_prints() {
    let name = "accounts.root-locked";
    let output = block(name, "probe", &["$y$hash", "end", "probe accounts.root-locked probe", "*"]);
    assert_eq!(result(name, &output).0, Outcome::Fail);
}

#[test]
fn the_image_decides_what_may_listen() {
    let mut image = Image::new();
    let name = "system.nothing-listens";
    let docker = block(name, "probe", &["unix /run/docker.sock"]);
    assert_eq!(row(&image.judge(docker.as_bytes()), name).result, Outcome::Fail);
    image.settings.services.push(mayfly_protocol::settings::Service {
        name: "docker".to_owned(),
        socket: "/run/docker.sock".to_owned(),
        group: "docker".to_owned(),
        command: Vec::new(),
    });
    assert_eq!(row(&image.judge(docker.as_bytes()), name).result, Outcome::Pass);
    let more = block(name, "probe", &["unix /run/docker.sock", "tcp 00000000:0016"]);
    let row = row(&image.judge(more.as_bytes()), name);
    assert_eq!((row.result, row.evidence.as_str()), (Outcome::Fail, "tcp 00000000:0016"));
}

#[test]
fn what_is_off_is_not_looked_at_and_fails_nothing() {
    let mut image = Image::new();
    image.controls.clear();
    assert!(!image.script().contains("\nlook accounts"));
    let report = image.judge(b"");
    assert!(report.passed());
    assert_eq!(report.count(Outcome::Off), report.rows.len());
}

proptest! {
    /// No output passes a control by which nothing was printed of it.
    #[test]
    fn noise_passes_nothing(output in prop::collection::vec(any::<u8>(), 0..2000)) {
        let report = Image::new().judge(&output);
        prop_assert_eq!(report.count(Outcome::Fail), report.rows.len());
    }

    /// However much a probe prints, its evidence is short and on one line.
    #[test]
    fn evidence_can_be_shown(text in "\\PC{0,40}[\\x00-\\x1f]{0,10}\\PC{0,400}") {
        let lines: Vec<&str> = text.lines().collect();
        let output = block("accounts.one-root", "probe", &lines);
        let (_, evidence) = result("accounts.one-root", &output);
        prop_assert!(evidence.chars().count() <= 241);
        prop_assert!(!evidence.chars().any(char::is_control));
    }
}
