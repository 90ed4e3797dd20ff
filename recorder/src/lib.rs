//! Records the memory system calls of live processes.

#![deny(unsafe_code)]

pub mod unwind;
