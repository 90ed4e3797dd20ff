//! What the files and functions are called that everybody's stacks go through: the one list of them.
//!
//! A file's name is without its folder; versions follow the parts given here.

/// Dynamic loaders. Musl's is its C library, too.
const LOADERS: [&str; 3] = ["ld-linux", "ld-musl", "ld-2."];

/// C libraries.
const C_LIBRARIES: [&str; 4] = ["libc.so", "libc-2.", "libc.musl", "libpthread"];

/// Allocators that take the place of libc's.
const ALLOCATORS: [&str; 3] = ["libjemalloc", "libtcmalloc", "libmimalloc"];

/// Functions that do no more than hand a call to the kernel, without the underscores before and `64` behind.
const WRAPPERS: [&str; 8] = [
    "mmap", "munmap", "mremap", "mprotect", "madvise", "brk", "sbrk", "syscall",
];

/// Functions of allocators, wherever they are linked into.
const ALLOCATING: [&str; 8] = [
    "malloc",
    "calloc",
    "realloc",
    "free",
    "memalign",
    "posix_memalign",
    "aligned_alloc",
    "libc_malloc",
];

/// What the names of functions begin with that allocate for a language, or are its runtime: Go has it in every
/// program.
const RUNTIMES: [&str; 7] = [
    "operator new",
    "operator delete",
    "__rust_alloc",
    "runtime.",
    "runtime/internal/",
    "internal/runtime/",
    "syscall.",
];

/// Libraries that call C for an interpreter.
const BRIDGES: [&str; 2] = ["libffi", "_ctypes"];

fn begins(name: &str, with: &[&str]) -> bool {
    with.iter().any(|start| name.starts_with(start))
}

/// Whether it is a dynamic loader.
pub(crate) fn is_loader(name: &str) -> bool {
    begins(name, &LOADERS)
}

/// Whether it is the C library or the loader.
pub(crate) fn is_libc(name: &str) -> bool {
    is_loader(name) || begins(name, &C_LIBRARIES)
}

/// Whether it is something that stacks go through on their way to the kernel.
pub(crate) fn is_plumbing(name: &str) -> bool {
    is_libc(name) || begins(name, &ALLOCATORS) || name == "[vdso]"
}

/// Whether a function does no more than hand a call to the kernel.
pub(crate) fn is_wrapper(function: &str) -> bool {
    let name = function.trim_start_matches('_').trim_end_matches("64");
    WRAPPERS.contains(&name)
}

/// Whether stacks go through a function of this name on their way to the kernel, in whatever file it lies.
pub(crate) fn is_plumbing_function(function: &str) -> bool {
    is_wrapper(function)
        || begins(function, &RUNTIMES)
        || ALLOCATING.contains(&function.trim_start_matches('_'))
}

/// Whether it calls for somebody else's language: what a stack is about lies further out.
pub(crate) fn is_bridge(name: &str) -> bool {
    begins(name, &BRIDGES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_goes_by_many_names() {
        for name in [
            "libc.so.6",
            "libc-2.31.so",
            "libc.musl-x86_64.so.1",
            "libpthread-2.31.so",
        ] {
            assert!(
                is_libc(name) && is_plumbing(name) && !is_loader(name),
                "{name}"
            );
        }
        for name in ["ld-linux-x86-64.so.2", "ld-musl-x86_64.so.1", "ld-2.31.so"] {
            assert!(
                is_libc(name) && is_plumbing(name) && is_loader(name),
                "{name}"
            );
        }
        for name in ["libjemalloc.so.2", "[vdso]"] {
            assert!(is_plumbing(name) && !is_libc(name), "{name}");
        }
        for name in ["libc-client.so.2007e", "ld-tool", "libcurl.so.4"] {
            assert!(!is_plumbing(name), "{name}");
        }
    }

    #[test]
    fn what_is_linked_in_goes_by_its_functions() {
        for name in [
            "__mmap64",
            "malloc",
            "__libc_malloc",
            "operator new(unsigned long)",
            "runtime.mallocgc",
            "runtime/internal/syscall.Syscall6",
            "syscall.Mmap",
        ] {
            assert!(is_plumbing_function(name), "{name}");
        }
        for name in [
            "main.worker",
            "mmap_frames",
            "malloc_pool::grow",
            "syscalls.Run",
        ] {
            assert!(!is_plumbing_function(name), "{name}");
        }
    }
}
