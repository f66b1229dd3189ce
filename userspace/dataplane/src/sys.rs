//! The few bpf(2) commands that aya 0.14 does not offer: maps with BTF made by hand, memory mapping, batches, links
//! updated in place, live-frame test runs on a chosen CPU.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const PROG_TEST_RUN: libc::c_long = 10;
const MAP_GET_FD_BY_ID: libc::c_long = 14;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BTF_GET_FD_BY_ID: libc::c_long = 19;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const MAP_UPDATE_BATCH: libc::c_long = 26;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;

/// `BPF_MAP_TYPE_ARRAY`.
pub(crate) const TYPE_ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
pub(crate) const TYPE_ARRAY_OF_MAPS: u32 = 12;
/// `BPF_F_MMAPABLE`.
pub(crate) const F_MMAPABLE: u32 = 1 << 10;
/// `XDP_FLAGS_SKB_MODE`.
pub(crate) const XDP_SKB: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`.
pub(crate) const XDP_DRV: u32 = 1 << 2;
const BPF_XDP: u32 = 37;
const F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

/// Issues a command. `attr` is one of the `#[repr(C)]` structs below, each a prefix of `union bpf_attr`.
fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is live, writable and as long as its size says; pointers in it are valid for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            std::mem::size_of::<T>() as libc::c_uint,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

fn bpf_fd<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the command returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address<T: ?Sized>(at: *const T) -> u64 {
    at.cast::<u8>() as u64
}

/// BTF of a map's key and value.
#[derive(Clone, Copy)]
pub(crate) struct MapBtf<'a> {
    pub fd: BorrowedFd<'a>,
    pub key: u32,
    pub value: u32,
}

/// `sched_setscheduler(2)` for the calling thread: `SCHED_FIFO`, not inherited by threads that it starts.
pub(crate) fn real_time(priority: i32) -> io::Result<()> {
    let parameter = libc::sched_param {
        sched_priority: priority,
    };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the parameter lives through the call; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a new map looks like.
pub(crate) struct MapSpec<'a> {
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    pub name: &'a str,
    pub inner: Option<BorrowedFd<'a>>,
    pub btf: Option<MapBtf<'a>>,
}

pub(crate) fn map_create(spec: &MapSpec<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
        inner_map_fd: u32,
        numa_node: u32,
        map_name: [u8; 16],
        map_ifindex: u32,
        btf_fd: u32,
        btf_key_type_id: u32,
        btf_value_type_id: u32,
    }
    let mut map_name = [0u8; 16];
    for (to, from) in map_name.iter_mut().take(15).zip(spec.name.bytes()) {
        *to = from;
    }
    bpf_fd(
        MAP_CREATE,
        &mut Attr {
            map_type: spec.kind,
            key_size: spec.key_size,
            value_size: spec.value_size,
            max_entries: spec.max_entries,
            map_flags: spec.flags,
            inner_map_fd: spec.inner.map_or(0, |fd| fd.as_raw_fd() as u32),
            numa_node: 0,
            map_name,
            map_ifindex: 0,
            btf_fd: spec.btf.map_or(0, |b| b.fd.as_raw_fd() as u32),
            btf_key_type_id: spec.btf.map_or(0, |b| b.key),
            btf_value_type_id: spec.btf.map_or(0, |b| b.value),
        },
    )
}

#[repr(C)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The octets must be as long as the map's key and value are.
pub(crate) fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let (key, value) = (address(key), address(value));
    bpf(
        MAP_UPDATE_ELEM,
        &mut ElemAttr {
            map_fd: map.as_raw_fd() as u32,
            pad: 0,
            key,
            value,
            flags: 0,
        },
    )
    .map(drop)
}

/// Fills `value`, which must be as long as the map's value is.
pub(crate) fn map_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let (key, value) = (address(key), value.as_mut_ptr() as u64);
    bpf(
        MAP_LOOKUP_ELEM,
        &mut ElemAttr {
            map_fd: map.as_raw_fd() as u32,
            pad: 0,
            key,
            value,
            flags: 0,
        },
    )
    .map(drop)
}

/// Deletes an element; its absence is no error.
pub(crate) fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let key = address(key);
    match bpf(
        MAP_DELETE_ELEM,
        &mut ElemAttr {
            map_fd: map.as_raw_fd() as u32,
            pad: 0,
            key,
            value: 0,
            flags: 0,
        },
    ) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other.map(drop),
    }
}

/// The key after `key` (the first for `None`); `None` at the end.
pub(crate) fn map_next_key(
    map: BorrowedFd<'_>,
    key: Option<&[u8]>,
    length: usize,
) -> io::Result<Option<Vec<u8>>> {
    let mut next = vec![0u8; length];
    let mut attr = ElemAttr {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: key.map_or(0, |k| address(k)),
        value: next.as_mut_ptr() as u64,
        flags: 0,
    };
    match bpf(MAP_GET_NEXT_KEY, &mut attr) {
        Ok(_) => Ok(Some(next)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Writes `count` elements in one call. `keys` and `values` must hold so many of the map's keys and values. On an error some of
/// them may have been written.
pub(crate) fn map_update_batch(
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: u32,
) -> io::Result<()> {
    let (keys, values) = (address(keys), address(values));
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys,
        values,
        count,
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    bpf(MAP_UPDATE_BATCH, &mut attr).map(drop)
}

/// Reads `count` elements from the start of an array in one call. `value_size` is what one element takes in user
/// space (for a per-CPU map: 8-octet units times possible CPUs).
pub(crate) fn map_lookup_batch(map: BorrowedFd<'_>, count: u32, value_size: usize) -> io::Result<Vec<u8>> {
    let mut out_batch = 0u32;
    let mut keys = vec![0u32; count as usize];
    let mut values = vec![0u8; count as usize * value_size];
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: std::ptr::from_mut(&mut out_batch) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    match bpf(MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => {}
        // The end of the map was reached, which is what was asked for.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => return Err(error),
    }
    values.truncate(attr.count as usize * value_size);
    Ok(values)
}

#[repr(C)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        pathname: path.as_ptr() as u64,
        bpf_fd: object.as_raw_fd() as u32,
        file_flags: 0,
    };
    bpf(OBJ_PIN, &mut attr).map(drop)
}

pub(crate) fn get_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    bpf_fd(
        OBJ_GET,
        &mut ObjAttr {
            pathname: path.as_ptr() as u64,
            bpf_fd: 0,
            file_flags: 0,
        },
    )
}

#[repr(C)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

pub(crate) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(
        MAP_GET_FD_BY_ID,
        &mut IdAttr {
            id,
            next_id: 0,
            open_flags: 0,
        },
    )
}

pub(crate) fn btf_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(
        BTF_GET_FD_BY_ID,
        &mut IdAttr {
            id,
            next_id: 0,
            open_flags: 0,
        },
    )
}

fn info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    bpf(
        OBJ_GET_INFO_BY_FD,
        &mut Attr {
            bpf_fd: object.as_raw_fd() as u32,
            info_len: std::mem::size_of::<T>() as u32,
            info: std::ptr::from_mut(info) as u64,
        },
    )
    .map(drop)
}

/// The head of `struct bpf_map_info`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct MapInfo {
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    pub name: [u8; 16],
    pub ifindex: u32,
    pub btf_vmlinux_value_type_id: u32,
    pub netns_dev: u64,
    pub netns_ino: u64,
    pub btf_id: u32,
    pub btf_key_type_id: u32,
    pub btf_value_type_id: u32,
    pub pad: u32,
}

pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut out = MapInfo::default();
    info(map, &mut out)?;
    Ok(out)
}

/// The BTF blob of a loaded BTF object.
pub(crate) fn btf_bytes(btf: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    #[derive(Default)]
    #[repr(C)]
    struct BtfInfo {
        btf: u64,
        btf_size: u32,
        id: u32,
    }
    let mut size = BtfInfo::default();
    info(btf, &mut size)?;
    let mut bytes = vec![0u8; size.btf_size as usize];
    let mut out = BtfInfo {
        btf: bytes.as_mut_ptr() as u64,
        btf_size: size.btf_size,
        id: 0,
    };
    info(btf, &mut out)?;
    Ok(bytes)
}

/// The number that the kernel gave a program.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    /// The head of `struct bpf_prog_info`.
    #[derive(Default)]
    #[repr(C)]
    struct ProgInfo {
        kind: u32,
        id: u32,
    }
    let mut out = ProgInfo::default();
    info(program, &mut out)?;
    Ok(out.id)
}

/// Interface index of an XDP link (0 where the interface is gone), and the number of the program behind it.
pub(crate) fn xdp_link(link: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    #[derive(Default)]
    #[repr(C)]
    struct LinkInfo {
        kind: u32,
        id: u32,
        prog_id: u32,
        pad: u32,
        ifindex: u32,
        rest: [u32; 11],
    }
    let mut out = LinkInfo::default();
    info(link, &mut out)?;
    Ok((out.ifindex, out.prog_id))
}

pub(crate) fn link_create(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        target_ifindex: u32,
        attach_type: u32,
        flags: u32,
    }
    let prog_fd = program.as_raw_fd() as u32;
    bpf_fd(
        LINK_CREATE,
        &mut Attr {
            prog_fd,
            target_ifindex: ifindex,
            attach_type: BPF_XDP,
            flags,
        },
    )
}

/// Puts another program behind a link, in one step.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let (link_fd, new_prog_fd) = (link.as_raw_fd() as u32, program.as_raw_fd() as u32);
    bpf(
        LINK_UPDATE,
        &mut Attr {
            link_fd,
            new_prog_fd,
            flags: 0,
            old_prog_fd: 0,
        },
    )
    .map(drop)
}

#[derive(Default)]
#[repr(C)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// Runs one frame through a program on the calling CPU as if the interface had received it: it is really redirected,
/// transmitted or passed to the stack.
pub(crate) fn run_live_frame(program: BorrowedFd<'_>, ifindex: u32, frame: &[u8]) -> io::Result<()> {
    let context = md_of(ifindex, frame);
    let mut attr = TestRunAttr {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: frame.len() as u32,
        data_in: address(frame),
        repeat: 1,
        ctx_size_in: std::mem::size_of_val(&context) as u32,
        ctx_in: address(&raw const context),
        flags: F_TEST_XDP_LIVE_FRAMES,
        batch_size: 1,
        ..TestRunAttr::default()
    };
    bpf(PROG_TEST_RUN, &mut attr).map(drop)
}

/// Runs a program once on the calling CPU over `data`, without effects on the network. Returns its return value and
/// the data as it left it.
pub(crate) fn run_once(program: BorrowedFd<'_>, data: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    once(program, data, None)
}

/// As [`run_once`], over a frame as if `ifindex` had received it. It may be longer than a page.
pub(crate) fn run_frame_once(
    program: BorrowedFd<'_>,
    ifindex: u32,
    frame: &[u8],
) -> io::Result<(u32, Vec<u8>)> {
    once(program, frame, Some(md_of(ifindex, frame)))
}

/// struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
fn md_of(ifindex: u32, frame: &[u8]) -> [u32; 6] {
    [0, frame.len() as u32, 0, ifindex, 0, 0]
}

fn once(program: BorrowedFd<'_>, data: &[u8], context: Option<[u32; 6]>) -> io::Result<(u32, Vec<u8>)> {
    let mut out = vec![0u8; data.len() + 256];
    let mut attr = TestRunAttr {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: data.len() as u32,
        data_in: address(data),
        data_size_out: out.len() as u32,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        ..TestRunAttr::default()
    };
    if let Some(context) = &context {
        attr.ctx_size_in = size_of_val(context) as u32;
        attr.ctx_in = address(std::ptr::from_ref(context));
    }
    bpf(PROG_TEST_RUN, &mut attr)?;
    out.truncate(attr.data_size_out as usize);
    Ok((attr.retval, out))
}
