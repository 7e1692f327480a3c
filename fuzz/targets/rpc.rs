//! ttrpc: whatever one connection sends, the server lives and answers the next one.
#![no_main]

use std::cell::OnceCell;
use std::path::PathBuf;
use std::time::Duration;

use beta9_shim::events::Events;
use beta9_shim::rpc::{self, Client};
use beta9_shim::shim::reaper::Reaper;
use beta9_shim::task::{Pod, Shim, TaskService};
use containerd_shim_protos::api::ConnectResponse;
use containerd_shim_protos::protobuf::Message as _;
use libfuzzer_sys::{arbitrary, fuzz_target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use ttrpc::Request;
use ttrpc::proto::Codec;

const SERVICE: &str = "containerd.task.v2.Task";
/// Far longer than any answer takes, sanitizers included.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, arbitrary::Arbitrary)]
enum Sent<'a> {
    Bytes(&'a [u8]),
    Frame { id: u32, kind: u8, flags: u8, payload: &'a [u8] },
    Request { id: u32, method: u8, timeout: i64, payload: &'a [u8] },
}

/// Without Create, which would run things.
const METHODS: [&str; 15] = [
    "State",
    "Start",
    "Delete",
    "Pids",
    "Pause",
    "Resume",
    "Checkpoint",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Update",
    "Wait",
    "Stats",
    "Connect",
];

impl Sent<'_> {
    fn write(&self, bytes: &mut Vec<u8>) {
        match *self {
            Self::Bytes(raw) => bytes.extend_from_slice(raw),
            Self::Frame { id, kind, flags, payload } => frame(bytes, id, kind, flags, payload),
            Self::Request { id, method, timeout, payload } => {
                let request = Request {
                    service: SERVICE.to_owned(),
                    method: METHODS[usize::from(method) % METHODS.len()].to_owned(),
                    timeout_nano: timeout,
                    payload: payload.to_vec(),
                    ..Request::default()
                };
                let payload = request.encode().expect("a request");
                frame(bytes, id | 1, 1, 0, &payload);
            }
        }
    }
}

/// A header is length, stream id, type, flags, in network order (ttrpc's PROTOCOL.md).
fn frame(bytes: &mut Vec<u8>, id: u32, kind: u8, flags: u8, payload: &[u8]) {
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(id.to_be_bytes());
    bytes.extend([kind, flags]);
    bytes.extend(payload);
}

/// A server in the abstract namespace, where it leaves no file.
struct Server {
    runtime: Runtime,
    address: PathBuf,
}

impl Server {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let address = PathBuf::from(format!("\0beta9-fuzz-{}", std::process::id()));
        runtime.block_on(async {
            let shim = Shim {
                namespace: "fuzz".into(),
                events: Events::start(PathBuf::new(), "fuzz"),
                reaper: Reaper::start().expect("a reaper"),
            };
            let (pod, _) = Pod::start(shim);
            let mut services = TaskService::services(pod);
            for service in services.values_mut() {
                service.methods.remove("Create");
            }
            let listener = UnixListener::bind(&address).expect("a listener");
            tokio::spawn(rpc::serve(listener, services));
        });
        Self { runtime, address }
    }

    async fn send(&self, bytes: &[u8]) {
        let stream = UnixStream::connect(&self.address).await.expect("it listens");
        let (mut reader, mut writer) = stream.into_split();
        let write = tokio::spawn({
            let bytes = bytes.to_vec();
            async move {
                // The server may hang up on what it cannot read.
                let _ = writer.write_all(&bytes).await;
                drop(writer);
            }
        });
        let mut answers = Vec::new();
        let _ = reader.read_to_end(&mut answers).await;
        write.await.expect("written");
    }

    async fn is_well(&self) {
        let mut client = Client::connect(&self.address).await.expect("it listens");
        let answer = client.call(SERVICE, "Connect", Vec::new(), DEADLINE).await;
        let answer = ConnectResponse::parse_from_bytes(&answer.expect("it answers"));
        assert_eq!(answer.expect("well formed").shim_pid, std::process::id());
    }
}

thread_local! {
    static SERVER: OnceCell<Server> = const { OnceCell::new() };
}

fuzz_target!(|sent: Vec<Sent>| {
    let mut bytes = Vec::new();
    sent.iter().for_each(|sent| sent.write(&mut bytes));
    SERVER.with(|server| {
        let server = server.get_or_init(Server::start);
        server.runtime.block_on(async {
            tokio::time::timeout(DEADLINE, server.send(&bytes)).await.expect("a connection ends when its peer is gone");
            server.is_well().await;
        });
    });
});
