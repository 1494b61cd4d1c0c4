//! Partitions of a fleet: which machines see each other, and which do not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::rules::drop_all_to;
use super::sight::{Effect, Sight};
use super::{Applying, Fault, FaultError};
use crate::history::{Bearing, Meaning};
use crate::machine::{MachineName, VPS};
use crate::topology::Topology;

/// Machines that change their rules at a time.
const AT_ONCE: usize = 8;

/// Which machines are cut off from each other. Machines that it does not name see all that they saw.
///
/// ```
/// use wopr_harness::fault::Split;
/// use wopr_harness::machine::MachineName;
/// use wopr_harness::{GPU, VPS};
///
/// let fleet: Vec<_> = (1..=4).map(MachineName::gpu).collect();
/// let halves = Split::groups([vec![VPS, GPU, fleet[1].clone()], fleet[2..].to_vec()]);
/// assert_eq!(halves.cut(), 3 * 2);
/// assert_eq!(Split::one_against_the_rest(&VPS, &fleet).cut(), 4);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    shape: String,
    members: BTreeSet<MachineName>,
    /// Each pair once, its names in order.
    pairs: BTreeSet<(MachineName, MachineName)>,
}

fn pair(one: &MachineName, other: &MachineName) -> (MachineName, MachineName) {
    let (low, high) = if one < other { (one, other) } else { (other, one) };
    (low.clone(), high.clone())
}

fn names<'a>(machines: impl IntoIterator<Item = &'a MachineName>) -> String {
    let names: Vec<_> = machines.into_iter().map(MachineName::as_str).collect();
    names.join(" ")
}

impl Split {
    /// Every pair of these but those that see each other.
    fn all_but(shape: String, machines: &[MachineName], sees: impl Fn(usize, usize) -> bool) -> Self {
        let mut pairs = BTreeSet::new();
        for (at, one) in machines.iter().enumerate() {
            for (there, other) in machines.iter().enumerate().skip(at + 1) {
                if one != other && !sees(at, there) {
                    pairs.insert(pair(one, other));
                }
            }
        }
        Self {
            shape,
            members: machines.iter().cloned().collect(),
            pairs,
        }
    }

    /// Groups: the machines of one see each other, and none of another. One that is in several sees them all.
    pub fn groups<G: AsRef<[MachineName]>>(groups: impl IntoIterator<Item = G>) -> Self {
        let groups: Vec<Vec<MachineName>> = groups.into_iter().map(|group| group.as_ref().to_vec()).collect();
        let shape = groups.iter().map(|group| format!("[{}]", names(group)));
        let shape = shape.collect::<Vec<_>>().join(" from ");
        let members: BTreeSet<_> = groups.iter().flatten().cloned().collect();
        let members: Vec<_> = members.into_iter().collect();
        let together = |one: usize, other: usize| {
            let both = [&members[one], &members[other]];
            groups
                .iter()
                .any(|group| both.iter().all(|machine| group.contains(machine)))
        };
        Self::all_but(shape, &members, together)
    }

    /// One machine sees none of the others; they see each other.
    pub fn one_against_the_rest(one: &MachineName, rest: &[MachineName]) -> Self {
        let rest: Vec<_> = rest.iter().filter(|machine| *machine != one).cloned().collect();
        Self {
            shape: format!("{one} from {} others", rest.len()),
            ..Self::groups([vec![one.clone()], rest])
        }
    }

    /// A ring: each machine sees the one before it and the one after it alone, the last and the first being
    /// neighbours.
    pub fn ring(machines: &[MachineName]) -> Self {
        let count = machines.len();
        let shape = format!("all but neighbours in the ring [{}]", names(machines));
        Self::all_but(shape, machines, |one, other| {
            other - one == 1 || (one == 0 && other + 1 == count)
        })
    }

    /// A bridge: either side sees the middle, and not the other side.
    pub fn bridge(left: &[MachineName], middle: &MachineName, right: &[MachineName]) -> Self {
        let group = |side: &[MachineName]| [side, std::slice::from_ref(middle)].concat();
        Self {
            shape: format!("[{}] from [{}], bridged by {middle}", names(left), names(right)),
            ..Self::groups([group(left), group(right)])
        }
    }

    /// How many pairs of machines are cut off from each other.
    pub fn cut(&self) -> usize {
        self.pairs.len()
    }

    /// The machines that each one is cut off from.
    fn by_machine(&self) -> BTreeMap<&MachineName, Vec<&MachineName>> {
        let mut cut: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (one, other) in &self.pairs {
            cut.entry(one).or_default().push(other);
            cut.entry(other).or_default().push(one);
        }
        cut
    }

    /// For each machine one that it still sees: what a partition must leave alone.
    fn spared(&self) -> Vec<(&MachineName, &MachineName)> {
        let sees =
            |one: &MachineName, other: &MachineName| one != other && !self.pairs.contains(&pair(one, other));
        let spared = self.members.iter().filter_map(|one| {
            let other = self.members.iter().find(|other| sees(one, other))?;
            Some((one, other))
        });
        spared.collect()
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shape)
    }
}

impl Topology {
    /// Cuts machines off from each other: no packet passes between them in either direction, on connections
    /// that flow as little as on new ones. One handle heals all of it. The receipt shows each direction of each
    /// pair, and for each machine one that it still sees.
    ///
    /// # Errors
    /// [`FaultError`]; nothing is in effect then.
    pub async fn partition(&self, split: &Split) -> Result<Fault, FaultError> {
        let meaning = self.meaning_of(split);
        let mut applying = Applying::new(format!("partition of {split}"), meaning.clone());
        let mut harmed = Vec::new();
        for (one, other) in &split.pairs {
            let link = self.link(one.clone(), other.clone());
            harmed.push(link.question().await?);
            harmed.push(link.reversed().question().await?);
        }
        let mut unharmed = Vec::new();
        for (one, other) in split.spared() {
            unharmed.push(self.link(one.clone(), other.clone()).question().await?);
        }
        let sight = Sight::before(harmed, Effect::SILENCE, unharmed).await?;
        let name = applying.name.clone();
        let parts = split.by_machine().into_iter().map(|(machine, others)| {
            let to: Vec<_> = others.into_iter().map(|other| self.address(other)).collect();
            let mut part = Applying::new(name.clone(), meaning.clone());
            async move {
                let control = self.control(machine).await?;
                part.hold(machine, control, drop_all_to(&to)).await?;
                Ok::<_, FaultError>(part)
            }
        });
        // Where one fails the others are dropped, and undone by that.
        let parts: Vec<_> = stream::iter(parts).buffered(AT_ONCE).try_collect().await?;
        parts.into_iter().for_each(|part| applying.take_in(part));
        self.see(applying, sight).await
    }

    /// Polls go from the VPS machine to those that it is cut off from, or not.
    fn meaning_of(&self, split: &Split) -> Meaning {
        let by_machine = split.by_machine();
        let cut = by_machine.get(&VPS).into_iter().flatten();
        let hosts: Vec<_> = cut.map(|machine| self.address(machine)).collect();
        if hosts.is_empty() {
            return Meaning::nothing();
        }
        Meaning::cuts(Bearing {
            hosts: Some(hosts),
            port: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;
    use crate::machine::GPU;

    fn fleet(count: usize) -> Vec<MachineName> {
        (1..=count).map(MachineName::gpu).collect()
    }

    fn sees(split: &Split, one: &MachineName, other: &MachineName) -> bool {
        !split.pairs.contains(&pair(one, other))
    }

    #[test]
    fn groups_are_cut_off_from_each_other_and_whole_in_themselves() {
        let four = fleet(4);
        let split = Split::groups([&four[..2], &four[2..]]);
        assert_eq!(split.to_string(), "[gpu gpu-2] from [gpu-3 gpu-4]");
        assert_eq!(split.cut(), 4);
        assert!(sees(&split, &four[0], &four[1]) && sees(&split, &four[2], &four[3]));
        assert!(!sees(&split, &four[3], &four[0]));
        assert!(sees(&split, &VPS, &four[0]), "who is not named is left alone");
    }

    #[test]
    fn one_against_the_rest_leaves_the_rest_together() {
        let four = fleet(4);
        let split = Split::one_against_the_rest(&four[2], &four);
        assert_eq!(split.cut(), 3);
        assert_eq!(split.to_string(), "gpu-3 from 3 others");
        assert!(sees(&split, &four[0], &four[3]));
    }

    #[test]
    fn in_a_ring_each_sees_its_two_neighbours() {
        let five = fleet(5);
        let split = Split::ring(&five);
        for (at, machine) in five.iter().enumerate() {
            let seen = five
                .iter()
                .filter(|other| *other != machine && sees(&split, machine, other));
            let seen: Vec<_> = seen.collect();
            let neighbours = [&five[(at + 4) % 5], &five[(at + 1) % 5]];
            assert!(seen.len() == 2 && neighbours.iter().all(|machine| seen.contains(machine)));
        }
    }

    #[test]
    fn a_ring_of_three_cuts_nobody_off() {
        assert_eq!(Split::ring(&fleet(3)).cut(), 0);
        assert_eq!(Split::ring(&fleet(2)).cut(), 0);
    }

    #[test]
    fn a_bridge_is_seen_from_both_sides_which_do_not_see_each_other() {
        let two = [MachineName::gpu(2)];
        let split = Split::bridge(&[GPU], &VPS, &two);
        assert_eq!(split.cut(), 1);
        assert!(sees(&split, &GPU, &VPS) && sees(&split, &VPS, &two[0]));
        assert!(!sees(&split, &GPU, &two[0]));
        assert_eq!(split.to_string(), "[gpu] from [gpu-2], bridged by vps");
    }

    #[test]
    fn what_is_spared_is_one_link_of_each_machine_that_sees_another() {
        let four = fleet(4);
        let split = Split::one_against_the_rest(&four[0], &four);
        let spared = split.spared();
        assert_eq!(spared.len(), 3, "the one that is alone sees nobody: {spared:?}");
        assert!(spared.iter().all(|(one, other)| sees(&split, one, other)));
    }
}
