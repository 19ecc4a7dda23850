use std::{borrow::Cow, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// The name of a slot's layout in memory, such as `panels_f32<n16>`. Its meaning is defined by the backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FormatId(Cow<'static, str>);

impl FormatId {
    /// Row-major elements of the slot's dtype: what every backend has.
    pub const PLAIN: FormatId = FormatId(Cow::Borrowed("plain"));

    /// A format of this name.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        FormatId(name.into())
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Whether it is [`FormatId::PLAIN`].
    pub fn is_plain(&self) -> bool {
        *self == FormatId::PLAIN
    }
}

impl fmt::Display for FormatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for FormatId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for FormatId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Its name in engine files before formats had names.
        #[derive(Deserialize)]
        enum Before {
            Plain,
            PanelsF32 { nr: usize },
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Text {
            Before(Before),
            Name(String),
        }
        match Text::deserialize(deserializer)? {
            Text::Before(Before::Plain) => Ok(FormatId::PLAIN),
            Text::Before(Before::PanelsF32 { nr }) => Ok(FormatId::new(format!("panels_f32<n{nr}>"))),
            Text::Name(name) if name.len() > 64 => Err(D::Error::custom("a format's name has at most 64 bytes")),
            Text::Name(name) => Ok(FormatId::new(name)),
        }
    }
}

/// The layout of a slot in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotLayout {
    /// Logical shape of what is packed, after the preparing ops.
    pub shape: Vec<usize>,
    /// The format.
    pub format: FormatId,
    /// Bytes of the slot in its format.
    pub bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_before_are_read() {
        let read = |text: &str| serde_json::from_str::<FormatId>(text).map_err(|e| e.to_string());
        assert_eq!(read("\"Plain\""), Ok(FormatId::PLAIN));
        assert_eq!(read("{\"PanelsF32\": {\"nr\": 16}}"), read("\"panels_f32<n16>\""));
        assert!(read(&format!("\"{}\"", "x".repeat(65))).is_err());
    }
}
