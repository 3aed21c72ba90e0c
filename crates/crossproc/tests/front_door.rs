//! What a program gets that depends on `crossproc` alone.
#![forbid(unsafe_code)]

use crossproc::prelude::*;

/// `Plain` is the trait and the macro, from one `use`.
#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[repr(C)]
struct Point {
    x: f32,
    y: f32,
}

#[test]
fn a_derived_struct_goes_through_every_kind_of_handle() {
    fn is_plain<T: Plain>() {}
    is_plain::<Point>();
    let (a, b) = (Point { x: 1.0, y: 2.0 }, Point { x: 3.0, y: 4.0 });
    assert_eq!(Value::new(a).unwrap().get(), Ok(a));
    assert_eq!(RawValue::new(a).unwrap().get(), Ok(a));
    assert_eq!(*Mutex::new(a).unwrap().lock().unwrap(), a);
    assert_eq!(*Array::from_slice(&[a, b]).unwrap().lock().unwrap(), [a, b]);
    assert_eq!(RawArray::from_slice(&[a, b]).unwrap().to_vec(), Ok(vec![a, b]));
}

fn double(n: u32) -> u32 {
    2 * n
}
crossproc::register!(double);

#[test]
fn functions_are_registered_without_naming_another_crate() {
    assert_eq!(Process::named::<u32, u32>("double", 21).unwrap().join().unwrap(), 42);
}

#[test]
fn the_two_kinds_of_error_have_names_of_their_own() {
    let memory: crossproc::Error = Segment::open("no-such-segment").unwrap_err();
    assert_eq!(memory.kind(), crossproc::ErrorKind::NotFound);
    let process: crossproc::ProcessError = Process::named::<(), ()>("no-such-function", ()).unwrap_err();
    assert_eq!(process.kind(), crossproc::ProcessErrorKind::NoSuchFunction);
    let _: crossproc::segment::Error = memory;
    let _: crossproc::process::Error = process;
}

/// What `?` does to a death that nobody handles: a sentence, with the guard let go.
#[test]
fn every_error_fits_into_a_box() {
    fn all() -> Result<(), Box<dyn std::error::Error>> {
        let lock = Lock::new()?;
        let value = Value::new(1)?;
        let numbers = Array::from_slice(&[1])?;
        let pair = Mutex::new([1, 2])?;
        drop((lock.lock()?, value.lock()?, numbers.lock()?, pair.lock()?));
        lock.acquire()?;
        lock.release()?;
        Process::spawn(double, 1)?.join()?;
        Ok(())
    }
    all().unwrap();
}

#[cfg(feature = "shared_memory")]
#[test]
fn the_feature_reaches_the_crate_that_has_it() {
    let _ = Segment::from_shmem;
}
