//! Frames of a stream: a length of four octets in network order, then the record.

use std::io;

/// Longest record. A snapshot is cut into smaller ones by its sender.
pub(super) const FRAME_MAX: usize = 16 << 20;

/// Reads one frame; `None` at the end of the stream.
pub(super) async fn read(stream: &mut quinn::RecvStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Ok(()) => {}
        Err(quinn::ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(io::Error::other(error)),
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_MAX {
        return Err(io::Error::other(format!(
            "a frame of {length} octets is longer than {FRAME_MAX}"
        )));
    }
    // Grows with what arrives, so a length alone cannot make us reserve memory.
    let mut record = Vec::with_capacity(length.min(64 << 10));
    while record.len() < length {
        let want = (length - record.len()).min(256 << 10);
        let at = record.len();
        record.resize(at + want, 0);
        stream
            .read_exact(&mut record[at..])
            .await
            .map_err(io::Error::other)?;
    }
    Ok(Some(record))
}

/// Writes one frame.
pub(super) async fn write(stream: &mut quinn::SendStream, record: Vec<u8>) -> io::Result<()> {
    let length = u32::try_from(record.len())
        .ok()
        .filter(|n| *n as usize <= FRAME_MAX);
    let Some(length) = length else {
        return Err(io::Error::other(format!(
            "a record of {} octets is too long",
            record.len()
        )));
    };
    stream
        .write_all(&length.to_be_bytes())
        .await
        .map_err(io::Error::other)?;
    stream.write_chunk(record.into()).await.map_err(io::Error::other)
}
