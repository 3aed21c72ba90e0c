//! Who takes part, and how everything but the lock sleeps, as explicit-state models: every interleaving of
//! single shared accesses, with deaths and stops at each of them.
//!
//! # The participant table (`table.rs`)
//!
//! ```text
//! come    claim 0 -> mine; me = ++generation; token = 0; sealed = mine; token = mine; changes += 1, wake
//! go      ++generation; changes += 1; sealed = 0; claim = 0; changes += 1, wake. The token stays as it is
//! bury    L = claim; prove L dead; g = generation; claim still L?; CAS generation g -> g + 1; changes += 1;
//!         CAS claim L -> 0. Anybody, any number at once; what a failed CAS was for, another has done
//! prove   the record lock of L is held: alive. g = generation; sealed == L; token marked; generation still
//!         g: dead. Otherwise what the pidfd says
//! dead?   the generation is another, or claim names a proven dead life (and does so still)
//! ```
//!
//! `changes` is one word of the table. Checked: nobody who lives is taken for dead, or loses its slot; whoever is
//! proven dead or has left is dead to all who ask from then on; no identity is used twice; each departure is
//! counted in `changes` before its slot is free; whoever needs a slot gets that of a dead one.
//!
//! Beyond the protocol: one that exec replaces while it comes or goes, when it has no token, keeps its slot
//! until its pid ends. One that lost its record lock (somebody closed all descriptors) and is killed may be
//! taken for dead when its token is marked, while other threads of it still end: the model ends them together.
//!
//! # Sleeping among peers (`peers.rs`)
//!
//! ```text
//! until attempt:  k = seq; c = changes; announce in `waiters`; until attempt again:
//!                 list the others' tokens; if one is marked: wake all who sleep on it; bury it if its death
//!                     is proven, else wait for the proof a little; start over
//!                 sleep on [seq == k, changes == c, tokens as listed]
//!                 wake all who sleep on a listed token that has changed; start over
//! notify:         o = waiters; flag set? seq += 1; wake all, or n; nobody slept? CAS waiters o -> o without flag
//! ```
//!
//! `attempt` is that of a binary semaphore (free, or taken by a dead one) or of an event (set, or peers have
//! gone and none is left). A condition variable listens before it unlocks, and returns for any notification
//! or death. It asks for proofs of whom it has reason to suspect; when a slice has ended, of everybody listed.
//!
//! The kernel at a death: the token is marked and *one* of its sleepers is woken; other threads of the dying may
//! run on, and those asleep still be reached by wake-ups; only when all have ended comes the proof. Whoever was
//! woken stays on the queues of its other words until it runs. (Going to sleep is one step: the kernel queues
//! word by word, but who is reached meanwhile does not sleep.)
//!
//! Checked: when nothing happens any more, and no sleep ends by itself, nobody sleeps whose attempt would succeed,
//! or who is owed a return by a notification or a death; and from every state everybody can finish. That needs the slice
//! (a sleep ends) for the [`Stranding`](explore::Stranding)s only: a waker, the one whom the kernel woke for a
//! death, or one just notified is *stopped*; or the kernel does not mark a token. With a peer that has no token,
//! slices are short. No bug, the model says: waking the others only for listed tokens that are *marked* (whoever
//! took the slot since has bumped `changes`).
//!
//! Memory is sequentially consistent here; a read that changes nothing and whose result stands may share a step with
//! its neighbour. `TRACE=1` prints how each stranding, and each planted bug, comes about.
#![cfg(not(crossproc_model))]
#![forbid(unsafe_code)]

#[macro_use]
mod explore;
mod peers;
mod table;
