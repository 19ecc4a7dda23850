//! Numbers that may be expressions over symbols.

use serde::Deserialize;

use super::{number::Real, union::union};

/// A symbolic expression in sympy's `srepr`, with the value it had when the program was exported.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct SymExpr {
    /// The expression.
    pub expr_str: String,
    /// Its value in the example.
    #[serde(default)]
    pub hint: Option<SymExprHint>,
}

union! {
    /// A size: an integer or an expression.
    SymInt {
        /// An expression over symbols.
        "as_expr" => Expr(SymExpr),
        /// An integer.
        "as_int" => Int(i64),
    }
}

impl Default for SymInt {
    fn default() -> Self {
        SymInt::Int(0)
    }
}

impl SymInt {
    /// The value of an integer.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            SymInt::Int(v) => Some(*v),
            SymInt::Expr(_) | SymInt::Unknown(_) => None,
        }
    }
}

union! {
    /// A float or an expression.
    SymFloat {
        /// An expression over symbols.
        "as_expr" => Expr(SymExpr),
        /// A float.
        "as_float" => Float(f64 = Real),
    }
}

union! {
    /// A condition or an expression.
    SymBool {
        /// An expression over symbols.
        "as_expr" => Expr(SymExpr),
        /// A condition.
        "as_bool" => Bool(bool),
    }
}

union! {
    /// The value an expression had when the program was exported.
    SymExprHint {
        /// Of an integer.
        "as_int" => Int(i64),
        /// Of a condition.
        "as_bool" => Bool(bool),
        /// Of a float.
        "as_float" => Float(f64 = Real),
    }
}
