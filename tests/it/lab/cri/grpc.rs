//! One call of gRPC over a unix socket: protobuf messages in, a message or a status out. A connection for each call, as the lab
//! restarts the daemons behind them.

use std::{fmt, path::Path, time::Duration};

use h2::client::SendRequest;
use http::{HeaderMap, Request};
use prost::{Message, bytes::Bytes};
use tokio::{net::UnixStream, runtime, time::timeout};

/// A call that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// gRPC's number.
    pub code: u32,
    pub message: String,
}

/// gRPC's numbers for an answer that does not come, and for a server that is not there.
const DEADLINE_EXCEEDED: u32 = 4;
const UNAVAILABLE: u32 = 14;

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gRPC status {}: {}", self.code, self.message)
    }
}

/// Calls a method, named `package.Service/Method`, and waits for its answer within the deadline.
pub fn call<R: Message + Default>(
    socket: &Path,
    method: &str,
    request: &impl Message,
    deadline: Duration,
) -> Result<R, Status> {
    let event_loop = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let message = request.encode_to_vec();
    let answer = event_loop.block_on(async { timeout(deadline, exchange(socket, method, &message)).await });
    let late = || Status { code: DEADLINE_EXCEEDED, message: format!("no answer within {deadline:?}") };
    let answer = answer.map_err(|_| late())??;
    Ok(R::decode(&*answer).unwrap_or_else(|error| panic!("the answer to {method}: {error}")))
}

async fn exchange(socket: &Path, method: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
    let stream = UnixStream::connect(socket).await.map_err(unavailable)?;
    let (client, connection) = h2::client::handshake(stream).await.map_err(unavailable)?;
    tokio::spawn(connection);
    ask(client, method, message).await.map_err(unavailable)?
}

/// The outer error is the connection's, the inner one the server's.
async fn ask(client: SendRequest<Bytes>, method: &str, message: &[u8]) -> Result<Result<Vec<u8>, Status>, h2::Error> {
    let request = Request::post(format!("http://localhost/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (answer, mut body) = client.ready().await?.send_request(request, false)?;
    body.send_data(frame(message), true)?;

    let (head, mut body) = answer.await?.into_parts();
    let mut framed = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        framed.extend_from_slice(&chunk);
    }
    // An answer without a message has its status in the head.
    let status = match body.trailers().await? {
        Some(trailers) => status(&trailers),
        None => status(&head.headers),
    };
    Ok(status.map(|()| framed.split_off(PREFIX.min(framed.len()))))
}

/// What precedes each message: whether it is compressed, which none of ours is, and its length.
const PREFIX: usize = 5;

fn frame(message: &[u8]) -> Bytes {
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend(message);
    framed.into()
}

fn status(headers: &HeaderMap) -> Result<(), Status> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").and_then(|code| code.parse().ok()) {
        Some(0) => Ok(()),
        Some(code) => Err(Status { code, message: unquote(text("grpc-message").unwrap_or_default()) }),
        None => Err(unavailable("an answer without a status")),
    }
}

/// Undoes the percent-encoding of a status message.
fn unquote(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        let coded = others.get(..2).and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok());
        match coded {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &others[2..];
            }
            _ => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn unavailable(error: impl fmt::Display) -> Status {
    Status { code: UNAVAILABLE, message: error.to_string() }
}
