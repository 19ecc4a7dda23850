//! Attributes of ops: plain structs whose fields can be printed, parsed and bound to sizes.

use std::fmt;

use regraft_tensor::{DType, Dim, TensorError};

use crate::Scalar;

/// An attribute's value as it stands in text.
#[derive(Clone, Debug, PartialEq)]
pub enum AttrValue {
    /// A dimension expression; integers are constant ones.
    Dim(Dim),
    /// A number with a fraction or exponent.
    Float(f64),
    /// A bare word: `relu`, `true`, `f32`, `none`.
    Word(String),
    /// A quoted string.
    Str(String),
    /// `[a, b]`.
    List(Vec<AttrValue>),
}

impl fmt::Display for AttrValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttrValue::Dim(d) => write!(f, "{d}"),
            AttrValue::Float(v) => write!(f, "{v:?}"),
            AttrValue::Word(w) => f.write_str(w),
            AttrValue::Str(s) => write!(f, "{s:?}"),
            AttrValue::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        f.write_str(", ")?;
                    }
                    write!(f, "{item}")?;
                }
                f.write_str("]")
            }
        }
    }
}

/// A type that a field of an attribute struct may have.
pub trait Attr: Sized {
    /// Its text form.
    fn to_value(&self) -> AttrValue;
    /// The inverse of [`Attr::to_value`]; `None` when the value is of another kind.
    fn from_value(value: &AttrValue) -> Option<Self>;
    /// The same with every symbol replaced by its value.
    ///
    /// # Errors
    /// When a dimension has no value.
    fn bind(&self, symbols: &[i64]) -> Result<Self, TensorError>;
}

/// Implements [`Attr`] for a type without dims through two functions.
#[macro_export]
macro_rules! plain_attr {
    ($t:ty, $to:expr, $from:expr) => {
        impl $crate::attr::Attr for $t {
            fn to_value(&self) -> $crate::attr::AttrValue {
                $to(self)
            }
            fn from_value(value: &$crate::attr::AttrValue) -> Option<Self> {
                $from(value)
            }
            fn bind(&self, _: &[i64]) -> Result<Self, regraft_tensor::TensorError> {
                Ok(self.clone())
            }
        }
    };
}

plain_attr!(i64, |v: &i64| AttrValue::Dim(Dim::new(*v)), |v: &AttrValue| match v {
    AttrValue::Dim(d) => d.as_const(),
    _ => None,
});
plain_attr!(usize, |v: &usize| AttrValue::Dim(Dim::from(*v)), |v: &AttrValue| match v {
    AttrValue::Dim(d) => d.as_usize(),
    _ => None,
});
plain_attr!(f64, |v: &f64| AttrValue::Float(*v), |v: &AttrValue| match v {
    AttrValue::Float(v) => Some(*v),
    AttrValue::Dim(d) => d.as_const().map(|v| v as f64),
    _ => None,
});
plain_attr!(bool, |v: &bool| AttrValue::Word(v.to_string()), |v: &AttrValue| match v {
    AttrValue::Word(w) => w.parse().ok(),
    _ => None,
});
plain_attr!(String, |v: &String| AttrValue::Str(v.clone()), |v: &AttrValue| match v {
    AttrValue::Str(s) => Some(s.clone()),
    _ => None,
});
plain_attr!(DType, |v: &DType| AttrValue::Word(v.name().into()), |v: &AttrValue| match v {
    AttrValue::Word(w) => DType::from_name(w),
    _ => None,
});
plain_attr!(
    Scalar,
    |v: &Scalar| match v {
        Scalar::Float(v) => AttrValue::Float(*v),
        Scalar::Int(v) => AttrValue::Dim(Dim::new(*v)),
    },
    |v: &AttrValue| match v {
        AttrValue::Float(v) => Some(Scalar::Float(*v)),
        AttrValue::Dim(d) => d.as_const().map(Scalar::Int),
        _ => None,
    }
);

impl Attr for Dim {
    fn to_value(&self) -> AttrValue {
        AttrValue::Dim(self.clone())
    }
    fn from_value(value: &AttrValue) -> Option<Self> {
        match value {
            AttrValue::Dim(d) => Some(d.clone()),
            _ => None,
        }
    }
    fn bind(&self, symbols: &[i64]) -> Result<Self, TensorError> {
        Ok(Dim::new(self.eval(symbols)?))
    }
}

impl<T: Attr> Attr for Vec<T> {
    fn to_value(&self) -> AttrValue {
        AttrValue::List(self.iter().map(Attr::to_value).collect())
    }
    fn from_value(value: &AttrValue) -> Option<Self> {
        match value {
            AttrValue::List(items) => items.iter().map(T::from_value).collect(),
            _ => None,
        }
    }
    fn bind(&self, symbols: &[i64]) -> Result<Self, TensorError> {
        self.iter().map(|v| v.bind(symbols)).collect()
    }
}

impl<T: Attr> Attr for Option<T> {
    fn to_value(&self) -> AttrValue {
        self.as_ref().map_or_else(|| AttrValue::Word("none".into()), Attr::to_value)
    }
    fn from_value(value: &AttrValue) -> Option<Self> {
        match value {
            AttrValue::Word(w) if w == "none" => Some(None),
            v => T::from_value(v).map(Some),
        }
    }
    fn bind(&self, symbols: &[i64]) -> Result<Self, TensorError> {
        self.as_ref().map(|v| v.bind(symbols)).transpose()
    }
}

/// A struct of attributes.
pub trait Attrs: Sized {
    /// Names and values of the fields that differ from their defaults.
    fn fields(&self) -> Vec<(&'static str, AttrValue)>;
    /// Takes its fields out of `fields`; what is left over is the caller's to refuse.
    ///
    /// # Errors
    /// The name of a field that is missing or has a value of the wrong kind.
    fn take_fields(fields: &mut Vec<(String, AttrValue)>) -> Result<Self, &'static str>;
    /// The same with every symbol replaced by its value.
    ///
    /// # Errors
    /// When a dimension has no value.
    fn bind(&self, symbols: &[i64]) -> Result<Self, TensorError>;
}

/// Declares a struct of attributes: a field with `= default` may be left out of the text.
#[macro_export]
macro_rules! attrs {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$fdoc:meta])* pub $field:ident : $ty:ty $(= $default:expr)?),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty),* }

        impl $crate::attr::Attrs for $name {
            #[allow(unused_mut, clippy::vec_init_then_push)]
            fn fields(&self) -> Vec<(&'static str, $crate::attr::AttrValue)> {
                let mut fields = Vec::new();
                $($crate::attrs!(@push fields self $field $ty $(= $default)?);)*
                fields
            }
            #[allow(unused_variables)]
            fn take_fields(fields: &mut Vec<(String, $crate::attr::AttrValue)>) -> Result<Self, &'static str> {
                Ok($name { $($field: match fields.iter().position(|(n, _)| n == stringify!($field)) {
                    Some(at) => {
                        let (_, value) = fields.remove(at);
                        <$ty as $crate::attr::Attr>::from_value(&value).ok_or(stringify!($field))?
                    }
                    None => $crate::attrs!(@default $field $(= $default)?),
                }),* })
            }
            #[allow(unused_variables)]
            fn bind(&self, symbols: &[i64]) -> Result<Self, regraft_tensor::TensorError> {
                Ok($name { $($field: $crate::attr::Attr::bind(&self.$field, symbols)?),* })
            }
        }
    };
    (@push $out:ident $self:ident $field:ident $ty:ty) => {
        $out.push((stringify!($field), $crate::attr::Attr::to_value(&$self.$field)));
    };
    (@push $out:ident $self:ident $field:ident $ty:ty = $default:expr) => {
        let default: $ty = $default;
        if $self.$field != default {
            $out.push((stringify!($field), $crate::attr::Attr::to_value(&$self.$field)));
        }
    };
    (@default $field:ident) => { return Err(stringify!($field)) };
    (@default $field:ident = $default:expr) => { $default };
}

/// Declares a fieldless enum whose values are words in text.
#[macro_export]
macro_rules! word_enum {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),* }

        impl $name {
            /// All values.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];
            /// The word for it in text.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $word),* }
            }
            /// The value with this word.
            pub fn from_name(word: &str) -> Option<Self> {
                match word { $($word => Some($name::$variant),)* _ => None }
            }
        }

        $crate::plain_attr!(
            $name,
            |v: &$name| $crate::attr::AttrValue::Word(v.name().into()),
            |v: &$crate::attr::AttrValue| match v {
                $crate::attr::AttrValue::Word(w) => $name::from_name(w),
                _ => None,
            }
        );
    };
}
