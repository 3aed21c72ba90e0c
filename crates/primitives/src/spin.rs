//! How long a queue's handle looks again and again before it sleeps.

use std::cell::Cell;
use std::time::Duration;

use crossproc_atomic::{is_spinning, pause};

/// How long to look at the ring again and again before asking to be woken.
///
/// Being woken takes tens of microseconds, which the other side waits for in its turn: so two that both sleep never find out that neither
/// need. Hence a sleep that was short makes the next looks longer. If even the longest do not help (the other one needs this very
/// CPU), or if sleeps are long, the looks are short for a while.
#[derive(Debug)]
pub(crate) struct Spin {
    looks: Cell<u32>,
    /// So many sleeps do not make it longer.
    calm: Cell<u32>,
}

impl Spin {
    /// A few microseconds: what it costs to fall asleep.
    const MIN: u32 = 512;
    const MAX: u32 = 4096;
    /// So many looks follow each other at once; then there is a pause before each.
    const HOT: u32 = 256;
    /// About as long as the most looks take.
    const SHORT: Duration = Duration::from_micros(100);
    const CALM: u32 = 256;

    pub(crate) fn new() -> Self {
        Self { looks: Cell::new(Self::MIN), calm: Cell::new(0) }
    }

    /// True as soon as `look` is.
    #[inline]
    pub(crate) fn spin(&self, mut look: impl FnMut() -> bool) -> bool {
        let looks = if is_spinning() { self.looks.get() } else { 0 };
        (0..looks).any(|n| {
            if n >= Self::HOT {
                pause();
            }
            look()
        })
    }

    /// What the looks did not bring came after `slept`.
    pub(crate) fn slept(&self, slept: Duration) {
        let (looks, calm) = (self.looks.get(), self.calm.get());
        if slept >= Self::SHORT {
            self.looks.set((looks / 2).max(Self::MIN));
        } else if calm > 0 {
            self.calm.set(calm - 1);
        } else if looks < Self::MAX {
            self.looks.set(looks * 2);
        } else {
            self.looks.set(Self::MIN);
            self.calm.set(Self::CALM);
        }
    }
}
