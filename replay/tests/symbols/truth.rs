//! Names against those that binutils gives for the same places of real files.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use maptrail_tracelog::record::{Name, NameSource};
use object::{Object, ObjectSection, ObjectSymbol};

use crate::{go_program, names_of, new_program};

/// A function, and `file:line`.
type Told = (String, String);

/// What addr2line says of each place: functions innermost first.
fn addr2line(file: &Path, places: &[u64]) -> Vec<Vec<Told>> {
    let mut child = Command::new("addr2line")
        .args(["-a", "-f", "-i", "-C", "-e"])
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("binutils are installed");
    let mut input = String::new();
    for place in places {
        writeln!(input, "{place:#x}").expect("text");
    }
    let mut stdin = child.stdin.take().expect("a pipe");
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("addr2line");
    writer.join().expect("no panic").expect("written");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut all: Vec<Vec<Told>> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let digits = line.strip_prefix("0x");
        if digits.is_some_and(|digits| u64::from_str_radix(digits, 16).is_ok()) {
            all.push(Vec::new());
            continue;
        }
        let place = lines.next().expect("file and line");
        let place = place.split(" (discriminator").next().unwrap_or(place);
        let frames = all.last_mut().expect("an address first");
        frames.push((line.to_owned(), place.to_owned()));
    }
    assert_eq!(all.len(), places.len());
    all
}

/// Places all over the file's code, the same ones each time.
fn places(file: &Path, count: usize) -> Vec<u64> {
    let bytes = fs::read(file).expect("a file");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let text = file.section_by_name(".text").expect("code");
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        text.address() + random % text.size()
    };
    (0..count).map(|_| next()).collect()
}

/// A function's name as far as demanglers agree: its path, without arguments, types and thunks.
fn bare(name: &str) -> String {
    let mut depth = 0_i32;
    let mut out = String::new();
    let name = name.strip_prefix("__GI_").unwrap_or(name);
    for c in name.split(" [clone").next().unwrap_or(name).chars() {
        match c {
            '<' | '(' | '{' | '[' => depth += 1,
            '>' | ')' | '}' | ']' => depth -= 1,
            _ if depth <= 0 => out.push(c),
            _ => {}
        }
    }
    let out = out.rsplit(' ').next().unwrap_or_default();
    // Go has two ways of calling assembly.
    let out = out.strip_suffix(".abi0").unwrap_or(out);
    out.rsplit("::").next().unwrap_or(out).to_owned()
}

/// File and line without folders; nothing where no line is known. (Of symbols, addr2line tells the
/// source file without a line, and a wrong one where the linker sorted them; of files in DWARF 5, it
/// doubles the folder.)
fn bare_line(place: &str) -> Option<(&str, &str)> {
    let (file, line) = place.rsplit_once(':')?;
    let known = line.parse::<u32>().is_ok_and(|line| line > 0);
    known.then(|| (file.rsplit('/').next().unwrap_or(file), line))
}

/// The symbols that say that they reach a place.
fn holders(file: &Path, places: &[u64]) -> Vec<Vec<String>> {
    let bytes = fs::read(file).expect("a file");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let symbols: Vec<(u64, u64, String)> = file
        .symbols()
        .chain(file.dynamic_symbols())
        .filter(|s| s.is_definition() && s.size() > 0)
        .filter_map(|s| {
            Some((
                s.address(),
                s.address() + s.size(),
                s.name().ok()?.to_owned(),
            ))
        })
        .collect();
    let holding = |place: &u64| {
        let holders = symbols.iter().filter(|s| s.0 <= *place && *place < s.1);
        holders.map(|s| s.2.clone()).collect()
    };
    places.iter().map(holding).collect()
}

/// In what way a name differs from addr2line's; `None` if in none that matters.
fn difference(ours: &Name, truth: &[Told], holders: &[String]) -> Option<&'static str> {
    let lines = truth.iter().filter_map(|(_, place)| bare_line(place));
    let our_lines: Vec<(String, String)> = ours
        .frames
        .iter()
        .filter_map(|f| {
            let file = f.file.as_deref()?.rsplit('/').next()?;
            Some((file.to_owned(), f.line?.to_string()))
        })
        .collect();
    let has_lines = lines.clone().next().is_some();
    if has_lines {
        // addr2line names the wrong file where a unit has more than one of the same line; the line is
        // the same.
        let lines = lines.map(|(_, line)| line);
        if !lines.eq(our_lines.iter().map(|(_, line)| line.as_str())) {
            return Some("other lines");
        }
    } else if ours.source == NameSource::Dynamic || ours.frames.is_empty() {
        // addr2line gives a place to the symbol before it, whether or not that reaches so far. That is
        // the lie which must not be told here.
        let lied = holders.is_empty();
        return (!lied).then_some("a symbol reaches it, and it is not named by that");
    } else if !our_lines.is_empty() {
        // It knows no tables of Go's.
        return None;
    }
    let functions: Vec<String> = ours.frames.iter().map(|f| bare(&f.function)).collect();
    let theirs: Vec<String> = truth.iter().map(|(function, _)| bare(function)).collect();
    let (last, their_last) = (functions.last()?, theirs.last()?);
    let alias = || holders.iter().any(|holder| bare(holder) == *last);
    if last != their_last && !alias() && !truth.iter().any(|(f, _)| f.contains("thunk")) {
        return Some("another function");
    }
    // With -i, addr2line calls the innermost function by the symbol of the outermost.
    let inner = functions.iter().zip(&theirs).skip(1);
    let mut inner = inner.take(functions.len().saturating_sub(2));
    (!inner.all(|(a, b)| a == b)).then_some("other inlined functions")
}

/// Compares `count` places; at most one in a hundred may differ.
fn compare(file: &Path, count: usize) {
    let places = places(file, count);
    let ours = names_of(file, &places);
    let truth = addr2line(file, &places);
    let holders = holders(file, &places);
    let mut differing: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (i, place) in places.iter().enumerate() {
        if let Some(kind) = difference(&ours[i], &truth[i], &holders[i]) {
            let told = format!("{place:#x}: {:?}\n  not {:?}", ours[i].frames, truth[i]);
            differing.entry(kind).or_default().push(told);
        }
    }
    let sum: usize = differing.values().map(Vec::len).sum();
    let some: Vec<_> = differing
        .iter()
        .map(|(kind, all)| format!("{} × {kind}, such as {}", all.len(), all[0]))
        .collect();
    let named = ours.iter().filter(|n| !n.frames.is_empty()).count();
    println!("{}: {named} of {count} named, {sum} differ", file.display());
    assert!(
        sum * 100 <= count && named * 2 > count,
        "{}: {sum} of {count} differ, {named} are named\n{}",
        file.display(),
        some.join("\n")
    );
}

#[test]
fn stripped_programs_are_named_by_what_their_symbols_reach() {
    for program in [
        "/usr/bin/python3",
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/usr/bin/node",
    ] {
        if let Ok(file) = Path::new(program).canonicalize() {
            compare(&file, 1000);
        }
    }
}

#[test]
fn rust_is_named_as_binutils_names_it() {
    compare(&std::env::current_exe().expect("this program"), 1000);
}

#[test]
fn inlined_cpp_is_named_as_binutils_names_it() {
    let source = "
#include <algorithm>
#include <map>
#include <string>
#include <vector>
template <typename T> static T twice(T value) { return value + value; }
struct Pool {
    std::map<std::string, std::vector<int>> all;
    int grow(const std::string &name, int by) {
        auto &of = all[name];
        for (int i = 0; i < by; i++) of.push_back(twice(i));
        std::sort(of.begin(), of.end(), [](int a, int b) { return a > b; });
        return of.size();
    }
};
int main(int count, char **) {
    Pool pool;
    return pool.grow(twice(std::string(\"x\")), count) + pool.grow(\"y\", 9);
}";
    for flags in [["-O2", "-gdwarf-5"], ["-O1", "-gdwarf-4"], ["-O0", "-g"]] {
        let (_dir, program) = new_program("g++", "cc", source, &flags);
        compare(&program, 1000);
    }
}

#[test]
fn go_is_named_as_binutils_names_it() {
    if let Some((_dir, program)) = go_program(&[]) {
        compare(&program, 1000);
    }
}
