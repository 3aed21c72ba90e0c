//! The protocols of the objects beside the lock as explicit-state models: every interleaving of their single shared
//! accesses, with deaths between any two, with newborns in the slots of the dead, and with everybody else stopped.
//!
//! Each file has the protocol of one object, what is checked, the planted bugs with what must catch them, and the
//! configurations. What they share is in `explore.rs`; read its head first.
#![cfg(not(crossproc_model))]
#![forbid(unsafe_code)]

macro_rules! bugs {
    ($($name:ident $text:literal is $wrong:literal in $config:literal)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        enum Bug { $($name),* }
        const BUGS: &[crate::explore::Planted<Bug>] = &[$((Bug::$name, $text, $wrong, $config)),*];
    };
}

mod barrier;
mod binary;
mod explore;
mod once;
mod rwlock;
mod semaphore;
