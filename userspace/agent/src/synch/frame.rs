//! Frames of a stream: kind (one octet), length (three octets, network order), then the octets of the frame.
//!
//! The first frame of a stream is a greeting. Kinds from 0x80 on may be skipped by a receiver that does not know them;
//! any other unknown kind ends the connection. So a later version can say more to an older one without losing it.

use std::io;
use std::time::Duration;

use super::refusal::Refusal;

/// Longest record. A snapshot is cut into smaller ones by its sender.
pub(super) const FRAME_MAX: usize = (1 << 24) - 1;
/// Longest greeting, and longest frame that is skipped.
const SHORT_MAX: usize = 1024;
/// A frame that began is complete after this time, or the connection ends.
const FRAME_TIME: Duration = Duration::from_secs(10);
/// Longest name of a release.
const RELEASE_MAX: usize = 64;

/// Kinds.
const RECORD: u8 = 0;
const GREETING: u8 = 1;
const RENEW: u8 = 2;
/// From here on: kinds that may be skipped.
const OPTIONAL: u8 = 0x80;

/// What a member says first on every connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    /// Lowest and highest version of records that the sender can read.
    pub records: (u8, u8),
    /// The sender's release, for people.
    pub release: String,
}

impl Greeting {
    /// `lowest | highest | length of the release | release`. What follows is for later versions.
    fn encode(&self) -> Vec<u8> {
        let release = self.release.as_bytes();
        let release = &release[..release.len().min(RELEASE_MAX)];
        let mut octets = vec![self.records.0, self.records.1, release.len() as u8];
        octets.extend_from_slice(release);
        octets
    }

    fn decode(octets: &[u8]) -> Option<Self> {
        let [lowest, highest, length, rest @ ..] = octets else {
            return None;
        };
        let release = rest.get(..usize::from(*length))?;
        if lowest > highest || release.len() > RELEASE_MAX {
            return None;
        }
        // It goes into logs: nothing but what can be seen.
        let release = std::str::from_utf8(release)
            .ok()
            .filter(|text| text.chars().all(|c| c.is_ascii_graphic()))?;
        Some(Self {
            records: (*lowest, *highest),
            release: release.to_owned(),
        })
    }
}

/// A frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A record of the cluster.
    Record(Vec<u8>),
    /// First on every stream.
    Greeting(Greeting),
    /// The sender has a new certificate: the member that dials is to dial again, and then to leave this connection.
    Renew,
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("{}", .0.text())]
    Refused(Refusal),
    #[error("{0}")]
    Lost(String),
}

async fn exact(stream: &mut quinn::RecvStream, into: &mut [u8]) -> Result<(), FrameError> {
    stream.read_exact(into).await.map_err(|error| match error {
        quinn::ReadExactError::FinishedEarly(_) => FrameError::Refused(Refusal::FrameTruncated),
        quinn::ReadExactError::ReadError(error) => FrameError::Lost(error.to_string()),
    })
}

/// Reads the next frame; `None` at the end of the stream. Waits for its beginning without limit, for its end not.
pub(super) async fn read(stream: &mut quinn::RecvStream) -> Result<Option<Frame>, FrameError> {
    loop {
        let mut head = [0; 4];
        match stream.read(&mut head[..1]).await {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            Err(error) => return Err(FrameError::Lost(error.to_string())),
        }
        let frame = tokio::time::timeout(FRAME_TIME, rest(stream, head))
            .await
            .map_err(|_| FrameError::Refused(Refusal::FrameStalled))??;
        if let Some(frame) = frame {
            return Ok(Some(frame));
        }
    }
}

/// What follows the first octet; `None` for a frame that is skipped.
async fn rest(stream: &mut quinn::RecvStream, mut head: [u8; 4]) -> Result<Option<Frame>, FrameError> {
    exact(stream, &mut head[1..]).await?;
    let kind = head[0];
    let length = u32::from_be_bytes([0, head[1], head[2], head[3]]) as usize;
    let longest = match kind {
        RECORD => FRAME_MAX,
        GREETING | RENEW | OPTIONAL.. => SHORT_MAX,
        _ => return Err(FrameError::Refused(Refusal::FrameUnknown)),
    };
    if length > longest {
        return Err(FrameError::Refused(Refusal::FrameTooLong));
    }
    // Grows with what arrives, so a length alone cannot make us reserve memory.
    let mut octets = Vec::with_capacity(length.min(64 << 10));
    while octets.len() < length {
        let want = (length - octets.len()).min(256 << 10);
        let at = octets.len();
        octets.resize(at + want, 0);
        exact(stream, &mut octets[at..]).await?;
    }
    match kind {
        RECORD => Ok(Some(Frame::Record(octets))),
        GREETING => Greeting::decode(&octets)
            .map(|greeting| Some(Frame::Greeting(greeting)))
            .ok_or(FrameError::Refused(Refusal::GreetingMalformed)),
        RENEW => Ok(Some(Frame::Renew)),
        _ => Ok(None),
    }
}

/// Writes one frame. Returns the octets written.
pub(super) async fn write(stream: &mut quinn::SendStream, frame: Frame) -> io::Result<usize> {
    let (kind, octets) = match frame {
        Frame::Record(octets) => (RECORD, octets),
        Frame::Greeting(greeting) => (GREETING, greeting.encode()),
        Frame::Renew => (RENEW, Vec::new()),
    };
    let length = octets.len();
    if length > FRAME_MAX {
        return Err(io::Error::other(format!(
            "a record of {length} octets is too long"
        )));
    }
    let mut head = (length as u32).to_be_bytes();
    head[0] = kind;
    stream.write_all(&head).await.map_err(io::Error::other)?;
    if length > 0 {
        stream
            .write_chunk(octets.into())
            .await
            .map_err(io::Error::other)?;
    }
    Ok(length + head.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read_back_and_what_a_later_version_adds_is_skipped() {
        let greeting = Greeting {
            records: (1, 3),
            release: "0.1.0".to_owned(),
        };
        let mut octets = greeting.encode();
        assert_eq!(Greeting::decode(&octets), Some(greeting.clone()));
        octets.extend_from_slice(b"something new");
        assert_eq!(Greeting::decode(&octets), Some(greeting));
    }

    #[test]
    fn greetings_that_make_no_sense_are_refused() {
        for (octets, why) in [
            (&[][..], "empty"),
            (&[1, 1], "no release"),
            (&[1, 1, 2, b'x'], "release cut off"),
            (&[3, 1, 1, b'x'], "lowest above highest"),
            (&[1, 1, 1, 0x1b], "an escape character for the log"),
            (&[1, 1, 1, 0xff], "no UTF-8"),
        ] {
            assert_eq!(Greeting::decode(octets), None, "{why}");
        }
    }
}
