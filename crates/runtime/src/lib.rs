//! Regraft: runtime.
