"""Checks bills of materials with the validators of those who publish the formats.

Usage: sbom.py SPDX-FILE CYCLONEDX-FILE

Needs spdx-tools and cyclonedx-python-lib[json-validation]; the latter has the published schema
with it, and brings packageurl along. Prints what is wrong, and exits with 1 if anything is.
"""

import json
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from license_expression import get_spdx_licensing
from packageurl import PackageURL
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document


def of_spdx(path):
    """What is wrong with an SPDX file."""
    document = parse_file(path)
    for message in validate_full_spdx_document(document, "SPDX-2.3"):
        yield f"{message.validation_message} ({message.context.spdx_id})"
    for package in document.packages:
        yield from (m for r in package.external_references for m in of_purl(r.locator))


def of_cyclonedx(path):
    """What is wrong with a CycloneDX file."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    for error in JsonStrictValidator(SchemaVersion.V1_5).validate_str(text, all_errors=True) or []:
        yield str(error)
    for component in json.loads(text)["components"]:
        yield from of_purl(component.get("purl"))
        for license in component.get("licenses", []):
            yield from of_expression(license["expression"])


def of_purl(text):
    """What is wrong with a package URL: it must be in the one form that it has."""
    if text and PackageURL.from_string(text).to_string() != text:
        yield f"{text} should be {PackageURL.from_string(text)}"


def of_expression(text):
    """What is wrong with a license's expression, aside from names of the document's own."""
    licensing = get_spdx_licensing()
    unknown = licensing.unknown_license_keys(licensing.parse(text))
    yield from (f"no license of SPDX: {key}" for key in unknown if not key.startswith("LicenseRef-"))


wrong = [("SPDX", m) for m in of_spdx(sys.argv[1])]
wrong += [("CycloneDX", m) for m in of_cyclonedx(sys.argv[2])]
for where, message in wrong:
    print(f"{where}: {message}")
sys.exit(1 if wrong else 0)
