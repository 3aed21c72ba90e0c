//! How long a call goes on with a message whose parts keep coming.

use crossproc_atomic::{Linux, Platform};
use crossproc_ring::FrameShape;
use crossproc_sync::{Wait, WaitFailure};

/// More than a ring has at a time. (Who scribbles can put more into it.)
const PARTS: u32 = 64;

/// A deadline is looked at before a sleep. A call that never sleeps, since the other end keeps pace with it, looks at it here: as soon as it
/// has had as much as was there when it began.
#[derive(Default)]
pub(super) struct Pace {
    parts: u32,
    /// Where the second part stood.
    from: u64,
}

impl Pace {
    /// After each part, with the position behind it: true if the call has had as much as was there.
    pub(super) fn is_enough(&mut self, position: u64, shape: FrameShape) -> bool {
        if self.parts == 0 {
            self.from = position;
        }
        self.parts = self.parts.saturating_add(1);
        self.parts > PARTS || position.wrapping_sub(self.from) >= shape.bytes() as u64
    }

    /// The same for one who has a deadline.
    pub(super) fn is_over(&mut self, position: u64, shape: FrameShape, wait: Wait) -> Option<WaitFailure> {
        if !self.is_enough(position, shape) {
            return None;
        }
        match wait {
            Wait::Try => Some(WaitFailure::WouldBlock),
            Wait::Until(until) => {
                until.is_some_and(|until| Linux.now() >= until).then_some(WaitFailure::TimedOut)
            }
        }
    }
}
