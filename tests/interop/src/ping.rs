//! A ping of its own: a packet every so many microseconds, exact about which one was lost and when.

use crate::clock::{now_ns, sleep_until};
use crate::flow::Sending;
use crate::netns::Netns;
use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, connect, recv, send, setsockopt,
    socket, sockopt,
};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// One echo request.
#[derive(Clone, Copy, Debug)]
pub struct Echo {
    /// When it was sent.
    pub sent_ns: u64,
    /// When its answer came.
    pub back_ns: Option<u64>,
}

/// A ping that runs until it is stopped.
#[derive(Debug)]
pub struct Ping {
    /// What is shown about it.
    pub label: String,
    /// The identifier of its requests.
    pub id: u16,
    echoes: Arc<Mutex<Vec<Echo>>>,
    /// Requests that the sender's own stack refused: number and reason.
    refused: Arc<Mutex<Vec<(u32, String)>>>,
    stop: Arc<AtomicBool>,
    quit: Arc<AtomicBool>,
    sender: Option<JoinHandle<Result<()>>>,
    receiver: Option<JoinHandle<Result<()>>>,
}

/// What came of a ping.
#[derive(Clone, Debug, Default)]
pub struct PingResult {
    /// Every request in order.
    pub echoes: Vec<Echo>,
}

static NEXT_ID: AtomicU16 = AtomicU16::new(0x4500);

impl Ping {
    /// Starts to ping from an address in a namespace, one packet every `interval_us`.
    pub fn start(netns: &Netns, label: &str, from: Ipv4Addr, to: Ipv4Addr, interval_us: u64) -> Result<Self> {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let socket = Arc::new(netns.inside(move || {
            let fd = socket(
                AddressFamily::Inet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::Icmp,
            )?;
            bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0)))?;
            connect(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(to, 0)))?;
            setsockopt(&fd, sockopt::RcvBuf, &(1 << 20))?;
            setsockopt(
                &fd,
                sockopt::ReceiveTimeout,
                &nix::sys::time::TimeVal::new(0, 20_000),
            )?;
            Ok(fd)
        })?);
        let echoes = Arc::new(Mutex::new(Vec::<Echo>::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let quit = Arc::new(AtomicBool::new(false));
        let refused = Arc::new(Mutex::new(Vec::new()));
        let sender = {
            let (socket, echoes, stop) = (socket.clone(), echoes.clone(), stop.clone());
            let refused = refused.clone();
            std::thread::Builder::new()
                .name("ping out".into())
                .spawn(move || {
                    let mut due = now_ns();
                    while !stop.load(Ordering::Relaxed) {
                        let number = {
                            let mut list = echoes.lock().unwrap_or_else(PoisonError::into_inner);
                            list.push(Echo {
                                sent_ns: now_ns(),
                                back_ns: None,
                            });
                            (list.len() - 1) as u32
                        };
                        // An error (no route for a moment) is a lost packet like any other.
                        if let Err(error) = send(
                            socket.as_raw_fd(),
                            &request(id, number),
                            nix::sys::socket::MsgFlags::empty(),
                        ) {
                            let entry = (number, error.to_string());
                            refused.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
                        }
                        due += interval_us * 1000;
                        sleep_until(due);
                    }
                    Ok(())
                })?
        };
        let receiver = {
            let (echoes, quit) = (echoes.clone(), quit.clone());
            std::thread::Builder::new()
                .name("ping in".into())
                .spawn(move || {
                    let mut buffer = [0u8; 2048];
                    while !quit.load(Ordering::Relaxed) {
                        let Ok(length) = recv(
                            socket.as_raw_fd(),
                            &mut buffer,
                            nix::sys::socket::MsgFlags::empty(),
                        ) else {
                            continue;
                        };
                        let at = now_ns();
                        let Some(number) = answer(&buffer[..length], id) else {
                            continue;
                        };
                        let mut list = echoes.lock().unwrap_or_else(PoisonError::into_inner);
                        if let Some(echo) = list.get_mut(number as usize) {
                            echo.back_ns.get_or_insert(at);
                        }
                    }
                    Ok(())
                })?
        };
        Ok(Self {
            label: label.to_owned(),
            id,
            echoes,
            refused,
            stop,
            quit,
            sender: Some(sender),
            receiver: Some(receiver),
        })
    }

    /// Packets sent and answered so far.
    pub fn so_far(&self) -> (usize, usize) {
        let list = self.echoes.lock().unwrap_or_else(PoisonError::into_inner);
        (list.len(), list.iter().filter(|e| e.back_ns.is_some()).count())
    }

    /// Requests of these numbers that have no answer (yet).
    pub fn missing(&self, numbers: std::ops::Range<u64>) -> u64 {
        let list = self.echoes.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |n: u64| usize::try_from(n).ok().and_then(|n| list.get(n));
        numbers
            .filter(|n| of(*n).is_none_or(|e| e.back_ns.is_none()))
            .count() as u64
    }

    /// The requests of these numbers that have no answer (yet).
    pub fn lost(&self, numbers: std::ops::Range<u64>) -> Vec<Sending> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let why = |number: u64| {
            let found = refused.iter().find(|(n, _)| u64::from(*n) == number);
            found.map(|(_, why)| why.clone())
        };
        let list = self.echoes.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |number: u64| {
            let echo = list.get(usize::try_from(number).ok()?)?;
            echo.back_ns.is_none().then(|| Sending {
                number,
                at_ns: echo.sent_ns,
                refused: why(number),
            })
        };
        numbers.filter_map(of).collect()
    }

    /// Longest time between two answers (or the bounds) in a stretch of time.
    pub fn longest_gap_ns(&self, from_ns: u64, to_ns: u64) -> u64 {
        let list = self.echoes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut backs: Vec<u64> = list.iter().filter_map(|e| e.back_ns).collect();
        backs.retain(|at| (from_ns..to_ns).contains(at));
        backs.extend([from_ns, to_ns]);
        backs.sort_unstable();
        backs.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0)
    }

    /// Time of the last answer so far.
    pub fn last_answer_ns(&self) -> Option<u64> {
        let list = self.echoes.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().filter_map(|e| e.back_ns).max()
    }

    /// Stops sending, waits for late answers, and returns what came of it.
    pub fn stop(mut self) -> Result<PingResult> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            sender
                .join()
                .map_err(|_| anyhow::anyhow!("ping thread panicked"))??;
        }
        // Late answers: up to a second after the last request, or until all are there.
        let limit = std::time::Duration::from_secs(1);
        crate::clock::wait_for(limit, std::time::Duration::from_millis(10), || {
            let (sent, back) = self.so_far();
            (sent == back).then_some(())
        });
        self.quit.store(true, Ordering::Relaxed);
        if let Some(receiver) = self.receiver.take() {
            receiver
                .join()
                .map_err(|_| anyhow::anyhow!("ping thread panicked"))??;
        }
        let echoes = self.echoes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(PingResult { echoes })
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.quit.store(true, Ordering::Relaxed);
    }
}

impl PingResult {
    /// Requests without an answer.
    pub fn lost(&self) -> u64 {
        self.echoes.iter().filter(|e| e.back_ns.is_none()).count() as u64
    }

    /// Requests that were sent.
    pub fn sent(&self) -> u64 {
        self.echoes.len() as u64
    }

    /// Median round trip, milliseconds.
    pub fn median_ms(&self) -> f64 {
        let mut trips: Vec<u64> = self
            .echoes
            .iter()
            .filter_map(|e| Some(e.back_ns? - e.sent_ns))
            .collect();
        trips.sort_unstable();
        trips.get(trips.len() / 2).map_or(f64::NAN, |ns| *ns as f64 / 1e6)
    }
}

/// Pings until `count` requests are out and says how many were lost.
pub fn short(
    netns: &Netns,
    from: Ipv4Addr,
    to: Ipv4Addr,
    interval_us: u64,
    count: usize,
) -> Result<PingResult> {
    let ping = Ping::start(netns, "short", from, to, interval_us)?;
    let limit = std::time::Duration::from_micros(interval_us * count as u64 * 3 + 2_000_000);
    crate::clock::wait_for(limit, std::time::Duration::from_millis(2), || {
        (ping.so_far().0 >= count).then_some(())
    })
    .context("the ping did not get to send its packets in time")?;
    ping.stop()
}

fn request(id: u16, number: u32) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend((number as u16).to_be_bytes());
    packet.extend(number.to_be_bytes());
    packet.resize(64, 0x65);
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The number in an echo reply to us; the buffer starts with the IPv4 header.
fn answer(packet: &[u8], id: u16) -> Option<u32> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let icmp = packet.get(header..)?;
    let ours = *icmp.first()? == 0 && icmp.get(4..6)? == id.to_be_bytes();
    ours.then(|| icmp.get(8..12)?.try_into().ok().map(u32::from_be_bytes))
        .flatten()
}

fn checksum(data: &[u8]) -> u16 {
    let mut sum: u32 = data
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_a_true_checksum_and_its_reply_is_told_from_others() {
        let mut packet = request(0x4500, 70_000);
        assert_eq!(checksum(&packet), 0);
        packet[0] = 0;
        let reply = [&[0x45u8][..], &[0; 19], &packet].concat();
        assert_eq!(answer(&reply, 0x4500), Some(70_000));
        assert_eq!(answer(&reply, 0x4501), None);
    }
}
