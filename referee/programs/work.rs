//! Threads that allocate, sort, format and catch panics, for ever.

use std::collections::BTreeMap;
use std::panic;

#[inline(never)]
fn deep(n: u64, f: &dyn Fn(u64) -> u64) -> u64 {
    if n == 0 { f(n) } else { deep(n - 1, &|m| f(m) + n) + 1 }
}

fn work(number: u64) {
    for round in 0.. {
        let mut map = BTreeMap::new();
        for i in 0..500u64 {
            map.insert(format!("{:x}", i.wrapping_mul(0x9e37_79b9) ^ number), vec![i; 100]);
        }
        let mut lists: Vec<_> = map.into_values().collect();
        lists.sort_by_key(|list| std::cmp::Reverse(list.iter().sum::<u64>() % 77));
        let big = vec![1u8; 1 << 20];
        let sum = deep(20, &|_| big.iter().map(|&b| u64::from(b)).sum());
        let caught = panic::catch_unwind(|| assert!(round % 4 != 1, "{sum}"));
        std::hint::black_box((lists, caught.is_err()));
    }
}

fn main() {
    panic::set_hook(Box::new(|_| {}));
    std::thread::spawn(|| work(1));
    work(2);
}
