//! `who`: the life of an address, one line a call, each with its stack.
//!
//! # JSON
//! `address` (hex string) and `spaces[]`: `space`, `pid`, `now` (`null`, or the range mapped there:
//! `start`, `end`, `perms`, `path`, `birth_t_ns`), `first_t_ns` (`null`, or when it was first mapped, if
//! that is later than the time asked for), and `touches[]`, oldest first: `t_ns`, `address`
//! (where the memory was then), `what` (`call`, `pre-existing` or `look`), and for calls `call` (its
//! name), `text` (as strace prints it), `pid`, `tid`, `thread`, `stack`, `frames[]`; for looks `mapped`.
//! `touches_left_out` counts those that are missing in the middle of a long list.

use std::io::{self, Write};

use maptrail_tracelog::record::{CallEvent, LookCause};
use maptrail_tracelog::types::{Addr, Nanos, Perms, Pid, SpaceId, StackId, Tid};
use rustc_hash::FxHashMap;
use serde::Serialize;

use super::stack::{Marks, write_stack};
use super::strace;
use super::text::{Screen, Tone, count, escaped, seconds, size};
use crate::maps_at::{Mapped, SpaceMaps};
use crate::symbols::{Frame, Names};
use crate::who::{Later, Touch, What, Who};
use crate::world::World;

/// The whole answer, ready to be printed.
#[derive(Clone, Debug, Serialize)]
pub struct Life {
    address: Addr,
    spaces: Vec<SpaceLife>,
}

#[derive(Clone, Debug, Serialize)]
struct SpaceLife {
    space: SpaceId,
    pid: Pid,
    now: Option<RangeNow>,
    #[serde(rename = "first_t_ns", serialize_with = "first_ns")]
    later: Option<Later>,
    touches: Vec<TouchView>,
    touches_left_out: u64,
}

fn first_ns<S: serde::Serializer>(later: &Option<Later>, s: S) -> Result<S::Ok, S::Error> {
    later.map(|later| later.first).serialize(s)
}

#[derive(Clone, Debug, Serialize)]
struct RangeNow {
    start: Addr,
    end: Addr,
    perms: Perms,
    path: String,
    birth_t_ns: Option<Nanos>,
}

#[derive(Clone, Debug, Serialize)]
struct TouchView {
    t_ns: Nanos,
    address: Addr,
    #[serde(flatten)]
    what: WhatView,
}

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
enum WhatView {
    Call(Box<CallView>),
    PreExisting,
    Look { cause: &'static str, mapped: bool },
}

#[derive(Clone, Debug, Serialize)]
struct CallView {
    call: &'static str,
    text: String,
    pid: Pid,
    tid: Tid,
    thread: String,
    stack: StackId,
    frames: Vec<Frame>,
}

impl Life {
    /// Puts names to what [`crate::who::who`] found for `address`.
    pub fn new(address: Addr, found: &[Who], world: &World, names: &mut Names) -> Life {
        let spaces = found
            .iter()
            .map(|who| SpaceLife {
                space: who.space,
                pid: world.space_info(who.space).map_or(Pid(0), |info| info.pid),
                now: who.now.as_ref().map(|now| RangeNow::new(now, world)),
                later: who.later,
                touches: (who.touches.iter())
                    .map(|touch| TouchView::new(touch, world, names))
                    .collect(),
                touches_left_out: who.left_out,
            })
            .collect();
        Life { address, spaces }
    }

    /// Writes it for people.
    ///
    /// # Errors
    /// Those of the output.
    pub fn write_text(&self, out: &mut dyn Write, screen: Screen) -> io::Result<()> {
        let mut marks = Marks::default();
        for (i, space) in self.spaces.iter().enumerate() {
            if i > 0 {
                writeln!(out)?;
            }
            let answer = self.answer(space);
            writeln!(out, "{}", screen.paint().tone(Tone::Strong, answer))?;
            let mut shown = FxHashMap::default();
            for (i, touch) in space.touches.iter().enumerate() {
                if space.touches_left_out > 0 && i == space.touches.len().div_ceil(2) {
                    let more = format!(
                        "       ...  {} more calls; --all shows them",
                        count(space.touches_left_out)
                    );
                    writeln!(out, "\n{}", screen.paint().tone(Tone::Strong, more))?;
                }
                touch.write_text(out, self.address, &mut shown, screen, &mut marks)?;
            }
        }
        marks.write_legend(out, screen.paint())
    }

    /// What became of the address in a space, in a sentence.
    fn answer(&self, space: &SpaceLife) -> String {
        let place = format!(
            "{} in process {} (space {})",
            self.address, space.pid, space.space
        );
        if let Some(later) = space.later {
            return format!(
                "{place}: nothing was mapped there by {}; first mapped at {}.",
                seconds(later.asked),
                seconds(later.first)
            );
        }
        let Some(now) = &space.now else {
            let last = space.touches.last().map_or(Nanos(0), |t| t.t_ns);
            return format!(
                "{place}: nothing is mapped there; it was last touched at {}.",
                seconds(last)
            );
        };
        let since = match now.birth_t_ns {
            Some(at) => format!("mapped at {} and not released since", seconds(at)),
            None => "there since before the recording".to_owned(),
        };
        format!(
            "{place}: inside {:x}-{:x} {} {}({}), {since}.",
            now.start.0,
            now.end.0,
            now.perms,
            match now.path.as_str() {
                "" => String::new(),
                path => format!("{} ", escaped(path)),
            },
            size(now.end.0.saturating_sub(now.start.0)),
        )
    }
}

impl RangeNow {
    fn new(mapped: &Mapped, world: &World) -> RangeNow {
        let region = &mapped.region;
        RangeNow {
            start: region.range.start,
            end: region.range.end,
            perms: region.perms,
            path: world.files.path(region.file).to_owned(),
            birth_t_ns: mapped.birth.map(|b| b.at),
        }
    }
}

impl TouchView {
    fn new(touch: &Touch, world: &World, names: &mut Names) -> TouchView {
        TouchView {
            t_ns: touch.at,
            address: touch.addr,
            what: match &touch.what {
                What::Call(event) => WhatView::Call(Box::new(CallView::new(event, world, names))),
                What::PreExisting => WhatView::PreExisting,
                What::Look { cause, mapped } => WhatView::Look {
                    cause: cause_name(*cause),
                    mapped: *mapped,
                },
            },
        }
    }

    /// `shown` has the stacks that were printed, and the times of their calls: an address that is
    /// mapped again and again shows the same few stacks.
    fn write_text(
        &self,
        out: &mut dyn Write,
        asked: Addr,
        shown: &mut FxHashMap<StackId, Nanos>,
        screen: Screen,
        marks: &mut Marks,
    ) -> io::Result<()> {
        let paint = screen.paint();
        let at = seconds(self.t_ns);
        let then = match self.address {
            same if same == asked => String::new(),
            moved => format!("  (the memory was at {moved} then)"),
        };
        match &self.what {
            WhatView::Call(call) => {
                let thread = escaped(&call.thread);
                writeln!(
                    out,
                    "\n{at:>10}  {thread}/{}  {}{then}",
                    call.tid, call.text
                )?;
                match shown.get(&call.stack).copied() {
                    Some(at) if call.stack != StackId::NONE => {
                        let same = format!("            (the same stack as at {})", seconds(at));
                        writeln!(out, "{}", paint.tone(Tone::Dim, same))
                    }
                    _ => {
                        shown.insert(call.stack, self.t_ns);
                        write_stack(out, "            ", &call.frames, screen, marks)
                    }
                }
            }
            WhatView::PreExisting => {
                writeln!(
                    out,
                    "\n{at:>10}  it was there when the recording of this space began{then}"
                )
            }
            WhatView::Look { cause, mapped } => {
                let found = if *mapped { "mapped" } else { "not mapped" };
                writeln!(
                    out,
                    "\n{at:>10}  the recorder looked ({cause}): {found}{then}"
                )
            }
        }
    }
}

fn cause_name(cause: LookCause) -> &'static str {
    match cause {
        LookCause::Acquired => "a call mapped what its arguments do not tell",
        LookCause::PartialFailure => "a call failed and may have acted in part",
        LookCause::Race => "calls raced",
    }
}

impl CallView {
    fn new(event: &CallEvent, world: &World, names: &mut Names) -> CallView {
        let thread = world.thread(event.thread);
        CallView {
            call: event.call.name(),
            text: strace::call_text(event),
            pid: thread.map_or(Pid(0), |t| t.pid),
            tid: thread.map_or(Tid(0), |t| t.tid),
            thread: thread.map_or_else(String::new, |t| t.name.clone()),
            stack: event.stack,
            frames: names.stack(world, event.stack, Some(event.space)),
        }
    }
}

/// What lies further away than this has nothing to do with an address, bytes.
const NEAREST_MAX: u64 = 1 << 30;

/// What an address lies closest to, if it was never mapped: in words. `None` if nothing is near.
#[must_use]
pub fn nearest(address: Addr, spaces: &[SpaceMaps], world: &World) -> Option<String> {
    let distance = |m: &Mapped| {
        let range = m.region.range;
        let below = range.start.0.saturating_sub(address.0);
        below.max(address.0.saturating_sub(range.end.0.saturating_sub(1)))
    };
    let regions = spaces
        .iter()
        .flat_map(|s| s.regions.iter().map(move |m| (s, m)));
    let (space, mapped) = regions
        .min_by_key(|(_, m)| distance(m))
        .filter(|(_, m)| distance(m) <= NEAREST_MAX)?;
    let range = mapped.region.range;
    let side = if range.start > address {
        "above"
    } else {
        "below"
    };
    let path = world.files.path(mapped.region.file);
    let path = if path.is_empty() {
        "anonymous memory"
    } else {
        path
    };
    Some(format!(
        "the nearest mapping is {:x}-{:x} ({}), {} {side} it, in process {}",
        range.start.0,
        range.end.0,
        escaped(path),
        size(distance(mapped)),
        space.pid,
    ))
}
