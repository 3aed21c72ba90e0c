//! Unsafe room: naming a function in this program so that another process of the same build can call it.
//!
//! A function pointer means nothing in another process, because the loader puts the program at another
//! address each time. What stays the same in two processes of one build is the distance from the start of the
//! executable. So a function travels as that distance, together with the [`Build`](crate::image::Build), and
//! the child calls it only if its own build is the same one.
//!
//! Two addresses travel: that of the function, and that of the *trampoline* for its types, a function of ours
//! that the compiler has made for these `A` and `R`: it knows how to deserialise the arguments, to call, and
//! to serialise the result.
#![allow(unsafe_code)]

use std::any::type_name;
use std::sync::OnceLock;

use serde::{Serialize, de::DeserializeOwned};

use crate::call::{Call, Outcome, run};
use crate::error::{Error, ErrorKind};
use crate::image::Digest;
use crate::linux::{Object, object_of};
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
    let addresses = [trampoline as usize, function as usize];
    match home() {
        Some(home) if home.is_executable && addresses.iter().all(|&address| home.has_code_at(address)) => {
            let [trampoline, function] = addresses.map(|address| (address - home.base) as u64);
            Ok(Function::Code { build: home.build.clone(), trampoline, function, types: types::<A, R>() })
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

fn types<A, R>() -> u64 {
    let mut digest = Digest::default();
    digest.add_bytes(type_name::<fn(A) -> R>().as_bytes());
    digest.value()
}
