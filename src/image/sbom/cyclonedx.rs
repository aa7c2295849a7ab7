//! `CycloneDX` 1.5, the JSON form of <https://cyclonedx.org/docs/1.5/json/>.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Bill, Component, IMAGE, Kind};

pub(super) fn write(bill: &Bill) -> serde_json::Result<Vec<u8>> {
    let identifiers = bill.identifiers();
    let mut components: Vec<Value> = bill
        .components
        .iter()
        .zip(&identifiers)
        .map(|(component, identifier)| described(component, identifier))
        .collect();
    let image = components.remove(IMAGE);
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": format!("urn:uuid:{}", bill.uuid()?),
        "version": 1,
        "metadata": {
            "timestamp": bill.created,
            "tools": { "components": [{
                "type": "application",
                "name": "mayfly",
                "version": env!("CARGO_PKG_VERSION"),
            }]},
            "component": image,
        },
        "components": components,
        "dependencies": dependencies(bill, &identifiers),
    });
    let mut bytes = serde_json::to_vec_pretty(&document)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn described(component: &Component, identifier: &str) -> Value {
    let mut described = json!({
        "type": kind(component.kind),
        "bom-ref": identifier,
        "name": component.name,
    });
    let mut add = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            described[key] = value;
        }
    };
    add("version", component.version.clone().map(Value::from));
    add("purl", component.purl.clone().map(Value::from));
    add(
        "supplier",
        component.supplier.as_ref().map(|(name, address)| match address {
            Some(address) => json!({ "name": name, "contact": [{ "email": address }] }),
            None => json!({ "name": name }),
        }),
    );
    let licence = |licence| json!([{ "expression": licence }]);
    add("licenses", component.licence.as_ref().map(licence));
    let digest = |digest| json!([{ "alg": "SHA-256", "content": digest }]);
    add("hashes", component.sha256.as_ref().map(digest));
    let source = |source| json!([{ "name": "mayfly:source", "value": source }]);
    add("properties", component.source.as_ref().map(source));
    let addresses = [("website", &component.homepage), ("distribution", &component.location)];
    let references: Vec<Value> = addresses
        .into_iter()
        .filter_map(|(kind, url)| Some(json!({ "type": kind, "url": url.as_ref()? })))
        .collect();
    add("externalReferences", (!references.is_empty()).then(|| references.into()));
    described
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Image | Kind::System => "operating-system",
        Kind::Part => "file",
        Kind::Program => "application",
        Kind::Library => "library",
    }
}

/// What each component that has others in it consists of.
fn dependencies(bill: &Bill, identifiers: &[String]) -> Vec<Value> {
    let mut within: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for (component, identifier) in bill.components.iter().zip(identifiers) {
        if let Some(place) = component.within {
            within.entry(place).or_default().push(identifier);
        }
    }
    within
        .into_iter()
        .map(|(place, parts)| json!({ "ref": identifiers[place], "dependsOn": parts }))
        .collect()
}
