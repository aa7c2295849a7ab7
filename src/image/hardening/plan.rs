//! From a recipe to what the builder, the agent and the kernel are told.

use std::collections::BTreeMap;
use std::fmt::Write;

use mayfly_protocol::settings::Settings;

use super::operation::{self, Operation};
use super::{CONTROLS, Control, Measure, Unless};
use crate::image::recipe::Content;

/// What is done to harden an image.
#[derive(Debug, Default)]
pub struct Plan {
    /// What the agent is told.
    pub settings: Settings,
    /// Arguments of the kernel, beside those of the recipe.
    pub kernel_arguments: Vec<&'static str>,
    /// A shell script that runs in the new system, as its root, when everything else is there.
    pub script: String,
    /// Each control by its name, and whether it is on.
    pub controls: BTreeMap<String, bool>,
}

/// What a recipe's hardening comes to. Names of controls that are none were refused with the
/// recipe.
pub fn plan(content: &Content) -> Plan {
    let mut plan = Plan { script: "set -eu\n".to_owned(), ..Plan::default() };
    if content.hardening.sudo {
        plan.script.push_str(&sudoers(content));
    }
    for control in CONTROLS.iter().copied().flatten() {
        let on = is_on(control, content);
        plan.controls.insert(control.name.to_owned(), on);
        if on {
            plan.add(control, content);
        }
    }
    let own = content.sysctl.iter().map(|(path, value)| (path.to_owned(), value.to_owned()));
    plan.settings.parameters.extend(own);
    plan
}

fn is_on(control: &Control, content: &Content) -> bool {
    let fits = control.unless == Unless::Never || !content.hardening.sudo;
    fits && !content.hardening.off.iter().any(|name| name == control.name)
}

impl Plan {
    fn add(&mut self, control: &Control, content: &Content) {
        for measure in control.measures {
            match measure {
                Measure::Parameter(path, value) => {
                    let parameter = ((*path).to_owned(), (*value).to_owned());
                    self.settings.parameters.push(parameter);
                }
                Measure::Argument(argument) => self.kernel_arguments.push(argument),
                Measure::Setting(set) => set(&mut self.settings),
                Measure::File(path, text) => {
                    if !content.files.iter().any(|file| file.path.as_str() == *path) {
                        self.script.push_str(&operation::write(path, text));
                    }
                }
                Measure::Operation(operation) => self.script.push_str(&operation.script()),
            }
        }
    }
}

/// The last word on the umask of what root does by sudo. PAM would take that of a login, and what a
/// job installs by sudo could not be read by the job.
const SUDO_UMASK: &str = "session optional pam_umask.so umask=0022\n";

/// Lets the recipe's users become root without a password. Nothing in a name of a user needs
/// quotes.
fn sudoers(content: &Content) -> String {
    let mut lines = String::new();
    for user in &content.users {
        // Writing to a string can't fail.
        let _ = writeln!(lines, "{} ALL=(ALL:ALL) NOPASSWD: ALL", user.name);
    }
    let path = "/etc/sudoers.d/mayfly";
    let umask = ["/etc/pam.d/sudo", "/etc/pam.d/sudo-i"]
        .map(|service| Operation::Append(service, SUDO_UMASK).script());
    format!("{}chmod 0440 '{path}'\n{}", operation::write(path, &lines), umask.concat())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::image::recipe::Recipe;

    fn plan_of(hardening: &str) -> Plan {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("recipe.toml");
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/base/image.toml");
        let text = std::fs::read_to_string(&base).unwrap();
        // Where its profiles are does not change with where it is.
        let profiles = base.parent().unwrap().join("../profiles");
        let text = text.replace("../profiles", profiles.to_str().unwrap());
        std::fs::write(&path, format!("{text}\n{hardening}")).unwrap();
        plan(&Recipe::load(&path, &[]).unwrap().content)
    }

    fn is_shell(script: &[u8]) {
        let mut check = Command::new("sh");
        let mut check = check.arg("-n").stdin(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut check.stdin.take().unwrap(), script).unwrap();
        assert!(check.wait().unwrap().success());
    }

    #[test]
    fn every_control_has_a_name_of_its_own_and_is_on_by_itself() {
        let plan = plan_of("");
        let names: BTreeSet<_> = CONTROLS.iter().copied().flatten().map(|one| one.name).collect();
        assert_eq!(names.len(), CONTROLS.iter().map(|part| part.len()).sum::<usize>());
        assert_eq!(plan.controls.len(), names.len());
        assert!(plan.controls.values().all(|on| *on), "{:?}", plan.controls);
        is_shell(plan.script.as_bytes());
    }

    #[test]
    fn what_is_off_is_not_done() {
        let plan =
            plan_of("[hardening]\noff = [\"kernel.lockdown\", \"kernel.bpf\", \"files.banners\"]");
        assert!(!plan.controls["kernel.lockdown"] && plan.controls["kernel.pointers"]);
        assert!(!plan.kernel_arguments.contains(&"lockdown=integrity"));
        assert!(!plan.settings.parameters.iter().any(|(name, _)| name.contains("bpf")));
        assert!(!plan.script.contains("/etc/issue"));
    }

    #[test]
    fn sudo_switches_off_what_would_break_it() {
        let plan = plan_of("[hardening]\nsudo = true");
        assert!(!plan.settings.no_new_privileges && !plan.settings.root_nosuid);
        assert!(plan.settings.root_nodev);
        assert!(plan.script.contains("'/etc/pam.d/sudo-i'"));
        assert!(!plan.controls["job.no-new-privileges"] && plan.controls["files.no-set-id"]);
        assert!(plan.script.contains("runner ALL=(ALL:ALL) NOPASSWD: ALL"));
        is_shell(plan.script.as_bytes());
        assert!(!plan_of("").script.contains("sudoers"));
    }

    #[test]
    fn a_file_of_the_recipe_goes_before_a_controls() {
        let plan = plan_of("[[files]]\npath = \"/etc/issue\"\ncontent = \"\"\n");
        assert!(!plan.script.contains("'/etc/issue'"), "{}", plan.script);
        assert!(plan.script.contains("'/etc/issue.net'"));
    }
}
