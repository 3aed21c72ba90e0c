//! Handles travel: as arguments of a child, and back in its result.

use crossproc_derive::Plain;
use crossproc_primitives::{Array, Lock, Mutex, Objects, RLock, RawArray, RawValue, Value};
use crossproc_segment::Segment;
use crossproc_tests::{child, isolated, join};
use serde::{Deserialize, Serialize};

use crate::lock::said;

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment)]
#[repr(C)]
struct Order {
    id: u64,
    price: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment)]
#[repr(u8)]
enum Side {
    Buy,
    Sell,
}

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment)]
#[plain(checked)]
#[repr(C)]
struct Checked {
    letter: char,
    side: Side,
    sides: [Side; 2],
    yes: bool,
}

const CHECKED: Checked =
    Checked { letter: 'ß', side: Side::Sell, sides: [Side::Sell, Side::Buy], yes: true };

#[derive(Serialize, Deserialize)]
struct All {
    segment: Segment,
    lock: Lock,
    rlock: RLock,
    mutex: Mutex<Order>,
    order: Value<Order>,
    checked: Value<Checked>,
    small: Value<i16>,
    raw: RawValue<Order>,
    array: Array<Checked>,
    raw_array: RawArray<u32>,
}

impl All {
    fn change(&self) {
        assert_eq!(said(&self.lock.lock()), "Ok");
        assert_eq!(said(&self.rlock.lock()), "Ok");
        let mut order = self.mutex.lock().unwrap();
        order.id += 1;
        order.price *= 2.0;
        self.order.update(|order| Order { id: order.id + 1, ..order }).unwrap();
        self.checked.set(Checked { letter: 'x', ..CHECKED }).unwrap();
        self.small.fetch_sub(1);
        self.raw.set(Order { id: 3, price: 0.5 }).unwrap();
        self.array.set(2, Checked { yes: false, ..CHECKED }).unwrap();
        self.raw_array.fetch_add(1, 5).unwrap();
        self.segment.value("made in the child", 77_u64).unwrap();
    }

    fn check_changed(&self) {
        assert_eq!(said(&self.lock.try_lock()), "Ok");
        assert_eq!(said(&self.rlock.try_lock()), "Ok");
        assert_eq!(*self.mutex.lock().unwrap(), Order { id: 2, price: 3.0 });
        assert_eq!(self.order.get(), Ok(Order { id: 2, price: 1.5 }));
        assert_eq!(self.checked.get(), Ok(Checked { letter: 'x', ..CHECKED }));
        assert_eq!(self.small.get(), Ok(-1));
        assert_eq!(self.raw.get(), Ok(Order { id: 3, price: 0.5 }));
        assert_eq!(self.array.get(1), Ok(CHECKED));
        assert_eq!(self.array.get(2), Ok(Checked { yes: false, ..CHECKED }));
        assert_eq!(self.raw_array.to_vec(), Ok(vec![1, 7, 3]));
        assert_eq!(self.segment.value("made in the child", 0_u64).unwrap().get(), Ok(77));
    }
}

const ORDER: Order = Order { id: 1, price: 1.5 };

#[test]
fn handles_of_all_kinds_go_to_a_child_and_back() {
    let all = All {
        segment: Segment::anonymous(8192).unwrap(),
        lock: Lock::new().unwrap(),
        rlock: RLock::new().unwrap(),
        mutex: Mutex::new(ORDER).unwrap(),
        order: Value::new(ORDER).unwrap(),
        checked: Value::new(CHECKED).unwrap(),
        small: Value::new(0_i16).unwrap(),
        raw: RawValue::new(ORDER).unwrap(),
        array: Array::from_slice(&[CHECKED; 3]).unwrap(),
        raw_array: RawArray::from_slice(&[1_u32, 2, 3]).unwrap(),
    };
    let process = child(
        |all: All| {
            all.change();
            all
        },
        all,
    );
    // The parent's handles are gone by now: what comes back has kept the memory.
    let back = join(process);
    back.check_changed();
    let twice = join(child(
        |all: All| {
            all.check_changed();
            all
        },
        back,
    ));
    twice.check_changed();
}

#[test]
fn objects_of_one_segment_travel_with_it_and_meet_there() {
    let name = format!("it-travel-{}", std::process::id());
    for segment in [Segment::anonymous(64 * 1024).unwrap(), Segment::create(&name, 64 * 1024).unwrap()] {
        let all = All {
            lock: segment.lock("a lock").unwrap(),
            rlock: segment.rlock("an rlock").unwrap(),
            mutex: segment.mutex("a mutex", ORDER).unwrap(),
            order: segment.value("an order", ORDER).unwrap(),
            checked: segment.value("a checked value", CHECKED).unwrap(),
            small: segment.value("a small value", 0_i16).unwrap(),
            raw: segment.raw_value("a raw value", ORDER).unwrap(),
            array: segment.array("an array", &[CHECKED; 3]).unwrap(),
            raw_array: segment.raw_array("a raw array", &[1_u32, 2, 3]).unwrap(),
            segment: segment.clone(),
        };
        let back = join(child(
            |all: All| {
                all.change();
                all
            },
            all,
        ));
        assert_eq!(back.segment.id(), segment.id());
        back.check_changed();
        // The same objects, by name.
        assert_eq!(segment.value("an order", ORDER).unwrap().get(), back.order.get());
        assert_eq!(segment.living().unwrap(), 1, "the child has left, and this process is there once");
    }
}

#[test]
fn what_is_made_in_a_child_outlives_it() {
    let (value, locks) = join(child(
        |n: u32| {
            let locks: Vec<_> = (0..n).map(|_| Lock::new().unwrap()).collect();
            // The child ends with one of them.
            std::mem::forget(locks[1].lock().unwrap());
            (Value::new([n; 5]).unwrap(), locks)
        },
        3,
    ));
    assert_eq!(value.get(), Ok([3; 5]));
    assert_eq!(said(&locks[0].lock()), "Ok");
    assert_eq!(said(&locks[1].lock()), "OwnerDied");
}

#[test]
fn a_handle_in_a_handed_over_structure_is_the_object_itself() {
    let value = Value::new(1_u64).unwrap();
    let nested =
        vec![Some((value.clone(), "first".to_owned())), None, Some((value.clone(), "second".to_owned()))];
    let sum = child(
        |nested: Vec<Option<(Value<u64>, String)>>| {
            nested.iter().flatten().map(|(value, _)| value.fetch_add(1)).sum::<u64>()
        },
        nested,
    );
    assert_eq!(join(sum), 3);
    assert_eq!(value.get(), Ok(3));
}

#[test]
fn handles_leave_no_descriptor_behind() {
    isolated(|()| {
        let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let round = || {
            let (value, lock) = (Value::new([1_u64; 9]).unwrap(), Lock::new().unwrap());
            let process = child(|(value, lock): (Value<[u64; 9]>, Lock)| (value, lock), (value, lock));
            let (value, lock) = join(process);
            assert_eq!(value.get(), Ok([1; 9]));
            assert_eq!(said(&lock.lock()), "Ok");
        };
        round();
        let before = count();
        (0..5).for_each(|_| round());
        assert_eq!(count(), before);
    });
}
