//! Detects escaped traffic: runs servers that must not be reached, and captures every frame on the
//! host's interfaces.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// The mark in every frame and datagram of the tests.
pub(super) const MARK: &[u8] = b"mayfly-must-not-get-out";

/// `ETH_P_ALL` in network byte order, as `socket(2)` takes it.
const ALL_PROTOCOLS: i32 = 0x0003_u16.to_be() as i32;

/// The time limit of one poll, which bounds the delay of a stop.
const LOOK: Duration = Duration::from_millis(100);

/// Servers on one port of all of the host's addresses, and a packet socket on its interfaces.
pub(super) struct Canary {
    pub(super) port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
    watchers: Vec<JoinHandle<()>>,
}

impl Canary {
    pub(super) fn new() -> Self {
        Self::watching_for(MARK)
    }

    fn watching_for(mark: &'static [u8]) -> Self {
        crate::support::require_root();
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let tcp = TcpListener::bind(any).unwrap();
        let port = tcp.local_addr().unwrap().port();
        tcp.set_nonblocking(true).unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        let all = Protocol::from(ALL_PROTOCOLS);
        let frames = Socket::new(Domain::PACKET, Type::RAW, Some(all)).unwrap();
        let mut canary =
            Self { port, seen: Arc::default(), ended: Arc::default(), watchers: Vec::new() };
        canary.watch(move || {
            let Ok((_, from)) = tcp.accept() else {
                std::thread::sleep(LOOK);
                return None;
            };
            Some(format!("a connection from {from}"))
        });
        udp.set_read_timeout(Some(LOOK)).unwrap();
        canary.watch(move || {
            let (_, from) = udp.recv_from(&mut [0; 2048]).ok()?;
            Some(format!("a datagram from {from}"))
        });
        frames.set_recv_buffer_size(8 << 20).unwrap();
        frames.set_read_timeout(Some(LOOK)).unwrap();
        canary.watch(move || {
            let mut buffer = [0; 2048];
            let length = nix::unistd::read(frames.as_fd(), &mut buffer).ok()?;
            let frame = &buffer[..length];
            let marked = frame.windows(mark.len()).any(|window| window == mark);
            marked.then(|| format!("the frame {}", frame.escape_ascii()))
        });
        canary
    }

    /// Polls repeatedly on its own thread.
    fn watch(&mut self, mut look: impl FnMut() -> Option<String> + Send + 'static) {
        let (seen, ended) = (Arc::clone(&self.seen), Arc::clone(&self.ended));
        self.watchers.push(std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if let Some(what) = look() {
                    seen.lock().unwrap().push(what);
                }
            }
        }));
    }

    /// Checks that nothing got out.
    pub(super) fn assert_silent(self) {
        let seen = self.end();
        assert!(seen.is_empty(), "traffic escaped: {seen:#?}");
    }

    /// Stops and returns the observations.
    fn end(mut self) -> Vec<String> {
        self.ended.store(true, Ordering::Relaxed);
        for watcher in self.watchers.drain(..) {
            watcher.join().unwrap();
        }
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

#[test]
fn the_canary_detects_escaped_traffic() {
    // A different mark, because the canaries of other tests see this traffic, too.
    let mark = b"mayfly-may-get-out";
    let canary = Canary::watching_for(mark);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, canary.port));
    drop(std::net::TcpStream::connect(address).unwrap());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(mark, address).unwrap();
    crate::support::until("all that was sent", crate::support::TIMEOUT, || {
        let seen = canary.seen.lock().unwrap();
        let has = |what: &str| seen.iter().any(|seen| seen.starts_with(what));
        (has("a connection") && has("a datagram") && has("the frame")).then_some(())
    });
    assert!(canary.end().len() >= 3);
}
