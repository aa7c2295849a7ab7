//! The table of exit codes, made from the codes.

use std::fmt::Write as _;

use super::Code;
use crate::reference::assert_made_in_parts;

/// The name of a code, and what it means to a script. A new one goes to [`all`], too.
fn told(code: Code) -> (&'static str, &'static str) {
    match code {
        Code::Usage => ("usage", "the arguments make no sense, or are too long for one message"),
        Code::BadData => (
            "bad data",
            "something read is not what it should be: an image part or archive was changed",
        ),
        Code::NotFound => {
            ("not found", "an image, file, user or directory that was named is not there")
        }
        Code::Unavailable => (
            "unavailable",
            "the host lacks a program, a device, processors or memory; no daemon answers",
        ),
        Code::Internal => ("internal", "a mistake in Mayfly"),
        Code::CannotWrite => (
            "cannot write",
            "no room or no permission: state directory, overlay, copied files, stdout",
        ),
        Code::Forbidden => (
            "forbidden",
            "the host forbids a device or user namespaces, or an image that nobody whom it \
             trusts has signed",
        ),
        Code::BadConfiguration => ("bad configuration", "a recipe or the settings are wrong"),
        Code::TimedOut => ("timed out", "the command did not end within its deadline"),
        Code::MachineFailed => {
            ("machine failed", "the microVM failed before the command could end")
        }
        Code::CommandNotExecutable => {
            ("not executable", "the command is there but can't be executed")
        }
        Code::CommandNotFound => ("command not found", "there is no such command in the image"),
        Code::Interrupted => ("interrupted", "the microVM was ended on request"),
    }
}

fn all() -> [Code; 13] {
    use Code::{
        BadConfiguration, BadData, CannotWrite, CommandNotExecutable, CommandNotFound, Forbidden,
        Internal, Interrupted, MachineFailed, NotFound, TimedOut, Unavailable, Usage,
    };
    [
        Usage,
        BadData,
        NotFound,
        Unavailable,
        Internal,
        CannotWrite,
        Forbidden,
        BadConfiguration,
        TimedOut,
        MachineFailed,
        CommandNotExecutable,
        CommandNotFound,
        Interrupted,
    ]
}

#[test]
fn the_page_has_every_code() {
    let mut table = "| code | name | meaning |\n|---|---|---|\n".to_owned();
    table.push_str("| 0 | | the command, or the verb, did what it was asked |\n");
    for code in all() {
        let (name, meaning) = told(code);
        // Writing to a string can't fail.
        let _ = writeln!(table, "| {} | {name} | {meaning} |", code as u8);
    }
    assert_made_in_parts("reference/exit-codes.md", &[("codes", table)]);
}
