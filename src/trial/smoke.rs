//! The smoke test: a job like those that an image is for, but small, offline, and run as the user
//! of jobs.

use mayfly_protocol::message::JobExit;

use super::{TrialEnvironment, TrialError, TrialOutput};
use mayfly_image::{Image, Reference};

/// The result of the smoke test.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SmokeResult {
    /// Whether all steps succeeded.
    pub passed: bool,
    /// The failed step and its last error line, or the number of steps.
    pub detail: String,
}

/// Boots the image and runs the job.
pub fn run(environment: &TrialEnvironment<'_>, image: &Image) -> Result<SmokeResult, TrialError> {
    let reference = Reference::exactly(&image.name, &image.digest);
    let result = environment.run(&reference, "runner", script(image).as_bytes())?;
    Ok(evaluate(&result))
}

/// Returns the script. It prints the name of each step before running it, so that the last name is
/// that of the failed step.
fn script(image: &Image) -> String {
    let manifest = &image.manifest;
    let has = |name: &str| manifest.packages.iter().any(|package| package.name == name);
    let mut steps = vec![
        ("files", "cd && echo x >file && [ \"$(cat file)\" = x ] && rm file".to_owned()),
        ("a name", "getent hosts localhost >/dev/null".to_owned()),
    ];
    if has("git") {
        let commit = "git -C g -c user.name=x -c user.email=x@example.com commit -qm x";
        let git = format!("git init -q g && touch g/f && git -C g add f && {commit}");
        steps.push(("git", git));
    }
    if has("gcc") {
        let program = "printf 'int main(void) { return 7; }' | gcc -x c - -o c";
        steps.push(("a C program", format!("{program} && {{ ./c; [ $? -eq 7 ]; }}")));
    }
    if has("python3") {
        steps.push(("Python", "[ \"$(python3 -c 'print(6 * 7)')\" = 42 ]".to_owned()));
    }
    if let Some(runner) = &manifest.runner {
        let version = format!(
            "[ \"$({}/bin/Runner.Listener --version)\" = '{}' ]",
            runner.directory, runner.version
        );
        steps.push(("the runner", version));
    }
    if manifest.settings.services.iter().any(|service| service.name == "docker") {
        steps.push(("Docker", "docker info --format '{{.ServerVersion}}' >/dev/null".to_owned()));
    }
    let step =
        |(name, command): (&str, String)| format!("echo {name:?}\n{{ {command}; }} || exit 1");
    let steps: Vec<String> = steps.into_iter().map(step).collect();
    format!("{}\necho done\n", steps.join("\n"))
}

fn evaluate(result: &TrialOutput) -> SmokeResult {
    let output = String::from_utf8_lossy(&result.output);
    let last = output.lines().next_back().unwrap_or("nothing");
    if result.status == JobExit::Code(0) && last == "done" {
        return SmokeResult {
            passed: true,
            detail: format!("{} steps", output.lines().count() - 1),
        };
    }
    let errors = String::from_utf8_lossy(&result.errors);
    let error = errors.lines().next_back().unwrap_or_default();
    let status = match &result.status {
        JobExit::Code(code) => format!("exit status {code}"),
        JobExit::Signal(number) => format!("signal {number}"),
        JobExit::NotStarted(_) => "not started".to_owned(),
    };
    SmokeResult { passed: false, detail: format!("{last}: {status} {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(status: JobExit, output: &str, errors: &str) -> TrialOutput {
        TrialOutput { status, output: output.into(), errors: errors.into() }
    }

    #[test]
    fn only_a_completed_job_passes() {
        let good = evaluate(&result(JobExit::Code(0), "files\ngit\ndone\n", ""));
        assert_eq!(good, SmokeResult { passed: true, detail: "2 steps".to_owned() });
        assert!(!evaluate(&result(JobExit::Code(0), "files\n", "")).passed);
        let bad = evaluate(&result(JobExit::Code(1), "files\ngit\n", "x\nfatal: no\n"));
        assert_eq!(bad.detail, "git: exit status 1 fatal: no");
    }
}
