//! What all handles are: words placed in a segment, and where to find them again.

use std::sync::Arc;

use crossproc_atomic::{AtomicU8, Shared};
use crossproc_segment::plain::{Layout, Plain};
use crossproc_segment::{
    Error, ErrorKind, Mapping, Object, ObjectKind, ObjectSpec, Participants, Placed, PlacedSlice, Segment,
    SegmentOptions, Span,
};

/// An object in a segment, whose first words are `W`.
pub(crate) struct Handle<W: Shared> {
    pub(crate) words: Placed<W>,
    segment: Segment,
    object: Object,
}

/// What an object of type `T` with room for `bytes` is.
pub(crate) const fn spec<T: Plain>(kind: ObjectKind, count: u64, bytes: u64) -> ObjectSpec {
    spec_of(kind, T::LAYOUT, count, bytes)
}

pub(crate) const fn spec_of(kind: ObjectKind, layout: &'static Layout, count: u64, bytes: u64) -> ObjectSpec {
    ObjectSpec { kind, layout, count, bytes, align: 64, windows: 0 }
}

/// Participants that the segment of an object alone has room for.
pub(crate) const SLOTS_ALONE: usize = 128;

/// What an object is that has `head` bytes of words, and behind them one `W` for each participant of its segment.
pub(crate) fn spec_with_cells<W: Shared>(kind: ObjectKind, head: u64, slots: usize) -> ObjectSpec {
    let slots = slots as u64;
    spec::<()>(kind, slots, head + slots * size_of::<W>() as u64)
}

/// An object that is being made and that nobody else can find yet: all zero.
pub(crate) struct Fresh<'a> {
    mapping: &'a Arc<Mapping>,
    offset: u64,
}

impl Fresh<'_> {
    pub(crate) fn place<U: Shared>(&self, at: u64) -> Placed<U> {
        self.mapping.place(self.offset + at).expect("the object was made large enough for it")
    }

    pub(crate) fn place_slice<U: Shared>(&self, at: u64, count: u64) -> PlacedSlice<U> {
        let span = Span { offset: self.offset + at, count };
        self.mapping.place_slice(span).expect("the object was made large enough for it")
    }
}

impl<W: Shared> Handle<W> {
    /// The object alone, in an anonymous segment.
    pub(crate) fn anonymous(spec: &ObjectSpec, first: impl FnOnce(&Fresh<'_>)) -> Result<Self, Error> {
        let len = usize::try_from(spec.bytes).map_err(|_| {
            Error::new(
                ErrorKind::TooLarge,
                format!("{} bytes are more than this machine can address", spec.bytes),
            )
        })?;
        let options = SegmentOptions::new().objects(1).participants(SLOTS_ALONE as u32).windows(spec.windows);
        let segment = options.anonymous(len)?;
        let object =
            segment.create_object("it", spec, |mapping, offset| first(&Fresh { mapping, offset }))?;
        Self::of(segment, object)
    }

    /// The object of this name, made if there is none.
    pub(crate) fn named(
        segment: &Segment,
        name: &str,
        spec: &ObjectSpec,
        first: impl FnOnce(&Fresh<'_>),
    ) -> Result<Self, Error> {
        let first = |mapping: &Arc<Mapping>, offset| first(&Fresh { mapping, offset });
        // Who may only read can open.
        let object = if segment.is_read_only() {
            segment.open_object(name, spec)?
        } else {
            segment.open_or_create_object(name, spec, first)?
        };
        Self::of(segment.clone(), object)
    }

    /// The object that another process handed over.
    pub(crate) fn attach(segment: Segment, index: u32, spec: &ObjectSpec) -> Result<Self, Error> {
        let object = segment.object_at(index, spec)?;
        Self::of(segment, object)
    }

    fn of(segment: Segment, object: Object) -> Result<Self, Error> {
        let words = segment.mapping().place_for_reading(object.offset)?;
        Ok(Self { words, segment, object })
    }

    /// What lies `at` bytes into the object.
    pub(crate) fn place<U: Shared>(&self, at: u64) -> Result<Placed<U>, Error> {
        self.within(at, size_of::<U>() as u64)?;
        self.segment.mapping().place_for_reading(self.object.offset + at)
    }

    pub(crate) fn place_slice<U: Shared>(&self, at: u64, count: u64) -> Result<PlacedSlice<U>, Error> {
        self.within(at, count.saturating_mul(size_of::<U>() as u64))?;
        self.segment.mapping().place_slice_for_reading(Span { offset: self.object.offset + at, count })
    }

    /// The first so many bytes of the object's windows, and where they begin in the segment.
    pub(crate) fn windows(&self, bytes: u64) -> Result<(PlacedSlice<AtomicU8>, u64), Error> {
        let Object { windows_at, windows, .. } = self.object;
        if bytes > windows {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("{bytes} bytes of windows are more than the {windows} that the object has"),
            ));
        }
        let span = Span { offset: windows_at, count: bytes };
        Ok((self.segment.mapping().place_slice_for_reading(span)?, windows_at))
    }

    /// One `W` for each participant of the segment, from `at` on.
    pub(crate) fn cells<C: Shared>(&self, at: u64) -> Result<PlacedSlice<C>, Error> {
        self.place_slice(at, self.segment.participant_slots() as u64)
    }

    /// Lengths come from the directory, which a peer can have written over.
    fn within(&self, at: u64, bytes: u64) -> Result<(), Error> {
        if at.checked_add(bytes).is_some_and(|end| end <= self.object.bytes) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Damaged,
            format!("{bytes} bytes at {at} are more than the object's {} bytes", self.object.bytes),
        ))
    }

    /// How many values its creator asked for.
    pub(crate) fn count(&self) -> u64 {
        self.object.count
    }

    /// This process's place in the segment; `None` in a forked child, or if attached for reading only.
    #[inline]
    pub(crate) fn live(&self) -> Option<&Participants> {
        self.segment.participants().ok()
    }

    pub(crate) fn segment(&self) -> &Segment {
        &self.segment
    }

    pub(crate) fn index(&self) -> u32 {
        self.object.index
    }

    /// True if both are the same object.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(&*self.words, &*other.words)
    }
}

impl<W: Shared> Clone for Handle<W> {
    fn clone(&self) -> Self {
        Self { words: self.words.clone(), segment: self.segment.clone(), object: self.object }
    }
}

/// Handles travel as their segment and the number of their entry; the receiver checks kind and type again.
macro_rules! handle_serde {
    ($name:ident $(<$param:ident $(: $bound:path $(, $any:path)?)?>)?) => {
        impl $(<$param $(: $bound $(+ $any)?)?>)? serde::Serialize for $name $(<$param>)? {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let handle = self.handle();
                serde::Serialize::serialize(&(handle.segment(), handle.index()), serializer)
            }
        }

        impl<'de $(, $param $(: $bound $(+ $any)?)?)?> serde::Deserialize<'de> for $name $(<$param>)? {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let (segment, index) = serde::Deserialize::deserialize(deserializer)?;
                Self::attach(segment, index).map_err(crossproc_segment::handover::de_error)
            }
        }
    };
}
pub(crate) use handle_serde;
