//! Load: complete IKE handshakes with a pre-shared key, as many and as fast as a responder answers.

mod initiators;

pub use initiators::Initiators;

use crate::netns::Netns;
use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The suite of all handshakes, as configurations write it.
pub const SUITE: &str = "aes128gcm16-prfsha256-x25519";
/// Of their Child SAs.
pub const ESP: &str = "aes128gcm16";
/// Name of the connection; the identities are `peer-NAME.example` and `gw-NAME.example`.
pub const NAME: &str = "load";

const RETRY: Duration = Duration::from_millis(500);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Load {
    /// Our address.
    pub local: Ipv4Addr,
    /// The responder's.
    pub remote: Ipv4Addr,
    /// The pre-shared key.
    pub psk: String,
    /// Handshakes.
    pub count: usize,
    /// Of these under way at the same time.
    pub at_once: usize,
    /// Each brings up a Child SA as well: an address of our own behind us and the network behind the responder.
    pub child: Option<(Ipv4Addr, (Ipv4Addr, Ipv4Addr))>,
    /// Tells the initiators' SPIs and nonces apart from those of other runs.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// From the first message to the last answer.
    pub elapsed: Duration,
    /// Requests that were sent again.
    pub repeated: usize,
}

/// Does all handshakes from a namespace, or fails.
pub fn run(netns: &Netns, load: &Load) -> Result<Outcome> {
    let load = load.clone();
    netns.inside(move || over_udp(load))
}

fn over_udp(load: Load) -> Result<Outcome> {
    let socket = UdpSocket::bind((load.local, 500)).context("UDP port 500")?;
    socket.connect((load.remote, 500))?;
    socket.set_nonblocking(true)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20))?;
    // What is not sent is repeated.
    let send = |request: &[u8]| drop(socket.send(request));
    let limit = Duration::from_secs(60) + Duration::from_millis(20) * load.count as u32;
    let at_once = load.at_once;
    let mut initiators = Initiators::new(load)?;
    let mut repeated = 0;
    let mut buffer = vec![0; 65_536];
    let start = Instant::now();
    while initiators.left() > 0 {
        ensure!(
            start.elapsed() < limit,
            "{} handshakes are not complete after {limit:?}",
            initiators.left(),
        );
        while initiators.under_way() < at_once {
            match initiators.begin(Instant::now())? {
                Some(request) => send(&request),
                None => break,
            }
        }
        let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::from(100u8)).unwrap_or(0) == 0 {
            for request in initiators.repeat(Instant::now(), RETRY) {
                repeated += 1;
                send(request);
            }
        }
        // An error here is an ICMP answer to an earlier message, which will be repeated.
        while let Ok(length) = socket.recv(&mut buffer) {
            if let Some(request) = initiators.answer(&buffer[..length], Instant::now())? {
                send(&request);
            }
        }
    }
    Ok(Outcome {
        elapsed: start.elapsed(),
        repeated,
    })
}
