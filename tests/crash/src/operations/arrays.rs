//! `Array` and `RawArray`: whole changes, unless somebody is said to have died.

use crossproc_primitives::{AccessError, Array, Guard, LockError, Objects, RawArray};
use crossproc_segment::Segment;

use crate::scene::{After, Found, Operation, PATIENCE, corrupt, done, expect, lost, on, wedged};
use crate::step::marked;

const OLD: [u32; 4] = [1, 2, 3, 4];

/// The elements after an operation that turns [`OLD`] into `new`; the first survivor's recovery is a `fill(9)`.
fn check(array: &Array<u32>, after: After, new: [u32; 4]) -> Found {
    let filled = [9; 4];
    let mut whole = Vec::new();
    // A recovery that returned has filled it, or was told of a death; then so is this one.
    if after.second != Some(true) {
        whole.extend((!after.returned).then_some(OLD));
        whole.extend(after.begun.then_some(new));
    }
    whole.extend(after.second.map(|_| filled));
    match array.lock_timeout(PATIENCE) {
        Ok(elements) => {
            let found = [elements[0], elements[1], elements[2], elements[3]];
            if after.returned && after.second.is_none() && found == OLD && new != OLD {
                return lost(format!("{found:?} after it had returned"));
            }
            expect(whole.contains(&found), || format!("{found:?}, and nobody was said to have died"))?;
        }
        Err(LockError::OwnerDied(mut elements)) => {
            let by_whom = |at: usize| [OLD[at], new[at], filled[at]].contains(&elements[at]);
            expect((0..4).all(by_whom), || format!("{:?} has elements that nobody wrote", &*elements))?;
            expect(after.second.is_some() || after.begun && !after.returned, || {
                "nobody died with the lock, and the next one was told so".to_owned()
            })?;
            elements.copy_from_slice(&OLD);
            elements.mark_consistent();
        }
        Err(LockError::TimedOut) => return wedged("the array's lock can not be had"),
        Err(other) => return corrupt(format!("locking: {other:?}")),
    }
    expect(array.set(0, 7).is_ok() && array.get(0) == Ok(7), || "an element can not be set".to_owned())?;
    expect(array.fill(8).is_ok() && array.to_vec() == Ok(vec![8; 4]), || "it can not be filled".to_owned())
}

pub fn add(table: &mut Vec<Operation>) {
    let find = |segment: &Segment| segment.array("a", &OLD).expect("an array");
    let mut push = |name, new: [u32; 4], victim: fn(&Array<u32>)| {
        table.push(
            on(find)
                .victim(victim)
                .recover(|a| done(marked(|| a.fill(9))))
                .check(move |a, after| check(a, after, new))
                .named(name, ""),
        );
    };
    push("Array::get", OLD, |a| done(marked(|| a.get(1))));
    push("Array::slice", OLD, |a| done(marked(|| a.slice(1..3))));
    push("Array::to_vec", OLD, |a| done(marked(|| a.to_vec())));
    push("Array::iter", OLD, |a| done(marked(|| a.iter())));
    push("Array::set", [1, 20, 3, 4], |a| done(marked(|| a.set(1, 20))));
    push("Array::update", [1, 2, 30, 4], |a| done(marked(|| a.update(2, |n| n * 10))));
    push("Array::set_slice", [1, 20, 30, 4], |a| done(marked(|| a.set_slice(1, &[20, 30]))));
    push("Array::fill", [5; 4], |a| done(marked(|| a.fill(5))));

    // After a death every use is an error until somebody repairs.
    table.push(
        on(find)
            .dead(|a| std::mem::forget(a.lock()))
            .victim(|a| done(marked(|| a.set(1, 20))))
            .recover(|a| done(marked(|| a.fill(9))))
            .check(|a, _| {
                expect(a.get(0) == Err(AccessError::OwnerDied), || "a death is forgotten".to_owned())?;
                match a.lock_timeout(PATIENCE) {
                    Err(LockError::OwnerDied(mut elements)) => {
                        expect(*elements == OLD, || format!("{:?}: an error changed something", &*elements))?;
                        elements.mark_consistent();
                    }
                    Err(LockError::TimedOut) => return wedged("the array's lock can not be had"),
                    other => return corrupt(format!("locking: {:?}", other.is_ok())),
                }
                expect(a.set(0, 7).is_ok() && a.get(0) == Ok(7), || "an element can not be set".to_owned())
            })
            .named("Array::set", "a holder is dead"),
    );
    raw(table);
}

fn raw(table: &mut Vec<Operation>) {
    let find = |segment: &Segment| segment.raw_array("a", &OLD).expect("an array");
    let mut push = |name, victim: fn(&RawArray<u32>)| {
        table.push(
            on(find)
                .victim(victim)
                .recover(|a| done(marked(|| a.fetch_add(1, 100))))
                .check(|a, after| {
                    let Ok(found) = a.to_vec() else { return corrupt("it can not be read") };
                    let base = found[1] % 100;
                    expect([found[0], found[2], found[3]] == [1, 3, 4] && [2, 20].contains(&base), || {
                        format!("{found:?}")
                    })?;
                    if base == 2 && after.returned || found[1] < 100 && after.second == Some(true) {
                        return lost(format!("{found:?}"));
                    }
                    expect(base == 2 || after.begun, || format!("{found:?} before it began"))?;
                    expect(found[1] < 100 || after.second.is_some(), || format!("{found:?}"))?;
                    expect(a.set(0, 7).is_ok() && a.get(0) == Ok(7), || {
                        "an element can not be set".to_owned()
                    })
                })
                .named(name, ""),
        );
    };
    push("RawArray::set", |a| done(marked(|| a.set(1, 20))));
    push("RawArray::fetch_add", |a| done(marked(|| a.fetch_add(1, 18))));
    push("RawArray::compare_exchange", |a| done(marked(|| a.compare_exchange(1, 2, 20))));
}
