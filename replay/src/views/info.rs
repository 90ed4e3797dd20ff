//! `info`: what a log is about, how complete it is, and what the recording cost the target.
//!
//! The JSON is [`Info`]: `writer`, `host`, `kernel`, `command[]`, `start` (RFC 3339), `events`,
//! `lost`, `settled`, `complete` (false for a log that is cut or damaged, or lost events), `end`,
//! `mechanism`, `window_s`, `threads`, `spaces`, `checkpoints`, `stops`, `stopped_ns` (time the
//! recorder spent serving stops), `held_ns` (for checkpoints), `attached` (the pid of a process that
//! was running before, or `null`), `untraced[]` (threads that were not recorded, all the time or part of
//! it: `tid`, `name`, `why`, `ran_s`), `recorder` (`null`, or `peak_rss_bytes` and `cpu_s`),
//! `uncovered[]`, `notes[]`, `health`, and `log_bytes` with `events`, `stacks`, `modules`, `symbols`, `other`, `total`.

use std::io::{self, Read, Seek, Write};

use jiff::Timestamp;
use maptrail_tracelog::reader::{Health, LogBytes, LogReader};
use maptrail_tracelog::record::{Body, Footprint, Origin, Summary, WindowEnd};
use maptrail_tracelog::types::{Nanos, Pid};
use maptrail_tracelog::writer::Chunk;
use serde::Serialize;

use super::text::{Screen, Table, Tone, count, escaped, percent, plural, seconds, size};
use super::untraced::named;
use crate::untraced::UntracedThread;

/// Less time than this would read as 0.
const SHOWN_NS: u64 = 500_000;

/// What a log says about itself.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// Version of the program that wrote it.
    pub writer: String,
    /// Host name.
    pub host: String,
    /// Kernel release and version.
    pub kernel: String,
    /// What was recorded.
    pub command: Vec<String>,
    /// When the window opened.
    pub start: Timestamp,
    /// Events in the log.
    pub events: u64,
    /// Events seen and not recorded.
    pub lost: u64,
    /// Calls whose order the recorder settled by looking at the kernel.
    pub settled: u64,
    /// Nothing is cut off or damaged.
    pub complete: bool,
    /// Why the window closed; `None` if the log does not say, because it is cut.
    pub end: Option<String>,
    /// How stops were made.
    pub mechanism: &'static str,
    /// Length of the window, seconds.
    pub window_s: f64,
    /// Threads followed.
    pub threads: u64,
    /// Address spaces.
    pub spaces: u64,
    /// Lists of the kernel's that the model can be compared with.
    pub checkpoints: u64,
    /// Ptrace stops; 0 if the log is cut.
    pub stops: u64,
    /// Time the recorder spent serving them, nanoseconds; waiting for it comes on top.
    pub stopped_ns: u64,
    /// Time that threads were held for checkpoints, nanoseconds.
    pub held_ns: u64,
    /// The process, if it was running before the window opened.
    pub attached: Option<Pid>,
    /// Threads whose calls were not recorded, all the time or part of it.
    pub untraced: Vec<UntracedThread>,
    /// What the recorder took of the machine; `None` if the log does not say.
    pub recorder: Option<Recorder>,
    /// What the mechanism could not see, in words.
    pub uncovered: Vec<String>,
    /// What else the recorder thought worth saying.
    pub notes: Vec<String>,
    /// What is wrong with the log.
    pub health: Health,
    /// Where its bytes went.
    pub log_bytes: LogBytes,
}

/// What the recorder itself took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Recorder {
    /// Most memory in RAM at once.
    pub peak_rss_bytes: u64,
    /// CPU time, seconds.
    pub cpu_s: f64,
}

impl From<Footprint> for Recorder {
    fn from(footprint: Footprint) -> Recorder {
        Recorder {
            peak_rss_bytes: footprint.peak_rss,
            cpu_s: Nanos(footprint.cpu_ns).as_secs_f64(),
        }
    }
}

/// Reads a whole log for what it says about itself.
///
/// # Errors
/// Those of the input.
pub fn gather<R: Read + Seek>(reader: &mut LogReader<R>) -> io::Result<Info> {
    let header = reader.header().clone();
    let window = reader.span().map_or(Nanos(0), |(_, last)| last);
    let mut info = Info {
        writer: header.writer,
        host: header.host,
        kernel: header.kernel,
        command: header.command,
        start: Timestamp::from_nanosecond(i128::from(header.wall_start_ns)).unwrap_or_default(),
        events: 0,
        lost: 0,
        settled: 0,
        complete: false,
        end: None,
        mechanism: header.mechanism.name(),
        window_s: window.as_secs_f64(),
        threads: 0,
        spaces: 0,
        checkpoints: 0,
        stops: 0,
        stopped_ns: 0,
        held_ns: 0,
        attached: None,
        untraced: Vec::new(),
        recorder: None,
        uncovered: Vec::new(),
        notes: Vec::new(),
        health: Health::default(),
        log_bytes: LogBytes::default(),
    };
    reader.rewind();
    let mut chunk = Chunk::default();
    while reader.next_chunk(&mut chunk)? {
        info.events += chunk.events.len() as u64;
        for record in chunk.records.drain(..) {
            info.take(record.body);
        }
    }
    // Nothing is asked of the rest, but damage is found by reading.
    reader.names()?;
    reader.check_other_blocks()?;
    info.health = reader.health();
    info.complete = info.health.is_complete() && info.lost == 0;
    info.log_bytes = reader.log_bytes()?;
    Ok(info)
}

impl Info {
    fn take(&mut self, body: Body) {
        match body {
            Body::ThreadStart { .. } => self.threads += 1,
            Body::SpaceStart { pid, origin, .. } => {
                if self.spaces == 0 && origin == Origin::Attach {
                    self.attached = Some(pid);
                }
                self.spaces += 1;
            }
            Body::Untraced(untraced) => self.untraced.push(UntracedThread::from(&untraced)),
            Body::Footprint(footprint) => self.recorder = Some(footprint.into()),
            Body::Checkpoint(c) => {
                self.checkpoints += 1;
                self.held_ns = self.held_ns.saturating_add(c.held_ns);
            }
            Body::Lost { events, why } => {
                self.lost = self.lost.saturating_add(events);
                self.notes.push(format!("{events} events lost: {why}"));
            }
            Body::Note(note) => self.notes.push(note),
            Body::Summary(summary) => self.summary(summary),
            _ => {}
        }
    }

    fn summary(&mut self, summary: Summary) {
        self.end = Some(match summary.end {
            WindowEnd::ProgramEnded => "the program ended".to_owned(),
            WindowEnd::Time => "its time was up".to_owned(),
            WindowEnd::Asked => "the recorder was asked to stop".to_owned(),
            WindowEnd::Output(why) => format!("the log could not be written any more: {why}"),
            WindowEnd::ThreadsEnded => "the threads that were followed ended".to_owned(),
            WindowEnd::Limit(which) => which,
        });
        self.lost = self.lost.max(summary.lost);
        self.settled = summary.settled;
        self.stops = summary.stops;
        self.stopped_ns = summary.stopped_ns;
        self.uncovered = summary.uncovered;
    }
}

/// Writes it for people.
///
/// # Errors
/// Those of the output.
pub fn write_text(out: &mut dyn Write, info: &Info, screen: Screen) -> io::Result<()> {
    let paint = screen.paint();
    let (tone, state) = if info.complete {
        (Tone::Good, "complete")
    } else {
        (Tone::Bad, "NOT complete")
    };
    writeln!(
        out,
        "A log of {}, {}: {} events in {}.",
        size(info.log_bytes.total),
        paint.tone(tone, state),
        count(info.events),
        seconds(Nanos((info.window_s * 1e9) as u64)),
    )?;
    facts(info).write(out, "  ")?;
    write_bytes(out, info)?;
    for note in &info.notes {
        writeln!(out, "note: {}", escaped(note))?;
    }
    Ok(())
}

fn facts(info: &Info) -> Table {
    let mut facts = Table::new("<<");
    let mut fact = |name: &str, what: String| facts.row([name.to_owned(), what]);
    fact("command", escaped(&info.command.join(" ")).to_string());
    fact(
        "on",
        escaped(&format!("{}, Linux {}", info.host, info.kernel)).to_string(),
    );
    if let Some(pid) = info.attached {
        fact("attached", format!("to pid {pid}"));
    }
    fact("from", format!("{:.3}", info.start));
    let end = info.end.as_deref().unwrap_or("unknown: the log is cut");
    fact("ended", escaped(end).to_string());
    let recorder = format!("maptrail {}, mechanism {}", info.writer, info.mechanism);
    fact("recorded by", escaped(&recorder).to_string());
    let lost = count(info.lost);
    let lost = match info.end {
        Some(_) => format!(
            "{lost} events; {} settled while recording, by looking at the kernel",
            count(info.settled)
        ),
        None => format!("{lost} events up to the cut, and all that came after it"),
    };
    fact("lost", lost);
    fact(
        "followed",
        format!(
            "{} thread{} in {} address space{}",
            count(info.threads),
            plural(info.threads),
            count(info.spaces),
            plural(info.spaces)
        ),
    );
    fact("checkpoints", count(info.checkpoints).to_string());
    let held = match info.held_ns {
        0..SHOWN_NS => String::new(),
        ns => format!(", {} for checkpoints", seconds(Nanos(ns))),
    };
    // Only the end of a log tells.
    if info.end.is_some() {
        let took = seconds(Nanos(info.stopped_ns));
        let stops = count(info.stops);
        fact(
            "cost",
            format!("{stops} stops; the recorder spent {took} serving them{held}"),
        );
    }
    if let Some(recorder) = info.recorder {
        fact(
            "recorder",
            format!(
                "peak {}, {:.2} s of CPU",
                size(recorder.peak_rss_bytes),
                recorder.cpu_s
            ),
        );
    }
    if !info.untraced.is_empty() {
        let n = info.untraced.len() as u64;
        fact(
            "not traced",
            format!(
                "{} thread{}: {}",
                count(n),
                plural(n),
                named(&info.untraced)
            ),
        );
    }
    // To say that nothing was missed would read as a proof, which only `verify` has.
    if !info.uncovered.is_empty() {
        fact(
            "not covered",
            escaped(&info.uncovered.join("; ")).to_string(),
        );
    }
    facts
}

fn write_bytes(out: &mut dyn Write, info: &Info) -> io::Result<()> {
    let b = &info.log_bytes;
    let per_event = match info.events {
        0 => String::new(),
        n => format!("{:.1} bytes an event", b.events as f64 / n as f64),
    };
    let mut table = Table::new("<>><");
    for (name, bytes, more) in [
        ("events", b.events, per_event.as_str()),
        ("stacks", b.stacks, ""),
        ("modules", b.modules, ""),
        ("symbols", b.symbols, ""),
        ("other", b.other, ""),
    ] {
        let share = percent(bytes, b.total);
        table.row([name.to_owned(), size(bytes), share, more.to_owned()]);
    }
    writeln!(out, "Where its bytes went:")?;
    table.write(out, "  ")
}
