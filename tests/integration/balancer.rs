//! A small TCP balancer for several bridges, like a Kubernetes service: it polls `/readyz` and gives each new connection to
//! the next replica that was ready. A connection stays with its replica.

use std::{
    collections::HashMap,
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{bridge::Bridge, http::Client, wait};

/// Time between two polls of a backend.
const LOOK: Duration = Duration::from_millis(500);

/// The replica of each connection, by the client's address.
#[derive(Clone, Default)]
pub struct Routes(Arc<Mutex<HashMap<SocketAddr, usize>>>);

impl Routes {
    /// The replica of the connection from this address.
    pub fn of(&self, client: SocketAddr) -> Option<usize> {
        self.0.lock().unwrap().get(&client).copied()
    }
}

struct Backend {
    ingest: SocketAddr,
    admin: SocketAddr,
    ready: bool,
}

#[derive(Default)]
struct Shared {
    /// By replica number.
    backends: Mutex<HashMap<usize, Backend>>,
    routes: Routes,
    next: AtomicU64,
    turned_away: AtomicU64,
    stop: AtomicBool,
}

/// A running balancer. Dropping it stops it.
pub struct Balancer {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Balancer {
    /// Starts a balancer without backends.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for client in listener.incoming() {
                    if shared.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || {
                        if shared.serve(&client.unwrap()).is_err() {
                            shared.turned_away.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            }
        });
        let looking = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                while !shared.stop.load(Ordering::Relaxed) {
                    shared.look();
                    thread::sleep(LOOK);
                }
            }
        });
        Balancer {
            address,
            shared,
            threads: vec![accepting, looking],
        }
    }

    /// The replica of each connection.
    pub fn routes(&self) -> Routes {
        self.shared.routes.clone()
    }

    /// Makes this bridge the replica with this number; it gets connections once it is ready.
    pub fn set(&self, replica: usize, bridge: &Bridge) {
        let backend = Backend {
            ingest: bridge.ingest,
            admin: bridge.admin,
            ready: false,
        };
        self.shared.backends.lock().unwrap().insert(replica, backend);
    }

    /// Waits until exactly these replicas get connections.
    pub fn wait_ready(&self, replicas: &[usize], limit: Duration) {
        wait::until(limit, &format!("the replicas {replicas:?} to be ready"), || {
            let backends = self.shared.backends.lock().unwrap();
            let mut ready: Vec<usize> = backends
                .iter()
                .filter_map(|(replica, b)| b.ready.then_some(*replica))
                .collect();
            ready.sort_unstable();
            (ready == replicas).then_some(())
        });
    }

    /// How many connections found no replica, or one that had gone.
    pub fn turned_away(&self) -> u64 {
        self.shared.turned_away.load(Ordering::Relaxed)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts connections.
        let _ = TcpStream::connect(self.address);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn look(&self) {
        let admins: Vec<(usize, SocketAddr)> = {
            let backends = self.backends.lock().unwrap();
            backends.iter().map(|(replica, b)| (*replica, b.admin)).collect()
        };
        for (replica, admin) in admins {
            let answer = Client::new(admin).request("GET", "/readyz", &[], b"");
            let ready = answer.is_ok_and(|response| response.status == 200);
            if let Some(backend) = self.backends.lock().unwrap().get_mut(&replica)
                && backend.admin == admin
            {
                backend.ready = ready;
            }
        }
    }

    /// Forwards bytes both ways until both sides have ended; fails if no replica took the connection.
    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        let (replica, ingest) = self.choose().ok_or(io::ErrorKind::NotConnected)?;
        let backend = TcpStream::connect(ingest)?;
        self.routes.0.lock().unwrap().insert(client.peer_addr()?, replica);
        for stream in [client, &backend] {
            stream.set_nodelay(true)?;
        }
        thread::scope(|scope| {
            scope.spawn(|| pass(client, &backend));
            pass(&backend, client);
        });
        Ok(())
    }

    fn choose(&self) -> Option<(usize, SocketAddr)> {
        let backends = self.backends.lock().unwrap();
        let mut ready: Vec<(usize, SocketAddr)> = backends
            .iter()
            .filter_map(|(replica, b)| b.ready.then_some((*replica, b.ingest)))
            .collect();
        ready.sort_unstable();
        let turn = self.next.fetch_add(1, Ordering::Relaxed) as usize;
        (!ready.is_empty()).then(|| ready[turn % ready.len()])
    }
}

/// Forwards one way, including the end of the stream.
fn pass(mut from: &TcpStream, mut to: &TcpStream) {
    let end = match io::copy(&mut from, &mut to) {
        Ok(_) => Shutdown::Write,
        Err(_) => Shutdown::Both,
    };
    let _ = to.shutdown(end);
}
