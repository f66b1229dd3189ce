//! Faults: what may happen to a cluster, drawn from a seed.

use super::rng::Rng;
use lab::faults::{Cable, Way};

/// Who a fault is about, by role at the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The member that serves.
    Owner,
    /// One that does not.
    Standby,
}

/// A fault. Times are milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The owner's agent is killed and its links go down in the same instant.
    HostDeath,
    /// The owner's agent alone is killed; its host and programs live on.
    AgentKill,
    /// A standby's agent is killed, with its links or alone.
    StandbyDeath { links: bool },
    /// An agent stops for a while and goes on.
    Pause { who: Victim, ms: u64 },
    /// One cable is cut for a while.
    Cut { who: Victim, cable: Cable, ms: u64 },
    /// Synch and outside cables of one member are cut at once: nobody hears it any more.
    Isolation { who: Victim, ms: u64 },
    /// One way only, on one or both links.
    OneWay {
        who: Victim,
        way: Way,
        links: &'static [&'static str],
        ms: u64,
    },
    /// Nothing reaches the owner's stack on either link, the engine's answers neither; the others hear it.
    DeafOwner { ms: u64 },
    /// Random loss on both links.
    Loss { who: Victim, percent: u8, ms: u64 },
    /// The wall clock of one agent jumps, by seconds.
    ClockJump { who: Victim, seconds: i64 },
    /// The XDP program is taken off an interface.
    ProgramOff { who: Victim, cable: Cable },
    /// An interface goes down for a while.
    InterfaceDown { who: Victim, cable: Cable, ms: u64 },
    /// A planned takeover, by command.
    Planned,
    /// One group that the owner of most groups owns goes to another member, by command. No packet may be lost.
    GroupMove,
    /// The owner of most groups is drained, and takes part again. No packet may be lost.
    Drain,
    /// So many etcd servers are stopped (SIGSTOP) for a while.
    VotersStopped { count: usize, ms: u64 },
    /// One etcd server is killed, then started again.
    VoterKilled { leader: bool, ms: u64 },
    /// All etcd servers are slow: stopped and continued in short turns.
    VotersSlow { ms: u64 },
    /// A member cannot reach etcd.
    CutFromEtcd { who: Victim, ms: u64 },
    /// All etcd servers are stopped, and then the owner's host dies: nobody may take over before they are back.
    VotersStoppedHostDeath { ms: u64 },
}

/// All links between members.
pub const BOTH_LINKS: &[&str] = &["synch", "outside"];

/// Which engine decides about ownership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineKind {
    /// Two members, embedded.
    Pair,
    /// An etcd cluster of three.
    Etcd,
}

impl Fault {
    /// Its kind, as it is counted.
    pub fn kind(self) -> &'static str {
        match self {
            Self::HostDeath => "host_death",
            Self::AgentKill => "agent_kill",
            Self::StandbyDeath { .. } => "standby_death",
            Self::Pause { .. } => "pause",
            Self::Cut {
                cable: Cable::Synch, ..
            } => "synch_cut",
            Self::Cut {
                cable: Cable::Outside,
                ..
            } => "outside_cut",
            Self::Cut {
                cable: Cable::Inside, ..
            } => "inside_cut",
            Self::Isolation { .. } => "isolation",
            Self::OneWay { .. } => "one_way_loss",
            Self::DeafOwner { .. } => "deaf_owner",
            Self::Loss { .. } => "heavy_loss",
            Self::ClockJump { .. } => "clock_jump",
            Self::ProgramOff { .. } => "program_off",
            Self::InterfaceDown { .. } => "interface_down",
            Self::Planned => "planned_takeover",
            Self::GroupMove => "group_move",
            Self::Drain => "drain",
            Self::VotersStopped { .. } => "voters_stopped",
            Self::VoterKilled { .. } => "voter_killed",
            Self::VotersSlow { .. } => "voters_slow",
            Self::CutFromEtcd { .. } => "cut_from_etcd",
            Self::VotersStoppedHostDeath { .. } => "voters_stopped_host_death",
        }
    }

    /// Whether the owner dies of it, so that its takeover counts for the percentiles.
    pub fn kills_owner(self) -> bool {
        matches!(self, Self::HostDeath | Self::AgentKill)
    }

    /// Whether it is a matter of people, at which no packet may be lost.
    pub fn is_planned(self) -> bool {
        matches!(self, Self::GroupMove | Self::Drain)
    }

    /// Whether a pair under `solo = "continue"` may be split by it (docs/SYNCH-CHANNEL.md, "A pair that is split"): then both
    /// halves may accept the same inbound packet, and Message IDs may fork. Outbound numbers and nonces are judged all the same.
    pub fn may_split_a_pair(self) -> bool {
        match self {
            Self::Isolation { .. } | Self::Loss { .. } | Self::DeafOwner { .. } => true,
            Self::OneWay { links, .. } => links.len() == BOTH_LINKS.len(),
            _ => false,
        }
    }

    /// Draws the details of a kind.
    fn of_kind(kind: &str, rng: &mut Rng) -> Self {
        let who = if rng.percent(70) {
            Victim::Owner
        } else {
            Victim::Standby
        };
        let ms = rng.between(300, 3000);
        match kind {
            "host_death" => Self::HostDeath,
            "agent_kill" => Self::AgentKill,
            "standby_death" => Self::StandbyDeath {
                links: rng.percent(50),
            },
            "pause" => Self::Pause {
                who,
                ms: rng.between(50, 3000),
            },
            "synch_cut" => Self::Cut {
                who,
                cable: Cable::Synch,
                ms,
            },
            "outside_cut" => Self::Cut {
                who,
                cable: Cable::Outside,
                ms,
            },
            "inside_cut" => Self::Cut {
                who,
                cable: Cable::Inside,
                ms,
            },
            "isolation" => Self::Isolation { who, ms },
            "one_way_loss" => Self::OneWay {
                who,
                way: rng.pick(&[Way::In, Way::Out]),
                links: rng.pick(&[&BOTH_LINKS[..1], &BOTH_LINKS[1..], BOTH_LINKS]),
                ms,
            },
            "deaf_owner" => Self::DeafOwner {
                ms: rng.between(1000, 3000),
            },
            "heavy_loss" => Self::Loss {
                who,
                percent: rng.between(20, 40) as u8,
                ms,
            },
            "clock_jump" => Self::ClockJump {
                who,
                seconds: rng.pick(&[-31_536_000, -3600, -2, 2, 3600, 31_536_000]),
            },
            "program_off" => Self::ProgramOff {
                who,
                cable: rng.pick(&[Cable::Outside, Cable::Inside]),
            },
            "interface_down" => Self::InterfaceDown {
                who,
                cable: rng.pick(&[Cable::Synch, Cable::Outside, Cable::Inside]),
                ms,
            },
            "group_move" => Self::GroupMove,
            "drain" => Self::Drain,
            "voters_stopped" => Self::VotersStopped {
                count: rng.pick(&[1, 3]),
                ms: rng.between(500, 6000),
            },
            "voter_killed" => Self::VoterKilled {
                leader: rng.percent(60),
                ms,
            },
            "voters_slow" => Self::VotersSlow { ms },
            "cut_from_etcd" => Self::CutFromEtcd { who, ms },
            "voters_stopped_host_death" => Self::VotersStoppedHostDeath { ms },
            _ => Self::Planned,
        }
    }
}

/// Kinds and how often each is in a bag.
const COMMON: &[(&str, usize)] = &[
    ("host_death", 4),
    ("agent_kill", 3),
    ("standby_death", 2),
    ("pause", 3),
    ("synch_cut", 1),
    ("outside_cut", 1),
    ("inside_cut", 1),
    ("isolation", 1),
    ("one_way_loss", 2),
    ("deaf_owner", 1),
    ("heavy_loss", 1),
    ("clock_jump", 1),
    ("program_off", 1),
    ("interface_down", 1),
    ("planned_takeover", 2),
];
const WITH_ETCD: &[(&str, usize)] = &[
    ("voters_stopped", 2),
    ("voter_killed", 2),
    ("voters_slow", 1),
    ("cut_from_etcd", 2),
    ("voters_stopped_host_death", 1),
];

const WITH_GROUPS: &[(&str, usize)] = &[("group_move", 3), ("drain", 2)];

/// Deals faults: a shuffled bag of all kinds, then the next one, so that a long run has all of them in proportion.
pub struct Dealer {
    rng: Rng,
    kinds: Vec<&'static str>,
    bag: Vec<&'static str>,
}

impl Dealer {
    /// Starts from a seed; only these kinds, if any are named.
    pub fn new(seed: u64, engine: EngineKind, sharing: bool, only: &[String]) -> anyhow::Result<Self> {
        let with_etcd = if engine == EngineKind::Etcd {
            WITH_ETCD
        } else {
            &[]
        };
        let with_groups = if sharing { WITH_GROUPS } else { &[] };
        let all = || COMMON.iter().chain(with_etcd).chain(with_groups);
        if let Some(unknown) = only.iter().find(|o| all().all(|(kind, _)| kind != o)) {
            let known: Vec<&str> = all().map(|(kind, _)| *kind).collect();
            anyhow::bail!("no fault is called {unknown}; there are {}", known.join(", "));
        }
        let wanted = all().filter(|(kind, _)| only.is_empty() || only.iter().any(|o| o == kind));
        let kinds = wanted.flat_map(|(kind, times)| std::iter::repeat_n(*kind, *times));
        Ok(Self {
            rng: Rng::new(seed),
            kinds: kinds.collect(),
            bag: Vec::new(),
        })
    }

    /// The next fault.
    pub fn deal(&mut self) -> Fault {
        if self.bag.is_empty() {
            self.bag = self.kinds.clone();
            self.rng.shuffle(&mut self.bag);
        }
        let kind = self.bag.pop().unwrap_or("planned_takeover");
        Fault::of_kind(kind, &mut self.rng)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_seed_deals_the_same_faults_again_and_a_bag_holds_every_kind() {
        let of = |seed| {
            let mut dealer = Dealer::new(seed, EngineKind::Etcd, false, &[]).expect("all kinds");
            (0..34).map(|_| dealer.deal()).collect::<Vec<_>>()
        };
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
        let mut count = BTreeMap::new();
        for fault in of(5).into_iter().take(33) {
            *count.entry(fault.kind()).or_insert(0) += 1;
        }
        for (kind, times) in COMMON.iter().chain(WITH_ETCD) {
            assert_eq!(count.get(kind), Some(times), "{kind}");
        }
    }

    #[test]
    fn only_what_silences_all_links_may_split_a_pair() {
        let (who, ms) = (Victim::Owner, 1);
        let one_way = |links| Fault::OneWay {
            who,
            way: Way::In,
            links,
            ms,
        };
        assert!(one_way(BOTH_LINKS).may_split_a_pair() && Fault::Isolation { who, ms }.may_split_a_pair());
        assert!(!one_way(&BOTH_LINKS[..1]).may_split_a_pair() && !Fault::HostDeath.may_split_a_pair());
    }

    #[test]
    fn an_unknown_kind_is_refused_with_the_known_ones() {
        let error = Dealer::new(1, EngineKind::Pair, false, &["voter_killed".to_owned()]).err();
        assert!(error.is_some_and(|e| e.to_string().contains("host_death")));
    }
}
