//! The exchange ring on words of the heap: verdicts at every fill level, laps that wrap, wrong hints, dead lanes in every state.
//!
//! Which interleavings are possible is the business of `model/exchange.rs` and `exchange_protocol`; here the states are made by hand.
#![cfg(not(crossproc_model))]

mod member;

/// Messages in cells.
mod cells {
    const INLINE: bool = false;

    include!("exchange/ring.rs");
}

/// Messages in the slots.
#[cfg(not(miri))]
mod inline {
    const INLINE: bool = true;

    include!("exchange/ring.rs");
}
