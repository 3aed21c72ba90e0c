//! One call of a function in the child: arguments in, result out, panics caught.

use std::any::{Any, type_name};
use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};

use crossproc_segment::handover;
use serde::{Serialize, de::DeserializeOwned};

use crate::wire::{Reason, Refused};

/// What a child has been asked to do, apart from which function.
pub(crate) struct Call<'a> {
    pub(crate) arguments: &'a [u8],
    pub(crate) descriptors: Vec<OwnedFd>,
    /// To be called when the arguments are there, before the function is called.
    pub(crate) started: &'a mut dyn FnMut(),
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The function was not called.
    Refused(Refused),
    /// The function returned this.
    Returned { body: Vec<u8>, descriptors: Vec<OwnedFd> },
    /// The function panicked.
    Panicked { message: String, location: Option<String> },
    /// The function returned something that can not be sent, for this reason.
    Unsendable(String),
}

/// Calls `function`. This is where the types of arguments and result are known.
pub(crate) fn run<A, R>(function: fn(A) -> R, call: Call<'_>) -> Outcome
where
    A: DeserializeOwned,
    R: Serialize,
{
    let Call { arguments, descriptors, started } = call;
    let decode = || handover::unpack(descriptors, || postcard::from_bytes::<A>(arguments));
    let refuse = |reason: String| {
        let text = format!("its arguments of type `{}` can not be deserialised: {reason}", type_name::<A>());
        Outcome::Refused(Refused { reason: Reason::Arguments, text })
    };
    let arguments = match catch(decode) {
        Ok(Ok(arguments)) => arguments,
        Ok(Err(error)) => return refuse(explain(&error)),
        Err(panic) => return refuse(format!("panic: {}", panic.message)),
    };
    started();
    let call_and_encode = || {
        let result = function(arguments);
        handover::pack(|| postcard::to_stdvec(&result))
    };
    match catch(call_and_encode) {
        Ok((Ok(body), descriptors)) => Outcome::Returned { body, descriptors },
        Ok((Err(error), _)) => Outcome::Unsendable(format!(
            "its result of type `{}` can not be serialised: {}",
            type_name::<R>(),
            explain(&error),
        )),
        Err(Panic { message, location }) => Outcome::Panicked { message, location },
    }
}

/// A panic that was caught.
#[derive(Debug)]
pub struct Panic {
    /// What it said.
    pub message: String,
    /// Where, if the panic hook of the process told.
    pub location: Option<String>,
}

/// Calls `f`; if it panics, says what the panic said.
pub fn catch<T>(f: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        let message = message_of(&*panic);
        // A panic that was caught earlier, or resumed from another thread, has another message.
        let location = LAST_PANIC.take().filter(|last| last.message == message).map(|last| last.location);
        Panic { message, location }
    })
}

/// Why (de)serialising failed: the handle that failed knows better than postcard, whose errors carry no text.
pub fn explain(error: &postcard::Error) -> String {
    handover::last_error().unwrap_or_else(|| error.to_string())
}

thread_local! {
    static LAST_PANIC: RefCell<Option<LastPanic>> = const { RefCell::new(None) };
}

struct LastPanic {
    message: String,
    location: String,
}

/// To be called by the panic hook: a caught panic has no location any more.
pub(crate) fn note_panic(info: &PanicHookInfo<'_>) -> (String, Option<String>) {
    let message = message_of(info.payload());
    let location = info.location().map(ToString::to_string);
    if let Some(location) = location.clone() {
        LAST_PANIC.set(Some(LastPanic { message: message.clone(), location }));
    }
    (message, location)
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a value that is not a text").to_owned()
}
