//! A one-way UDP flow at a fixed rate, numbered, so that gaps and losses are exact.

use crate::clock::{now_ns, sleep_until, wait_for};
use crate::netns::Netns;
use anyhow::{Context, Result};
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A packet that was sent, or was to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sending {
    /// Its number.
    pub number: u64,
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// What the sender's own stack said against it.
    pub refused: Option<String>,
}

/// A running flow.
#[derive(Debug)]
pub struct Flow {
    /// The port that it goes to.
    pub port: u16,
    stop: Arc<AtomicBool>,
    quit: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sendings: Arc<Mutex<Vec<Sending>>>,
    received: Arc<Mutex<Vec<(u64, u64)>>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// What came of a flow.
#[derive(Clone, Debug, Default)]
pub struct FlowResult {
    /// Packets sent.
    pub sent: u64,
    /// (number, time of arrival) of every packet that arrived, in order of arrival.
    pub received: Vec<(u64, u64)>,
}

impl Flow {
    /// Sends a packet of `octets` every `interval_us` from one namespace to another.
    pub fn start(
        from: (&Netns, Ipv4Addr),
        to: (&Netns, Ipv4Addr),
        port: u16,
        interval_us: u64,
        octets: usize,
    ) -> Result<Self> {
        let (from_netns, from_address) = from;
        let (to_netns, to_address) = to;
        let out = from_netns.inside(move || {
            let socket = UdpSocket::bind((from_address, 0)).context("flow sender")?;
            socket.connect((to_address, port)).context("flow sender")?;
            Ok(socket)
        })?;
        let into = to_netns.inside(move || {
            let socket = UdpSocket::bind((to_address, port)).context("flow receiver")?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(8 << 20))?;
            Ok(socket)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let quit = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let sendings = Arc::new(Mutex::new(Vec::<Sending>::new()));
        let received = Arc::new(Mutex::new(Vec::new()));
        let sender = {
            let (stop, sent, sendings) = (stop.clone(), sent.clone(), sendings.clone());
            std::thread::Builder::new()
                .name("flow out".into())
                .spawn(move || {
                    let mut packet = vec![0u8; octets.max(8)];
                    let mut due = now_ns();
                    while !stop.load(Ordering::Relaxed) {
                        let number = sent.fetch_add(1, Ordering::Relaxed);
                        packet[..8].copy_from_slice(&number.to_be_bytes());
                        let at_ns = now_ns();
                        // A refused or unroutable packet is a lost one.
                        let refused = out.send(&packet).err().map(|error| error.to_string());
                        let sending = Sending {
                            number,
                            at_ns,
                            refused,
                        };
                        sendings
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(sending);
                        due += interval_us * 1000;
                        sleep_until(due);
                    }
                    Ok(())
                })?
        };
        let receiver = {
            let (quit, received) = (quit.clone(), received.clone());
            std::thread::Builder::new()
                .name("flow in".into())
                .spawn(move || {
                    let mut buffer = [0u8; 2048];
                    while !quit.load(Ordering::Relaxed) {
                        let Ok(length) = into.recv(&mut buffer) else {
                            continue;
                        };
                        if let Some(number) = buffer[..length].first_chunk::<8>() {
                            let entry = (u64::from_be_bytes(*number), now_ns());
                            received
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .push(entry);
                        }
                    }
                    Ok(())
                })?
        };
        Ok(Self {
            port,
            stop,
            quit,
            sent,
            sendings,
            received,
            threads: vec![sender, receiver],
        })
    }

    /// Packets sent and received so far.
    pub fn so_far(&self) -> (u64, u64) {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
        (self.sent.load(Ordering::Relaxed), received)
    }

    /// Packets of these numbers that have not arrived (yet).
    pub fn missing(&self, numbers: std::ops::Range<u64>) -> u64 {
        self.absent(numbers).len() as u64
    }

    /// The packets of these numbers that have not arrived (yet), as far as they were sent.
    pub fn lost(&self, numbers: std::ops::Range<u64>) -> Vec<Sending> {
        let absent = self.absent(numbers);
        let sendings = self.sendings.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |number: u64| usize::try_from(number).ok().and_then(|n| sendings.get(n));
        absent.into_iter().filter_map(of).cloned().collect()
    }

    fn absent(&self, numbers: std::ops::Range<u64>) -> Vec<u64> {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let there: std::collections::HashSet<u64> = received.iter().map(|r| r.0).collect();
        numbers.filter(|n| !there.contains(n)).collect()
    }

    /// Stops sending, waits for what is under way, and returns what came of it.
    pub fn stop(mut self) -> Result<FlowResult> {
        self.stop.store(true, Ordering::Relaxed);
        wait_for(Duration::from_millis(500), Duration::from_millis(10), || {
            let (sent, received) = self.so_far();
            (sent == received).then_some(())
        });
        self.quit.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("flow thread panicked"))??;
        }
        let received = self
            .received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Ok(FlowResult {
            sent: self.sent.load(Ordering::Relaxed),
            received,
        })
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.quit.store(true, Ordering::Relaxed);
    }
}

impl FlowResult {
    /// Packets that never arrived.
    pub fn lost(&self) -> u64 {
        let distinct: std::collections::HashSet<u64> = self.received.iter().map(|r| r.0).collect();
        self.sent - distinct.len() as u64
    }

    /// Packets that arrived more than once.
    pub fn repeated(&self) -> u64 {
        let distinct: std::collections::HashSet<u64> = self.received.iter().map(|r| r.0).collect();
        (self.received.len() - distinct.len()) as u64
    }
}
