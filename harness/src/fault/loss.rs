//! Loss: packets that vanish at random, seen by counting them.

use std::time::Duration;

use super::link::Link;
use super::probe::Outcome;
use super::route::PlacedRule;
use super::rules::{Fate, Packets};
use super::sight::Sight;
use super::{Applying, Fault, FaultError};
use crate::history::Impact;
use crate::topology::Topology;

/// A request whose packets all arrive takes a millisecond or two; the kernel sends a lost one again after
/// 200 ms at the earliest.
const PROMPT: Duration = Duration::from_millis(100);
/// So many requests are sent between two looks at the counter, unless one is late before.
const BETWEEN_LOOKS: u32 = 50;
const COUNTER: Duration = Duration::from_secs(5);

impl Link<'_> {
    /// Packets of this direction are lost with a probability between 0 and 1. Requests are sent until one of
    /// their packets is: at 1 % that takes about a hundred.
    ///
    /// # Errors
    /// [`FaultError::NothingLost`] when far more requests than that come through.
    pub async fn lose(&self, share: f64) -> Result<Fault, FaultError> {
        let name = format!("loss of {} % on {}", share * 100.0, self.name());
        let mut applying = Applying::new(name, self.meaning(Impact::May).await?);
        let rule = self.rule(Fate::Lose(share), Packets::Outgoing).await?;
        rule.hold(&mut applying, self.topology).await?;
        let lost = match self.until_lost(&rule, share, &applying.name).await {
            Ok(lost) => lost,
            Err(error) => return Err(applying.give_up(error).await),
        };
        let mut fault = self.see(applying, Sight::of_new(&[])).await?;
        fault.receipt.observed = vec![format!("packets lost until then: {lost}")];
        Ok(fault)
    }

    async fn until_lost(&self, rule: &PlacedRule, share: f64, fault: &str) -> Result<u64, FaultError> {
        let question = self.question().await?;
        let most = most_requests(share);
        let mut sent = 0;
        while sent < most {
            let (mut flow, first) = question.open().await?;
            sent += 1;
            let mut outcome = first.outcome;
            for _ in 1..BETWEEN_LOOKS {
                if outcome != Outcome::Answered {
                    break;
                }
                outcome = flow.ask(PROMPT).await?.outcome;
                sent += 1;
            }
            let lost = rule.lost(self.topology).await?;
            if lost > 0 {
                return Ok(lost);
            }
        }
        Err(FaultError::NothingLost {
            fault: fault.to_owned(),
            requests: sent,
        })
    }
}

/// A chance of one in a million to see nothing, when each request is one packet.
fn most_requests(share: f64) -> u32 {
    let most = (14.0 / share.clamp(0.001, 1.0)).ceil();
    // Between 14 and 14 000.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small whole number above 0"
    )]
    let most = most as u32;
    most
}

impl PlacedRule {
    /// How many packets it has dropped.
    async fn lost(&self, topology: &Topology) -> Result<u64, FaultError> {
        let mut control = topology.control(self.machine()).await?;
        let mut lost = 0;
        for argv in self.list_commands() {
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            let listed = control.run(&argv, COUNTER).await?;
            lost += dropped(&listed, &self.rule.to.to_string(), self.rule.port);
        }
        Ok(lost)
    }
}

/// The packets that the newest rule of a loss has counted, in what `iptables --list-rules --verbose` prints.
fn dropped(listed: &str, to: &str, port: Option<u16>) -> u64 {
    let destination = format!("-d {to}/32 ");
    let port = port.map(|port| format!("--dport {port} "));
    let rule = listed.lines().find(|line| {
        line.contains(&destination)
            && line.contains("--mode random")
            && match &port {
                Some(port) => line.contains(port),
                None => !line.contains("--dport"),
            }
    });
    let count = rule.and_then(|rule| rule.split_once(" -c ")?.1.split(' ').next()?.parse().ok());
    count.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "-N DOCKER-USER -c 0 0
-A DOCKER-USER -d 10.87.0.3/32 -p tcp -m tcp --dport 8082 -m conntrack --ctdir ORIGINAL -m statistic --mode random --probability 0.30000000000 -c 7 420 -j DROP
-A DOCKER-USER -d 10.87.0.3/32 -m conntrack --ctdir ORIGINAL -m statistic --mode random --probability 0.00999999978 -c 3 180 -j DROP
";

    #[test]
    fn what_a_rule_dropped_is_read_from_its_counter() {
        assert_eq!(dropped(LISTED, "10.87.0.3", None), 3);
        assert_eq!(dropped(LISTED, "10.87.0.3", Some(8082)), 7);
        assert_eq!(dropped(LISTED, "10.87.0.30", None), 0);
    }

    #[test]
    fn a_small_loss_is_looked_for_longer() {
        assert_eq!(most_requests(0.3), 47);
        assert_eq!(most_requests(0.01), 1400);
    }
}
