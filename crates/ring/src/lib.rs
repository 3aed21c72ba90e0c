//! Lock-free exchange of data between processes, on borrowed words.
//!
//! [`Latest`] is the newest value of one writer for any number of readers that never block; [`Exchange`] is a queue for any
//! number of senders and receivers. Nothing here knows where its words live or maps memory.
//!
//! Read first: `latest.rs`, then `exchange/mod.rs`.
#![no_std]
#![forbid(unsafe_code)]

mod blocks;
mod call;
mod exchange;
mod frames;
mod latest;

pub use blocks::{
    BlockConsumer, BlockProducer, BlockRing, BlockShape, BlockWords, DamagedBlocks, Role, RoleTaken, Run,
};
pub use call::{Asked, CallCell, CallWords, Ended, Party, Serving};
pub use exchange::{Exchange, ExchangeWords, Hand, Lane, NoLane, Recovery, Refusal, Shape};
pub use frames::{
    Chunk, DamagedFrames, End, Extent, FrameReader, FrameRing, FrameShape, FrameWords, FrameWriter, NoTurn,
    Presence, TooManyHolds, Watch,
};
pub use latest::{Latest, Unsteady};
