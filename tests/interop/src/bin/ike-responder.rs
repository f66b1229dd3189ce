//! The IKE engine as responder in one process, without sockets, standby and data plane: what `cargo xtask bench ike
//! --instructions` counts. Everything that the responder does happens below [`respond`], and nothing else does.
//!
//! `ike-responder HANDSHAKES AT_ONCE [child]` prints the processor time of the responder for each handshake.

use anyhow::{Context, Result, ensure};
use ike::{
    Change, ChildConfig, Connection, EndpointConfig, Engine, EngineConfig, Identity, IkeSaChange, Input,
    Output, Proposal, Surroundings,
};
use lab::handshakes::{ESP, Initiators, Load, NAME, SUITE};
use model::{ChildSaChange, Epoch, EspSpi, IkeSpi, InitialLimits, MemberId, SecretBytes, TrafficSelector};
use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

const INITIATORS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const RESPONDER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const BEHIND: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
const NETWORK: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 20, 1, 0), Ipv4Addr::new(10, 20, 1, 255));

/// What the engine asks for. Numbers come from a counter and a hash, so that every run does the same.
#[derive(Default)]
struct Around {
    drawn: u64,
    esp_spis: u32,
}

impl Surroundings for Around {
    fn random(&mut self, out: &mut [u8]) {
        // SplitMix64: a few instructions, as the system's own generator costs the engine none.
        for octets in out.chunks_mut(8) {
            self.drawn = self.drawn.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.drawn;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let drawn = (mixed ^ (mixed >> 31)).to_le_bytes();
            octets.copy_from_slice(&drawn[..octets.len()]);
        }
    }

    fn ike_spi(&mut self, _peer: Option<IkeSpi>, _connection: &str) -> IkeSpi {
        let mut octets = [0; 8];
        self.random(&mut octets);
        octets[1] = 1;
        IkeSpi(u64::from_be_bytes(octets))
    }

    fn successor_ike_spi(&mut self, _old: IkeSpi) -> IkeSpi {
        self.ike_spi(None, "")
    }

    fn esp_spi(&mut self, _ike_spi: IkeSpi) -> Option<EspSpi> {
        self.esp_spis += 1;
        Some(EspSpi(0x0100_0000 + self.esp_spis))
    }

    fn release_esp_spi(&mut self, _spi: EspSpi) {}

    fn initial_limits(&mut self) -> InitialLimits {
        InitialLimits {
            lease: 4096,
            lease_step: 4096,
            ceiling: 64,
            headroom: 64,
        }
    }

    fn iv_prefix(&self, _ike_spi: IkeSpi) -> (MemberId, Epoch) {
        (MemberId(1), Epoch(1))
    }
}

/// What a handshake leaves behind.
#[derive(Default)]
struct Left {
    records: BTreeMap<IkeSpi, SecretBytes>,
    children: usize,
    events: usize,
}

/// One turn of the responder: a datagram, and everything that follows from it. Its name is what instructions are counted under.
#[inline(never)]
fn respond(
    engine: &mut Engine,
    around: &mut Around,
    left: &mut Left,
    now: model::Instant,
    bytes: &[u8],
) -> Vec<Vec<u8>> {
    let (local, remote) = (
        SocketAddr::from((RESPONDER, 500)),
        SocketAddr::from((INITIATORS, 500)),
    );
    let mut answers = Vec::new();
    engine.handle(
        Input::Datagram {
            now,
            local,
            remote,
            bytes,
        },
        around,
    );
    while let Some(output) = engine.poll() {
        match output {
            Output::Compute(request) => {
                let computed = request.run(&mut |out| around.random(out));
                engine.handle(Input::Computed { now, computed }, around);
            }
            Output::Commit(commit) => {
                for change in commit.changes {
                    match change {
                        Change::IkeSa(IkeSaChange::Put { spi, record }) => {
                            left.records.insert(spi, record);
                        }
                        Change::IkeSa(IkeSaChange::Remove { spi }) => {
                            left.records.remove(&spi);
                        }
                        Change::ChildSa(ChildSaChange::Install { .. }) => left.children += 1,
                        Change::ChildSa(_) => {}
                    }
                }
                answers.extend(commit.transmits.into_iter().map(|transmit| transmit.bytes));
            }
            Output::Transmit(transmit) => answers.push(transmit.bytes),
            Output::Event(_) => left.events += 1,
            // None of these belongs to a handshake with a pre-shared key; without an answer it does not complete.
            Output::Sign(_) | Output::Tls(_) => {}
        }
    }
    answers
}

fn engine(psk: &str) -> Result<Engine> {
    let psk = SecretBytes::new(psk.as_bytes().to_vec());
    let id = |who: &str| Identity::parse(&format!("{who}-{NAME}.example"));
    let mut connection = Connection::new(NAME, RESPONDER.into(), id("gw"), psk);
    connection.remotes = vec![INITIATORS.into()];
    connection.remote_id = Some(id("peer"));
    connection.ike_proposals = vec![Proposal::parse_ike(SUITE)?];
    let selector = |first: Ipv4Addr, last: Ipv4Addr| TrafficSelector {
        first: first.into(),
        last: last.into(),
        protocol: 0,
        first_port: 0,
        last_port: u16::MAX,
    };
    let local = vec![selector(NETWORK.0, NETWORK.1)];
    let remote = vec![selector(BEHIND, Ipv4Addr::new(10, 127, 255, 255))];
    let mut child = ChildConfig::new("net", local, remote);
    child.esp_proposals = vec![Proposal::parse_esp(ESP)?];
    connection.children = vec![child];
    let mut engine = Engine::new(EngineConfig {
        connections: vec![connection],
        endpoint: EndpointConfig::new(SecretBytes::new(vec![3; 32])),
    });
    engine.exchange_beside();
    Ok(engine)
}

/// Processor time of this thread.
fn processor_time() -> Result<Duration> {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    Ok(nix::time::clock_gettime(clock)?.into())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [count, at_once, with_child @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: ike-responder HANDSHAKES AT_ONCE [child]");
    };
    let load = Load {
        local: INITIATORS,
        remote: RESPONDER,
        psk: "a secret of at least thirty-two octets".to_owned(),
        count: count.parse().context("HANDSHAKES is a number")?,
        at_once: at_once.parse().context("AT_ONCE is a number")?,
        child: with_child.first().map(|_| (BEHIND, NETWORK)),
        seed: 1,
    };
    let (count, at_once) = (load.count, load.at_once);
    ensure!(count > 0 && at_once > 0, "nothing to do");
    let mut engine = engine(&load.psk)?;
    let (mut around, mut left) = (Around::default(), Left::default());
    let mut initiators = Initiators::new(load)?;
    // Virtual: every handshake has the same time.
    let (epoch, start) = (Instant::now(), model::Instant::from_millis(10_000));
    let mut requests = VecDeque::new();
    let mut used = Duration::ZERO;
    while initiators.left() > 0 {
        while initiators.under_way() < at_once {
            match initiators.begin(epoch)? {
                Some(request) => requests.push_back(request),
                None => break,
            }
        }
        let request = requests.pop_front().context("an answer is missing")?;
        let before = processor_time()?;
        let answers = respond(&mut engine, &mut around, &mut left, start, &request);
        used += processor_time()? - before;
        for answer in answers {
            requests.extend(initiators.answer(&answer, epoch)?);
        }
    }
    ensure!(
        engine.ike_sa_count() == count && left.records.len() == count,
        "IKE SAs are missing"
    );
    ensure!(
        with_child.is_empty() || left.children == count,
        "Child SAs are missing"
    );
    ensure!(
        engine.computed_here() == 0,
        "key exchanges were computed in the loop"
    );
    println!("{:.1}", used.as_secs_f64() * 1e6 / count as f64);
    Ok(())
}
