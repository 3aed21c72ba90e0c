//! A struct and an enum of one's own in shared memory.
//!
//! `cargo run -p crossproc --example own_struct`

use crossproc::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[repr(u8)]
enum Side {
    Buy,
    Sell,
}

/// `checked`, because not every byte is a `Side`. No gaps: `spare` is what the compiler would leave free.
#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(checked)]
#[repr(C)]
struct Order {
    id: u64,
    price: f32,
    side: Side,
    spare: [u8; 3],
}

fn trade((book, best): (Array<Order>, Value<Order>)) {
    let buys = book.iter().unwrap().filter(|order| order.side == Side::Buy);
    if let Some(order) = buys.max_by(|a, b| a.price.total_cmp(&b.price)) {
        best.set(order).unwrap();
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let order = |id, price, side| Order { id, price, side, spare: [0; 3] };
    let orders = [order(1, 9.5, Side::Buy), order(2, 9.9, Side::Sell), order(3, 9.7, Side::Buy)];
    let (book, best) = (Array::from_slice(&orders)?, Value::new(orders[0])?);
    Process::spawn(trade, (book, best.clone()))?.join()?;
    println!("the best offer to buy is {:?}", best.get()?);
    assert_eq!(best.get()?, orders[2]);
    Ok(())
}
