//! Unsafe room: naming a function in this program so that another process of the same build can call it.
//!
//! A function pointer means nothing in another process, because the loader puts the program at another
//! address each time. What stays the same in two processes of one build is the distance from the start of the
//! executable. So a function travels as that distance, together with the [`Build`](crate::image::Build), and
//! the child calls it only if its own build is the same one.
//!
//! Two addresses travel: that of the function, and that of the *trampoline* for its types, a function of ours
//! that the compiler has made for these `A` and `R`: it knows how to deserialise the arguments, to call, and
//! to serialise the result. Functions that are called many times ([`Portable`]) have a trampoline of another form, the *ferry*.
#![allow(unsafe_code)]

use std::any::type_name;
use std::sync::OnceLock;

use serde::{Serialize, de::DeserializeOwned};

use crate::call::{Call, Outcome, run};
use crate::error::{Error, ErrorKind};
use crate::image::Digest;
use crate::linux::{Object, object_of};
use crate::portable::{Portable, Way};
use crate::wire::{Function, Reason, Refused};
use crate::{hook, named};

/// A function of this process, ready to be called once.
pub(crate) type Callable = Box<dyn FnOnce(Call<'_>) -> Outcome>;

type Trampoline = unsafe fn(usize, u64, Call<'_>) -> Outcome;

/// The executable or library that this crate is linked into.
pub(crate) fn home() -> Option<&'static Object> {
    static HOME: OnceLock<Option<Object>> = OnceLock::new();
    HOME.get_or_init(|| object_of(hook::anchor())).as_ref()
}

/// How to name `function` to a child that runs the same executable.
pub(crate) fn describe<A, R>(function: fn(A) -> R) -> Result<Function, Error>
where
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    let trampoline: Trampoline = trampoline::<A, R>;
    let (home, [trampoline, function]) = offsets([trampoline as usize, function as usize])?;
    Ok(Function::Code { build: home.build.clone(), trampoline, function, types: types::<A, R>() })
}

/// From the base of the executable to functions of it.
fn offsets(addresses: [usize; 2]) -> Result<(&'static Object, [u64; 2]), Error> {
    match home() {
        Some(home) if home.is_executable && addresses.iter().all(|&address| home.has_code_at(address)) => {
            Ok((home, addresses.map(|address| (address - home.base) as u64)))
        }
        _ => Err(Error::new(
            ErrorKind::OutsideExecutable,
            "the function is not part of the executable of this process but of a shared library, which the \
             executable need not load when it is started again: register the function and start the program that \
             has it with `executable` and `spawn_named`",
        )),
    }
}

/// What a request asks for, if this process has it.
pub(crate) fn resolve(function: &Function) -> Result<Callable, Refused> {
    let (build, trampoline, function, expected) = match function {
        Function::Named { name, types } => return named::resolve(name, types),
        Function::Code { build, trampoline, function, types } => (build, *trampoline, *function, *types),
    };
    let refuse = |text: String| Err(Refused { reason: Reason::WrongBuild, text });
    let Some(home) = home() else { return refuse("the child can not tell which build it is".into()) };
    if home.build != *build {
        return refuse(format!("the child is build {}, the function is of build {build}", home.build));
    }
    let [trampoline, function] = [trampoline, function].map(|offset| home.base.wrapping_add(offset as usize));
    if ![trampoline, function].iter().all(|&address| home.has_code_at(address)) {
        return refuse("the function lies outside of the child's code".into());
    }
    let code = std::ptr::with_exposed_provenance::<()>(trampoline);
    // SAFETY: `describe` computed this address from a `Trampoline` in a process with an equal build: the same
    // code at the same distance from the base. So there is a `Trampoline` at it here.
    let trampoline = unsafe { std::mem::transmute::<*const (), Trampoline>(code) };
    // SAFETY: `function` came with `trampoline` in one request, from `describe::<A, R>`, which is what the
    // contract asks for.
    Ok(Box::new(move |call| unsafe { trampoline(function, expected, call) }))
}

/// Calls the function at address `function`.
///
/// # Safety
///
/// `function` is the address of an `fn(A) -> R`, for the `A` and `R` of this trampoline.
unsafe fn trampoline<A, R>(function: usize, expected: u64, call: Call<'_>) -> Outcome
where
    A: DeserializeOwned,
    R: Serialize,
{
    // A second line of defence: equal builds with different code at this place would be found here.
    if types::<A, R>() != expected {
        let text = "the child has a function of other types in this place".into();
        return Outcome::Refused(Refused { reason: Reason::WrongBuild, text });
    }
    let code = std::ptr::with_exposed_provenance::<()>(function);
    // SAFETY: that is this function's contract.
    let function = unsafe { std::mem::transmute::<*const (), fn(A) -> R>(code) };
    run(function, call)
}

/// As [`Trampoline`], for functions that are called more than once.
type Ferry = unsafe fn(usize, &[u8], &mut Vec<u8>);

/// A function of this process, ready to be called in its way.
#[derive(Clone, Copy)]
pub(crate) struct Passage {
    ferry: Ferry,
    function: usize,
}

impl Passage {
    pub(crate) fn call(&self, arguments: &[u8], results: &mut Vec<u8>) {
        // SAFETY: both are from one `describe_portable`, which is what `resolve_portable` made sure of.
        unsafe { (self.ferry)(self.function, arguments, results) }
    }
}

/// How to name `function`, and the way to call it, to processes that run the same executable.
pub(crate) fn describe_portable<W, A, R>(function: fn(A) -> R) -> Result<Portable, Error>
where
    W: Way,
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    let ferry: Ferry = ferry::<W, A, R>;
    let (home, [passage, function]) = offsets([ferry as usize, function as usize])?;
    let mut portable = Portable { passage, function, types: types::<A, R>(), seal: 0 };
    portable.seal = seal(&portable, home);
    Ok(portable)
}

/// The function that another process means, if this is a process of the same build.
pub(crate) fn resolve_portable(portable: Portable) -> Result<Passage, String> {
    let home = home().ok_or("this process can not tell which build it is")?;
    if portable.seal != seal(&portable, home) {
        return Err("the function is of another build, or the memory that it was named in is damaged".into());
    }
    let [ferry, function] =
        [portable.passage, portable.function].map(|offset| home.base.wrapping_add(offset as usize));
    if ![ferry, function].iter().all(|&address| home.has_code_at(address)) {
        return Err("the function lies outside of this process's code".into());
    }
    let code = std::ptr::with_exposed_provenance::<()>(ferry);
    // SAFETY: the seal fits these offsets and this build, and only `describe_portable` makes seals, in a process with an equal build: the
    // same code at the same distance from the base. So there is a `Ferry` at this address, and a function of its types at the other.
    // (Somebody who forges seals on purpose has been given this process's memory; see ARCHITECTURE.md, trust.)
    let ferry = unsafe { std::mem::transmute::<*const (), Ferry>(code) };
    Ok(Passage { ferry, function })
}

/// Calls the function at address `function`, in the way `W`.
///
/// # Safety
///
/// `function` is the address of an `fn(A) -> R`, for the `A` and `R` of this ferry.
unsafe fn ferry<W, A, R>(function: usize, arguments: &[u8], results: &mut Vec<u8>)
where
    W: Way,
    A: DeserializeOwned,
    R: Serialize,
{
    let code = std::ptr::with_exposed_provenance::<()>(function);
    // SAFETY: that is this function's contract.
    let function = unsafe { std::mem::transmute::<*const (), fn(A) -> R>(code) };
    W::call(function, arguments, results);
}

fn seal(portable: &Portable, home: &Object) -> u64 {
    let mut digest = Digest::default();
    digest.add_bytes(&home.build.id);
    for word in [home.build.layout, portable.passage, portable.function, portable.types] {
        digest.add(word);
    }
    digest.value()
}

fn types<A, R>() -> u64 {
    let mut digest = Digest::default();
    digest.add_bytes(type_name::<fn(A) -> R>().as_bytes());
    digest.value()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Never;

    impl Way for Never {
        fn call<A, R>(_: fn(A) -> R, _: &[u8], _: &mut Vec<u8>) {}
    }

    #[test]
    fn what_lies_outside_of_the_code_is_not_called() {
        let good = describe_portable::<Never, u8, u8>(|n| n).unwrap();
        assert!(resolve_portable(good).is_ok());
        for (passage, function) in [(good.passage, 1 << 62), (1 << 62, good.function)] {
            let mut bad = Portable { passage, function, ..good };
            assert!(resolve_portable(bad).is_err(), "the seal is another's");
            bad.seal = seal(&bad, home().unwrap());
            assert!(resolve_portable(bad).is_err_and(|why| why.contains("outside")));
        }
    }
}
