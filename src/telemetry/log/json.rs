//! The JSON format: one object per line, with all fields at the top level.

use std::fmt;
use std::time::SystemTime;

use serde_json::{Map, Value};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::fields::Fields;

pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let fields = Fields::of(event, context.event_scope());
        let mut line: Map<String, Value> =
            fields.0.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let time = humantime::format_rfc3339_micros(SystemTime::now());
        line.insert("timestamp".to_owned(), time.to_string().into());
        line.insert("level".to_owned(), event.metadata().level().as_str().into());
        line.insert("target".to_owned(), event.metadata().target().into());
        writeln!(writer, "{}", Value::Object(line))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::{Registry, fmt as lines};

    use super::super::fields::SpanFieldsLayer;
    use super::super::{LogContext, enter_context};
    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_has_its_context_and_the_innermost_wins() {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let layer = lines::layer().with_writer(move || writer.clone()).event_format(Json);
        tracing::subscriber::with_default(
            Registry::default().with(SpanFieldsLayer).with(layer),
            || {
                let context =
                    LogContext { microvm: Some("m-1"), job: Some(7), ..LogContext::default() };
                let outer = enter_context(context);
                tracing::info!(exit = 3, "it \"ended\"");
                tracing::warn!(job = 8, why = %"no room", "other");
                drop(outer);
                tracing::info!("nothing");
            },
        );
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["message"], "it \"ended\"");
        assert_eq!((&lines[0]["microvm"], &lines[0]["job"]), (&"m-1".into(), &7.into()));
        assert_eq!((&lines[0]["exit"], &lines[0]["level"]), (&3.into(), &"INFO".into()));
        assert_eq!((&lines[1]["job"], &lines[1]["why"]), (&8.into(), &"no room".into()));
        assert_eq!(lines[1]["microvm"], "m-1");
        let keys: Vec<_> = lines[2].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["level", "message", "target", "timestamp"]);
    }
}
