//! Generates the reference page of the controls, and checks that the file is up to date.

use std::fmt::Write;

use super::{CONTROLS, Conflict, Control, Measure};
use mayfly_reference::assert_generated;

const TOP: &str = "\
# Hardening

Use this page to decide which controls of an image to switch off, and to see what you lose. A control
restricts the jobs that run in the image. Every control is on in every image, unless the recipe disables it or
it conflicts with the recipe:

```toml
[hardening]
off = [\"kernel.user-namespaces\"]   # disable these controls
sudo = true                        # users of the recipe may become root with sudo, without a password
```

`mayfly image inspect` shows the controls of an image. `mayfly image audit` boots it and checks each one from inside.
An audit is meant for a freshly built image: it finds mistakes, but can't detect a malicious builder.

The microVM is the security boundary; these controls make it harder to reach. A job that is root, by `--user root`
or `sudo`, can undo what is set from inside. Only what can't be undone protects the kernel from it: modules
stay locked, the kernel locked down, kexec off. **The group `docker` is equivalent to root**: in an image with the
engine, a job can start a container with the microVM's whole file system in it. This is the case on every CI service,
and the reason why a microVM runs one job only.

";

const BOTTOM: &str = "\
## Rejected controls

Experiments with the kernel 6.12 of Debian 13, and their effect on a microVM, are in
[the decision](../decisions/16-hardening.md). Rejected:

| | why |
|---|---|
| `lockdown=confidentiality` | boots, but also denies root performance events, kprobes and BPF reads, which profiling jobs need; the kernel of a microVM has no secret that root can't get by other means |
| `module.sig_enforce=1` | implied by `lockdown=integrity` |
| `init_on_free=1` | a cost for every free, for what `init_on_alloc=1` does at the next allocation |
| `mitigations=auto,nosmt` | up to the host: a guest sees only its own virtual processors |
| `noexec` on `/tmp` and `/dev/shm` | builds and just-in-time compilers execute files that they write there |
| umask 027 for jobs | others read the containers and archives that a job builds |
| restricted compilers | jobs compile |
| a firewall in the guest | the host decides on all egress, by name, where no job can change it |
| a malware scanner, file integrity, `auditd` | a guest runs one job; its programs are logged on the host |

The findings of a scanner for servers, suggestion by suggestion: [lynis.md](lynis.md).
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
        text.push_str("- nothing to set; the audit checks it\n");
    }
    if control.conflict == Conflict::Sudo {
        text.push_str("- off where the recipe has `sudo = true`\n");
    }
    if !control.reference.is_empty() {
        let _ = write!(text, "\nReferences: {}.\n", control.reference);
    }
    text.push('\n');
    text
}

#[test]
fn the_reference_page_is_up_to_date() {
    assert_generated("reference/hardening.md", &page());
}
