//! Functions that can be called by name, from any program that knows the name.

use std::any::type_name;
use std::sync::{Mutex, PoisonError};

use serde::{Serialize, de::DeserializeOwned};

use crate::call::{Call, Outcome, run};
use crate::entry::Callable;
use crate::fork_server;
use crate::wire::{Reason, Refused, clip};

/// Registers a function of this program under a name, for [`Process::named`](crate::Process::named).
///
/// `register!(path::to::function)` takes the path as it is written for the name; `register!("name",
/// path::to::function)` gives another. The function takes one argument (a tuple for several) and is not
/// generic. Stands outside of functions, in any module of any crate that the program is linked with.
///
/// A name is needed only to run a function in *another* executable, or in another build of this one; within
/// one program pass the function itself to [`Process::spawn`](crate::Process::spawn).
///
/// ```
/// use crossproc_process::Process;
///
/// fn add((a, b): (u32, u32)) -> u32 {
///     a + b
/// }
/// crossproc_process::register!(add);
/// crossproc_process::register!("times", |(a, b): (u32, u32)| a * b);
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// assert_eq!(Process::named::<(u32, u32), u32>("add", (2, 3))?.join()?, 5);
/// assert_eq!(Process::named::<(u32, u32), u32>("times", (2, 3))?.join()?, 6);
/// # Ok(())
/// # }
/// ```
// The constructor has a priority (60000), so linkers put it before all constructors without one, among them
// the one that runs the function of a child. Inventory's constructors have none and may come later.
#[macro_export]
macro_rules! register {
    ($function:path) => {
        $crate::register!(::core::stringify!($function), $function);
    };
    ($name:expr, $function:expr) => {
        const _: () = {
            extern "C" fn constructor() {
                $crate::register_function($name, $function);
            }
            #[used]
            #[unsafe(link_section = ".init_array.60000")]
            static CONSTRUCTOR: extern "C" fn() = constructor;
        };
    };
}

struct Named {
    name: &'static str,
    types: &'static str,
    call: Box<dyn Fn(Call<'_>) -> Outcome + Send>,
}

/// Filled before `main`. Only the constructor of a child and further constructors look at it.
static REGISTRY: Mutex<Vec<Named>> = Mutex::new(Vec::new());

/// What [`register!`] expands to.
#[doc(hidden)]
pub fn register_function<A, R>(name: &'static str, function: fn(A) -> R)
where
    A: Serialize + DeserializeOwned + 'static,
    R: Serialize + DeserializeOwned + 'static,
{
    let call = Box::new(move |call: Call<'_>| run(function, call));
    let named = Named { name, types: types::<A, R>(), call };
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner).push(named);
}

/// The types of a function, for comparison. Long names are compared as far as they fit into a message.
pub(crate) fn types<A, R>() -> &'static str {
    clip(type_name::<fn(A) -> R>(), 2048)
}

pub(crate) fn resolve(name: &str, expected: &str) -> Result<Callable, Refused> {
    if name == fork_server::NAME {
        return Ok(Box::new(|call| run(fork_server::serve, call)));
    }
    let mut registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
    let refuse = |reason, text| Err(Refused { reason, text });
    let mut places = (0..registry.len()).filter(|&place| registry[place].name == name);
    let (place, another) = (places.next(), places.next());
    let Some(place) = place else {
        let mut known: Vec<_> = registry.iter().map(|named| named.name).collect();
        known.sort_unstable();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let text = format!(
            "no function is registered as `{name}` in that program; registered: {}",
            clip(&known, 2048)
        );
        return refuse(Reason::NoSuchFunction, text);
    };
    if another.is_some() {
        let text = format!("more than one function is registered as `{name}` in that program");
        return refuse(Reason::NoSuchFunction, text);
    }
    let types = registry[place].types;
    if types != expected {
        let text = format!("`{name}` is a `{types}` there, and was called as a `{expected}`");
        return refuse(Reason::WrongTypes, text);
    }
    // A child makes one call.
    let call = registry.swap_remove(place).call;
    Ok(Box::new(call))
}
