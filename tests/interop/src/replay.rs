//! Sends captured frames again, at one member.

use crate::clock::{now_ns, sleep_until};
use crate::netns::Netns;
use crate::recorder::packet_socket;
use anyhow::{Context, Result};
use std::os::fd::AsRawFd;

/// Source MAC address of replayed frames (locally administered), so that recorders do not take them for the peer's.
pub const REPLAYER: [u8; 6] = [0x02, 0x65, 0x73, 0x70, 0x72, 0x70];

/// Frames in one burst; a pause follows, so that the receiver's queues do not overflow and every frame is judged.
const BURST: usize = 32;
const BURST_NS: u64 = 1_000_000;

/// Sends every frame out of an interface of `netns` to this MAC address. Returns how many were sent.
pub fn replay(netns: &Netns, interface: &str, to: [u8; 6], frames: Vec<Vec<u8>>) -> Result<u64> {
    let interface = interface.to_owned();
    netns.inside(move || {
        let socket = packet_socket(&interface, false)?;
        let mut sent = 0;
        let mut due = now_ns();
        for burst in frames.chunks(BURST) {
            for frame in burst {
                let mut frame = frame.clone();
                let (head, _) = frame.split_first_chunk_mut::<12>().context("short frame")?;
                head[..6].copy_from_slice(&to);
                head[6..].copy_from_slice(&REPLAYER);
                // SAFETY: the buffer is live and its length is passed with it.
                let result = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
                if result < 0 {
                    return Err(std::io::Error::last_os_error()).context("replaying a frame");
                }
                sent += 1;
            }
            due = (due + BURST_NS).max(now_ns());
            sleep_until(due);
        }
        Ok(sent)
    })
}
