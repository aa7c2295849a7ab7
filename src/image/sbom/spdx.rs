//! SPDX 2.3, the JSON form of <https://spdx.github.io/spdx-spec/v2.3/>.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Bill, Component, IMAGE, Kind, licence};

const NOTHING_SAID: &str = "NOASSERTION";

pub(super) fn write(bill: &Bill) -> serde_json::Result<Vec<u8>> {
    let identifiers: Vec<String> =
        bill.identifiers().into_iter().map(|text| format!("SPDXRef-{text}")).collect();
    let components = bill.components.iter().zip(&identifiers);
    let mut document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": bill.name,
        "documentNamespace":
            format!("https://spdx.org/spdxdocs/mayfly-{}-{}", bill.name, bill.uuid()?),
        "creationInfo": {
            "created": bill.created,
            "creators": [format!("Tool: mayfly-{}", env!("CARGO_PKG_VERSION"))],
        },
        "packages": components.map(|(component, id)| package(component, id)).collect::<Vec<_>>(),
        "relationships": relationships(bill, &identifiers),
    });
    let extracted = extracted(bill);
    if !extracted.is_empty() {
        document["hasExtractedLicensingInfos"] = extracted.into();
    }
    let mut bytes = serde_json::to_vec_pretty(&document)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn package(component: &Component, identifier: &str) -> Value {
    let mut package = json!({
        "SPDXID": identifier,
        "name": component.name,
        "downloadLocation": component.location.as_deref().unwrap_or(NOTHING_SAID),
        "filesAnalyzed": false,
        "supplier": supplier(component),
        "licenseConcluded": NOTHING_SAID,
        "licenseDeclared": component.licence.as_deref().unwrap_or(NOTHING_SAID),
        "copyrightText": NOTHING_SAID,
        "primaryPackagePurpose": purpose(component.kind),
    });
    let mut add = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            package[key] = value;
        }
    };
    add("versionInfo", component.version.clone().map(Value::from));
    add("homepage", component.homepage.clone().map(Value::from));
    add("sourceInfo", component.source.clone().map(Value::from));
    let checksum = |digest| json!([{ "algorithm": "SHA256", "checksumValue": digest }]);
    add("checksums", component.sha256.as_ref().map(checksum));
    let reference = |purl| {
        json!([{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": purl,
        }])
    };
    add("externalRefs", component.purl.as_ref().map(reference));
    package
}

fn supplier(component: &Component) -> String {
    match &component.supplier {
        Some((name, Some(address))) => format!("Organization: {name} ({address})"),
        Some((name, None)) => format!("Organization: {name}"),
        None => NOTHING_SAID.to_owned(),
    }
}

fn purpose(kind: Kind) -> &'static str {
    match kind {
        Kind::Image | Kind::System => "OPERATING-SYSTEM",
        Kind::Part => "FILE",
        Kind::Program => "APPLICATION",
        Kind::Library => "LIBRARY",
    }
}

fn relationships(bill: &Bill, identifiers: &[String]) -> Vec<Value> {
    let relation = |from: &str, kind: &str, to: &str| json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to });
    let mut relations = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", &identifiers[IMAGE])];
    for (component, identifier) in bill.components.iter().zip(identifiers) {
        let within = component.within.and_then(|within| identifiers.get(within));
        relations.extend(within.map(|within| relation(within, "CONTAINS", identifier)));
    }
    relations
}

/// The licences that SPDX's list does not have. Their texts are in the image.
fn extracted(bill: &Bill) -> Vec<Value> {
    let licences = bill.components.iter().filter_map(|component| component.licence.as_deref());
    let references: BTreeSet<&str> = licences.flat_map(licence::references).collect();
    let entry = |reference: &&str| {
        json!({
            "licenseId": reference,
            "extractedText":
                "See /usr/share/doc/PACKAGE/copyright in the image, of each package that has it.",
        })
    };
    references.iter().map(entry).collect()
}
