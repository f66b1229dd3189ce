//! A NAT gives a peer another port or address (RFC 7296 2.23). IKE messages show it by themselves (`engine::receive`); here it is seen
//! by a packet of a Child SA that came from elsewhere.

use super::{start_next, transport};
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::phase::Phase;
use crate::ike_sa::windows::Task;
use crate::outbox::Context;
use model::{ChildSaChange, EspSpi};
use std::net::SocketAddr;

//= rfc7296#2.23
// hosts that do not support other methods of recovery such as MOBIKE, and that are not behind a NAT, SHOULD send all packets
// (including retransmission packets) to the IP address and port from the last valid authenticated packet from the other end
// (i.e., they should dynamically update the address). A host behind a NAT SHOULD NOT do this
pub(crate) fn may_move(sa: &IkeSa) -> bool {
    let path = sa.path;
    matches!(sa.phase, Phase::Established(_))
        && path.encap
        && path.nat_remote
        && !path.nat_local
        && !sa.more.mobike
}

/// An authentic ESP packet, newer than all before on its Child SA, came from `remote`.
pub(crate) fn seen(ctx: &mut Context<'_>, spi_in: EspSpi, remote: SocketAddr) {
    let Some(mut sa) = ctx.table.by_child(spi_in).and_then(|spi| ctx.table.take(spi)) else {
        // It was deleted meanwhile.
        return;
    };
    let same_family = sa.path.remote.is_ipv4() == remote.is_ipv4();
    if may_move(&sa) && same_family && sa.path.remote != remote {
        move_to(&mut sa, ctx, remote, "ESP");
        start_next(&mut sa, ctx);
    }
    ctx.put_back(sa);
}

/// From now on the peer is there, for IKE and for all its Child SAs. It is committed before anything is sent there.
pub(crate) fn move_to(sa: &mut IkeSa, ctx: &mut Context<'_>, remote: SocketAddr, seen_by: &str) {
    let old = std::mem::replace(&mut sa.path.remote, remote);
    sa.dirty = true;
    for child in &sa.children {
        if transport::is_left_behind(child, old, remote) {
            sa.our.push(Task::DeleteChild { spi_in: child.spi_in });
            continue;
        }
        ctx.out.child_changes.push(ChildSaChange::MovePeer {
            spi_in: child.spi_in,
            remote,
        });
    }
    let text = format!("the peer moved from {old} to {remote} (seen by {seen_by})");
    ctx.event(sa, EventKind::PeerMoved, text);
}
