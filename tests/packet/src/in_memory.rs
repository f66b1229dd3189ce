//! What every host-side `datapath::env::Env` shares: a frame in memory, and the programs' stages in their order. The case tables
//! and the simulation (tests/sim) run the same rules through it.

use std::cell::{Cell, RefCell};

use datapath::aead::{TEXT_MAX, aead_open, aead_seal};
use datapath::clear;
use datapath::env::{ACTION_CLEAR, ACTION_TTL, Area, Env, HEAD_LEN, begin};
use datapath::esp::{inbound, outbound, transport};
use datapath::mss;
use datapath::steer;
use datapath::ttl;

/// Room before a frame, octets.
pub const HEADROOM: usize = 256;
/// Octets of a frame's first buffer at most: a page less headroom and what the kernel keeps at its end.
pub const FIRST_BUFFER: usize = 4096 - HEADROOM - 320;

/// A frame as the programs see it: the octets, how much room is left before them, and how many lie in the first buffer.
pub struct HostFrame {
    octets: RefCell<Vec<u8>>,
    headroom: Cell<usize>,
    first: Cell<usize>,
    cut_behind: Cell<usize>,
}

impl HostFrame {
    /// A frame that has just arrived.
    pub fn new(octets: Vec<u8>) -> Self {
        Self::split_at(octets, FIRST_BUFFER)
    }

    /// A frame whose first buffer has so many octets.
    pub fn split_at(octets: Vec<u8>, first: usize) -> Self {
        let first = first.min(octets.len()).min(FIRST_BUFFER);
        Self {
            octets: RefCell::new(octets),
            headroom: Cell::new(HEADROOM),
            first: Cell::new(first),
            cut_behind: Cell::new(0),
        }
    }

    /// The octets as they are now.
    pub fn octets(&self) -> Vec<u8> {
        self.octets.borrow().clone()
    }

    /// The octets, without a copy.
    pub fn into_octets(self) -> Vec<u8> {
        self.octets.into_inner()
    }

    /// Octets that [`Env::truncate`] has taken.
    pub fn cut_behind(&self) -> usize {
        self.cut_behind.get()
    }

    /// [`Env::frame_len`].
    pub fn frame_len(&self) -> usize {
        self.octets.borrow().len()
    }

    /// [`Env::first_buffer`].
    pub fn first_buffer(&self) -> usize {
        self.first.get()
    }

    /// [`Env::load_head`].
    pub fn load_head(&self, head: &mut [u8; HEAD_LEN]) -> usize {
        let frame = self.octets.borrow();
        let len = frame.len().min(HEAD_LEN);
        head[..len].copy_from_slice(&frame[..len]);
        len
    }

    /// [`Env::load`].
    pub fn load(&self, offset: usize, text: &mut [u8; TEXT_MAX], len: usize) -> bool {
        let frame = self.octets.borrow();
        let Some(from) = frame.get(offset..offset + len) else {
            return false;
        };
        text[..len].copy_from_slice(from);
        true
    }

    /// [`Env::load_16`].
    pub fn load_16(&self, offset: usize, out: &mut [u8; 16]) -> bool {
        let frame = self.octets.borrow();
        let Some(from) = frame.get(offset..offset + 16) else {
            return false;
        };
        out.copy_from_slice(from);
        true
    }

    /// [`Env::store`].
    pub fn store(&self, offset: usize, text: &[u8; TEXT_MAX], len: usize) -> bool {
        let mut frame = self.octets.borrow_mut();
        let Some(to) = frame.get_mut(offset..offset + len) else {
            return false;
        };
        to.copy_from_slice(&text[..len]);
        true
    }

    /// [`Env::store_head`].
    pub fn store_head(&self, offset: usize, head: &[u8; HEAD_LEN], from: usize, len: usize) -> bool {
        let mut frame = self.octets.borrow_mut();
        let (Some(octets), Some(to)) = (head.get(from..from + len), frame.get_mut(offset..offset + len))
        else {
            return false;
        };
        to.copy_from_slice(octets);
        len != 0 && from < HEAD_LEN / 2
    }

    /// [`Env::write`].
    pub fn write<const N: usize>(&self, offset: usize, octets: &[u8; N]) -> bool {
        let mut frame = self.octets.borrow_mut();
        let Some(to) = frame.get_mut(offset..offset + N) else {
            return false;
        };
        to.copy_from_slice(octets);
        true
    }

    /// [`Env::cut_head`].
    pub fn cut_head(&self, delta: i32) -> bool {
        let mut frame = self.octets.borrow_mut();
        if let Ok(cut) = usize::try_from(delta) {
            if cut + 14 > self.first.get() {
                return false;
            }
            frame.drain(..cut);
            self.first.set(self.first.get() - cut);
            self.headroom.set(self.headroom.get() + cut);
            return true;
        }
        let more = delta.unsigned_abs() as usize;
        if more > self.headroom.get() {
            return false;
        }
        self.headroom.set(self.headroom.get() - more);
        self.first.set(self.first.get() + more);
        frame.splice(0..0, std::iter::repeat_n(0xaa, more));
        true
    }

    /// [`Env::truncate`].
    pub fn truncate(&self, len: usize) -> bool {
        let mut frame = self.octets.borrow_mut();
        if len > frame.len() {
            return false;
        }
        self.cut_behind.set(self.cut_behind.get() + frame.len() - len);
        frame.truncate(len);
        self.first.set(self.first.get().min(len));
        true
    }
}

/// The programs `steer` (`may_move`) and `esp_in` on the outside interface: the outcome is in `area.work`.
pub fn run_outside(env: &impl Env, area: &mut Area, may_move: bool) {
    outside(env, area, may_move);
    last_stage(env, area);
}

/// What ends some packets, each a stage of its own.
fn last_stage(env: &impl Env, area: &mut Area) {
    match area.work.action {
        ACTION_CLEAR => clear::judge(env, &mut area.work),
        ACTION_TTL => ttl::exceeded(env, area),
        _ => false,
    };
}

fn outside(env: &impl Env, area: &mut Area, may_move: bool) {
    begin(env, &mut area.work);
    if !steer::steer(env, &mut area.work, may_move) || !inbound::admit(env, area) {
        return;
    }
    let Some(key) = env.key_in(area.work.cpu, area.work.index) else {
        return;
    };
    // SAFETY: two separate values.
    let status = unsafe { aead_open(key, &mut area.cipher) };
    if !inbound::accept(env, area, status) {
        return;
    }
    if area.work.transport != 0 {
        transport::deliver(env, area);
    } else {
        inbound::forward(env, area);
    }
}

/// The programs `inside` (`may_move`) and `esp_out` on the inside interface.
pub fn run_inside(env: &impl Env, area: &mut Area, may_move: bool) {
    inside(env, area, may_move);
    last_stage(env, area);
}

fn inside(env: &impl Env, area: &mut Area, may_move: bool) {
    begin(env, &mut area.work);
    if !outbound::choose(env, &mut area.work, may_move) || !outbound::admit(env, area) {
        return;
    }
    let Some(key) = env.key_out(area.work.cpu, area.work.index) else {
        return;
    };
    if area.work.mss != 0 {
        mss::apply(area);
    }
    // SAFETY: two separate values.
    let status = unsafe { aead_seal(key, &mut area.cipher) };
    outbound::emit(env, area, status);
}
