//! What devices need to work with the programs, and the thread that asks the kernel about them ([`dataplane::Watch`]), since an answer may
//! take seconds.

use std::sync::mpsc::{SyncSender, sync_channel};

use dataplane::{Seen, Watch, XdpModeUsed};
use tokio::sync::mpsc;

use crate::events::EventLog;
use crate::net::{Interface, offload};

/// Once programs run on a port: has nobody merge packets on the way to them, and says what has to be done elsewhere.
pub fn prepare(port: &Interface, mode: XdpModeUsed, log: &mut EventLog) {
    if port.veth {
        // In another network namespace, which is nobody's business here.
        log.warn(
            "device",
            format!(
                "{} is one end of a veth pair: whoever sends TCP or UDP at the far end has to finish checksums and cut packets himself, or \
                 they come to nothing: `ethtool -K DEVICE tx off tso off gso off` there",
                port.name
            ),
        );
    }
    if mode != XdpModeUsed::Generic {
        return;
    }
    for device in &port.devices {
        match offload::merge_nothing(device) {
            Ok(false) => {}
            Ok(true) => log.note(
                "device",
                format!("GRO of {device} is switched off: in generic mode merged packets would reach the programs"),
            ),
            Err(error) => log.warn(
                "device",
                format!(
                    "{device} may merge packets before the programs see them, which then drop them ({error}); check: ethtool -K {device} \
                     gro off lro off"
                ),
            ),
        }
    }
}

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
