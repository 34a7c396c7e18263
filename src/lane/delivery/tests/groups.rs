//! Groups: the records of a received mail go to its topic together, or to the dead-letter topic together.

use super::*;

/// A lane of received mail on a topic with this limit, which the broker shows or not.
fn lane(limit: usize, told: bool, delivery: Delivery) -> Bench {
    let options = LaneOptions {
        stream: Stream::Inbound,
        delivery,
        ..options()
    };
    let mut bench = with_limit(limit, told, options);
    if delivery == Delivery::AtLeastOnce {
        bench.cluster.lock().plain = true;
        bench.restart();
    }
    bench
}

/// Appends groups of three; in each `nth` one, the record at `place` is refused. Gives the values of whole and of refused groups.
fn append_groups(bench: &mut Bench, nth: usize, place: usize, refused: &str) -> (Vec<String>, Vec<String>) {
    let (mut whole, mut diverted) = (Vec::new(), Vec::new());
    for group in 0..12 {
        let is_refused = group % nth == 1;
        let values: Vec<String> = (0..3)
            .map(|number| match is_refused && number == place {
                true => format!("{refused} {group}.{number}"),
                false => format!("{group}.{number}"),
            })
            .collect();
        bench.append_values(&values);
        match is_refused {
            true => diverted.extend(values),
            false => whole.extend(values),
        }
    }
    (whole, diverted)
}

#[test]
fn a_refused_record_takes_its_group_along() {
    for told in [false, true] {
        for place in 0..3 {
            for seed in 1..4 {
                let mut bench = lane(1000, told, Delivery::ExactlyOnce);
                bench.cluster.lock().seed = seed;
                let (whole, diverted) = append_groups(&mut bench, 5, place, &"x".repeat(1500));
                bench.settle();
                assert_eq!(bench.cluster.values(TOPIC), whole, "told {told}, place {place}");
                assert_eq!(bench.cluster.values(LETTERS), diverted);
                let books = bench.books();
                assert_eq!((books.delivered, books.diverted), (27, 9));
                for letter in bench.cluster.read(LETTERS) {
                    assert_eq!(letter.header("cmc-dead-letter-reason"), Some("refused_too_large"));
                    assert_eq!(letter.key.as_deref(), Some(&b"key"[..]));
                }
            }
        }
    }
}

#[test]
fn a_record_that_the_broker_names_takes_its_group_along() {
    for place in 0..3 {
        let mut bench = lane(5000, false, Delivery::ExactlyOnce);
        {
            let mut inner = bench.cluster.lock();
            (inner.names_records, inner.request) = (true, Some(4));
            inner.topics.get_mut(TOPIC).unwrap().refuses = Some("odd");
        }
        let (whole, diverted) = append_groups(&mut bench, 4, place, "odd");
        bench.settle();
        assert_eq!(bench.cluster.values(TOPIC), whole);
        assert_eq!(bench.cluster.values(LETTERS), diverted);
    }
}

/// Earlier records of the group are queued already: the transaction is made anew.
#[test]
fn a_record_that_the_client_refuses_takes_its_group_along() {
    for place in 0..3 {
        let mut bench = lane(5000, false, Delivery::ExactlyOnce);
        bench.options.max_record_bytes = 2000;
        bench.restart();
        bench.cluster.lock().client_limit = Some(2000);
        let (whole, diverted) = append_groups(&mut bench, 6, place, &"x".repeat(2500));
        bench.settle();
        assert_eq!(bench.cluster.values(TOPIC), whole, "place {place}");
        assert_eq!(bench.cluster.values(LETTERS).concat(), diverted.concat());
        assert_eq!(bench.books().diverted, 6);
    }
}

/// Without transactions, records of a refused group may be in the topic, too; but the dead letters have all of it.
#[test]
fn without_transactions_the_dead_letters_have_the_whole_group() {
    for place in 0..3 {
        let mut bench = lane(1000, false, Delivery::AtLeastOnce);
        let (whole, diverted) = append_groups(&mut bench, 5, place, &"x".repeat(1500));
        bench.settle();
        let (values, letters) = (bench.cluster.values(TOPIC), bench.cluster.values(LETTERS));
        assert!(whole.iter().all(|value| values.contains(value)));
        assert!(
            diverted.iter().all(|value| letters.contains(value)),
            "{letters:?}"
        );
        assert_eq!(bench.books().diverted, 9);
    }
}

#[test]
fn a_crash_at_any_call_splits_no_group() {
    for call in 1.. {
        let mut died = false;
        for crash in [Crash::Before(call), Crash::After(call)] {
            let mut bench = lane(1000, false, Delivery::ExactlyOnce);
            let (whole, diverted) = append_groups(&mut bench, 5, 1, &"x".repeat(1500));
            bench.cluster.lock().crash = Some(crash);
            if bench.dies() {
                died = true;
                for values in [bench.cluster.values(TOPIC), bench.cluster.values(LETTERS)] {
                    assert_eq!(values.len() % 3, 0, "{crash:?}: a group is split");
                }
                bench.start();
                bench.settle();
            }
            assert_eq!(bench.cluster.values(TOPIC), whole, "{crash:?}");
            assert_eq!(bench.cluster.values(LETTERS), diverted, "{crash:?}");
        }
        if !died {
            assert!(call > 20, "{call}");
            return;
        }
    }
}
