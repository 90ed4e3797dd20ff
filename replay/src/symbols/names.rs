//! A log's stacks as a person reads them: with the names in the log, and where it has none, with
//! those that files give, on this machine or below a folder.

use std::fmt;

use maptrail_tracelog::record::{Name, NameSource, StackNode};
use maptrail_tracelog::types::{ModuleId, SpaceId, StackId};
use rustc_hash::FxHashMap;
use serde::Serialize;

use super::{Module, Places, Symboliser, libraries, quality};
use crate::world::World;

/// One frame of a stack. Where functions were inlined, one place in the code makes several frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// The function, demangled; `null` if no name is known.
    pub function: Option<String>,
    /// The file that the code lies in, or `[vdso]` and the like; empty for code in no file, such as
    /// that of a just-in-time compiler.
    pub module: String,
    /// The source file.
    pub file: Option<String>,
    /// The line, from 1.
    pub line: Option<u32>,
    /// The place in the module (an ELF virtual address), or in the space where there is no module.
    #[serde(serialize_with = "hex")]
    pub offset: u64,
    /// `function` is only the last symbol before the place: the code may belong to another.
    pub near: bool,
    /// The function was inlined into the next frame's.
    pub inlined: bool,
    /// Found without unwind information: plausible, not proved.
    pub guessed: bool,
    /// The stack goes on past this frame; the unwinder could not.
    pub truncated: bool,
}

fn hex<S: serde::Serializer>(value: &u64, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&format_args!("{value:#x}"))
}

impl Frame {
    /// The module's file name without its folder; `JIT` for code in no file.
    #[must_use]
    pub fn module_name(&self) -> &str {
        match self.module.rsplit('/').next() {
            None | Some("") => "JIT",
            Some(name) => name,
        }
    }

    /// Whether it lies in libc, the loader, an allocator or a language's runtime: on the way, rarely the
    /// cause.
    #[must_use]
    pub fn is_plumbing(&self) -> bool {
        let function = self.function.as_deref().filter(|_| !self.near);
        libraries::is_plumbing(self.module_name())
            || function.is_some_and(libraries::is_plumbing_function)
    }

    /// Whether it lies in a library that calls for somebody else's language.
    fn is_bridge(&self) -> bool {
        libraries::is_bridge(self.module_name())
    }

    /// Whether a name of its own is known.
    fn is_named(&self) -> bool {
        self.function.is_some() && !self.near
    }

    /// Whether it does no more than hand the call to the kernel.
    fn is_wrapper(&self) -> bool {
        let function = self.function.as_deref();
        self.is_plumbing() && function.is_some_and(libraries::is_wrapper)
    }

    /// What to call the frame in running text: its function, or the place in its module.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.function {
            Some(function) if !self.near => function.clone(),
            _ => self.place(),
        }
    }

    /// `libfoo.so+0x1234`, or the bare address of code in no module.
    #[must_use]
    pub fn place(&self) -> String {
        if self.module.is_empty() {
            format!("{:#x}", self.offset)
        } else {
            format!("{}+{:#x}", self.module_name(), self.offset)
        }
    }
}

/// The frames that tell stacks apart, innermost first: those outside of libc, allocators and bridges;
/// where there are none, bridges; where there are none, those that do more than hand the call to the
/// kernel.
///
/// Where a module has named and nameless frames in a row, the named ones speak for it. Where it has
/// no names at all, its innermost place does: the module may well be the culprit.
fn telling(frames: &[Frame]) -> Vec<&Frame> {
    let choices: [fn(&Frame) -> bool; 4] = [
        |f| !f.is_plumbing() && !f.is_bridge(),
        |f| !f.is_plumbing(),
        |f| !f.is_wrapper(),
        |_| true,
    ];
    let chosen: Vec<&Frame> = choices
        .iter()
        .map(|choice| frames.iter().filter(|f| choice(f)).collect())
        .find(|chosen: &Vec<&Frame>| !chosen.is_empty())
        .unwrap_or_default();
    chosen
        .chunk_by(|a, b| a.module == b.module)
        .flat_map(|row| {
            let has_names = row.iter().any(|f| f.is_named());
            let nameless = row.iter().take(usize::from(!has_names));
            row.iter().filter(|f| f.is_named()).chain(nameless).copied()
        })
        .collect()
}

/// Functions in a [`path_of`] a stack.
const PATH_FRAMES: usize = 3;
/// The longest function name in it, characters.
const PATH_NAME: usize = 48;

/// A stack in one line: its telling functions, and the module of the innermost one, such as
/// `grow ← get_buffer ← decode (libpool.so)`. `None` without frames.
#[must_use]
pub fn path_of(frames: &[Frame]) -> Option<String> {
    let telling = telling(frames);
    let first = telling.first()?;
    let short = |frame: &Frame| {
        let label = frame.label();
        match label.char_indices().nth(PATH_NAME) {
            Some((end, _)) => format!("{}…", label.get(..end).unwrap_or_default()),
            None => label,
        }
    };
    let mut functions: Vec<String> = telling
        .iter()
        .take(PATH_FRAMES)
        .map(|frame| short(frame))
        .collect();
    // What a script does says more than how its interpreter does it.
    let script = telling
        .iter()
        .position(|f| f.is_named() && f.module.is_empty());
    if let Some(script) = script.filter(|at| *at >= PATH_FRAMES) {
        functions.truncate(PATH_FRAMES - 1);
        functions.push("…".to_owned());
        functions.extend(telling.get(script).map(|frame| short(frame)));
    }
    let functions = functions.join(" ← ");
    Some(if first.is_named() {
        format!("{functions} ({})", first.module_name())
    } else {
        // A bare place names its module already.
        functions
    })
}

/// The names of a log's frames.
#[derive(Debug)]
pub struct Names {
    /// What the log has.
    logged: FxHashMap<(ModuleId, u64), Name>,
    /// What was asked for and is to be told.
    known: FxHashMap<(ModuleId, u64), Name>,
    /// Of code in no file: which name holds where.
    jit: FxHashMap<u64, Vec<(SpaceId, Name)>>,
    symboliser: Option<Symboliser>,
}

impl Names {
    /// Names from the log alone.
    #[must_use]
    pub fn from_log(names: Vec<Name>) -> Names {
        let mut all = Names {
            logged: FxHashMap::default(),
            known: FxHashMap::default(),
            jit: FxHashMap::default(),
            symboliser: None,
        };
        for name in names {
            if let NameSource::Jit(space) = name.source {
                all.jit.entry(name.lookup).or_default().push((space, name));
            } else {
                all.logged.insert((name.module, name.lookup), name);
            }
        }
        all
    }

    /// Names from the log, and what it lacks from the modules' files, if there are the same at `places`.
    /// A folder that somebody names is asked for better ones, too.
    #[must_use]
    pub fn with_files(names: Vec<Name>, places: Places) -> Names {
        Names {
            symboliser: Some(Symboliser::new(places)),
            ..Names::from_log(names)
        }
    }

    /// The frames of a stack of `space`'s, innermost first; none if no stack was taken. Without a
    /// space it is that of several: code in no file has a name then if they do not contradict each
    /// other.
    pub fn stack(&mut self, world: &World, stack: StackId, space: Option<SpaceId>) -> Vec<Frame> {
        let mut frames = Vec::new();
        for node in world.frames(stack) {
            self.push_frames(world, node, space, &mut frames);
        }
        frames
    }

    /// What to call a stack of `space`'s in one word: its innermost frame that tells something.
    pub fn label(&mut self, world: &World, stack: StackId, space: SpaceId) -> Option<String> {
        let frames = self.stack(world, stack, Some(space));
        telling(&frames).first().map(|frame| frame.label())
    }

    fn push_frames(
        &mut self,
        world: &World,
        node: &StackNode,
        space: Option<SpaceId>,
        frames: &mut Vec<Frame>,
    ) {
        let info = world.module(node.module);
        let module = info.map_or("", |m| world.files.path(m.file));
        let bare = Frame {
            function: None,
            module: module.to_owned(),
            file: None,
            line: None,
            offset: node.offset,
            near: false,
            inlined: false,
            guessed: node.flags & StackNode::GUESSED != 0,
            truncated: false,
        };
        let name = match node.module {
            ModuleId(0) => self.jit_name(node.lookup(), space),
            _ => self.name(world, node),
        };
        match name.filter(|n| !n.frames.is_empty()) {
            None => frames.push(bare),
            Some(name) => {
                let last = name.frames.len() - 1;
                for (i, named) in name.frames.iter().enumerate() {
                    frames.push(Frame {
                        function: Some(named.function.clone()),
                        file: named.file.clone(),
                        line: named.line,
                        near: name.source == NameSource::Dynamic,
                        inlined: i < last,
                        ..bare.clone()
                    });
                }
            }
        }
        if let Some(outermost) = frames.last_mut() {
            outermost.truncated = node.flags & StackNode::TRUNCATED != 0;
        }
    }

    fn jit_name(&self, lookup: u64, space: Option<SpaceId>) -> Option<&Name> {
        let names = self.jit.get(&lookup)?;
        let Some(space) = space else {
            let ((_, first), others) = names.split_first()?;
            let same = |(_, name): &(SpaceId, Name)| name.frames == first.frames;
            return others.iter().all(same).then_some(first);
        };
        let of_space = names.iter().find(|(of, _)| *of == space);
        of_space.map(|(_, name)| name)
    }

    fn name(&mut self, world: &World, node: &StackNode) -> Option<&Name> {
        let place = (node.module, node.lookup());
        if !self.known.contains_key(&place) {
            let name = match (self.logged.remove(&place), self.symboliser.as_mut()) {
                (logged, None) => logged?,
                (Some(logged), Some(symboliser)) if !symboliser.asks_a_folder() => logged,
                (logged, Some(symboliser)) => {
                    let asked = world.module(node.module).and_then(|info| {
                        let module = Module {
                            id: node.module,
                            info,
                            file: world.files.info(info.file)?,
                            opened: None,
                        };
                        symboliser.name(&module, &[place.1]).pop()
                    });
                    asked.into_iter().chain(logged).max_by_key(quality)?
                }
            };
            self.known.insert(place, name);
        }
        self.known.get(&place)
    }
}

impl fmt::Display for Frame {
    /// `function  (module, file:line)` without escaping; see the views for what reaches a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.function, self.near) {
            (Some(function), false) => write!(f, "{function} ({})", self.module_name())?,
            (Some(function), true) => write!(f, "{} (near {function})", self.place())?,
            (None, _) if self.module.is_empty() => write!(f, "{} (code in no file)", self.place())?,
            (None, _) => f.write_str(&self.place())?,
        }
        if let Some(file) = &self.file {
            write!(f, " {file}")?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use maptrail_tracelog::record::NamedFrame;

    use super::*;

    /// A frame as `function@module`, or `@module` without a name.
    fn frame(text: &str) -> Frame {
        let (function, module) = text.split_once('@').expect("an @");
        Frame {
            function: (!function.is_empty()).then(|| function.to_owned()),
            module: format!("/usr/lib/{module}"),
            file: None,
            line: None,
            offset: 0x10,
            near: false,
            inlined: false,
            guessed: false,
            truncated: false,
        }
    }

    fn path(frames: &[&str]) -> String {
        let frames: Vec<Frame> = frames.iter().map(|text| frame(text)).collect();
        path_of(&frames).expect("frames")
    }

    #[test]
    fn names_speak_for_their_module_and_bridges_for_nobody() {
        let python = [
            "syscall@libc.so.6",
            "@libffi.so.8.1.2",
            "ffi_call@libffi.so.8.1.2",
            "@_ctypes.cpython-311-x86_64-linux-gnu.so",
            "@python3.11",
            "_PyObject_MakeTpCall@python3.11",
            "@python3.11",
            "Py_Main@python3.11",
        ];
        assert_eq!(path(&python), "_PyObject_MakeTpCall ← Py_Main (python3.11)");
        // A library without names is not passed over for its caller's sake.
        assert_eq!(
            path(&["@libucs.so", "@libucs.so", "send@libnixl.so"]),
            "libucs.so+0x10 ← send"
        );
        assert_eq!(path(&["ffi_call@libffi.so"]), "ffi_call (libffi.so)");
        assert_eq!(path(&["brk@libc.so.6"]), "brk (libc.so.6)");
    }

    #[test]
    fn a_path_leads_as_far_as_to_a_script() {
        let node = [
            "__mmap64@libc.so.6",
            "node::Allocate@node",
            "v8::Allocate@node",
            "v8::Construct@node",
            "JS:^decode@",
            "JS:^serve@",
            "main@node",
        ];
        let mut frames: Vec<Frame> = node.iter().map(|text| frame(text)).collect();
        for frame in frames.iter_mut().filter(|f| f.module == "/usr/lib/") {
            frame.module.clear();
        }
        let path = path_of(&frames).expect("frames");
        assert_eq!(
            path,
            "node::Allocate ← v8::Allocate ← … ← JS:^decode (node)"
        );
        frames.drain(1..3);
        let path = path_of(&frames).expect("frames");
        assert_eq!(path, "v8::Construct ← JS:^decode ← JS:^serve (node)");
        frames.drain(..2);
        let path = path_of(&frames).expect("frames");
        assert_eq!(path, "JS:^decode ← JS:^serve ← main (JIT)");
    }

    #[test]
    fn names_of_compiled_code_hold_in_their_space() {
        let mut world = World::default();
        let node = |parent, offset| StackNode {
            parent: StackId(parent),
            module: ModuleId(0),
            offset,
            flags: StackNode::EXACT,
        };
        let mut nodes = vec![node(0, 0x10), node(1, 0x20), node(2, 0x30)];
        world.nodes.append(StackId(1), &mut nodes);
        let name = |space, lookup, function: &str| Name {
            module: ModuleId(0),
            lookup,
            source: NameSource::Jit(SpaceId(space)),
            frames: vec![NamedFrame {
                function: function.into(),
                file: None,
                line: None,
            }],
        };
        let mut names = Names::from_log(vec![
            name(1, 0x10, "same"),
            name(2, 0x10, "same"),
            name(1, 0x20, "one"),
            name(2, 0x20, "another"),
            name(1, 0x30, "alone"),
        ]);
        let mut told = |space: Option<u32>| -> Vec<String> {
            let frames = names.stack(&world, StackId(3), space.map(SpaceId));
            frames.iter().map(ToString::to_string).collect()
        };
        let none = |offset| format!("{offset} (code in no file)");
        assert_eq!(told(Some(1)), ["alone (JIT)", "one (JIT)", "same (JIT)"]);
        let second = [none("0x30"), "another (JIT)".into(), "same (JIT)".into()];
        assert_eq!(told(Some(2)), second);
        assert_eq!(told(Some(3)), [none("0x30"), none("0x20"), none("0x10")]);
        let all = ["alone (JIT)".into(), none("0x20"), "same (JIT)".into()];
        assert_eq!(told(None), all);
    }
}
