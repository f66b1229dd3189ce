//! The stages of a packet, each a function of its own: their stack frames are never there together with the cipher's.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::generated::bpf_redirect;
use datapath::aead::{aead_open, aead_seal};
use datapath::clear;
use datapath::env::{
    self, ACTION_CLEAR, ACTION_CPU, ACTION_DROP, ACTION_NEIGHBOUR, ACTION_PASS, ACTION_REDIRECT,
    ACTION_TRANSMIT, ACTION_TTL, Area, Env, Work,
};
use datapath::esp::{inbound, outbound, transport};
use datapath::mss;
use datapath::nd;
use datapath::steer;
use datapath::ttl;
use maps_schema::event::SLOW_TO_STACK;
use maps_schema::steer::{MAX_CONNECTIONS, PORT_GENERIC, PORT_REDIRECT_BACK};
use maps_schema::verdict::{VERDICT_STRIDE, Verdict};

use crate::maps;
use crate::xdp_env::Xdp;

/// Where a program runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Attached to an interface.
    Interface,
    /// In a cpumap entry: there is no `XDP_TX`.
    Cpu,
}

#[inline(never)]
fn steer_stage(ctx: *mut xdp_md, area: &mut Area, may_move: bool) -> bool {
    let env = Xdp::from_raw(ctx);
    env::begin(&env, &mut area.work);
    steer::steer(&env, &mut area.work, may_move)
}

#[inline(never)]
fn open_admit(ctx: *mut xdp_md, area: &mut Area) -> bool {
    inbound::admit(&Xdp::from_raw(ctx), area)
}

#[inline(never)]
fn open_authentic(ctx: *mut xdp_md, area: &mut Area, status: i32) -> bool {
    inbound::authentic(&Xdp::from_raw(ctx), &mut area.work, status)
}

#[inline(never)]
fn open_inspect(ctx: *mut xdp_md, area: &mut Area) -> bool {
    inbound::inspect(&Xdp::from_raw(ctx), area)
}

#[inline(never)]
fn open_inspect_transport(ctx: *mut xdp_md, area: &mut Area) -> bool {
    transport::inspect(&Xdp::from_raw(ctx), area)
}

#[inline(never)]
fn open_deliver(ctx: *mut xdp_md, area: &mut Area) -> u32 {
    transport::deliver(&Xdp::from_raw(ctx), area);
    0
}

#[inline(never)]
fn open_mark(ctx: *mut xdp_md, area: &mut Area, status: i32) -> bool {
    inbound::mark(&Xdp::from_raw(ctx), &mut area.work, status)
}

#[inline(never)]
fn open_forward(ctx: *mut xdp_md, area: &mut Area) -> u32 {
    inbound::forward(&Xdp::from_raw(ctx), area);
    0
}

#[inline(never)]
fn neighbour_stage(ctx: *mut xdp_md, area: &mut Area) -> u32 {
    nd::answer(&Xdp::from_raw(ctx), &mut area.work);
    0
}

#[inline(never)]
fn clear_stage(ctx: *mut xdp_md, area: &mut Area) -> u32 {
    clear::judge(&Xdp::from_raw(ctx), &mut area.work);
    0
}

#[inline(never)]
fn ttl_stage(ctx: *mut xdp_md, area: &mut Area) -> u32 {
    ttl::exceeded(&Xdp::from_raw(ctx), area);
    0
}

#[inline(never)]
fn inside_stage(ctx: *mut xdp_md, area: &mut Area) -> bool {
    let env = Xdp::from_raw(ctx);
    env::begin(&env, &mut area.work);
    outbound::arrive(&env, &mut area.work)
}

#[inline(never)]
fn policy_stage(ctx: *mut xdp_md, area: &mut Area, may_move: bool) -> bool {
    outbound::policy(&Xdp::from_raw(ctx), &mut area.work, may_move)
}

#[inline(never)]
fn seal_admit(ctx: *mut xdp_md, area: &mut Area) -> bool {
    outbound::admit(&Xdp::from_raw(ctx), area)
}

#[inline(never)]
fn seal_direct(ctx: *mut xdp_md, area: &mut Area, status: i32) -> bool {
    outbound::direct(&Xdp::from_raw(ctx), area, status)
}

#[inline(never)]
fn seal_fill(ctx: *mut xdp_md, area: &mut Area) -> u32 {
    outbound::fill(&Xdp::from_raw(ctx), area);
    0
}

/// Outside: `steer`, and `esp_in` where it need not move.
#[inline(always)]
pub fn outside(env: Xdp, place: Place) -> u32 {
    let Some(area) = maps::SCRATCH.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: this CPU's scratch; XDP programs do not nest on a CPU.
    let area = unsafe { &mut *area };
    if steer_stage(env.raw(), area, place == Place::Interface) && open_admit(env.raw(), area) {
        open(env, area);
    }
    match area.work.action {
        ACTION_NEIGHBOUR => neighbour_stage(env.raw(), area),
        ACTION_CLEAR => clear_stage(env.raw(), area),
        ACTION_TTL => ttl_stage(env.raw(), area),
        _ => 0,
    };
    finish(env, &mut area.work, place, true)
}

#[inline(always)]
fn open(env: Xdp, area: &mut Area) {
    let Some(key) = env.key_in(area.work.cpu, area.work.index) else {
        area.work.drop(Verdict::InternalError);
        return;
    };
    if key.spi != area.work.spi {
        area.work.drop(Verdict::UnknownSpi);
        return;
    }
    // SAFETY: a map value that is read, and this CPU's scratch.
    let status = unsafe { aead_open(key, &raw mut area.cipher) };
    let ctx = env.raw();
    if !open_authentic(ctx, area, status) {
        return;
    }
    if area.work.transport != 0 {
        if open_inspect_transport(ctx, area) && open_mark(ctx, area, status) {
            open_deliver(ctx, area);
        }
        return;
    }
    if open_inspect(ctx, area) && open_mark(ctx, area, status) {
        if area.work.mss != 0 {
            mss::apply(area);
        }
        open_forward(env.raw(), area);
    }
}

/// Inside: policy, and `esp_out` where it need not move.
#[inline(always)]
pub fn inside(env: Xdp, place: Place) -> u32 {
    let Some(area) = maps::SCRATCH.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: this CPU's scratch; XDP programs do not nest on a CPU.
    let area = unsafe { &mut *area };
    let ctx = env.raw();
    if inside_stage(ctx, area) && policy_stage(ctx, area, place == Place::Interface) && seal_admit(ctx, area)
    {
        seal(env, area);
    }
    match area.work.action {
        ACTION_NEIGHBOUR => neighbour_stage(env.raw(), area),
        ACTION_TTL => ttl_stage(env.raw(), area),
        _ => 0,
    };
    finish(env, &mut area.work, place, false)
}

#[inline(always)]
fn seal(env: Xdp, area: &mut Area) {
    let Some(key) = env.key_out(area.work.cpu, area.work.index) else {
        area.work.drop(Verdict::InternalError);
        return;
    };
    if key.spi != area.work.spi {
        area.work.drop(Verdict::NoSa);
        return;
    }
    if area.work.mss != 0 {
        mss::apply(area);
    }
    // SAFETY: a map value that is read, and this CPU's scratch.
    let status = unsafe { aead_seal(key, &raw mut area.cipher) };
    if seal_direct(env.raw(), area, status) {
        seal_fill(env.raw(), area);
    }
}

/// Turns the outcome into the kernel's return value and counts the verdict.
#[inline(always)]
fn finish(env: Xdp, work: &mut Work, place: Place, outside: bool) -> u32 {
    // The kernel's own skb of a copied frame has lost the length of its link header when a program of a cpumap entry passes it: the stack
    // would take that header for the packet's (ADR 33).
    if work.action == ACTION_PASS && place == Place::Cpu && work.port.flags & PORT_GENERIC != 0 {
        match env.slow(SLOW_TO_STACK, work.slot, work.spi, work.seq) {
            Ok(()) => work.action = ACTION_DROP,
            Err(verdict) => {
                work.drop(verdict);
            }
        }
    }
    let action = match work.action {
        ACTION_PASS => xdp_action::XDP_PASS,
        ACTION_TRANSMIT if place == Place::Interface && work.port.flags & PORT_REDIRECT_BACK == 0 => {
            xdp_action::XDP_TX
        }
        ACTION_TRANSMIT => redirect(env.ifindex()),
        ACTION_REDIRECT => redirect(work.target),
        // Only where the map is used: a cpumap whose entries run a program that refers to that very map is held by it, and both
        // stay in the kernel for ever once the agent is gone.
        ACTION_CPU if place == Place::Interface => {
            let to = if outside {
                maps::CPUS_IN.redirect(work.target, 0)
            } else {
                maps::CPUS_OUT.redirect(work.target, 0)
            };
            match to {
                Ok(action) => action,
                Err(_) => {
                    work.drop(Verdict::InternalError);
                    xdp_action::XDP_DROP
                }
            }
        }
        ACTION_CPU => {
            work.drop(Verdict::InternalError);
            xdp_action::XDP_DROP
        }
        ACTION_DROP => xdp_action::XDP_DROP,
        _ => xdp_action::XDP_DROP,
    };
    let at = (work.connection as usize & (MAX_CONNECTIONS - 1)) * VERDICT_STRIDE
        + (work.verdict as usize & (VERDICT_STRIDE - 1));
    if let Some(count) = maps::VERDICTS.get_ptr_mut(at as u32) {
        // SAFETY: this CPU's counter.
        unsafe { *count = (*count).wrapping_add(1) };
    }
    action
}

#[inline(always)]
fn redirect(ifindex: u32) -> u32 {
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}
