//! What the tests share: etcd nodes, engines whose answers can be awaited, records to write.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod linear;
pub mod proxy;

use cluster::{EpochId, GroupRecord, OwnershipAnswer, OwnershipOp, SetMember};
use lab::etcd::EtcdCluster;
use lab::resources::Resources;
use model::{Epoch, GroupId, Incarnation, MemberId};
use ownership::{Engine, EtcdConfig, Told};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

pub const G0: GroupId = GroupId(0);
/// Limit for what must happen: far above what it takes, so that a busy host fails no test.
pub const LONG: Duration = Duration::from_secs(30);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Three etcd nodes. One test of a binary runs at a time: they share two processors with nine etcd processes otherwise.
pub struct Bench {
    pub etcd: EtcdCluster,
    pub resources: Resources,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    pub fn start() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
        let resources = Resources::new().expect("a lab");
        let sites = EtcdCluster::loopback(&resources, 3).expect("sites");
        Self {
            etcd: EtcdCluster::start(&resources, sites, None).expect("etcd"),
            resources,
            _turn: turn,
        }
    }

    /// A configuration for all nodes, in their order.
    pub fn config(&self) -> EtcdConfig {
        config(self.etcd.endpoints())
    }
}

pub fn config(endpoints: Vec<String>) -> EtcdConfig {
    EtcdConfig {
        endpoints,
        prefix: "/espalier".into(),
        cluster: "lab".into(),
        tls: None,
        request_timeout: Duration::from_secs(5),
    }
}

pub fn key(group: u8) -> String {
    format!("/espalier/lab/groups/{group:02}")
}

/// A record; `life` makes it unlike every other one.
pub fn record(number: u64, owner: u8, life: u64) -> GroupRecord {
    GroupRecord {
        epoch: EpochId {
            number: Epoch(number),
            owner: MemberId(owner),
        },
        in_sync: [SetMember {
            member: MemberId(owner),
            incarnation: Incarnation(life),
        }]
        .into(),
    }
}

pub fn write(expected: Option<&GroupRecord>, new: &GroupRecord) -> OwnershipOp {
    OwnershipOp::Write {
        expected: expected.cloned(),
        new: new.clone(),
    }
}

pub fn unknown(answer: OwnershipAnswer) -> String {
    match answer {
        OwnershipAnswer::Unknown(why) => why,
        other => panic!("expected Unknown, got {other:?}"),
    }
}

/// All that was seen of each group, in order.
pub type Seen = HashMap<GroupId, Vec<Option<GroupRecord>>>;

/// An engine with somebody who listens to it.
pub struct Member {
    engine: Engine,
    tokens: AtomicU64,
    waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<OwnershipAnswer>>>>,
    seen: watch::Receiver<Seen>,
}

impl Member {
    pub fn start(config: EtcdConfig, groups: u8) -> Self {
        let (to_core, mut told) = mpsc::channel(64);
        let engine = Engine::start(config, groups, to_core).expect("engine");
        let waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<OwnershipAnswer>>>> = Arc::default();
        let (seen_in, seen) = watch::channel(Seen::new());
        let asked = Arc::clone(&waiting);
        tokio::spawn(async move {
            while let Some(told) = told.recv().await {
                match told {
                    Told::Answer { token, answer } => {
                        let asker = asked.lock().expect("lock").remove(&token);
                        let asker = asker.expect("an answer to nothing, or a second one");
                        // A test may have gone on without it.
                        let _ = asker.send(answer);
                    }
                    Told::Seen { group, record } => {
                        seen_in.send_modify(|seen| seen.entry(group).or_default().push(record));
                    }
                }
            }
        });
        Self {
            engine,
            tokens: AtomicU64::new(1),
            waiting,
            seen,
        }
    }

    /// Asks now; the answer can be awaited.
    pub fn ask(
        &self,
        group: GroupId,
        op: OwnershipOp,
    ) -> impl Future<Output = OwnershipAnswer> + Send + use<> {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        let (to_asker, answer) = oneshot::channel();
        self.waiting.lock().expect("lock").insert(token, to_asker);
        self.engine.ask(token, group, op);
        async move {
            timeout(LONG, answer)
                .await
                .expect("no answer at all")
                .expect("the listener lives")
        }
    }

    pub async fn read(&self, group: GroupId) -> OwnershipAnswer {
        self.ask(group, OwnershipOp::Read).await
    }

    /// Asks until there is an answer.
    pub async fn read_until_known(&self, group: GroupId) -> Option<GroupRecord> {
        let known = async {
            loop {
                if let OwnershipAnswer::Is(record) = self.read(group).await {
                    return record;
                }
            }
        };
        timeout(LONG, known).await.expect("etcd does not come back")
    }

    /// Waits until the last that was seen of a group is this.
    pub async fn sees(&self, group: GroupId, record: Option<&GroupRecord>) {
        let mut seen = self.seen.clone();
        let last = |seen: &Seen| seen.get(&group).and_then(|s| s.last()).cloned();
        let there = seen.wait_for(|seen| last(seen).as_ref().map(Option::as_ref) == Some(record));
        if timeout(LONG, there).await.is_err() {
            panic!(
                "waited for {record:?} of group {group}, seen: {:?}",
                self.seen.borrow().get(&group)
            );
        }
    }

    pub fn seen(&self, group: GroupId) -> Vec<Option<GroupRecord>> {
        self.seen.borrow().get(&group).cloned().unwrap_or_default()
    }
}
