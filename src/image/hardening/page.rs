//! The table as a page of the reference, which must be as this makes it.

use std::fmt::Write;

use super::{CONTROLS, Control, Measure, Unless};
use crate::reference::assert_made;

const TOP: &str = "\
# Hardening

What an image keeps from the jobs that run in it. Every control is on in every image, unless the recipe
names it or it can't stand beside what the recipe wants:

```toml
[hardening]
off = [\"kernel.user-namespaces\"]   # these are off
sudo = true                        # users of the recipe become root by sudo, without a password
```

`mayfly image inspect` shows which controls an image has, and an audit boots it and looks at each from inside.
An audit is of an image that was just built: it finds mistakes, not a builder who is the enemy.

The microVM is the boundary; what is here makes it harder to reach. A job that is root, by `--user root` or by
`sudo`, can undo what is set from inside and is kept from the kernel only by what can't be undone: modules
stay locked, the kernel locked down, kexec off. **The group `docker` is as good as root**: where an image has the
engine, a job can start a container with the microVM's whole file system in it. That is so on every CI service,
and why a microVM has one job.

";

const BOTTOM: &str = "\
## What is not there, and why

What was tried on the kernel 6.12 of Debian 13, and what it does to a microVM, is in
[the decision](../decisions/16-hardening.md). Left off:

| | why |
|---|---|
| `lockdown=confidentiality` | boots, but takes performance events, kprobes and BPF reads from root, too, which jobs that profile need; there is no secret of the kernel's in a microVM that root has not got by other means |
| `module.sig_enforce=1` | implied by `lockdown=integrity` |
| `init_on_free=1` | every free pays for what `init_on_alloc=1` has at the next allocation |
| `mitigations=auto,nosmt` | the host's business: a guest sees the processors it is given |
| `noexec` on `/tmp` and `/dev/shm` | builds and just-in-time compilers execute what they write there |
| umask 027 for jobs | containers and archives that a job builds are read by others |
| restricted compilers | jobs compile |
| a firewall in the guest | everything that leaves is decided on the host, by name, where no job can change it |
| a malware scanner, file integrity, `auditd` | a guest lives for one job; its programs are logged to the host |

What a scanner for servers says of it, suggestion by suggestion: [lynis.md](lynis.md).
";

fn page() -> String {
    let mut page = TOP.to_owned();
    for control in CONTROLS.iter().copied().flatten() {
        page.push_str(&section(control));
    }
    page.push_str(BOTTOM);
    page
}

fn section(control: &Control) -> String {
    let mut text = format!("## `{}`\n\n{}\n{}\n\n", control.name, control.title, control.why);
    for measure in control.measures {
        // Writing to a string can't fail.
        let _ = match measure {
            Measure::Parameter(path, value) => {
                writeln!(text, "- parameter `{}` = `{value}`", path.replace('/', "."))
            }
            Measure::Argument(argument) => writeln!(text, "- kernel argument `{argument}`"),
            Measure::File(path, _) => writeln!(text, "- file `{path}`"),
            Measure::Operation(operation) => writeln!(text, "- {}", operation.title()),
            Measure::Setting(_) => writeln!(text, "- done by the agent"),
        };
    }
    if control.measures.is_empty() {
        text.push_str("- nothing is done for it; the audit looks\n");
    }
    if control.unless == Unless::Sudo {
        text.push_str("- off where the recipe has `sudo = true`\n");
    }
    if !control.reference.is_empty() {
        let _ = write!(text, "\nAsked for by: {}.\n", control.reference);
    }
    text.push('\n');
    text
}

#[test]
fn the_reference_is_the_table() {
    assert_made("reference/hardening.md", &page());
}
