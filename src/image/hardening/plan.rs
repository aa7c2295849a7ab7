//! Converts the hardening of a recipe to settings for the builder, the agent and the kernel.

use std::collections::BTreeMap;
use std::fmt::Write;

use mayfly_protocol::settings::GuestSettings;

use super::operation::{self, Operation};
use super::{CONTROLS, Conflict, Control, Measure};
use crate::recipe::RecipeContent;

/// The measures that harden an image.
#[derive(Debug, Default)]
pub struct HardeningPlan {
    /// The agent's settings.
    pub settings: GuestSettings,
    /// Kernel arguments, in addition to those of the recipe.
    pub kernel_arguments: Vec<&'static str>,
    /// A shell script that runs as root in the new system, after everything else.
    pub script: String,
    /// Each control by name, and whether it is on.
    pub controls: BTreeMap<String, bool>,
}

/// Returns the measures for a recipe. Unknown control names have been rejected with the recipe.
pub fn plan(content: &RecipeContent) -> HardeningPlan {
    let mut plan = HardeningPlan { script: "set -eu\n".to_owned(), ..HardeningPlan::default() };
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

fn is_on(control: &Control, content: &RecipeContent) -> bool {
    let fits = control.conflict == Conflict::None || !content.hardening.sudo;
    fits && !content.hardening.off.iter().any(|name| name == control.name)
}

impl HardeningPlan {
    fn add(&mut self, control: &Control, content: &RecipeContent) {
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

/// Sets the umask of commands run by sudo. Otherwise PAM would set that of a login, and the job
/// could not read what it installs with sudo.
const SUDO_UMASK: &str = "session optional pam_umask.so umask=0022\n";

/// Allows the recipe's users to become root without a password. User names need no quotes.
fn sudoers(content: &RecipeContent) -> String {
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
    use crate::recipe::Recipe;

    fn plan_of(hardening: &str) -> HardeningPlan {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("recipe.toml");
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/base/image.toml");
        let text = std::fs::read_to_string(&base).unwrap();
        // Its profiles stay at their original path.
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
    fn every_control_has_a_unique_name_and_is_on_by_default() {
        let plan = plan_of("");
        let names: BTreeSet<_> = CONTROLS.iter().copied().flatten().map(|one| one.name).collect();
        assert_eq!(names.len(), CONTROLS.iter().map(|part| part.len()).sum::<usize>());
        assert_eq!(plan.controls.len(), names.len());
        assert!(plan.controls.values().all(|on| *on), "{:?}", plan.controls);
        is_shell(plan.script.as_bytes());
    }

    #[test]
    fn disabled_controls_have_no_measures() {
        let off = "[hardening]\noff = [\"kernel.lockdown\", \"kernel.bpf\", \"job.no-core-dumps\"]";
        let plan = plan_of(off);
        assert!(!plan.controls["kernel.lockdown"] && plan.controls["kernel.pointers"]);
        assert!(!plan.kernel_arguments.contains(&"lockdown=integrity"));
        assert!(!plan.settings.parameters.iter().any(|(name, _)| name.contains("bpf")));
        assert!(!plan.script.contains("limits.d/mayfly.conf"));
    }

    #[test]
    fn sudo_disables_conflicting_controls() {
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
    fn a_file_of_the_recipe_overrides_that_of_a_control() {
        let plan = plan_of("[[files]]\npath = \"/etc/modprobe.d/mayfly.conf\"\ncontent = \"\"\n");
        assert!(!plan.script.contains("'/etc/modprobe.d/mayfly.conf'"), "{}", plan.script);
        assert!(plan.script.contains("'/etc/security/limits.d/mayfly.conf'"));
    }
}
