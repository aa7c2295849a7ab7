//! Journal entries in systemd's native protocol: one datagram of fields per line.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use serde_json::Value;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::fields::{Fields, MESSAGE};

/// The journal's socket.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
/// The maximum size of a value. Longer ones are truncated, so that an entry always fits into a
/// datagram.
const MAX_VALUE_LEN: usize = 16 << 10;

/// A layer that writes lines to the journal.
#[derive(Debug)]
pub struct Journal(UnixDatagram);

impl Journal {
    /// Connects to this host's journal.
    pub fn open() -> io::Result<Self> {
        Self::at(Path::new(SOCKET))
    }

    fn at(socket: &Path) -> io::Result<Self> {
        let datagrams = UnixDatagram::unbound()?;
        datagrams.connect(socket)?;
        Ok(Self(datagrams))
    }
}

impl<S: Subscriber + for<'lookup> LookupSpan<'lookup>> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let fields = Fields::of(event, context.event_scope(event));
        // A failure to write the log can't be reported anywhere else.
        let _ = self.0.send(&entry(event.metadata(), &fields));
    }
}

fn entry(metadata: &Metadata<'_>, fields: &Fields) -> Vec<u8> {
    let mut entry = Vec::new();
    put(&mut entry, "PRIORITY", priority(*metadata.level()));
    put(&mut entry, "SYSLOG_IDENTIFIER", "mayfly");
    put(&mut entry, "TARGET", metadata.target());
    for (name, value) in &fields.0 {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match *name {
            MESSAGE => put(&mut entry, "MESSAGE", &text),
            name => put(&mut entry, &format!("MAYFLY_{}", name.to_uppercase()), &text),
        }
    }
    entry
}

/// Adds a field: `NAME=value`, or with a length prefix if the value has several lines.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let end = (0..=MAX_VALUE_LEN.min(value.len())).rev().find(|end| value.is_char_boundary(*end));
    let value = value.get(..end.unwrap_or_default()).unwrap_or_default();
    let known = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    entry.extend(name.chars().map(known).map(|c| c as u8));
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

/// Returns the syslog priority.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt;

    use super::super::fields::SpanFieldsLayer;
    use super::super::{LogContext, enter_context};
    use super::*;

    #[test]
    fn an_entry_has_the_fields_of_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let journal = UnixDatagram::bind(&socket).unwrap();
        let layer = Journal::at(&socket).unwrap();
        tracing::subscriber::with_default(
            Registry::default().with(SpanFieldsLayer).with(layer),
            || {
                let context =
                    LogContext { microvm: Some("m-1"), job: Some(7), ..LogContext::default() };
                let _span = enter_context(context);
                tracing::warn!(exit_code = 3, "two\nlines");
                tracing::info!("{}", "ä".repeat(MAX_VALUE_LEN));
            },
        );
        let mut datagram = vec![0; 1 << 20];
        let length = journal.recv(&mut datagram).unwrap();
        let expected = [
            b"PRIORITY=4\nSYSLOG_IDENTIFIER=mayfly\nTARGET=".to_vec(),
            module_path!().as_bytes().to_vec(),
            b"\nMESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\n".to_vec(),
            b"MAYFLY_EXIT_CODE=3\nMAYFLY_JOB=7\nMAYFLY_MICROVM=m-1\n".to_vec(),
        ];
        let expected = expected.concat();
        let read = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(read(&datagram[..length]), read(&expected));
        let length = journal.recv(&mut datagram).unwrap();
        let text = std::str::from_utf8(&datagram[..length]).unwrap();
        let message = text.lines().find_map(|line| line.strip_prefix("MESSAGE=")).unwrap();
        assert_eq!(message.len(), MAX_VALUE_LEN, "truncated between two characters");
    }
}
