//! What is done to a new system: each operation as a few lines of a script that runs in it, as its
//! root and after everything else was put there.

/// A change of the new system.
#[derive(Debug)]
pub enum Operation {
    /// No account has a password that could be given, and root's is locked.
    LockPasswords,
    /// The accounts of the system's own programs have no shell.
    NoSystemShells,
    /// No file's program runs as its owner or group, but for these.
    ClearSetIds(&'static [&'static str]),
    /// Every user of the recipe has a home directory that others can't enter.
    PrivateHomes,
    /// Shells' histories are removed.
    RemoveHistories,
    /// Host keys that a package has made are removed.
    RemoveHostKeys,
    /// Files and directories are removed, where they are there.
    Remove(&'static [&'static str]),
    /// Permissions are set, in octal, where the file is there.
    Mode(&'static str, &'static [&'static str]),
    /// Keys of a file of `KEY VALUE` lines get these values.
    Keys(&'static str, &'static [(&'static str, &'static str)]),
    /// Lines are added to a file, unless it has them.
    Lines(&'static str, &'static [&'static str]),
}

impl Operation {
    /// The lines of the script. Whatever they name is a constant of this program, of characters
    /// that mean nothing to a shell within single quotes.
    pub(super) fn script(&self) -> String {
        match self {
            // `*` and `!` match no password's hash; an empty field would be a password.
            Self::LockPasswords => {
                "sed -i -E 's/^([^:]*):[^:*!]*:/\\1:*:/; s/^root:[^:]*:/root:*:/' /etc/shadow\n".to_owned()
            }
            Self::NoSystemShells => "\
                sed -i -E '/^(root|sync):/! s/^(([^:]*:){2}[0-9]{1,3}:.*:)[^:]*$/\\1\\/usr\\/sbin\\/nologin/; \
                s/^((sync|nobody):.*:)[^:]*$/\\1\\/usr\\/sbin\\/nologin/' /etc/passwd\n"
                .to_owned(),
            Self::ClearSetIds(kept) => {
                let kept: String = kept.iter().map(|path| format!("! -path '{path}' ")).collect();
                format!("find / -xdev -type f -perm /6000 {kept}-exec chmod ug-s '{{}}' +\n")
            }
            Self::PrivateHomes => "find /home -mindepth 1 -maxdepth 1 -type d -exec chmod 0700 '{}' +\n".to_owned(),
            Self::RemoveHistories => "find / -xdev -name '.*_history' -type f -delete\n".to_owned(),
            Self::RemoveHostKeys => "rm -f -- /etc/ssh/ssh_host_*\n".to_owned(),
            Self::Remove(paths) => format!("rm -rf --{}\n", quoted(paths)),
            Self::Mode(mode, paths) => {
                format!("for path in{}; do [ ! -e \"$path\" ] || chmod {mode} \"$path\"; done\n", quoted(paths))
            }
            Self::Keys(file, keys) => keys.iter().map(|(key, value)| set_key(file, key, value)).collect(),
            Self::Lines(file, lines) => lines
                .iter()
                .map(|line| format!("grep -qsxF '{line}' '{file}' || echo '{line}' >>'{file}'\n"))
                .collect(),
        }
    }
}

fn quoted(paths: &[&str]) -> String {
    paths.iter().map(|path| format!(" '{path}'")).collect()
}

fn set_key(file: &str, key: &str, value: &str) -> String {
    format!(
        "[ ! -e '{file}' ] || {{ sed -i -E '/^[#[:space:]]*{key}[[:space:]]/d' '{file}'; \
         echo '{key} {value}' >>'{file}'; }}\n"
    )
}

/// A file with this content, readable by all.
pub(super) fn write(path: &str, content: &str) -> String {
    let directory = path.rsplit_once('/').map_or("/", |(directory, _)| directory);
    format!(
        "mkdir -p '{directory}'\ncat >'{path}' <<'END-OF-FILE'\n{content}END-OF-FILE\nchmod 0644 '{path}'\n"
    )
}
