//! A TCP proxy between bridge and broker that understands enough of Kafka's protocol to fail a chosen request.
//!
//! A request begins with its length (4 bytes), kind (2), version (2) and correlation id (4). Its reply begins with a
//! length and the same correlation id. The proxy reads nothing else.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{kafka, wait};

/// A kind of request, by its number in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Api(i16);

pub const PRODUCE: Api = Api(0);
pub const OFFSET_FETCH: Api = Api(9);
pub const INIT_PRODUCER_ID: Api = Api(22);
pub const ADD_PARTITIONS: Api = Api(24);
pub const ADD_OFFSETS: Api = Api(25);
pub const END_TXN: Api = Api(26);
pub const TXN_OFFSET_COMMIT: Api = Api(28);

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is cut, and the request is not sent.
    CutBefore,
    /// The broker answers it, but the connection is cut and the reply not sent.
    CutReply,
    /// It is sent, but nothing comes back any more on the connection, which stays open.
    Mute,
    /// It and all later requests on its connection wait for [`Proxy::release`], even if the client is gone by then.
    Hold,
}

/// A running proxy with its own listener of the shared broker.
pub struct Proxy {
    /// The broker's plain listener, for the harness.
    pub kafka: String,
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    broker: SocketAddr,
    plan: Mutex<Plan>,
    changed: Condvar,
}

#[derive(Default)]
struct Plan {
    armed: Vec<(Api, Fault)>,
    holding: bool,
    /// New connections are closed at once.
    down: bool,
    ended: bool,
    connections: Vec<Arc<Connection>>,
}

struct Connection {
    client: TcpStream,
    broker: TcpStream,
    /// The request whose reply is not passed on.
    lost: Mutex<Option<i32>>,
    mute: AtomicBool,
}

impl Proxy {
    pub fn start() -> Self {
        let (kafka, listener, port) = kafka::proxied();
        let state = Arc::new(State {
            broker: SocketAddr::from(([127, 0, 0, 1], port)),
            plan: Mutex::default(),
            changed: Condvar::new(),
        });
        let address = listener.local_addr().unwrap();
        let accepting = Arc::clone(&state);
        thread::spawn(move || accept(&listener, &accepting));
        Proxy {
            kafka,
            address,
            state,
        }
    }

    /// The `bootstrap.servers` that lead through the proxy.
    pub fn bootstrap(&self) -> String {
        self.address.to_string()
    }

    /// Applies a fault to the next request of this kind.
    pub fn arm(&self, api: Api, fault: Fault) {
        self.state.lock().armed.push((api, fault));
    }

    /// Waits until every armed fault has happened.
    pub fn wait_struck(&self, limit: Duration) {
        wait::until(limit, "the armed faults", || {
            self.state.lock().armed.is_empty().then_some(())
        });
    }

    /// Sends the held requests to the broker.
    pub fn release(&self) {
        self.state.lock().holding = false;
        self.state.changed.notify_all();
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        for connection in self.state.lock().connections.drain(..) {
            connection.cut();
        }
    }

    /// Takes the proxy down or up. Going down cuts all connections; while down, new ones are closed at once.
    pub fn set_down(&self, down: bool) {
        self.state.lock().down = down;
        if down {
            self.cut();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.lock().ended = true;
        self.release();
        self.cut();
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap()
    }

    /// The fault for a request of this kind, if one is armed.
    fn strike(&self, api: Api) -> Option<Fault> {
        let mut plan = self.lock();
        let at = plan.armed.iter().position(|(armed, _)| *armed == api)?;
        let (_, fault) = plan.armed.remove(at);
        plan.holding |= fault == Fault::Hold;
        println!("proxy: {api:?} {fault:?}");
        Some(fault)
    }

    fn wait_released(&self) {
        let plan = self.lock();
        drop(self.changed.wait_while(plan, |plan| plan.holding).unwrap());
    }
}

impl Connection {
    fn cut(&self) {
        // Fails if the other side has already closed it.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.broker.shutdown(Shutdown::Both);
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    for client in listener.incoming() {
        let mut plan = state.lock();
        if plan.ended {
            return;
        }
        let (false, Ok(client)) = (plan.down, client) else {
            continue;
        };
        let Ok(broker) = TcpStream::connect(state.broker) else {
            continue;
        };
        for stream in [&client, &broker] {
            stream.set_nodelay(true).unwrap();
        }
        let connection = Arc::new(Connection {
            client,
            broker,
            lost: Mutex::default(),
            mute: AtomicBool::new(false),
        });
        plan.connections.push(Arc::clone(&connection));
        drop(plan);
        let (state, requesting) = (Arc::clone(state), Arc::clone(&connection));
        thread::spawn(move || {
            let _ = requests(&requesting, &state);
            // The broker sees the end after everything that was sent.
            let _ = requesting.broker.shutdown(Shutdown::Write);
        });
        thread::spawn(move || {
            let _ = replies(&connection);
            connection.cut();
        });
    }
}

fn requests(connection: &Connection, state: &State) -> io::Result<()> {
    loop {
        let request = frame(&connection.client)?;
        let api = Api(i16::from_be_bytes([request[4], request[5]]));
        match state.strike(api) {
            None => {}
            Some(Fault::CutBefore) => {
                connection.cut();
                return Ok(());
            }
            Some(Fault::CutReply) => {
                let id = [request[8], request[9], request[10], request[11]];
                *connection.lost.lock().unwrap() = Some(i32::from_be_bytes(id));
            }
            Some(Fault::Mute) => connection.mute.store(true, Ordering::SeqCst),
            Some(Fault::Hold) => state.wait_released(),
        }
        (&connection.broker).write_all(&request)?;
    }
}

fn replies(connection: &Connection) -> io::Result<()> {
    loop {
        let reply = frame(&connection.broker)?;
        let id = i32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]]);
        if *connection.lost.lock().unwrap() == Some(id) {
            return Ok(());
        }
        if !connection.mute.load(Ordering::SeqCst) {
            (&connection.client).write_all(&reply)?;
        }
    }
}

/// Reads a request or reply, including its length; fails at the end of the connection.
fn frame(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut bytes = length.to_vec();
    bytes.resize(4 + u32::from_be_bytes(length) as usize, 0);
    stream.read_exact(&mut bytes[4..])?;
    Ok(bytes)
}
