//! Everything that a log has told up to one moment: spaces, births, threads, files, modules, stacks.

use std::collections::BTreeMap;

use maptrail_tracelog::record::{ModuleInfo, Origin, SpaceEnd, StackNode, Untraced};
use maptrail_tracelog::types::{ModuleId, Nanos, Pid, SpaceId, StackId, Stamp, ThreadIx, Tid};
use rustc_hash::FxHashMap;

use crate::births::Births;
use crate::files::Files;
use crate::space::Space;

/// A thread that was followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its tid.
    pub tid: Tid,
    /// Its process.
    pub pid: Pid,
    /// The space it began in.
    pub space: SpaceId,
    /// `comm`: the last one known.
    pub name: String,
    /// First seen.
    pub start: Nanos,
    /// Gone, or no longer followed.
    pub end: Option<Nanos>,
}

/// How a space came to be: what of [`Origin`] is worth keeping of every process that ever ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Began {
    /// By `exec`.
    Exec,
    /// As a copy.
    Fork {
        /// Of this space.
        parent: SpaceId,
    },
    /// It was there when the window opened.
    Before,
}

impl From<&Origin> for Began {
    fn from(origin: &Origin) -> Began {
        match *origin {
            Origin::Exec { .. } => Began::Exec,
            Origin::Fork { parent } => Began::Fork { parent },
            Origin::Attach => Began::Before,
        }
    }
}

/// A space's outer story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceInfo {
    /// Its id.
    pub id: SpaceId,
    /// The process that it was first seen in.
    pub pid: Pid,
    /// How it came to be.
    pub began: Began,
    /// First seen.
    pub start: Nanos,
    /// Its end, and how it came.
    pub end: Option<(Nanos, SpaceEnd)>,
    /// Its first checkpoint, which the model was made from, once seen.
    pub first_checkpoint: Option<Stamp>,
}

/// The state of a replay.
#[derive(Debug, Default)]
pub struct World {
    /// Those that are alive.
    pub(crate) spaces: BTreeMap<SpaceId, Space>,
    pub(crate) space_infos: FxHashMap<SpaceId, SpaceInfo>,
    /// The calls behind the memory that is alive.
    pub births: Births,
    pub(crate) threads: FxHashMap<ThreadIx, Thread>,
    /// What stands behind mappings.
    pub files: Files,
    pub(crate) modules: FxHashMap<ModuleId, ModuleInfo>,
    pub(crate) biases: FxHashMap<(SpaceId, ModuleId), u64>,
    pub(crate) nodes: Nodes,
    /// The time of the last step.
    pub now: Nanos,
    /// Calls whose effect was settled by looking at a checkpoint.
    pub settled: u64,
    /// Events that the recorder saw and did not record.
    pub lost: u64,
    /// Threads whose calls were not recorded, as the log tells of them.
    pub untraced: Vec<Untraced>,
}

/// Stack nodes by id. Where a chunk of the log is missing, so are its nodes.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    /// Runs of consecutive ids, ascending, by their first.
    runs: Vec<(StackId, Vec<StackNode>)>,
}

impl Nodes {
    /// Takes nodes whose ids run on from `first`. Nodes that are known already stay as they are.
    pub(crate) fn append(&mut self, first: StackId, nodes: &mut Vec<StackNode>) {
        if nodes.is_empty() {
            return;
        }
        let next = self.runs.last().map_or(1, |(id, run)| {
            u64::from(id.0).saturating_add(run.len() as u64)
        });
        match self.runs.last_mut() {
            Some((_, run)) if u64::from(first.0) == next => run.append(nodes),
            _ if u64::from(first.0) >= next => self.runs.push((first, std::mem::take(nodes))),
            _ => {}
        }
    }

    fn get(&self, id: StackId) -> Option<&StackNode> {
        let after = self.runs.partition_point(|(first, _)| *first <= id);
        let (first, run) = self.runs.get(after.checked_sub(1)?)?;
        run.get((id.0 - first.0) as usize)
    }
}

/// More frames than this are not followed: the recorder never writes that many, and a damaged log
/// could chain nodes without end.
const MAX_FRAMES: usize = 4096;

impl World {
    /// A space that is alive.
    #[must_use]
    pub fn space(&self, id: SpaceId) -> Option<&Space> {
        self.spaces.get(&id)
    }

    /// The spaces that are alive, by id.
    pub fn spaces(&self) -> impl Iterator<Item = &Space> {
        self.spaces.values()
    }

    /// The story of a space, alive or ended.
    #[must_use]
    pub fn space_info(&self, id: SpaceId) -> Option<&SpaceInfo> {
        self.space_infos.get(&id)
    }

    /// All spaces ever seen, by id.
    #[must_use]
    pub fn space_infos(&self) -> Vec<&SpaceInfo> {
        let mut all: Vec<_> = self.space_infos.values().collect();
        all.sort_by_key(|info| info.id);
        all
    }

    /// A thread, alive or ended.
    #[must_use]
    pub fn thread(&self, ix: ThreadIx) -> Option<&Thread> {
        self.threads.get(&ix)
    }

    /// All threads ever seen, by index.
    #[must_use]
    pub fn threads(&self) -> Vec<(ThreadIx, &Thread)> {
        let mut all: Vec<_> = self.threads.iter().map(|(ix, t)| (*ix, t)).collect();
        all.sort_by_key(|(ix, _)| *ix);
        all
    }

    /// A module.
    #[must_use]
    pub fn module(&self, id: ModuleId) -> Option<&ModuleInfo> {
        self.modules.get(&id)
    }

    /// What to add to an offset of `module` to get its address in `space`.
    #[must_use]
    pub fn bias(&self, space: SpaceId, module: ModuleId) -> Option<u64> {
        self.biases.get(&(space, module)).copied()
    }

    /// A stack's frames, innermost first; empty if none was taken.
    #[must_use]
    pub fn frames(&self, stack: StackId) -> Vec<&StackNode> {
        let mut frames = Vec::new();
        let mut at = stack;
        while let Some(node) = self.nodes.get(at) {
            frames.push(node);
            // A node is defined after its parent; anything else comes from a damaged log.
            if node.parent >= at || frames.len() == MAX_FRAMES {
                break;
            }
            at = node.parent;
        }
        frames
    }
}
