//! The server loop: connections in, requests dispatched, responses out. It knows no service by name.
//!
//! A request lives as long as its connection and its own deadline: when either ends, only the *waiting* for the
//! answer is dropped. What the request set in motion belongs to a container's actor and finishes there
//! (invariant 4 of docs/architecture.md).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use ttrpc::r#async::{Service, TtrpcContext};
use ttrpc::proto::{Codec, GenMessage, GenMessageError, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_REQUEST, MessageHeader};
use ttrpc::{Code, Error, Request, Response, get_status};

/// Services by their full name, as the generated `create_*` functions return them.
pub type Services = HashMap<String, Service>;

/// Accepts connections until dropped. An accept that fails (out of descriptors) is logged and tried again after a
/// moment, since the listener is the only way in.
pub async fn serve(listener: UnixListener, services: Services) {
    let services = Arc::new(services);
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, services.clone()));
            }
            Err(error) => {
                log::warn!(error = error.to_string().as_str(); "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Reads requests until the peer is gone; then drops those that still wait for their answers.
async fn connection(stream: UnixStream, services: Arc<Services>) {
    let (mut reader, writer) = stream.into_split();
    let writer = Arc::new(Mutex::new(writer));
    let mut requests = JoinSet::new();
    loop {
        let frame = match GenMessage::read_from(&mut reader).await {
            Ok(frame) => frame,
            Err(GenMessageError::ReturnError(header, error)) => {
                respond(&writer, header.stream_id, error.into()).await;
                continue;
            }
            Err(GenMessageError::InternalError(_)) => return,
        };
        let (services, writer) = (services.clone(), writer.clone());
        requests.spawn(async move {
            let id = frame.header.stream_id;
            if let Some(response) = answer(frame, &services).await {
                respond(&writer, id, response).await;
            }
        });
        while requests.try_join_next().is_some() {}
    }
}

/// The response to one frame; `None` where the protocol has no answer (a stray response or stream data).
async fn answer(frame: GenMessage, services: &Services) -> Option<Response> {
    if frame.header.type_ != MESSAGE_TYPE_REQUEST {
        return None;
    }
    if frame.header.stream_id.is_multiple_of(2) {
        return Some(status(Code::INVALID_ARGUMENT, "a request's stream id must be odd"));
    }
    let request = match Request::decode(&frame.payload) {
        Ok(request) => request,
        Err(error) => {
            return Some(status(Code::INVALID_ARGUMENT, format!("malformed request: {error}")));
        }
    };
    let method = services.get(&request.service).and_then(|service| service.methods.get(&request.method));
    let Some(method) = method else {
        let what = format!("/{}/{} is not implemented", request.service, request.method);
        return Some(status(Code::UNIMPLEMENTED, what));
    };
    let context = TtrpcContext { mh: frame.header, timeout_nano: request.timeout_nano, ..TtrpcContext::default() };
    let deadline = u64::try_from(request.timeout_nano).ok().filter(|nanos| *nanos > 0);
    let call = method.handler(context, request);
    let result = match deadline {
        None => call.await,
        Some(nanos) => match tokio::time::timeout(Duration::from_nanos(nanos), call).await {
            Ok(result) => result,
            Err(_) => Err(Error::RpcStatus(get_status(Code::DEADLINE_EXCEEDED, "the caller's deadline passed"))),
        },
    };
    Some(result.unwrap_or_else(Response::from))
}

fn status(code: Code, message: impl ToString) -> Response {
    Error::RpcStatus(get_status(code, message)).into()
}

/// Writes one response frame. A peer that is gone is no error: its answer has no reader.
async fn respond(writer: &Mutex<OwnedWriteHalf>, stream_id: u32, response: Response) {
    let mut payload = match response.encode() {
        Ok(payload) => payload,
        Err(error) => {
            log::error!(error = error.to_string().as_str(); "cannot encode a response");
            return;
        }
    };
    if payload.len() > MESSAGE_LENGTH_MAX {
        let refusal = status(
            Code::RESOURCE_EXHAUSTED,
            format!("the answer has {} bytes, more than ttrpc can carry", payload.len()),
        );
        payload = refusal.encode().unwrap_or_default();
    }
    let frame = GenMessage { header: MessageHeader::new_response(stream_id, payload.len() as u32), payload };
    let _ = frame.write_to(&mut *writer.lock().await).await;
}

#[cfg(test)]
mod tests;
