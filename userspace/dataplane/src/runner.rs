//! Runs frames through the programs on the CPU of their SA (ADR 2): one worker thread per CPU, pinned to it.

use crate::error::{LoadError, RunError};
use crate::sys;
use maps_schema::event::{SLOW_FRAME_MAX, SLOW_LONG_MAX};
use maps_schema::names::{PROG_INSIDE, PROG_SA_CTL, PROG_STEER};
use maps_schema::sad::{
    FinalWindow, SA_CTL_MERGED, SA_CTL_NO_FLOOR, SA_CTL_NO_SA, SA_CTL_NOT_OWNER, SA_CTL_WRONG_CPU, slot_place,
};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use zerocopy::IntoBytes;

/// Actions of enum xdp_action.
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// Real-time priority of the workers. Whoever asks one of them for something waits for it, so nobody who asks may be above.
pub const WORKER_PRIORITY: i32 = 11;

/// Gives the calling thread a real-time priority; threads that it starts later have an ordinary one.
///
/// # Errors
/// It is not permitted.
pub fn real_time(priority: i32) -> io::Result<()> {
    sys::real_time(priority)
}

/// Where a frame enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// As if the outside interface had received it.
    Steer,
    /// As if the inside interface had received it.
    Inside,
}

/// What a program made of a frame that is longer than a page: there the kernel does what it says for no test run, so the caller has to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ran {
    /// It was dropped, or is in a ring.
    Gone,
    /// It is for the host's stack.
    Passed(Vec<u8>),
    /// It leaves on the port whose MAC address it bears as its source; or, unchanged, it is to go to another CPU.
    Sent(Vec<u8>),
}

/// Handle to the workers; clones share them. Calls block until the worker is done (tens of microseconds).
#[derive(Clone)]
pub struct Runner {
    workers: Arc<Vec<Sender<Job>>>,
}

enum Job {
    Frame {
        entry: Entry,
        ifindex: u32,
        frame: Vec<u8>,
        done: Sender<io::Result<()>>,
    },
    Long {
        entry: Entry,
        ifindex: u32,
        frame: Vec<u8>,
        done: Sender<io::Result<(u32, Vec<u8>)>>,
    },
    Control {
        data: Vec<u8>,
        done: Sender<io::Result<(u32, Vec<u8>)>>,
    },
    Nothing {
        done: Sender<()>,
    },
}

struct Programs {
    steer: OwnedFd,
    inside: OwnedFd,
    control: OwnedFd,
}

impl Programs {
    fn at(&self, entry: Entry) -> BorrowedFd<'_> {
        match entry {
            Entry::Steer => self.steer.as_fd(),
            Entry::Inside => self.inside.as_fd(),
        }
    }
}

impl Runner {
    pub(crate) fn start(cpus: u32, programs: &HashMap<String, OwnedFd>) -> Result<Self, LoadError> {
        let clone = |name: &str| {
            let missing = || LoadError::Missing {
                what: "program",
                name: name.to_owned(),
            };
            let fd = programs
                .get(name)
                .ok_or_else(missing)?
                .as_fd()
                .try_clone_to_owned();
            fd.map_err(|e| LoadError::kernel("copy a program's descriptor", e))
        };
        let mut workers = Vec::new();
        for cpu in 0..cpus {
            let programs = Programs {
                steer: clone(PROG_STEER)?,
                inside: clone(PROG_INSIDE)?,
                control: clone(PROG_SA_CTL)?,
            };
            let (jobs, queue) = channel();
            let (ready, started) = channel();
            std::thread::Builder::new()
                .name(format!("esp-run-{cpu}"))
                .spawn(move || {
                    let pinned = pin_to(cpu);
                    // Where that is not permitted, the loop is not either.
                    let _ = real_time(WORKER_PRIORITY);
                    let go_on = pinned.is_ok();
                    if ready.send(pinned).is_ok() && go_on {
                        work(&programs, &queue);
                    }
                })
                .map_err(|e| LoadError::kernel("start a worker thread", e))?;
            let pinned = started
                .recv()
                .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::BrokenPipe)));
            pinned.map_err(|e| LoadError::kernel(format!("pin a thread to CPU {cpu} (is it online?)"), e))?;
            workers.push(jobs);
        }
        Ok(Self {
            workers: Arc::new(workers),
        })
    }

    /// CPUs that serve SAs.
    pub fn cpus(&self) -> u32 {
        self.workers.len() as u32
    }

    /// Runs one Ethernet frame as if `ifindex` had received it on `cpu`. It has all the effects of one from the wire.
    ///
    /// # Errors
    /// [`RunError`]; the frame had no effect then.
    pub fn run_frame(&self, entry: Entry, cpu: u32, ifindex: u32, frame: &[u8]) -> Result<(), RunError> {
        if frame.len() > SLOW_FRAME_MAX {
            return Err(RunError::TooLong {
                octets: frame.len(),
                max: SLOW_FRAME_MAX,
            });
        }
        let (done, result) = channel();
        self.send(
            cpu,
            Job::Frame {
                entry,
                ifindex,
                frame: frame.to_vec(),
                done,
            },
        )?;
        Ok(result.recv().map_err(|_| RunError::WorkerGone(cpu))??)
    }

    /// Runs one Ethernet frame that may be longer than a page as if `ifindex` had received it on `cpu`. Windows, counters and rings are
    /// changed as by one from the wire; where it goes, the caller sees to.
    ///
    /// # Errors
    /// [`RunError`]; the frame had no effect then.
    pub fn run_long(&self, entry: Entry, cpu: u32, ifindex: u32, frame: &[u8]) -> Result<Ran, RunError> {
        if frame.len() > SLOW_LONG_MAX {
            return Err(RunError::TooLong {
                octets: frame.len(),
                max: SLOW_LONG_MAX,
            });
        }
        let (done, result) = channel();
        let frame = frame.to_vec();
        self.send(
            cpu,
            Job::Long {
                entry,
                ifindex,
                frame,
                done,
            },
        )?;
        let (action, out) = result.recv().map_err(|_| RunError::WorkerGone(cpu))??;
        Ok(match action {
            XDP_PASS => Ran::Passed(out),
            XDP_TX | XDP_REDIRECT => Ran::Sent(out),
            _ => Ran::Gone,
        })
    }

    /// Runs the control program `sa_ctl` on `cpu` over `data`; returns its return value and the data as it left it.
    ///
    /// # Errors
    /// [`RunError`] where the kernel refuses; what the program answers is in the result.
    pub fn control(&self, cpu: u32, data: &[u8]) -> Result<(u32, Vec<u8>), RunError> {
        let (done, result) = channel();
        self.send(
            cpu,
            Job::Control {
                data: data.to_vec(),
                done,
            },
        )?;
        Ok(result.recv().map_err(|_| RunError::WorkerGone(cpu))??)
    }

    /// Merges an old owner's final window on the SA's CPU: what it had not seen up to its ceiling becomes acceptable.
    ///
    /// # Errors
    /// [`RunError::Refused`] with what the program found wrong; the window is as before then.
    pub fn merge_window(&self, window: &FinalWindow) -> Result<(), RunError> {
        let (cpu, _) = slot_place(window.slot, self.cpus());
        match self.control(cpu, window.as_bytes())?.0 {
            SA_CTL_MERGED => Ok(()),
            SA_CTL_NO_SA => Err(RunError::Refused("no such SA in the slot")),
            SA_CTL_NOT_OWNER => Err(RunError::Refused(
                "this member is not the valid owner of the segment",
            )),
            SA_CTL_NO_FLOOR => Err(RunError::Refused(
                "the window has no floor: nothing to merge, or merged before",
            )),
            SA_CTL_WRONG_CPU => Err(RunError::Refused(
                "the SA belongs to another CPU: do the maps have another count?",
            )),
            _ => Err(RunError::Refused(
                "the input was not understood: programs and agent are of different versions",
            )),
        }
    }

    /// Returns when no program that began before the call is still running on any CPU.
    ///
    /// Programs run with bottom halves off, so a thread that gets onto a CPU comes after every program that had
    /// begun there. Frames that still wait in a cpumap queue are not waited for: `esp_in` and `esp_out` look at the
    /// owner word again after the hop.
    ///
    /// # Errors
    /// [`RunError::WorkerGone`].
    pub fn drain_cpus(&self) -> Result<(), RunError> {
        let mut waiting = Vec::new();
        for cpu in 0..self.workers.len() as u32 {
            let (done, result) = channel();
            self.send(cpu, Job::Nothing { done })?;
            waiting.push((cpu, result));
        }
        for (cpu, result) in waiting {
            result.recv().map_err(|_| RunError::WorkerGone(cpu))?;
        }
        Ok(())
    }

    fn send(&self, cpu: u32, job: Job) -> Result<(), RunError> {
        let worker = self.workers.get(cpu as usize).ok_or(RunError::NoSuchCpu(cpu))?;
        worker.send(job).map_err(|_| RunError::WorkerGone(cpu))
    }
}

fn pin_to(cpu: u32) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu as usize)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    Ok(())
}

/// Ends when the last [`Runner`] is dropped. A caller that no longer waits for its answer is no error.
fn work(programs: &Programs, queue: &Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        match job {
            Job::Frame {
                entry,
                ifindex,
                frame,
                done,
            } => {
                let _ = done.send(sys::run_live_frame(programs.at(entry), ifindex, &frame));
            }
            Job::Long {
                entry,
                ifindex,
                frame,
                done,
            } => {
                let _ = done.send(sys::run_frame_once(programs.at(entry), ifindex, &frame));
            }
            Job::Control { data, done } => {
                let _ = done.send(sys::run_once(programs.control.as_fd(), &data));
            }
            Job::Nothing { done } => {
                let _ = done.send(());
            }
        }
    }
}
