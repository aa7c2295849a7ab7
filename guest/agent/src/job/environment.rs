//! The job's environment variables, and the lookup of its program.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

use mayfly_protocol::message::{Bytes, NO_PROXY, StartFailure};

use super::user::User;

/// The default search path of programs.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The most names of the hosts file that are added to `no_proxy`.
const MAX_HOSTS: usize = 64;

/// Returns the variables of a login and those of the job. Later variables replace earlier ones.
pub(crate) fn variables(
    user: &User,
    terminal: bool,
    extra: &[(Bytes, Bytes)],
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let login: [(&[u8], &[u8]); 6] = [
        (b"HOME", user.home.as_os_str().as_bytes()),
        (b"USER", &user.name),
        (b"LOGNAME", &user.name),
        (b"SHELL", &user.shell),
        (b"PATH", DEFAULT_PATH),
        (b"LANG", b"C.UTF-8"),
    ];
    let terminal: Option<(&[u8], &[u8])> = terminal.then_some((b"TERM", b"xterm"));
    let extra = extra.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
    let mut variables: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (name, value) in login.into_iter().chain(terminal).chain(extra) {
        match variables.iter_mut().find(|known| known.0 == name) {
            Some(known) => known.1 = value.to_vec(),
            None => variables.push((name.to_vec(), value.to_vec())),
        }
    }
    if let Ok(hosts) = std::fs::read("/etc/hosts") {
        extend_no_proxy(&mut variables, &hosts);
    }
    variables
}

/// Adds the names of this machine's hosts file to `no_proxy`, unless the job has set it itself.
fn extend_no_proxy(variables: &mut [(Vec<u8>, Vec<u8>)], hosts: &[u8]) {
    let mut names: Vec<&[u8]> = Vec::new();
    for line in hosts.split(|byte| *byte == b'\n') {
        let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        // The first word is the address.
        for name in words.take_while(|word| !word.starts_with(b"#")).skip(1) {
            let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
            if names.len() < MAX_HOSTS && name.iter().all(plain) && !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let own = |(name, _): &&mut (Vec<u8>, Vec<u8>)| name.eq_ignore_ascii_case(b"no_proxy");
    for (_, value) in variables.iter_mut().filter(own) {
        if !value.starts_with(NO_PROXY.as_bytes()) {
            continue;
        }
        for name in &names {
            if !value.split(|byte| *byte == b',').any(|known| known == *name) {
                value.push(b',');
                value.extend_from_slice(name);
            }
        }
    }
}

/// Formats the variables for `execve`.
pub(crate) fn assignments(variables: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<CString>, StartFailure> {
    let assign = |(name, value): &(Vec<u8>, Vec<u8>)| {
        if name.is_empty() || name.contains(&b'=') {
            let name = String::from_utf8_lossy(name);
            return Err(StartFailure::Other(format!("invalid variable name {name:?}")));
        }
        let assignment = [name.as_slice(), b"=", value].concat();
        c_string(assignment, "a variable")
    };
    variables.iter().map(assign).collect()
}

/// Returns the paths to try for a program, in order: the name itself if it contains a slash, else
/// one path per directory of `PATH`. An empty directory is the current one.
pub(crate) fn candidates(
    program: &[u8],
    variables: &[(Vec<u8>, Vec<u8>)],
) -> Result<Vec<CString>, StartFailure> {
    if program.is_empty() {
        return Err(StartFailure::CommandNotFound);
    }
    if program.contains(&b'/') {
        return Ok(vec![c_string(program.to_vec(), "the program's name")?]);
    }
    let path = variables.iter().find(|(name, _)| name == b"PATH");
    let path = path.map_or(DEFAULT_PATH, |(_, value)| value);
    let in_directory = |directory: &[u8]| {
        let separator: &[u8] = if directory.is_empty() { b"./" } else { b"/" };
        c_string([directory, separator, program].concat(), "the program's name")
    };
    path.split(|byte| *byte == b':').map(in_directory).collect()
}

/// Converts bytes to a C string. Fails if they contain a NUL byte.
pub(crate) fn c_string(bytes: Vec<u8>, what: &str) -> Result<CString, StartFailure> {
    CString::new(bytes).map_err(|_| StartFailure::Other(format!("{what} contains a NUL byte")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User {
            name: b"runner".to_vec(),
            uid: 1001,
            gid: 1001,
            groups: vec![1001],
            home: "/home/runner".into(),
            shell: b"/bin/bash".to_vec(),
        }
    }

    fn pair(name: &str, value: &str) -> (Bytes, Bytes) {
        (name.as_bytes().to_vec().into(), value.as_bytes().to_vec().into())
    }

    #[test]
    fn later_variables_win() {
        let variables = variables(&user(), true, &[pair("HOME", "/a"), pair("HOME", "/b")]);
        let assignments = assignments(&variables).unwrap();
        assert!(assignments.contains(&c"HOME=/b".to_owned()));
        assert!(assignments.contains(&c"TERM=xterm".to_owned()));
        assert_eq!(assignments.len(), 7);
    }

    #[test]
    fn names_of_the_hosts_file_are_added_unless_the_job_sets_no_proxy() {
        let hosts = b"127.0.0.1 localhost\n127.0.1.1\tvm.example vm # own\n# 1.2.3.4 no\n\
            10.0.0.1 db a,b\n\n::1";
        for (value, expected) in [
            (NO_PROXY.to_owned(), format!("{NO_PROXY},vm.example,vm,db")),
            (format!("{NO_PROXY},vm"), format!("{NO_PROXY},vm,vm.example,db")),
            ("a.example".to_owned(), "a.example".to_owned()),
            (String::new(), String::new()),
        ] {
            for name in ["no_proxy", "NO_PROXY"] {
                let mut variables = vec![(name.into(), value.clone().into_bytes())];
                extend_no_proxy(&mut variables, hosts);
                assert_eq!(String::from_utf8_lossy(&variables[0].1), expected);
            }
        }
    }

    #[test]
    fn invalid_variable_names_are_rejected() {
        for name in ["", "A=B", "A\0"] {
            let variables = variables(&user(), false, &[pair(name, "")]);
            assert!(matches!(assignments(&variables), Err(StartFailure::Other(_))), "{name:?}");
        }
    }

    #[test]
    fn a_program_is_tried_in_each_directory_of_the_jobs_path() {
        let variables = variables(&user(), false, &[pair("PATH", "/x::/y/")]);
        let found = candidates(b"ls", &variables).unwrap();
        assert_eq!(found, [c"/x/ls".to_owned(), c"./ls".to_owned(), c"/y//ls".to_owned()]);
        assert_eq!(candidates(b"./ls", &variables).unwrap(), [c"./ls".to_owned()]);
        assert_eq!(candidates(b"", &variables), Err(StartFailure::CommandNotFound));
    }
}
