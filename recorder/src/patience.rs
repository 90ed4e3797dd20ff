//! Questions that may be answered by somebody who waits for us: a file system in user space whose
//! server is recorded as well stands still while the tracer asks it for a file.

use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use crate::sys::timer;

/// How long the tracer, and with it the target, waits for an answer.
pub const PATIENCE: Duration = Duration::from_millis(400);

/// Asks in a thread of its own; `None` if there was no answer in time. The thread stays until there
/// is one, and nobody hears it then.
pub fn within<T: Send + 'static>(
    limit: Duration,
    ask: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (answer, answered) = sync_channel(1);
    let asking = move || {
        timer::block_signals_in_this_thread();
        // Nobody may be waiting any more.
        let _ = answer.send(ask());
    };
    thread::Builder::new()
        .name("maptrail-files".into())
        .spawn(asking)
        .ok()?;
    answered.recv_timeout(limit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_waited_for_and_silence_is_not() {
        assert_eq!(within(Duration::MAX, || 7), Some(7));
        let (end, ended) = sync_channel::<()>(0);
        assert_eq!(within(Duration::from_millis(1), move || ended.recv()), None);
        drop(end);
    }
}
