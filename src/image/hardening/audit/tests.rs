//! Evaluation of any output.

use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

/// An image with every control.
struct Image {
    controls: BTreeMap<String, bool>,
    settings: GuestSettings,
}

impl Image {
    fn new() -> Self {
        let names = CONTROLS.iter().copied().flatten().map(|control| control.name.to_owned());
        let controls = names.map(|name| (name, true)).collect();
        Self { controls, settings: GuestSettings::default() }
    }

    fn script(&self) -> String {
        String::from_utf8(script_of(self.subject())).unwrap()
    }

    fn evaluate(&self, output: &[u8]) -> AuditReport {
        evaluate_subject(self.subject(), output)
    }

    fn subject(&self) -> AuditSubject<'_> {
        AuditSubject { controls: &self.controls, settings: &self.settings }
    }
}

fn row(report: &AuditReport, name: &str) -> AuditRow {
    report.rows.iter().find(|row| row.control == name).cloned().unwrap()
}

fn block(name: &str, kind: &str, lines: &[&str]) -> String {
    let lines = lines.iter().map(|line| format!(" {line}\n")).collect::<Vec<_>>().concat();
    format!("probe {name} {kind}\n{lines}\nend\n")
}

fn result(name: &str, output: &str) -> (AuditOutcome, String) {
    let row = row(&Image::new().evaluate(output.as_bytes()), name);
    (row.result, row.evidence)
}

#[test]
fn the_script_is_valid_and_checks_each_control() {
    let script = Image::new().script();
    for control in CONTROLS.iter().copied().flatten() {
        assert!(!checks(control).is_empty(), "{} is never checked", control.name);
        assert!(script.contains(&format!("run_probe {} ", control.name)), "{}", control.name);
    }
    let mut check = Command::new("sh");
    let mut check = check.arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut check.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(check.wait().unwrap().success());
}

#[test]
fn every_script_of_a_probe_is_shell() {
    for check in CONTROLS.iter().copied().flatten().flat_map(checks) {
        let status = Command::new("sh").args(["-n", "-c", &check.script]).status().unwrap();
        assert!(status.success(), "{}", check.script);
    }
}

#[test]
fn the_output_of_the_script_is_evaluated() {
    // Run here, without the users and files: only the format of the output matters.
    let mut one = Image::new();
    one.controls.retain(|name, _| name == "kernel.pointers");
    let script = one.script().replace("/proc/sys", "/nowhere");
    let run =
        Command::new("sh").arg("-c").arg(script).current_dir(Path::new("/")).output().unwrap();
    let row = row(&one.evaluate(&run.stdout), "kernel.pointers");
    assert_eq!(row.result, AuditOutcome::Fail);
    assert!(row.evidence.contains("/nowhere/kernel/kptr_restrict"), "{row:?}");
}

#[test]
fn a_wrong_parameter_fails_with_its_value() {
    let name = "kernel.pointers";
    let output = block(name, "parameters", &["/proc/sys/kernel/kptr_restrict:2"]);
    assert_eq!(result(name, &output), (AuditOutcome::Pass, "kernel/kptr_restrict = 2".to_owned()));
    let output = block(name, "parameters", &["/proc/sys/kernel/kptr_restrict:0"]);
    let evidence = "`kernel/kptr_restrict = 0`, expected `kernel/kptr_restrict = 2`";
    assert_eq!(result(name, &output), (AuditOutcome::Fail, evidence.to_owned()));
}

#[test]
fn tabs_between_numbers_are_spaces() {
    let output =
        block("network.ping", "parameters", &["/proc/sys/net/ipv4/ping_group_range:0\t2147483647"]);
    let evidence = "net/ipv4/ping_group_range = 0 2147483647";
    assert_eq!(result("network.ping", &output), (AuditOutcome::Pass, evidence.to_owned()));
}

#[test]
fn a_missing_check_fails() {
    let name = "kernel.pointers";
    for output in [
        String::new(),
        // Truncated: it has no end.
        block(name, "parameters", &["/proc/sys/kernel/kptr_restrict:2"]).replace("\nend\n", ""),
        block(name, "probe", &["/proc/sys/kernel/kptr_restrict:2"]),
        block("kernel.log", "parameters", &["/proc/sys/kernel/kptr_restrict:2"]),
    ] {
        let expected = (AuditOutcome::Fail, "the probe did not run".to_owned());
        assert_eq!(result(name, &output), expected, "{output}");
    }
}

#[test]
fn the_output_of_a_probe_can_not_end_its_block() {
    let name = "accounts.root-locked";
    let output = block(name, "probe", &["$y$hash", "end", "probe accounts.root-locked probe", "*"]);
    assert_eq!(result(name, &output).0, AuditOutcome::Fail);
}

#[test]
fn only_services_of_the_image_may_listen() {
    let mut image = Image::new();
    let name = "system.nothing-listens";
    let docker = block(name, "probe", &["unix /run/docker.sock"]);
    assert_eq!(row(&image.evaluate(docker.as_bytes()), name).result, AuditOutcome::Fail);
    image.settings.services.push(mayfly_protocol::settings::Service {
        name: "docker".to_owned(),
        socket: "/run/docker.sock".to_owned(),
        group: "docker".to_owned(),
        command: Vec::new(),
    });
    assert_eq!(row(&image.evaluate(docker.as_bytes()), name).result, AuditOutcome::Pass);
    let more = block(name, "probe", &["unix /run/docker.sock", "tcp 00000000:0016"]);
    let row = row(&image.evaluate(more.as_bytes()), name);
    assert_eq!((row.result, row.evidence.as_str()), (AuditOutcome::Fail, "tcp 00000000:0016"));
}

#[test]
fn disabled_controls_are_not_checked() {
    let mut image = Image::new();
    image.controls.clear();
    assert!(!image.script().contains(
        "
run_probe accounts"
    ));
    let report = image.evaluate(b"");
    assert!(report.passed());
    assert_eq!(report.count(AuditOutcome::Off), report.rows.len());
}

proptest! {
    /// Random output passes no control.
    #[test]
    fn random_output_passes_no_control(output in prop::collection::vec(any::<u8>(), 0..2000)) {
        let report = Image::new().evaluate(&output);
        prop_assert_eq!(report.count(AuditOutcome::Fail), report.rows.len());
    }

    /// Evidence is short and on one line, however much a probe prints.
    #[test]
    fn evidence_is_short_and_printable(text in "\\PC{0,40}[\\x00-\\x1f]{0,10}\\PC{0,400}") {
        let lines: Vec<&str> = text.lines().collect();
        let output = block("accounts.one-root", "probe", &lines);
        let (_, evidence) = result("accounts.one-root", &output);
        prop_assert!(evidence.chars().count() <= 241);
        prop_assert!(!evidence.chars().any(char::is_control));
    }
}
