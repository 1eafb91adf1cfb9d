//! Length-delimited messages on one stream: `u32` little-endian length, then the message in postcard.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Largest message in bytes unless a caller allows less: an argument list and environment of the kernel's limits fit.
pub const MESSAGE_MAX: u32 = 4 * 1024 * 1024;

/// Why a message could not be read or written.
#[derive(Debug, Error)]
pub enum MessageError {
    /// The stream ended between messages.
    #[error("the stream ended")]
    End,
    /// The stream failed, or ended inside a message.
    #[error("the stream failed")]
    Io(#[from] std::io::Error),
    /// The announced length is over the limit.
    #[error("a message of {length} bytes is over the limit of {max}")]
    TooLong { length: u64, max: u32 },
    /// The bytes are not a message of the expected type.
    #[error("not a valid message")]
    Malformed(#[source] postcard::Error),
}

/// Reads one message of at most `max` bytes. Cancelling it in the middle loses the stream's framing.
pub async fn read<M, R>(reader: &mut R, max: u32) -> Result<M, MessageError>
where
    M: DeserializeOwned,
    R: AsyncRead + Unpin,
{
    let mut length = [0_u8; 4];
    let first = reader.read(&mut length).await?;
    if first == 0 {
        return Err(MessageError::End);
    }
    reader.read_exact(&mut length[first..]).await?;
    let length = u32::from_le_bytes(length);
    if length > max {
        return Err(MessageError::TooLong { length: u64::from(length), max });
    }
    // Grows with what arrives, not with what was announced.
    let mut bytes = Vec::new();
    let got = reader.take(u64::from(length)).read_to_end(&mut bytes).await?;
    if got != length as usize {
        return Err(MessageError::Io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    postcard::from_bytes(&bytes).map_err(MessageError::Malformed)
}

/// Writes one message and flushes.
pub async fn write<M, W>(writer: &mut W, message: &M) -> Result<(), MessageError>
where
    M: Serialize,
    W: AsyncWrite + Unpin,
{
    let body = postcard::to_stdvec(message).map_err(MessageError::Malformed)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|length| *length <= MESSAGE_MAX)
        .ok_or(MessageError::TooLong { length: body.len() as u64, max: MESSAGE_MAX })?;
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&body);
    writer.write_all(&frame).await?;
    writer.flush().await?;
    Ok(())
}
