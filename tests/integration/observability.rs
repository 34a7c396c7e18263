//! Alerts, dashboard and runbooks fit together. `.ci/observability`, which needs Prometheus, tests that the queries name
//! what a bridge exports and that the alerts fire when they should.

use std::{collections::BTreeSet, fs, path::Path};

use cmc_bridge::metrics::BlockReason;
use serde_json::Value;

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The name and text of each alert; the text ends at the name of the next one.
fn alerts() -> Vec<(String, String)> {
    let text = read("deploy/prometheus/rules.yaml");
    let blocks = text.split("- alert: ").skip(1);
    blocks
        .map(|block| (block.lines().next().unwrap().to_owned(), block.to_owned()))
        .collect()
}

#[test]
fn every_alert_says_what_to_do_and_has_a_runbook_and_a_test() {
    let alerts = alerts();
    let tests = read("deploy/prometheus/rules.test.yaml");
    for (name, text) in &alerts {
        for wanted in ["severity: ", "summary: ", "description: "] {
            assert!(text.contains(wanted), "{name} has no {wanted}");
        }
        let runbook = format!("runbook_url: docs/operations.md#{}\n", name.to_lowercase());
        assert!(text.contains(&runbook), "{name}: {runbook}");
        assert!(
            tests.contains(&format!("alertname=\"{name}\"")),
            "no test has {name}"
        );
    }
    let names: BTreeSet<&str> = alerts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.len(), alerts.len());
    let runbooks = read("docs/operations.md");
    let sections: BTreeSet<&str> = runbooks
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect();
    assert_eq!(sections, names, "runbooks and alerts differ");
}

#[test]
fn every_reason_of_a_blocked_lane_has_a_cure() {
    let text = read("docs/operations.md");
    for reason in BlockReason::ALL {
        let row = format!("| `{}` | ", reason.label());
        assert!(text.contains(&row), "no row {row}");
    }
}

#[test]
fn the_dashboard_is_complete() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "{title}: its id is taken"
        );
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(x + w <= 24, "{title} is beyond 24 columns");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{title} covers another panel at {cell:?}");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert_ne!(panel["description"].as_str().unwrap(), "", "{title}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for query in [panel].into_iter().chain(targets) {
            assert_eq!(query["datasource"]["uid"], "${datasource}", "{title}");
        }
        for target in targets {
            let expr = target["expr"].as_str().unwrap();
            for variable in ["$namespace", "$job", "$instance"] {
                assert!(expr.contains(variable), "{title} ignores {variable}");
            }
        }
    }
    // The most important panels are at the top, visible without scrolling or opening a row.
    let top: Vec<_> = panels.iter().filter(|panel| panel["gridPos"]["y"] == 0).collect();
    assert_eq!(
        top.iter()
            .map(|panel| panel["gridPos"]["w"].as_u64().unwrap())
            .sum::<u64>(),
        24
    );
    assert!(top.iter().all(|panel| panel["type"] != "row"));
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables
        .iter()
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["datasource", "namespace", "job", "instance", "stream"]);
}
