//! A minute in the life of a worker that was running long before: it has 10 GiB and grows by 400 MiB,
//! and one of its threads was not chosen to be recorded.

use maptrail_tracelog::calls::Call;
use maptrail_tracelog::record::{
    Body, CheckpointReason, Footprint, NotTraced, Origin, PageRun, Residency, RssSample, SpaceEnd,
    Summary, Untraced, WindowEnd,
};
use maptrail_tracelog::types::{Addr, Nanos, PAGE, Pid, Range, Tid};

use crate::story::{
    CHURN, LEAK, MIB, SECOND, SPACE, THREAD, Teller, checkpoint, image, vma, write,
};

pub const WEIGHTS: u64 = 0x7e00_0000_0000;
const BUFFER: u64 = 0x7ef0_0000_0000;
const LEAKED: u64 = 0x7f00_0000_0000;
const HIDDEN: u64 = 0x7f40_0000_0000;
const GIB: u64 = 1 << 30;

/// The log.
pub fn log() -> Vec<u8> {
    let mut t = Teller::new();
    begin(&mut t);
    for i in 0..100 {
        t.map(
            i * SECOND * 6 / 10 + 1_000_000,
            LEAKED + i * 4 * MIB,
            4 * MIB,
            LEAK,
        );
        if i % 10 == 0 {
            rss(
                &mut t,
                i * SECOND * 6 / 10 + 2_000_000,
                10 * GIB + i * 4 * MIB,
            );
        }
    }
    // A buffer from before goes, and comes back half as large.
    t.call(30 * SECOND, Call::Munmap, &[BUFFER, 64 * MIB], 0, CHURN);
    t.map(31 * SECOND, BUFFER, 32 * MIB, CHURN);
    end(&mut t);
    write(t.chunk())
}

fn rss(t: &mut Teller, ns: u64, anon: u64) {
    let sample = RssSample {
        anon,
        file: MIB,
        ..RssSample::default()
    };
    t.record(ns, Body::Rss(SPACE, sample));
}

fn begin(t: &mut Teller) {
    let start = Body::SpaceStart {
        space: SPACE,
        pid: Pid(4711),
        origin: Origin::Attach,
        start_brk: Addr(0x5555_0010_0000),
    };
    t.record(0, start);
    let mut vmas = vec![
        vma(WEIGHTS, WEIGHTS + 10 * GIB, "rw-p", 0),
        vma(BUFFER, BUFFER + 64 * MIB, "rw-p", 0),
    ];
    vmas.extend(image());
    vmas.sort_by_key(|v| v.range.start);
    checkpoint(t, 0, CheckpointReason::Start, vmas);
    rss(t, 0, 10 * GIB);
    let thread = Body::ThreadStart {
        thread: THREAD,
        tid: Tid(4712),
        pid: Pid(4711),
        space: SPACE,
        name: "decode".into(),
    };
    t.record(0, thread);
}

fn end(t: &mut Teller) {
    let ns = 60 * SECOND;
    for (tid, ran_ns) in [(4711, Some(0)), (4713, Some(1_250_000_000))] {
        let untraced = Untraced {
            space: SPACE,
            tid: Tid(tid),
            name: "io\x1b[31m".into(),
            why: NotTraced::NotChosen,
            since: Nanos(0),
            ran_ns,
        };
        t.record(ns, Body::Untraced(untraced));
    }
    let mut vmas = vec![
        vma(WEIGHTS, WEIGHTS + 10 * GIB - 4 * MIB, "rw-p", 0),
        vma(BUFFER, BUFFER + 32 * MIB, "rw-p", 0),
        vma(LEAKED, LEAKED + 400 * MIB, "rw-p", 0),
        vma(HIDDEN, HIDDEN + 12 * MIB, "rw-p", 0),
    ];
    vmas.extend(image());
    vmas.sort_by_key(|v| v.range.start);
    checkpoint(t, ns, CheckpointReason::WindowEnd, vmas);
    let how = SpaceEnd::Window;
    t.record(ns, Body::SpaceEnd { space: SPACE, how });
    let end = Body::ThreadEnd {
        thread: THREAD,
        status: None,
        name: "decode".into(),
    };
    t.record(ns, end);
    // The process runs free by now.
    let resident = Residency {
        space: SPACE,
        looked_at: vec![Range {
            start: Addr(LEAKED),
            end: Addr(LEAKED + 400 * MIB),
        }],
        resident: vec![PageRun {
            gap: LEAKED / PAGE,
            pages: 398 * MIB / PAGE,
        }],
        swapped: Vec::new(),
    };
    t.record(ns, Body::Residency(resident));
    rss(t, ns, 10 * GIB + 396 * MIB);
    let footprint = Footprint {
        peak_rss: 6 * MIB + MIB / 10,
        cpu_ns: 320_000_000,
    };
    t.record(ns, Body::Footprint(footprint));
    let summary = Summary {
        end: WindowEnd::Limit("the log would have grown over 64.0 MiB (--max-log)".into()),
        events: 102,
        lost: 0,
        settled: 0,
        stops: 204,
        stopped_ns: 5_000_000,
        uncovered: vec![],
    };
    t.record(ns, Body::Summary(summary));
}
