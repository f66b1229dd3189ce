//! The SA arrays: one array per CPU behind an outer array, each with BTF, memory-mappable where no keys are in it.

use crate::btf::{find_int32, find_struct};
use crate::error::LoadError;
use crate::mapped::MappedArray;
use crate::sys::{self, MapBtf, MapSpec};
use maps_schema::names::{
    MAP_CPU_SLOT, MAP_KEY_IN, MAP_KEY_OUT, MAP_SA_IN, MAP_SA_IN_RT, MAP_SA_OUT, MAP_SA_OUT_RT, MAP_SEGMENTS,
    MAP_SPD, MAP_SPD_HEAD, MAP_SPD_INDEX,
};
use maps_schema::sad::{
    CpuSlot, InboundSa, InboundSaRuntime, OutboundSa, OutboundSaRuntime, SaKey, slots_per_cpu,
};
use maps_schema::segment::{SEGMENTS, Segment};
use maps_schema::spd::{SpdBucket, SpdHead, SpdPlace, spd_buckets, spd_places};
use std::mem::size_of;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The object's BTF in the kernel, for maps made by hand.
pub(crate) struct ObjectBtf {
    pub fd: OwnedFd,
    pub blob: Vec<u8>,
}

impl ObjectBtf {
    fn of(&self, name: &str, size: u32) -> Option<MapBtf<'_>> {
        let key = find_int32(&self.blob)?;
        let value = find_struct(&self.blob, name, size)?;
        Some(MapBtf {
            fd: self.fd.as_fd(),
            key: key.id,
            value: value.id,
        })
    }
}

/// One array of arrays: the outer map and the inner ones by CPU.
pub(crate) struct Nested {
    pub inner: Vec<OwnedFd>,
}

/// An array of arrays whose inner arrays are mapped into this process.
pub(crate) struct NestedMapped<T> {
    pub arrays: Vec<MappedArray<T>>,
    /// The arrays' descriptors, for pins.
    inner: Vec<OwnedFd>,
    /// Slots of the cluster: arrays may have room for more.
    slots: u32,
}

/// Every SA array.
pub(crate) struct SaMaps {
    pub sa_in: NestedMapped<InboundSa>,
    pub sa_in_rt: NestedMapped<InboundSaRuntime>,
    pub sa_out: NestedMapped<OutboundSa>,
    pub sa_out_rt: NestedMapped<OutboundSaRuntime>,
    pub key_in: Nested,
    pub key_out: Nested,
    /// By slot, not by place.
    pub cpu_slot: NestedMapped<CpuSlot>,
    pub segments: MappedArray<Segment>,
}

/// Names of the maps that [`create`] makes; the object's own definitions of them are not used.
pub(crate) const MADE_BY_HAND: [&str; 11] = [
    MAP_SA_IN,
    MAP_SA_IN_RT,
    MAP_SA_OUT,
    MAP_SA_OUT_RT,
    MAP_KEY_IN,
    MAP_KEY_OUT,
    MAP_CPU_SLOT,
    MAP_SEGMENTS,
    MAP_SPD,
    MAP_SPD_INDEX,
    MAP_SPD_HEAD,
];

/// Maps whose inner arrays are pinned for operators to look at; never those with keys.
pub(crate) const SHOWN: [&str; 5] = [MAP_SA_IN, MAP_SA_IN_RT, MAP_SA_OUT, MAP_SA_OUT_RT, MAP_CPU_SLOT];

impl SaMaps {
    /// The inner arrays of [`SHOWN`].
    pub(crate) fn shown(&self) -> [(&'static str, &[OwnedFd]); 5] {
        [
            (MAP_SA_IN, &self.sa_in.inner),
            (MAP_SA_IN_RT, &self.sa_in_rt.inner),
            (MAP_SA_OUT, &self.sa_out.inner),
            (MAP_SA_OUT_RT, &self.sa_out_rt.inner),
            (MAP_CPU_SLOT, &self.cpu_slot.inner),
        ]
    }
}

/// Makes the maps and pins them in `folder`, where the loader finds them.
pub(crate) fn create(folder: &Path, btf: Option<&ObjectBtf>, cpus: u32, slots: u32) -> Result<(), LoadError> {
    let entries = slots_per_cpu(slots, cpus);
    let nested: [(&str, &str, usize, u32); 7] = [
        (MAP_SA_IN, "InboundSa", size_of::<InboundSa>(), sys::F_MMAPABLE),
        (
            MAP_SA_IN_RT,
            "InboundSaRuntime",
            size_of::<InboundSaRuntime>(),
            sys::F_MMAPABLE,
        ),
        (MAP_SA_OUT, "OutboundSa", size_of::<OutboundSa>(), sys::F_MMAPABLE),
        (
            MAP_SA_OUT_RT,
            "OutboundSaRuntime",
            size_of::<OutboundSaRuntime>(),
            sys::F_MMAPABLE,
        ),
        // Not mappable: nothing in this process needs to see keys again.
        (MAP_KEY_IN, "SaKey", size_of::<SaKey>(), 0),
        (MAP_KEY_OUT, "SaKey", size_of::<SaKey>(), 0),
        (MAP_CPU_SLOT, "CpuSlot", size_of::<CpuSlot>(), sys::F_MMAPABLE),
    ];
    for (name, type_name, value_size, flags) in nested {
        let inner_btf = btf.and_then(|b| b.of(type_name, value_size as u32));
        if inner_btf.is_none() {
            tracing::warn!(
                map = name,
                "no BTF for {type_name}: bpftool will print this map as hex"
            );
        }
        let spec = MapSpec {
            kind: sys::TYPE_ARRAY,
            key_size: 4,
            value_size: value_size as u32,
            // The table of what CPUs use in place of shared SAs is by slot.
            max_entries: if name == MAP_CPU_SLOT { slots } else { entries },
            flags,
            name,
            inner: None,
            btf: inner_btf,
        };
        let mut inner = Vec::new();
        for cpu in 0..cpus {
            let array = sys::map_create(&spec).map_err(|e| {
                LoadError::kernel(
                    format!("create map {name} for CPU {cpu} ({} entries)", spec.max_entries),
                    e,
                )
            })?;
            inner.push(array);
        }
        let template = inner.first().map(AsFd::as_fd);
        let outer = MapSpec {
            kind: sys::TYPE_ARRAY_OF_MAPS,
            key_size: 4,
            value_size: 4,
            max_entries: cpus,
            flags: 0,
            name,
            inner: template,
            btf: None,
        };
        let outer =
            sys::map_create(&outer).map_err(|e| LoadError::kernel(format!("create map {name}"), e))?;
        for (cpu, array) in (0u32..).zip(&inner) {
            let fd = std::os::fd::AsRawFd::as_raw_fd(array);
            sys::map_update(outer.as_fd(), &cpu.to_ne_bytes(), &fd.to_ne_bytes())
                .map_err(|e| LoadError::kernel(format!("put CPU {cpu} into map {name}"), e))?;
        }
        pin(&outer, folder, name)?;
    }
    let places = spd_places(slots);
    let flat = [
        (MAP_SEGMENTS, "Segment", size_of::<Segment>(), SEGMENTS as u32),
        (MAP_SPD, "SpdPlace", size_of::<SpdPlace>(), places),
        (
            MAP_SPD_INDEX,
            "SpdBucket",
            size_of::<SpdBucket>(),
            spd_buckets(places),
        ),
        (MAP_SPD_HEAD, "SpdHead", size_of::<SpdHead>(), 1),
    ];
    for (name, type_name, value_size, max_entries) in flat {
        let spec = MapSpec {
            kind: sys::TYPE_ARRAY,
            key_size: 4,
            value_size: value_size as u32,
            max_entries,
            flags: sys::F_MMAPABLE,
            name,
            inner: None,
            btf: btf.and_then(|b| b.of(type_name, value_size as u32)),
        };
        let map = sys::map_create(&spec)
            .map_err(|e| LoadError::kernel(format!("create map {name} ({max_entries} entries)"), e))?;
        pin(&map, folder, name)?;
    }
    Ok(())
}

fn pin(map: &OwnedFd, folder: &Path, name: &str) -> Result<(), LoadError> {
    let path = folder.join(name);
    sys::pin(map.as_fd(), &path).map_err(|e| LoadError::kernel(format!("pin {}", path.display()), e))
}

/// Opens the maps pinned in `folder` and maps them.
pub(crate) fn open(folder: &Path, cpus: u32, slots: u32) -> Result<SaMaps, LoadError> {
    let segments = get(folder, MAP_SEGMENTS)?;
    Ok(SaMaps {
        sa_in: mapped(folder, MAP_SA_IN, cpus, slots)?,
        sa_in_rt: mapped(folder, MAP_SA_IN_RT, cpus, slots)?,
        sa_out: mapped(folder, MAP_SA_OUT, cpus, slots)?,
        sa_out_rt: mapped(folder, MAP_SA_OUT_RT, cpus, slots)?,
        key_in: Nested {
            inner: inner(folder, MAP_KEY_IN, cpus)?,
        },
        key_out: Nested {
            inner: inner(folder, MAP_KEY_OUT, cpus)?,
        },
        cpu_slot: mapped(folder, MAP_CPU_SLOT, cpus, slots)?,
        segments: MappedArray::map(segments.as_fd(), SEGMENTS as u32)
            .map_err(|e| LoadError::kernel("map SEGMENTS into memory", e))?,
    })
}

pub(crate) fn get(folder: &Path, name: &str) -> Result<OwnedFd, LoadError> {
    let path = folder.join(name);
    sys::get_pinned(&path).map_err(|e| LoadError::kernel(format!("open pinned map {}", path.display()), e))
}

fn inner(folder: &Path, name: &str, cpus: u32) -> Result<Vec<OwnedFd>, LoadError> {
    let outer = get(folder, name)?;
    let mut arrays = Vec::new();
    for cpu in 0..cpus {
        let mut id = [0u8; 4];
        sys::map_lookup(outer.as_fd(), &cpu.to_ne_bytes(), &mut id)
            .map_err(|e| LoadError::kernel(format!("look up CPU {cpu} in map {name}"), e))?;
        let array = sys::map_by_id(u32::from_ne_bytes(id))
            .map_err(|e| LoadError::kernel(format!("open map {name} of CPU {cpu}"), e))?;
        arrays.push(array);
    }
    Ok(arrays)
}

fn mapped<T>(folder: &Path, name: &str, cpus: u32, slots: u32) -> Result<NestedMapped<T>, LoadError>
where
    T: FromBytes + IntoBytes + Immutable,
{
    let inner = inner(folder, name, cpus)?;
    let mut arrays = Vec::new();
    for array in &inner {
        let info = sys::map_info(array.as_fd())
            .map_err(|e| LoadError::kernel(format!("ask about map {name}"), e))?;
        if info.value_size as usize != size_of::<T>() {
            return Err(LoadError::Options(format!(
                "map {name} has values of {} octets, this version {}: start without adopting it",
                info.value_size,
                size_of::<T>()
            )));
        }
        let array = MappedArray::map(array.as_fd(), info.max_entries)
            .map_err(|e| LoadError::kernel(format!("map {name} into memory"), e))?;
        arrays.push(array);
    }
    Ok(NestedMapped { arrays, inner, slots })
}

impl<T: FromBytes + IntoBytes + Immutable> NestedMapped<T> {
    /// The array and index of a slot.
    pub(crate) fn place(&self, slot: u32) -> Option<(&MappedArray<T>, u32)> {
        let (cpu, index) = maps_schema::sad::slot_place(slot, self.arrays.len() as u32);
        let array = self.arrays.get(cpu as usize)?;
        (slot < self.slots && index < array.len()).then_some((array, index))
    }
}
