//! Creates the maps, loads the programs. Nothing is attached here: the agent fills the maps first.

use crate::error::LoadError;
use crate::maps::{self, MADE_BY_HAND, ObjectBtf, SaMaps};
use crate::policies::Policies;
use crate::runner::Runner;
use crate::sys;
use aya::maps::MapData;
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use maps_schema::names::{
    MAP_CPUS_IN, MAP_CPUS_OUT, MAP_EVENTS, MAP_LOCAL, MAP_SLOW, PINNED_MAPS, PROG_ESP_IN, PROG_ESP_OUT,
    PROG_INSIDE, PROG_PASS, PROG_SA_CTL, PROG_STEER,
};
use maps_schema::version::SCHEMA_VERSION;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the pinned map that tells what the other pins are: layout version, CPUs, slots, 0.
pub(crate) const SCHEMA: &str = "SCHEMA";

/// Where the program object comes from.
#[derive(Clone, Debug)]
pub enum ObjectSource {
    /// A file, made by `cargo xtask build`.
    Path(PathBuf),
    /// Its content.
    Bytes(Vec<u8>),
}

/// How to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, or not at all.
    Driver,
    /// In the driver, else generic; [`crate::AttachReport`] says which it became.
    DriverPreferred,
    /// Generic.
    Generic,
}

/// What to load and where to put it.
#[derive(Clone, Debug)]
pub struct Options {
    /// The programs.
    pub object: ObjectSource,
    /// Folder on bpffs for pinned maps and links; one per member. Names on bpffs have no dots.
    pub pin_dir: PathBuf,
    /// Outside interfaces, by index: those on which frames arrive (of a VLAN device, the one below it).
    pub outside: Vec<u32>,
    /// Inside interfaces.
    pub inside: Vec<u32>,
    /// CPUs that serve SAs: 0 to `cpus - 1`.
    pub cpus: u32,
    /// SA slots of all CPUs together.
    pub slots: u32,
    /// How to attach.
    pub mode: Mode,
    /// Frames that wait for a CPU at most.
    pub queue_size: u32,
    /// Take over the pinned maps of a former run with all that is in them (planned restart, lone member); otherwise
    /// new maps replace them when the programs are attached.
    pub adopt: bool,
}

impl Options {
    /// Options for one interface on each side, with the usual queue size, driver mode preferred and no adoption.
    pub fn new(object: ObjectSource, pin_dir: impl Into<PathBuf>, outside: u32, inside: u32) -> Self {
        Self {
            object,
            pin_dir: pin_dir.into(),
            outside: vec![outside],
            inside: vec![inside],
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
            slots: 1 << 14,
            mode: Mode::DriverPreferred,
            queue_size: 2048,
            adopt: false,
        }
    }
}

/// The loaded data plane. Dropping it leaves attached programs and their pins in place: traffic goes on.
pub struct Plane {
    pub(crate) options: Options,
    pub(crate) sa: Arc<SaMaps>,
    pub(crate) policies: Policies,
    pub(crate) maps: HashMap<String, OwnedFd>,
    pub(crate) programs: HashMap<String, OwnedFd>,
    pub(crate) rings: Rings,
    pub(crate) stage: Option<Stage>,
    pub(crate) runner: Runner,
    pub(crate) reports: Vec<crate::ProgramReport>,
    /// What devices of ports are made of, as the programs know it.
    pub(crate) parts: Vec<(u32, Vec<u32>)>,
}

/// Ring buffers that no reader has taken so far.
pub(crate) struct Rings {
    pub events: Option<aya::maps::RingBuf<MapData>>,
    pub slow: Option<aya::maps::RingBuf<MapData>>,
    pub log: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
}

/// Folder that holds the pins of maps which are not yet in service; removed when dropped.
pub(crate) struct Stage(pub PathBuf);

impl Drop for Stage {
    fn drop(&mut self) {
        if let Ok(entries) = std::fs::read_dir(&self.0) {
            for entry in entries.flatten() {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

impl Plane {
    /// Creates or adopts the maps and loads the programs. Call it in the member's network namespace: the worker
    /// threads that run frames are started here and stay in it.
    ///
    /// # Errors
    /// [`LoadError`] with what to do about it. Nothing of a former run has been touched then.
    pub fn load(options: &Options) -> Result<Self, LoadError> {
        check(options)?;
        let object = match &options.object {
            ObjectSource::Bytes(bytes) => bytes.clone(),
            ObjectSource::Path(path) => std::fs::read(path).map_err(|cause| LoadError::Object {
                path: path.clone(),
                cause,
            })?,
        };
        std::fs::create_dir_all(&options.pin_dir)
            .map_err(|e| LoadError::kernel(format!("create folder {}", options.pin_dir.display()), e))?;
        let stage = stage(&options.pin_dir)?;
        let folder = if options.adopt {
            check_schema(options)?;
            options.pin_dir.clone()
        } else {
            let btf = object_btf(&object)?;
            maps::create(&stage.0, btf.as_ref(), options.cpus, options.slots)?;
            write_schema(&stage.0, options)?;
            stage.0.clone()
        };
        let sa = Arc::new(maps::open(&folder, options.cpus, options.slots)?);
        let policies = Policies::open(&folder, options.slots, options.adopt)?;

        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::DISABLE | VerifierLogLevel::STATS);
        let reused: &[&str] = if options.adopt { PINNED_MAPS } else { &MADE_BY_HAND };
        for name in reused {
            loader.map_pin_path(name, folder.join(name));
        }
        loader
            .map_max_entries(MAP_CPUS_IN, options.cpus)
            .map_max_entries(MAP_CPUS_OUT, options.cpus);
        let mut ebpf = loader.load(&object).map_err(|e| LoadError::Aya {
            what: "the program object".into(),
            cause: chain(&e),
        })?;
        for name in PINNED_MAPS {
            if ebpf.map(name).is_none() {
                return Err(LoadError::Missing {
                    what: "map",
                    name: (*name).to_owned(),
                });
            }
        }
        let (programs, reports) = load_programs(&mut ebpf)?;
        let mut fds = HashMap::new();
        for (name, map) in ebpf.maps() {
            fds.insert(name.to_owned(), map_fd(map, name)?);
        }
        let rings = Rings {
            events: ring(&mut ebpf, MAP_EVENTS)?,
            slow: ring(&mut ebpf, MAP_SLOW)?,
            log: logger(&mut ebpf),
        };
        let plane = Self {
            runner: Runner::start(options.cpus, &programs)?,
            options: options.clone(),
            sa,
            policies,
            maps: fds,
            programs,
            rings,
            stage: Some(stage),
            reports,
            parts: Vec::new(),
        };
        plane.fill_cpumaps()?;
        Ok(plane)
    }

    /// What the kernel says about each program.
    pub fn programs(&self) -> &[crate::ProgramReport] {
        &self.reports
    }

    /// CPU that serves a slot.
    pub fn cpu_of(&self, slot: u32) -> u32 {
        maps_schema::sad::slot_place(slot, self.options.cpus).0
    }

    /// Handle for running frames, usable from any thread.
    pub fn runner(&self) -> Runner {
        self.runner.clone()
    }

    pub(crate) fn map(&self, name: &str) -> std::io::Result<std::os::fd::BorrowedFd<'_>> {
        self.maps
            .get(name)
            .map(AsFd::as_fd)
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))
    }

    fn fill_cpumaps(&self) -> Result<(), LoadError> {
        for (map, program) in [(MAP_CPUS_IN, PROG_ESP_IN), (MAP_CPUS_OUT, PROG_ESP_OUT)] {
            let (Ok(fd), Some(program)) = (self.map(map), self.programs.get(program)) else {
                continue;
            };
            for cpu in 0..self.options.cpus {
                // struct bpf_cpumap_val: queue size, program fd.
                let mut value = [0u8; 8];
                value[..4].copy_from_slice(&self.options.queue_size.to_ne_bytes());
                value[4..].copy_from_slice(&program.as_raw_fd().to_ne_bytes());
                sys::map_update(fd, &cpu.to_ne_bytes(), &value)
                    .map_err(|e| LoadError::kernel(format!("put CPU {cpu} into cpumap {map}"), e))?;
            }
        }
        Ok(())
    }
}

fn check(options: &Options) -> Result<(), LoadError> {
    let fail = |text: &str| Err(LoadError::Options(text.to_owned()));
    if options.cpus == 0 || options.slots == 0 || options.slots > sad::spi::SLOTS_MAX {
        return fail("cpus must be at least 1, slots 1 to 1048576");
    }
    if options.outside.is_empty() || options.inside.is_empty() {
        return fail("there must be an outside and an inside interface");
    }
    if options.outside.iter().any(|o| options.inside.contains(o)) {
        return fail(
            "outside and inside must be two devices: one program runs on a device, so the VLANs of one are of one side",
        );
    }
    Ok(())
}

/// A folder of this run's own beside the pins; left-overs of runs that ended half-way are removed.
fn stage(pin_dir: &Path) -> Result<Stage, LoadError> {
    if let Ok(entries) = std::fs::read_dir(pin_dir) {
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(pid) = name
                .to_str()
                .and_then(|n| n.strip_prefix("stage_"))
                .and_then(|n| n.split('_').next())
            else {
                continue;
            };
            if !Path::new("/proc").join(pid).exists() {
                drop(Stage(entry.path()));
            }
        }
    }
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = pin_dir.join(format!("stage_{}_{count}", std::process::id()));
    std::fs::create_dir(&path)
        .map_err(|e| LoadError::kernel(format!("create folder {}", path.display()), e))?;
    Ok(Stage(path))
}

fn write_schema(folder: &Path, options: &Options) -> Result<(), LoadError> {
    let spec = sys::MapSpec {
        kind: sys::TYPE_ARRAY,
        key_size: 4,
        value_size: 16,
        max_entries: 1,
        flags: 0,
        name: SCHEMA,
        inner: None,
        btf: None,
    };
    let map = sys::map_create(&spec).map_err(|e| LoadError::kernel("create map SCHEMA", e))?;
    let mut value = [0u8; 16];
    for (to, word) in value
        .chunks_exact_mut(4)
        .zip([SCHEMA_VERSION, options.cpus, options.slots, 0])
    {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    sys::map_update(map.as_fd(), &0u32.to_ne_bytes(), &value)
        .map_err(|e| LoadError::kernel("write map SCHEMA", e))?;
    let path = folder.join(SCHEMA);
    sys::pin(map.as_fd(), &path).map_err(|e| LoadError::kernel(format!("pin {}", path.display()), e))
}

fn check_schema(options: &Options) -> Result<(), LoadError> {
    let map = maps::get(&options.pin_dir, SCHEMA)?;
    let mut value = [0u8; 16];
    sys::map_lookup(map.as_fd(), &0u32.to_ne_bytes(), &mut value)
        .map_err(|e| LoadError::kernel("read map SCHEMA", e))?;
    let word = |at: usize| u32::from_ne_bytes([value[at], value[at + 1], value[at + 2], value[at + 3]]);
    if (word(0), word(4), word(8)) == (SCHEMA_VERSION, options.cpus, options.slots) {
        return Ok(());
    }
    Err(LoadError::Schema {
        pin_dir: options.pin_dir.clone(),
        found_schema: word(0),
        found_cpus: word(4),
        found_slots: word(8),
        schema: SCHEMA_VERSION,
        cpus: options.cpus,
        slots: options.slots,
    })
}

/// Loads the object's maps once, only to have its BTF in the kernel in the form that this kernel accepts.
fn object_btf(object: &[u8]) -> Result<Option<ObjectBtf>, LoadError> {
    let ebpf = EbpfLoader::new().load(object).map_err(|e| LoadError::Aya {
        what: "the program object".into(),
        cause: chain(&e),
    })?;
    let Some(local) = ebpf.map(MAP_LOCAL) else {
        return Err(LoadError::Missing {
            what: "map",
            name: MAP_LOCAL.to_owned(),
        });
    };
    let fd = map_fd(local, MAP_LOCAL)?;
    let info = sys::map_info(fd.as_fd()).map_err(|e| LoadError::kernel("ask about map LOCAL", e))?;
    if info.btf_id == 0 {
        return Ok(None);
    }
    let fd = sys::btf_by_id(info.btf_id).map_err(|e| LoadError::kernel("open the object's BTF", e))?;
    let blob = sys::btf_bytes(fd.as_fd()).map_err(|e| LoadError::kernel("read the object's BTF", e))?;
    Ok(Some(ObjectBtf { fd, blob }))
}

/// CPUs that a cpumap can have at most.
pub(crate) fn possible_cpus() -> Result<u32, LoadError> {
    let count = aya::util::nr_cpus().map_err(|(_, cause)| LoadError::kernel("count the CPUs", cause))?;
    Ok(count as u32)
}

type Loaded = (HashMap<String, OwnedFd>, Vec<crate::ProgramReport>);

pub(crate) fn load_programs(ebpf: &mut Ebpf) -> Result<Loaded, LoadError> {
    let mut programs = HashMap::new();
    let mut reports = Vec::new();
    for name in [
        PROG_STEER,
        PROG_ESP_IN,
        PROG_INSIDE,
        PROG_ESP_OUT,
        PROG_SA_CTL,
        PROG_PASS,
    ] {
        let missing = || LoadError::Missing {
            what: "program",
            name: name.to_owned(),
        };
        let program = ebpf.program_mut(name).ok_or_else(missing)?;
        let program: &mut Xdp = program.try_into().map_err(|_| missing())?;
        let aya = |e: aya::programs::ProgramError| LoadError::Aya {
            what: format!("program {name}"),
            cause: chain(&e),
        };
        program.load().map_err(aya)?;
        let info = program.info().map_err(aya)?;
        reports.push(crate::ProgramReport::of(name, &info));
        let fd = program.fd().map_err(aya)?.as_fd().try_clone_to_owned();
        programs.insert(
            name.to_owned(),
            fd.map_err(|e| LoadError::kernel("copy a program's descriptor", e))?,
        );
    }
    Ok((programs, reports))
}

fn ring(ebpf: &mut Ebpf, name: &str) -> Result<Option<aya::maps::RingBuf<MapData>>, LoadError> {
    let map = ebpf.take_map(name).ok_or_else(|| LoadError::Missing {
        what: "map",
        name: name.to_owned(),
    })?;
    let ring = aya::maps::RingBuf::try_from(map).map_err(|e| LoadError::Aya {
        what: format!("ring buffer {name}"),
        cause: chain(&e),
    })?;
    Ok(Some(ring))
}

/// The programs need not log; an object without a log map is no error.
fn logger(ebpf: &mut Ebpf) -> Option<aya_log::EbpfLogger<&'static dyn log::Log>> {
    aya_log::EbpfLogger::init(ebpf).ok()
}

fn map_fd(map: &aya::maps::Map, name: &str) -> Result<OwnedFd, LoadError> {
    use aya::maps::Map;
    let data = match map {
        Map::Array(d)
        | Map::ArrayOfMaps(d)
        | Map::CpuMap(d)
        | Map::HashMap(d)
        | Map::LruHashMap(d)
        | Map::PerCpuArray(d)
        | Map::RingBuf(d)
        | Map::Unsupported(d) => d,
        _ => {
            return Err(LoadError::Options(format!(
                "map {name} is of a type that the loader does not know"
            )));
        }
    };
    data.fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|e| LoadError::kernel("copy a map's descriptor", e))
}

/// An error with all its causes, in one line each.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let line = cause.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        next = cause.source();
    }
    text
}
