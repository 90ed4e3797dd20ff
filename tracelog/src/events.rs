//! The codec of call events: lanes and columns.
//!
//! A *lane* is what one thread does in one space with one call: the arguments, result, stack and
//! file of an event are written as steps from the lane's event before, which is mostly no step at
//! all. The columns of all lanes with the same call (a *group*) are stored together.

use rustc_hash::FxHashMap;

use crate::calls::{Abi, Call};
use crate::columns::{Column, ColumnReader};
use crate::record::{CallEvent, Outcome};
use crate::section::Section;
use crate::types::{FileId, Nanos, SpaceId, StackId, Stamp, ThreadIx};
use crate::varint::{self, Cursor, Malformed, delta, undelta};

/// Events in one section at most; the writer splits a chunk that has more.
pub(crate) const MAX_EVENTS: usize = 1 << 18;

/// Events in one section for each byte that is stored of it, at most: columns of zeros take no bytes,
/// however many events they are of, and the times of no real call are known in half a bit.
const MAX_EVENTS_PER_BYTE: usize = 16;

/// The fewest bytes that may stand for so many events.
pub(crate) fn least_stored(events: usize) -> usize {
    events.div_ceil(MAX_EVENTS_PER_BYTE)
}

/// Groups in one section at most: more than there can be calls, ABIs and flags together.
const MAX_GROUPS: usize = 1024;

/// Group flag: these calls did not come back, and have no result.
const UNFINISHED: u8 = 1;
/// Columns of a group besides its arguments: result, stack, file.
const REST: usize = 3;
/// Columns of a group at most.
const MAX_COLUMNS: usize = 6 + REST;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct GroupKey {
    call: Call,
    abi: Abi,
    unfinished: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct LaneKey {
    group: GroupKey,
    thread: ThreadIx,
    space: SpaceId,
}

#[derive(Debug)]
struct Lane {
    key: LaneKey,
    group: u32,
    /// The lane that came after this one last time: a good guess for the next time.
    next: u32,
    /// The values of its event before: arguments, then result, stack, file.
    last: [u64; MAX_COLUMNS],
}

#[derive(Debug)]
struct Group {
    key: GroupKey,
    columns: [Column; MAX_COLUMNS],
}

/// Writes event sections. Between two sections it only keeps its buffers.
#[derive(Debug, Default)]
pub(crate) struct EventEncoder {
    lanes: Vec<Lane>,
    by_key: FxHashMap<LaneKey, u32>,
    /// Those past `groups_used` are left over from earlier sections, for their buffers.
    groups: Vec<Group>,
    groups_used: usize,
    /// Lane, exit stamp, span, time, duration: one number for each event.
    common: [Column; 5],
}

impl EventEncoder {
    /// Encodes `events`, at most [`MAX_EVENTS`].
    pub(crate) fn encode(&mut self, events: &[CallEvent], out: &mut Vec<u8>) {
        self.lanes.clear();
        self.by_key.clear();
        self.groups_used = 0;
        self.common.iter_mut().for_each(Column::clear);

        let (mut stamp, mut time) = (0, 0);
        let mut lane_before = 0_usize;
        for event in events {
            let lane = self.lane_of(event, lane_before);
            if let Some(before) = self.lanes.get_mut(lane_before) {
                before.next = lane as u32;
            }
            lane_before = lane;

            let [lanes, stamps, spans, times, durations] = &mut self.common;
            lanes.push(lane as u64);
            stamps.push(delta(stamp, event.exit.0));
            spans.push(delta(event.entry.0, event.exit.0));
            times.push(delta(time, event.entry_ns.0));
            durations.push(delta(event.entry_ns.0, event.exit_ns.0));
            stamp = event.exit.0;
            time = event.exit_ns.0;

            let lane = &mut self.lanes[lane];
            let arguments = event.call.args().len();
            let mut values = [0_u64; MAX_COLUMNS];
            values[..arguments].copy_from_slice(&event.args[..arguments]);
            values[arguments] = match event.outcome {
                Outcome::Returned(value) => value as u64,
                Outcome::Unfinished => 0,
            };
            values[arguments + 1] = u64::from(event.stack.0);
            values[arguments + 2] = u64::from(event.file.0);
            let columns = &mut self.groups[lane.group as usize].columns;
            for i in 0..arguments + REST {
                columns[i].push(delta(lane.last[i], values[i]));
            }
            lane.last = values;
        }
        self.write(events.len(), out);
    }

    fn lane_of(&mut self, event: &CallEvent, lane_before: usize) -> usize {
        let key = LaneKey {
            group: GroupKey {
                call: event.call,
                abi: event.abi,
                unfinished: event.outcome == Outcome::Unfinished,
            },
            thread: event.thread,
            space: event.space,
        };
        if let Some(before) = self.lanes.get(lane_before)
            && let Some(guess) = self.lanes.get(before.next as usize)
            && guess.key == key
        {
            return before.next as usize;
        }
        if let Some(&lane) = self.by_key.get(&key) {
            return lane as usize;
        }
        let lane = self.lanes.len();
        let group = self.group_of(key.group);
        self.lanes.push(Lane {
            key,
            group,
            next: 0,
            last: [0; MAX_COLUMNS],
        });
        self.by_key.insert(key, lane as u32);
        lane
    }

    fn group_of(&mut self, key: GroupKey) -> u32 {
        let used = self.groups.iter().take(self.groups_used);
        if let Some(i) = used.map(|g| g.key).position(|k| k == key) {
            return i as u32;
        }
        let i = self.groups_used;
        self.groups_used += 1;
        match self.groups.get_mut(i) {
            Some(group) => {
                group.key = key;
                group.columns.iter_mut().for_each(Column::clear);
            }
            None => self.groups.push(Group {
                key,
                columns: Default::default(),
            }),
        }
        i as u32
    }

    fn write(&self, events: usize, out: &mut Vec<u8>) {
        let groups = &self.groups[..self.groups_used];
        varint::put(out, events as u64);
        varint::put(out, groups.len() as u64);
        for Group { key, .. } in groups {
            let arguments = key.call.args().len() as u8;
            let flags = if key.unfinished { UNFINISHED } else { 0 };
            let columns = arguments + REST as u8;
            out.extend([key.call as u8, key.abi as u8, flags, arguments, columns]);
        }
        varint::put(out, self.lanes.len() as u64);
        for lane in &self.lanes {
            varint::put(out, u64::from(lane.group));
            varint::put(out, u64::from(lane.key.thread.0));
            varint::put(out, u64::from(lane.key.space.0));
        }
        self.common.iter().for_each(|c| c.write(out));
        for group in groups {
            let n = group.key.call.args().len() + REST;
            group.columns[..n].iter().for_each(|c| c.write(out));
        }
    }
}

struct GroupIn<'a> {
    /// `None` if a newer writer put something here that this reader does not know.
    key: Option<GroupKey>,
    arguments: usize,
    columns: Vec<ColumnReader<'a>>,
}

struct LaneIn {
    group: usize,
    thread: ThreadIx,
    space: SpaceId,
    last: [u64; MAX_COLUMNS],
}

/// Appends a section's events to `events`; returns how many were left out because their call, ABI
/// or flags are unknown to this version.
pub(crate) fn decode_events(
    section: Section<'_>,
    events: &mut Vec<CallEvent>,
) -> Result<u64, Malformed> {
    let mut cursor = Cursor(section.raw);
    let count = cursor.count(MAX_EVENTS)?;
    if section.stored < least_stored(count) {
        return Err(Malformed);
    }
    let mut groups = read_groups(&mut cursor)?;
    let mut lanes = read_lanes(&mut cursor, count)?;
    let mut common = || ColumnReader::read(&mut cursor);
    let [
        mut lane_ids,
        mut stamps,
        mut spans,
        mut times,
        mut durations,
    ] = [common()?, common()?, common()?, common()?, common()?];
    for group in &mut groups {
        for column in &mut group.columns {
            *column = ColumnReader::read(&mut cursor)?;
        }
    }

    let (mut stamp, mut time) = (0, 0);
    let mut unknown = 0;
    events.reserve(count);
    for _ in 0..count {
        let lane = usize::try_from(lane_ids.next()?).map_err(|_| Malformed)?;
        let lane = lanes.get_mut(lane).ok_or(Malformed)?;
        stamp = undelta(stamp, stamps.next()?);
        let entry = stamp.wrapping_sub(undelta(0, spans.next()?));
        let entry_ns = undelta(time, times.next()?);
        time = undelta(entry_ns, durations.next()?);

        let group = groups.get_mut(lane.group).ok_or(Malformed)?;
        let Some(key) = group.key else {
            unknown += 1;
            continue;
        };
        for (value, column) in lane.last.iter_mut().zip(&mut group.columns) {
            *value = undelta(*value, column.next()?);
        }
        let (arguments, rest) = lane
            .last
            .split_at_checked(group.arguments)
            .ok_or(Malformed)?;
        let &[result, stack, file, ..] = rest else {
            return Err(Malformed);
        };
        let mut args = [0; 6];
        for (arg, value) in args.iter_mut().zip(arguments).take(key.call.args().len()) {
            *arg = *value;
        }
        events.push(CallEvent {
            thread: lane.thread,
            space: lane.space,
            call: key.call,
            abi: key.abi,
            args,
            outcome: if key.unfinished {
                Outcome::Unfinished
            } else {
                Outcome::Returned(result as i64)
            },
            entry: Stamp(entry),
            exit: Stamp(stamp),
            entry_ns: Nanos(entry_ns),
            exit_ns: Nanos(time),
            stack: StackId(u32::try_from(stack).map_err(|_| Malformed)?),
            file: FileId(u32::try_from(file).map_err(|_| Malformed)?),
        });
    }
    for column in [lane_ids, stamps, spans, times, durations] {
        column.finish()?;
    }
    let known = groups.iter().filter(|g| g.key.is_some());
    for column in known.flat_map(|g| g.columns.iter().take(g.arguments + REST)) {
        column.finish()?;
    }
    Ok(unknown)
}

fn read_groups<'a>(cursor: &mut Cursor<'a>) -> Result<Vec<GroupIn<'a>>, Malformed> {
    let count = cursor.count(MAX_GROUPS)?;
    let mut groups = Vec::with_capacity(count);
    for _ in 0..count {
        let (call, abi) = (Call::from_u8(cursor.u8()?), Abi::from_u8(cursor.u8()?));
        let flags = cursor.u8()?;
        let arguments = usize::from(cursor.u8()?);
        let columns = usize::from(cursor.u8()?);
        let understood = flags & !UNFINISHED == 0 && arguments <= 6 && columns >= arguments + REST;
        let key = match (call, abi) {
            (Some(call), Some(abi)) if understood => Some(GroupKey {
                call,
                abi,
                unfinished: flags & UNFINISHED != 0,
            }),
            _ => None,
        };
        let empty = ColumnReader::read(&mut Cursor(&[0]))?;
        groups.push(GroupIn {
            key,
            arguments,
            columns: vec![empty; columns],
        });
    }
    Ok(groups)
}

/// Each lane has an event, so that there are at most as many.
fn read_lanes(cursor: &mut Cursor<'_>, events: usize) -> Result<Vec<LaneIn>, Malformed> {
    let count = cursor.count(events)?;
    let mut lanes = Vec::with_capacity(count);
    for _ in 0..count {
        let group = cursor.count(MAX_GROUPS)?;
        lanes.push(LaneIn {
            group,
            thread: ThreadIx(cursor.varint_u32()?),
            space: SpaceId(cursor.varint_u32()?),
            last: [0; MAX_COLUMNS],
        });
    }
    Ok(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::section;
    use proptest::prelude::*;

    fn event(stamp: u64) -> CallEvent {
        CallEvent {
            thread: ThreadIx(1),
            space: SpaceId(2),
            call: Call::Munmap,
            abi: Abi::X86_64,
            args: [0x1000, 4096, 0, 0, 0, 0],
            outcome: Outcome::Returned(0),
            entry: Stamp(stamp),
            exit: Stamp(stamp + 1),
            entry_ns: Nanos(stamp * 100),
            exit_ns: Nanos(stamp * 100 + 50),
            stack: StackId(3),
            file: FileId(4),
        }
    }

    /// Two groups, two lanes: the section begins with the count and the table of groups.
    fn section() -> (Vec<CallEvent>, Vec<u8>) {
        let mut events = vec![event(1), event(3), event(5)];
        events[1].call = Call::Brk;
        events[1].args[1] = 0;
        let mut raw = Vec::new();
        EventEncoder::default().encode(&events, &mut raw);
        assert_eq!(raw[..3], [3, 2, Call::Munmap as u8]);
        (events, raw)
    }

    /// Decodes a section that is stored as it is.
    fn decode(raw: &[u8], events: &mut Vec<CallEvent>) -> Result<u64, Malformed> {
        let section = Section {
            id: section::id::EVENTS,
            raw,
            stored: raw.len(),
        };
        decode_events(section, events)
    }

    #[test]
    fn events_that_take_next_to_nothing_are_not_believed() {
        let events = vec![event(0); 4096];
        let mut raw = Vec::new();
        EventEncoder::default().encode(&events, &mut raw);
        for (stored, believed) in [(255, false), (256, true)] {
            let section = Section {
                id: section::id::EVENTS,
                raw: &raw,
                stored,
            };
            let decoded = decode_events(section, &mut Vec::new());
            assert_eq!(decoded.is_ok(), believed, "{stored} bytes");
        }
    }

    #[test]
    fn calls_abis_and_flags_of_a_newer_version_are_passed_over() {
        // The second byte of a group is its ABI, the third its flags.
        for (place, value) in [(2, 200), (3, 7), (4, 0x80)] {
            let (events, mut raw) = section();
            raw[place] = value;
            let mut back = Vec::new();
            assert_eq!(decode(&raw, &mut back), Ok(2));
            assert_eq!(back, [events[1]]);
        }
    }

    #[test]
    fn columns_left_over_or_missing_are_malformed() {
        let (_, raw) = section();
        assert!(decode(&raw[..raw.len() - 1], &mut Vec::new()).is_err());
        let mut more = raw.clone();
        more[0] = 4;
        assert!(decode(&more, &mut Vec::new()).is_err());
        let mut fewer = raw;
        fewer[0] = 2;
        assert!(decode(&fewer, &mut Vec::new()).is_err());
    }

    #[test]
    fn the_encoder_starts_each_section_anew() {
        let (events, raw) = section();
        let mut encoder = EventEncoder::default();
        let mut other = event(9);
        other.call = Call::Mremap;
        encoder.encode(&[other, event(11)], &mut Vec::new());
        let mut again = Vec::new();
        encoder.encode(&events, &mut again);
        assert_eq!(again, raw);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_do_not(raw in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut events = Vec::new();
            let _ = decode(&raw, &mut events);
            prop_assert!(events.len() <= MAX_EVENTS);
        }

        #[test]
        fn a_damaged_section_decodes_or_does_not(place: prop::sample::Index, value: u8) {
            let (_, mut raw) = section();
            let place = place.index(raw.len());
            raw[place] = value;
            let mut events = Vec::new();
            let _ = decode(&raw, &mut events);
            prop_assert!(events.len() <= MAX_EVENTS);
        }
    }
}
