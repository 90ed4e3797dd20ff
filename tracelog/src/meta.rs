//! The header, records and names as bytes. The only place that knows bincode.
//!
//! Encoding is bincode 2's standard configuration, written down in the crate's documentation; each
//! kind of record has a number of its own here, so that it can be told without bincode.

use bincode::config::{self, Configuration, LittleEndian, Varint};
use bincode::{Decode, Encode};

use crate::record::{Body, Header, Name, Record};
use crate::types::{Nanos, Stamp};
use crate::varint::Malformed;

const CONFIG: Configuration = config::standard();

/// Appends `value`. Nothing here can fail: the output grows, and no type refuses to be encoded.
fn put<T: Encode>(out: &mut Vec<u8>, value: T) -> Result<(), Malformed> {
    bincode::encode_into_std_write(value, out, CONFIG)
        .map(|_| ())
        .map_err(|_| Malformed)
}

/// Reads a value from the front of `bytes`, and says how long it was.
///
/// No value takes more than 32 times its encoded length in memory, and none may ask for more: the
/// limit follows the length, in steps since bincode takes it as a constant.
fn take<T: Decode<()>>(bytes: &[u8]) -> Result<(T, usize), Malformed> {
    fn within<T: Decode<()>, const LIMIT: usize>(bytes: &[u8]) -> Result<(T, usize), Malformed> {
        let config: Configuration<LittleEndian, Varint, config::Limit<LIMIT>> =
            CONFIG.with_limit::<LIMIT>();
        bincode::decode_from_slice(bytes, config).map_err(|_| Malformed)
    }
    match bytes.len() {
        ..=0x400 => within::<T, 0x8000>(bytes),
        0x401..=0x1000 => within::<T, 0x2_0000>(bytes),
        0x1001..=0x4000 => within::<T, 0x8_0000>(bytes),
        0x4001..=0x1_0000 => within::<T, 0x20_0000>(bytes),
        0x1_0001..=0x4_0000 => within::<T, 0x80_0000>(bytes),
        0x4_0001..=0x10_0000 => within::<T, 0x200_0000>(bytes),
        0x10_0001..=0x40_0000 => within::<T, 0x800_0000>(bytes),
        0x40_0001..=0x100_0000 => within::<T, 0x2000_0000>(bytes),
        _ => within::<T, 0x8000_0000>(bytes),
    }
}

/// Appends the log's header.
pub(crate) fn put_header(out: &mut Vec<u8>, header: &Header) -> Result<(), Malformed> {
    put(out, header)
}

/// Reads the log's header; bytes after it are fields of a newer version.
pub(crate) fn take_header(bytes: &[u8]) -> Result<Header, Malformed> {
    take(bytes).map(|(header, _)| header)
}

/// Appends a name.
pub(crate) fn put_name(out: &mut Vec<u8>, name: &Name) -> Result<(), Malformed> {
    put(out, name)
}

/// Reads a name. `None` if this version does not know all the variants inside. Bytes after it are
/// fields of a newer version.
pub(crate) fn take_name(bytes: &[u8]) -> Option<Name> {
    take(bytes).ok().map(|(name, _)| name)
}

/// From one row for each kind of record: its number, its variant, and its fields in the order in
/// which they are written, which makes the encoder and the decoder.
macro_rules! bodies {
    ($($kind:literal => $variant:ident { $($member:tt: $field:ident),* },)*) => {
        /// Appends a record without its kind, and returns the kind.
        pub(crate) fn put_record(out: &mut Vec<u8>, record: &Record) -> Result<u8, Malformed> {
            put(out, (record.stamp, record.ns))?;
            match &record.body {
                $(Body::$variant { $($member: $field),* } => {
                    put(out, ($($field,)*))?;
                    Ok($kind)
                })*
            }
        }

        /// Reads a record of this kind. `None` if this version knows no such kind, or not all the
        /// variants inside. Bytes after the last field are fields of a newer version.
        pub(crate) fn take_record(kind: u8, bytes: &[u8]) -> Option<Record> {
            let ((stamp, ns), used): ((Stamp, Nanos), usize) = take(bytes).ok()?;
            let rest = bytes.get(used..)?;
            let body = match kind {
                $($kind => {
                    let (($($field,)*), _) = take(rest).ok()?;
                    Body::$variant { $($member: $field),* }
                })*
                _ => return None,
            };
            Some(Record { stamp, ns, body })
        }
    };
}

bodies! {
    1 => SpaceStart { space: space, pid: pid, origin: origin, start_brk: start_brk },
    2 => SpaceEnd { space: space, how: how },
    3 => ThreadStart { thread: thread, tid: tid, pid: pid, space: space, name: name },
    4 => ThreadEnd { thread: thread, status: status, name: name },
    5 => File { 0: id, 1: info },
    6 => Module { 0: id, 1: info },
    7 => ModuleBase { space: space, module: module, bias: bias },
    8 => Checkpoint { 0: checkpoint },
    9 => Look { 0: look },
    10 => Rss { 0: space, 1: sample },
    11 => Residency { 0: residency },
    12 => Lost { events: events, why: why },
    13 => Note { 0: text },
    14 => Summary { 0: summary },
    15 => Untraced { 0: untraced },
    16 => Footprint { 0: footprint },
}
