//! Changes of a new system: each operation is a few lines of a script that runs in it as root,
//! after everything else is installed.

/// A change of the new system.
#[derive(Debug)]
pub enum Operation {
    /// Locks the passwords of all accounts.
    LockPasswords,
    /// Removes the shells of system accounts.
    NoSystemShells,
    /// Clears the set-user-id and set-group-id bits of all files except these.
    ClearSetIds(&'static [&'static str]),
    /// Makes the home directories of the recipe's users private.
    PrivateHomes,
    /// Removes shell histories.
    RemoveHistories,
    /// Removes host keys that a package has created.
    RemoveHostKeys,
    /// Removes files and directories that exist.
    Remove(&'static [&'static str]),
    /// Sets the octal permissions of files that exist.
    Mode(&'static str, &'static [&'static str]),
    /// Adds lines to a file, unless it has them.
    Lines(&'static str, &'static [&'static str]),
    /// Appends a text to a file, unless it has the text's first line.
    Append(&'static str, &'static str),
}

impl Operation {
    /// Returns the lines of the script. All names in them are constants of this program that are
    /// safe within single quotes.
    pub(super) fn script(&self) -> String {
        match self {
            // `*` and `!` match no password hash; an empty field would be a password.
            Self::LockPasswords => {
                let any = r"s/^([^:]*):[^:*!]*:/\1:*:/";
                format!("sed -i -E '{any}; s/^root:[^:]*:/root:*:/' /etc/shadow\n")
            }
            // Ids of up to three digits are system accounts, except root.
            Self::NoSystemShells => {
                let nologin = r"\1\/usr\/sbin\/nologin/";
                let system =
                    format!("/^root:/! s/^(([^:]*:){{2}}[0-9]{{1,3}}:.*:)[^:]*$/{nologin}");
                let nobody = format!("s/^(nobody:.*:)[^:]*$/{nologin}");
                format!("sed -i -E '{system}; {nobody}' /etc/passwd\n")
            }
            Self::ClearSetIds(exceptions) => {
                let exceptions: Vec<_> =
                    exceptions.iter().map(|path| format!("! -path '{path}' ")).collect();
                let exceptions = exceptions.concat();
                format!("find / -xdev -type f -perm /6000 {exceptions}-exec chmod ug-s '{{}}' +\n")
            }
            Self::PrivateHomes => {
                "find /home -mindepth 1 -maxdepth 1 -type d -exec chmod 0700 '{}' +\n".to_owned()
            }
            Self::RemoveHistories => "find / -xdev -name '.*_history' -type f -delete\n".to_owned(),
            Self::RemoveHostKeys => "rm -f -- /etc/ssh/ssh_host_*\n".to_owned(),
            Self::Remove(paths) => format!("rm -rf --{}\n", quoted(paths)),
            Self::Mode(mode, paths) => {
                format!(
                    "for path in{}; do [ ! -e \"$path\" ] || chmod {mode} \"$path\"; done\n",
                    quoted(paths)
                )
            }
            Self::Lines(file, lines) => {
                let add =
                    |line| format!("grep -qsxF '{line}' '{file}' || echo '{line}' >>'{file}'\n");
                lines.iter().map(add).collect::<Vec<_>>().concat()
            }
            Self::Append(file, text) => {
                let first = text.lines().next().unwrap_or_default();
                format!(
                    "grep -qsxF '{first}' '{file}' || cat >>'{file}' <<'END-OF-TEXT'\n{text}END-OF-TEXT\n"
                )
            }
        }
    }
}

#[cfg(test)]
impl Operation {
    /// Returns the text for the reference page.
    pub(super) fn title(&self) -> String {
        let list = |paths: &[&str]| format!("`{}`", paths.join("`, `"));
        match self {
            Self::LockPasswords => "passwords in `/etc/shadow` are replaced by `*`".to_owned(),
            Self::NoSystemShells => "shells in `/etc/passwd` become `nologin`".to_owned(),
            Self::ClearSetIds(exceptions) => {
                format!(
                    "set-user-id and set-group-id bits are cleared, except for {}",
                    list(exceptions)
                )
            }
            Self::PrivateHomes => "directories in `/home` get the mode 0700".to_owned(),
            Self::RemoveHistories => "files `.*_history` are removed".to_owned(),
            Self::RemoveHostKeys => "host keys in `/etc/ssh` are removed".to_owned(),
            Self::Remove(paths) => format!("removed: {}", list(paths)),
            Self::Mode(mode, paths) => format!("mode {mode}: {}", list(paths)),
            Self::Lines(file, lines) => format!("in `{file}`: {}", list(lines)),
            Self::Append(file, text) => {
                format!(
                    "at the end of `{file}`:\n\n  ```sh\n  {}\n  ```",
                    text.trim_end().replace('\n', "\n  ")
                )
            }
        }
    }
}

fn quoted(paths: &[&str]) -> String {
    paths.iter().map(|path| format!(" '{path}'")).collect::<Vec<_>>().concat()
}

/// Returns a script that writes a file with this content, readable by all.
pub(super) fn write(path: &str, content: &str) -> String {
    let directory = path.rsplit_once('/').map_or("/", |(directory, _)| directory);
    format!(
        "mkdir -p '{directory}'\ncat >'{path}' <<'END-OF-FILE'\n{content}END-OF-FILE\nchmod 0644 '{path}'\n"
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    /// Returns the content of a file of `/etc` after an operation.
    fn after(operation: &Operation, file: &str, before: &str) -> String {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let path = root.path().join(file.trim_start_matches('/'));
        fs::write(&path, before).unwrap();
        let etc = root.path().join("etc");
        let script = operation.script().replace(" /etc", &format!(" {}", etc.display()));
        let script = script.replace("'/etc", &format!("'{}", etc.display()));
        let run = Command::new("sh").args(["-euc", &script]).output().unwrap();
        assert!(run.status.success(), "{script}\n{run:?}");
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn all_passwords_are_locked() {
        let before = "root:$y$j9T$x:1::::::\ndaemon:*:1::::::\nopen::1::::::\nrunner:!:1::::::\n";
        let expected = "root:*:1::::::\ndaemon:*:1::::::\nopen:*:1::::::\nrunner:!:1::::::\n";
        assert_eq!(after(&Operation::LockPasswords, "/etc/shadow", before), expected);
        let locked = "root:!:1::::::\n";
        assert_eq!(after(&Operation::LockPasswords, "/etc/shadow", locked), "root:*:1::::::\n");
    }

    #[test]
    fn only_people_and_root_keep_their_shell() {
        let before = "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:d:/usr/sbin:/bin/sh\n\
                      sync:x:4:65534:sync:/bin:/bin/sync\nnobody:x:65534:65534:n:/none:/bin/sh\n\
                      runner:x:1001:1001::/home/runner:/bin/bash\n";
        let shells: Vec<String> = after(&Operation::NoSystemShells, "/etc/passwd", before)
            .lines()
            .map(|line| line.rsplit(':').next().unwrap_or_default().to_owned())
            .collect();
        let none = "/usr/sbin/nologin";
        assert_eq!(shells, ["/bin/bash", none, none, none, "/bin/bash"]);
    }

    #[test]
    fn lines_are_added_once() {
        let lines = Operation::Lines("/etc/x", &["a", "b"]);
        assert_eq!(after(&lines, "/etc/x", "b\n"), "b\na\n");
    }

    #[test]
    fn a_text_is_appended_once() {
        let text = Operation::Append("/etc/x", "# Ours.\nif true; then\n    umask 027\nfi\n");
        let before = "if false; then\n    :\nfi\n";
        let once = format!("{before}# Ours.\nif true; then\n    umask 027\nfi\n");
        assert_eq!(after(&text, "/etc/x", before), once);
        assert_eq!(after(&text, "/etc/x", &once), once);
    }

    #[test]
    fn a_file_is_written_verbatim() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let script = write(path.to_str().unwrap(), "$x `y` \\z\n");
        let run = Command::new("sh").args(["-euc", &script]).output().unwrap();
        assert!(run.status.success(), "{run:?}");
        assert_eq!(fs::read_to_string(path).unwrap(), "$x `y` \\z\n");
    }
}
