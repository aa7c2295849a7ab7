//! The fields of a line: its own, and those of the enclosing spans.

use std::fmt;

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, Scope};

/// The field with the line's text.
pub(super) const MESSAGE: &str = "message";

/// Names and values, with unique names.
#[derive(Debug, Default, Clone)]
pub(super) struct Fields(pub(super) Vec<(&'static str, Value)>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.retain(|(name, _)| *name != field.name());
        self.0.push((field.name(), value));
    }

    /// Returns a line's own fields, then those of the enclosing spans; of two with the same name,
    /// the inner one.
    pub(super) fn of<'a, S>(event: &Event<'_>, spans: Option<Scope<'a, S>>) -> Self
    where
        S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    {
        let mut fields = Self::default();
        event.record(&mut fields);
        for span in spans.into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Self>() {
                for (name, value) in &outer.0 {
                    if fields.0.iter().all(|(known, _)| known != name) {
                        fields.0.push((name, value.clone()));
                    }
                }
            }
        }
        fields
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

/// A layer that stores the fields of spans for the lines within them.
pub(super) struct SpanFieldsLayer;

impl<S: Subscriber + for<'lookup> LookupSpan<'lookup>> Layer<S> for SpanFieldsLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }
}
