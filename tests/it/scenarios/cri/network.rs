//! The pod's network: servers in pods, reached from outside.

use std::{
    io::{Read, Write},
    net::SocketAddr,
};

use super::{Scenario, cri};
use crate::{
    case::RuntimeCase,
    lab::{
        Lab, PATIENCE,
        cri::{Cri, pod::Pod},
        eventually,
    },
};

pub const SCENARIOS: &[Scenario] = &[("a server in a pod answers the host, another pod, and a forwarded port", server)];

const REQUEST: &str = "GET /page HTTP/1.0\r\n\r\n";

fn server(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let script = "mkdir /www; echo a page of the pod > /www/page; exec httpd -f -p 8080 -h /www";
    let _server = pod.start("server", &["sh", "-c", script]);
    let address: SocketAddr = format!("{}:8080", pod.ip()).parse().unwrap();

    let is_the_page = |answer: &str| {
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\na page of the pod\n"),
            "{answer}"
        );
    };
    is_the_page(&eventually("an answer to the host", || ask(&cri, address)));

    let other = Pod::run(lab, &cri, case.handler, |_| {});
    let client = other.start("client", &["sleep", "1000"]);
    is_the_page(&client.shell(&format!("printf '{REQUEST}' | nc {} {}", address.ip(), address.port())));
    drop(client);

    if case.is_runc() {
        let session = pod.forward(8080);
        is_the_page(&session.exchange(REQUEST, "a page of the pod\n"));
    }
}

/// Asks as a client on the host.
fn ask(cri: &Cri, address: SocketAddr) -> Option<String> {
    let mut connection = cri.daemon().netns().unwrap().connect(address)?;
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.write_all(REQUEST.as_bytes()).ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    Some(answer)
}
