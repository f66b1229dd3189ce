//! What memory costs by itself: a program of a few instructions that reads (and, of the window, writes) the cache lines which a packet's SA takes, and does
//! nothing else. How its time grows with the number of SAs is the processor's caches and page tables, not our code.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use maps_schema::names::{MAP_KEY_IN, MAP_SA_IN, MAP_SA_IN_RT, MAP_SPD, MAP_SPD_INDEX};
use maps_schema::sad::slot_place;

use super::{Kernel, bpf_bytes, owned};

/// Where a packet reads, in the order in which it does, each stage after what the one before has found: the record's head and
/// limits; the window's head, and of its bits one block; the key's head and ChaCha20's words; after the cipher, the record's first
/// selectors; then the window again, to mark it.
const SA: [Stage; 5] = [
    Stage::of(MAP_SA_IN, &[0, 72, 88], 0),
    Stage::of(MAP_SA_IN_RT, &[0, 24], 0),
    Stage::of(MAP_KEY_IN, &[0, 40], 0),
    Stage::of(MAP_SA_IN, &[96, 168], 0),
    Stage {
        writes: true,
        ..Stage::of(MAP_SA_IN_RT, &[16, 24, 280], 0)
    },
];

/// Where a policy is read: its bucket, then its place: prefix and first rule.
const POLICY: [Stage; 2] = [
    Stage::of(MAP_SPD_INDEX, &[0, 56], 0),
    Stage::of(MAP_SPD, &[0, 80], 1),
];

/// One map, and where in a value to read.
#[derive(Clone, Copy)]
struct Stage {
    map: &'static str,
    lines: &'static [i16],
    /// Which of a run's two indices.
    index: u8,
    /// What was read is written back.
    writes: bool,
}

impl Stage {
    const fn of(map: &'static str, lines: &'static [i16], index: u8) -> Self {
        Self {
            map,
            lines,
            index,
            writes: false,
        }
    }
}

const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_TEST_RUN: u32 = 10;
const XDP: u32 = 6;

/// The program.
pub struct Touch {
    program: OwnedFd,
    cpus: u32,
    /// Named by the program.
    _maps: Vec<OwnedFd>,
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(code)
        | u64::from(to) << 8
        | u64::from(from) << 12
        | u64::from(offset as u16) << 16
        | u64::from(immediate as u32) << 32
}

impl Touch {
    /// Loads it for inbound SAs, in the maps of CPU 0.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn sas(kernel: &Kernel) -> Result<Self> {
        let maps = SA.iter().map(|stage| kernel.inner_of(stage.map, 0));
        Self::load(kernel, &SA, maps.collect::<Result<_>>()?)
    }

    /// The same for policies.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn policies(kernel: &Kernel) -> Result<Self> {
        let maps = POLICY.iter().map(|stage| kernel.map(stage.map));
        Self::load(kernel, &POLICY, maps.collect::<Result<_>>()?)
    }

    fn load(kernel: &Kernel, stages: &[Stage], maps: Vec<OwnedFd>) -> Result<Self> {
        // r6 = data; its first 8 octets are the indices, kept at the stack's top.
        let mut code = vec![
            instruction(0x61, 6, 1, 0, 0),   // r6 = ctx->data
            instruction(0x61, 2, 1, 4, 0),   // r2 = ctx->data_end
            instruction(0xbf, 3, 6, 0, 0),   // r3 = r6
            instruction(0x07, 3, 0, 0, 8),   // r3 += 8
            instruction(0xbd, 3, 2, 2, 0),   // if r3 <= r2 goto +2
            instruction(0xb7, 0, 0, 0, 1),   // r0 = 1
            instruction(0x95, 0, 0, 0, 0),   // exit
            instruction(0x61, 2, 6, 0, 0),   // r2 = *(u32 *)r6
            instruction(0x63, 10, 2, -4, 0), // *(u32 *)(r10 - 4) = r2
            instruction(0x61, 2, 6, 4, 0),   // r2 = *(u32 *)(r6 + 4)
            instruction(0x63, 10, 2, -8, 0), // *(u32 *)(r10 - 8) = r2
            instruction(0xb7, 7, 0, 0, 0),   // r7 = 0
        ];
        for (map, stage) in maps.iter().zip(stages) {
            let index = -4 - 4 * i16::from(stage.index);
            code.extend([
                // Nothing is added to the index, but the processor has to wait for what was read to know.
                instruction(0x57, 7, 0, 0, 0),               // r7 &= 0
                instruction(0x61, 2, 10, index, 0),          // r2 = *(u32 *)(r10 + index)
                instruction(0x0f, 2, 7, 0, 0),               // r2 += r7
                instruction(0x63, 10, 2, index, 0),          // *(u32 *)(r10 + index) = r2
                instruction(0x18, 1, 1, 0, map.as_raw_fd()), // r1 = map
                0,
                instruction(0xbf, 2, 10, 0, 0),               // r2 = r10
                instruction(0x07, 2, 0, 0, i32::from(index)), // r2 += index
                instruction(0x85, 0, 0, 0, 1),                // call map_lookup_elem
                instruction(0x55, 0, 0, 2, 0),                // if r0 != 0 goto +2
                instruction(0xb7, 0, 0, 0, 1),                // r0 = 1
                instruction(0x95, 0, 0, 0, 0),                // exit
            ]);
            for line in stage.lines {
                code.extend([
                    instruction(0x79, 1, 0, *line, 0), // r1 = *(u64 *)(r0 + line)
                    instruction(0x0f, 7, 1, 0, 0),     // r7 += r1
                ]);
                if stage.writes {
                    code.push(instruction(0x7b, 0, 1, *line, 0)); // *(u64 *)(r0 + line) = r1
                }
            }
        }
        code.extend([instruction(0xb7, 0, 0, 0, 2), instruction(0x95, 0, 0, 0, 0)]);
        let license = c"GPL";
        let mut attr = [0u64; 16];
        attr[0] = u64::from(XDP) | (code.len() as u64) << 32;
        attr[1] = code.as_ptr() as u64;
        attr[2] = license.as_ptr() as u64;
        let program = owned(bpf_bytes(BPF_PROG_LOAD, &mut attr).context("load the control program")?);
        Ok(Self {
            program,
            cpus: kernel.cpus,
            _maps: maps,
        })
    }

    /// Nanoseconds of a run for each slot, one run at a time.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn time_slots(&self, slots: &[u32]) -> Result<Vec<f64>> {
        let indices = slots.iter().map(|slot| [slot_place(*slot, self.cpus).1, 0]);
        self.time(&indices.collect::<Vec<_>>())
    }

    /// Nanoseconds of a run for each pair of indices, one run at a time.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn time(&self, indices: &[[u32; 2]]) -> Result<Vec<f64>> {
        let mut times = Vec::with_capacity(indices.len());
        for [first, second] in indices {
            let mut frame = [0u8; 64];
            frame[..4].copy_from_slice(&first.to_ne_bytes());
            frame[4..8].copy_from_slice(&second.to_ne_bytes());
            let mut attr = [0u64; 16];
            // prog_fd, retval; data_size_in, data_size_out; data_in; data_out; repeat, duration.
            attr[0] = self.program.as_raw_fd() as u64;
            attr[1] = frame.len() as u64;
            attr[2] = frame.as_ptr() as u64;
            attr[4] = 1;
            bpf_bytes(BPF_PROG_TEST_RUN, &mut attr)?;
            ensure!(
                attr[0] >> 32 == 2,
                "the control program found no entry {first} or {second}"
            );
            times.push((attr[4] >> 32) as f64);
        }
        Ok(times)
    }
}
