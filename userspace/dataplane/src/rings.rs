//! Readers of the ring buffers. Each shows its descriptor, so that an event loop can wait for it, and drains all that
//! is there.

use crate::load::Plane;
use aya::maps::{MapData, RingBuf};
use maps_schema::event::{Event, SlowFrame, SlowHead};
use std::os::fd::{AsRawFd, RawFd};
use zerocopy::FromBytes;

/// Reader of rare events.
pub struct EventReader {
    ring: RingBuf<MapData>,
}

/// Reader of frames for the slow path.
pub struct SlowReader {
    ring: RingBuf<MapData>,
}

/// Reader of the programs' log lines, which go to the `log` crate.
pub struct LogReader {
    logger: aya_log::EbpfLogger<&'static dyn log::Log>,
}

impl Plane {
    /// The reader of events, once.
    pub fn take_events(&mut self) -> Option<EventReader> {
        self.rings.events.take().map(|ring| EventReader { ring })
    }

    /// The reader of slow frames, once.
    pub fn take_slow(&mut self) -> Option<SlowReader> {
        self.rings.slow.take().map(|ring| SlowReader { ring })
    }

    /// The reader of log lines, once; `None` too where the programs do not log.
    pub fn take_log(&mut self) -> Option<LogReader> {
        self.rings.log.take().map(|logger| LogReader { logger })
    }
}

impl EventReader {
    /// Hands over all events that are there; returns their number. Records of another size are skipped.
    pub fn drain(&mut self, mut each: impl FnMut(Event)) -> usize {
        let mut count = 0;
        while let Some(item) = self.ring.next() {
            if let Ok((event, _)) = Event::read_from_prefix(&item) {
                each(event);
                count += 1;
            }
        }
        count
    }
}

impl SlowReader {
    /// Hands over all frames that are there, with what is said of them; returns their number.
    pub fn drain(&mut self, mut each: impl FnMut(&SlowHead, &[u8])) -> usize {
        let mut count = 0;
        let mut copy = Vec::with_capacity(size_of::<SlowFrame>());
        while let Some(item) = self.ring.next() {
            copy.clear();
            copy.extend_from_slice(&item);
            drop(item);
            let Ok((head, rest)) = SlowHead::read_from_prefix(&copy) else {
                continue;
            };
            if let Some(frame) = rest.get(..head.length as usize) {
                each(&head, frame);
                count += 1;
            }
        }
        count
    }
}

impl LogReader {
    /// Passes all lines that are there on to the `log` crate.
    pub fn drain(&mut self) {
        self.logger.flush();
    }
}

impl AsRawFd for EventReader {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl AsRawFd for SlowReader {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl AsRawFd for LogReader {
    fn as_raw_fd(&self) -> RawFd {
        self.logger.as_raw_fd()
    }
}
