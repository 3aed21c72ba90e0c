//! Who takes part, in tests that neither sleep nor have processes.

use crossproc_atomic::{
    AtomicU32, AtomicU64, Deadline, Liveness, Ordering::Relaxed, Owner, Pending, Platform,
};

/// One of 64 participants, of whom each is dead whose bit is set.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    pub dead: &'a AtomicU64,
    pub number: u16,
}

impl Platform for Member<'_> {
    fn tid(&self) -> u32 {
        u32::from(self.number) + 1
    }
    fn announce(&self, _: &AtomicU32) -> Pending {
        Pending { before: 0, now: 0 }
    }
    fn retract(&self, _: Pending) {}
    fn hold_announced(&self, _: &AtomicU32) {}
    fn hold(&self, _: &AtomicU32) {}
    fn keep(&self, _: &AtomicU32) {}
    fn unhold(&self, _: &AtomicU32) {}
    fn wait(&self, _: &AtomicU32, _: u32, _: &[(&AtomicU32, u32)], _: Option<Deadline>) {
        panic!("the ring does not sleep");
    }
    fn wake(&self, _: &AtomicU32, _: u32) -> u32 {
        0
    }
    fn now(&self) -> Deadline {
        Deadline(0)
    }
    fn thread_exists(&self, _: u32) -> bool {
        true
    }
    fn spins(&self) -> u32 {
        0
    }
}

impl Liveness for Member<'_> {
    fn me(&self) -> Owner {
        Owner::new(self.number, 1).expect("an identity")
    }
    fn is_dead(&self, owner: Owner) -> bool {
        self.dead.load(Relaxed) >> (owner.slot() & 63) & 1 != 0
    }
    fn token(&self, _: Owner) -> Option<(&AtomicU32, u32)> {
        None
    }
    fn await_proof(&self, _: Owner, _: Option<Deadline>) {}
    fn comings(&self) -> u32 {
        0
    }
    fn wait_among_peers(&self, _: &AtomicU32, _: u32, _: u32, _: Option<Deadline>) {
        panic!("the ring does not sleep");
    }
    fn is_alone(&self) -> bool {
        false
    }
}
