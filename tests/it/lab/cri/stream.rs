//! What Exec, Attach and PortForward go on with: a web socket to containerd's streaming server, whose messages each begin with the
//! number of a channel (Kubernetes' subprotocol `v4.channel.k8s.io`, which every containerd of the lab speaks).
//!
//! The subprotocol cannot close one channel alone: a test ends a program's input by what it writes.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use serde_json::{Value, json};

use crate::lab::{PATIENCE, eventually, lock, netns::Netns};

/// The channels of exec and attach.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

/// The channels of one forwarded port. Each begins with the port in two bytes.
const DATA: u8 = 0;
const PORT_BYTES: usize = 2;

/// Frames of the web socket protocol (RFC 6455, section 5.2).
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// An open session.
pub struct Session {
    connection: TcpStream,
    channels: Arc<Mutex<Vec<Vec<u8>>>>,
    reader: Option<JoinHandle<()>>,
}

/// How a session ended.
#[derive(Debug)]
pub struct End {
    pub stdout: String,
    pub stderr: String,
    /// The process's exit code; `None` if the server reported something else.
    pub code: Option<i32>,
}

impl Session {
    /// Opens the session that a method of the CRI named, from within the streaming server's network namespace.
    pub fn open(netns: &Netns, url: &str) -> Self {
        let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let mut connection = netns.connect(host.parse().unwrap()).expect("the streaming server's answer");
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        // Any 16 bytes are a key; nobody between us and the server could confuse us with a cache.
        write!(
            connection,
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        )
        .unwrap();
        let mut input = BufReader::new(connection.try_clone().unwrap());
        let mut head = String::new();
        while input.read_line(&mut head).unwrap() > "\r\n".len() {}
        assert!(head.starts_with("HTTP/1.1 101 "), "the streaming server refused {url}: {head}");

        let channels = Arc::new(Mutex::new(vec![Vec::new(); usize::from(RESIZE) + 1]));
        let into = Arc::clone(&channels);
        let reader = thread::spawn(move || {
            while let Ok(Some(message)) = message(&mut input) {
                if let [channel, content @ ..] = &*message {
                    lock(&into)[usize::from(*channel)].extend_from_slice(content);
                }
            }
        });
        Self { connection, channels, reader: Some(reader) }
    }

    /// Writes to the process's standard input.
    pub fn write(&self, text: &str) {
        self.send(STDIN, text.as_bytes());
    }

    /// Tells the process's terminal its size.
    pub fn resize(&self, width: u16, height: u16) {
        self.send(RESIZE, json!({"Width": width, "Height": height}).to_string().as_bytes());
    }

    /// Waits until the text is on standard output, or on the terminal.
    pub fn until_it_says(&self, text: &str) {
        eventually(&format!("{text:?} in the stream, which has {:?}", self.said()), || {
            self.said().contains(text).then_some(())
        });
    }

    /// Standard output so far.
    pub fn said(&self) -> String {
        self.text(STDOUT)
    }

    /// Waits for the server to end the session.
    pub fn finish(mut self) -> End {
        self.reader.take().unwrap().join().unwrap();
        End { stdout: self.said(), stderr: self.text(STDERR), code: exit_code(&self.text(STATUS)) }
    }

    /// Writes to a forwarded port's connection, and waits for an answer with this end.
    pub fn exchange(&self, text: &str, end: &str) -> String {
        self.send(DATA, text.as_bytes());
        eventually(&format!("{end:?} from the forwarded port"), || {
            let answer = lock(&self.channels)[usize::from(DATA)].get(PORT_BYTES..)?.to_vec();
            String::from_utf8(answer).ok().filter(|answer| answer.ends_with(end))
        })
    }

    fn text(&self, channel: u8) -> String {
        String::from_utf8_lossy(&lock(&self.channels)[usize::from(channel)]).into_owned()
    }

    fn send(&self, channel: u8, content: &[u8]) {
        let length = u16::try_from(1 + content.len()).unwrap();
        // A client must mask what it sends; with zeroes as the mask it stays as it is.
        let mut frame = vec![FINAL | BINARY, MASKED | 126];
        frame.extend(length.to_be_bytes());
        frame.extend([0; 4]);
        frame.push(channel);
        frame.extend(content);
        (&self.connection).write_all(&frame).unwrap();
    }
}

impl Drop for Session {
    /// Goes away as a client does that was interrupted.
    fn drop(&mut self) {
        let _ = self.connection.shutdown(Shutdown::Both);
    }
}

/// The next message; `None` at the end. The server sends each in one frame and no pings.
fn message(input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 2];
    input.read_exact(&mut head)?;
    let length = match head[1] {
        126 => {
            let mut length = [0; 2];
            input.read_exact(&mut length)?;
            u64::from(u16::from_be_bytes(length))
        }
        127 => {
            let mut length = [0; 8];
            input.read_exact(&mut length)?;
            u64::from_be_bytes(length)
        }
        short => u64::from(short),
    };
    let mut content = vec![0; usize::try_from(length).unwrap()];
    input.read_exact(&mut content)?;
    Ok((head[0] != FINAL | CLOSE).then_some(content))
}

/// The exit code in what the server says at the end: a Kubernetes Status.
fn exit_code(status: &str) -> Option<i32> {
    let status: Value = serde_json::from_str(status).ok()?;
    if status["status"] == "Success" {
        return Some(0);
    }
    let causes = status["details"]["causes"].as_array()?;
    causes.iter().find(|cause| cause["reason"] == "ExitCode")?["message"].as_str()?.parse().ok()
}
