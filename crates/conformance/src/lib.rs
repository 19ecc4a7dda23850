//! Regraft: conformance.
