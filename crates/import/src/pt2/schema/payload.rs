//! The lists of stored weights and constants.

use std::{collections::HashSet, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};

use super::TensorMeta;

/// The configuration of the weights or constants of a model: tensors by name, in the order of the file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PayloadConfig {
    /// By fully qualified name.
    #[serde(deserialize_with = "ordered_map")]
    pub config: Vec<(String, PayloadMeta)>,
}

/// Where a weight or constant is stored.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PayloadMeta {
    /// Name of its entry in the folder of the configuration.
    pub path_name: String,
    /// Whether it is a parameter.
    #[serde(default)]
    pub is_param: bool,
    /// Whether the entry is a pickle.
    #[serde(default)]
    pub use_pickle: bool,
    /// How to view the entry, which is a whole storage; absent for objects.
    #[serde(default)]
    pub tensor_meta: Option<TensorMeta>,
}

/// A map with its order, which has every key once.
fn ordered_map<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<(String, T)>, D::Error> {
    struct Ordered<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Ordered<T> {
        type Value = Vec<(String, T)>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let (mut seen, mut list) = (HashSet::new(), Vec::new());
            while let Some(key) = map.next_key::<String>()? {
                if !seen.insert(key.clone()) {
                    return Err(A::Error::custom(format_args!("`{key}` is there twice")));
                }
                list.push((key, map.next_value()?));
            }
            Ok(list)
        }
    }
    deserializer.deserialize_map(Ordered(PhantomData))
}
