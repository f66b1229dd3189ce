//! The small tables: this host, the members, the cluster's addresses. And the verdict counters.

use crate::error::PlaneError;
use crate::load::Plane;
use crate::parts::parts_of;
use crate::sys;
use maps_schema::names::{MAP_ADDRESSES, MAP_LOCAL, MAP_MEMBER_MACS, MAP_MEMBERS, MAP_PORTS, MAP_VERDICTS};
use maps_schema::steer::{
    AddressKey, ClusterAddress, Local, MAX_MEMBERS, MAX_PORTS, MacKey, Member, NO_VLAN, Port, PortKey,
};
use maps_schema::verdict::{VERDICT_STRIDE, Verdict};
use std::collections::HashMap;
use std::io;
use zerocopy::IntoBytes;

/// Packets of one connection that ended in one verdict, summed over CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictCount {
    /// Connection index, 0 for packets that belong to none.
    pub connection: u16,
    /// The verdict.
    pub verdict: Verdict,
    /// Packets since the maps were created.
    pub packets: u64,
}

impl Plane {
    /// Writes what the programs know of this host. `cpus` and `slots` are those of the maps, whatever `local` says.
    ///
    /// # Errors
    /// [`PlaneError`] where the kernel refuses.
    pub fn set_local(&mut self, local: &Local) -> Result<(), PlaneError> {
        let local = Local {
            cpus: self.options.cpus,
            slots: self.options.slots,
            ..*local
        };
        self.put(MAP_LOCAL, &0u32.to_ne_bytes(), local.as_bytes())
    }

    /// Writes the interfaces, each at its number; entries that are not named are emptied.
    ///
    /// # Errors
    /// [`PlaneError`] for a number out of range, two ports with one tag on one device, or where the kernel refuses.
    pub fn set_ports(&mut self, ports: &[Port]) -> Result<(), PlaneError> {
        let invalid = |text: String| PlaneError::new(text, io::ErrorKind::InvalidInput.into());
        let mut table = [Port::default(); MAX_PORTS];
        let mut keys: HashMap<PortKey, u32> = HashMap::new();
        for port in ports {
            let entry = table
                .get_mut(usize::from(port.index))
                .ok_or_else(|| invalid(format!("put port {}", port.index)))?;
            *entry = *port;
            let arrival = PortKey {
                ifindex: port.ifindex,
                vlan: u32::from(port.vlan),
            };
            let route = PortKey {
                ifindex: port.device,
                vlan: u32::from(NO_VLAN),
            };
            for key in [arrival, route] {
                let index = u32::from(port.index);
                if keys.insert(key, index).is_some_and(|other| other != index) {
                    return Err(invalid(format!(
                        "put port {index}: its device serves another one"
                    )));
                }
            }
        }
        for (index, port) in (0u32..).zip(&table) {
            self.put(MAP_PORTS, &index.to_ne_bytes(), port.as_bytes())?;
        }
        // A bond that gets another part later is seen by those who watch ([`Plane::tell_abilities`]).
        let parts = parts_of(ports.iter().map(|port| port.ifindex));
        self.write_port_keys(ports, &parts)?;
        self.parts = parts;
        Ok(())
    }

    /// Writes how to reach a member (ids are 1 to 16).
    ///
    /// # Errors
    /// [`PlaneError`] for an id out of range, or where the kernel refuses.
    pub fn set_member(&mut self, id: u8, member: &Member) -> Result<(), PlaneError> {
        if id == 0 || usize::from(id) > MAX_MEMBERS {
            return Err(PlaneError::new(
                format!("put member {id}"),
                io::ErrorKind::InvalidInput.into(),
            ));
        }
        self.put(MAP_MEMBERS, &u32::from(id).to_ne_bytes(), member.as_bytes())
    }

    /// Declares a MAC address to be a member's: frames from it are never forwarded again.
    ///
    /// # Errors
    /// [`PlaneError`] where the kernel refuses.
    pub fn put_member_mac(&mut self, mac: [u8; 6], id: u8) -> Result<(), PlaneError> {
        self.put(
            MAP_MEMBER_MACS,
            MacKey { mac, zero: [0; 2] }.as_bytes(),
            &u32::from(id).to_ne_bytes(),
        )
    }

    /// Forgets a member's MAC address; its absence is no error.
    ///
    /// # Errors
    /// [`PlaneError`] where the kernel refuses.
    pub fn delete_member_mac(&mut self, mac: [u8; 6]) -> Result<(), PlaneError> {
        self.delete(MAP_MEMBER_MACS, MacKey { mac, zero: [0; 2] }.as_bytes())
    }

    /// Declares a cluster address.
    ///
    /// # Errors
    /// [`PlaneError`] where the kernel refuses.
    pub fn put_address(&mut self, key: &AddressKey, address: &ClusterAddress) -> Result<(), PlaneError> {
        self.put(MAP_ADDRESSES, key.as_bytes(), address.as_bytes())
    }

    /// Forgets a cluster address; its absence is no error.
    ///
    /// # Errors
    /// [`PlaneError`] where the kernel refuses.
    pub fn delete_address(&mut self, key: &AddressKey) -> Result<(), PlaneError> {
        self.delete(MAP_ADDRESSES, key.as_bytes())
    }

    /// Removes member MAC addresses, and the cluster addresses that are not `kept`, so that an adopted map holds nothing of a
    /// former configuration.
    ///
    /// # Errors
    /// [`PlaneError`] where the kernel refuses.
    pub fn clear_tables(&mut self, kept: &[AddressKey]) -> Result<(), PlaneError> {
        self.retain(MAP_MEMBER_MACS, size_of::<MacKey>(), |_| false)?;
        let kept: Vec<&[u8]> = kept.iter().map(IntoBytes::as_bytes).collect();
        self.retain(MAP_ADDRESSES, size_of::<AddressKey>(), |key| kept.contains(&key))
    }

    pub(crate) fn retain(
        &self,
        name: &str,
        key_length: usize,
        stays: impl Fn(&[u8]) -> bool,
    ) -> Result<(), PlaneError> {
        let error = |cause| PlaneError::new(format!("remove entries of map {name}"), cause);
        let map = self.map(name).map_err(error)?;
        let mut gone = Vec::new();
        let mut key: Option<Vec<u8>> = None;
        while let Some(next) = sys::map_next_key(map, key.as_deref(), key_length).map_err(error)? {
            if !stays(&next) {
                gone.push(next.clone());
            }
            key = Some(next);
        }
        for key in gone {
            sys::map_delete(map, &key).map_err(error)?;
        }
        Ok(())
    }

    /// All verdict counters that are not zero.
    ///
    /// # Errors
    /// [`PlaneError`] where the kernel refuses.
    pub fn verdicts(&self) -> Result<Vec<VerdictCount>, PlaneError> {
        let error = |cause| PlaneError::new("read map VERDICTS", cause);
        let map = self.map(MAP_VERDICTS).map_err(error)?;
        let entries = sys::map_info(map).map_err(error)?.max_entries;
        let cpus = aya::util::nr_cpus().map_err(|(_, cause)| error(cause))?;
        let values = sys::map_lookup_batch(map, entries, cpus * 8).map_err(error)?;
        let names: HashMap<u32, Verdict> = Verdict::ALL.iter().map(|v| (*v as u32, *v)).collect();
        let mut counts = Vec::new();
        for (index, per_cpu) in values.chunks_exact(cpus * 8).enumerate() {
            let words = per_cpu
                .chunks_exact(8)
                .filter_map(|w| w.try_into().ok())
                .map(u64::from_ne_bytes);
            let packets = words.fold(0u64, u64::wrapping_add);
            let verdict = names.get(&((index % VERDICT_STRIDE) as u32));
            if let (Some(verdict), true) = (verdict, packets > 0) {
                counts.push(VerdictCount {
                    connection: (index / VERDICT_STRIDE) as u16,
                    verdict: *verdict,
                    packets,
                });
            }
        }
        Ok(counts)
    }

    /// Packets that the programs have judged, those counted for the first `connections` numbers (0: no connection) only.
    /// Packets that were moved to another CPU count where they are judged.
    ///
    /// # Errors
    /// [`PlaneError`].
    pub fn packets_judged(&self, connections: u32) -> Result<u64, PlaneError> {
        let error = |cause| PlaneError::new("read map VERDICTS", cause);
        let map = self.map(MAP_VERDICTS).map_err(error)?;
        let entries = sys::map_info(map).map_err(error)?.max_entries;
        let entries = entries.min(connections.saturating_mul(VERDICT_STRIDE as u32));
        let cpus = aya::util::nr_cpus().map_err(|(_, cause)| error(cause))?;
        let values = sys::map_lookup_batch(map, entries, cpus * 8).map_err(error)?;
        let moved = Verdict::OtherCpu as usize;
        let judged = values.chunks_exact(cpus * 8).enumerate();
        let judged = judged.filter(|(index, _)| index % VERDICT_STRIDE != moved);
        let words = judged.flat_map(|(_, per_cpu)| per_cpu.chunks_exact(8));
        let words = words.filter_map(|w| w.try_into().ok()).map(u64::from_ne_bytes);
        Ok(words.fold(0, u64::wrapping_add))
    }

    pub(crate) fn put(&self, map: &str, key: &[u8], value: &[u8]) -> Result<(), PlaneError> {
        let error = |cause| PlaneError::new(format!("write map {map}"), cause);
        sys::map_update(self.map(map).map_err(error)?, key, value).map_err(error)
    }

    fn delete(&self, map: &str, key: &[u8]) -> Result<(), PlaneError> {
        let error = |cause| PlaneError::new(format!("delete from map {map}"), cause);
        sys::map_delete(self.map(map).map_err(error)?, key).map_err(error)
    }
}
