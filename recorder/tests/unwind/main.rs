//! Unwinds real stopped processes and compares with what their source says, with gdb, and with
//! damaged input. Every victim is built from the source here, by the compilers of the machine.

#![forbid(unsafe_code)]

mod chains;
mod damage;
mod referee;
mod support;
