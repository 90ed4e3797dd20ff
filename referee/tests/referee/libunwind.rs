//! Stacks as libunwind sees them.

use std::collections::HashMap;

use nix::unistd::Pid;
use unwind::{
    Accessors, AddressSpace, AddressSpaceRef, Byteorder, Cursor, PTraceState, PTraceStateRef,
    RegNum,
};
use unwind_sys::{unw_addr_space, unw_caching_policy_t, unw_set_caching_policy};

/// More than any stack of ours has.
const MAX_FRAMES: usize = 1000;

/// libunwind's view of one process.
pub struct Libunwind {
    space: AddressSpace<PTraceStateRef>,
    threads: HashMap<Pid, PTraceState>,
}

impl Libunwind {
    pub fn new() -> Libunwind {
        let space = AddressSpace::new(Accessors::ptrace(), Byteorder::DEFAULT).unwrap();
        cache(&space);
        Libunwind {
            space,
            threads: HashMap::new(),
        }
    }

    /// The addresses of a stopped thread's frames, innermost first, and whether libunwind took the last
    /// for the root.
    pub fn stack(&mut self, tid: Pid) -> (Vec<u64>, bool) {
        let state = self
            .threads
            .entry(tid)
            .or_insert_with(|| PTraceState::new(tid.as_raw().cast_unsigned()).unwrap());
        let mut pcs = Vec::new();
        let Ok(mut cursor) = Cursor::remote(&self.space, state) else {
            return (pcs, false);
        };
        while pcs.len() < MAX_FRAMES {
            match cursor.register(RegNum::IP) {
                Ok(0) if !pcs.is_empty() => return (pcs, true),
                Ok(pc) => pcs.push(pc),
                Err(_) => return (pcs, false),
            }
            match cursor.step() {
                Ok(true) => {}
                Ok(false) => return (pcs, true),
                Err(_) => return (pcs, false),
            }
        }
        (pcs, false)
    }
}

/// Makes it 80 times as fast, which the safe interface has no word for.
#[allow(unsafe_code, reason = "one call of a C library")]
fn cache(space: &AddressSpaceRef<PTraceStateRef>) {
    let space: *const AddressSpaceRef<PTraceStateRef> = space;
    let space = space.cast_mut().cast::<unw_addr_space>();
    // SAFETY: a reference to an `AddressSpaceRef` is libunwind's own pointer to the space, which is alive
    // and, while it is being made, nobody else's.
    let result = unsafe { unw_set_caching_policy(space, unw_caching_policy_t::UNW_CACHE_GLOBAL) };
    assert_eq!(result, 0, "libunwind has no global cache");
}
