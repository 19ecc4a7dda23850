//! Regraft: engine.
