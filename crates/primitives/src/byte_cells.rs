#![allow(unsafe_code)]
//! The room where messages of any size enter and leave shared memory.
//!
//! ```text
//!  a cell
//!    0  length       of the message << 1 | 1 if it is in the cell's window
//!    8  pages        that are certain to be there (low half), that may be there (high half)
//!   16  the message, if it is short enough
//! ```
//!
//! Each cell has a *window* of its own, at its number times the size of a window: memory of the segment whose pages come and go
//! (`SegmentOptions::windows`). A longer message is there, from the window's first byte on.
//!
//! All of this is written by who has the cell in a hand, and goes with the cell from hand to hand: no word of it needs more than the
//! exchange of the cell. `pages` is what makes a death harmless: *may* is raised before pages are asked for, and *certain* after;
//! *certain* is lowered before they are given back, and *may* after. *Spare* cells have no more than the pages that are kept, but for:
//!
//! | killed                                     | left                                     | given back by                          |
//! |--------------------------------------------|------------------------------------------|----------------------------------------|
//! | asking for pages, or writing in the window | a spare cell with pages, in its hand     | who claims the lane next               |
//! | with a message in its hand                 | the message, whole                       | who receives it again                  |
//! | after the message, giving its pages back   | a spare cell with pages, in its hand     | who claims the lane next               |
//! | giving the pages of another dead one back  | the same                                 | who claims the lane next               |
//!
//! Until somebody claims that lane the pages stay: at most those of one lane's hands for each dead process that had no successor.
//! A message's pages are given back only when its hand says that it was received (`Exchange::release`): until then it could be
//! received again.
//!
//! Claims, and who keeps them:
//! * `words` is a placed run of `count` whole cells, `windows` one of as many windows; a hand's cell is compared with `count`.
//! * Lengths come from other processes: they are copied once, into a [`Body`], and compared with this handle's own sizes, here and once
//!   more where a slice is made of them.
//! * While a [`Hand`] is in use, its cell and that cell's window are nobody else's: the ring's promise (`crossproc-ring`, `exchange`).
//!   Whoever reads or writes them here borrows the hand.
//! * Not claimed: the *bytes* against a peer that writes where it should not; they have no invalid values. Nor that the pages of a window
//!   are there: if a peer says so and it is not true, touching them makes the kernel find some.

use crossproc_atomic::{AtomicU8, AtomicU64, Ordering};
use crossproc_ring::Hand;
use crossproc_segment::{ErrorKind, PlacedSlice, Segment};

use crate::slab::prefetch;
use crate::transfer::Unfit;

/// What windows count in.
pub(crate) const PAGE: usize = 4096;
/// Bytes of a cell in front of the message.
const HEAD: usize = 16;
/// Pages of a window at the most: they are counted in half a word.
const PAGES_MAX: usize = 1 << 31;

/// How large cells and windows are: the same in all processes, and private to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CellSizes {
    stride: usize,
    window: usize,
    kept: usize,
}

impl CellSizes {
    /// Cells with room for `inline` bytes at least, and windows for `most`, of which spare cells keep `kept`; `None` if they can not be
    /// that large.
    pub(crate) fn for_messages(inline: usize, most: usize, kept: usize) -> Option<Self> {
        let stride = inline.checked_add(HEAD)?.checked_next_multiple_of(64)?;
        let window = if most > stride - HEAD { most.checked_next_multiple_of(PAGE)? } else { 0 };
        let kept = kept.min(window).next_multiple_of(PAGE);
        Self::new(stride as u64, window as u64, kept as u64)
    }

    /// As another process says.
    pub(crate) fn new(stride: u64, window: u64, kept: u64) -> Option<Self> {
        let (stride, window) = (usize::try_from(stride).ok()?, usize::try_from(window).ok()?);
        let kept = usize::try_from(kept).ok()?;
        let possible = stride % 64 == 0
            && (64..=isize::MAX as usize).contains(&stride)
            && window % PAGE == 0
            && window / PAGE < PAGES_MAX
            && kept % PAGE == 0
            && kept <= window;
        possible.then_some(Self { stride, window, kept })
    }

    /// From cell to cell, in bytes.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Bytes of a window.
    pub(crate) fn window(&self) -> usize {
        self.window
    }

    /// Bytes of a spare cell's window that stay, so that the next message finds them there.
    pub(crate) fn kept(&self) -> usize {
        self.kept
    }

    /// Bytes of a message that needs no window.
    pub(crate) fn inline(&self) -> usize {
        self.stride - HEAD
    }

    /// Bytes of a message at the most.
    pub(crate) fn most(&self) -> usize {
        self.inline().max(self.window)
    }
}

/// How long a message is and where it lies, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Body {
    len: usize,
    in_window: bool,
}

impl Body {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn word(self) -> u64 {
        (self.len as u64) << 1 | u64::from(self.in_window)
    }
}

/// Pages of a window, counted from its start.
#[derive(Clone, Copy)]
struct Pages {
    certain: usize,
    may: usize,
}

/// The cells of a queue.
#[derive(Clone)]
pub(crate) struct ByteCells {
    words: PlacedSlice<AtomicU64>,
    windows: PlacedSlice<AtomicU8>,
    count: usize,
    sizes: CellSizes,
    segment: Segment,
    /// Bytes from the start of the segment.
    windows_at: u64,
}

impl ByteCells {
    /// So many cells as `words` has room for, with their windows.
    pub(crate) fn new(
        words: PlacedSlice<AtomicU64>,
        windows: PlacedSlice<AtomicU8>,
        sizes: CellSizes,
        segment: Segment,
        windows_at: u64,
    ) -> Self {
        let count = words.len() * 8 / sizes.stride;
        assert_eq!(windows.len(), count * sizes.window, "a window for each cell");
        Self { words, windows, count, sizes, segment, windows_at }
    }

    pub(crate) fn sizes(&self) -> CellSizes {
        self.sizes
    }

    fn first_word(&self, cell: u32) -> usize {
        let cell = cell as usize;
        assert!(cell < self.count, "the ring has as many cells");
        cell * (self.sizes.stride / 8)
    }

    fn length(&self, cell: u32) -> &AtomicU64 {
        &self.words[self.first_word(cell)]
    }

    fn pages_word(&self, cell: u32) -> &AtomicU64 {
        &self.words[self.first_word(cell) + 1]
    }

    /// As the cell says; never more than a window has.
    fn pages(&self, cell: u32) -> Pages {
        let word = self.pages_word(cell).load(Ordering::Relaxed);
        let most = self.sizes.window / PAGE;
        let certain = (word as u32 as usize).min(most);
        Pages { certain, may: ((word >> 32) as usize).clamp(certain, most) }
    }

    /// Release, so that it stays in front of the call or behind it.
    fn store_pages(&self, cell: u32, Pages { certain, may }: Pages) {
        self.pages_word(cell).store(certain as u64 | (may as u64) << 32, Ordering::Release);
    }

    /// Where page `page` of the cell's window begins, from the start of the segment.
    fn page_at(&self, cell: u32, page: usize) -> u64 {
        self.windows_at + cell as u64 * self.sizes.window as u64 + (page * PAGE) as u64
    }

    /// Makes room for a message of `len` bytes, whose content is arbitrary.
    pub(crate) fn prepare(&self, hand: &mut Hand, len: usize) -> Result<Body, Unfit> {
        if len > self.sizes.most() {
            return Err(Unfit::TooLong { most: self.sizes.most() });
        }
        let body = Body { len, in_window: len > self.sizes.inline() };
        if body.in_window {
            self.want_pages(hand.cell(), len.div_ceil(PAGE)).map_err(Unfit::NoMemory)?;
        }
        self.length(hand.cell()).store(body.word(), Ordering::Relaxed);
        Ok(body)
    }

    /// Writes a message that needs no window.
    #[inline]
    pub(crate) fn write_inline(&self, hand: &mut Hand, message: &[u8]) {
        let body = Body { len: message.len(), in_window: false };
        self.length(hand.cell()).store(body.word(), Ordering::Relaxed);
        self.get_mut(hand, body).copy_from_slice(message);
    }

    fn want_pages(&self, cell: u32, wanted: usize) -> Result<(), ErrorKind> {
        let Pages { certain, may } = self.pages(cell);
        if wanted <= certain {
            return Ok(());
        }
        let may = may.max(wanted);
        self.store_pages(cell, Pages { certain, may });
        let len = ((wanted - certain) * PAGE) as u64;
        self.segment.allocate_window(self.page_at(cell, certain), len).map_err(|e| e.kind())?;
        self.store_pages(cell, Pages { certain: wanted, may });
        Ok(())
    }

    /// Makes a message that was prepared shorter.
    pub(crate) fn shorten(&self, hand: &mut Hand, body: &mut Body, len: usize) {
        body.len = body.len.min(len);
        self.length(hand.cell()).store(body.word(), Ordering::Relaxed);
    }

    /// The message that was received with the cell; `None` if what the cell says can not be.
    pub(crate) fn received(&self, hand: &Hand) -> Option<Body> {
        self.body(hand.cell())
    }

    fn body(&self, cell: u32) -> Option<Body> {
        let word = self.length(cell).load(Ordering::Relaxed);
        let body = Body { len: usize::try_from(word >> 1).ok()?, in_window: word & 1 != 0 };
        let most = if body.in_window { self.pages(cell).certain * PAGE } else { self.sizes.inline() };
        (body.len <= most).then_some(body)
    }

    /// Gives back the pages of a spare cell that are not kept. The cell is in a hand of the caller's lane.
    pub(crate) fn trim(&self, cell: u32) {
        let Pages { certain, may } = self.pages(cell);
        if may * PAGE > self.sizes.kept {
            self.give_back(cell, Pages { certain, may });
        }
    }

    #[cold]
    fn give_back(&self, cell: u32, before: Pages) {
        let kept = self.sizes.kept / PAGE;
        let certain = before.certain.min(kept);
        // So that the words do not speak of a message that is not there.
        self.length(cell).store(0, Ordering::Relaxed);
        self.store_pages(cell, Pages { certain, ..before });
        let len = ((before.may - kept) * PAGE) as u64;
        match self.segment.release_window(self.page_at(cell, kept), len) {
            Ok(()) => self.store_pages(cell, Pages { certain, may: kept }),
            // Not in this segment: the pages stay, for the next message.
            Err(e) if matches!(e.kind(), ErrorKind::Denied | ErrorKind::Unsupported) => {
                self.store_pages(cell, before);
            }
            Err(_) => {}
        }
    }

    /// What is wrong with the words of the cells, if anything.
    pub(crate) fn audit(&self) -> Result<(), &'static str> {
        for cell in 0..self.count as u32 {
            let word = self.pages_word(cell).load(Ordering::Relaxed);
            let (certain, may) = (word as u32 as usize, (word >> 32) as usize);
            if certain > may || may > self.sizes.window / PAGE {
                return Err("a cell speaks of pages that it can not have");
            }
            if self.body(cell).is_none() {
                return Err("a message is longer than its cell and the pages of its window");
            }
        }
        Ok(())
    }

    fn start(&self, hand: &Hand, body: Body) -> *mut u8 {
        let cell = hand.cell() as usize;
        let (base, at, most) = if body.in_window {
            let base = self.windows.as_ptr().cast_mut().cast::<u8>();
            (base, cell * self.sizes.window, self.sizes.window)
        } else {
            let base = self.words.as_ptr().cast_mut().cast::<u8>();
            (base, cell * self.sizes.stride + HEAD, self.sizes.inline())
        };
        assert!(cell < self.count && body.len <= most, "checked when it was received or prepared");
        base.wrapping_add(at)
    }

    pub(crate) fn get<'a>(&'a self, hand: &'a Hand, body: Body) -> &'a [u8] {
        // SAFETY: `len` bytes from there on are inside of the cell or its window, as `start` has compared; nobody changes them while the
        // hand is borrowed.
        unsafe { std::slice::from_raw_parts(self.start(hand, body), body.len) }
    }

    pub(crate) fn get_mut<'a>(&'a self, hand: &'a mut Hand, body: Body) -> &'a mut [u8] {
        // SAFETY: as above, and the hand is borrowed exclusively; the atomics allow writing through `&self`.
        unsafe { std::slice::from_raw_parts_mut(self.start(hand, body), body.len) }
    }

    /// Tells the CPU that the cell is going to be written. It need not exist.
    #[inline]
    pub(crate) fn expect_write(&self, cell: u32) {
        prefetch::<[u8; 256], true>(self.near(cell));
    }

    /// Tells the CPU that the cell is going to be read. It need not exist.
    #[inline]
    pub(crate) fn expect_read(&self, cell: u32) {
        prefetch::<[u8; 256], false>(self.near(cell));
    }

    fn near(&self, cell: u32) -> *const [u8; 256] {
        self.words.as_ptr().cast::<u8>().wrapping_add((cell as usize).wrapping_mul(self.sizes.stride)).cast()
    }
}
