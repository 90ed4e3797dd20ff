//! Logs to test with: random ones with extreme values, and a small one that looks real.

use std::io::Cursor;

use maptrail_tracelog::calls::{Abi, Call};
use maptrail_tracelog::reader::LogReader;
use maptrail_tracelog::record::*;
use maptrail_tracelog::types::*;
use maptrail_tracelog::writer::{Chunk, LogWriter};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

pub fn header() -> Header {
    Header {
        writer: "maptrail 0.1.0".into(),
        host: "böx".into(),
        kernel: "6.1.0-13-amd64 #1 SMP".into(),
        command: vec!["./victim".into(), "--leak".into(), String::new()],
        mechanism: Mechanism::Seccomp,
        wall_start_ns: 1_700_000_000_123_456_789,
        monotonic_start_ns: u64::MAX,
        page_size: 4096,
    }
}

/// Writes a finished log into memory.
pub fn log(chunks: &[Chunk], names: &[Name]) -> Vec<u8> {
    let mut log = LogWriter::create(Vec::new(), &header()).unwrap();
    for chunk in chunks {
        log.write_chunk(chunk).unwrap();
    }
    log.write_names(names).unwrap();
    log.finish().unwrap();
    assert_eq!(log.bytes_written(), log.get_ref().len() as u64);
    log.into_inner()
}

/// Reads all chunks that are left, each into the same buffers.
pub fn chunks(log: &mut LogReader<Cursor<&[u8]>>) -> Vec<Chunk> {
    let mut all = Vec::new();
    let mut chunk = Chunk::default();
    while log.next_chunk(&mut chunk).unwrap() {
        all.push(chunk.clone());
    }
    assert_eq!(chunk, Chunk::default(), "nothing is left over at the end");
    all
}

/// Small and large ones, of every length.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        (any::<u64>(), 0_u32..64).prop_map(|(value, shift)| value >> shift),
        select(vec![
            0,
            1,
            250,
            251,
            1 << 62,
            1 << 63,
            i64::MAX as u64,
            u64::MAX
        ]),
    ]
}

fn small() -> impl Strategy<Value = u32> {
    prop_oneof![0_u32..4, any::<u32>()]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z/]{0,12}", any::<String>()]
}

fn range() -> impl Strategy<Value = Range> {
    (number(), number()).prop_map(|(start, end)| Range {
        start: Addr(start),
        end: Addr(end),
    })
}

pub fn event() -> impl Strategy<Value = CallEvent> {
    let what = (
        select(&Call::ALL[..]),
        select(&Abi::ALL[..]),
        [number(), number(), number(), number(), number(), number()],
    );
    let outcome = prop_oneof![
        4 => number().prop_map(|v| Outcome::Returned(v as i64)),
        1 => Just(Outcome::Unfinished),
    ];
    let who = (0_u32..3, small(), small(), small());
    (what, outcome, who, [number(), number(), number(), number()]).prop_map(
        |((call, abi, mut args), outcome, (thread, space, stack, file), when)| {
            args[call.args().len()..].fill(0);
            CallEvent {
                thread: ThreadIx(thread),
                space: SpaceId(space),
                call,
                abi,
                args,
                outcome,
                entry: Stamp(when[0]),
                exit: Stamp(when[1]),
                entry_ns: Nanos(when[2]),
                exit_ns: Nanos(when[3]),
                stack: StackId(stack),
                file: FileId(file),
            }
        },
    )
}

pub fn node() -> impl Strategy<Value = StackNode> {
    (small(), small(), number(), any::<u8>()).prop_map(|(parent, module, offset, flags)| {
        StackNode {
            parent: StackId(parent),
            module: ModuleId(module),
            offset,
            flags,
        }
    })
}

fn vma() -> impl Strategy<Value = Vma> {
    (range(), any::<u8>(), number(), small()).prop_map(|(range, perms, offset, file)| Vma {
        range,
        perms: Perms(perms),
        offset,
        file: FileId(file),
    })
}

fn runs() -> impl Strategy<Value = Vec<PageRun>> {
    vec(
        (number(), number()).prop_map(|(gap, pages)| PageRun { gap, pages }),
        0..5,
    )
}

fn space_body() -> impl Strategy<Value = Body> {
    let origin = prop_oneof![
        (text(), vec(text(), 0..3)).prop_map(|(path, argv)| Origin::Exec { path, argv }),
        small().prop_map(|parent| Origin::Fork {
            parent: SpaceId(parent)
        }),
        Just(Origin::Attach),
    ];
    let ends = select(vec![
        SpaceEnd::Exit,
        SpaceEnd::Exec,
        SpaceEnd::Killed,
        SpaceEnd::Window,
    ]);
    prop_oneof![
        (small(), small(), origin, number()).prop_map(|(space, pid, origin, start_brk)| {
            Body::SpaceStart {
                space: SpaceId(space),
                pid: Pid(pid),
                origin,
                start_brk: Addr(start_brk),
            }
        }),
        (small(), ends).prop_map(|(space, how)| Body::SpaceEnd {
            space: SpaceId(space),
            how
        }),
        (small(), small(), small(), small(), text()).prop_map(|(thread, tid, pid, space, name)| {
            Body::ThreadStart {
                thread: ThreadIx(thread),
                tid: Tid(tid),
                pid: Pid(pid),
                space: SpaceId(space),
                name,
            }
        }),
        (small(), option::of(any::<i32>()), text()).prop_map(|(thread, status, name)| {
            Body::ThreadEnd {
                thread: ThreadIx(thread),
                status,
                name,
            }
        }),
    ]
}

fn module_body() -> impl Strategy<Value = Body> {
    let kinds = select(vec![ModuleKind::File, ModuleKind::Vdso, ModuleKind::Memory]);
    prop_oneof![
        (small(), (small(), small()), number(), text()).prop_map(|(id, dev, inode, path)| {
            Body::File(FileId(id), FileInfo { dev, inode, path })
        }),
        (small(), kinds, small(), vec(any::<u8>(), 0..20)).prop_map(
            |(id, kind, file, build_id)| {
                let file = FileId(file);
                Body::Module(
                    ModuleId(id),
                    ModuleInfo {
                        kind,
                        file,
                        build_id,
                    },
                )
            }
        ),
        (small(), small(), number()).prop_map(|(space, module, bias)| Body::ModuleBase {
            space: SpaceId(space),
            module: ModuleId(module),
            bias,
        }),
    ]
}

fn seen_body() -> impl Strategy<Value = Body> {
    let reasons = select(vec![
        CheckpointReason::Start,
        CheckpointReason::Periodic,
        CheckpointReason::SpaceEnd,
        CheckpointReason::WindowEnd,
    ]);
    let causes = select(vec![
        LookCause::Acquired,
        LookCause::PartialFailure,
        LookCause::Race,
    ]);
    let in_flight = (small(), number()).prop_map(|(thread, entry)| InFlight {
        thread: ThreadIx(thread),
        entry: Stamp(entry),
    });
    prop_oneof![
        (
            small(),
            reasons,
            vec(vma(), 0..9),
            vec(in_flight, 0..3),
            number()
        )
            .prop_map(
                |(space, reason, vmas, in_flight, held_ns)| Body::Checkpoint(Checkpoint {
                    space: SpaceId(space),
                    reason,
                    vmas,
                    in_flight,
                    held_ns,
                })
            ),
        (small(), causes, number(), range(), vec(vma(), 0..3)).prop_map(
            |(space, cause, call, range, vmas)| Body::Look(Look {
                space: SpaceId(space),
                cause,
                call: Stamp(call),
                range,
                vmas,
            })
        ),
        (small(), [number(), number(), number(), number(), number()]).prop_map(|(space, v)| {
            let [size, anon, file, shmem, swap] = v;
            Body::Rss(
                SpaceId(space),
                RssSample {
                    size,
                    anon,
                    file,
                    shmem,
                    swap,
                },
            )
        }),
        (small(), vec(range(), 0..3), runs(), runs()).prop_map(
            |(space, looked_at, resident, swapped)| Body::Residency(Residency {
                space: SpaceId(space),
                looked_at,
                resident,
                swapped,
            })
        ),
    ]
}

fn end_body() -> impl Strategy<Value = Body> {
    let end = prop_oneof![
        select(vec![
            WindowEnd::ProgramEnded,
            WindowEnd::Time,
            WindowEnd::Asked,
            WindowEnd::ThreadsEnded,
        ]),
        text().prop_map(WindowEnd::Output),
        text().prop_map(WindowEnd::Limit),
    ];
    let counts = [number(), number(), number(), number(), number()];
    prop_oneof![
        (number(), text()).prop_map(|(events, why)| Body::Lost { events, why }),
        text().prop_map(Body::Note),
        (end, counts, vec(text(), 0..3)).prop_map(|(end, n, uncovered)| Body::Summary(Summary {
            end,
            events: n[0],
            lost: n[1],
            settled: n[2],
            stops: n[3],
            stopped_ns: n[4],
            uncovered,
        })),
    ]
}

fn besides_body() -> impl Strategy<Value = Body> {
    let why = select(vec![
        NotTraced::NotChosen,
        NotTraced::Late,
        NotTraced::OtherProcess,
    ]);
    let untraced = (
        small(),
        small(),
        text(),
        why,
        number(),
        option::of(number()),
    );
    prop_oneof![
        untraced.prop_map(
            |(space, tid, name, why, since, ran_ns)| Body::Untraced(Untraced {
                space: SpaceId(space),
                tid: Tid(tid),
                name,
                why,
                since: Nanos(since),
                ran_ns,
            })
        ),
        (number(), number())
            .prop_map(|(peak_rss, cpu_ns)| Body::Footprint(Footprint { peak_rss, cpu_ns })),
    ]
}

pub fn record() -> impl Strategy<Value = Record> {
    let body = prop_oneof![
        space_body(),
        module_body(),
        seen_body(),
        end_body(),
        besides_body()
    ];
    (number(), number(), body).prop_map(|(stamp, ns, body)| Record {
        stamp: Stamp(stamp),
        ns: Nanos(ns),
        body,
    })
}

pub fn chunk() -> impl Strategy<Value = Chunk> {
    let parts = (vec(node(), 0..9), vec(record(), 0..9), vec(event(), 0..40));
    (number(), number(), parts).prop_map(|(first_ns, low_water, (nodes, records, events))| Chunk {
        first_ns: Nanos(first_ns),
        low_water: Stamp(low_water),
        nodes,
        records,
        events,
    })
}

pub fn name() -> impl Strategy<Value = Name> {
    let frame = (text(), option::of(text()), option::of(any::<u32>())).prop_map(
        |(function, file, line)| NamedFrame {
            function,
            file,
            line,
        },
    );
    let sources = prop_oneof![
        Just(NameSource::Symbols),
        Just(NameSource::Dynamic),
        small().prop_map(|space| NameSource::Jit(SpaceId(space))),
    ];
    (small(), number(), sources, vec(frame, 0..3)).prop_map(|(module, lookup, source, frames)| {
        Name {
            module: ModuleId(module),
            lookup,
            source,
            frames,
        }
    })
}

/// What a short recording looks like: a start, two chunks of calls, a summary.
pub fn small_recording() -> (Vec<Chunk>, Vec<Name>) {
    let record = |stamp, body| Record {
        stamp: Stamp(stamp),
        ns: Nanos(stamp * 1000),
        body,
    };
    let start = Chunk {
        low_water: Stamp(3),
        records: vec![
            record(
                0,
                Body::File(
                    FileId(1),
                    FileInfo {
                        dev: (8, 1),
                        inode: 131_072,
                        path: "/usr/bin/victim".into(),
                    },
                ),
            ),
            record(
                1,
                Body::SpaceStart {
                    space: SpaceId(0),
                    pid: Pid(4711),
                    origin: Origin::Exec {
                        path: "/usr/bin/victim".into(),
                        argv: vec!["victim".into()],
                    },
                    start_brk: Addr(0x5555_5555_9000),
                },
            ),
            record(
                2,
                Body::Checkpoint(Checkpoint {
                    space: SpaceId(0),
                    reason: CheckpointReason::Start,
                    vmas: vec![Vma {
                        range: Range {
                            start: Addr(0x40_0000),
                            end: Addr(0x40_1000),
                        },
                        perms: Perms(5),
                        offset: 0,
                        file: FileId(1),
                    }],
                    in_flight: Vec::new(),
                    held_ns: 1234,
                }),
            ),
        ],
        ..Chunk::default()
    };
    let mut chunks = vec![start];
    for round in 0..2_u64 {
        let first = 3 + round * 8;
        let events = (0..4).map(|i| call(first + 2 * i)).collect::<Vec<_>>();
        chunks.push(Chunk {
            first_ns: events[0].entry_ns,
            low_water: Stamp(first + 8),
            nodes: (0..2).map(|i| stack_node(round as u32 * 2 + i)).collect(),
            records: Vec::new(),
            events,
        });
    }
    chunks.push(Chunk {
        first_ns: Nanos(19_000),
        low_water: Stamp(20),
        records: vec![record(
            19,
            Body::Summary(Summary {
                end: WindowEnd::ProgramEnded,
                events: 8,
                lost: 0,
                settled: 0,
                stops: 16,
                stopped_ns: 99_000,
                uncovered: Vec::new(),
            }),
        )],
        ..Chunk::default()
    });
    let names = vec![Name {
        module: ModuleId(1),
        lookup: 0x1233,
        source: NameSource::Symbols,
        frames: vec![NamedFrame {
            function: "leak_some".into(),
            file: Some("victim.c".into()),
            line: Some(42),
        }],
    }];
    (chunks, names)
}

fn stack_node(i: u32) -> StackNode {
    StackNode {
        parent: StackId(i),
        module: ModuleId(1),
        offset: 0x1234 + u64::from(i),
        flags: 0,
    }
}

fn call(entry: u64) -> CallEvent {
    let maps = entry % 4 == 3;
    let addr = 0x7f12_3456_0000 + entry * 0x1_0000;
    CallEvent {
        thread: ThreadIx(0),
        space: SpaceId(0),
        call: if maps { Call::Mmap } else { Call::Munmap },
        abi: Abi::X86_64,
        args: if maps {
            [0, 65536, 3, 0x22, u64::MAX, 0]
        } else {
            [addr, 65536, 0, 0, 0, 0]
        },
        outcome: Outcome::Returned(if maps { addr as i64 } else { 0 }),
        entry: Stamp(entry),
        exit: Stamp(entry + 1),
        entry_ns: Nanos(entry * 1000 + 7),
        exit_ns: Nanos(entry * 1000 + 900 + entry % 5),
        stack: StackId(2),
        file: FileId(0),
    }
}
