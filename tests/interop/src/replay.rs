//! Sends captured frames again, at one member.

use crate::clock::{now_ns, sleep_until};
use crate::netns::Netns;
use crate::recorder::packet_socket;
use anyhow::{Context, Result};
use std::os::fd::AsRawFd;

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
                frame.get_mut(..6).context("short frame")?.copy_from_slice(&to);
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
