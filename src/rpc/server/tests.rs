//! What comes over a connection may be anything: the server answers what can be answered and outlives the rest.

use async_trait::async_trait;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::r#async::MethodHandler;
use ttrpc::proto::MESSAGE_TYPE_RESPONSE;

use super::*;

/// Answers with what it was sent.
struct Echo;

#[async_trait]
impl MethodHandler for Echo {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        Ok(Response { payload: request.payload, ..Response::default() })
    }
}

fn services() -> Arc<Services> {
    let echo: Box<dyn MethodHandler + Send + Sync> = Box::new(Echo);
    let service = Service { methods: HashMap::from([("Echo".to_owned(), echo)]), streams: HashMap::new() };
    Arc::new(HashMap::from([("test.Service".to_owned(), service)]))
}

fn frame(stream_id: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    [&length.to_be_bytes()[..], &stream_id.to_be_bytes(), &[kind, 0], payload].concat()
}

fn request(stream_id: u32, service: &str, method: &str, payload: &[u8]) -> Vec<u8> {
    let request = Request {
        service: service.to_owned(),
        method: method.to_owned(),
        payload: payload.to_owned(),
        ..Request::default()
    };
    frame(stream_id, MESSAGE_TYPE_REQUEST, &request.encode().unwrap())
}

/// Sends all of it and hangs up once these streams are answered; returns the answers by their stream ids. Fails if the
/// server does not hang up as well.
fn answers(sent: &[u8], awaited: &[u32]) -> HashMap<u32, Response> {
    let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    event_loop.block_on(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, mut writer) = ours.into_split();
        let exchange = async {
            let mut answers = HashMap::new();
            let (tell, told) = tokio::sync::oneshot::channel();
            let mut tell = Some(tell);
            let read = async {
                while let Ok(frame) = GenMessage::read_from(&mut reader).await {
                    assert_eq!(frame.header.type_, MESSAGE_TYPE_RESPONSE);
                    let response = Response::decode(&frame.payload).unwrap();
                    answers.insert(frame.header.stream_id, response);
                    if awaited.iter().all(|stream| answers.contains_key(stream)) {
                        tell.take();
                    }
                }
                tell.take();
            };
            let write = async {
                let _ = writer.write_all(sent).await;
                if !awaited.is_empty() {
                    let _: Result<(), _> = told.await;
                }
                drop(writer);
            };
            tokio::join!(read, write, connection(theirs, services()));
            answers
        };
        tokio::time::timeout(Duration::from_secs(10), exchange).await.expect("the connection ends")
    })
}

#[test]
fn what_is_not_served_is_unimplemented() {
    for (service, method) in [("test.Service", "Other"), ("other.Service", "Echo")] {
        let answers = answers(&request(1, service, method, b""), &[1]);
        assert_eq!(answers[&1].status().code(), Code::UNIMPLEMENTED);
    }
}

#[test]
fn a_frame_that_is_too_long_is_refused_and_the_next_one_answered() {
    let long = vec![0; MESSAGE_LENGTH_MAX + 1];
    let sent = [frame(1, MESSAGE_TYPE_REQUEST, &long), request(3, "test.Service", "Echo", b"x")];
    let answers = answers(&sent.concat(), &[1, 3]);
    assert_eq!(answers[&1].status().code(), Code::INVALID_ARGUMENT);
    assert_eq!(answers[&3].payload, b"x");
}

#[test]
fn an_answer_that_is_too_long_is_an_error_to_the_caller() {
    // As it comes back it is as long as it was; around it the answer has a few bytes more than fit.
    let payload = vec![0; MESSAGE_LENGTH_MAX - 2];
    let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    event_loop.block_on(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (_, writer) = theirs.into_split();
        let response = Response { payload, ..Response::default() };
        let (mut reader, _writer) = ours.into_split();
        let writer = Mutex::new(writer);
        let (frame, ()) = tokio::join!(GenMessage::read_from(&mut reader), respond(&writer, 1, response));
        let response = Response::decode(&frame.unwrap().payload).unwrap();
        assert_eq!(response.status().code(), Code::RESOURCE_EXHAUSTED);
        drop(writer);
        assert_eq!(reader.read(&mut [0; 1]).await.unwrap(), 0);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_bytes_keep_a_connection_from_ending(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        answers(&bytes, &[]);
    }

    #[test]
    fn a_request_among_others_is_answered(
        frames in proptest::collection::vec(
            (2u32..100, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..5
        ),
        payload in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut sent: Vec<u8> = Vec::new();
        for (id, kind, payload) in &frames {
            sent.extend(frame(*id, *kind, payload));
        }
        sent.extend(request(1, "test.Service", "Echo", &payload));
        let answers = answers(&sent, &[1]);
        prop_assert_eq!(&answers[&1].payload, &payload);
        for (id, response) in answers.iter().filter(|(id, _)| *id % 2 == 0) {
            prop_assert_eq!(response.status().code(), Code::INVALID_ARGUMENT, "{}", id);
        }
    }
}
