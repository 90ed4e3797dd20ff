//! Tests of the log as a whole: through the public writer and reader, and on the bytes between.

mod bounds;
mod calls;
mod damage;
mod format;
mod generate;
mod round_trip;
mod versions;
