//! Arrays behind a lock say when they may be half-changed; those without one promise single elements.

use crossproc_primitives::{AccessError, Array, Guard, LockError, RawArray};
use crossproc_tests::{Board, await_asleep, child, join, kill_and_reap, tied_to_parent};

use crate::lock::said;

#[test]
fn every_method_of_an_array_is_one_step() {
    fn work((array, turns): (Array<u64>, u64)) {
        for turn in 0..turns {
            match turn % 3 {
                0 => array.lock().unwrap().iter_mut().for_each(|element| *element += 1),
                1 => {
                    let elements = array.to_vec().unwrap();
                    assert!(elements.iter().all(|&element| element == elements[0]), "{elements:?}");
                }
                _ => array.lock().unwrap().iter_mut().rev().for_each(|element| *element += 1),
            }
        }
    }
    let array = Array::from_slice(&[0_u64; 100]).unwrap();
    let children: Vec<_> = (0..2).map(|_| child(work, (array.clone(), 600))).collect();
    work((array.clone(), 600));
    children.into_iter().for_each(join);
    assert_eq!(array.to_vec(), Ok(vec![1200; 100]));
}

#[test]
fn updates_of_elements_are_not_lost() {
    fn work((array, raw, turns): (Array<u32>, RawArray<u8>, u32)) {
        for turn in 0..turns {
            array.update(turn as usize % 5, |n| n + 1).unwrap();
            raw.fetch_add(turn as usize % 5, 1).unwrap();
        }
    }
    let (array, raw) = (Array::<u32>::new(5).unwrap(), RawArray::<u8>::new(5).unwrap());
    let children: Vec<_> = (0..2).map(|_| child(work, (array.clone(), raw.clone(), 500))).collect();
    work((array.clone(), raw.clone(), 500));
    children.into_iter().for_each(join);
    assert_eq!(array.to_vec(), Ok(vec![300; 5]));
    assert_eq!(raw.to_vec(), Ok(vec![(300 % 256) as u8; 5]));
}

#[test]
fn an_array_whose_holder_died_says_so_until_it_is_repaired() {
    fn half_change((board, array): (Board, Array<u64>)) {
        tied_to_parent();
        let mut elements = array.lock().unwrap();
        elements[0] = 9;
        elements[1] = 9;
        board.set(0, 1);
        loop {
            std::thread::park();
        }
    }
    let (board, array) = (Board::new(8), Array::from_slice(&[1_u64; 4]).unwrap());
    let holder = child(half_change, (board.clone(), array.clone()));
    board.await_at_least(0, 1);
    let reader = child(|array: Array<u64>| format!("{:?}", array.get(3)), array.clone());
    await_asleep(reader.pid());
    kill_and_reap(&holder);
    assert_eq!(join(reader), "Err(OwnerDied)");
    assert_eq!(array.to_vec(), Err(AccessError::OwnerDied));
    assert_eq!(array.set(0, 1), Err(AccessError::OwnerDied));
    assert_eq!(array.fill(1), Err(AccessError::OwnerDied));
    assert_eq!(join(child(|array: Array<u64>| said(&array.lock()), array.clone())), "OwnerDied");
    match array.lock() {
        Err(LockError::OwnerDied(mut elements)) => {
            assert_eq!(*elements, [9, 9, 1, 1], "what the dead one did is there");
            elements.fill(2);
            elements.mark_consistent();
        }
        other => panic!("{}", said(&other)),
    }
    assert_eq!(array.to_vec(), Ok(vec![2; 4]));
}
