//! The check of `[telemetry]`.

use super::draft::TelemetryDraft;
use super::environment::Environment;
use super::error::{ConfigError, Problem};
use super::sources::Sources;
use super::types::{Otlp, Secret, Telemetry};
use crate::telemetry::otlp::{Collector, NoCollector};

/// The variables that all of OpenTelemetry knows.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";

pub(super) fn telemetry(
    draft: &TelemetryDraft,
    sources: &Sources,
    environment: &Environment,
) -> Result<Telemetry, ConfigError> {
    const KEY: &str = "telemetry.otlp_endpoint";
    let (endpoint, origin) = match (&draft.otlp_endpoint, environment.variable(ENDPOINT)) {
        (Some(endpoint), _) => (endpoint.as_str(), sources.origin(KEY)),
        (None, Some(endpoint)) => (endpoint, ENDPOINT.to_owned()),
        (None, None) => return Ok(Telemetry { otlp: None }),
    };
    let headers = environment
        .variable(HEADERS)
        .map(|text| Secret { value: text.into(), source: HEADERS.to_owned() });
    let refused = |error| match error {
        NoCollector::Address => ConfigError::Value {
            origin,
            key: KEY.to_owned(),
            value: endpoint.to_owned(),
            problem: Problem::Collector(error),
        },
        // They are credentials: not repeated.
        NoCollector::Headers => ConfigError::Value {
            origin: HEADERS.to_owned(),
            key: KEY.to_owned(),
            value: "…".to_owned(),
            problem: Problem::Collector(error),
        },
    };
    let collector = Collector::new(endpoint, headers.as_ref().map(|headers| &headers.value));
    let collector = collector.map_err(refused)?;
    Ok(Telemetry { otlp: Some(Otlp { endpoint: endpoint.to_owned(), headers, collector }) })
}
