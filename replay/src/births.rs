//! The calls that made the memory which is alive now, and how much of each is left.
//!
//! An entry is dropped with its last byte, so the table is as large as what lives, not as what passed.

use maptrail_tracelog::calls::Call;
use maptrail_tracelog::record::CallEvent;
use maptrail_tracelog::types::{Nanos, SpaceId, StackId, Stamp, ThreadIx};

use crate::region::BirthId;

/// A call that made memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Birth {
    /// When it took effect; unique to the call within a log.
    pub stamp: Stamp,
    /// Time of it.
    pub at: Nanos,
    /// Who made it.
    pub thread: ThreadIx,
    /// The space it was made in. A forked copy keeps its parent's births.
    pub space: SpaceId,
    /// Which call.
    pub call: Call,
    /// From where.
    pub stack: StackId,
    /// Bytes it made.
    pub born_bytes: u64,
    /// Bytes of it still mapped in the space it was made in, or under way in an `mremap`.
    pub live_bytes: u64,
    /// The same, and in forked copies too.
    pub(crate) live_bytes_anywhere: u64,
}

impl Birth {
    /// The birth that `event` gives, with no bytes yet.
    #[must_use]
    pub fn of(event: &CallEvent) -> Birth {
        Birth {
            stamp: event.exit,
            at: event.exit_ns,
            thread: event.thread,
            space: event.space,
            call: event.call,
            stack: event.stack,
            born_bytes: 0,
            live_bytes: 0,
            live_bytes_anywhere: 0,
        }
    }
}

/// The stamp of an entry that is free.
const REAPED: Stamp = Stamp(u64::MAX);

/// The table of births.
#[derive(Debug, Default)]
pub struct Births {
    slots: Vec<Birth>,
    free: Vec<BirthId>,
}

impl Births {
    /// The call behind an id; `None` for memory that no recorded call made.
    #[must_use]
    pub fn get(&self, id: BirthId) -> Option<&Birth> {
        self.slots.get((id.0 as usize).checked_sub(1)?)
    }

    /// All births that are alive, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (BirthId, &Birth)> {
        (1..)
            .map(BirthId)
            .zip(&self.slots)
            .filter(|(_, birth)| birth.live_bytes_anywhere > 0)
    }

    /// How many are alive.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether none is alive.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn add(&mut self, birth: Birth) -> BirthId {
        if let Some(id) = self.free.pop()
            && let Some(slot) = self.get_mut(id)
        {
            *slot = birth;
            return id;
        }
        self.slots.push(birth);
        BirthId(u32::try_from(self.slots.len()).unwrap_or(u32::MAX))
    }

    /// The id of `birth`, which had this one when something of it was alive.
    pub(crate) fn revive(&mut self, id: BirthId, birth: Birth) -> BirthId {
        match self.get(id) {
            Some(known) if known.stamp == birth.stamp => id,
            _ => self.add(Birth {
                live_bytes: 0,
                live_bytes_anywhere: 0,
                ..birth
            }),
        }
    }

    pub(crate) fn get_mut(&mut self, id: BirthId) -> Option<&mut Birth> {
        self.slots.get_mut((id.0 as usize).checked_sub(1)?)
    }

    /// Counts memory that appeared in `space`; `born` if the call itself made it, as opposed to a
    /// fork that copied it.
    pub(crate) fn gain(&mut self, id: BirthId, space: SpaceId, bytes: u64, born: bool) {
        if let Some(birth) = self.get_mut(id) {
            // A damaged log can claim anything: sums saturate.
            let add = |sum: &mut u64| *sum = sum.saturating_add(bytes);
            add(&mut birth.live_bytes_anywhere);
            if birth.space == space {
                add(&mut birth.live_bytes);
                if born {
                    add(&mut birth.born_bytes);
                }
            }
        }
    }

    /// Counts memory that went from `space`. The entry stays until [`Births::reap`].
    pub(crate) fn release(&mut self, id: BirthId, space: SpaceId, bytes: u64) {
        if let Some(birth) = self.get_mut(id) {
            birth.live_bytes_anywhere = birth.live_bytes_anywhere.saturating_sub(bytes);
            if birth.space == space {
                birth.live_bytes = birth.live_bytes.saturating_sub(bytes);
            }
        }
    }

    /// Drops the entry if nothing of it is left anywhere.
    pub(crate) fn reap(&mut self, id: BirthId) {
        if let Some(birth) = self.get_mut(id)
            && birth.live_bytes_anywhere == 0
            && birth.stamp != REAPED
        {
            birth.stamp = REAPED;
            self.free.push(id);
        }
    }
}
