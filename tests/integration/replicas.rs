//! Replicas behind a balancer, as in Kubernetes, are scaled down and upgraded one at a time, and their volumes are drained. No
//! request fails, and each event arrives once.

use std::time::Duration;

use serde_json::Value;

use crate::{
    balancer::Balancer,
    bridge::{Bridge, Setup, Topics, run},
    cluster,
    load::{Load, Outcome, Shape, Target, median_latency},
    oracle,
};

const LIMIT: Duration = Duration::from_secs(180);

struct Replicas {
    setups: Vec<Setup>,
    bridges: Vec<Option<Bridge>>,
    balancer: Balancer,
}

impl Replicas {
    fn start(&mut self, replica: usize) {
        let bridge = self.setups[replica].start();
        self.balancer.set(replica, &bridge);
        self.bridges[replica] = Some(bridge);
    }

    /// Sends SIGTERM and waits for an orderly exit.
    fn stop(&mut self, replica: usize) {
        let bridge = self.bridges[replica].take().unwrap();
        bridge.scrape();
        bridge.stop();
    }

    /// Waits until the balancer uses exactly the running replicas.
    fn wait_ready(&self) {
        let running: Vec<usize> = (0..self.bridges.len())
            .filter(|replica| self.bridges[*replica].is_some())
            .collect();
        self.balancer.wait_ready(&running, LIMIT);
    }

    /// Runs `spool drain` on the replica's volume; returns the exit code.
    fn drain(&self, replica: usize, more: &[&str]) -> i32 {
        // The command's configuration names another spool.
        let setup = self.setups[replica].clone().unset("spool.dir");
        let dir = self.setups[replica].spool_dir().to_str().unwrap();
        run(&setup, &[&["spool", "drain", "--dir", dir], more].concat()).code
    }

    /// How many events wait on the replica's volume.
    fn left(&self, replica: usize) -> u64 {
        let listing = run(&self.setups[replica], &["spool", "ls", "--json"]).stdout;
        let listing: Value = serde_json::from_str(&listing).unwrap();
        let streams = listing["streams"].as_array().unwrap();
        streams
            .iter()
            .map(|s| s["waiting"]["events"].as_u64().unwrap())
            .sum()
    }
}

#[test]
fn replicas_are_scaled_down_and_upgraded_without_a_failed_request() {
    let running = cluster::shared().read().unwrap();
    let kafka = running.bootstrap();
    let topics = Topics::create(&kafka);
    let setup = || {
        Setup::new(&kafka)
            .topics(&topics)
            .set("shutdown.lame_duck", "12s")
            .set("shutdown.grace", "5s")
    };
    let mut replicas = Replicas {
        setups: vec![setup(), setup(), setup()],
        bridges: vec![None, None, None],
        balancer: Balancer::start(),
    };
    (0..3).for_each(|replica| replicas.start(replica));
    replicas.wait_ready();
    let balancer = &replicas.balancer;
    let target = Target::balanced(balancer.address, balancer.routes());
    let shape = Shape {
        clients: 9,
        pause: Duration::from_millis(20),
        ..Shape::default()
    };
    let load = Load::start(&target, shape);
    load.wait_acknowledged(300, LIMIT);

    // Scale down to two.
    replicas.stop(2);
    assert_eq!(replicas.drain(2, &[]), 0);
    assert_eq!(replicas.left(2), 0);
    load.wait_acknowledged(100, LIMIT);

    // Upgrade the last one first, like a StatefulSet.
    for replica in [1, 0] {
        replicas.stop(replica);
        replicas.start(replica);
        replicas.wait_ready();
        load.wait_acknowledged(100, LIMIT);
    }

    // Scale down to one while Kafka is away. No other test may use the cluster now.
    drop(running);
    let mut cluster = cluster::shared().write().unwrap();
    cluster.pause();
    load.wait_acknowledged(300, LIMIT);
    replicas.stop(1);
    let left = replicas.left(1);
    println!("{left} events are left on the volume");
    assert!(left > 0);
    assert_eq!(replicas.drain(1, &["--patience", "2"]), 69);
    assert_eq!(replicas.left(1), left);
    load.wait_acknowledged(100, LIMIT);
    cluster.resume();
    drop(cluster);
    assert_eq!(replicas.drain(1, &[]), 0);
    assert_eq!(replicas.left(1), 0);

    load.wait_acknowledged(100, LIMIT);
    let posted = load.stop();
    let last = replicas.bridges[0].take().unwrap();
    last.wait_drained(Duration::from_secs(120));
    oracle::check(&kafka, &topics, &posted);
    let mut taken = [0; 3];
    for webhook in &posted {
        assert!(matches!(webhook.outcome, Outcome::Acknowledged(_)), "{webhook:?}");
        taken[webhook.replica.unwrap()] += 1;
    }
    let slowest = posted.iter().filter_map(|webhook| webhook.latency()).max();
    println!(
        "webhooks taken by each replica: {taken:?}; answered in {:.1?} (median), {slowest:.1?} (slowest)",
        median_latency(&posted)
    );
    assert!(taken.iter().all(|taken| *taken > 0), "{taken:?}");
    assert_eq!(replicas.balancer.turned_away(), 0);
}
