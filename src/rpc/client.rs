//! One unary call at a time to a ttrpc server: all that the publication of events needs.

use std::path::Path;
use std::time::Duration;

use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::proto::{Codec, GenMessage, MESSAGE_TYPE_RESPONSE, MessageHeader};
use ttrpc::{Code, Request, Response};

/// Why a call had no result. Its connection is of no further use, except after [`CallError::Refused`].
#[derive(Debug, Error)]
pub enum CallError {
    /// Nobody listens at the address, or the connection broke.
    #[error("no connection: {0}")]
    Connection(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The peer answered with an error status.
    #[error("refused with code {code}: {message}")]
    Refused {
        /// The gRPC status code's number.
        code: i32,
        /// The peer's own words.
        message: String,
    },
}

/// A connection to a ttrpc server.
pub struct Client {
    stream: UnixStream,
    next_stream_id: u32,
}

impl Client {
    /// Connects to the socket at `address`.
    pub async fn connect(address: &Path) -> Result<Self, CallError> {
        let stream = UnixStream::connect(address).await.map_err(|error| CallError::Connection(error.to_string()))?;
        Ok(Self { stream, next_stream_id: 1 })
    }

    /// Calls `service`/`method` and returns the response's payload. Not cancel-safe: a call given up half-way leaves
    /// its connection unusable, so drop the client with it.
    pub async fn call(
        &mut self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        deadline: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: i64::try_from(deadline.as_nanos()).unwrap_or(i64::MAX),
            ..Request::default()
        };
        let stream_id = self.next_stream_id;
        self.next_stream_id = self.next_stream_id.wrapping_add(2);
        let response = timeout(deadline, self.exchange(stream_id, &request)).await;
        let response = response.map_err(|_| CallError::Timeout(deadline))??;
        let status = response.status();
        if status.code() != Code::OK {
            return Err(CallError::Refused { code: status.code() as i32, message: status.message().to_owned() });
        }
        Ok(response.payload)
    }

    async fn exchange(&mut self, stream_id: u32, request: &Request) -> Result<Response, CallError> {
        let broken = |what: String| CallError::Connection(what);
        let payload = request.encode().map_err(|error| broken(error.to_string()))?;
        let header = MessageHeader::new_request(stream_id, payload.len() as u32);
        let frame = GenMessage { header, payload };
        frame.write_to(&mut self.stream).await.map_err(|error| broken(error.to_string()))?;
        loop {
            let frame = GenMessage::read_from(&mut self.stream).await.map_err(|error| broken(format!("{error:?}")))?;
            if frame.header.type_ == MESSAGE_TYPE_RESPONSE && frame.header.stream_id == stream_id {
                return Response::decode(&frame.payload).map_err(|error| broken(error.to_string()));
            }
        }
    }
}
