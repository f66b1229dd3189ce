//! A case: what goes in, what must come out.

use maps_schema::sad::{InboundSaRuntime, OutboundSaRuntime};
use maps_schema::verdict::Verdict;

use crate::world::{INSIDE_IFINDEX, OUTSIDE_IFINDEX, World};

/// Program that the frame meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Outside interface.
    Steer,
    /// Outside, in the cpumap.
    EspIn,
    /// Inside interface.
    Inside,
    /// Inside, in the cpumap.
    EspOut,
    /// Final window.
    SaCtl,
}

/// What the kernel is told to do with the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Dropped.
    Drop,
    /// To the stack.
    Pass,
    /// Back out.
    Transmit,
    /// Redirected, to an interface or a CPU.
    Redirect,
    /// Return value of `sa_ctl`.
    Value(u32),
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Verdict that was counted, with its connection.
    pub verdict: Option<(u16, Verdict)>,
    /// Action.
    pub action: Action,
    /// Interface or CPU of a redirect; unknown where the kernel ran the case.
    pub target: Option<u32>,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// Octets that were cut off at its end; unknown where the kernel ran the case.
    pub cut_behind: Option<usize>,
    /// The window afterwards.
    pub window: InboundSaRuntime,
    /// The counters afterwards.
    pub counters: OutboundSaRuntime,
    /// Windows and counters of the SAs in [`crate::world::OWN_SLOTS`].
    pub own: [(InboundSaRuntime, OutboundSaRuntime); 2],
    /// Kinds and numbers of the events.
    pub events: Vec<(u32, u64)>,
    /// Kinds of frames for the slow path, with their octets.
    pub slow: Vec<(u32, Vec<u8>)>,
}

/// A check of what was seen that goes beyond verdict and action; the error says what is wrong.
pub type Check = Box<dyn Fn(&Observed) -> Result<(), String> + Send + Sync>;

/// A row of the table.
pub struct Case {
    /// What it claims.
    pub name: String,
    /// Program.
    pub program: Program,
    /// State in.
    pub world: World,
    /// Packet in.
    pub frame: Vec<u8>,
    /// Interface on which it arrives.
    pub ifindex: u32,
    /// CPU on which it arrives.
    pub cpu: u32,
    /// Octets of it in the first buffer, where that is not as many as there is room for. Kernels before 6.18 cannot run such a
    /// case.
    pub first_buffer: Option<usize>,
    /// Verdict; none for `sa_ctl`.
    pub verdict: Option<Verdict>,
    /// Connection that the verdict is counted for.
    pub connection: u16,
    /// Action.
    pub action: Action,
    /// Interface of a redirect, where it matters.
    pub target: Option<u32>,
    /// Packet out: `None` where the frame must not change.
    pub out: Option<Vec<u8>>,
    /// Whether the frame afterwards is compared at all (a check does it otherwise).
    pub compare_frame: bool,
    /// Events.
    pub events: Vec<u32>,
    /// Frames for the slow path: kinds; each must be the frame as it came (or `compare_slow` is off).
    pub slow: Vec<u32>,
    /// Whether frames for the slow path are compared.
    pub compare_slow: bool,
    /// Further checks.
    pub checks: Vec<Check>,
}

impl Case {
    /// A case whose frame stays as it is and that has no further effects.
    pub fn new(name: impl Into<String>, program: Program, world: World, frame: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            program,
            world,
            frame,
            ifindex: match program {
                Program::Steer | Program::EspIn => OUTSIDE_IFINDEX,
                _ => INSIDE_IFINDEX,
            },
            cpu: 0,
            first_buffer: None,
            verdict: None,
            connection: 0,
            action: Action::Drop,
            target: None,
            out: None,
            compare_frame: true,
            events: Vec::new(),
            slow: Vec::new(),
            compare_slow: true,
            checks: Vec::new(),
        }
    }

    /// The frame arrives on this interface.
    pub fn on(mut self, ifindex: u32) -> Self {
        self.ifindex = ifindex;
        self
    }

    /// The frame arrives on this CPU.
    pub fn on_cpu(mut self, cpu: u32) -> Self {
        self.cpu = cpu;
        self
    }

    /// The redirect goes to this interface.
    pub fn to(mut self, ifindex: u32) -> Self {
        self.target = Some(ifindex);
        self
    }

    /// The frame's first buffer has so many octets only.
    pub fn split_at(mut self, first: usize) -> Self {
        self.first_buffer = Some(first);
        self
    }

    /// Expected verdict and action.
    pub fn ends(mut self, verdict: Verdict, action: Action) -> Self {
        self.verdict = Some(verdict);
        self.action = action;
        self
    }

    /// The verdict is counted for this connection.
    pub fn of(mut self, connection: u16) -> Self {
        self.connection = connection;
        self
    }

    /// The frame afterwards.
    pub fn out(mut self, frame: Vec<u8>) -> Self {
        self.out = Some(frame);
        self
    }

    /// The frame afterwards is left to a check.
    pub fn any_frame(mut self) -> Self {
        self.compare_frame = false;
        self
    }

    /// Events, in order.
    pub fn events(mut self, kinds: &[u32]) -> Self {
        self.events = kinds.to_vec();
        self
    }

    /// The frame, as it came, is in the slow path's ring.
    pub fn slow(mut self, kind: u32) -> Self {
        self.slow = vec![kind];
        self
    }

    /// A frame that the program changed is in the slow path's ring; what it is, a check says.
    pub fn slow_changed(mut self, kind: u32) -> Self {
        self.slow = vec![kind];
        self.compare_slow = false;
        self
    }

    /// A further check.
    pub fn check(mut self, check: impl Fn(&Observed) -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.checks.push(Box::new(check));
        self
    }

    /// What is wrong with what was seen.
    pub fn problems(&self, seen: &Observed) -> Vec<String> {
        let mut problems = Vec::new();
        let wanted = self.verdict.map(|v| (self.connection, v));
        if seen.verdict != wanted {
            problems.push(format!("verdict {:?}, expected {wanted:?}", seen.verdict));
        }
        if seen.action != self.action {
            problems.push(format!("action {:?}, expected {:?}", seen.action, self.action));
        }
        if let (Some(wanted), Some(target)) = (self.target, seen.target)
            && wanted != target
        {
            problems.push(format!("redirected to {target}, expected {wanted}"));
        }
        if self.compare_frame {
            let wanted = self.out.as_ref().unwrap_or(&self.frame);
            if &seen.frame != wanted {
                problems.push(format!("frame\n  {:02x?}\nexpected\n  {wanted:02x?}", seen.frame));
            }
        }
        let kinds: Vec<u32> = seen.events.iter().map(|e| e.0).collect();
        if kinds != self.events {
            problems.push(format!(
                "events {:?}, expected kinds {:?}",
                seen.events, self.events
            ));
        }
        let slow: Vec<u32> = seen.slow.iter().map(|s| s.0).collect();
        if slow != self.slow {
            problems.push(format!("slow path frames {slow:?}, expected {:?}", self.slow));
        }
        for (_, frame) in &seen.slow {
            if self.compare_slow && frame != &self.frame {
                problems.push("the slow path's frame is not the frame as it came".into());
            }
        }
        for check in &self.checks {
            if let Err(problem) = check(seen) {
                problems.push(problem);
            }
        }
        problems
    }
}

/// Runs a table and panics with every deviation.
pub fn run_table(cases: &[Case], mut run: impl FnMut(&Case) -> Observed) {
    let mut failed = Vec::new();
    for case in cases {
        failed.extend(deviations(case, &run(case)));
    }
    assert!(
        failed.is_empty(),
        "{} of {} cases deviate\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
}

/// What is wrong with what was seen, under the name of the case; nothing where all is as expected.
pub fn deviations(case: &Case, seen: &Observed) -> Option<String> {
    let problems = case.problems(seen);
    let text = || {
        format!(
            "{} ({:?}):\n    {}",
            case.name,
            case.program,
            problems.join("\n    ")
        )
    };
    (!problems.is_empty()).then(text)
}
