//! Frames of `mayfly-protocol` over asynchronous byte streams.

use mayfly_protocol::frame::{self, FrameError};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Reads one message.
pub(super) async fn read<M: DeserializeOwned>(
    mut from: impl AsyncRead + Unpin,
) -> Result<M, FrameError> {
    let mut header = [0; frame::HEADER];
    from.read_exact(&mut header).await?;
    let mut body = vec![0; frame::parse_header(header)?];
    from.read_exact(&mut body).await?;
    frame::decode(&body)
}
