//! Numbers that JSON has no form for.
//!
//! JSON has no infinity and no NaN: serde_json writes `null` for both. Fields that hold a number at all times read that
//! back as NaN, "no finite number", with `#[serde(deserialize_with = "number")]`; a field that is an `Option` reads it as
//! `None`.

use serde::{Deserialize, Deserializer};

/// Reads a value whose numbers may be `null`.
pub(super) fn number<'de, D: Deserializer<'de>, T: Number>(json: D) -> Result<T, D::Error> {
    T::Json::deserialize(json).map(T::from_json)
}

/// Values made of numbers.
pub(super) trait Number: Sized {
    /// The value with an `Option` in place of each number.
    type Json: for<'de> Deserialize<'de>;
    /// The value with NaN in place of each `None`.
    fn from_json(json: Self::Json) -> Self;
}

impl Number for f32 {
    type Json = Option<f32>;
    fn from_json(json: Option<f32>) -> f32 {
        json.unwrap_or(f32::NAN)
    }
}

impl Number for f64 {
    type Json = Option<f64>;
    fn from_json(json: Option<f64>) -> f64 {
        json.unwrap_or(f64::NAN)
    }
}

impl<T: Number> Number for (T, T) {
    type Json = (T::Json, T::Json);
    fn from_json((a, b): Self::Json) -> (T, T) {
        (T::from_json(a), T::from_json(b))
    }
}

impl<T: Number> Number for Vec<T> {
    type Json = Vec<T::Json>;
    fn from_json(json: Self::Json) -> Vec<T> {
        json.into_iter().map(T::from_json).collect()
    }
}

impl<T: Number> Number for Option<T> {
    type Json = Option<T::Json>;
    fn from_json(json: Self::Json) -> Option<T> {
        json.map(T::from_json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Numbers {
        #[serde(deserialize_with = "number")]
        one: f64,
        #[serde(deserialize_with = "number")]
        range: (f32, f32),
        #[serde(deserialize_with = "number")]
        channels: Option<Vec<f32>>,
    }

    #[test]
    fn null_is_no_finite_number() {
        let read = |json: &str| serde_json::from_str::<Numbers>(json).unwrap();
        let numbers = read(r#"{"one": null, "range": [null, 2.5], "channels": [1, null]}"#);
        assert!(numbers.one.is_nan() && numbers.range.0.is_nan());
        assert_eq!(numbers.range.1, 2.5);
        let channels = numbers.channels.unwrap();
        assert!(channels[0] == 1.0 && channels[1].is_nan());
        let numbers = read(r#"{"one": 3, "range": [0, 1], "channels": null}"#);
        assert_eq!((numbers.one, numbers.channels), (3.0, None));
    }

    #[test]
    fn what_is_missing_has_its_default_and_what_is_wrong_is_an_error() {
        let numbers: Numbers = serde_json::from_str("{}").unwrap();
        assert_eq!((numbers.one, numbers.channels), (0.0, None));
        assert!(serde_json::from_str::<Numbers>(r#"{"one": "much"}"#).is_err());
    }
}
