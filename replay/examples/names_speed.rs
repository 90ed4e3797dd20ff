//! How long it takes to name places all over a file.
//!
//! ```text
//! cargo run --release -p maptrail-replay --example names_speed -- /usr/bin/node 10000
//! ```

use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

use maptrail_replay::symbols::{Module, Places, Symboliser};
use maptrail_tracelog::record::{FileInfo, ModuleInfo, ModuleKind};
use maptrail_tracelog::types::{FileId, ModuleId};
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, ReadCache};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (path, count) = (arguments.next(), arguments.next());
    let path = path.ok_or("names_speed FILE [COUNT]")?;
    let count: usize = count.map_or(Ok(10_000), |count| count.parse())?;
    let path = Path::new(&path).canonicalize()?;
    let (start, size, build_id) = code(&path)?;
    let info = ModuleInfo {
        kind: ModuleKind::File,
        file: FileId(1),
        build_id,
    };
    let file = FileInfo {
        dev: (0, 0),
        inode: 0,
        path: path.display().to_string(),
    };
    let module = Module {
        id: ModuleId(1),
        info: &info,
        file: &file,
        opened: None,
    };
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        start + random % size
    };
    let places: Vec<u64> = (0..count).map(|_| next()).collect();
    let begin = Instant::now();
    let mut symboliser = Symboliser::new(Places::Machine);
    symboliser.name(&module, &places[..1]);
    let first = begin.elapsed();
    let names = symboliser.name(&module, &places);
    let all = begin.elapsed();
    let named = names.iter().filter(|name| !name.frames.is_empty());
    println!("{count} places, {} have names", named.count());
    println!("the first after {first:.1?}, all after {all:.1?}");
    Ok(())
}

/// Where the file's code begins, how long it is, and the file's build id.
fn code(path: &Path) -> Result<(u64, u64, Vec<u8>), Box<dyn Error>> {
    let cache = ReadCache::new(File::open(path)?);
    let file = ElfFile64::<Endianness, _>::parse(&cache)?;
    let text = file.section_by_name(".text").ok_or("no code")?;
    let id = file.build_id()?.ok_or("no build id")?;
    Ok((text.address(), text.size(), id.to_vec()))
}
