//! Which core the tracer runs on.

use maptrail_tracelog::types::Tid;

/// Lets the tracer's thread follow the core of the thread that it serves.
pub struct Follower {}

impl Follower {
    /// Starts where the tracer is.
    #[must_use]
    pub fn new() -> Follower {
        Follower {}
    }

    /// The tracer serves a stop of `tid`, the `n`th of all.
    pub fn served(&mut self, _tid: Tid, _n: u64) {}

    /// The thread is gone.
    pub fn forget(&mut self, _tid: Tid) {}
}
