//! One task for each group: its requests go in the order in which they were asked, and wait for no other group's.

use crate::Told;
use crate::error::Fault;
use crate::store::Store;
use cluster::{OwnershipAnswer, OwnershipOp};
use model::GroupId;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::Instant;

/// Requests of one group that may wait. The node asks one thing at a time, so a full queue is a fault.
pub const QUEUE: usize = 8;

/// A question on its way.
#[derive(Debug)]
pub struct Request {
    /// The caller's name for it.
    pub token: u64,
    /// What is asked.
    pub op: OwnershipOp,
    /// Since when it waits. Its time-out runs from here.
    pub asked: Instant,
}

/// Answers until the engine or the core ends.
pub async fn run(
    store: Arc<Store>,
    group: GroupId,
    timeout: Duration,
    mut requests: Receiver<Request>,
    to_core: Sender<Told>,
) {
    let mut unsettled = None;
    while let Some(Request { token, op, asked }) = requests.recv().await {
        let deadline = asked + timeout;
        let now = Instant::now();
        // One that nobody waits for any more is not sent: it would be carried out behind what the caller did meanwhile.
        let answer = if now >= deadline {
            let fault = Fault::WaitedTooLong {
                group,
                waited: now - asked,
            };
            OwnershipAnswer::Unknown(fault.to_string())
        } else {
            store.answer(group, &op, &mut unsettled, deadline).await
        };
        if let OwnershipAnswer::Unknown(why) = &answer {
            tracing::debug!(%group, token, why, "no answer from the ownership engine");
        }
        if to_core.send(Told::Answer { token, answer }).await.is_err() {
            return;
        }
    }
}
