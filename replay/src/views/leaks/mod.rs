//! `leaks`: the answer first, then each stack with what it holds.
//!
//! # JSON
//! `window_s`, `spaces` (how many address spaces there were), `growth` (all of them together) with
//! `reserved_bytes`, `committed_bytes`, `resident_bytes` and `explained_resident_bytes`, `leaked_bytes` and `leak_rows` (the stacks whose verdict is `leak`, all
//! together), `undecided_bytes` and `undecided_rows` (likewise), `rows_left_out` (by `--top`), `by` (what the rows are about: `stack`, `module`, `thread`
//! or `kind`), and `stacks[]`, worst first: `verdict`, `evidence` (why, in words), `held_bytes`,
//! `held_mappings`, `young_bytes` and `young_mappings` (still there, and left out by `--min-age`),
//! `committed_bytes` (of the held ones), `looked_at_bytes` (of the held ones, those
//! whose pages were looked at), `resident_bytes` (of these, in RAM; `null` if nobody looked),
//! `swapped_bytes` (of these), `mapped_bytes`, `mapped_calls`, `released_bytes`, `growth_bytes_per_min`, `first_s`,
//! `last_s`, `median_bytes`, `spaces`, `label` (one name for it all), `stack` (the log's id, `null`
//! unless `by` is `stack`) and `frames[]`, innermost first: `function`, `module`, `file`, `line`,
//! `offset` (hex string), `near`, `inlined`, `guessed`, `truncated`.

mod text;

use maptrail_tracelog::types::StackId;
use serde::Serialize;

use crate::leaks::{By, Growth, Leaks, Memory, Row, Subject, Verdict};
use crate::symbols::{Frame, Names, path_of};
use crate::untraced;
use crate::world::World;

pub use text::Detail;

/// The whole answer, ready to be printed.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    window_s: f64,
    spaces: usize,
    growth: Growth,
    leaked_bytes: u64,
    leak_rows: usize,
    undecided_bytes: u64,
    undecided_rows: usize,
    rows_left_out: usize,
    by: &'static str,
    #[serde(skip)]
    untraced_threads: u64,
    stacks: Vec<Entry>,
}

/// One stack (or module, thread, kind).
#[derive(Clone, Debug, Serialize)]
struct Entry {
    verdict: Verdict,
    evidence: String,
    held_bytes: u64,
    held_mappings: u64,
    young_bytes: u64,
    young_mappings: u64,
    committed_bytes: u64,
    looked_at_bytes: u64,
    resident_bytes: Option<u64>,
    swapped_bytes: u64,
    mapped_bytes: u64,
    mapped_calls: u64,
    released_bytes: u64,
    growth_bytes_per_min: f64,
    #[serde(skip)]
    growth_span_s: f64,
    first_s: f64,
    last_s: f64,
    median_bytes: u64,
    spaces: u64,
    label: String,
    stack: Option<StackId>,
    frames: Vec<Frame>,
}

impl Report {
    /// Puts names to what [`crate::leaks::leaks`] found when it was asked `by`.
    pub fn new(leaks: &Leaks, by: By, world: &World, names: &mut Names) -> Report {
        Report {
            window_s: leaks.window_s,
            spaces: world.space_infos().len(),
            growth: leaks.growth,
            leaked_bytes: leaks.leaked_bytes,
            leak_rows: leaks.leak_rows,
            undecided_bytes: leaks.undecided_bytes,
            undecided_rows: leaks.undecided_rows,
            rows_left_out: leaks.rows_left_out,
            by: match by {
                By::Stack => "stack",
                By::Module => "module",
                By::Thread => "thread",
                By::Kind => "kind",
            },
            untraced_threads: untraced::count(&world.untraced),
            stacks: (leaks.rows.iter())
                .map(|row| Entry::new(row, world, names))
                .collect(),
        }
    }
}

impl Entry {
    fn new(row: &Row, world: &World, names: &mut Names) -> Entry {
        let stack = match row.subject {
            Subject::Stack(stack) => Some(stack),
            _ => None,
        };
        Entry {
            verdict: row.verdict,
            evidence: row.evidence.clone(),
            held_bytes: row.held_bytes,
            held_mappings: row.held_mappings,
            young_bytes: row.young_bytes,
            young_mappings: row.young_mappings,
            committed_bytes: row.committed_bytes,
            looked_at_bytes: row.looked_at_bytes,
            // Of nothing, nothing is in RAM, whether anybody looked or not.
            resident_bytes: row.resident_bytes.or((row.held_bytes == 0).then_some(0)),
            swapped_bytes: row.swapped_bytes,
            mapped_bytes: row.mapped_bytes,
            mapped_calls: row.mapped_calls,
            released_bytes: row.released_bytes,
            growth_bytes_per_min: row.growth_bytes_per_min,
            growth_span_s: row.growth_span_s,
            first_s: row.first_s,
            last_s: row.last_s,
            median_bytes: row.median_bytes,
            spaces: row.spaces,
            label: label(row, world, names),
            stack,
            frames: stack.map_or_else(Vec::new, |stack| names.stack(world, stack, row.space)),
        }
    }
}

fn label(row: &Row, world: &World, names: &mut Names) -> String {
    match row.subject {
        Subject::Stack(stack) => path_of(&names.stack(world, stack, row.space))
            .unwrap_or_else(|| "calls without a stack".to_owned()),
        Subject::Module(id) => match world.module(id) {
            Some(module) => world.files.path(module.file).to_owned(),
            None => "code in no module".to_owned(),
        },
        Subject::Thread(ix) => match world.thread(ix) {
            Some(thread) => format!("{}/{}", thread.name, thread.tid),
            None => "a thread that the log does not name".to_owned(),
        },
        Subject::Kind(call, memory) => {
            let memory = match memory {
                Memory::Anonymous => "anonymous memory",
                Memory::Heap => "the heap",
                Memory::File => "private file mappings",
                Memory::Shared => "shared memory",
            };
            format!("{} of {memory}", call.name())
        }
    }
}
