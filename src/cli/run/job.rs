//! Converts arguments into a job.

use mayfly_protocol::message::Job;

use super::arguments::RunArguments;
use super::terminal;
use crate::microvm::bytes;

/// Returns the job that the arguments describe.
pub(super) fn job(arguments: &RunArguments) -> Job {
    // A command with a terminal needs the terminal's type.
    let term = arguments.tty.then(|| std::env::var_os("TERM")).flatten();
    let term = term.map(|term| (bytes("TERM".as_ref()), bytes(&term)));
    let copy_in = arguments.microvm.copy_in.iter();
    Job {
        arguments: arguments.command.iter().map(|text| bytes(text)).collect(),
        environment: term.into_iter().chain(arguments.microvm.environment()).collect(),
        directory: arguments.workdir.as_deref().map(bytes),
        user: arguments.user.clone(),
        terminal: arguments.tty.then(terminal::size),
        stdin: arguments.interactive,
        copy_in: copy_in.map(|copy| copy.guest.clone().into()).collect(),
        copy_out: arguments.copy_out.iter().map(|copy| copy.guest.clone().into()).collect(),
        follow: None,
    }
}
