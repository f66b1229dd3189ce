//! What a program costs by packet, as the kernel counts it in BPF_PROG_TEST_RUN.
//!
//! Every packet is a run of its own with a frame of its own: an inbound one is accepted once, and a second run would find the
//! frame changed. The kernel reads its clock right before and after the program; what that costs is in an empty program's time.

use anyhow::{Context, Result, ensure};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use maps_schema::names::*;
use maps_schema::sad::slot_place;
use maps_schema::verdict::Verdict;
use zerocopy::IntoBytes;

use super::Kernel;
use crate::case::Program;
use crate::world::{SLOT, World};

impl Kernel {
    /// Puts a world in place.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn arrange(&mut self, world: &World) -> Result<()> {
        // The SA's CPU is served where the test run is.
        super::pin_to(slot_place(SLOT, self.cpus).0 as usize)?;
        self.set(world)
    }

    /// Runs every frame once; nanoseconds of each. All must end in `verdict`.
    ///
    /// # Errors
    /// What the kernel refused, and frames with another verdict.
    pub fn time(
        &mut self,
        program: Program,
        ifindex: u32,
        frames: &[Vec<u8>],
        verdict: Verdict,
    ) -> Result<Vec<f64>> {
        let before = self.count(verdict)?;
        let mut times = Vec::with_capacity(frames.len());
        let xdp: &mut Xdp = self
            .ebpf
            .program_mut(name(program))
            .context("program")?
            .try_into()?;
        for frame in frames {
            let context = [0, frame.len() as u32, 0, ifindex, 0, 0];
            let mut options = TestRunOptions::new();
            options.data_in = Some(frame);
            options.ctx_in = Some(context.as_bytes());
            times.push(xdp.test_run(options)?.duration.as_nanos() as f64);
        }
        let ended = self.count(verdict)? - before;
        ensure!(
            ended == frames.len() as u64,
            "{ended} of {} packets ended as {verdict:?}: {:?}",
            frames.len(),
            self.all()?
        );
        Ok(times)
    }

    /// An empty program, run as often, one run at a time.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn time_empty(&mut self, frame: &[u8], runs: usize) -> Result<Vec<f64>> {
        let xdp: &mut Xdp = self.ebpf.program_mut(PROG_PASS).context("program")?.try_into()?;
        (0..runs)
            .map(|_| {
                let mut options = TestRunOptions::new();
                options.data_in = Some(frame);
                Ok(xdp.test_run(options)?.duration.as_nanos() as f64)
            })
            .collect()
    }

    /// One frame, run `repeat` times in one go; nanoseconds a run. It must end, each time, in `verdict` and unchanged: that is
    /// for frames that the program looks into and then refuses.
    ///
    /// # Errors
    /// What the kernel refused, and another verdict.
    pub fn time_repeated(
        &mut self,
        program: Program,
        ifindex: u32,
        frame: &[u8],
        verdict: Verdict,
        repeat: u32,
    ) -> Result<f64> {
        let before = self.count(verdict)?;
        let xdp: &mut Xdp = self
            .ebpf
            .program_mut(name(program))
            .context("program")?
            .try_into()?;
        let context = [0, frame.len() as u32, 0, ifindex, 0, 0];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.ctx_in = Some(context.as_bytes());
        options.repeat = repeat;
        let ns = xdp.test_run(options)?.duration.as_nanos() as f64;
        let ended = self.count(verdict)? - before;
        ensure!(
            ended == u64::from(repeat),
            "{ended} of {repeat} runs ended as {verdict:?}: {:?}",
            self.all()?
        );
        Ok(ns)
    }

    fn count(&self, verdict: Verdict) -> Result<u64> {
        let found = self.all()?;
        Ok(found.iter().find(|(v, _)| *v == verdict).map_or(0, |(_, n)| *n))
    }

    /// Verdicts of the table's connection, with their counts.
    fn all(&self) -> Result<Vec<(Verdict, u64)>> {
        let counts = self.verdicts()?;
        let own = counts.iter().skip(maps_schema::verdict::VERDICT_STRIDE);
        Ok(own
            .enumerate()
            .filter(|(_, n)| **n > 0)
            .filter_map(|(number, n)| Some((Verdict::from_number(number as u32)?, *n)))
            .collect())
    }
}

/// Name of a program in the object.
pub(super) fn name(program: Program) -> &'static str {
    match program {
        Program::Steer => PROG_STEER,
        Program::EspIn => PROG_ESP_IN,
        Program::Inside => PROG_INSIDE,
        Program::EspOut => PROG_ESP_OUT,
        Program::SaCtl => PROG_SA_CTL,
    }
}
