//! `maps`: address spaces at an instant, as `/proc/PID/maps` shows them, with size and birth.
//!
//! # JSON
//! `spaces[]` with `space`, `pid`, `at_ns`, `reserved_bytes`, `committed_bytes`, and `ranges[]`: `start`
//! and `end` (hex strings), `size_bytes`, `perms`, `offset`, `dev`, `inode`, `path`, and `birth`: `null`
//! for what was there before the window, else `t_ns`, `call`, `pid`, `tid`, `thread` (its name), `stack`
//! (the log's id), `function` (the innermost frame outside of libc and allocators, or `null`).

use std::io::{self, Write};

use maptrail_tracelog::types::{Addr, Nanos, Perms, Pid, SpaceId, StackId, Tid};
use serde::Serialize;

use super::text::{Screen, Table, Tone, escaped, seconds, size};
use super::untraced::write_warning;
use crate::births::Birth;
use crate::maps_at::{Mapped, SpaceMaps};
use crate::symbols::Names;
use crate::untraced;
use crate::world::World;

/// The whole answer, ready to be printed.
#[derive(Clone, Debug, Serialize)]
pub struct Maps {
    spaces: Vec<SpaceView>,
    #[serde(skip)]
    untraced_threads: u64,
}

#[derive(Clone, Debug, Serialize)]
struct SpaceView {
    space: SpaceId,
    pid: Pid,
    at_ns: Nanos,
    reserved_bytes: u64,
    committed_bytes: u64,
    ranges: Vec<RangeView>,
}

#[derive(Clone, Debug, Serialize)]
struct RangeView {
    start: Addr,
    end: Addr,
    size_bytes: u64,
    perms: Perms,
    offset: u64,
    dev: String,
    inode: u64,
    path: String,
    birth: Option<BirthView>,
}

/// A call that made memory, for views.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BirthView {
    pub t_ns: Nanos,
    pub call: &'static str,
    pub pid: Pid,
    pub tid: Tid,
    pub thread: String,
    pub stack: StackId,
    pub function: Option<String>,
}

impl BirthView {
    pub(super) fn new(birth: &Birth, world: &World, names: &mut Names) -> BirthView {
        let thread = world.thread(birth.thread);
        BirthView {
            t_ns: birth.at,
            call: birth.call.name(),
            pid: thread.map_or(Pid(0), |t| t.pid),
            tid: thread.map_or(Tid(0), |t| t.tid),
            thread: thread.map_or_else(String::new, |t| t.name.clone()),
            stack: birth.stack,
            function: names.label(world, birth.stack, birth.space),
        }
    }
}

impl Maps {
    /// Puts names to what [`crate::maps_at::maps_at`] found.
    pub fn new(spaces: &[SpaceMaps], world: &World, names: &mut Names) -> Maps {
        let spaces = spaces
            .iter()
            .map(|maps| {
                let bytes = |m: &Mapped| m.region.len();
                let committed = maps.regions.iter().filter(|m| m.region.perms.accessible());
                SpaceView {
                    space: maps.space,
                    pid: maps.pid,
                    at_ns: maps.at,
                    reserved_bytes: maps.regions.iter().map(bytes).sum(),
                    committed_bytes: committed.map(bytes).sum(),
                    ranges: (maps.regions.iter())
                        .map(|m| RangeView::new(m, maps, world, names))
                        .collect(),
                }
            })
            .collect();
        Maps {
            spaces,
            untraced_threads: untraced::count(&world.untraced),
        }
    }

    /// Writes it for people.
    ///
    /// # Errors
    /// Those of the output.
    pub fn write_text(&self, out: &mut dyn Write, screen: Screen) -> io::Result<()> {
        for (i, space) in self.spaces.iter().enumerate() {
            if i > 0 {
                writeln!(out)?;
            }
            let title = format!(
                "space {}, process {}, at {}: {} reserved, {} of it accessible, in {} ranges",
                space.space,
                space.pid,
                seconds(space.at_ns),
                size(space.reserved_bytes),
                size(space.committed_bytes),
                space.ranges.len(),
            );
            writeln!(out, "{}", screen.paint().tone(Tone::Strong, title))?;
            let mut table = Table::new("<<<<>><");
            for range in &space.ranges {
                table.row(range.cells());
            }
            table.write(out, "")?;
        }
        if self.spaces.is_empty() {
            writeln!(out, "No address space was alive then.")?;
        }
        write_warning(out, self.untraced_threads, screen.paint())
    }
}

impl RangeView {
    fn new(mapped: &Mapped, maps: &SpaceMaps, world: &World, names: &mut Names) -> RangeView {
        let region = &mapped.region;
        let info = world.files.info(region.file);
        let (major, minor) = info.map_or((0, 0), |i| i.dev);
        let path = info.map_or("", |i| i.path.as_str());
        let heap = path.is_empty() && maps.heap.intersect(region.range).is_some();
        RangeView {
            start: region.range.start,
            end: region.range.end,
            size_bytes: region.len(),
            perms: region.perms,
            offset: region.offset,
            dev: format!("{major:02x}:{minor:02x}"),
            inode: info.map_or(0, |i| i.inode),
            path: if heap { "[heap]" } else { path }.to_owned(),
            birth: (mapped.birth.as_ref()).map(|b| BirthView::new(b, world, names)),
        }
    }

    fn cells(&self) -> [String; 7] {
        let path = escaped(&self.path).to_string();
        let birth = self.birth.as_ref().map(BirthView::line);
        [
            format!("{:x}-{:x}", self.start.0, self.end.0),
            self.perms.to_string(),
            format!("{:08x}", self.offset),
            self.dev.clone(),
            self.inode.to_string(),
            size(self.size_bytes),
            match birth {
                Some(birth) if path.is_empty() => birth,
                Some(birth) => format!("{path}  {birth}"),
                None => path,
            },
        ]
    }
}

impl BirthView {
    /// `mmap at 1.234 s by worker/71: pool_grow`.
    fn line(&self) -> String {
        let mut line = format!(
            "{} at {} by {}/{}",
            self.call,
            seconds(self.t_ns),
            self.thread,
            self.tid
        );
        if let Some(function) = &self.function {
            line.push_str(": ");
            line.push_str(function);
        }
        escaped(&line).to_string()
    }
}
