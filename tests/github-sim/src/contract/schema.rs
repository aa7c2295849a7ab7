//! The part of JSON Schema (as in `OpenAPI` 3.0) that GitHub's description uses.

use serde_json::Value;

/// The schemas of a description.
pub(super) struct Schemas<'a> {
    description: &'a Value,
}

impl<'a> Schemas<'a> {
    pub(super) fn new(description: &'a Value) -> Self {
        Self { description }
    }

    /// Resolves a `$ref`; returns any other value unchanged.
    pub(super) fn resolve(&self, value: &'a Value) -> &'a Value {
        let mut value = value;
        // A reference may point to another, but never in a cycle without a schema in between.
        while let Some(reference) = value["$ref"].as_str() {
            let pointer = reference.strip_prefix('#').unwrap_or(reference);
            value = self.description.pointer(pointer).unwrap_or(&Value::Null);
        }
        value
    }

    /// Returns the errors of a value, each with its position.
    pub(super) fn check(&self, schema: &Value, value: &Value, at: &str) -> Vec<String> {
        // The borrow of `schema` may be shorter than the description's.
        let description = Schemas { description: self.description };
        let schema = match schema["$ref"].as_str() {
            Some(_) => Schemas::resolve_any(self.description, schema),
            None => schema,
        };
        description.check_resolved(schema, value, at)
    }

    fn resolve_any<'b>(description: &'b Value, value: &'b Value) -> &'b Value {
        Schemas { description }.resolve(value)
    }

    fn check_resolved(&self, schema: &Value, value: &Value, at: &str) -> Vec<String> {
        if value.is_null()
            && (schema["nullable"] == true
                || schema.as_object().is_none_or(serde_json::Map::is_empty))
        {
            return Vec::new();
        }
        let mut errors = Vec::new();
        let mut fail = |error: String| errors.push(format!("{at}: {error}"));
        if let Some(kind) = schema["type"].as_str()
            && !is_of_type(kind, value)
        {
            fail(format!("is not of type {kind}"));
            return errors;
        }
        if let Some(choices) = schema["enum"].as_array()
            && !choices.contains(value)
        {
            fail(format!("{value} is not one of the described values"));
        }
        if let (Some(format), Some(text)) = (schema["format"].as_str(), value.as_str())
            && !is_of_format(format, text)
        {
            fail(format!("{text:?} does not have the format {format}"));
        }
        let count = value.as_array().map(|items| items.len() as u64);
        if let Some(count) = count {
            let [min, max] = ["minItems", "maxItems"].map(|key| schema[key].as_u64());
            if min.is_some_and(|min| count < min) || max.is_some_and(|max| count > max) {
                fail(format!("has {count} items"));
            }
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if value.is_object() && value.get(name).is_none() {
                fail(format!("lacks {name}"));
            }
        }
        errors.extend(self.check_members(schema, value, at));
        errors.extend(self.check_choices(schema, value, at));
        errors
    }

    fn check_members(&self, schema: &Value, value: &Value, at: &str) -> Vec<String> {
        let mut errors = Vec::new();
        if let (Some(properties), Some(fields)) =
            (schema["properties"].as_object(), value.as_object())
        {
            for (name, field) in fields {
                let at = format!("{at}/{name}");
                match properties.get(name) {
                    Some(schema) => errors.extend(self.check(schema, field, &at)),
                    None if schema["additionalProperties"] == false => {
                        errors.push(format!("{at}: is not described"));
                    }
                    None => {}
                }
            }
        }
        if let (Some(items), Some(elements)) = (schema.get("items"), value.as_array()) {
            for (index, element) in elements.iter().enumerate() {
                errors.extend(self.check(items, element, &format!("{at}/{index}")));
            }
        }
        errors
    }

    fn check_choices(&self, schema: &Value, value: &Value, at: &str) -> Vec<String> {
        let list = |key: &str| schema[key].as_array().filter(|list| !list.is_empty());
        let mut errors: Vec<String> = list("allOf")
            .into_iter()
            .flatten()
            .flat_map(|choice| self.check(choice, value, at))
            .collect();
        if let Some(choices) = list("anyOf").or_else(|| list("oneOf"))
            && !choices.iter().any(|choice| self.check(choice, value, at).is_empty())
        {
            errors.push(format!("{at}: matches none of the described schemas"));
        }
        errors
    }
}

fn is_of_type(kind: &str, value: &Value) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => true,
    }
}

fn is_of_format(format: &str, text: &str) -> bool {
    match format {
        // 2026-01-31T12:00:00Z, with fractions or an offset.
        "date-time" => text.len() >= 20 && text.as_bytes().get(10) == Some(&b'T'),
        "uri" => text.contains("://") && !text.contains(char::is_whitespace),
        _ => true,
    }
}
