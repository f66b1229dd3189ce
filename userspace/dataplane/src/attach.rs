//! Puts loaded programs into service: pins, links, replacement of a former run's programs without a gap.

use crate::error::LoadError;
use crate::load::{Mode, Plane, SCHEMA};
use crate::maps::SHOWN;
use crate::sys;
use crate::xdp_mode::{self, XdpModeUsed};
use maps_schema::names::{PINNED_MAPS, PROG_INSIDE, PROG_STEER};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

const LINK_OUTSIDE: &str = "link_outside";
const LINK_INSIDE: &str = "link_inside";

/// What attaching came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachReport {
    /// Mode on the outside interface.
    pub outside: XdpModeUsed,
    /// Mode on the inside interface.
    pub inside: XdpModeUsed,
    /// Programs of a former run were replaced in place.
    pub replaced: bool,
}

impl Plane {
    /// Attaches `steer` and `inside`, and pins maps and links. Links of a former run get the new programs in one
    /// step each, so no packet meets an interface without a program.
    ///
    /// # Errors
    /// [`LoadError`]; a former run's programs are still in service on the interfaces not yet reached.
    pub fn attach(&mut self) -> Result<AttachReport, LoadError> {
        self.pin_maps()?;
        let inside = self.attach_one(PROG_INSIDE, self.options.inside_ifindex, LINK_INSIDE)?;
        let outside = self.attach_one(PROG_STEER, self.options.outside_ifindex, LINK_OUTSIDE)?;
        self.stage = None;
        Ok(AttachReport {
            outside: outside.0,
            inside: inside.0,
            replaced: outside.1 || inside.1,
        })
    }

    /// Whether the programs are attached still, by the pinned links: four system calls.
    ///
    /// # Errors
    /// Which one is not, and how to mend it.
    pub fn check_attached(&self) -> Result<(), String> {
        let wanted = [
            (LINK_OUTSIDE, PROG_STEER, self.options.outside_ifindex),
            (LINK_INSIDE, PROG_INSIDE, self.options.inside_ifindex),
        ];
        for (name, program, ifindex) in wanted {
            let path = self.options.pin_dir.join(name);
            let attached_to = sys::get_pinned(&path).and_then(|link| sys::xdp_link_ifindex(link.as_fd()));
            if attached_to.ok() != Some(ifindex) {
                return Err(format!(
                    "the program {program} is not attached to interface {ifindex} any more (link {}): restart the agent",
                    path.display()
                ));
            }
        }
        Ok(())
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
        let mut interface = [0; libc::IF_NAMESIZE];
        // SAFETY: the buffer has the length that the call asks for.
        if unsafe { libc::if_indextoname(ifindex, interface.as_mut_ptr()) }.is_null() {
            return Err(LoadError::Options(format!(
                "interface {ifindex} does not exist in this network namespace"
            )));
        }
        let path = self.options.pin_dir.join(name);
        if replace(&path, ifindex, program)? {
            let mode = xdp_mode::query(ifindex).map_err(|e| LoadError::kernel("ask for the XDP mode", e))?;
            return Ok((mode, true));
        }
        let flags: &[u32] = match self.options.mode {
            Mode::Driver => &[sys::XDP_DRV],
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
                        tracing::warn!(ifindex, %cause, "driver mode refused, XDP runs in generic mode: slow");
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
            Mode::Driver => Err(LoadError::NoDriverMode { ifindex, cause }),
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
    let attached_to = sys::xdp_link_ifindex(link.as_fd()).unwrap_or(0);
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
    for name in [LINK_OUTSIDE, LINK_INSIDE, SCHEMA].iter().chain(PINNED_MAPS) {
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
