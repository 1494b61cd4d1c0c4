//! What a topology looks like: read back after each lease, and compared with what it was at first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wopr_machine::paths::{CLOCK, CLOCK_RATE, STACK_ENV};
use wopr_machine::protocol::{Reply, Request};

use super::database;
use crate::control::ControlError;
use crate::engine::{Change, Layer};
use crate::machine::{RunningMachine, VPS};
use crate::service::Service;
use crate::topology::{Topology, TopologyError};

/// A listing takes milliseconds.
const LIMIT: Duration = Duration::from_secs(10);

/// Where files come and go all the time: runtimes and services keep what they are busy with there.
const VOLATILE: [&str; 6] = ["/tmp", "/run", "/var/run", "/var/tmp", "/var/log", "/var/cache"];

/// Prints a line for each packet rule, queue, address, route, listener and program of a machine. Not in it is
/// what another start of the same changes: counters, the addresses of inner containers, the ports of the
/// engine's own resolver. Of the programs, those that the machine itself started or inherited, and those that somebody
/// started in a container that ran already.
const LISTING: &str = r#"
{ iptables-save; ip6tables-save; } 2>/dev/null | sed -E \
  -e '/^(#|COMMIT)/d' -e 's/ ?\[[0-9:]+\]//' -e 's/10\.86\.([0-9]+)\.[0-9]+\/32/10.86.\1.x/' \
  -e 's/(10\.86\.[0-9]+)\.[0-9]+:/\1.x:/' -e 's/(127\.0\.0\.11:|--sport )[0-9]+/\1x/' -e 's/^/rule /'
tc qdisc show | grep -v noqueue | sed 's/^/queue /'
ip -4 -oneline address | awk '{ print "address", $2, $4 }' | sed -E 's/^(address) (br-|veth)[^ ]*/\1 \2/'
ip -4 route | sed -E -e 's/br-[0-9a-f]+/br-/' -e 's/^/route /'
ss -Hlntu | awk '$5 !~ /^127\.0\.0\.11:/ { print "listener", $1, $5 }'
ps -eo pid=,ppid=,comm= | awk -v self=$$ '
  { parent[$1] = $2; name[$1] = $3 }
  END { for (p in name) { up = parent[p]; if (p != self && up != self && (up == 1 || name[up] == "wopr-machine")) print "program", name[p] } }'
# In the containers of services: all but the first of each. What looks after the health of one comes and goes.
later() {
  ps -eo pid=,ppid=,comm= --sort=start_time | awk '
    { parent[$1] = $2; name[$1] = $3; order[NR] = $1 }
    END { for (i = 1; i <= NR; i++) { up = parent[order[i]]; if (name[up] ~ /^containerd-shim/ && before[up]++) print order[i], name[order[i]] } }' | sort
}
left=$(later)
for pause in 0.05 0.1 0.2 0.4 0.8 1.6; do
  [ -n "$left" ] || break
  sleep $pause
  left=$({ echo "$left"; later; } | sort | uniq -d)
done
echo "$left" | sed -n 's/^[0-9]* /program in a container: /p'
"#;

/// What was read of a topology, as lines by aspect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State(BTreeMap<String, Vec<String>>);

/// How a topology differs from what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Of what, as `vps` or `database`.
    pub aspect: String,
    /// Lines that were there and are not.
    pub lost: Vec<String>,
    /// Lines that were not there and are.
    pub left: Vec<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = self.lost.iter().map(|line| format!("lost {line:?}"));
        let left = self.left.iter().map(|line| format!("left {line:?}"));
        let all: Vec<_> = lost.chain(left).collect();
        write!(f, "{}: {}", self.aspect, all.join(", "))
    }
}

impl State {
    /// Reads a topology.
    pub(crate) async fn read(topology: &Topology) -> Result<Self, TopologyError> {
        let machines = futures_util::future::try_join_all(topology.machines().map(of_machine));
        let (machines, database, recorder) =
            tokio::try_join!(machines, database::read(topology), of_recorder(topology))?;
        // After the machines, where the program that lists files would be listed.
        let services = of_services(topology).await?;
        let mut all: BTreeMap<_, _> = machines.into_iter().flatten().collect();
        all.insert("services".to_owned(), services);
        all.insert("database".to_owned(), database);
        all.insert("recorder".to_owned(), recorder);
        all.insert("clock".to_owned(), of_clock(topology)?);
        all.insert("sidecar".to_owned(), of_sidecar(topology).await?);
        Ok(Self(all))
    }

    /// Lines of an aspect.
    pub(crate) fn lines(&self, aspect: &str) -> &[String] {
        self.0.get(aspect).map_or(&[], Vec::as_slice)
    }

    /// How `now` differs.
    pub(crate) fn differences(&self, now: &Self) -> Vec<Difference> {
        let aspects: BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        let difference = |aspect: &String| {
            let (was, is) = (self.lines(aspect), now.lines(aspect));
            let difference = Difference {
                aspect: aspect.clone(),
                lost: without(was, is),
                left: without(is, was),
            };
            (!difference.lost.is_empty() || !difference.left.is_empty()).then_some(difference)
        };
        aspects.into_iter().filter_map(difference).collect()
    }
}

/// The lines of `all` that `taken` has not, each as often as it is there.
fn without(all: &[String], taken: &[String]) -> Vec<String> {
    let mut counts = BTreeMap::new();
    for line in taken {
        *counts.entry(line).or_insert(0) += 1;
    }
    let rest = all.iter().filter(|line| match counts.get_mut(line) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    });
    rest.cloned().collect()
}

fn sorted(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<_> = lines.collect();
    lines.sort();
    lines
}

async fn of_machine(machine: &RunningMachine) -> Result<[(String, Vec<String>); 2], TopologyError> {
    let mut control = machine.control().await?;
    let listing = control.run(&["sh", "-c", LISTING], LIMIT).await?;
    let faults = match control.ask(&Request::Faults).await? {
        Reply::Faults { names } => names,
        _ => Vec::new(),
    };
    let (container, layer) = machine.fingerprint().await?;
    // A machine that has moved is another to whoever knew its address; one off the network is none.
    let state = machine.state().await?;
    let place = |(network, address): (&String, &Option<Ipv4Addr>)| format!("on {network} at {address:?}");
    let places: Vec<_> = state
        .iter()
        .flat_map(|state| state.networks.iter().map(place))
        .collect();
    let settings = std::fs::read(machine.control_directory().join(STACK_ENV)).unwrap_or_default();
    // By digest: there are secrets in it.
    let settings = format!("settings {}", &super::digest(&settings)[..12]);
    let changes = machine
        .host()
        .changes(machine.container(), layer.as_ref())
        .await?;
    Ok([
        (
            machine.name().to_string(),
            sorted(
                listing
                    .lines()
                    .map(str::to_owned)
                    .chain(places)
                    .chain(lasting(changes))
                    .chain([container, settings]),
            ),
        ),
        (format!("faults of {}", machine.name()), faults),
    ])
}

async fn of_services(topology: &Topology) -> Result<Vec<String>, TopologyError> {
    let machines = topology.machines().map(|machine| {
        let services = topology.expected_services().into_iter();
        let of_it = services.filter(|service| topology.machine_of(*service).name() == machine.name());
        of_services_of(machine, of_it.collect())
    });
    Ok(futures_util::future::try_join_all(machines).await?.concat())
}

async fn of_services_of(
    machine: &RunningMachine,
    services: Vec<Service>,
) -> Result<Vec<String>, TopologyError> {
    let looks = services.iter().map(|service| async move {
        let container = service.container();
        let (line, layer) = machine.engine().fingerprint(&container).await?;
        Ok::<_, TopologyError>((*service, container, line, layer))
    });
    let looks = futures_util::future::try_join_all(looks).await?;
    // All in one go, in the machine, where the files are.
    let layers: Vec<&Layer> = looks.iter().filter_map(|(.., layer)| layer.as_ref()).collect();
    let listing = Layer::listing(&layers);
    let listing: Vec<&str> = listing.iter().map(String::as_str).collect();
    let listed = machine.control().await?.run(&listing, LIMIT).await?;
    let mut listed = Layer::listed(&listed).into_iter();
    let mut lines = Vec::new();
    for (service, container, line, layer) in looks {
        let changes = match layer {
            Some(_) => listed.next().unwrap_or_default(),
            None => machine.engine().changes(&container, None).await?,
        };
        lines.push(format!("{service} {line}"));
        lines.extend(lasting(changes).map(|change| format!("{service} {change}")));
    }
    Ok(lines)
}

/// A line for each change that tells of one of its container.
fn lasting(changes: Vec<Change>) -> impl Iterator<Item = String> {
    let lasting = changes
        .into_iter()
        .filter(|change| is_lasting(Path::new(&change.path)));
    lasting.map(|Change { path, kind }| format!("file {path} {kind}"))
}

/// Whether a change of a file tells of a change of its container: it is neither in a volatile directory nor one on
/// the way there.
fn is_lasting(path: &Path) -> bool {
    !VOLATILE
        .iter()
        .any(|volatile| path.starts_with(volatile) || Path::new(volatile).starts_with(path))
}

async fn of_recorder(topology: &Topology) -> Result<Vec<String>, TopologyError> {
    let mut control = topology.control(&VPS).await?;
    match control.ask(&Request::Records).await? {
        Reply::Records { records } => Ok(records
            .iter()
            .map(|record| format!("{} {}", record.method, record.path))
            .collect()),
        other => Err(ControlError::Refused {
            machine: VPS.to_string(),
            reason: format!("an answer that is none: {other:?}"),
        }
        .into()),
    }
}

fn of_clock(topology: &Topology) -> Result<Vec<String>, TopologyError> {
    let file = topology
        .machine(&VPS)
        .control_directory()
        .join(CLOCK)
        .join(CLOCK_RATE);
    let text = std::fs::read_to_string(&file).map_err(TopologyError::io("read the clock in", &file))?;
    Ok(text.lines().map(str::to_owned).collect())
}

async fn of_sidecar(topology: &Topology) -> Result<Vec<String>, TopologyError> {
    let name = topology.setting().sidecar().name;
    let there = topology.engine().container(&name).await?;
    Ok(there.map(|_| name).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    fn state(lines: &[&str]) -> State {
        State(BTreeMap::from([(
            "vps".to_owned(),
            lines.iter().map(|line| (*line).to_owned()).collect(),
        )]))
    }

    #[test]
    fn what_is_the_same_does_not_differ() {
        assert_eq!(state(&["a", "b"]).differences(&state(&["b", "a"])), []);
    }

    #[test]
    fn what_a_service_keeps_in_volatile_directories_is_no_change_of_it() {
        for path in ["/tmp/caddy/instance.uuid", "/var", "/var/log/x", "/run"] {
            assert!(!is_lasting(Path::new(path)), "{path}");
        }
        for path in ["/var/lib/x", "/etc/hosts", "/tmpfile"] {
            assert!(is_lasting(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_line_that_is_there_once_more_is_left() {
        let differences = state(&["a", "a"]).differences(&state(&["a", "a", "a"]));
        assert_eq!(differences[0].to_string(), r#"vps: left "a""#);
    }

    #[test]
    fn an_aspect_that_is_new_is_left_and_one_that_is_gone_is_lost() {
        let differences = state(&["a"]).differences(&State::default());
        assert_eq!(differences[0].to_string(), r#"vps: lost "a""#);
        let differences = State::default().differences(&state(&["a"]));
        assert_eq!(differences[0].to_string(), r#"vps: left "a""#);
    }
}
