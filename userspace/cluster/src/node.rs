//! One member: peers, heartbeats, and the groups.
// (being written: this is the public face of it)

use crate::io::{Input, Output};
use crate::layout::Layout;
use crate::message::Policy;
use crate::rules::{EpochId, Solo};
use crate::status::NodeStatus;
use model::{GroupId, Incarnation, Instant, MemberId};
use std::collections::BTreeMap;
use std::time::Duration;

/// Who settles ownership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Two members among themselves (or one alone).
    Pair {
        /// What the owner does without its standby.
        solo: Solo,
    },
    /// An external engine with compare-and-swap: claims and changes of the in-sync set are committed there first.
    External,
}

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This member.
    pub me: MemberId,
    /// New at every start of the agent, and rising.
    pub incarnation: Incarnation,
    /// All members (this one too), with their weights: shares of the groups. In a hot standby cluster the preferred
    /// member has weight 1 and the others 0.
    pub members: BTreeMap<MemberId, u32>,
    /// How the segments are cut.
    pub layout: Layout,
    /// Who settles ownership.
    pub engine: EngineKind,
    /// Interval of heartbeats.
    pub heartbeat: Duration,
    /// Suspicion never comes sooner.
    pub suspicion_floor: Duration,
    /// Dead-man's switch T.
    pub dead_man: Duration,
    /// How long to listen for the others before beginning alone.
    pub settle: Duration,
    /// Move groups to the members they are meant for by itself, this long after such a member is in sync; `None`: only by
    /// command.
    pub rebalance: Option<Duration>,
    /// Digests of the policy that all must share.
    pub policy: Policy,
    /// Facts for the other agents.
    pub facts: Vec<u8>,
}

/// One member.
pub struct Node {
    _config: NodeConfig,
}

impl Node {
    /// A member that has just started and knows nothing.
    pub fn new(config: NodeConfig, _now: Instant) -> Self {
        Self { _config: config }
    }
    /// Takes an input; outputs come from [`Node::poll`].
    pub fn handle(&mut self, _input: Input) {
        unimplemented!()
    }
    /// The next output.
    pub fn poll(&mut self) -> Option<Output> {
        unimplemented!()
    }
    /// When the next tick is due.
    pub fn next_wake(&self) -> Instant {
        unimplemented!()
    }
    /// The epoch of a group in force, as far as this member knows.
    pub fn epoch(&self, _group: GroupId) -> EpochId {
        unimplemented!()
    }
    /// Whether this member owns the group.
    pub fn owns(&self, _group: GroupId) -> bool {
        unimplemented!()
    }
    /// Whether new SAs of the group are known to this member alone.
    pub fn is_alone(&self, _group: GroupId) -> bool {
        unimplemented!()
    }
    /// What there is to say.
    pub fn status(&self) -> NodeStatus {
        unimplemented!()
    }
}
