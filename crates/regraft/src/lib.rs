//! Regraft: regraft.
