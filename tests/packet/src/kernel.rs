//! The table's world in kernel maps, and the loaded programs by BPF_PROG_TEST_RUN.
//!
//! `dataplane` makes the maps that it makes in production; the programs come from the same object a second time, bound to
//! those maps, because a test run wants descriptors that `dataplane` keeps to itself.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use aya::maps::{MapData, RingBuf};
use aya::programs::{TestRun, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use dataplane::{ObjectSource, Options, Plane, ProgramReport};
use maps_schema::event::{Event, SlowHead};
use maps_schema::names::*;
use maps_schema::sad::{
    CpuSlot, InboundSa, InboundSaRuntime, OutboundSa, OutboundSaRuntime, SaKey, slot_place,
};
use maps_schema::segment::{SEGMENTS, Segment};
use maps_schema::spd::{SpdEntry, SpdKey};
use maps_schema::steer::{AddressKey, ClusterAddress, MacKey, PortKey};
use maps_schema::verdict::{VERDICT_STRIDE, Verdict};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;
use sad::port::{DataPlane, MapOp, MapPlan};
use zerocopy::{FromBytes, IntoBytes};

use crate::case::{Action, Case, Observed, Program};
use crate::world::*;

pub mod crowd;
pub mod timing;
pub mod touch;

const MADE_BY_DATAPLANE: [&str; 11] = [
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
const OTHERS: [&str; 12] = [
    MAP_MEMBERS,
    MAP_MEMBER_MACS,
    MAP_ADDRESSES,
    MAP_PORTS,
    MAP_PORT_OF,
    MAP_LOCAL,
    MAP_VERDICTS,
    MAP_CPUS_IN,
    MAP_CPUS_OUT,
    "ACQUIRED",
    "TOLD",
    MAP_SCRATCH,
];

/// Owner words are written anew after so long: they are valid for longer, or not at all.
const SEGMENTS_FRESH_MS: u64 = 10_000;

/// Programs and maps in a network namespace of their own.
pub struct Kernel {
    ebpf: Ebpf,
    events: RingBuf<MapData>,
    slow: RingBuf<MapData>,
    folder: PathBuf,
    stage: PathBuf,
    cpus: u32,
    /// What was written to SEGMENTS last (as at time 0), and when.
    segments: Option<((u64, u64), u64)>,
    /// Keeps the maps' pins, and writes policies.
    plane: Plane,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        for name in OTHERS {
            let _ = std::fs::remove_file(self.folder.join("pkt").join(name));
        }
        let _ = std::fs::remove_dir(self.folder.join("pkt"));
        for name in MADE_BY_DATAPLANE {
            let _ = std::fs::remove_file(self.stage.join(name));
        }
        if let Ok(entries) = std::fs::read_dir(&self.stage) {
            for entry in entries.flatten() {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let _ = std::fs::remove_dir(&self.stage);
        let _ = std::fs::remove_dir(&self.folder);
    }
}

/// The object under test: what `ESPALIER_BPF_OBJECT` or `ESPALIER_OBJECT` names, or where `cargo xtask build` puts it.
pub fn object_path() -> PathBuf {
    std::env::var_os("ESPALIER_BPF_OBJECT")
        .or_else(|| std::env::var_os("ESPALIER_OBJECT"))
        .map_or_else(
            || {
                Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("../../ebpf/programs/target/bpfel-unknown-none/release/espalier")
            },
            PathBuf::from,
        )
}

/// Why a kernel cannot run some cases.
pub const BEYOND: &str = "this kernel (before 6.18) cannot be told where the first buffer ends";

/// Those cases that a test run can be made of on this kernel, and how many others it is too old for. Cases of the programs in cpumaps,
/// of which the kernel takes no test runs, are not counted: those programs differ from the attached ones in two constants only.
pub fn runnable(mut cases: Vec<Case>) -> (Vec<Case>, usize) {
    cases.retain(|c| !matches!(c.program, Program::EspIn | Program::EspOut));
    let all = cases.len();
    if !splits_buffers() {
        cases.retain(|c| c.first_buffer.is_none());
    }
    let beyond = all - cases.len();
    (cases, beyond)
}

/// Whether test runs take the length of the first buffer.
fn splits_buffers() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(18))
}

impl Kernel {
    /// Loads everything. The calling thread moves to a new network namespace and to CPU 0.
    ///
    /// # Errors
    /// Without root, bpffs or the object, and where the verifier refuses a program.
    pub fn load() -> Result<Self> {
        Self::load_with(&object_path(), CPUS, SLOTS)
    }

    /// The same from an object, with maps for so many CPUs and slots.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(object: &Path, cpus: u32, slots: u32) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace (root?)")?;
        network()?;
        let folder = PathBuf::from(format!("/sys/fs/bpf/esp-pkt{}", std::process::id()));
        let options = Options {
            cpus,
            slots,
            ..Options::new(
                ObjectSource::Path(object.to_owned()),
                &folder,
                OUTSIDE_IFINDEX,
                INSIDE_IFINDEX,
            )
        };
        let plane = Plane::load(&options).with_context(|| format!("load {}", object.display()))?;
        pin_to(0)?;
        let stage = std::fs::read_dir(&folder)?
            .flatten()
            .map(|e| e.path())
            .find(|p| p.join(MAP_SA_IN).exists())
            .context("the maps that dataplane made")?;
        let own = folder.join("pkt");
        std::fs::create_dir(&own)?;
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::DISABLE | VerifierLogLevel::STATS);
        for name in MADE_BY_DATAPLANE {
            loader.map_pin_path(name, stage.join(name));
        }
        for name in OTHERS {
            loader.map_pin_path(name, own.join(name));
        }
        loader
            .map_max_entries(MAP_CPUS_IN, cpus)
            .map_max_entries(MAP_CPUS_OUT, cpus);
        let mut ebpf = loader.load(&std::fs::read(object)?)?;
        for name in [PROG_STEER, PROG_ESP_IN, PROG_INSIDE, PROG_ESP_OUT, PROG_SA_CTL] {
            let program: &mut Xdp = ebpf
                .program_mut(name)
                .with_context(|| format!("program {name}"))?
                .try_into()?;
            program.load().with_context(|| format!("program {name}"))?;
        }
        // A test run names an interface; the kernel wants one whose receive queue is set up for XDP.
        let pass: &mut Xdp = ebpf.program_mut(PROG_PASS).context("program pass")?.try_into()?;
        pass.load()?;
        for name in ["esp-out", "esp-in", "esp-out2", "esp-in2"] {
            pass.attach(name, XdpMode::Driver)
                .with_context(|| format!("attach to {name}"))?;
        }
        let events = RingBuf::try_from(ebpf.take_map(MAP_EVENTS).context("EVENTS")?)?;
        let slow = RingBuf::try_from(ebpf.take_map(MAP_SLOW).context("SLOW")?)?;
        let kernel = Self {
            ebpf,
            events,
            slow,
            folder,
            stage,
            cpus,
            segments: None,
            plane,
        };
        kernel.fixed_tables()?;
        Ok(kernel)
    }

    /// What the kernel says about each program.
    pub fn programs(&self) -> &[ProgramReport] {
        self.plane.programs()
    }

    fn map(&self, name: &str) -> Result<OwnedFd> {
        let folder = if MADE_BY_DATAPLANE.contains(&name) {
            self.stage.clone()
        } else {
            self.folder.join("pkt")
        };
        let path = folder.join(name);
        pinned(&path).with_context(|| format!("open {}", path.display()))
    }

    /// The inner array and index of a slot.
    fn inner(&self, name: &str, slot: u32) -> Result<(OwnedFd, u32)> {
        let (cpu, index) = slot_place(slot, self.cpus);
        Ok((self.inner_of(name, cpu)?, index))
    }

    fn inner_of(&self, name: &str, cpu: u32) -> Result<OwnedFd> {
        let mut id = [0u8; 4];
        lookup(&self.map(name)?, &cpu.to_ne_bytes(), &mut id)?;
        by_id(u32::from_ne_bytes(id))
    }

    fn put_inner(&self, name: &str, slot: u32, value: &[u8]) -> Result<()> {
        let (map, index) = self.inner(name, slot)?;
        update(&map, &index.to_ne_bytes(), value).with_context(|| format!("write {name}"))
    }

    /// Window and counters of a slot.
    fn runtime(&self, slot: u32) -> Result<(InboundSaRuntime, OutboundSaRuntime)> {
        let (map, index) = self.inner(MAP_SA_IN_RT, slot)?;
        let mut window = InboundSaRuntime::default();
        lookup(&map, &index.to_ne_bytes(), window.as_mut_bytes())?;
        let (map, index) = self.inner(MAP_SA_OUT_RT, slot)?;
        let mut counters = OutboundSaRuntime::default();
        lookup(&map, &index.to_ne_bytes(), counters.as_mut_bytes())?;
        Ok((window, counters))
    }

    /// The SAs beside the one in [`SLOT`], and who uses them.
    fn set_own(&mut self, world: &World) -> Result<()> {
        for (cpu, slot) in OWN_SLOTS.into_iter().enumerate() {
            let own = world.own[cpu];
            let inbound = own.map_or_else(InboundSa::default, |own| own.inbound);
            let window = own.map_or_else(InboundSaRuntime::default, |own| own.window);
            let outbound = own.map_or_else(OutboundSa::default, |own| own.outbound);
            self.put_inner(MAP_SA_IN, slot, inbound.as_bytes())?;
            self.put_inner(MAP_SA_IN_RT, slot, window.as_bytes())?;
            self.put_inner(MAP_SA_OUT, slot, outbound.as_bytes())?;
            self.put_inner(MAP_SA_OUT_RT, slot, OutboundSaRuntime::default().as_bytes())?;
            self.put_inner(
                MAP_KEY_IN,
                slot,
                own.map_or(SaKey::EMPTY, |own| own.key_in).as_bytes(),
            )?;
            self.put_inner(
                MAP_KEY_OUT,
                slot,
                own.map_or(SaKey::EMPTY, |own| own.key_out).as_bytes(),
            )?;
            if cpu as u32 >= self.cpus {
                // Maps for fewer CPUs (benchmarks): no table for this one.
                continue;
            }
            let number = if world.uses_own[cpu] { slot + 1 } else { 0 };
            let value = CpuSlot { number, reserved: 0 };
            let table = self.inner_of(MAP_CPU_SLOT, cpu as u32)?;
            update(&table, &SLOT.to_ne_bytes(), value.as_bytes())?;
            let number = world.guest.map_or(0, |at| OWN_SLOTS[at] + 1);
            let value = CpuSlot { number, reserved: 0 };
            update(&table, &GUEST_OF.to_ne_bytes(), value.as_bytes())?;
        }
        // A packet that another CPU got just before would have those of this one queue up behind it.
        let hops = self.ebpf.map_mut("HOPS").context("HOPS")?;
        let mut hops: aya::maps::Array<_, u64> = aya::maps::Array::try_from(hops)?;
        for at in 0..hops.len() {
            hops.set(at, 0, 0)?;
        }
        Ok(())
    }

    fn put(&self, name: &str, key: &[u8], value: &[u8]) -> Result<()> {
        update(&self.map(name)?, key, value).with_context(|| format!("write {name}"))
    }

    fn fixed_tables(&self) -> Result<()> {
        for (id, member) in MEMBERS {
            self.put(MAP_MEMBERS, &u32::from(id).to_ne_bytes(), member.as_bytes())?;
        }
        for port in PORTS {
            let index = u32::from(port.index).to_ne_bytes();
            for (ifindex, vlan) in [(port.ifindex, u32::from(port.vlan)), (port.device, 0)] {
                self.put(MAP_PORT_OF, PortKey { ifindex, vlan }.as_bytes(), &index)?;
            }
        }
        for mac in OTHER_MACS {
            let key = MacKey { mac, zero: [0; 2] };
            self.put(MAP_MEMBER_MACS, key.as_bytes(), &u32::from(OTHER).to_ne_bytes())?;
        }
        for (address, side, segment, ports) in ADDRESSES {
            let value = ClusterAddress { side, segment, ports };
            self.put(MAP_ADDRESSES, AddressKey { address }.as_bytes(), value.as_bytes())?;
        }
        for map in [MAP_CPUS_IN, MAP_CPUS_OUT] {
            for cpu in 0..self.cpus {
                // Queue size; no program: a test run's redirect goes nowhere.
                let value = [192u32, 0];
                self.put(map, &cpu.to_ne_bytes(), value.as_bytes())?;
            }
        }
        Ok(())
    }

    fn set(&mut self, world: &World) -> Result<()> {
        for port in world.ports() {
            let index = u32::from(port.index).to_ne_bytes();
            self.put(MAP_PORTS, &index, port.as_bytes())?;
        }
        self.put(MAP_LOCAL, &0u32.to_ne_bytes(), world.local.as_bytes())?;
        self.set_segments(world)?;
        self.put_inner(MAP_SA_IN, SLOT, world.inbound.as_bytes())?;
        self.put_inner(MAP_SA_IN_RT, SLOT, world.window.as_bytes())?;
        self.put_inner(MAP_KEY_IN, SLOT, world.key_in.as_bytes())?;
        self.put_inner(MAP_SA_OUT, SLOT, world.outbound.as_bytes())?;
        self.put_inner(MAP_SA_OUT_RT, SLOT, world.counters.as_bytes())?;
        self.put_inner(MAP_KEY_OUT, SLOT, world.key_out.as_bytes())?;
        let put = |prefix_len, destination, entry: &SpdEntry| MapOp::PutSpd {
            prefix_len,
            key: SpdKey { destination },
            entry: Box::new(*entry),
        };
        let ops = vec![
            put(POLICY_PREFIX_LEN, mapped(POLICY_PREFIX), &world.policy),
            put(48, POLICY_PREFIX_V6, &world.policy_v6),
            put(128, mapped(PEER), &world.policy_peer[0]),
            put(128, PEER_V6, &world.policy_peer[1]),
        ];
        self.plane.execute(&MapPlan { ops })?;
        let never = vec![0u8; 8 * cpus()?];
        self.put("ACQUIRED", &u32::from(CONNECTION).to_ne_bytes(), &never)?;
        self.put("ACQUIRED", &0u32.to_ne_bytes(), &never)?;
        self.put("TOLD", &0u32.to_ne_bytes(), &never)?;
        self.set_own(world)?;
        while self.events.next().is_some() {}
        while self.slow.next().is_some() {}
        Ok(())
    }

    /// Owner and side word of all segments; 256 system calls, so not for every case.
    fn set_segments(&mut self, world: &World) -> Result<()> {
        let now = dataplane::monotonic_ms();
        let wanted = (world.owner_word(0), world.side.pack());
        if let Some((written, at)) = self.segments
            && written == wanted
            && now.saturating_sub(at) < SEGMENTS_FRESH_MS
        {
            return Ok(());
        }
        let segment = Segment {
            owner: world.owner_word(now),
            side: wanted.1,
        };
        let map = self.map(MAP_SEGMENTS)?;
        for i in 0..SEGMENTS as u32 {
            update(&map, &i.to_ne_bytes(), segment.as_bytes()).context("write SEGMENTS")?;
        }
        self.segments = Some((wanted, now));
        Ok(())
    }

    fn verdicts(&self) -> Result<Vec<u64>> {
        let map = self.map(MAP_VERDICTS)?;
        let mut counts = Vec::new();
        for connection in [0, usize::from(CONNECTION)] {
            let values = lookup_many(&map, connection * VERDICT_STRIDE, VERDICT_STRIDE, 8 * cpus()?)?;
            counts.extend(values.chunks_exact(8 * cpus()?).map(|value| {
                value
                    .chunks_exact(8)
                    .map(|c| u64::from_ne_bytes(c.try_into().unwrap_or_default()))
                    .sum::<u64>()
            }));
        }
        Ok(counts)
    }

    /// Runs a case.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn run(&mut self, case: &Case) -> Result<Observed> {
        self.set(&case.world)?;
        let before = self.verdicts()?;
        let name = timing::name(case.program);
        let program: &mut Xdp = self.ebpf.program_mut(name).context("program")?.try_into()?;
        let mut out = vec![0u8; case.frame.len() + 4096];
        let result = {
            let mut options = TestRunOptions::new();
            // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
            let first = case.first_buffer.unwrap_or(case.frame.len());
            let context = [0, first as u32, 0, case.ifindex, 0, 0];
            options.data_in = Some(&case.frame);
            if case.program != Program::SaCtl {
                options.ctx_in = Some(context.as_bytes());
            }
            options.data_out = Some(&mut out);
            pin_to(case.cpu as usize)?;
            let result = program.test_run(options);
            pin_to(0)?;
            result.with_context(|| format!("run {}", case.name))?
        };
        out.truncate(result.data_size_out as usize);
        let after = self.verdicts()?;
        let mut verdict = None;
        for (at, (after, before)) in after.iter().zip(&before).enumerate() {
            if after == before {
                continue;
            }
            let connection = if at < VERDICT_STRIDE { 0 } else { CONNECTION };
            let number = (at % VERDICT_STRIDE) as u32;
            if verdict.is_some() || after - before != 1 {
                bail!("{}: more than one verdict was counted", case.name);
            }
            verdict = Some((
                connection,
                Verdict::from_number(number).context("a verdict of the list")?,
            ));
        }
        let action = match (case.program, result.return_value) {
            (Program::SaCtl, value) => Action::Value(value),
            (_, 1) => Action::Drop,
            (_, 2) => Action::Pass,
            (_, 3) => Action::Transmit,
            (_, 4) => Action::Redirect,
            (_, other) => bail!("{}: XDP returned {other}", case.name),
        };
        let (window, counters) = self.runtime(SLOT)?;
        let own = [self.runtime(OWN_SLOTS[0])?, self.runtime(OWN_SLOTS[1])?];
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            let (event, _) = Event::read_from_prefix(&item).ok().context("an event")?;
            events.push((event.kind, event.seq));
        }
        let mut slow = Vec::new();
        while let Some(item) = self.slow.next() {
            let (head, frame) = SlowHead::read_from_prefix(&item)
                .ok()
                .context("a slow path frame")?;
            let frame = frame.get(..head.length as usize).context("its length")?;
            slow.push((head.kind, frame.to_vec()));
        }
        Ok(Observed {
            verdict,
            action,
            target: None,
            frame: out,
            cut_behind: None,
            window,
            counters,
            own,
            events,
            slow,
        })
    }
}

fn pin_to(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Two interfaces with the addresses, routes and neighbours of [`crate::host`].
fn network() -> Result<()> {
    let quad = |a: u32| std::net::Ipv4Addr::from(a).to_string();
    let mac = |m: [u8; 6]| m.map(|b| format!("{b:02x}")).join(":");
    let mut lines = vec!["link set lo up".to_owned()];
    for (index, name, own) in [
        (OUTSIDE_IFINDEX, "esp-out", OUTSIDE_MAC),
        (INSIDE_IFINDEX, "esp-in", INSIDE_MAC),
        (OUTSIDE_2_IFINDEX, "esp-out2", OUTSIDE_2_MAC),
        (INSIDE_2_IFINDEX, "esp-in2", INSIDE_2_MAC),
    ] {
        lines.push(format!(
            "link add index {index} name {name} address {} type veth peer name {name}far",
            mac(own)
        ));
        lines.push(format!("link set {name}far mtu {DEVICE_MTU} up"));
        lines.push(format!("link set {name} mtu {DEVICE_MTU} up"));
    }
    // A VLAN device to the routing table is a device with its parent's MAC address: a kernel without 802.1Q will do.
    for (index, name, own) in [
        (OUTSIDE_VLAN_IFINDEX, "esp-outvlan", OUTSIDE_2_MAC),
        (INSIDE_VLAN_IFINDEX, "esp-invlan", INSIDE_MAC),
    ] {
        lines.push(format!(
            "link add index {index} name {name} address {} type veth peer name {name}far",
            mac(own)
        ));
        lines.push(format!("link set {name}far mtu {DEVICE_MTU} up"));
        lines.push(format!("link set {name} mtu {DEVICE_MTU} up"));
    }
    for (name, address, neighbour, far) in [
        ("esp-out", CLUSTER + 1, PEER, PEER_MAC),
        ("esp-out2", CLUSTER_2 + 1, PEER_2, PEER_2_MAC),
        ("esp-outvlan", CLUSTER_VLAN + 1, PEER_VLAN, PEER_VLAN_MAC),
        ("esp-in", INSIDE + 1, NEAR_HOST, NEAR_MAC),
        ("esp-in2", NEAR_2_HOST + 1, NEAR_2_HOST, NEAR_2_MAC),
        ("esp-invlan", NEAR_VLAN_HOST + 1, NEAR_VLAN_HOST, NEAR_VLAN_MAC),
    ] {
        lines.push(format!("addr add {}/24 dev {name}", quad(address)));
        lines.push(format!(
            "neigh add {} lladdr {} dev {name} nud permanent",
            quad(neighbour),
            mac(far)
        ));
    }
    let v6 = |a: [u8; 16]| std::net::Ipv6Addr::from(a).to_string();
    for (name, address, neighbour, far) in [
        ("esp-out", v6(crate::world::v6(0xa, 2)), PEER_V6, PEER_MAC),
        ("esp-in", v6(crate::world::v6(1, 2)), NEAR_HOST_V6, NEAR_MAC),
    ] {
        lines.push(format!("addr add {address}/64 dev {name} nodad"));
        lines.push(format!(
            "neigh add {} lladdr {} dev {name} nud permanent",
            v6(neighbour),
            mac(far)
        ));
    }
    // A path that is narrower than its interface.
    let narrow = quad(PEER_NARROW);
    lines.push(format!("route add {narrow}/32 dev esp-out mtu lock {NARROW_MTU}"));
    lines.push(format!(
        "neigh add {narrow} lladdr {} dev esp-out nud permanent",
        mac(PEER_MAC)
    ));
    for line in lines {
        let output = Command::new("ip")
            .args(line.split(' '))
            .output()
            .context("run ip")?;
        if !output.status.success() {
            bail!("ip {line}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    // `/proc/sys/net` is that of the calling thread's namespace.
    let path = "/proc/thread-self/root/proc/sys/net/ipv4/conf/all/forwarding";
    std::fs::write(path, "1").context("switch forwarding on")?;
    let path = "/proc/thread-self/root/proc/sys/net/ipv6/conf/all/forwarding";
    std::fs::write(path, "1").context("switch IPv6 forwarding on")
}

fn cpus() -> Result<usize> {
    aya::util::nr_cpus().map_err(|(file, error)| anyhow::anyhow!("{file}: {error}"))
}

/// `union bpf_attr` as far as used here.
#[repr(C)]
#[derive(Default)]
struct Attr {
    words: [u64; 4],
}

fn bpf(command: u32, attr: &mut Attr) -> io::Result<i32> {
    bpf_bytes(command, &mut attr.words)
}

fn bpf_bytes<const N: usize>(command: u32, attr: &mut [u64; N]) -> io::Result<i32> {
    // SAFETY: the attribute outlives the call, and what it points to is owned by the callers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: just returned by the kernel, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn pinned(path: &Path) -> Result<OwnedFd> {
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let mut attr = Attr {
        words: [name.as_ptr() as u64, 0, 0, 0],
    };
    Ok(owned(bpf(7, &mut attr)?))
}

fn by_id(id: u32) -> Result<OwnedFd> {
    let mut attr = Attr {
        words: [u64::from(id), 0, 0, 0],
    };
    Ok(owned(bpf(14, &mut attr)?))
}

fn lookup(map: &OwnedFd, key: &[u8], value: &mut [u8]) -> Result<()> {
    let mut attr = Attr {
        words: [
            map.as_raw_fd() as u64,
            key.as_ptr() as u64,
            value.as_mut_ptr() as u64,
            0,
        ],
    };
    bpf(1, &mut attr)?;
    Ok(())
}

/// `count` elements of an array from `first` on, in one call.
fn lookup_many(map: &OwnedFd, first: usize, count: usize, value_size: usize) -> Result<Vec<u8>> {
    let mut keys = vec![0u32; count];
    let mut values = vec![0u8; count * value_size];
    let before = (first as u32).wrapping_sub(1);
    let mut last = 0u32;
    // struct: in_batch, out_batch, keys, values, count and map_fd, elem_flags, flags.
    let mut attr = [
        if first == 0 { 0 } else { &raw const before as u64 },
        &raw mut last as u64,
        keys.as_mut_ptr() as u64,
        values.as_mut_ptr() as u64,
        count as u64 | (map.as_raw_fd() as u64) << 32,
        0,
        0,
    ];
    bpf_bytes(24, &mut attr)?;
    Ok(values)
}

fn update(map: &OwnedFd, key: &[u8], value: &[u8]) -> Result<()> {
    let mut attr = Attr {
        words: [
            map.as_raw_fd() as u64,
            key.as_ptr() as u64,
            value.as_ptr() as u64,
            0,
        ],
    };
    bpf(2, &mut attr)?;
    Ok(())
}
