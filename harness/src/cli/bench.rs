//! `wopr bench`: how long a topology takes, what it takes of the host, and where the time goes.

mod figure;
mod profile;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::future::join_all;
use serde_json::json;
use wopr_harness::dirs::Dirs;
use wopr_harness::engine::Memory;
use wopr_harness::pool;
use wopr_harness::progress::Progress;
use wopr_harness::topology::{Topology, TopologyError};

use super::table::table;
use super::{Failure, Outcome, bars};
use figure::{Figure, Target, Unit};
use profile::{Profile, Spans};

/// An idle topology is one that the start of its services does not busy any more.
const SETTLED: Duration = Duration::from_secs(2);
/// Topologies that a host of 4 cores and 24 GB is to bear.
const MANY: f64 = 12.0;
const MEBIBYTE: f64 = (1 << 20) as f64;

#[derive(Args)]
pub(crate) struct Bench {
    /// How often each is measured.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Measure a node that platform-api makes and reboots, fleets of light machines, and the watchdog's cycles over
    /// them instead.
    #[arg(long)]
    fleet: bool,
    /// Boot so many topologies at once, and count those whose services are all healthy at one moment.
    #[arg(long, value_name = "N")]
    side_by_side: Option<u16>,
    /// Measure the way without golden volumes as well: empty engines, images loaded into them, compose, seeder.
    #[arg(long)]
    seeds_way: bool,
    /// Run the whole scenario suite under nextest as well, once.
    #[arg(long)]
    suite: bool,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub(crate) async fn run(self) -> Outcome {
        if self.fleet {
            return super::bench_fleet::run(self.rounds.into()).await;
        }
        let progress = bars::progress();
        // Images, golden volume and one warm topology are there before the first round.
        pool::lease(Topology::builder().progress(progress.clone()))
            .await?
            .give_back()
            .await?;
        let mut spans = Spans::default();
        let mut figures = self.rounds(&progress, &mut spans).await?;
        if let Some(count) = self.side_by_side {
            figures.extend(side_by_side(count, &progress).await?);
        }
        let mut bare = Spans::default();
        if self.seeds_way {
            figures.push(self.seeds_way(&progress, &mut bare).await?);
        }
        let mut ended_well = true;
        if self.suite {
            let (figure, well) = suite(&progress).await?;
            figures.push(figure);
            ended_well = well;
        }
        self.show(&figures, &spans, &bare)?;
        Ok(if ended_well {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn show(&self, figures: &[Figure], spans: &Spans, bare: &Spans) -> Result<(), Failure> {
        let cores = std::thread::available_parallelism()?;
        if self.json {
            let all = |figures: &mut dyn Iterator<Item = &Figure>| -> Vec<_> {
                figures.map(Figure::to_json).collect()
            };
            let document = json!({
                "rounds": self.rounds, "cores": cores, "figures": all(&mut figures.iter()),
                "boot": all(&mut spans.figures()), "seeds_way": all(&mut bare.figures()),
            });
            say!("{document:#}");
            return Ok(());
        }
        let head = ["what", "median", "least", "most", "target on 4 cores", ""];
        say!("{}", table(head, figures.iter().map(Figure::row)));
        let steps = |spans: &Spans| {
            let rows = spans.figures().map(Figure::row);
            rows.map(|[what, median, least, most, ..]| [what, median, least, most])
                .collect::<Vec<_>>()
        };
        let head = |what| [what, "median", "least", "most"];
        say!("\n{}", table(head("where a boot's time goes"), steps(spans)));
        if self.seeds_way {
            say!(
                "\n{}",
                table(head("where the seed's way's time goes"), steps(bare))
            );
        }
        say!("\n{} rounds, {cores} cores", self.rounds);
        Ok(())
    }

    async fn rounds(&self, progress: &Progress, spans: &mut Spans) -> Result<Vec<Figure>, Failure> {
        let time = |what| Figure::new(what, Unit::Milliseconds);
        let memory = |what| Figure::new(what, Unit::Mebibytes);
        let mut healthy = time("request → eight services healthy");
        let mut seeded = time("request → healthy, node seeded").target(Target::AtMost(2000.0));
        let mut fallen = time("teardown, read back").target(Target::AtMost(1000.0));
        let mut leased = time("lease of a warm topology").target(Target::AtMost(100.0));
        let mut reset = time("reset, verified").target(Target::AtMost(700.0));
        let mut held = memory("memory of an idle topology").target(Target::AtMost(350.0));
        let mut cached = memory("page cache beside it");
        let task = progress.begin("measuring");
        for round in 1..=self.rounds {
            task.detail(&format!("round {round} of {}", self.rounds));
            let profile = Profile::default();
            let began = Instant::now();
            let topology = Topology::builder().progress(profile.progress()).boot().await?;
            healthy.took(began.elapsed());
            let mut steps = profile.end(began);
            let seeding = Instant::now();
            topology.seed_gpu_node().await?;
            steps.push((
                "seeding, platform-api healthy again".to_owned(),
                seeding.elapsed(),
            ));
            seeded.took(began.elapsed());
            spans.add(steps);
            // Not an event: memory has none that says when it has settled.
            tokio::time::sleep(SETTLED).await;
            let taken = memory_of(&topology).await?;
            held.add(taken.held() as f64 / MEBIBYTE);
            cached.add(taken.cached as f64 / MEBIBYTE);
            let falling = Instant::now();
            topology.down().await?;
            fallen.took(falling.elapsed());
            let asked = Instant::now();
            let lease = pool::lease(Topology::builder()).await?;
            leased.took(asked.elapsed());
            // What a test leaves at least.
            lease.seed_gpu_node().await?;
            let returned = Instant::now();
            lease.give_back().await?;
            reset.took(returned.elapsed());
        }
        task.done();
        Ok(vec![healthy, seeded, leased, reset, fallen, held, cached])
    }

    /// As often as it takes to know: it takes many times as long as all else.
    async fn seeds_way(&self, progress: &Progress, spans: &mut Spans) -> Result<Figure, Failure> {
        let what = "the seed's way: up, load images, wait, seed";
        let mut whole = Figure::new(what, Unit::Milliseconds);
        let task = progress.begin("the seed's way");
        let rounds = self.rounds.min(3);
        for round in 1..=rounds {
            task.detail(&format!("round {round} of {rounds}"));
            let began = Instant::now();
            let bare = Topology::builder().boot_bare().await?;
            let seeding = Instant::now();
            bare.topology.seed_gpu_node().await?;
            whole.took(began.elapsed());
            let named = bare.steps.into_iter().map(|(step, took)| (step.to_owned(), took));
            let seeding = (
                "seeding, platform-api healthy again".to_owned(),
                seeding.elapsed(),
            );
            spans.add(named.chain([seeding]).collect());
            bare.topology.down().await?;
        }
        task.done();
        Ok(whole)
    }
}

/// All containers of a topology.
async fn memory_of(topology: &Topology) -> Result<Memory, Failure> {
    let engine = topology.engine();
    let taken = topology
        .machines()
        .map(|machine| engine.memory(machine.container()));
    let taken = join_all(taken).await.into_iter();
    Ok(taken.sum::<Result<Memory, _>>()?)
}

/// Boots so many at once; what does not boot is told of, and does not count.
async fn side_by_side(count: u16, progress: &Progress) -> Result<[Figure; 2], Failure> {
    let task = progress.begin(format!("{count} topologies side by side"));
    let began = Instant::now();
    let booted = join_all((0..count).map(|_| Topology::builder().progress(Progress::silent()).boot())).await;
    let mut took = Figure::new("all of them booted", Unit::Milliseconds);
    took.took(began.elapsed());
    task.detail("asking all services of all at once");
    let mut standing = Vec::new();
    for topology in booted {
        match topology {
            Ok(topology) => standing.push(topology),
            Err(error) => anstream::eprintln!("wopr: one of {count} did not boot: {error}"),
        }
    }
    let well = join_all(standing.iter().map(all_healthy)).await;
    let mut healthy = Figure::new("topologies side by side, all healthy", Unit::Topologies);
    if f64::from(count) >= MANY {
        healthy = healthy.target(Target::AtLeast(MANY));
    }
    healthy.add(well.into_iter().filter(|well| *well).count() as f64);
    task.detail("taking them down");
    let down = join_all(standing.into_iter().map(Topology::down)).await;
    down.into_iter().collect::<Result<(), TopologyError>>()?;
    task.done();
    Ok([healthy, took])
}

async fn all_healthy(topology: &Topology) -> bool {
    let asked = topology.expected_services().into_iter();
    let health = join_all(asked.map(|service| topology.health(service))).await;
    health.iter().all(wopr_harness::topology::ServiceHealth::is_ok)
}

/// The suite, built before; its words go to standard error. Returns whether all was green.
async fn suite(progress: &Progress) -> Result<(Figure, bool), Failure> {
    let root = Dirs::find()?.root;
    let cargo = |arguments: &[&str]| {
        let mut command = tokio::process::Command::new("cargo");
        command.args(["nextest", "run", "--package", "wopr-scenarios"]);
        command.args(arguments).current_dir(&root).kill_on_drop(true);
        // Standard output is the table's.
        command.stdout(std::io::stderr());
        command
    };
    let task = progress.begin("building the suite");
    if !cargo(&["--no-run"]).status().await?.success() {
        return Err(
            "the suite does not build, or cargo-nextest is not there: `cargo install cargo-nextest`".into(),
        );
    }
    task.done();
    let task = progress.begin("running the suite");
    let began = Instant::now();
    let well = cargo(&["--no-fail-fast"]).status().await?.success();
    let what = if well {
        "whole scenario suite"
    } else {
        "whole scenario suite, NOT all green"
    };
    let mut figure = Figure::new(what, Unit::Milliseconds).target(Target::AtMost(90_000.0));
    figure.took(began.elapsed());
    task.done();
    Ok((figure, well))
}
