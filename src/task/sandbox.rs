//! A gVisor sandbox, as the containers in it know of each other: who is in it, and that it has ended.
//!
//! The container that the sandbox was made for is its host, the others are its guests. A guest learns here that the
//! sandbox has ended, and ends with it; the host learns that its guests have announced their ends, and announces its own
//! after them. Nothing here knows a runtime or publishes. Made by `create`, kept by `pod`, used by `container`.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::standstill::Standstill;
use crate::bundle::Id;
use crate::bundle::volumes::Volumes;

/// Where a container lives.
pub(super) enum Place {
    /// Under runc: on the host itself.
    Alone,
    /// In a gVisor sandbox that was made for it.
    Host(Host),
    /// In a gVisor sandbox that was made for another container.
    Guest(Guest),
}

impl Place {
    /// The sandbox it is in, if it is in one.
    pub(super) fn sandbox(&self) -> Option<&Sandbox> {
        match self {
            Self::Alone => None,
            Self::Host(host) => Some(host.sandbox()),
            Self::Guest(guest) => Some(guest.sandbox()),
        }
    }

    /// Whether it is in another container's sandbox.
    pub(super) fn is_guest(&self) -> bool {
        matches!(self, Self::Guest(_))
    }
}

/// The sandbox, for those who may come to live in it.
#[derive(Clone)]
pub(super) struct Sandbox {
    id: Id,
    pid: i32,
    ended: watch::Receiver<bool>,
    door: mpsc::WeakSender<Infallible>,
    volumes: Arc<Volumes>,
    standstill: Standstill,
}

/// The host's part. Dropped, the sandbox has ended.
pub(super) struct Host {
    ended: watch::Sender<bool>,
    /// Closed by the host's end: nobody comes in any more.
    door: Option<mpsc::Sender<Infallible>>,
    /// Ends when the last guest has gone.
    guests: Option<mpsc::Receiver<Infallible>>,
    sandbox: Sandbox,
}

/// A guest's part. Dropped, or [`Guest::leave`], it is gone.
pub(super) struct Guest {
    sandbox: Sandbox,
    presence: Option<mpsc::Sender<Infallible>>,
}

impl Host {
    /// The sandbox of the container `id`, whose process is `pid`, with the volumes that its containers share.
    pub(super) fn new(id: Id, pid: i32, volumes: Volumes) -> Self {
        let (door, guests) = mpsc::channel(1);
        let (ended, end) = watch::channel(false);
        let sandbox = Sandbox {
            id,
            pid,
            ended: end,
            door: door.downgrade(),
            volumes: Arc::new(volumes),
            standstill: Standstill::default(),
        };
        Self { ended, door: Some(door), guests: Some(guests), sandbox }
    }

    /// For those who may come.
    pub(super) fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Tells the guests that the sandbox has ended, and returns what resolves when all of them have left.
    pub(super) fn end(&mut self) -> impl Future<Output = ()> + Send + use<> {
        self.door = None;
        let _ = self.ended.send(true);
        let guests = self.guests.take();
        async move {
            if let Some(mut guests) = guests {
                guests.recv().await;
            }
        }
    }
}

impl Sandbox {
    /// The id of the container that it was made for.
    pub(super) fn id(&self) -> &Id {
        &self.id
    }

    /// Its process, which is a child of ours.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// The volumes that its containers share.
    pub(super) fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// Whether it stands still: one kernel, so all of its containers or none.
    pub(super) fn standstill(&self) -> &Standstill {
        &self.standstill
    }

    /// Lets somebody in; `None` if it has ended.
    pub(super) fn enter(&self) -> Option<Guest> {
        // Whoever is still in it keeps the door's other side open; an error means that the host is gone.
        let over = *self.ended.borrow() || self.ended.has_changed().is_err();
        let presence = self.door.upgrade().filter(|_| !over)?;
        Some(Guest { sandbox: self.clone(), presence: Some(presence) })
    }

    /// Resolves at its end, also when that was before.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            // An error means that the host is gone, and the sandbox with it.
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }
}

impl Guest {
    /// Where it is.
    pub(super) fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Its end is announced.
    pub(super) fn leave(&mut self) {
        self.presence = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::Poll;

    async fn is_pending(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
        std::future::poll_fn(|context| Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending())).await
    }

    fn host() -> Host {
        Host::new(Id::parse("pod").unwrap(), 7, Volumes::default())
    }

    #[tokio::test]
    async fn a_sandbox_without_guests_ends_at_once() {
        let mut host = host();
        let sandbox = host.sandbox().clone();
        host.end().await;
        sandbox.ended().await;
        assert!(sandbox.enter().is_none());
    }

    #[tokio::test]
    async fn the_host_waits_for_its_guests_and_a_guest_for_the_end() {
        let mut host = host();
        let (mut first, second) = (host.sandbox().enter().unwrap(), host.sandbox().enter().unwrap());
        let mut told = pin!(first.sandbox().ended());
        assert!(is_pending(&mut told).await);
        let mut gone = pin!(host.end());
        told.await;
        assert!(is_pending(&mut gone).await);
        assert!(first.sandbox().enter().is_none());
        first.leave();
        assert!(is_pending(&mut gone).await);
        drop(second);
        gone.await;
    }

    #[tokio::test]
    async fn a_host_that_is_dropped_has_ended() {
        let host = host();
        let guest = host.sandbox().enter().unwrap();
        drop(host);
        guest.sandbox().ended().await;
        assert!(guest.sandbox().enter().is_none());
    }
}
