//! The PROXY header of a connection that a balancer passes on, before anything else is read: no byte behind it is taken from
//! the socket.

use std::{future::poll_fn, pin::Pin};

use tokio::io::{AsyncRead as _, ReadBuf};

use crate::{
    proto::proxy_protocol::{HEADER_BYTES_MAX, HeaderError, HeaderReader, Told},
    shard::TcpStream,
    telemetry::metrics::ProxyFailure,
};

/// Reads the header. Whoever waits has a bound; dropping the future leaves the connection without its header.
pub async fn read_proxy_header(socket: &mut TcpStream) -> Result<Told, ProxyFailure> {
    let mut reader = HeaderReader::default();
    let mut bytes = [0; HEADER_BYTES_MAX];
    loop {
        let wanted = reader.wanted().min(HEADER_BYTES_MAX);
        let mut room = ReadBuf::new(&mut bytes[..wanted]);
        let read = poll_fn(|cx| Pin::new(&mut *socket).poll_read(cx, &mut room)).await;
        if read.is_err() || room.filled().is_empty() {
            return Err(ProxyFailure::Left);
        }
        match reader.handle_input(room.filled()) {
            Ok((_, Some(told))) => return Ok(told),
            Ok((_, None)) => {}
            Err(HeaderError::Malformed) => return Err(ProxyFailure::Malformed),
            Err(HeaderError::TooLong) => return Err(ProxyFailure::TooLong),
            Err(HeaderError::Checksum) => return Err(ProxyFailure::Checksum),
        }
    }
}
