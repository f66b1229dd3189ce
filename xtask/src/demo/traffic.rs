//! Traffic while something happens: pings and numbered UDP flows, both ways.

use anyhow::{Context, Result};
use lab::clock::wait_for;
use lab::flow::{Flow, FlowResult};
use lab::ping::{Ping, PingResult};
use lab::stage::Stage;
use lab::topology::addr;
use std::collections::BTreeMap;
use std::time::Duration;

/// 100 packets a second.
const PING_US: u64 = 10_000;
/// 500 packets a second each way.
const FLOW_US: u64 = 2_000;

/// Traffic that runs.
pub struct Traffic {
    pings: Vec<(&'static str, Ping)>,
    flows: Vec<(&'static str, Flow)>,
}

/// What came of it.
#[derive(Default)]
pub struct Outcome {
    /// Pings by name.
    pub pings: BTreeMap<&'static str, PingResult>,
    /// Flows by name.
    pub flows: BTreeMap<&'static str, FlowResult>,
}

impl Traffic {
    /// Pings over both connections from both ends, and a UDP flow each way over connection one.
    pub fn start(stage: &Stage) -> Result<Self> {
        let (host, server) = (&stage.lab.host, &stage.lab.server);
        let pings = vec![
            (
                "ping over one, from the peer",
                Ping::start(host, "one", addr::HOST_ONE, addr::SERVER_ONE, PING_US)?,
            ),
            (
                "ping over two, from the server",
                Ping::start(server, "two", addr::SERVER_TWO, addr::HOST_TWO, PING_US)?,
            ),
        ];
        let flows = vec![
            (
                "UDP to the server",
                Flow::start(
                    (host, addr::HOST_ONE),
                    (server, addr::SERVER_ONE),
                    7001,
                    FLOW_US,
                    200,
                )?,
            ),
            (
                "UDP to the peer",
                Flow::start(
                    (server, addr::SERVER_ONE),
                    (host, addr::HOST_ONE),
                    7002,
                    FLOW_US,
                    200,
                )?,
            ),
        ];
        Ok(Self { pings, flows })
    }

    /// Lets it run until this much has been sent by every ping.
    pub fn run_for(&self, time: Duration) -> Result<()> {
        let packets = time.as_micros() as usize / PING_US as usize;
        let goals: Vec<usize> = self.pings.iter().map(|(_, p)| p.so_far().0 + packets).collect();
        let limit = time * 4 + Duration::from_secs(5);
        wait_for(limit, Duration::from_millis(5), || {
            self.pings
                .iter()
                .zip(&goals)
                .all(|((_, p), goal)| p.so_far().0 >= *goal)
                .then_some(())
        })
        .context("the pings do not get to send")
    }

    /// Waits until every ping has an answer that came after a time.
    pub fn wait_answers_after(&self, at_ns: u64, limit: Duration) -> Result<()> {
        wait_for(limit, Duration::from_millis(2), || {
            self.pings
                .iter()
                .all(|(_, p)| p.last_answer_ns().is_some_and(|t| t > at_ns))
                .then_some(())
        })
        .with_context(|| format!("no answer to the pings within {limit:?}: traffic did not come back"))
    }

    /// Stops it.
    pub fn stop(self) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        for (name, flow) in self.flows {
            outcome.flows.insert(name, flow.stop()?);
        }
        for (name, ping) in self.pings {
            outcome.pings.insert(name, ping.stop()?);
        }
        Ok(outcome)
    }
}

impl Outcome {
    /// Lost packets by flow.
    pub fn lost_by_flow(&self) -> BTreeMap<String, u64> {
        let pings = self.pings.iter().map(|(name, p)| ((*name).to_owned(), p.lost()));
        pings
            .chain(self.flows.iter().map(|(name, f)| ((*name).to_owned(), f.lost())))
            .collect()
    }

    /// Lost packets, all together.
    pub fn lost(&self) -> u64 {
        self.lost_by_flow().values().sum()
    }

    /// Packets sent, all together.
    pub fn sent(&self) -> u64 {
        self.pings.values().map(PingResult::sent).sum::<u64>()
            + self.flows.values().map(|f| f.sent).sum::<u64>()
    }

    /// UDP packets that arrived twice.
    pub fn repeated(&self) -> u64 {
        self.flows.values().map(FlowResult::repeated).sum()
    }

    /// One line.
    pub fn line(&self) -> String {
        let parts: Vec<String> = self
            .lost_by_flow()
            .iter()
            .map(|(name, lost)| format!("{name}: {lost}"))
            .collect();
        format!(
            "{} of {} packets lost; {}",
            self.lost(),
            self.sent(),
            parts.join(", ")
        )
    }
}
