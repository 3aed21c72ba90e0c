//! The segments that this process is attached to: each is mapped and joined once, however often it is opened.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::error::Error;
use crate::per_process::PerProcess;
use crate::segment::Core;

/// What makes two segments the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// The inode, and how it is mapped. While we have a descriptor of it, no other file gets its number.
    File { device: u64, inode: u64, writable: bool },
    /// The address of adopted memory.
    Memory(usize),
}

type Table = Mutex<HashMap<Key, Weak<Core>>>;

/// A forked child begins with an empty table: what it inherited belongs to its parent's participants.
static REGISTRY: PerProcess<Table> = PerProcess::new();

/// The living segment with this key, or the one that `make` makes. Two threads never make one each.
pub(crate) fn find_or_make(key: Key, make: impl FnOnce() -> Result<Core, Error>) -> Result<Arc<Core>, Error> {
    let mut table = REGISTRY.get().lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(core) = table.get(&key).and_then(Weak::upgrade) {
        return Ok(core);
    }
    let core = Arc::new(make()?);
    table.insert(key, Arc::downgrade(&core));
    Ok(core)
}

/// True if this process is attached to the segment with this key.
pub(crate) fn has(key: Key) -> bool {
    let table = REGISTRY.get().lock().unwrap_or_else(PoisonError::into_inner);
    table.get(&key).is_some_and(|core| core.strong_count() > 0)
}

/// Forgets a segment that is being dropped, unless another one has taken its place.
pub(crate) fn forget(key: Key, core: *const Core) {
    let mut table = REGISTRY.get().lock().unwrap_or_else(PoisonError::into_inner);
    if table.get(&key).is_some_and(|known| std::ptr::eq(known.as_ptr(), core)) {
        table.remove(&key);
    }
}
