//! Lines for people, by aya-log: rare events only, a few per SA and epoch.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::{info, warn};
use maps_schema::event::{EVENT_EVIDENCE, EVENT_FIRST_INBOUND, EVENT_LEASE_EXHAUSTED, Event};

/// Logs the events that an operator should see even when no agent reads the event ring. Never inlined: its stack must not
/// add to that of the ciphers.
#[inline(never)]
pub fn rare_event(ctx: *mut xdp_md, event: &Event) {
    let ctx = XdpContext::new(ctx);
    let (slot, spi, seq) = (event.slot, event.spi, event.seq);
    match event.kind {
        EVENT_LEASE_EXHAUSTED => {
            warn!(
                &ctx,
                "outbound SA {:x} in slot {}: the lease ends at {}, dropping until it is raised",
                spi,
                slot,
                seq
            );
        }
        EVENT_EVIDENCE => {
            warn!(
                &ctx,
                "inbound SA {:x} in slot {}: the peer's numbers stay below the takeover floor, at {}",
                spi,
                slot,
                seq
            );
        }
        EVENT_FIRST_INBOUND => {
            info!(
                &ctx,
                "inbound SA {:x} in slot {}: first packet here, number {}", spi, slot, seq
            );
        }
        _ => {}
    }
}
