//! A client of containerd's CRI, as a kubelet is one: pods and their containers over gRPC, streams over web sockets.

pub mod api;
pub mod config;
mod grpc;
pub mod pod;
pub mod registry;
pub mod stream;

use std::{sync::Arc, time::Duration};

use prost::Message;

pub use self::grpc::Status;
use self::{api::Empty, stream::Session};
use super::{daemon::Daemon, eventually, image::IMAGE};

/// How long one call may take; stopping and removing pods takes longest.
const CALL: Duration = Duration::from_secs(60);

const RUNTIME: &str = "runtime.v1.RuntimeService";
const IMAGES: &str = "runtime.v1.ImageService";

/// A daemon's CRI.
#[derive(Clone)]
pub struct Cri {
    daemon: Arc<Daemon>,
}

impl Cri {
    /// The CRI of a daemon that has one, as soon as it and its network are ready and it knows the lab's image.
    pub fn of(daemon: &Arc<Daemon>) -> Self {
        let cri = Self { daemon: Arc::clone(daemon) };
        eventually("readiness of the CRI", || {
            let status: api::StatusResponse = cri.call("Status", &Empty {}).ok()?;
            status.status?.conditions.iter().all(|condition| condition.status).then_some(())
        });
        // It learns of imported images by and by.
        eventually("the image in the CRI", || cri.knows(IMAGE).then_some(()));
        cri
    }

    /// Whether it has an image of this name.
    pub fn knows(&self, image: &str) -> bool {
        let image = Some(api::ImageSpec { image: image.into() });
        let answer: Result<api::ImageStatusResponse, _> =
            self.call_service(IMAGES, "ImageStatus", &api::ImageStatusRequest { image });
        answer.is_ok_and(|answer| answer.image.is_some())
    }

    pub fn daemon(&self) -> &Arc<Daemon> {
        &self.daemon
    }

    /// Calls a method of the runtime service.
    pub fn call<R: Message + Default>(&self, method: &str, request: &impl Message) -> Result<R, Status> {
        self.call_service(RUNTIME, method, request)
    }

    /// Calls a method whose answer is a URL, and goes on there.
    pub fn stream(&self, method: &str, request: &impl Message, query: &str) -> Session {
        let answer: api::StreamingUrl = self.call(method, request).unwrap();
        Session::open(self.daemon.netns().unwrap(), &format!("{}{query}", answer.url))
    }

    /// All pods that the daemon knows.
    pub fn pods(&self) -> Vec<api::PodSandbox> {
        self.call::<api::ListPodSandboxResponse>("ListPodSandbox", &Empty {}).unwrap().items
    }

    fn call_service<R: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &impl Message,
    ) -> Result<R, Status> {
        grpc::call(&self.daemon.socket(), &format!("{service}/{method}"), request, CALL)
    }
}
