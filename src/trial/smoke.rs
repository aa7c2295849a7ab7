//! A job like those that an image is for: small, offline, and as the user who runs jobs.

use mayfly_protocol::message::JobStatus;

use super::{Bench, TrialError, Tried};
use crate::image::{Image, Reference};

/// What an image did with the job.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Smoke {
    /// Whether everything worked.
    pub passed: bool,
    /// The step that failed, and what it said, or what the last one said.
    pub detail: String,
}

/// Boots the image and runs the job.
pub fn run(bench: &Bench<'_>, image: &Image) -> Result<Smoke, TrialError> {
    let reference = Reference::exactly(&image.name, &image.digest);
    let tried = bench.run(&reference, "runner", script(image).as_bytes())?;
    Ok(judge(&tried))
}

/// The steps: each is named before it is tried, so that the last name is that of the one that
/// failed.
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

fn judge(tried: &Tried) -> Smoke {
    let output = String::from_utf8_lossy(&tried.output);
    let last = output.lines().next_back().unwrap_or("nothing");
    if tried.status == JobStatus::Code(0) && last == "done" {
        return Smoke { passed: true, detail: format!("{} steps", output.lines().count() - 1) };
    }
    let errors = String::from_utf8_lossy(&tried.errors);
    let said = errors.lines().next_back().unwrap_or_default();
    let status = match &tried.status {
        JobStatus::Code(code) => format!("exit status {code}"),
        JobStatus::Signal(number) => format!("signal {number}"),
        JobStatus::NotStarted(_) => "not started".to_owned(),
    };
    Smoke { passed: false, detail: format!("{last}: {status} {said}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(status: JobStatus, output: &str, errors: &str) -> Tried {
        Tried { status, output: output.into(), errors: errors.into() }
    }

    #[test]
    fn only_a_job_that_came_to_its_end_passes() {
        let good = judge(&tried(JobStatus::Code(0), "files\ngit\ndone\n", ""));
        assert_eq!(good, Smoke { passed: true, detail: "2 steps".to_owned() });
        assert!(!judge(&tried(JobStatus::Code(0), "files\n", "")).passed);
        let bad = judge(&tried(JobStatus::Code(1), "files\ngit\n", "x\nfatal: no\n"));
        assert_eq!(bad.detail, "git: exit status 1 fatal: no");
    }
}
