//! The program crossproc.
