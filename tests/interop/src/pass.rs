//! A program that passes every frame, for the far ends of veth pairs.
//!
//! XDP_TX on a veth reaches nobody unless its peer has an XDP program too, and a redirect needs NAPI there; this program gives both.
//! It is two instructions, so the lab needs neither the product's object file nor a compiler.

use crate::netns::Netns;
use crate::resources::Resources;
use anyhow::{Context, Result};
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_UPDATE: libc::c_long = 29;
/// Attach type: an interface, no map.
const BPF_XDP: u32 = 37;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// A device with a large MTU takes no other.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// The head of `union bpf_attr` for BPF_PROG_LOAD, as far as it is needed.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The head of `union bpf_attr` for BPF_LINK_UPDATE.
#[repr(C)]
struct UpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The head of `union bpf_attr` for BPF_OBJ_PIN and BPF_OBJ_GET.
#[repr(C)]
struct PinAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The loaded program, pinned while the lab lives.
#[derive(Debug)]
pub struct PassProgram {
    pin: PathBuf,
}

impl PassProgram {
    /// Loads and pins it.
    pub fn load(resources: &Resources) -> Result<Self> {
        // r0 = XDP_PASS (2); exit
        let instructions: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];
        let license = c"Dual MIT/GPL";
        let attr = LoadAttr {
            prog_type: BPF_PROG_TYPE_XDP,
            insn_cnt: instructions.len() as u32,
            insns: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: BPF_F_XDP_HAS_FRAGS,
            prog_name: [0; 16],
            prog_ifindex: 0,
            expected_attach_type: BPF_XDP,
        };
        let fd = bpf(BPF_PROG_LOAD, &attr).context("cannot load a BPF program: the lab needs root")?;
        // SAFETY: bpf(2) returned a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let pin = PathBuf::from("/sys/fs/bpf").join(resources.name("pass"));
        resources.note_path(&pin)?;
        let path = CString::new(pin.to_string_lossy().as_bytes()).context("pin path")?;
        let attr = PinAttr {
            pathname: path.as_ptr() as u64,
            bpf_fd: fd.as_raw_fd() as u32,
            file_flags: 0,
        };
        bpf(BPF_OBJ_PIN, &attr).context("cannot pin under /sys/fs/bpf: is bpffs mounted?")?;
        Ok(Self { pin })
    }

    /// The one that a lab has loaded.
    pub fn of(resources: &Resources) -> Self {
        let pin = PathBuf::from("/sys/fs/bpf").join(resources.name("pass"));
        Self { pin }
    }

    /// Puts it behind a pinned link, in the place of the program there.
    pub fn take_the_place_behind(&self, link: &Path) -> Result<()> {
        let (program, link) = (pinned(&self.pin)?, pinned(link)?);
        let attr = UpdateAttr {
            link_fd: link.as_raw_fd() as u32,
            new_prog_fd: program.as_raw_fd() as u32,
            flags: 0,
            old_prog_fd: 0,
        };
        bpf(BPF_LINK_UPDATE, &attr)
            .context("putting another program behind a link")
            .map(drop)
    }

    /// Attaches it in driver mode.
    pub fn attach(&self, netns: &Netns, interface: &str) -> Result<()> {
        let pin = self.pin.to_string_lossy();
        netns
            .run(&["ip", "link", "set", "dev", interface, "xdpdrv", "pinned", &pin])
            .map(drop)
    }
}

/// What is pinned.
fn pinned(path: &Path) -> Result<OwnedFd> {
    let name = CString::new(path.to_string_lossy().as_bytes()).context("pin path")?;
    let attr = PinAttr {
        pathname: name.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    let fd = bpf(BPF_OBJ_GET, &attr).with_context(|| path.display().to_string())?;
    // SAFETY: bpf(2) returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_long, attr: &T) -> Result<i32> {
    // SAFETY: `attr` is a live, initialised prefix of `union bpf_attr`, and its size is passed with it; every pointer in it
    // outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).context("bpf(2)");
    }
    i32::try_from(result).context("bpf(2) result")
}
