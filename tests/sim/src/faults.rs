//! Faults, and schedules of them drawn from a seed.

use crate::net::{Road, Weather};
use crate::rng::Rng;
use crate::setup::{Engine, Setup};
use model::Instant;
use std::time::Duration;

/// Something that goes wrong, or is done by people.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The whole host is gone: agent and programs.
    KillHost(u8),
    /// The agent is gone, the programs run on.
    KillAgent(u8),
    /// A dead member starts again and knows nothing.
    Start(u8),
    /// SIGSTOP.
    Pause(u8),
    /// SIGCONT.
    Resume(u8),
    /// Everything at this agent takes longer, milliseconds (0: no more).
    Slow(u8, u64),
    /// One direction is cut.
    Cut(u8, u8, Road),
    /// It works again.
    Mend(u8, u8, Road),
    /// Loss, duplication, delay.
    Weather(Road, Weather),
    /// The ownership engine answers nobody, or again.
    EngineDown(bool),
    /// It is slow, and loses answers.
    EngineSlow {
        /// Most extra delay, milliseconds.
        ms: u64,
        /// Lost answers in a thousand.
        lost: u64,
    },
    /// An operator hands everything to this member.
    TakeoverTo(u8),
    /// An operator drains this member, or ends that.
    Drain(u8, bool),
    /// An operator wants every group at its home.
    Rebalance,
    /// A peer rekeys a Child SA, its IKE SA, deletes a Child SA, closes the IKE SA.
    PeerRekeysChild(u8),
    /// See above.
    PeerRekeysIke(u8),
    /// See above.
    PeerDeletesChild(u8),
    /// See above.
    PeerCloses(u8),
    /// A peer's gateway is started again and knows nothing.
    PeerRestarts(u8),
    /// Captured ESP packets are sent again.
    Replay,
    /// Records that cannot be read.
    Garbage,
    /// Old datagrams of the synch channel come again.
    StaleRecords,
    /// Many packets at once from the inside and from a peer.
    Burst(u8),
}

/// A schedule: times from the start of the run.
pub type Schedule = Vec<(Instant, Fault)>;

/// What a scenario lets happen, each with its weight.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mix {
    /// Deaths of hosts and agents.
    pub kill: u64,
    /// Pauses.
    pub pause: u64,
    /// Slow members.
    pub slow: u64,
    /// Cuts between members, both ways.
    pub cut: u64,
    /// One-way cuts between members.
    pub one_way: u64,
    /// Bad weather between members.
    pub weather: u64,
    /// Bad weather and cuts towards the peers.
    pub peer_path: u64,
    /// Trouble of the ownership engine.
    pub engine: u64,
    /// What operators do.
    pub operator: u64,
    /// What peers do.
    pub peer: u64,
    /// Replays of ESP, garbage and stale records.
    pub attack: u64,
    /// Bursts.
    pub burst: u64,
    /// Bad weather on the synch network alone.
    pub synch_noise: u64,
}

/// Draws a schedule between two times.
pub fn draw(rng: &mut Rng, setup: &Setup, mix: &Mix, from: Instant, to: Instant) -> Schedule {
    let mut out = Schedule::new();
    let mut at = from;
    let engine = if setup.engine == Engine::Etcd {
        mix.engine
    } else {
        0
    };
    let weights = [
        mix.kill,
        mix.pause,
        mix.slow,
        mix.cut,
        mix.one_way,
        mix.weather,
        mix.peer_path,
        engine,
        mix.operator,
        mix.peer,
        mix.attack,
        mix.burst,
        mix.synch_noise,
    ];
    let total: u64 = weights.iter().sum();
    if total == 0 {
        return out;
    }
    loop {
        at = at + Duration::from_millis(rng.range(20, 700));
        if at >= to {
            break;
        }
        let mut left = rng.below(total);
        let kind = weights
            .iter()
            .position(|w| {
                let here = left < *w;
                left = left.saturating_sub(*w);
                here
            })
            .unwrap_or(0);
        one(rng, setup, kind, at, &mut out);
    }
    // Stable: what was drawn first comes first.
    out.sort_by_key(|(at, _)| *at);
    out
}

fn one(rng: &mut Rng, setup: &Setup, kind: usize, at: Instant, out: &mut Schedule) {
    let m = rng.range(1, u64::from(setup.members)) as u8;
    let other = (m + rng.range(1, u64::from(setup.members) - 1) as u8 - 1) % setup.members + 1;
    let peer = rng.range(1, setup.peers.len() as u64) as u8;
    let mut later = |low, high| at + Duration::from_millis(rng.range(low, high));
    let between = [Road::Synch, Road::Outside, Road::Inside];
    match kind {
        0 => {
            let end = later(30, 1500);
            out.push((
                at,
                if rng.permille(500) {
                    Fault::KillHost(m)
                } else {
                    Fault::KillAgent(m)
                },
            ));
            out.push((end, Fault::Start(m)));
        }
        1 => {
            let end = later(10, 2500);
            out.push((at, Fault::Pause(m)));
            out.push((end, Fault::Resume(m)));
        }
        2 => {
            let end = later(200, 1500);
            out.push((at, Fault::Slow(m, rng.range(10, 250))));
            out.push((end, Fault::Slow(m, 0)));
        }
        3 | 4 => {
            let end = later(20, 2000);
            let roads: Vec<Road> = match rng.below(4) {
                0 => vec![Road::Synch],
                1 => vec![Road::Outside],
                _ => between.to_vec(),
            };
            for road in roads {
                out.push((at, Fault::Cut(m, other, road)));
                out.push((end, Fault::Mend(m, other, road)));
                if kind == 3 {
                    out.push((at, Fault::Cut(other, m, road)));
                    out.push((end, Fault::Mend(other, m, road)));
                }
            }
        }
        5 | 12 => {
            let end = later(200, 2000);
            let weather = Weather {
                delay_us: rng.range(100, 3000),
                jitter_us: rng.range(0, 8000),
                loss: rng.below(350),
                double: rng.below(300),
            };
            let roads: &[Road] = if kind == 12 || rng.permille(500) {
                &[Road::Synch]
            } else {
                &between
            };
            for road in roads {
                out.push((at, Fault::Weather(*road, weather)));
                out.push((end, Fault::Weather(*road, Weather::CALM)));
            }
        }
        6 => {
            let end = later(100, 1500);
            if rng.permille(300) {
                out.push((at, Fault::Cut(m, 0, Road::Peer)));
                out.push((end, Fault::Mend(m, 0, Road::Peer)));
            } else {
                let weather = Weather {
                    delay_us: rng.range(100, 20_000),
                    jitter_us: rng.range(0, 15_000),
                    loss: rng.below(150),
                    double: rng.below(200),
                };
                out.push((at, Fault::Weather(Road::Peer, weather)));
                out.push((end, Fault::Weather(Road::Peer, Weather::CALM)));
            }
        }
        7 => {
            let end = later(50, 2500);
            match rng.below(3) {
                0 => {
                    out.push((at, Fault::EngineDown(true)));
                    out.push((end, Fault::EngineDown(false)));
                }
                1 => {
                    let (ms, lost) = (rng.range(1, 600), rng.below(500));
                    out.push((at, Fault::EngineSlow { ms, lost }));
                    out.push((end, Fault::EngineSlow { ms: 0, lost: 0 }));
                }
                _ => {
                    let (from, to) = if rng.permille(500) { (m, 0) } else { (0, m) };
                    out.push((at, Fault::Cut(from, to, Road::Engine)));
                    out.push((end, Fault::Mend(from, to, Road::Engine)));
                }
            }
        }
        8 => {
            let end = later(300, 1500);
            match rng.below(4) {
                0 | 1 => out.push((at, Fault::TakeoverTo(m))),
                2 => {
                    out.push((at, Fault::Drain(m, true)));
                    out.push((end, Fault::Drain(m, false)));
                }
                _ => out.push((at, Fault::Rebalance)),
            }
        }
        9 => out.push((
            at,
            match rng.below(8) {
                0..=3 => Fault::PeerRekeysChild(peer),
                4 | 5 => Fault::PeerRekeysIke(peer),
                6 => Fault::PeerDeletesChild(peer),
                _ => Fault::PeerCloses(peer),
            },
        )),
        10 => out.push((
            at,
            match rng.below(3) {
                0 => Fault::Garbage,
                1 => Fault::StaleRecords,
                _ => Fault::Replay,
            },
        )),
        _ => out.push((at, Fault::Burst(peer))),
    }
}
