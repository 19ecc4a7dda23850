//! Floats and bounds, of which some are spelled as text.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

/// A float, or the text that stands for one that JSON has not.
pub(super) struct Real(pub(super) f64);

/// A list of [`Real`].
pub(super) struct Reals(pub(super) Vec<f64>);

impl<'de> Deserialize<'de> for Real {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Real;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a float, \"Infinity\", \"-Infinity\" or \"NaN\"")
            }
            fn visit_f64<E: Error>(self, v: f64) -> Result<Real, E> {
                Ok(Real(v))
            }
            fn visit_i64<E: Error>(self, v: i64) -> Result<Real, E> {
                Ok(Real(v as f64))
            }
            fn visit_u64<E: Error>(self, v: u64) -> Result<Real, E> {
                Ok(Real(v as f64))
            }
            fn visit_str<E: Error>(self, v: &str) -> Result<Real, E> {
                match v {
                    "Infinity" => Ok(Real(f64::INFINITY)),
                    "-Infinity" => Ok(Real(f64::NEG_INFINITY)),
                    "NaN" => Ok(Real(f64::NAN)),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(v), &self)),
                }
            }
        }
        deserializer.deserialize_any(Number)
    }
}

impl<'de> Deserialize<'de> for Reals {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Reals(Vec::<Real>::deserialize(deserializer)?.into_iter().map(|r| r.0).collect()))
    }
}

/// A bound of a range: absent, infinite, or an integer of any length, which saturates.
pub(super) fn bound<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Bound {
        Int(i64),
        Real(Real),
    }
    Ok(Option::<Bound>::deserialize(deserializer)?.and_then(|bound| match bound {
        Bound::Int(v) => Some(v),
        // A cast from float saturates.
        Bound::Real(Real(v)) => v.is_finite().then_some(v as i64),
    }))
}
