//! `wopr bench`: how long a topology takes, and where the time goes.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use wopr_harness::pool;
use wopr_harness::topology::Topology;

use super::table::table;
use super::{Outcome, bars};

#[derive(Args)]
pub(crate) struct Bench {
    /// How often each is measured.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Measure fleets of light machines instead, and the watchdog's cycles over them.
    #[arg(long)]
    fleet: bool,
}

/// What is measured, in the order in which it happens.
const PHASES: [&str; 6] = [
    "request → eight services healthy",
    "seed → platform-api healthy again",
    "request → healthy and seeded",
    "down, read back",
    "lease of a warm topology",
    "reset, read back",
];

impl Bench {
    pub(crate) async fn run(self) -> Outcome {
        if self.fleet {
            return super::bench_fleet::run(self.rounds).await;
        }
        let progress = bars::progress();
        // Images and golden volume are made before the first round.
        Topology::builder()
            .progress(progress.clone())
            .boot()
            .await?
            .down()
            .await?;
        let mut measured: [Vec<Duration>; 6] = Default::default();
        // And a warm topology.
        pool::lease(Topology::builder()).await?.give_back().await?;
        let task = progress.begin("measuring");
        for round in 1..=self.rounds {
            task.detail(&format!("round {round} of {}", self.rounds));
            let began = Instant::now();
            let topology = Topology::builder().boot().await?;
            let healthy = began.elapsed();
            topology.seed_gpu_node().await?;
            let seeded = began.elapsed();
            let falling = Instant::now();
            topology.down().await?;
            let fallen = falling.elapsed();
            let asked = Instant::now();
            let lease = pool::lease(Topology::builder()).await?;
            let leased = asked.elapsed();
            // What a test leaves at least.
            lease.seed_gpu_node().await?;
            let returned = Instant::now();
            lease.give_back().await?;
            let reset = returned.elapsed();
            let all = [healthy, seeded - healthy, seeded, fallen, leased, reset];
            measured
                .iter_mut()
                .zip(all)
                .for_each(|(list, took)| list.push(took));
        }
        task.done();
        let rows = PHASES.into_iter().zip(&mut measured).map(|(phase, list)| {
            list.sort();
            let shown = |took: Option<&Duration>| {
                took.map_or("-".to_owned(), |took| format!("{} ms", took.as_millis()))
            };
            [
                phase.to_owned(),
                shown(list.get(list.len() / 2)),
                shown(list.first()),
                shown(list.last()),
            ]
        });
        say!("{}", table(["what", "median", "least", "most"], rows));
        say!(
            "{} rounds, {} cores",
            self.rounds,
            std::thread::available_parallelism()?
        );
        Ok(ExitCode::SUCCESS)
    }
}
