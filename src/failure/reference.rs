//! Generates the table of exit codes.

use std::fmt::Write as _;

use super::Code;
use mayfly_reference::assert_generated_parts;

/// Returns the name and the meaning of a code. Add a new code to [`all`], too.
fn describe(code: Code) -> (&'static str, &'static str) {
    match code {
        Code::Usage => ("usage", "the arguments are not valid, or too long for one message"),
        Code::BadData => {
            ("bad data", "input data is not valid, for example a modified image part or archive")
        }
        Code::NotFound => ("not found", "a named image, file, user or directory does not exist"),
        Code::Unavailable => (
            "unavailable",
            "the host lacks a program, a device, processors or memory; no daemon responds",
        ),
        Code::Internal => ("internal", "a bug in Mayfly"),
        Code::CannotWrite => (
            "can't write",
            "no space or no permission: state directory, overlay, copied files, stdout",
        ),
        Code::Forbidden => (
            "forbidden",
            "the host denies access to a device or to user namespaces, or the image has no \
             signature of a trusted key",
        ),
        Code::BadConfiguration => ("bad configuration", "a recipe or the settings are not valid"),
        Code::TimedOut => ("timed out", "the command exceeded its deadline"),
        Code::MachineFailed => ("machine failed", "the microVM failed before the command ended"),
        Code::CommandNotExecutable => {
            ("not executable", "the command exists but can't be executed")
        }
        Code::CommandNotFound => ("command not found", "the command does not exist in the image"),
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
    table.push_str("| 0 | | the command succeeded |\n");
    for code in all() {
        let (name, meaning) = describe(code);
        // Writing to a string can't fail.
        let _ = writeln!(table, "| {} | {name} | {meaning} |", code as u8);
    }
    assert_generated_parts("reference/exit-codes.md", &[("codes", table)]);
}
