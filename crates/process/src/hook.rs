//! Unsafe room: the constructor that turns a started program into a child, before its `main`.
//!
//! A child is this same program, started again. Were it to reach `main` (or libtest's `main`, which runs all
//! tests), it would do what its parent did and start children in its turn. So the decision is made earlier:
//! the loader calls the functions in `.init_array` before `main`, and ours never returns when the process is
//! a child. It needs no cooperation of the program: it works in tests, benches, examples and doc tests.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{child, current, linux};

/// In the environment of a child until its constructor has run.
pub(crate) const MARKER: &str = "CROSSPROC_CHILD";

/// A constructor. glibc passes the arguments of `main`; other C libraries pass nothing.
#[cfg(target_env = "gnu")]
type Constructor = extern "C" fn(i32, *const *const u8, *const *const u8);
#[cfg(not(target_env = "gnu"))]
type Constructor = extern "C" fn();

/// The section is the loader's table of pointers to constructors. `#[used]` keeps it for the linker, and
/// [`anchor`] names it, so wherever `spawn` is linked this is too.
#[used]
#[unsafe(link_section = ".init_array")]
static HOOK: [Constructor; CONSTRUCTORS.len()] = CONSTRUCTORS;

#[cfg(not(test))]
const CONSTRUCTORS: [Constructor; 1] = [hook];
/// With one that comes behind ours for certain.
#[cfg(test)]
const CONSTRUCTORS: [Constructor; 2] = [hook, tests::later];

/// Set by the constructor in every process that can be a child.
static HAS_RUN: AtomicBool = AtomicBool::new(false);

/// False if the constructor was not called, or may not act: then a child would run `main` instead of its
/// function.
pub(crate) fn has_run() -> bool {
    HAS_RUN.load(Ordering::Relaxed)
}

/// An address in the object (executable or shared library) that this crate is linked into.
pub(crate) fn anchor() -> usize {
    (&raw const HOOK).expose_provenance()
}

#[cfg(target_env = "gnu")]
extern "C" fn hook(argc: i32, argv: *const *const u8, environment: *const *const u8) {
    intercept(|constructor| constructor(argc, argv, environment));
}

#[cfg(not(target_env = "gnu"))]
extern "C" fn hook() {
    intercept(|constructor| constructor());
}

/// Returns in every process but a child of ours.
fn intercept(call: impl Fn(Constructor)) {
    // Before all else: it is what ends a chain if nothing below does.
    current::read_depth();
    if linux::privileged_start() {
        return;
    }
    HAS_RUN.store(true, Ordering::Relaxed);
    if linux::take_variable(MARKER).is_some() {
        linux::ignore_sigpipe();
        let code = child::main(|| later_constructors().into_iter().for_each(&call));
        // Runs the functions registered with atexit and flushes the streams, as the end of `main` does.
        std::process::exit(code);
    }
}

/// The constructors of this object that the loader would have called after ours.
///
/// The function of a child must find a program as complete as `main` does: registries (`inventory`), static
/// objects of C++. Their constructors stand in the same table as ours in the order of linking, so some come
/// after it, and the loader will not come to them, because ours does not return. (None are found in an
/// executable without a dynamic section: linked statically and to a fixed address.)
fn later_constructors() -> Vec<Constructor> {
    let Some(object) = linux::object_of(anchor()) else { return Vec::new() };
    let table = object.constructors;
    if !table.contains(&anchor()) {
        return Vec::new();
    }
    let mut constructors = Vec::new();
    for address in (anchor()..table.end).step_by(size_of::<usize>()).skip(1) {
        // SAFETY: the address is in the loader's table of this object's constructors (which HOOK is part of),
        // a table of words that is mapped and, after relocation, not written any more.
        let entry = unsafe { *std::ptr::with_exposed_provenance::<usize>(address) };
        // Linkers have ended the table by 0 or -1.
        if entry != 0 && entry != usize::MAX {
            let code = std::ptr::with_exposed_provenance::<()>(entry);
            // SAFETY: what else stands in the table is a function to be called as a constructor: the loader
            // would call it in the same way.
            constructors.push(unsafe { std::mem::transmute::<*const (), Constructor>(code) });
        }
    }
    constructors
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    static RUN: AtomicU32 = AtomicU32::new(0);

    #[cfg(target_env = "gnu")]
    pub(super) extern "C" fn later(argc: i32, argv: *const *const u8, environment: *const *const u8) {
        // What the loader passes, or garbage: the number and the first of the arguments.
        let sane = argc == 1 && !argv.is_null() && !environment.is_null();
        RUN.fetch_add(if sane { 1 } else { 1000 }, Ordering::Relaxed);
    }

    #[cfg(not(target_env = "gnu"))]
    pub(super) extern "C" fn later() {
        RUN.fetch_add(1, Ordering::Relaxed);
    }

    #[test]
    fn a_child_has_run_the_later_constructors_once() {
        let object = linux::object_of(anchor()).unwrap();
        if object.constructors.is_empty() {
            use std::io::Write;
            std::io::stderr().write_all(b"not run: this executable has no dynamic section\n").unwrap();
            return;
        }
        let count = |()| RUN.load(Ordering::Relaxed);
        assert_eq!(crate::Process::spawn(count, ()).unwrap().join().unwrap(), 1);
    }
}
