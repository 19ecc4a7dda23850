//! Enums that are read from a tagged value or from an integer.

/// Defines an enum that is read from `{"tag": value}`.
macro_rules! union {
    (
        $(#[$doc:meta])*
        $name:ident { $( $(#[$vdoc:meta])* $tag:literal => $variant:ident $( ( $ty:ty $(= $via:ty)? ) )? , )* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub enum $name {
            $( $(#[$vdoc])* $variant $( ( $ty ) )?, )*
            /// A tag that is not known here.
            Unknown(String),
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Tagged;
                impl<'de> serde::de::Visitor<'de> for Tagged {
                    type Value = $name;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str(concat!("{\"tag\": value} for the union ", stringify!($name)))
                    }
                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<$name, A::Error> {
                        let tag: String = map.next_key()?.ok_or_else(|| {
                            serde::de::Error::custom(concat!(
                                "expected one tag for the union ", stringify!($name), ", found none"
                            ))
                        })?;
                        let value = match tag.as_str() {
                            $( $tag => union!(@read map $name $variant $( $ty $(= $via)? )?), )*
                            _ => {
                                map.next_value::<serde::de::IgnoredAny>()?;
                                $name::Unknown(tag)
                            }
                        };
                        match map.next_key::<String>()? {
                            None => Ok(value),
                            Some(tag) => Err(serde::de::Error::custom(format_args!(
                                concat!("expected one tag for the union ", stringify!($name), ", found also `{}`"), tag
                            ))),
                        }
                    }
                }
                deserializer.deserialize_map(Tagged)
            }
        }
    };
    (@read $map:ident $name:ident $variant:ident) => {{ $map.next_value::<serde::de::IgnoredAny>()?; $name::$variant }};
    (@read $map:ident $name:ident $variant:ident $ty:ty) => { $name::$variant($map.next_value::<$ty>()?) };
    (@read $map:ident $name:ident $variant:ident $ty:ty = $via:ty) => { $name::$variant($map.next_value::<$via>()?.0) };
}

/// Defines an enum that is read from an integer.
macro_rules! int_enum {
    ($( $(#[$doc:meta])* $name:ident { $( $(#[$vdoc:meta])* $value:literal => $variant:ident, )* } )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            pub enum $name {
                $( $(#[$vdoc])* $variant, )*
                /// A number that is not known here.
                Unknown(i64),
            }

            impl<'de> serde::Deserialize<'de> for $name {
                fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    Ok(match <i64 as serde::Deserialize>::deserialize(deserializer)? {
                        $( $value => $name::$variant, )*
                        other => $name::Unknown(other),
                    })
                }
            }
        )*
    };
}

pub(super) use int_enum;
pub(super) use union;
