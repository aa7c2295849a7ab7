//! From a recipe to what the builder, the agent and the kernel are told.

use std::collections::BTreeMap;
use std::fmt::Write;

use mayfly_protocol::settings::Settings;

use super::{CONTROLS, Control, Measure, Unless, operation};
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

/// Lets the recipe's users become root without a password. Nothing in a name of a user needs
/// quotes.
fn sudoers(content: &Content) -> String {
    let mut lines = String::new();
    for user in &content.users {
        // Writing to a string can't fail.
        let _ = writeln!(lines, "{} ALL=(ALL:ALL) NOPASSWD: ALL", user.name);
    }
    let path = "/etc/sudoers.d/mayfly";
    format!("{}chmod 0440 '{path}'\n", operation::write(path, &lines))
}
