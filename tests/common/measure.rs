//! What machines take of the host, for a soak to compare: before many leases, and after.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wopr_harness::Topology;
use wopr_harness::control::Control;
use wopr_harness::machine::RunningMachine;

const LIMIT: Duration = Duration::from_secs(10);
/// A listing is a process itself, and one of a service's comes and goes: the least of so many looks counts.
const LOOKS: u32 = 5;
const APART: Duration = Duration::from_millis(200);

/// What is measured, in the order of [`COUNT`], and how much more of it a soak may end with.
const BOUNDS: [(&str, i64); 5] = [
    // Nothing starts one more; workers of Postgres come and go.
    ("processes", 3),
    // Nor opens more. How many a backend of Postgres has open varies with its queries, by ten between two looks.
    ("open files", 30),
    // A rule that no reset takes away would be there once for each lease.
    ("packet rules", 0),
    // Two hundred leases added nothing. Postgres uses the segments of its log again, of 16 MiB; where a checkpoint
    // comes late there are some more of them.
    ("MiB on disk", 150),
    // Two hundred leases added 7: caches that fill. A quarter MiB a lease does not pass.
    ("MiB of memory", 50),
];

/// Prints the first four. Of the disk, what its engine keeps: images are mounted, and nobody's.
const COUNT: &str = "ls /proc | grep -c '^[0-9]'; ls /proc/[0-9]*/fd 2>/dev/null | wc -l; iptables-save | grep -c '^-'; \
    du -smx /var/lib/docker 2>/dev/null | cut -f1";

/// Figures by what they are of, as `gpu processes`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measured(BTreeMap<String, i64>);

impl Measured {
    /// Looks at every machine of a topology.
    pub async fn of(topology: &Topology) -> Result<Self> {
        let mut least = BTreeMap::new();
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(APART).await;
            }
            for machine in topology.machines() {
                let mut control = machine.control().await?;
                for (what, figure) in look_at(topology, machine, &mut control).await? {
                    let key = format!("{} {what}", machine.name());
                    let known = least.entry(key).or_insert(figure);
                    *known = figure.min(*known);
                }
            }
        }
        Ok(Self(least))
    }

    /// As a player says it: the other way is [`Measured::parse`].
    pub fn to_line(&self) -> String {
        let figures = self.0.iter().map(|(what, figure)| format!("{what}: {figure}"));
        figures.collect::<Vec<_>>().join(", ")
    }

    pub fn parse(line: &str) -> Result<Self> {
        let figure = |part: &str| {
            let (what, figure) = part.split_once(": ")?;
            Some((what.to_owned(), figure.parse().ok()?))
        };
        let figures: Option<_> = line.split(", ").map(figure).collect();
        Ok(Self(figures.with_context(|| format!("no figures: {line}"))?))
    }

    /// What has grown by more than it may since `before`, each in words.
    pub fn drift(&self, before: &Self) -> Vec<String> {
        let grown = self.0.iter().filter_map(|(what, now)| {
            let was = before.0.get(what).copied().unwrap_or_default();
            let (_, bound) = BOUNDS.iter().find(|(kind, _)| what.ends_with(kind))?;
            (now - was > *bound).then(|| format!("{what}: {was} before, {now} after, {bound} more may be"))
        });
        grown.collect()
    }
}

async fn look_at(
    topology: &Topology,
    machine: &RunningMachine,
    control: &mut Control,
) -> Result<Vec<(&'static str, i64)>> {
    let listed = control.run(&["sh", "-c", COUNT], LIMIT).await?;
    let mut figures: Vec<i64> = listed
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let memory = topology.engine().memory(machine.container()).await?;
    figures.push(i64::try_from(memory.held() >> 20)?);
    ensure!(figures.len() == BOUNDS.len(), "not {}: {listed}", BOUNDS.len());
    Ok(BOUNDS.iter().map(|(what, _)| *what).zip(figures).collect())
}

/// How many files this process has open.
pub fn open_files() -> Result<usize> {
    // The listing itself is one.
    Ok(std::fs::read_dir("/proc/self/fd")?.count() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_by_more_than_it_may_is_named_and_nothing_else() {
        let before = Measured::parse("gpu processes: 30, gpu packet rules: 12, vps open files: 200").unwrap();
        assert_eq!(Measured::parse(&before.to_line()).unwrap(), before);
        let after = Measured::parse("gpu processes: 33, gpu packet rules: 13, vps open files: 170").unwrap();
        assert_eq!(
            after.drift(&before),
            ["gpu packet rules: 12 before, 13 after, 0 more may be"]
        );
    }
}
