//! tests/README.md says which scenario shows which clause of the contract: it names those that there are, and leaves
//! none of the contract's own suites out.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result};
use pretty_assertions::assert_eq;

/// Suites of which each scenario is about a clause.
const SUITES: [&str; 6] = [
    "registration",
    "watchdog",
    "partition",
    "restarts",
    "hostile",
    "findings",
];

fn directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))
}

/// The scenarios of a suite, as `suite::scenario`.
fn scenarios(suite: &str) -> Result<BTreeSet<String>> {
    let path = directory().join(format!("{suite}.rs"));
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let tests = text.split("#[tokio::test]\n").skip(1);
    let names = tests.filter_map(|test| {
        let (_, rest) = test.split_once("async fn ")?;
        Some(format!("{suite}::{}", rest.split('(').next()?))
    });
    Ok(names.collect())
}

/// The scenarios of the table, each as it is written there.
fn named() -> Result<BTreeSet<String>> {
    let table = std::fs::read_to_string(directory().join("README.md"))?;
    let rows = table.lines().filter(|line| line.starts_with('|'));
    let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    Ok(quoted
        .filter(|words| words.contains("::"))
        .map(str::to_owned)
        .collect())
}

#[test]
fn every_scenario_that_the_table_of_clauses_names_exists() -> Result<()> {
    let mut missing = Vec::new();
    for name in named()? {
        let suite = name.split("::").next().unwrap_or_default();
        if !scenarios(suite).is_ok_and(|scenarios| scenarios.contains(&name)) {
            missing.push(name);
        }
    }
    assert_eq!(
        missing,
        Vec::<String>::new(),
        "tests/README.md names what does not exist"
    );
    Ok(())
}

#[test]
fn every_scenario_of_the_contracts_suites_is_in_the_table_of_clauses() -> Result<()> {
    let named = named()?;
    let mut left_out = Vec::new();
    for suite in SUITES {
        let scenarios = scenarios(suite)?;
        assert!(!scenarios.is_empty(), "tests/{suite}.rs has no scenario");
        left_out.extend(scenarios.difference(&named).cloned());
    }
    assert_eq!(
        left_out,
        Vec::<String>::new(),
        "tests/README.md has no row for these"
    );
    Ok(())
}
