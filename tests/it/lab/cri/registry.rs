//! A registry for a daemon that asks without need: a checkpoint's image is pulled before a container is made of it, by its digest,
//! even if all of it is there.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread::{self, JoinHandle},
};

use super::Cri;
use crate::lab::{daemon::Daemon, eventually, image::IMAGE};

/// Runs in the daemon's network namespace, and ends with this value.
pub struct Registry {
    daemon: Arc<Daemon>,
    address: SocketAddr,
    server: Option<JoinHandle<()>>,
}

impl Registry {
    /// Where the lab's image comes from, as far as this daemon knows from now on.
    pub fn of(cri: &Cri) -> Self {
        let daemon = Arc::clone(cri.daemon());
        let listener = daemon.netns().unwrap().inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let address = listener.local_addr().unwrap();
        let list = daemon.ctr(&["images", "list", &format!("name=={IMAGE}")]).success().text();
        let digest = list.split_whitespace().find(|word| word.starts_with("sha256:")).unwrap();
        let manifest = daemon.ctr(&["content", "get", digest]).success().text();
        let head = format!(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n\
             Docker-Content-Digest: {digest}\r\nContent-Length: {}\r\n\r\n",
            manifest.len()
        );
        let server = thread::spawn(move || while answered(&listener.accept().unwrap().0, &head) {});

        let name = format!("{address}/lab@{digest}");
        let registry = Self { daemon, address, server: Some(server) };
        registry.daemon.ctr(&["images", "tag", IMAGE, &name]).success();
        eventually("the image's digest in the CRI", || cri.knows(&name).then_some(()));
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.daemon.netns().unwrap().connect(self.address));
        let _ = self.server.take().unwrap().join();
    }
}

/// Tells a client what it asks for, which is the one manifest, and whether it asked at all: who ends the server does not.
fn answered(mut client: &TcpStream, head: &str) -> bool {
    let request = BufReader::new(client).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let asked = request.count() > 0;
    if asked {
        let _ = client.write_all(head.as_bytes());
    }
    asked
}
