//! Whether a history can have come from an object that does one thing at a time.
//!
//! A history is a set of calls with a beginning and, if they returned, an end and what was seen. It is *linearizable* (M. Herlihy,
//! J. Wing, "Linearizability", 1990) if the calls can be put into one order that keeps "ended before the other began" and in which a
//! sequential object would have answered the same. The search is that of J. Wing and C. Gong (1993) with G. Lowe's memory of what was
//! tried ("Testing for linearizability", 2017): a set of calls that are done, and the state after them, is looked at once.
//!
//! A call without an end is *pending*: whoever made it is frozen or dead, and it may or may not have happened.

use std::collections::HashSet;
use std::hash::Hash;

/// A call of an operation, with the times at which it began and returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Call<O, R> {
    /// What was called.
    pub(crate) op: O,
    /// When it began.
    pub(crate) begin: u64,
    /// When it returned, and what; `None` while it is pending.
    pub(crate) end: Option<(u64, R)>,
}

/// What an object does when it does one thing at a time.
pub(crate) trait Sequential {
    /// All that later answers depend on.
    type State: Clone + Eq + Hash;
    /// What can be called.
    type Op;
    /// What can be returned.
    type Seen;

    /// The state before the first call.
    fn first(&self) -> Self::State;

    /// The state after `op` that returned `seen`, if `op` can return that in `state`; for a pending call (`None`) the state after it.
    fn next(&self, state: &Self::State, op: &Self::Op, seen: Option<&Self::Seen>) -> Option<Self::State>;
}

/// The most calls a history may have.
pub(crate) const CALLS_MAX: usize = 64;

/// True if some order of the calls explains what they returned.
///
/// # Panics
///
/// If there are more than [`CALLS_MAX`] calls.
pub(crate) fn is_linearizable<S: Sequential>(object: &S, calls: &[Call<S::Op, S::Seen>]) -> bool {
    assert!(calls.len() <= CALLS_MAX, "{} calls are too many", calls.len());
    let returned = |at: usize| calls[at].end.is_some();
    let required: u64 = (0..calls.len()).filter(|&at| returned(at)).map(|at| 1 << at).sum();
    let mut tried = HashSet::new();
    let mut open = vec![(0_u64, object.first())];
    while let Some((done, state)) = open.pop() {
        if done & required == required {
            return true;
        }
        if !tried.insert((done, state.clone())) {
            continue;
        }
        let left = |at: &usize| done >> at & 1 == 0;
        // The next one must have begun before any of those that are left had returned.
        let ends = (0..calls.len()).filter(left).filter_map(|at| calls[at].end.as_ref());
        let limit = ends.map(|(end, _)| *end).min().unwrap_or(u64::MAX);
        for at in (0..calls.len()).filter(left).filter(|&at| calls[at].begin < limit) {
            let seen = calls[at].end.as_ref().map(|(_, seen)| seen);
            if let Some(after) = object.next(&state, &calls[at].op, seen) {
                open.push((done | 1 << at, after));
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Set(u64),
        Get,
    }

    /// A register that is 0 at first.
    struct Register;

    impl Sequential for Register {
        type State = u64;
        type Op = Op;
        type Seen = u64;

        fn first(&self) -> u64 {
            0
        }

        fn next(&self, state: &u64, op: &Op, seen: Option<&u64>) -> Option<u64> {
            match op {
                Op::Set(value) => Some(*value),
                Op::Get => seen.is_none_or(|seen| seen == state).then_some(*state),
            }
        }
    }

    fn set(value: u64, begin: u64, end: u64) -> Call<Op, u64> {
        Call { op: Op::Set(value), begin, end: Some((end, 0)) }
    }

    fn get(seen: u64, begin: u64, end: u64) -> Call<Op, u64> {
        Call { op: Op::Get, begin, end: Some((end, seen)) }
    }

    fn explained(calls: &[Call<Op, u64>]) -> bool {
        is_linearizable(&Register, calls)
    }

    #[test]
    fn calls_that_overlap_may_come_in_any_order() {
        assert!(explained(&[]));
        assert!(explained(&[set(1, 0, 5), get(0, 1, 2), get(1, 3, 4)]));
        assert!(explained(&[set(1, 0, 9), set(2, 1, 8), get(1, 10, 11)]));
        assert!(explained(&[set(1, 0, 9), set(2, 1, 8), get(2, 10, 11)]));
    }

    #[test]
    fn calls_that_do_not_overlap_keep_their_order() {
        assert!(!explained(&[set(1, 0, 1), get(0, 2, 3)]), "what was written is not seen");
        assert!(!explained(&[get(1, 0, 1), set(1, 2, 3)]), "seen before it was written");
        assert!(!explained(&[set(1, 0, 9), get(1, 1, 2), get(0, 3, 4)]), "new, then old");
        assert!(!explained(&[get(7, 0, 1)]), "from nowhere");
    }

    #[test]
    fn a_pending_call_may_or_may_not_have_happened() {
        let pending = Call { op: Op::Set(1), begin: 0, end: None };
        assert!(explained(&[pending, get(0, 1, 2)]));
        assert!(explained(&[pending, get(1, 1, 2)]));
        assert!(explained(&[pending, get(0, 1, 2), get(1, 3, 4)]));
        assert!(!explained(&[pending, get(1, 1, 2), get(0, 3, 4)]), "but it does not unhappen");
        assert!(!explained(&[get(1, 0, 1), Call { begin: 2, ..pending }]), "nor before it began");
    }

    /// A queue whose push claims a place before it fills it: a completed push can be hidden behind one that is under way.
    #[test]
    fn a_push_that_is_hidden_by_another_one_is_found() {
        struct Queue;
        impl Sequential for Queue {
            type State = Vec<u64>;
            /// `Some`: push.
            type Op = Option<u64>;
            type Seen = Option<u64>;
            fn first(&self) -> Vec<u64> {
                Vec::new()
            }
            fn next(
                &self,
                state: &Vec<u64>,
                op: &Option<u64>,
                seen: Option<&Option<u64>>,
            ) -> Option<Vec<u64>> {
                let mut after = state.clone();
                let answer = match op {
                    Some(value) => {
                        after.push(*value);
                        None
                    }
                    None => (!after.is_empty()).then(|| after.remove(0)),
                };
                seen.is_none_or(|seen| *seen == answer).then_some(after)
            }
        }
        let slow = Call { op: Some(1), begin: 0, end: Some((5, None)) };
        let quick = Call { op: Some(2), begin: 1, end: Some((2, None)) };
        let empty = Call { op: None, begin: 3, end: Some((4, None)) };
        assert!(!is_linearizable(&Queue, &[slow, quick, empty]));
        assert!(is_linearizable(&Queue, &[slow, quick, Call { end: Some((4, Some(2))), ..empty }]));
    }

    #[test]
    fn what_was_tried_is_not_tried_again() {
        // All overlap, in fourteen factorial orders, and none explains the last one.
        let calls: Vec<_> =
            (0..14).map(|n| if n == 13 { get(99, 0, 100) } else { set(n % 2, 0, 100) }).collect();
        assert!(!explained(&calls));
    }
}
