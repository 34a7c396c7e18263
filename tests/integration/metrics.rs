//! A scrape of `/metrics`, and a check of its books.

use std::collections::BTreeMap;

/// The streams that are enabled by default.
pub const STREAMS: [&str; 3] = ["deliveries", "bounces", "dead_letters"];

type Labels = BTreeMap<String, String>;

/// All series of one scrape.
#[derive(Debug, Default)]
pub struct Scrape(BTreeMap<String, Vec<(Labels, f64)>>);

impl Scrape {
    /// Parses the Prometheus text format.
    pub fn parse(text: &str) -> Self {
        let mut series: BTreeMap<String, Vec<(Labels, f64)>> = BTreeMap::new();
        for line in text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let (name, labels, value) = parse_line(line).unwrap_or_else(|| panic!("not a sample: {line:?}"));
            series.entry(name).or_default().push((labels, value));
        }
        Scrape(series)
    }

    fn matching<'a>(&'a self, name: &str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = f64> + 'a {
        self.0
            .get(name)
            .into_iter()
            .flatten()
            .filter(|(have, _)| {
                labels
                    .iter()
                    .all(|(key, value)| have.get(*key).map(String::as_str) == Some(*value))
            })
            .map(|(_, value)| *value)
    }

    /// The sum of the series that have these labels, possibly among others.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).sum()
    }

    /// Like [`Scrape::sum`], but at least one such series must exist.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        assert!(
            self.matching(name, labels).next().is_some(),
            "no series {name} with {labels:?}; there are {:?}",
            self.0.get(name)
        );
        self.sum(name, labels)
    }

    /// The values of one label in all series of a name.
    pub fn label_values(&self, name: &str, label: &str) -> Vec<&str> {
        let series = self.0.get(name).into_iter().flatten();
        series
            .filter_map(|(labels, _)| labels.get(label).map(String::as_str))
            .collect()
    }

    /// The value of a gauge or counter of a stream.
    pub fn stream(&self, name: &str, stream: &str) -> f64 {
        self.get(name, &[("stream", stream)])
    }

    /// The number of undelivered events of all streams.
    pub fn backlog(&self) -> f64 {
        self.get("cmc_bridge_backlog_events", &[])
    }

    /// `recovered + accepted = delivered + diverted + backlog`, for each stream whose log is open.
    pub fn check_accounts(&self) {
        for stream in self.label_values("cmc_bridge_recovered_events", "stream") {
            let recovered = self.stream("cmc_bridge_recovered_events", stream);
            let accepted = self.stream("cmc_bridge_events_total", stream);
            let delivered = self.stream("cmc_bridge_delivered_events_total", stream);
            let diverted = self.stream("cmc_bridge_diverted_events_total", stream);
            let backlog = self.stream("cmc_bridge_backlog_events", stream);
            assert_eq!(
                recovered + accepted,
                delivered + diverted + backlog,
                "{stream}: recovered {recovered} + accepted {accepted} != \
                 delivered {delivered} + diverted {diverted} + backlog {backlog}"
            );
        }
    }
}

fn parse_line(line: &str) -> Option<(String, Labels, f64)> {
    let Some((name, rest)) = line.split_once('{') else {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?.to_owned();
        return Some((name, Labels::new(), words.next()?.parse().ok()?));
    };
    let mut labels = Labels::new();
    let mut rest = rest;
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(value) = rest.strip_prefix('}') {
            return Some((
                name.to_owned(),
                labels,
                value.split_ascii_whitespace().next()?.parse().ok()?,
            ));
        }
        let (label, after) = rest.split_once("=\"")?;
        let (value, end) = quoted(after)?;
        labels.insert(label.to_owned(), value);
        rest = &after[end..];
    }
}

/// The text up to the closing quote, unescaped, and the offset after that quote.
fn quoted(text: &str) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, at + 1)),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[test]
fn parses_the_text_format() {
    let scrape = Scrape::parse(
        "# HELP a b\n# TYPE a counter\na 1\nb{x=\"1\",y=\"q\\\"}\"} 2.5\nb{x=\"2\",y=\"\"} 3e2 1700000000000\n",
    );
    assert_eq!(scrape.get("a", &[]), 1.0);
    assert_eq!(scrape.get("b", &[("y", "q\"}")]), 2.5);
    assert_eq!(scrape.sum("b", &[]), 302.5);
    assert_eq!(scrape.label_values("b", "x"), ["1", "2"]);
}
