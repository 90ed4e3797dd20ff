//! Finds a module's separate debug file, where distributions put what a stripped file lacks.
//!
//! By build id under `/usr/lib/debug/.build-id`, or by the name that the module links to, beside it, in
//! `.debug` beside it, and under `/usr/lib/debug`. First inside the target's root, then in our own. A file
//! is believed if its build id is the module's, or, where there is none, if its checksum is the linked one.

use std::fs::File;
use std::io::Read;

use flate2::Crc;
use maptrail_tracelog::types::Tid;

use super::elf::{Layout, ModuleFile, Source, u32_at};
use crate::patience::{PATIENCE, within};
use crate::sys::open;

/// Where debug files are, without the root.
const DEBUG_DIR: &str = "usr/lib/debug";
/// No file longer than this is read for its checksum, bytes.
const MAX_SUMMED: u64 = 1 << 30;
/// The longest name of a linked file, bytes.
const MAX_NAME: usize = 255;

/// Where a module's file was seen.
#[derive(Clone, Debug)]
pub struct Whereabouts {
    /// A thread that sees it.
    pub tid: Tid,
    /// Its absolute path there.
    pub path: String,
}

/// `.gnu_debuglink`: the name of a debug file, and the CRC-32 of its bytes.
struct Link {
    name: String,
    sum: u32,
}

/// The separate debug file of a module with this `source` and `layout`.
pub(super) fn debug_file(at: &Whereabouts, source: &Source, layout: &Layout) -> Option<Source> {
    let link = link(source, layout);
    let build_id = layout.build_id.clone();
    let at = at.clone();
    let file = within(PATIENCE, move || open_first(&at, &build_id, link.as_ref()))??;
    Some(Source::File(file))
}

fn link(source: &Source, layout: &Layout) -> Option<Link> {
    let bytes = layout.contents(source, b".gnu_debuglink")?;
    let length = bytes.iter().position(|byte| *byte == 0)?;
    let name = std::str::from_utf8(bytes.get(..length)?).ok()?;
    let is_plain = !name.is_empty() && length <= MAX_NAME && !name.contains('/') && name != "..";
    let sum = u32_at(&bytes, (length + 1).next_multiple_of(4))?;
    is_plain.then(|| Link {
        name: name.to_owned(),
        sum,
    })
}

fn open_first(at: &Whereabouts, build_id: &[u8], link: Option<&Link>) -> Option<ModuleFile> {
    let mut places = Vec::new();
    if let Some((first, rest)) = build_id.split_first().filter(|(_, rest)| !rest.is_empty()) {
        let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
        places.push(format!("{DEBUG_DIR}/.build-id/{first:02x}/{rest}.debug"));
    }
    if let Some(Link { name, .. }) = link
        && let Some((dir, _)) = at
            .path
            .strip_prefix('/')
            .and_then(|path| path.rsplit_once('/'))
    {
        places.push(format!("{dir}/{name}"));
        places.push(format!("{dir}/.debug/{name}"));
        places.push(format!("{DEBUG_DIR}/{dir}/{name}"));
    }
    let roots = [format!("/proc/{}/root", at.tid), "/".to_owned()];
    let roots: Vec<File> = roots
        .iter()
        .filter_map(|root| File::open(root).ok())
        .collect();
    let files = places.iter().flat_map(|place| {
        let open = |root| open::in_root(root, place).ok();
        roots.iter().filter_map(open)
    });
    files
        .filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()))
        .find_map(|file| is_meant(file, build_id, link))
}

/// The file, if it is the one that belongs to the module.
fn is_meant(file: File, build_id: &[u8], link: Option<&Link>) -> Option<ModuleFile> {
    let sum = link.filter(|_| build_id.is_empty());
    if let Some(Link { sum, .. }) = sum {
        let mut crc = Crc::new();
        let mut bytes = vec![0; 1 << 16];
        let mut rest = (&file).take(MAX_SUMMED);
        loop {
            match rest.read(&mut bytes).ok()? {
                0 => break,
                n => crc.update(bytes.get(..n)?),
            }
        }
        return (crc.sum() == *sum).then(|| file.into());
    }
    let source = Source::File(file.into());
    let is_same = Layout::read(&source).is_some_and(|layout| layout.build_id == build_id);
    match source {
        Source::File(file) if is_same => Some(file),
        _ => None,
    }
}
