//! Calls that nobody saw end: did they act? The next checkpoint of their space knows.

use maptrail_tracelog::calls::Effect;
use maptrail_tracelog::record::{CallEvent, Checkpoint};
use maptrail_tracelog::types::PAGE;

use crate::calls;
use crate::check::{Comparison, compare};
use crate::files::Files;
use crate::region::BirthId;
use crate::space::Space;

/// MAP_FIXED and MAP_FIXED_NOREPLACE.
const MAP_AT: u64 = 0x10_0010;
const MREMAP_FIXED: u64 = 2;
/// How many places a call may have mapped at are tried, at most.
const MAX_PLACES: usize = 8;

/// The call with the result that brings the model of its space closest to the checkpoint; `None` if
/// nothing is closer than that it did not act.
#[must_use]
pub fn likeliest(
    event: &CallEvent,
    space: &Space,
    checkpoint: &Checkpoint,
    files: &Files,
) -> Option<CallEvent> {
    let without = compare(space, checkpoint, files);
    results(event, &without)
        .into_iter()
        .map(|result| calls::returning(event, result))
        .map(|event| (drift_with(&event, space, checkpoint, files), event))
        .filter(|(drift, _)| *drift < without.drift_bytes())
        .min_by_key(|(drift, _)| *drift)
        .map(|(_, event)| event)
}

/// Values that the call could have come back with.
fn results(event: &CallEvent, without: &Comparison) -> Vec<u64> {
    let [a0, a1, a2, a3, a4, _] = event.args;
    let places = |len: u64| {
        let len = len.div_ceil(PAGE).saturating_mul(PAGE);
        without
            .missing_ranges()
            .filter(move |range| range.len() >= len)
            .flat_map(move |range| [range.start.0, range.end.0.saturating_sub(len)])
            .take(MAX_PLACES)
    };
    match event.call.effect() {
        Effect::Map if a3 & MAP_AT != 0 => vec![a0],
        Effect::Map => places(a1).collect(),
        Effect::Remap if a3 & MREMAP_FIXED != 0 => vec![a4],
        Effect::Remap => std::iter::once(a0).chain(places(a2)).collect(),
        Effect::Brk => vec![a0],
        Effect::Unmap | Effect::Protect | Effect::Detach => vec![0],
        Effect::Look | Effect::Advise => Vec::new(),
    }
}

fn drift_with(event: &CallEvent, space: &Space, checkpoint: &Checkpoint, files: &Files) -> u64 {
    let mut space = space.clone();
    let mut deltas = Vec::new();
    for op in calls::at_entry(event, &space).into_iter().flatten() {
        space.apply(&op, files, &mut deltas);
    }
    if let Some(op) = calls::at_exit(event, BirthId::PRE_EXISTING, files) {
        space.apply(&op, files, &mut deltas);
    }
    compare(&space, checkpoint, files).drift_bytes()
}
