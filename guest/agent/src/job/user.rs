//! Looks up users and groups in the image's `/etc/passwd` and `/etc/group`.
//!
//! The C library's lookup does not work in a static binary.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A user, with all properties that a login sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: Vec<u8>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The primary group and all others that list the user.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: PathBuf,
    pub(crate) shell: Vec<u8>,
}

/// Finds a user by name, or else by number, in the contents of the two files. Skips malformed
/// lines.
pub(crate) fn find(requested: &str, passwd: &[u8], groups: &[u8]) -> Option<User> {
    let mut users = lines(passwd);
    let by_name = users.find(|fields| fields.first() == Some(&requested.as_bytes()));
    let by_number = || {
        let number = parse(requested.as_bytes())?;
        lines(passwd).find(|fields| fields.get(2).and_then(|uid| parse(uid)) == Some(number))
    };
    let fields = by_name.or_else(by_number)?;
    // name:password:uid:gid:comment:home:shell
    let [name, _, uid, gid, _, home, rest @ ..] = fields.as_slice() else { return None };
    let (uid, gid) = (parse(uid)?, parse(gid)?);
    let shell = rest.first().copied().filter(|shell| !shell.is_empty()).unwrap_or(b"/bin/sh");
    Some(User {
        name: name.to_vec(),
        uid,
        gid,
        groups: groups_of(name, gid, groups),
        home: OsString::from_vec(home.to_vec()).into(),
        shell: shell.to_vec(),
    })
}

/// Finds the number of a group by its name.
pub(crate) fn group_number(requested: &str, groups: &[u8]) -> Option<u32> {
    let mut groups = lines(groups);
    let fields = groups.find(|fields| fields.first() == Some(&requested.as_bytes()))?;
    // name:password:gid:members
    fields.get(2).and_then(|gid| parse(gid))
}

fn groups_of(name: &[u8], main: u32, groups: &[u8]) -> Vec<u32> {
    // name:password:gid:member,member
    let others = lines(groups).filter_map(|fields| match fields.as_slice() {
        [_, _, gid, members, ..] if members.split(|byte| *byte == b',').any(|one| one == name) => {
            parse(gid)
        }
        _ => None,
    });
    std::iter::once(main).chain(others.filter(|gid| *gid != main)).collect()
}

fn lines(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    text.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b':').collect())
}

fn parse(number: &[u8]) -> Option<u32> {
    std::str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\
        broken line\n\
        1001:x:7:7::/seven:/bin/sh\n\
        runner:x:1001:1001:Runner:/home/runner:\n";
    const GROUP: &[u8] =
        b"root:x:0:\nrunner:x:1001:runner\naudio:x:29:other,runner\nvideo:x:44:run\n";

    #[test]
    fn a_user_is_found_by_name_with_all_groups() {
        let user = find("runner", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (1001, 1001, vec![1001, 29]));
        assert_eq!(user.home, PathBuf::from("/home/runner"));
        assert_eq!(user.shell, b"/bin/sh");
    }

    #[test]
    fn a_name_takes_precedence_over_a_number() {
        assert_eq!(find("1001", PASSWD, GROUP).unwrap().uid, 7);
        assert_eq!(find("0", PASSWD, GROUP).unwrap().name, b"root");
    }

    #[test]
    fn a_group_is_found_by_name() {
        assert_eq!(group_number("video", GROUP), Some(44));
        assert_eq!(group_number("44", GROUP), None);
    }

    #[test]
    fn unlisted_users_are_not_found() {
        for name in ["nobody", "", "4711", "-1", "broken line"] {
            assert_eq!(find(name, PASSWD, GROUP), None, "{name}");
        }
    }
}
