//! Many SAs, or many policies, in the kernel's maps: what look-ups cost with them.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use maps_schema::names::*;
use maps_schema::sad::{InboundSaRuntime, slot_place};
use maps_schema::spd::SpdKey;
use sad::port::{DataPlane, MapOp, MapPlan};
use zerocopy::IntoBytes;

use super::{Kernel, update};
use crate::world::{SPI_IN, World, mapped};

/// Maps that hold something for every slot.
const BY_SLOT: [&str; 6] = [
    MAP_SA_IN,
    MAP_SA_IN_RT,
    MAP_KEY_IN,
    MAP_SA_OUT,
    MAP_SA_OUT_RT,
    MAP_KEY_OUT,
];

/// Prefix length of the policies: IPv4 networks of 28 bits.
const POLICY_LEN: u32 = 96 + 28;

/// SPI of a slot's inbound SA.
pub const fn spi_of(slot: u32) -> u32 {
    (SPI_IN & 0xfff0_0000) | slot
}

/// Destination of policy `n`: the first address of a network of 28 bits. Successive numbers are far apart.
pub const fn destination(n: u32) -> u32 {
    0x0b00_0000 | (n.wrapping_mul(40_503) % (1 << 17)) << 4
}

impl Kernel {
    /// Puts the world's inbound SA, with its key and an empty window, into every slot of `slots`, each under its own SPI.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn fill_inbound(&mut self, world: &World, slots: std::ops::Range<u32>) -> Result<()> {
        let arrays = |name: &str| -> Result<Vec<OwnedFd>> {
            (0..self.cpus).map(|cpu| self.inner_of(name, cpu)).collect()
        };
        let (records, windows, keys) = (arrays(MAP_SA_IN)?, arrays(MAP_SA_IN_RT)?, arrays(MAP_KEY_IN)?);
        let (mut record, mut key) = (world.inbound, world.key_in);
        for slot in slots {
            let (cpu, index) = slot_place(slot, self.cpus);
            let (cpu, index) = (cpu as usize, index.to_ne_bytes());
            let spi = spi_of(slot);
            (record.spi, key.spi) = (spi, spi);
            let window = InboundSaRuntime {
                spi,
                // Not the first packet, of which the agent is told: that happens once in an SA's life.
                above_floor: 1,
                ..world.window
            };
            update(&records[cpu], &index, record.as_bytes())?;
            update(&windows[cpu], &index, window.as_bytes())?;
            update(&keys[cpu], &index, key.as_bytes())?;
        }
        Ok(())
    }

    /// Adds policies for [`destination`], all with the rules of the world's.
    ///
    /// # Errors
    /// Where the table is full.
    pub fn fill_policies(&mut self, world: &World, numbers: std::ops::Range<u32>) -> Result<()> {
        let ops = numbers.map(|n| MapOp::PutSpd {
            prefix_len: POLICY_LEN,
            key: policy_key(n),
            entry: Box::new(world.policy),
        });
        Ok(self.plane.execute(&MapPlan { ops: ops.collect() })?)
    }

    /// Takes them away again.
    ///
    /// # Errors
    /// None, as removal has none.
    pub fn clear_policies(&mut self, numbers: std::ops::Range<u32>) -> Result<()> {
        let ops = numbers.map(|n| MapOp::DeleteSpd {
            prefix_len: POLICY_LEN,
            key: policy_key(n),
        });
        Ok(self.plane.execute(&MapPlan { ops: ops.collect() })?)
    }

    /// Adds a policy of each of the IPv4 lengths from 32 on down, `count` (at most 16) of them, to which no packet goes; or
    /// takes them away.
    ///
    /// # Errors
    /// Where the table is full.
    pub fn other_lengths(&mut self, world: &World, count: u32, there: bool) -> Result<()> {
        let ops = (0..count).map(|n| {
            let (prefix_len, key) = (
                128 - n,
                SpdKey {
                    destination: mapped(0xcb00_0000 | n << 16),
                },
            );
            if there {
                MapOp::PutSpd {
                    prefix_len,
                    key,
                    entry: Box::new(world.policy),
                }
            } else {
                MapOp::DeleteSpd { prefix_len, key }
            }
        });
        Ok(self.plane.execute(&MapPlan { ops: ops.collect() })?)
    }

    /// Where policy `n` is: index in map `SPD_INDEX` and in map `SPD`.
    ///
    /// # Errors
    /// Where it is not there.
    pub fn policy_place(&self, n: u32) -> Result<[u32; 2]> {
        let place = self.plane.policy_place(POLICY_LEN, &policy_key(n));
        let (bucket, place) = place.context("a policy that is there")?;
        Ok([bucket, place])
    }

    /// Octets that the kernel holds for everything that is there once by slot.
    ///
    /// # Errors
    /// Where it does not say.
    pub fn sa_memory(&self) -> Result<u64> {
        let mut sum = 0;
        for name in BY_SLOT {
            for cpu in 0..self.cpus {
                sum += memory(&self.inner_of(name, cpu)?)?;
            }
        }
        Ok(sum)
    }

    /// Octets that the kernel holds for the policy table.
    ///
    /// # Errors
    /// Where it does not say.
    pub fn policy_memory(&self) -> Result<u64> {
        Ok(memory(&self.map(MAP_SPD)?)? + memory(&self.map(MAP_SPD_INDEX)?)?)
    }
}

fn policy_key(n: u32) -> SpdKey {
    SpdKey {
        destination: mapped(destination(n)),
    }
}

/// `memlock` of a map's descriptor.
fn memory(map: &OwnedFd) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    text.lines()
        .find_map(|l| l.strip_prefix("memlock:")?.trim().parse().ok())
        .context("the kernel does not say how much memory a map takes")
}
