//! Bodies and queries, taken apart field by field: what is wrong is said of all at once, in the words that
//! pydantic has for it.

use super::refusal::Refusal;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// The fields of a JSON object that were not taken yet.
pub(super) struct Fields<'a> {
    left: BTreeMap<String, &'a RawValue>,
    problems: Vec<Value>,
}

/// What letters a text may have, and how pydantic would write that.
pub(super) struct Letters {
    pub(super) allowed: fn(char) -> bool,
    pub(super) pattern: &'static str,
}

impl<'a> Fields<'a> {
    /// Those of a body.
    pub(super) fn of(body: &'a [u8]) -> Result<Self, Refusal> {
        if body.is_empty() {
            let missing =
                json!({"type": "missing", "loc": ["body"], "msg": "Field required", "input": null});
            return Err(Refusal::fields(vec![missing]));
        }
        let whole = serde_json::from_slice::<&RawValue>(body).map_err(|error| not_json(&error))?;
        if !whole.get().starts_with('{') {
            let no_object = json!({
                "type": "model_attributes_type", "loc": ["body"], "input": value(whole),
                "msg": "Input should be a valid dictionary or object to extract fields from",
            });
            return Err(Refusal::fields(vec![no_object]));
        }
        let left = serde_json::from_str(whole.get()).map_err(|error| not_json(&error))?;
        Ok(Self {
            left,
            problems: Vec::new(),
        })
    }

    /// A field that is there and is not null.
    fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        self.left.remove(name).filter(|raw| raw.get() != "null")
    }

    fn wrong(&mut self, kind: &str, name: &str, message: &str, input: &RawValue) {
        self.problems.push(json!({
            "type": kind, "loc": ["body", name], "msg": message, "input": value(input),
        }));
    }

    /// As `wrong`, with the bound that does not hold.
    fn beyond(&mut self, (kind, bound): (&str, &str), most: u64, name: &str, input: &RawValue) {
        let plural = if most == 1 { "" } else { "s" };
        let message = match bound {
            "min_length" => format!("String should have at least {most} character{plural}"),
            "max_length" => format!("String should have at most {most} characters"),
            "ge" => format!("Input should be greater than or equal to {most}"),
            _ => format!("Input should be less than or equal to {most}"),
        };
        self.problems.push(json!({
            "type": kind, "loc": ["body", name], "msg": message, "input": value(input),
            "ctx": { bound: most },
        }));
    }

    /// A text of so many characters.
    pub(super) fn text(
        &mut self,
        name: &str,
        length: RangeInclusive<usize>,
        letters: Option<&Letters>,
    ) -> Option<String> {
        let raw = self.take(name)?;
        let Ok(text) = serde_json::from_str::<String>(raw.get()) else {
            self.wrong("string_type", name, "Input should be a valid string", raw);
            return None;
        };
        let count = text.chars().count();
        if count < *length.start() {
            let least = *length.start() as u64;
            self.beyond(("string_too_short", "min_length"), least, name, raw);
        } else if count > *length.end() {
            let most = *length.end() as u64;
            self.beyond(("string_too_long", "max_length"), most, name, raw);
        } else if let Some(letters) = letters.filter(|letters| !text.chars().all(letters.allowed)) {
            let message = format!("String should match pattern '{}'", letters.pattern);
            self.wrong("string_pattern_mismatch", name, &message, raw);
        } else {
            return Some(text);
        }
        None
    }

    /// A text that must be there, and not be blank.
    pub(super) fn required_text(&mut self, name: &str, most: usize) -> Option<String> {
        match self.left.get(name) {
            None => {
                let problem = json!({
                    "type": "missing", "loc": ["body", name], "msg": "Field required", "input": null,
                });
                self.problems.push(problem);
                return None;
            }
            Some(&null) if null.get() == "null" => {
                self.left.remove(name);
                self.wrong("string_type", name, "Input should be a valid string", null);
                return None;
            }
            Some(_) => {}
        }
        let raw = self.left.get(name).copied();
        let text = self.text(name, 1..=most, None)?;
        if text.trim().is_empty() {
            if let Some(raw) = raw {
                let message = format!("Value error, {name} must not be blank");
                self.wrong("value_error", name, &message, raw);
            }
            return None;
        }
        Some(text)
    }

    /// A whole number; a text or a fraction that is one is one.
    pub(super) fn integer(&mut self, name: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let raw = self.take(name)?;
        let number = match value(raw) {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse::<i64>().ok().map(|number| {
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "what is so large is out of range"
                )]
                let number = number as f64;
                number
            }),
            _ => None,
        };
        let Some(number) = number.filter(|number| number.fract() == 0.0) else {
            let (kind, message) = match value(raw) {
                Value::String(_) => (
                    "int_parsing",
                    "Input should be a valid integer, unable to parse string as an integer",
                ),
                Value::Number(_) => (
                    "int_from_float",
                    "Input should be a valid integer, got a number with a fractional part",
                ),
                _ => ("int_type", "Input should be a valid integer"),
            };
            self.wrong(kind, name, message, raw);
            return None;
        };
        let (least, most) = range.into_inner();
        #[expect(clippy::cast_precision_loss, reason = "bounds are small")]
        let (low, high) = (least as f64, most as f64);
        if number < low {
            self.beyond(("greater_than_equal", "ge"), least, name, raw);
        } else if number > high {
            self.beyond(("less_than_equal", "le"), most, name, raw);
        } else {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "whole, and within the bounds"
            )]
            return Some(number as u64);
        }
        None
    }

    /// An object, as it is written.
    pub(super) fn object(&mut self, name: &str) -> Option<&'a RawValue> {
        // Here null is no way to leave it out.
        let raw = self.left.remove(name)?;
        if raw.get().starts_with('{') {
            return Some(raw);
        }
        self.wrong("dict_type", name, "Input should be a valid dictionary", raw);
        None
    }

    /// A list of at most so many texts.
    pub(super) fn texts(&mut self, name: &str, most: usize) -> Option<Vec<String>> {
        let raw = self.take(name)?;
        let Ok(texts) =
            Vec::<String>::deserialize(&mut serde_json::Deserializer::from_str(raw.get()))
        else {
            self.wrong(
                "list_type",
                name,
                "Input should be a valid list of strings",
                raw,
            );
            return None;
        };
        if texts.len() > most {
            let count = texts.len();
            let message =
                format!("List should have at most {most} items after validation, not {count}");
            self.wrong("too_long", name, &message, raw);
            return None;
        }
        Some(texts)
    }

    /// All that was to be taken is taken: what is left is too much.
    pub(super) fn done(mut self) -> Result<(), Refusal> {
        for (name, raw) in std::mem::take(&mut self.left) {
            let message = "Extra inputs are not permitted";
            self.wrong("extra_forbidden", &name, message, raw);
        }
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(Refusal::fields(self.problems))
        }
    }
}

/// What is not a value that can be held, such as a lone surrogate, is shown as text.
fn value(raw: &RawValue) -> Value {
    serde_json::from_str(raw.get()).unwrap_or_else(|_| raw.get().into())
}

fn not_json(error: &serde_json::Error) -> Refusal {
    Refusal::fields(vec![json!({
        "type": "json_invalid", "loc": ["body", error.column()], "msg": "JSON decode error",
        "input": {}, "ctx": {"error": error.to_string()},
    })])
}

/// A field of a query that is wrong.
pub(super) fn wrong_query(kind: &str, name: &str, message: &str, input: &str) -> Value {
    json!({"type": kind, "loc": ["query", name], "msg": message, "input": input})
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::to_bytes;

    fn refused(body: &str, take: impl Fn(&mut Fields<'_>)) -> Value {
        let done = Fields::of(body.as_bytes()).and_then(|mut fields| {
            take(&mut fields);
            fields.done()
        });
        let response = done.unwrap_err().write_out("id");
        assert_eq!(response.status(), 422);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let body = runtime
            .block_on(to_bytes(response.into_body(), 1 << 20))
            .unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    fn kinds(body: &str) -> Vec<(String, String)> {
        let take = |fields: &mut Fields<'_>| {
            fields.required_text("code", 5);
            fields.object("input_data");
            fields.integer("timeout", 1..=10);
            let letters = Letters {
                allowed: |letter| letter.is_ascii_alphanumeric(),
                pattern: "^[A-Za-z0-9]+$",
            };
            fields.text("key", 2..=4, Some(&letters));
            fields.texts("list", 2);
        };
        let answer = refused(body, take);
        let problems = answer["detail"].as_array().unwrap();
        let kind = |problem: &Value| {
            let loc = problem["loc"].as_array().unwrap();
            assert_eq!(loc[0], "body");
            let name = loc.get(1).map(ToString::to_string).unwrap_or_default();
            (problem["type"].as_str().unwrap().to_owned(), name)
        };
        problems.iter().map(kind).collect()
    }

    #[test]
    fn every_field_that_is_wrong_is_named_with_its_kind() {
        for (body, expected) in [
            ("", "missing"),
            ("{", "json_invalid"),
            ("[1]", "model_attributes_type"),
            ("{}", "missing"),
            (r#"{"code": null}"#, "string_type"),
            (r#"{"code": 3}"#, "string_type"),
            (r#"{"code": ""}"#, "string_too_short"),
            (r#"{"code": "123456"}"#, "string_too_long"),
            (r#"{"code": " \n"}"#, "value_error"),
            (r#"{"code": "\ud800"}"#, "string_type"),
            (r#"{"code": "a", "input_data": []}"#, "dict_type"),
            (r#"{"code": "a", "input_data": null}"#, "dict_type"),
            (r#"{"code": "a", "timeout": 0}"#, "greater_than_equal"),
            (r#"{"code": "a", "timeout": 11}"#, "less_than_equal"),
            (r#"{"code": "a", "timeout": 1e300}"#, "less_than_equal"),
            (r#"{"code": "a", "timeout": 1.5}"#, "int_from_float"),
            (r#"{"code": "a", "timeout": "x"}"#, "int_parsing"),
            (r#"{"code": "a", "timeout": true}"#, "int_type"),
            (r#"{"code": "a", "key": "a_b"}"#, "string_pattern_mismatch"),
            (r#"{"code": "a", "list": [1]}"#, "list_type"),
            (r#"{"code": "a", "list": ["a", "b", "c"]}"#, "too_long"),
            (r#"{"code": "a", "other": 1}"#, "extra_forbidden"),
        ] {
            let found = kinds(body);
            assert_eq!(found.len(), 1, "{body}: {found:?}");
            assert_eq!(found[0].0, expected, "{body}");
        }
        assert_eq!(kinds(r#"{"timeout": 0, "other": 1}"#).len(), 3);
    }

    #[test]
    fn what_is_right_is_taken_as_it_is_written() {
        let body = br#"{"a": {"big": 12345678901234567890123}, "n": "7", "m": 7.0, "t": null}"#;
        let mut fields = Fields::of(body).unwrap();
        let object = fields.object("a").unwrap();
        assert_eq!(object.get(), r#"{"big": 12345678901234567890123}"#);
        assert_eq!(fields.integer("n", 1..=9), Some(7));
        assert_eq!(fields.integer("m", 1..=9), Some(7));
        assert_eq!(fields.text("t", 1..=9, None), None);
        fields.done().unwrap();
    }
}
