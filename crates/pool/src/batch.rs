//! Arguments and results as bytes: what a task carries there and back.
//!
//! ```text
//! arguments   for each item:  length u32 | the argument, by postcard; with bit 31 set: why it can not be serialised, a text
//! results     for each item:  length u32 | tag u8 | content
//!   tag 0  returned      the result, by postcard
//!       1  panicked      message and location, by postcard
//!       2  bad argument  why it can not be deserialised, a text
//!       3  bad result    why it can not be serialised, a text
//! ```
//!
//! Each item has a length of its own, so that one that can not be read takes no other along.

use std::any::type_name;
use std::cell::Cell;

use crossproc_process::portable::{Panic, Way, catch, explain};
use crossproc_segment::handover;
use postcard::ser_flavors::Flavor;
use serde::{Serialize, de::DeserializeOwned};

use crate::TaskError;

const RETURNED: u8 = 0;
const PANICKED: u8 = 1;
const BAD_ARGUMENT: u8 = 2;
const BAD_RESULT: u8 = 3;

/// Bytes of a length.
const LENGTH: usize = 4;
/// In the length of an argument that is none, but the reason for that.
const IS_REASON: u32 = 1 << 31;

/// Puts an argument behind those that are there; or, if it can not be serialised, the reason, which is then the item's outcome.
pub(crate) fn push_argument<A: Serialize>(arguments: &mut Vec<u8>, argument: &A) {
    let start = arguments.len();
    arguments.extend_from_slice(&[0; LENGTH]);
    if let Err(why) = append(arguments, argument).and_then(|()| close(arguments, start)) {
        arguments.truncate(start + LENGTH);
        let text = format!("an argument of type `{}` can not be serialised: {why}", type_name::<A>());
        arguments.extend_from_slice(text.as_bytes());
        // A text is not as long.
        let _ = close(arguments, start);
        arguments[start + LENGTH - 1] |= 1 << 7;
    }
}

/// Bytes of the first so many items, fewer if those have so many bytes or there are no more, and their number.
pub(crate) fn first_items(mut arguments: &[u8], most: usize, most_bytes: usize) -> (usize, u32) {
    let (all, mut items) = (arguments.len(), 0);
    while items < most && all - arguments.len() < most_bytes && next_frame(&mut arguments).is_some() {
        items += 1;
    }
    (all - arguments.len(), items as u32)
}

/// Reads the results of a task, one item after the other.
#[derive(Debug)]
pub(crate) struct Results<'a>(pub(crate) &'a [u8]);

impl Results<'_> {
    /// The result of the next item.
    pub(crate) fn next<R: DeserializeOwned>(&mut self) -> Result<R, TaskError> {
        caught::<R, _>(|| self.read())
    }

    /// The results of so many items, or the first error.
    pub(crate) fn all<R: DeserializeOwned>(
        &mut self,
        items: u32,
        into: &mut Vec<R>,
    ) -> Result<(), TaskError> {
        caught::<R, _>(|| {
            for _ in 0..items {
                into.push(self.read()?);
            }
            Ok(())
        })
    }

    fn read<R: DeserializeOwned>(&mut self) -> Result<R, TaskError> {
        let frame = next_frame(&mut self.0).and_then(|(frame, _)| frame.split_first());
        match frame {
            Some((&RETURNED, content)) => {
                postcard::from_bytes(content).map_err(|error| undecodable::<R>(&why(&error)))
            }
            Some((&tag, content)) => Err(failure(tag, content)),
            None => Err(TaskError::Result("there is no result where one should be: damaged memory".into())),
        }
    }
}

/// What a worker said in the place of a result.
#[cold]
fn failure(tag: u8, content: &[u8]) -> TaskError {
    let text = String::from_utf8_lossy(content).into_owned();
    match tag {
        PANICKED => match postcard::from_bytes(content) {
            Ok((message, location)) => TaskError::Panicked { message, location },
            Err(_) => TaskError::Panicked { message: text, location: None },
        },
        BAD_ARGUMENT => TaskError::Argument(text),
        _ => TaskError::Result(text),
    }
}

/// Reading runs the users' own code, which may panic.
fn caught<R, T>(read: impl FnOnce() -> Result<T, TaskError>) -> Result<T, TaskError> {
    match catch(read) {
        Ok(read) => read,
        Err(Panic { message, .. }) => Err(undecodable::<R>(&format!("panic: {message}"))),
    }
}

fn undecodable<R>(why: &str) -> TaskError {
    TaskError::Result(format!("a result of type `{}` can not be deserialised: {why}", type_name::<R>()))
}

/// How a worker calls functions: for each item of a task, one after the other.
pub(crate) struct Items;

impl Way for Items {
    fn call<A, R>(function: fn(A) -> R, mut arguments: &[u8], results: &mut Vec<u8>)
    where
        A: DeserializeOwned,
        R: Serialize,
    {
        while let Some((argument, is_reason)) = next_frame(&mut arguments) {
            let start = results.len();
            if is_reason {
                results.extend_from_slice(&[0, 0, 0, 0, BAD_ARGUMENT]);
                results.extend_from_slice(argument);
                let _ = close(results, start);
                continue;
            }
            results.extend_from_slice(&[0, 0, 0, 0, RETURNED]);
            let is_called = Cell::new(false);
            let called = catch(|| {
                let argument =
                    postcard::from_bytes::<A>(argument).map_err(|error| (BAD_ARGUMENT, why(&error)))?;
                is_called.set(true);
                let result = function(argument);
                append(results, &result).map_err(|why| (BAD_RESULT, why))
            });
            let closed = match called {
                Ok(Ok(())) => close(results, start).map_err(|why| (BAD_RESULT, why)),
                Ok(Err(failed)) => Err(failed),
                Err(panic) if is_called.get() => {
                    results.truncate(start + LENGTH);
                    results.push(PANICKED);
                    // Texts can always be serialised.
                    let _ = append(results, &(panic.message, panic.location));
                    close(results, start).map_err(|why| (BAD_RESULT, why))
                }
                Err(panic) => Err((BAD_ARGUMENT, format!("panic: {}", panic.message))),
            };
            if let Err((tag, why)) = closed {
                let text = match tag {
                    BAD_ARGUMENT => {
                        format!("an argument of type `{}` can not be deserialised: {why}", type_name::<A>())
                    }
                    _ => format!("a result of type `{}` can not be serialised: {why}", type_name::<R>()),
                };
                results.truncate(start + LENGTH);
                results.push(tag);
                results.extend_from_slice(text.as_bytes());
                let _ = close(results, start);
            }
        }
    }
}

/// The bytes of the next item, and whether they are a reason.
fn next_frame<'a>(frames: &mut &'a [u8]) -> Option<(&'a [u8], bool)> {
    let (length, rest) = frames.split_first_chunk::<LENGTH>()?;
    let length = u32::from_le_bytes(*length);
    let (frame, rest) = rest.split_at_checked((length & !IS_REASON) as usize)?;
    *frames = rest;
    Some((frame, length & IS_REASON != 0))
}

/// Writes the length of the item that begins at `start`.
fn close(frames: &mut [u8], start: usize) -> Result<(), String> {
    let length = frames.len() - start - LENGTH;
    let length = u32::try_from(length).ok().filter(|length| length & IS_REASON == 0);
    let length = length.ok_or("it is longer than 2 GiB, the most that there can be")?;
    frames[start..start + LENGTH].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

fn append<T: Serialize>(bytes: &mut Vec<u8>, value: &T) -> Result<(), String> {
    postcard::serialize_with_flavor(value, Appended(bytes)).map_err(|error| why(&error))
}

fn why(error: &postcard::Error) -> String {
    let why = explain(error);
    if why == handover::ONLY_WHILE_HANDED_OVER {
        "handles do not travel with tasks, of which nobody knows yet which worker gets them: give them to all workers, by `initializer`"
            .into()
    } else {
        why
    }
}

/// Where postcard writes to: behind what is there.
struct Appended<'a>(&'a mut Vec<u8>);

impl Flavor for Appended<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        if bytes.len() <= 10 {
            // A number: a call of memcpy would take longer.
            self.0.reserve(10);
            bytes.iter().for_each(|byte| self.0.push(*byte));
        } else {
            self.0.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Unwritable;

    impl Serialize for Unwritable {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("not for the world"))
        }
    }

    #[test]
    fn items_that_fail_take_no_others_along() {
        fn halve(n: u8) -> u8 {
            assert!(n % 2 == 0, "{n} is odd");
            n / 2
        }
        let mut arguments = Vec::new();
        for n in [4_u8, 5, 6] {
            push_argument(&mut arguments, &n);
        }
        // An argument that is cut short, and one that can not be serialised.
        arguments.extend_from_slice(&[0, 0, 0, 0]);
        push_argument(&mut arguments, &Unwritable);
        push_argument(&mut arguments, &8_u8);
        assert_eq!(first_items(&arguments, 2, usize::MAX), (10, 2));
        assert_eq!(first_items(&arguments, 100, usize::MAX), (arguments.len(), 6));
        assert_eq!(first_items(&arguments, 100, 6), (10, 2));
        let mut bytes = Vec::new();
        Items::call(halve, &arguments, &mut bytes);
        let mut results = Results(&bytes);
        assert_eq!(results.next::<u8>().unwrap(), 2);
        assert!(
            matches!(results.next::<u8>(), Err(TaskError::Panicked { message, .. }) if message == "5 is odd")
        );
        assert_eq!(results.next::<u8>().unwrap(), 3);
        assert!(matches!(results.next::<u8>(), Err(TaskError::Argument(text)) if text.contains("`u8`")));
        assert!(
            matches!(results.next::<u8>(), Err(TaskError::Argument(text)) if text.contains("Unwritable"))
        );
        assert_eq!(results.next::<u8>().unwrap(), 4);
        assert!(matches!(results.next::<u8>(), Err(TaskError::Result(_))), "there are no more");
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let mut arguments = Vec::new();
        push_argument(&mut arguments, &(7_u32, "seven"));
        for cut in 0..arguments.len() {
            let mut bytes = Vec::new();
            Items::call(|(n, text): (u32, String)| text.len() as u32 + n, &arguments[..cut], &mut bytes);
            assert!(bytes.is_empty(), "an item that is not whole is none");
        }
        for tag in 0..=255 {
            assert!(Results(&[1, 0, 0, 0, tag]).next::<String>().is_err());
            assert!(Results(&[0, 0, 0, 0, tag]).next::<String>().is_err());
        }
    }
}
