//! Names for code that just-in-time compilers made, from what they wrote down of it themselves.
//!
//! A perf map (`/tmp/perf-PID.map`; node, java and python write them) has a line `START SIZE NAME` for
//! each piece of code, numbers in hexadecimal. It says nothing of when: memory is used again for other
//! code, so the last line for an address counts, and a name is that of the moment at which the text was
//! taken. The text belongs to the recorded program and is not trusted: what is no such line is passed
//! over, and only what names a place of the log's stacks is kept.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::Path;

use maptrail_tracelog::reader::LogReader;
use maptrail_tracelog::record::{Name, NameSource, NamedFrame};
use maptrail_tracelog::types::{ModuleId, SpaceId, StackId};
use maptrail_tracelog::writer::{Chunk, LogWriter};
use rustc_hash::{FxHashMap, FxHashSet};

use super::NameLogError;
use crate::world::World;

/// So much of a text is read, bytes.
const MAX_TEXT: u64 = 256 << 20;
/// Longer lines are passed over, bytes.
const MAX_LINE: u64 = 4096;
/// So many names are given to places of a space. A compiler names each a few times, as it uses its
/// memory again; a text that names all of them in each line has something else in mind.
const MAX_NAMINGS: u64 = 1 << 20;
/// What python's names begin with.
const PYTHON: &str = "py::";

/// The places that a space's stacks go through, and what is known of each.
type Places = BTreeMap<u64, Option<String>>;

/// Adds the names in perf maps, each of one space, to the finished log at `path`. Returns how many
/// there were to add.
///
/// # Errors
/// See [`NameLogError`]. The events of the log are not touched, whatever happens.
pub fn name_jit_code<R: Read>(
    path: &Path,
    maps: impl IntoIterator<Item = (SpaceId, R)>,
) -> Result<u64, NameLogError> {
    let mut maps = maps.into_iter().peekable();
    if maps.peek().is_none() {
        return Ok(0);
    }
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(NameLogError::Io)?;
    let mut spaces = collect(&mut LogReader::open(BufReader::new(&mut file))?)?;
    let mut names = Vec::new();
    for (space, text) in maps {
        let mut places = spaces.remove(&space).unwrap_or_default();
        fill(&mut places, text);
        names.extend(places.into_iter().filter_map(|(lookup, name)| {
            Some(Name {
                module: ModuleId(0),
                lookup,
                source: NameSource::Jit(space),
                frames: vec![frame(&name?)],
            })
        }));
    }
    if !names.is_empty() {
        let mut writer = LogWriter::append(file)?;
        writer.write_names(&names)?;
        writer.finish()?;
    }
    Ok(names.len() as u64)
}

/// Reads the whole log for the places without a module, by the space whose events have them.
fn collect<R: Read + Seek>(reader: &mut LogReader<R>) -> io::Result<FxHashMap<SpaceId, Places>> {
    let mut world = World::default();
    let mut stacks: FxHashSet<(SpaceId, StackId)> = FxHashSet::default();
    let mut chunk = Chunk::default();
    while reader.next_chunk(&mut chunk)? {
        world.nodes.append(reader.first_node(), &mut chunk.nodes);
        stacks.extend(chunk.events.iter().map(|event| (event.space, event.stack)));
    }
    let mut spaces: FxHashMap<SpaceId, Places> = FxHashMap::default();
    for (space, stack) in stacks {
        let frames = world.frames(stack).into_iter();
        let without_file = frames.filter(|node| node.module == ModuleId(0));
        let lookups = without_file.map(|node| (node.lookup(), None));
        spaces.entry(space).or_default().extend(lookups);
    }
    Ok(spaces)
}

/// Gives places their names. A text that cannot be read to its end has told what it told.
fn fill(places: &mut Places, text: impl Read) {
    if places.is_empty() {
        return;
    }
    let mut text = BufReader::with_capacity(1 << 16, text.take(MAX_TEXT));
    let mut line = Vec::new();
    let mut namings = 0;
    while namings < MAX_NAMINGS {
        line.clear();
        match text.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if line.last() == Some(&b'\n') => {}
            // Too long, or cut where the text ends: half a name is none.
            Ok(_) => match text.skip_until(b'\n') {
                Ok(_) => continue,
                Err(_) => return,
            },
        }
        let Some((start, end, name)) = parse(&line) else {
            continue;
        };
        for (_, known) in places.range_mut(start..end) {
            *known = Some(String::from_utf8_lossy(name).into_owned());
            namings += 1;
        }
    }
}

/// `START SIZE NAME`, as addresses and a name that is not empty.
fn parse(line: &[u8]) -> Option<(u64, u64, &[u8])> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let mut number = || {
        let word = std::str::from_utf8(words.next()?).ok()?;
        // Java writes it with a prefix.
        u64::from_str_radix(word.strip_prefix("0x").unwrap_or(word), 16).ok()
    };
    let (start, size) = (number()?, number()?);
    let end = start.checked_add(size).filter(|end| *end > start)?;
    let name = words.next()?.trim_ascii();
    (!name.is_empty()).then_some((start, end, name))
}

/// A name with its place in the source taken out of it, where it has one at its end: node's
/// `JS:*decode /srv/worker.js:12:3` and python's `py::decode:/srv/worker.py`.
fn frame(name: &str) -> NamedFrame {
    let with_line = || {
        let at = [" /", " file:", " node:"]
            .iter()
            .filter_map(|begin| name.find(begin))
            .min()?;
        let (function, place) = name.split_at_checked(at)?;
        let (place, _column) = place.trim_start().rsplit_once(':')?;
        let (file, line) = place.rsplit_once(':')?;
        Some((function, file, Some(line.parse().ok()?)))
    };
    let of_python = || {
        let at = PYTHON.len() + name.strip_prefix(PYTHON)?.find(':')?;
        let (function, file) = name.split_at_checked(at)?;
        Some((function, file.strip_prefix(':')?, None))
    };
    let (function, file, line) = match with_line().or_else(of_python) {
        Some((function, file, line)) => (function, Some(file.to_owned()), line),
        None => (name, None, None),
    };
    NamedFrame {
        function: function.to_owned(),
        file,
        line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(places: &[u64], text: &[u8]) -> Vec<Option<String>> {
        let mut known: Places = places.iter().map(|place| (*place, None)).collect();
        fill(&mut known, text);
        known.into_values().collect()
    }

    fn name(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn the_last_line_for_an_address_names_it() {
        let text = b"2000 10 later in memory\n\
                     1000 20 old\n\
                     0x0000000000001000 0x10 void J.f(int, long)\n\
                     1008 1 inside\n";
        assert_eq!(
            named(
                &[0xfff, 0x1000, 0x1008, 0x100f, 0x1010, 0x1020, 0x200f],
                text
            ),
            [
                None,
                name("void J.f(int, long)"),
                name("inside"),
                name("void J.f(int, long)"),
                name("old"),
                None,
                name("later in memory"),
            ]
        );
    }

    #[test]
    fn what_is_no_such_line_is_passed_over() {
        let mut text =
            b"\n \n1000\n1000 10\n1000 10 \n1000 0 empty\nfoo 10 a\n1000 -1 a\n-1000 10 a\n\
                         1000  10 a\nffffffffffffffff 2 over the end\n1000 ffffffffffffffff a\n\
                         10000000000000000 1 a\n1000 10 "
                .to_vec();
        text.extend(vec![b'a'; 3 * MAX_LINE as usize]);
        text.extend(b"\n\xff\xfe\0\n");
        assert_eq!(named(&[0x1000, u64::MAX], &text), [None, None]);
        text.extend(b"1000 10 \x1b[31m\xff\n1000 10 cu");
        assert_eq!(
            named(&[0x1000, u64::MAX], &text),
            [name("\x1b[31m\u{fffd}"), None]
        );
    }

    #[test]
    fn a_text_that_fails_has_told_what_it_told() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::Other.into())
            }
        }
        let mut known = Places::from([(0x1000, None)]);
        fill(&mut known, b"1000 1 a\n".chain(Fails));
        assert_eq!(known[&0x1000], name("a"));
    }

    #[test]
    fn places_in_the_source_are_taken_out_of_names() {
        let split = |text: &str| {
            let NamedFrame {
                function,
                file,
                line,
            } = frame(text);
            (function, file.unwrap_or_default(), line)
        };
        let expect = |text, function: &str, file: &str, line| {
            assert_eq!(split(text), (function.into(), file.into(), line), "{text}");
        };
        let file = "/srv/my app/w.js";
        expect(
            "JS:*decode /srv/my app/w.js:12:3",
            "JS:*decode",
            file,
            Some(12),
        );
        expect(
            "JS:*get size /srv/my app/w.js:7:1",
            "JS:*get size",
            file,
            Some(7),
        );
        expect("JS:^f file:///a.mjs:1:2", "JS:^f", "file:///a.mjs", Some(1));
        expect(
            "JS:~emit node:events:471:44",
            "JS:~emit",
            "node:events",
            Some(471),
        );
        expect("JS:* /a.js:9:9", "JS:*", "/a.js", Some(9));
        expect("py::C.f:/srv/w.py", "py::C.f", "/srv/w.py", None);
        expect("py::f:<frozen x>", "py::f", "<frozen x>", None);
        for whole in [
            "void J.f(int, long)",
            "a /b",
            "a /b:c:d",
            "py::",
            "",
            " /:",
            "x:1:2",
        ] {
            expect(whole, whole, "", None);
        }
    }
}
