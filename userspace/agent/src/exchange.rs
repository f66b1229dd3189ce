//! Key exchanges beside the event loop: some threads of their own, and a queue with an end.
//!
//! What one turn of the loop asks for is handed over together, and what a thread has computed comes back together: under load a
//! hop costs a fraction of the shortest key exchange.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use ike::{ComputeRequest, Computed};
use tokio::sync::mpsc::UnboundedSender;

use crate::core::random;

/// Portions that wait; what is beyond is refused, which the engine takes for the loss of a message. Long before that first
/// messages need cookies.
const WAITING: usize = 1024;
/// Short computations in one portion: together well below a millisecond, so that several threads share a burst.
const LIGHT: usize = 16;
/// Threads at most.
const THREADS: usize = 4;
/// Priority below that of the event loop, on which heartbeats and the liveness of all other peers depend.
const NICE: libc::c_int = 5;

type Portion = Vec<ComputeRequest>;

/// The threads that compute.
pub struct Computers {
    jobs: SyncSender<Portion>,
    done: UnboundedSender<Vec<Computed>>,
    /// Of this turn.
    light: Portion,
    heavy: Portion,
    /// Refused since the start.
    refused: u64,
}

impl Computers {
    /// Starts the threads; what they compute goes to `done`.
    ///
    /// # Errors
    /// There is no thread.
    pub fn start(done: UnboundedSender<Vec<Computed>>) -> Result<Self> {
        let (jobs, work) = sync_channel(WAITING);
        let work = Arc::new(Mutex::new(work));
        // One CPU is the event loop's.
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        for number in 0..cpus.saturating_sub(1).clamp(1, THREADS) {
            let (work, done) = (work.clone(), done.clone());
            std::thread::Builder::new()
                .name(format!("exchange-{number}"))
                .spawn(move || run(&work, &done))
                .context("cannot start a thread for key exchanges")?;
        }
        Ok(Self {
            jobs,
            done,
            light: Vec::new(),
            heavy: Vec::new(),
            refused: 0,
        })
    }

    /// Asks for key exchanges. They are handed over with the others of this turn.
    pub fn ask(&mut self, request: ComputeRequest) {
        if request.is_light() {
            self.light.push(request);
        } else {
            self.heavy.push(request);
        }
    }

    /// Hands over what this turn has asked for.
    pub fn hand_over(&mut self) {
        let mut light = std::mem::take(&mut self.light);
        while !light.is_empty() {
            let rest = light.split_off(light.len().min(LIGHT));
            self.send(std::mem::replace(&mut light, rest));
        }
        for request in std::mem::take(&mut self.heavy) {
            self.send(vec![request]);
        }
    }

    /// Key exchanges that nobody had the time for, since the start.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    fn send(&mut self, portion: Portion) {
        let (TrySendError::Full(portion) | TrySendError::Disconnected(portion)) =
            match self.jobs.try_send(portion) {
                Ok(()) => return,
                Err(error) => error,
            };
        self.refused += portion.len() as u64;
        let refused = portion.into_iter().map(ComputeRequest::refuse);
        let _ = self.done.send(refused.collect());
    }
}

fn run(work: &Mutex<Receiver<Portion>>, done: &UnboundedSender<Vec<Computed>>) {
    // SAFETY: it concerns the calling thread (0) alone. A priority that is refused is no failure.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    loop {
        // Whoever has the lock waits for work, the others for the lock.
        let portion = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(portion) = portion else { return };
        let computed = portion.into_iter().map(|request| request.run(&mut random));
        if done.send(computed.collect()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ike::{Command, Connection, EndpointConfig, Engine, EngineConfig, Identity, Input, Output, Proposal};
    use model::{Epoch, EspSpi, IkeSpi, InitialLimits, Instant, MemberId, SecretBytes};

    struct Around;

    impl ike::Surroundings for Around {
        fn random(&mut self, out: &mut [u8]) {
            random(out);
        }
        fn ike_spi(&mut self, _: Option<IkeSpi>, _: &str) -> IkeSpi {
            let mut octets = [0; 8];
            random(&mut octets);
            IkeSpi(u64::from_be_bytes(octets) | 1)
        }
        fn successor_ike_spi(&mut self, _: IkeSpi) -> IkeSpi {
            self.ike_spi(None, "")
        }
        fn esp_spi(&mut self, _: IkeSpi) -> Option<EspSpi> {
            None
        }
        fn release_esp_spi(&mut self, _: EspSpi) {}
        fn initial_limits(&mut self) -> InitialLimits {
            unreachable!("no Child SA is made here")
        }
        fn iv_prefix(&self, _: IkeSpi) -> (MemberId, Epoch) {
            (MemberId(1), Epoch(1))
        }
    }

    #[tokio::test]
    async fn the_engine_goes_on_with_what_the_threads_have_computed() {
        let connections = ["x25519", "modp4096", "ecp384"].map(|group| {
            let local = "192.0.2.1".parse().unwrap();
            let psk = SecretBytes::new(vec![1; 16]);
            let mut connection = Connection::new(group, local, Identity::parse("a.example"), psk);
            connection.remotes = vec!["192.0.2.2".parse().unwrap()];
            let proposal = format!("aes128gcm16-prfsha256-{group}");
            connection.ike_proposals = vec![Proposal::parse_ike(&proposal).unwrap()];
            connection
        });
        let mut engine = Engine::new(EngineConfig {
            connections: connections.into(),
            endpoint: EndpointConfig::new(SecretBytes::new(vec![3; 32])),
        });
        engine.exchange_beside();
        let now = Instant::from_millis(1000);
        let (done, mut computed) = tokio::sync::mpsc::unbounded_channel();
        let mut computers = Computers::start(done).unwrap();
        for group in ["x25519", "modp4096", "ecp384"] {
            let command = Command::Initiate {
                connection: group.to_owned(),
            };
            engine.handle(Input::Command { now, command }, &mut Around);
        }
        let mut asked = 0;
        while let Some(output) = engine.poll() {
            match output {
                Output::Compute(request) => {
                    asked += 1;
                    computers.ask(request);
                }
                Output::Commit(_) => panic!("nothing may be committed yet"),
                _ => {}
            }
        }
        assert_eq!(asked, 3);
        computers.hand_over();
        let mut sent = Vec::new();
        while sent.len() < 3 {
            for computed in computed.recv().await.unwrap() {
                engine.handle(Input::Computed { now, computed }, &mut Around);
            }
            while let Some(output) = engine.poll() {
                if let Output::Commit(commit) = output {
                    sent.extend(commit.transmits.into_iter().map(|transmit| transmit.bytes.len()));
                }
            }
        }
        sent.sort_unstable();
        // A public value of 512 octets among them.
        assert!(sent[0] < 400 && sent[2] > 600, "{sent:?}");
        assert_eq!((engine.computed_here(), computers.refused()), (0, 0));
    }
}
