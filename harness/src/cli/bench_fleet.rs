//! `wopr bench --fleet`: what a node takes that platform-api makes, what a fleet of light machines takes, and what one
//! of the watchdog's cycles costs.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use wopr_harness::clock::{POLL, Rate, polls};
use wopr_harness::history::History;
use wopr_harness::machine::{MachineName, Role};
use wopr_harness::seed::FleetNode;
use wopr_harness::topology::Topology;
use wopr_harness::watch::all_ok;

use super::table::table;
use super::{Failure, Outcome, bars};

/// Machines of the fleets that are booted.
const FLEETS: [usize; 2] = [16, 32];
/// Nodes that a cycle is measured with, on the larger fleet. One node's would be one row.
const NODES: [usize; 4] = [32, 16, 8, 2];
/// Cycles that are measured with each number of nodes, in each round; the first and the last are cut.
const CYCLES: u32 = 6;
const LIMIT: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;

/// What was measured, in the order of the table.
#[derive(Default)]
struct Figures(Vec<Figure>);

struct Figure {
    what: String,
    unit: &'static str,
    values: Vec<u64>,
}

impl Figures {
    fn add(&mut self, what: &str, unit: &'static str, values: impl IntoIterator<Item = u64>) {
        match self.0.iter_mut().find(|figure| figure.what == what) {
            Some(figure) => figure.values.extend(values),
            None => self.0.push(Figure {
                what: what.to_owned(),
                unit,
                values: values.into_iter().collect(),
            }),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Measures, and prints a table.
pub(crate) async fn run(rounds: usize) -> Outcome {
    let progress = bars::progress();
    // Images and golden volume are made before the first round.
    let first = Topology::builder().gpus(1).light().progress(progress.clone());
    first.boot().await?.down().await?;
    let mut figures = Figures::default();
    let task = progress.begin("measuring");
    for round in 1..=rounds {
        task.detail(&format!(
            "round {round} of {rounds}, a node that is made and rebooted"
        ));
        let (made, rate) = (super::bench_cloud::measure().await?, Rate::FAST);
        let (order, outage) = (millis(made.provisioned), millis(made.recovered));
        figures.add(&format!("a node's order → active, {rate}"), "ms", [order]);
        figures.add(
            &format!("outage → recovered by a real reboot, {rate}"),
            "ms",
            [outage],
        );
        for count in FLEETS {
            task.detail(&format!("round {round} of {rounds}, {count} machines"));
            measure(count, &mut figures).await?;
        }
    }
    task.done();
    let rows = figures.0.into_iter().map(|mut figure| {
        figure.values.sort_unstable();
        let shown =
            |value: Option<&u64>| value.map_or("-".to_owned(), |value| format!("{value} {}", figure.unit));
        [
            figure.what.clone(),
            shown(figure.values.get(figure.values.len() / 2)),
            shown(figure.values.first()),
            shown(figure.values.last()),
        ]
    });
    say!("{}", table(["what", "median", "least", "most"], rows));
    say!(
        "{rounds} rounds, {} cores, platform-api's clock {}; other work on the host shows in its memory",
        std::thread::available_parallelism()?,
        Rate::FAST
    );
    Ok(ExitCode::SUCCESS)
}

async fn measure(count: usize, figures: &mut Figures) -> Result<(), Failure> {
    let free = available_memory()?;
    let began = Instant::now();
    let builder = Topology::builder().gpus(count).light().rate(Rate::FAST);
    let topology = builder.boot().await?;
    let name = |what: &str| format!("{count} light machines: {what}");
    figures.add(&name("request → all healthy"), "ms", [millis(began.elapsed())]);
    let nodes = topology.seed_fleet().await?;
    let mut watch = topology.watch_fleet(&nodes).await?;
    watch.until_each(all_ok()).within(polls(6)).await?;
    figures.add(
        &name("request → found well by the watchdog"),
        "ms",
        [millis(began.elapsed())],
    );
    let taken = free.saturating_sub(available_memory()?);
    figures.add(
        &name("the host's memory, with the VPS machine's"),
        "MiB",
        [taken / MIB],
    );
    figures.add(
        &name("memory of each one's process"),
        "KiB",
        each_memory(&topology).await?,
    );
    if count == FLEETS[1] {
        for left in NODES {
            let left = &nodes[..left];
            remove_all_but(&topology, left).await?;
            let spans = cycles_of(&topology, left).await?;
            let (count, gaps) = (left.len(), u32::try_from(left.len() - 1)?);
            let of = |span: &Duration| micros(*span);
            figures.add(
                &format!("a cycle of {count} nodes, first row to last"),
                "µs",
                spans.iter().map(of),
            );
            let shares: Vec<_> = spans.iter().map(|span| *span / gaps).collect();
            figures.add(
                &format!("each further node in a cycle of {count}"),
                "µs",
                shares.iter().map(of),
            );
        }
    }
    topology.down().await?;
    Ok(())
}

/// What the host could give to programs now, in bytes.
fn available_memory() -> Result<u64, Failure> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    Ok(kib.ok_or("/proc/meminfo does not tell MemAvailable")? * 1024)
}

/// What the processes of each GPU machine hold for themselves, in KiB.
async fn each_memory(topology: &Topology) -> Result<Vec<u64>, Failure> {
    let gpus = topology
        .machines()
        .filter(|machine| machine.name().role() == Role::Gpu);
    let each = gpus.map(|machine| async {
        let read = ["sh", "-c", "cat /proc/[0-9]*/smaps_rollup 2>/dev/null"];
        let text = machine.control().await?.run_any(&read, LIMIT).await?.1;
        Ok::<_, Failure>(anonymous(&text))
    });
    try_join_all(each).await
}

/// The sum of what smaps_rollup calls anonymous, in KiB.
fn anonymous(text: &str) -> u64 {
    let lines = text.lines().filter_map(|line| line.strip_prefix("Anonymous:"));
    lines
        .filter_map(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .sum()
}

async fn remove_all_but(topology: &Topology, left: &[FleetNode]) -> Result<(), Failure> {
    let left: Vec<String> = left.iter().map(|node| node.id.to_string()).collect();
    let mut database = topology.database().await?;
    sqlx::query("DELETE FROM gpu_nodes WHERE id <> ALL($1)")
        .bind(left)
        .execute(&mut database)
        .await?;
    Ok(())
}

/// How long whole cycles took from now on, from the first node's row to the last's.
async fn cycles_of(topology: &Topology, nodes: &[FleetNode]) -> Result<Vec<Duration>, Failure> {
    let mut watch = topology.watch_fleet(nodes).await?;
    let from = watch
        .history()
        .await?
        .events
        .last()
        .map_or(0, |event| event.at_us);
    watch.polls(CYCLES).await?;
    let history = watch.history().await?;
    let pause = Rate::FAST.real(POLL) / 4;
    Ok(spans(&times_of_polls(&history, nodes, from), nodes.len(), pause))
}

/// When each poll of each node was written.
fn times_of_polls(history: &History, nodes: &[FleetNode], from: i64) -> Vec<(i64, MachineName)> {
    let mut times = Vec::new();
    for node in nodes {
        let polls = history.polls(node.id.as_str());
        let later = polls.into_iter().filter(|(at, _)| *at > from);
        times.extend(later.map(|(at, _)| (at, node.machine.clone())));
    }
    times.sort();
    times
}

/// Parts a row of polls where nothing was written for `pause`, and returns how long each part lasted that has
/// every node once: the first and the last may be cut off.
fn spans<N: Ord + Clone>(times: &[(i64, N)], nodes: usize, pause: Duration) -> Vec<Duration> {
    let pause = i64::try_from(pause.as_micros()).unwrap_or(i64::MAX);
    let cycles = times.chunk_by(|before, after| after.0 - before.0 < pause);
    let whole = cycles.filter(|cycle| {
        let seen: BTreeSet<_> = cycle.iter().map(|(_, node)| node.clone()).collect();
        cycle.len() == nodes && seen.len() == nodes
    });
    let span = |cycle: &[(i64, N)]| cycle[cycle.len() - 1].0 - cycle[0].0;
    whole
        .map(|cycle| Duration::from_micros(u64::try_from(span(cycle)).unwrap_or_default()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_are_told_apart_by_the_pause_between_them() {
        let times = [
            (900, 'b'),
            (30_000, 'a'),
            (30_400, 'b'),
            (60_000, 'a'),
            (60_700, 'b'),
            (90_000, 'a'),
        ];
        let micros = |list: &[u64]| list.iter().map(|n| Duration::from_micros(*n)).collect::<Vec<_>>();
        let found = spans(&times, 2, Duration::from_millis(7));
        assert_eq!(found, micros(&[400, 700]), "the first and the last are not whole");
    }

    #[test]
    fn a_cycle_that_has_a_node_twice_is_none() {
        let times = [(0, 'a'), (10, 'a')];
        assert!(spans(&times, 2, Duration::from_millis(1)).is_empty());
    }

    #[test]
    fn memory_of_several_processes_is_added_up() {
        let text = "Rss:  900 kB\nAnonymous:  300 kB\nRss: 7 kB\nAnonymous:   20 kB\n";
        assert_eq!(anonymous(text), 320);
    }
}
