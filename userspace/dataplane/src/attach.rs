//! Puts loaded programs into service: pins, links, replacement of a former run's programs without a gap.

use crate::device::{self, Device};
use crate::error::LoadError;
use crate::kept::KEPT;
use crate::load::{Mode, Plane, SCHEMA};
use crate::maps::SHOWN;
use crate::sys;
use crate::xdp_mode::{self, XdpModeUsed};
use maps_schema::names::{PINNED_MAPS, PROG_INSIDE, PROG_STEER};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// Names of pinned links: this, the side and the interface's index.
pub(crate) const LINK: &str = "link_";

/// What attaching came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachReport {
    /// Mode on each interface, by index.
    pub modes: Vec<(u32, XdpModeUsed)>,
    /// Programs of a former run were replaced in place.
    pub replaced: bool,
}

impl AttachReport {
    /// Mode on an interface.
    pub fn mode(&self, ifindex: u32) -> XdpModeUsed {
        let found = self.modes.iter().find(|(at, _)| *at == ifindex);
        found.map_or(XdpModeUsed::None, |(_, mode)| *mode)
    }
}

impl Plane {
    /// Attaches `steer` to every outside interface and `inside` to every inside one, and pins maps and links. Links of a
    /// former run get the new programs in one step each, so no packet meets an interface without a program; links of
    /// interfaces that are not of the configuration any more are removed.
    ///
    /// # Errors
    /// [`LoadError`]; a former run's programs are still in service on the interfaces not yet reached.
    pub fn attach(&mut self) -> Result<AttachReport, LoadError> {
        self.pin_maps()?;
        let mut report = AttachReport {
            modes: Vec::new(),
            replaced: false,
        };
        let mut kept = Vec::new();
        for (program, side, interfaces) in [
            (PROG_INSIDE, "inside", &self.options.inside),
            (PROG_STEER, "outside", &self.options.outside),
        ] {
            for ifindex in interfaces {
                let name = format!("{LINK}{side}_{ifindex}");
                if kept.contains(&name) {
                    // Several VLANs of one device.
                    continue;
                }
                // A device that changed sides has a link with the other program.
                let other = if side == "inside" { "outside" } else { "inside" };
                remove_pin(&self.options.pin_dir.join(format!("{LINK}{other}_{ifindex}")))
                    .map_err(|e| LoadError::kernel("remove the link of the other side", e))?;
                let (mode, replaced) = self.attach_one(program, *ifindex, &name)?;
                report.modes.push((*ifindex, mode));
                report.replaced |= replaced;
                kept.push(name);
            }
        }
        remove_links(&self.options.pin_dir, &kept)
            .map_err(|e| LoadError::kernel("remove links of interfaces that serve no longer", e))?;
        self.stage = None;
        Ok(report)
    }

    /// Takes the programs off the interfaces and removes every pin.
    ///
    /// # Errors
    /// The first pin that could not be removed; the others are gone.
    pub fn detach(self) -> io::Result<()> {
        let folder = self.options.pin_dir.clone();
        // Links first: a pinned link without this process keeps its program attached.
        drop(self);
        remove_pins(&folder)
    }

    fn pin_maps(&self) -> Result<(), LoadError> {
        let Some(stage) = &self.stage else { return Ok(()) };
        if self.options.adopt {
            return Ok(());
        }
        for name in PINNED_MAPS.iter().chain([&SCHEMA]) {
            let (staged, pinned) = (stage.0.join(name), self.options.pin_dir.join(name));
            let action = || format!("pin {}", pinned.display());
            if let Ok(map) = self.map(name)
                && !staged.exists()
            {
                sys::pin(map, &staged).map_err(|e| LoadError::kernel(action(), e))?;
            }
            std::fs::rename(&staged, &pinned).map_err(|e| LoadError::kernel(action(), e))?;
        }
        self.pin_arrays(&stage.0)
    }

    /// The arrays of each CPU get pins too, `SA_IN_0` and so on: an outer map's dump shows ids only.
    fn pin_arrays(&self, stage: &Path) -> Result<(), LoadError> {
        remove_array_pins(&self.options.pin_dir, self.options.cpus)
            .map_err(|e| LoadError::kernel("remove pins of CPUs that serve no longer", e))?;
        for (name, arrays) in self.sa.shown() {
            for (cpu, array) in arrays.iter().enumerate() {
                let name = format!("{name}_{cpu}");
                let (staged, pinned) = (stage.join(&name), self.options.pin_dir.join(&name));
                sys::pin(array.as_fd(), &staged)
                    .and_then(|()| std::fs::rename(&staged, &pinned))
                    .map_err(|e| LoadError::kernel(format!("pin {}", pinned.display()), e))?;
            }
        }
        Ok(())
    }

    fn attach_one(&self, program: &str, ifindex: u32, name: &str) -> Result<(XdpModeUsed, bool), LoadError> {
        let missing = || LoadError::Missing {
            what: "program",
            name: program.to_owned(),
        };
        let program = self.programs.get(program).ok_or_else(missing)?.as_fd();
        // The kernel answers EINVAL for an unknown index, as it does for a driver without XDP.
        let Some(interface) = device::name_of(ifindex) else {
            return Err(LoadError::Options(format!(
                "interface {ifindex} does not exist in this network namespace"
            )));
        };
        let path = self.options.pin_dir.join(name);
        if replace(&path, ifindex, program)? {
            let mode = xdp_mode::query(ifindex).map_err(|e| LoadError::kernel("ask for the XDP mode", e))?;
            return Ok((mode, true));
        }
        let flags: &[u32] = match self.options.mode {
            Mode::Driver => &[sys::XDP_DRV],
            // In its driver nothing would come out of it that the programs send, answers to ARP first of all.
            Mode::DriverPreferred if device::is_bare_veth(ifindex) => {
                tracing::warn!(
                    device = interface,
                    why = device::BARE_VETH,
                    "XDP runs in generic mode: slow"
                );
                &[sys::XDP_SKB]
            }
            Mode::DriverPreferred => &[sys::XDP_DRV, sys::XDP_SKB],
            Mode::Generic => &[sys::XDP_SKB],
        };
        let mut refused = None;
        for flag in flags {
            match sys::link_create(program, ifindex, *flag) {
                Ok(link) => {
                    sys::pin(link.as_fd(), &path)
                        .map_err(|e| LoadError::kernel(format!("pin {}", path.display()), e))?;
                    let mode =
                        xdp_mode::query(ifindex).map_err(|e| LoadError::kernel("ask for the XDP mode", e))?;
                    if let Some(cause) = refused {
                        let device = Device::of(ifindex, &interface);
                        let (named, why) = (device.named(), device.why_not_native());
                        tracing::warn!(device = named, %cause, %why, "driver mode refused, XDP runs in generic mode: slow");
                    }
                    return Ok((mode, false));
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EBUSY | libc::EEXIST) => return Err(LoadError::Busy { ifindex }),
                    Some(libc::EPERM) => return Err(LoadError::kernel("attach an XDP program", error)),
                    _ => refused = Some(error),
                },
            }
        }
        let cause = refused.unwrap_or_else(|| io::Error::from(io::ErrorKind::Other));
        match self.options.mode {
            Mode::Driver => {
                let device = Device::of(ifindex, &interface);
                Err(LoadError::NoDriverMode {
                    device: device.named(),
                    cause,
                    why: device.why_not_native(),
                })
            }
            _ => Err(LoadError::kernel(
                format!("attach an XDP program to interface {ifindex}"),
                cause,
            )),
        }
    }
}

/// Puts the program behind a former run's pinned link. A link of another or a vanished interface is removed instead.
fn replace(path: &Path, ifindex: u32, program: BorrowedFd<'_>) -> Result<bool, LoadError> {
    let link = match sys::get_pinned(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => {
            return Err(LoadError::kernel(
                format!("open pinned link {}", path.display()),
                error,
            ));
        }
    };
    let attached_to = sys::xdp_link(link.as_fd()).map_or(0, |(ifindex, _)| ifindex);
    if attached_to == ifindex && sys::link_update(link.as_fd(), program).is_ok() {
        return Ok(true);
    }
    std::fs::remove_file(path)
        .map_err(|e| LoadError::kernel(format!("remove stale link {}", path.display()), e))?;
    Ok(false)
}

/// Removes what runs of this version pin in a folder, and the folder. Attached programs go with their links.
///
/// # Errors
/// The first pin that could not be removed; a folder that does not exist is no error.
pub fn remove_pins(folder: &Path) -> io::Result<()> {
    let mut first = Ok(());
    match remove_links(folder, &[]) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => first = Err(error),
        _ => {}
    }
    for name in [SCHEMA, KEPT].iter().chain(PINNED_MAPS) {
        match std::fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound && first.is_ok() => first = Err(error),
            _ => {}
        }
    }
    match remove_array_pins(folder, 0) {
        Err(error) if error.kind() != io::ErrorKind::NotFound && first.is_ok() => first = Err(error),
        _ => {}
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound && first.is_ok() => Err(error),
        _ => first,
    }
}

/// Removes the pins of links but for those that are kept; the programs go with them.
fn remove_links(folder: &Path, kept: &[String]) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let stale = name
            .to_str()
            .is_some_and(|n| n.starts_with(LINK) && !kept.iter().any(|k| k == n));
        if stale {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn remove_pin(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the pins of single CPUs' arrays from CPU `from` on.
fn remove_array_pins(folder: &Path, from: u32) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let cpu = name.to_str().and_then(|n| {
            let (map, cpu) = n.rsplit_once('_')?;
            SHOWN.contains(&map).then(|| cpu.parse::<u32>().ok())?
        });
        if cpu.is_some_and(|cpu| cpu >= from) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
