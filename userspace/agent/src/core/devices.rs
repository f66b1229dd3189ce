//! The thread that asks the kernel about the interfaces ([`dataplane::Watch`]), since an answer may take seconds.

use std::sync::mpsc::{SyncSender, sync_channel};

use dataplane::{Seen, Watch};
use tokio::sync::mpsc;

/// A way to ask: devices that ports are on. One question waits at most; while the kernel is busy there are no more.
pub type Questions = SyncSender<Vec<u32>>;

/// Starts the thread. It ends when nobody asks any more.
///
/// # Errors
/// The host has no thread left.
pub fn start(watch: Watch) -> std::io::Result<(Questions, mpsc::UnboundedReceiver<Seen>)> {
    let (ask, questions) = sync_channel::<Vec<u32>>(1);
    let (answer, answers) = mpsc::unbounded_channel();
    std::thread::Builder::new()
        .name("devices".to_owned())
        .spawn(move || {
            while let Ok(devices) = questions.recv() {
                if answer.send(watch.look(&devices)).is_err() {
                    return;
                }
            }
        })?;
    Ok((ask, answers))
}
