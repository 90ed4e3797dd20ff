//! The format itself: a log's exact bytes, so that no change of it goes unseen.
//!
//! If this fails, logs that people have kept can no longer be read, or older programs cannot read new
//! ones: see the versioning rules in the crate's documentation.

use maptrail_tracelog::calls::{Abi, Call};
use maptrail_tracelog::record::*;
use maptrail_tracelog::types::*;
use maptrail_tracelog::writer::{Chunk, LogWriter};

#[test]
fn a_log_has_these_bytes() {
    let header = Header {
        writer: "w".into(),
        host: "h".into(),
        kernel: "k".into(),
        command: vec!["c".into(), "a".into()],
        mechanism: Mechanism::Gate,
        wall_start_ns: 250,
        monotonic_start_ns: 251,
        page_size: 4096,
    };
    let event = |call, args, outcome, entry| CallEvent {
        thread: ThreadIx(4),
        space: SpaceId(1),
        call,
        abi: Abi::X86_64,
        args,
        outcome,
        entry: Stamp(entry),
        exit: Stamp(entry + 1),
        entry_ns: Nanos(entry * 50),
        exit_ns: Nanos(entry * 50 + 3),
        stack: StackId(1),
        file: FileId(0),
    };
    let chunk = Chunk {
        first_ns: Nanos(7),
        low_water: Stamp(6),
        nodes: vec![StackNode {
            parent: StackId(0),
            module: ModuleId(2),
            offset: 0x100,
            flags: StackNode::EXACT,
        }],
        records: vec![
            Record {
                stamp: Stamp(0),
                ns: Nanos(8),
                body: Body::ModuleBase {
                    space: SpaceId(1),
                    module: ModuleId(2),
                    bias: 0x1_0000,
                },
            },
            Record {
                stamp: Stamp(1),
                ns: Nanos(9),
                body: Body::ThreadEnd {
                    thread: ThreadIx(4),
                    status: Some(-1),
                    name: "t".into(),
                },
            },
        ],
        events: vec![
            event(
                Call::Brk,
                [0x1000, 0, 0, 0, 0, 0],
                Outcome::Returned(0x1000),
                2,
            ),
            event(
                Call::Brk,
                [0x1001, 0, 0, 0, 0, 0],
                Outcome::Returned(0xfff),
                4,
            ),
            event(Call::Munlockall, [0; 6], Outcome::Unfinished, 6),
        ],
    };
    let mut log = LogWriter::create(Vec::new(), &header).unwrap();
    log.write_chunk(&chunk).unwrap();
    let written = hex(log.get_ref());

    let expected = [
        // Magic, version 1.0.
        "4d4150545241494c",
        "01000000",
        // Block header: mark, header, no flags, block 0, length; times and low water 0; checksums.
        "f54d54fa 01 00 0000 00000000 13000000",
        "0000000000000000 0000000000000000 0000000000000000",
        "f926c4cf effce5b6",
        // writer, host, kernel, command, Gate, 250 as one byte, 251 and 4096 as three.
        "01 77  01 68  01 6b  02 01 63 01 61  02  fa  fb fb00  fb 0010",
        // Block header: chunk, no flags, block 1; first 7, last 303, low water 6.
        "f54d54fa 02 00 0000 01000000 84000000",
        "0700000000000000 2f01000000000000 0600000000000000",
        "449c081a 581030ed",
        // Four sections, all stored as they are: stacks, modules, records, events.
        "04",
        "01 00 0b000000 0b000000",
        "03 00 0c000000 0c000000",
        "04 00 0a000000 0a000000",
        "02 00 3a000000 3a000000",
        // Stacks: first 1, one node; columns: distance to parent 1, module +2, offset +256, flags 1.
        "01 01  01 01  01 04  02 8004  01 01",
        // Modules: place 0, kind 7, length 9; stamp 0, time 8, space 1, module 2, bias.
        "00 07 09  00 08 01 02 fc00000100",
        // Records: place 1, kind 4, length 7; stamp 1, time 9, thread 4, Some(-1), "t".
        "01 04 07  01 09 04 01 01 01 74",
        // Events: three; two groups: brk, x86-64, 1 argument, 4 columns; munlockall, unfinished.
        "03 02  05 00 00 01 04  11 00 01 00 03",
        // Two lanes: group 0 and 1, thread 4, space 1.
        "02  00 04 01  01 04 01",
        // Lanes; exit stamps +3 +2 +2; spans 1; entry times +100 +97 +97; durations 3.
        "03 000001  03 060404  03 020202  06 c801c201c201  03 060606",
        // brk: argument +4096 +1, result +4096 -1, stack +1 0, no file; munlockall: stack +1.
        "03 804002  03 804001  02 0200  00",
        "00  01 02  00",
    ];
    let expected: String = expected.concat().split_whitespace().collect();
    assert_eq!(written, expected);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
