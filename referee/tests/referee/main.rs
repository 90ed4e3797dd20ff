//! Compares our stacks with those that others find, on real programs at work and at every single
//! instruction of functions.
//!
//! ```text
//! steps      single-stepped programs; the processor's own calls and returns say what the stack is
//! corpus     programs stopped at random and at their memory calls; libunwind, then gdb, say what it is
//! target     a stopped process, unwound by us            libunwind, gdb    the same, by others
//! shadow     the stack as calls and returns make it      judge, tally      who is right, how often
//! ```
//!
//! `MAPTRAIL_LONG=1` makes them long.

#![deny(unsafe_code)]

mod corpus;
mod gdb;
mod libunwind;
mod processor;
mod programs;
mod servers;
mod shadow;
mod steps;
mod stops;
mod tally;
mod target;
