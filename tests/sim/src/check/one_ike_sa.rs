//! After quiet a peer has one IKE SA, and the member that serves it has the same one and no other with this peer: what a reauthentication, a
//! crossing of two initiators or a lost Delete leaves behind is gone.

use crate::member::Member;
use crate::peer::Peer;
use cluster::Layout;
use model::{GroupId, IkeSpi};

/// What is wrong with a peer's IKE SAs. `serving`: members with the groups that they serve.
pub fn more_or_less(peer: &Peer, serving: &[(&Member, Vec<GroupId>)], layout: Layout) -> Option<String> {
    let name = peer.connection();
    let of_it = |engine: &ike::Engine| {
        let mut all = engine.status();
        // What is closed only repeats the answer to the Delete, and what is replaced waits for one, at most half a minute.
        let has_ended = |phase| matches!(phase, "closed" | "rekeyed");
        all.retain(|sa| sa.connection.as_ref() == Some(&name) && !has_ended(sa.phase));
        all
    };
    let here = of_it(&peer.engine);
    let here: Vec<_> = here.iter().map(|sa| (sa.spi, sa.peer_spi, sa.phase)).collect();
    let there = serving.iter().flat_map(|(member, groups)| {
        let mut all = of_it(&member.engine);
        all.retain(|sa| groups.contains(&layout.group_of(sa.spi.segment())));
        all
    });
    let there: Vec<_> = there.map(|sa| (sa.peer_spi, sa.spi, sa.phase)).collect();
    if here.len() == 1 && here == there {
        return None;
    }
    let names = |all: &[(IkeSpi, IkeSpi, &str)]| {
        let names = all
            .iter()
            .map(|(own, other, phase)| format!("{own}/{other} {phase}"));
        names.collect::<Vec<_>>().join(", ")
    };
    Some(format!(
        "peer {} has IKE SAs [{}], and the cluster has [{}] with it",
        peer.number,
        names(&here),
        names(&there)
    ))
}
