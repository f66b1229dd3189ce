//! One TCP stream at full speed, with the time of every arrival, whose octets are compared with what was sent.

use crate::clock::{now_ns, sleep_until, wait_for};
use crate::netns::Netns;
use anyhow::{Context, Result, bail};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A prime, so that a lost or repeated stretch of any likely length shifts the pattern.
const PERIOD: usize = 65_521;
/// How long a stalled end waits before it gives up; TCP itself would wait for many minutes.
const STALL: Duration = Duration::from_secs(30);

/// A stream that runs.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    arrivals: Arc<Mutex<Vec<(u64, u64)>>>,
    sender: Option<JoinHandle<Result<u64>>>,
    receiver: Option<JoinHandle<Result<u64>>>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct StreamResult {
    /// Octets sent.
    pub sent: u64,
    /// (time, octets so far) after every read of the receiver.
    pub arrivals: Vec<(u64, u64)>,
}

impl Stream {
    /// Sends from one namespace to an address in another as fast as TCP lets it.
    pub fn start(from: &Netns, to: (&Netns, Ipv4Addr), port: u16) -> Result<Self> {
        Self::start_paced(from, to, port, 0)
    }

    /// The same with a pause of so many nanoseconds from the start of one write of 65 521 octets to the start of the next.
    pub fn start_paced(from: &Netns, to: (&Netns, Ipv4Addr), port: u16, interval_ns: u64) -> Result<Self> {
        let (netns, address) = to;
        let listener =
            netns.inside(move || TcpListener::bind((address, port)).context("TCP stream: listen"))?;
        let out = from.inside(move || {
            TcpStream::connect_timeout(&(address, port).into(), Duration::from_secs(5))
                .context("TCP stream: connect")
        })?;
        let (into, _) = listener.accept().context("TCP stream: accept")?;
        out.set_write_timeout(Some(STALL))?;
        into.set_read_timeout(Some(STALL))?;
        let stop = Arc::new(AtomicBool::new(false));
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let sender = {
            let stop = stop.clone();
            std::thread::Builder::new()
                .name("stream out".into())
                .spawn(move || send(out, &stop, interval_ns))?
        };
        let receiver = {
            let arrivals = arrivals.clone();
            std::thread::Builder::new()
                .name("stream in".into())
                .spawn(move || receive(into, &arrivals))?
        };
        Ok(Self {
            stop,
            arrivals,
            sender: Some(sender),
            receiver: Some(receiver),
        })
    }

    /// Waits until something has arrived after a time.
    pub fn wait_arrival_after(&self, at_ns: u64, limit: Duration) -> Result<()> {
        wait_for(limit, Duration::from_millis(2), || {
            let list = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            list.last().is_some_and(|(t, _)| *t > at_ns).then_some(())
        })
        .with_context(|| format!("the TCP stream made no progress for {limit:?}"))
    }

    /// Lets the sender finish, and waits until the receiver has got all.
    pub fn finish(mut self) -> Result<StreamResult> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = joined(self.sender.take());
        // When the receiver gives up the sender has a broken pipe, which says nothing.
        let (received, sent) = (joined(self.receiver.take())?, sent?);
        if sent != received {
            bail!("the TCP stream ended after {received} of {sent} octets");
        }
        let arrivals = self
            .arrivals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Ok(StreamResult { sent, arrivals })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl StreamResult {
    /// Start and end of the longest time without progress that ended after `at_ns`.
    pub fn longest_stall(&self, at_ns: u64) -> Option<(u64, u64)> {
        let pairs = self.arrivals.windows(2).map(|w| (w[0].0, w[1].0));
        pairs
            .filter(|(_, to)| *to > at_ns)
            .max_by_key(|(from, to)| to - from)
    }
}

/// Sends whole periods until it is told to stop; returns the octets.
fn send(mut socket: TcpStream, stop: &AtomicBool, interval_ns: u64) -> Result<u64> {
    let pattern = pattern();
    let mut sent = 0u64;
    let mut due = now_ns();
    while !stop.load(Ordering::Relaxed) {
        socket
            .write_all(&pattern[..PERIOD])
            .with_context(|| format!("TCP stream: sending after {sent} octets"))?;
        sent += PERIOD as u64;
        // What an outage has held up is not made up for in one burst.
        due = (due + interval_ns).max(now_ns());
        if interval_ns > 0 {
            sleep_until(due);
        }
    }
    socket
        .shutdown(Shutdown::Write)
        .context("TCP stream: end of sending")?;
    Ok(sent)
}

fn receive(mut socket: TcpStream, arrivals: &Mutex<Vec<(u64, u64)>>) -> Result<u64> {
    let pattern = pattern();
    let mut buffer = vec![0u8; PERIOD];
    let mut total = 0u64;
    loop {
        let length = match socket.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(length) => length,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e).with_context(|| format!("TCP stream: receiving after {total} octets")),
        };
        let start = (total % PERIOD as u64) as usize;
        if buffer[..length] != pattern[start..start + length] {
            let first = buffer[..length]
                .iter()
                .zip(&pattern[start..])
                .position(|(a, b)| a != b);
            let at = first.unwrap_or_default();
            let shown = &buffer[at..length.min(at + 16)];
            bail!(
                "the TCP stream delivered other octets than were sent, after {total} and {at} more of {length}: {shown:02x?} for {:02x?}",
                &pattern[start + at..start + at + shown.len()]
            );
        }
        total += length as u64;
        arrivals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((now_ns(), total));
    }
}

/// The pattern twice, so that a stretch of it from any place is one slice.
fn pattern() -> Vec<u8> {
    let one: Vec<u8> = (0..PERIOD).map(|i| (i * 31 + i / 251) as u8).collect();
    [one.as_slice(), one.as_slice()].concat()
}

fn joined(thread: Option<JoinHandle<Result<u64>>>) -> Result<u64> {
    thread
        .context("the TCP stream has ended already")?
        .join()
        .map_err(|_| anyhow::anyhow!("a thread of the TCP stream panicked"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stall_is_the_longest_one_that_ended_after_the_kill() {
        let result = StreamResult {
            sent: 0,
            arrivals: [(0, 1), (900, 2), (1000, 3), (1010, 4), (1400, 5), (1410, 6)].into(),
        };
        assert_eq!(result.longest_stall(950), Some((1010, 1400)));
        assert_eq!(result.longest_stall(1410), None);
    }
}
