//! The stages in order, each with its own type.

