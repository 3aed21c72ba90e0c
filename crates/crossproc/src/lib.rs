//! Shared-memory building blocks for programs that are more than one process.
