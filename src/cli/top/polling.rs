//! Asks the bridges, each in a task of its own, and resolves the name of a service again and again.
//!
//! An address of a service that is no longer listed stays on the screen while it answers, and for [`FORGET`] after that.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    net::lookup_host,
    runtime::Handle,
    sync::mpsc,
    task::AbortHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::screen::{Screen, Shown};
use crate::cli::{
    bridge_status::{BridgeClient, BridgeStatus},
    exit::Exit,
};

/// How long a bridge, or the resolver, may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the service's name is resolved.
const RESOLVE: Duration = Duration::from_secs(5);
/// How long a bridge stays on the screen after its last answer, once the service no longer lists it.
const FORGET: Duration = Duration::from_secs(60);

enum News {
    Answer(String, Box<Result<BridgeStatus, String>>),
    Addresses(Result<BTreeSet<SocketAddr>, String>),
}

/// The questions that are being asked.
pub struct Polling {
    bridges: Vec<Asked>,
    trouble: Option<String>,
    every: Duration,
    runtime: Handle,
    sender: mpsc::UnboundedSender<News>,
    news: mpsc::UnboundedReceiver<News>,
}

struct Asked {
    shown: Shown,
    /// The last answer, or the beginning.
    answered: Instant,
    origin: Origin,
    task: AbortHandle,
}

/// Where a bridge comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Given,
    Listed,
    /// The service listed it before.
    Delisted,
}

/// Checks the form of `--service`.
///
/// # Errors
/// 64: it is no name with a port.
pub fn check_service(service: &str) -> Result<(), Exit> {
    let port = service
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty() && !host.contains('/'));
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(_)) => Ok(()),
        _ => Err(Exit::Usage(format!(
            "--service {service}: give it as name and port, such as cmc-bridge-headless:9464"
        ))),
    }
}

impl Polling {
    /// Begins to ask. Call it within a runtime.
    pub fn start(clients: Vec<BridgeClient>, service: Option<String>, every: Duration) -> Polling {
        let (sender, news) = mpsc::unbounded_channel();
        let mut polling = Polling {
            bridges: Vec::new(),
            trouble: None,
            every,
            runtime: Handle::current(),
            sender,
            news,
        };
        for client in clients {
            polling.add(client, Origin::Given);
        }
        if let Some(service) = service {
            tokio::spawn(resolve(service, polling.sender.clone()));
        }
        polling
    }

    fn add(&mut self, client: BridgeClient, origin: Origin) {
        let url = client.url().to_owned();
        if self.bridges.iter().any(|asked| asked.shown.url == url) {
            return;
        }
        let task = self.runtime.spawn(ask(client, self.every, self.sender.clone()));
        self.bridges.push(Asked {
            shown: Shown {
                url,
                status: None,
                gone: None,
            },
            answered: Instant::now(),
            origin,
            task: task.abort_handle(),
        });
    }

    /// Takes the news over into what is shown.
    pub fn update(&mut self, screen: &mut Screen) {
        while let Ok(news) = self.news.try_recv() {
            match news {
                News::Answer(url, answer) => self.answered(&url, *answer),
                News::Addresses(addresses) => self.listed(addresses),
            }
        }
        let now = Instant::now();
        let chosen = screen.bridges.get(screen.selected).map(|shown| shown.url.clone());
        self.bridges.retain(|asked| {
            let stays = asked.origin != Origin::Delisted || now - asked.answered < FORGET;
            if !stays {
                asked.task.abort();
            }
            stays
        });
        let shown = self.bridges.iter_mut().map(|asked| {
            if let Some((_, seconds)) = &mut asked.shown.gone {
                *seconds = (now - asked.answered).as_secs();
            }
            asked.shown.clone()
        });
        screen.bridges = shown.collect();
        // The same one stays chosen while others come and go.
        let chosen = chosen.and_then(|url| screen.bridges.iter().position(|shown| shown.url == url));
        screen.selected = chosen.unwrap_or(screen.selected.min(screen.bridges.len().saturating_sub(1)));
        screen.trouble.clone_from(&self.trouble);
    }

    fn answered(&mut self, url: &str, answer: Result<BridgeStatus, String>) {
        let Some(asked) = self.bridges.iter_mut().find(|asked| asked.shown.url == url) else {
            return;
        };
        match answer {
            Ok(status) => {
                asked.answered = Instant::now();
                asked.shown.status = Some(status);
                asked.shown.gone = None;
            }
            Err(error) => asked.shown.gone = Some((error, 0)),
        }
    }

    /// Makes it long ago that the bridges answered.
    #[cfg(test)]
    pub fn answered_last(&mut self, at: Instant) {
        self.bridges.iter_mut().for_each(|asked| asked.answered = at);
    }

    /// Takes the addresses of the service.
    pub fn listed(&mut self, addresses: Result<BTreeSet<SocketAddr>, String>) {
        let addresses = match addresses {
            Ok(addresses) => addresses,
            Err(error) => {
                self.trouble = Some(error);
                return;
            }
        };
        self.trouble = None;
        let urls: Vec<_> = addresses
            .iter()
            .map(|address| format!("http://{address}"))
            .collect();
        for asked in self
            .bridges
            .iter_mut()
            .filter(|asked| asked.origin != Origin::Given)
        {
            asked.origin = match urls.contains(&asked.shown.url) {
                true => Origin::Listed,
                false => Origin::Delisted,
            };
        }
        for client in urls.iter().filter_map(|url| BridgeClient::new(url).ok()) {
            self.add(client, Origin::Listed);
        }
    }
}

async fn ask(mut client: BridgeClient, every: Duration, news: mpsc::UnboundedSender<News>) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = client.ask(PATIENCE).await.map_err(|error| error.cause);
        if news
            .send(News::Answer(client.url().to_owned(), Box::new(answer)))
            .is_err()
        {
            return;
        }
    }
}

async fn resolve(service: String, news: mpsc::UnboundedSender<News>) {
    loop {
        let found = match timeout(PATIENCE, lookup_host(&service)).await {
            Ok(Ok(addresses)) => Ok(addresses.collect()),
            Ok(Err(error)) => Err(format!("{service} can't be resolved: {error}")),
            Err(_) => Err(format!(
                "{service} can't be resolved within {} s",
                PATIENCE.as_secs()
            )),
        };
        if news.send(News::Addresses(found)).is_err() {
            return;
        }
        sleep(RESOLVE).await;
    }
}
