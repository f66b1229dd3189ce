//! What the kernel says of the interfaces and of the programs on them.
//!
//! It answers these questions under its lock of the whole network configuration (RTNL), which anybody who reconfigures a device, in any
//! network namespace, holds for as long as that takes: hundreds of milliseconds while programs are attached to a device, seconds
//! while a driver resets. So they are asked by a thread that nothing waits for, never by the one that keeps the owner words valid.

use crate::attach::LINK;
use crate::load::Plane;
use crate::parts::parts_of;
use crate::sys;
use crate::xdp_features::flags_of;
use maps_schema::names::{PROG_INSIDE, PROG_STEER};
use std::os::fd::AsFd;
use std::path::PathBuf;

/// Asks. Holds nothing of the plane's but what to ask for.
pub struct Watch {
    links: Vec<Link>,
}

/// A program that is to be on an interface.
struct Link {
    program: &'static str,
    /// The kernel's number of it; `None` where it does not say.
    id: Option<u32>,
    ifindex: u32,
    pin: PathBuf,
}

/// The answers.
pub struct Seen {
    /// Which program is not in its place, and how to mend it.
    pub attached: Result<(), String>,
    /// Flags of the ports on each device.
    pub(crate) devices: Vec<(u32, u8)>,
    /// What each device is made of.
    pub(crate) parts: Vec<(u32, Vec<u32>)>,
}

impl Plane {
    /// What there is to ask for, now that the programs are attached.
    pub fn watch(&self) -> Watch {
        let outside = ("outside", PROG_STEER, &self.options.outside);
        let inside = ("inside", PROG_INSIDE, &self.options.inside);
        let mut links = Vec::new();
        for (side, program, devices) in [outside, inside] {
            let fd = self.programs.get(program);
            let id = fd.and_then(|fd| sys::program_id(fd.as_fd()).ok());
            links.extend(devices.iter().map(|ifindex| Link {
                program,
                id,
                ifindex: *ifindex,
                pin: self.options.pin_dir.join(format!("{LINK}{side}_{ifindex}")),
            }));
        }
        Watch { links }
    }
}

impl Watch {
    /// Asks for the programs and these devices: a few system calls for each, which may wait for whoever holds the lock.
    pub fn look(&self, devices: &[u32]) -> Seen {
        Seen {
            attached: self.links.iter().try_for_each(Link::check),
            devices: flags_of(devices),
            parts: parts_of(devices.iter().copied()),
        }
    }
}

impl Link {
    fn check(&self) -> Result<(), String> {
        let Self {
            program,
            ifindex,
            pin,
            ..
        } = self;
        let (attached_to, id) = sys::get_pinned(pin)
            .and_then(|link| sys::xdp_link(link.as_fd()))
            .unwrap_or_default();
        if attached_to != *ifindex {
            return Err(format!(
                "the program {program} is not attached to interface {ifindex} any more (link {}): restart the agent",
                pin.display()
            ));
        }
        match self.id {
            Some(ours) if ours != id => Err(format!(
                "another program ({id}) is on interface {ifindex} in the place of {program} ({ours}): restart the agent"
            )),
            _ => Ok(()),
        }
    }
}
