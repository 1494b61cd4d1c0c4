//! Packet rules: which packets, what becomes of them, and where the rule is.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use wopr_machine::protocol::Step;

use crate::service::Service;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fate {
    Drop,
    Reset,
    Unreachable,
    /// Dropped with this probability.
    Lose(f64),
}

/// Which packets to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packets {
    /// Every one.
    All,
    /// Those of connections that were opened from here.
    Outgoing,
    /// Those that open a connection.
    Opening,
    /// Those of connections that flow already when the rule is made, told by this mark.
    Flowing(Mark),
    /// Every one, and every one that comes from there.
    BothWays,
}

/// A bit that the kernel keeps with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark(u32);

impl Mark {
    /// One that no other fault of this process has, for the next thirty.
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self(1 << (NEXT.fetch_add(1, Ordering::Relaxed) % 31))
    }

    fn of_itself(self) -> String {
        format!("{0:#x}/{0:#x}", self.0)
    }
}

/// The network that rules are made in.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// A machine's: rules see what its containers send, and what it sends itself.
    Machine,
    /// A service's own: rules see what it sends, and nothing else.
    Service(Service, i64),
}

impl Place {
    fn chains(&self) -> &'static [&'static str] {
        match self {
            Self::Machine => &["DOCKER-USER", "OUTPUT"],
            Self::Service(..) => &["OUTPUT"],
        }
    }

    pub(super) fn nat_chains(&self) -> &'static [&'static str] {
        match self {
            Self::Machine => &["PREROUTING", "OUTPUT"],
            Self::Service(..) => &["OUTPUT"],
        }
    }

    /// What leads a command here.
    fn enter(&self) -> Vec<String> {
        match self {
            Self::Machine => Vec::new(),
            Self::Service(_, process) => {
                strings(&["nsenter", &format!("--net=/proc/{process}/ns/net"), "--"])
            }
        }
    }

    /// Commands that print the rules of each chain with their counters.
    pub(super) fn list_commands(&self) -> Vec<Vec<String>> {
        let list = |chain: &&str| {
            let list = ["iptables", "--wait", "--list-rules", chain, "--verbose"];
            [self.enter(), strings(&list)].concat()
        };
        self.chains().iter().map(list).collect()
    }

    /// A step that is taken here.
    pub(super) fn step(&self, apply: Vec<String>, undo: Vec<String>) -> Step {
        match self {
            Self::Machine => Step { apply, undo },
            Self::Service(service, process) => {
                let enter = self.enter();
                // A restart takes the rules along, and that is not to pass for a heal.
                let script = format!(
                    "test -e /proc/{process}/ns/net || {{ echo '{service} has ended since then, and with it the network that this fault was in' >&2; exit 1; }}; exec \"$@\""
                );
                let checked = ["sh", "-c", &script, "undo"].map(str::to_owned);
                Step {
                    apply: [enter.clone(), apply].concat(),
                    undo: [checked.to_vec(), enter, undo].concat(),
                }
            }
        }
    }
}

/// A rule about packets to an address.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) to: Ipv4Addr,
    pub(super) port: Option<u16>,
    pub(super) fate: Fate,
    pub(super) packets: Packets,
}

impl Rule {
    /// The steps that make it.
    pub(super) fn steps(&self, place: &Place) -> Vec<Step> {
        let mut steps: Vec<Step> = place
            .chains()
            .iter()
            .map(|chain| self.step(place, chain, "--destination", "--dport"))
            .collect();
        match self.packets {
            Packets::BothWays => steps.push(self.step(place, "INPUT", "--source", "--sport")),
            // After the rule: what is opened from here on is not marked, and so passes.
            Packets::Flowing(mark) => steps.push(self.mark(place, mark)),
            _ => {}
        }
        steps
    }

    fn step(&self, place: &Place, chain: &str, end: &str, port: &str) -> Step {
        let words = |action: &str| {
            let to = self.to.to_string();
            let mut words = strings(&["iptables", "--wait", action, chain, end, &to]);
            let tcp = matches!(self.fate, Fate::Reset) || self.packets == Packets::Opening;
            if self.port.is_some() || tcp {
                words.extend(strings(&["--protocol", "tcp"]));
            }
            if let Some(number) = self.port {
                words.extend(strings(&[port, &number.to_string()]));
            }
            words.extend(self.packets.words());
            words.extend(self.fate.words());
            words
        };
        place.step(words("--insert"), words("--delete"))
    }

    fn mark(&self, place: &Place, mark: Mark) -> Step {
        let to = self.to.to_string();
        let mut apply = strings(&["conntrack", "--update", "--proto", "tcp", "--orig-dst", &to]);
        if let Some(port) = self.port {
            apply.extend(strings(&["--orig-port-dst", &port.to_string()]));
        }
        apply.extend(strings(&["--mark", &mark.of_itself()]));
        // Without its rule a mark is nothing to anybody.
        place.step(apply, strings(&["true"]))
    }
}

/// Steps by which a machine drops all that it sends to these addresses: one rule for each, and one command for
/// all of a chain.
pub(super) fn drop_all_to(addresses: &[Ipv4Addr]) -> Vec<Step> {
    let listed: Vec<_> = addresses.iter().map(Ipv4Addr::to_string).collect();
    let listed = listed.join(",");
    let words = |action: &str, chain: &str| {
        strings(&[
            "iptables",
            "--wait",
            action,
            chain,
            "--destination",
            &listed,
            "--jump",
            "DROP",
        ])
    };
    let chains = Place::Machine.chains().iter();
    chains
        .map(|chain| Step {
            apply: words("--insert", chain),
            undo: words("--delete", chain),
        })
        .collect()
}

impl Packets {
    fn words(self) -> Vec<String> {
        match self {
            Self::All | Self::BothWays => Vec::new(),
            // Answers to what the other end opened pass: the way back is a link of its own.
            Self::Outgoing => strings(&["--match", "conntrack", "--ctdir", "ORIGINAL"]),
            Self::Opening => strings(&["--syn"]),
            Self::Flowing(mark) => strings(&["--match", "connmark", "--mark", &mark.of_itself()]),
        }
    }
}

impl Fate {
    fn words(self) -> Vec<String> {
        match self {
            Self::Drop => strings(&["--jump", "DROP"]),
            Self::Reset => strings(&["--jump", "REJECT", "--reject-with", "tcp-reset"]),
            Self::Unreachable => strings(&["--jump", "REJECT", "--reject-with", "icmp-host-unreachable"]),
            Self::Lose(share) => {
                let share = format!("{share:.4}");
                let random = [
                    "--match",
                    "statistic",
                    "--mode",
                    "random",
                    "--probability",
                    &share,
                ];
                [strings(&random), strings(&["--jump", "DROP"])].concat()
            }
        }
    }
}

pub(super) fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(packets: Packets, fate: Fate) -> Rule {
        Rule {
            to: Ipv4Addr::new(10, 87, 0, 3),
            port: Some(8080),
            fate,
            packets,
        }
    }

    #[test]
    fn a_rule_about_openings_looks_at_the_first_packet_alone() {
        let steps = rule(Packets::Opening, Fate::Reset).steps(&Place::Machine);
        assert_eq!(
            steps[0].apply.join(" "),
            "iptables --wait --insert DOCKER-USER --destination 10.87.0.3 --protocol tcp --dport 8080 --syn --jump REJECT --reject-with tcp-reset"
        );
        assert_eq!(steps.len(), 2);
    }

    #[test]
    fn what_flows_is_marked_after_its_rule_is_there() {
        let steps = rule(Packets::Flowing(Mark(4)), Fate::Drop).steps(&Place::Machine);
        assert!(
            steps[1]
                .apply
                .join(" ")
                .contains("--match connmark --mark 0x4/0x4"),
            "{steps:?}"
        );
        assert_eq!(
            steps[2].apply.join(" "),
            "conntrack --update --proto tcp --orig-dst 10.87.0.3 --orig-port-dst 8080 --mark 0x4/0x4"
        );
    }

    #[test]
    fn a_services_rule_is_in_its_own_network_and_its_end_is_noticed() {
        let place = Place::Service(Service::PlatformApi, 42);
        let steps = rule(Packets::BothWays, Fate::Drop).steps(&place);
        assert!(
            steps[1]
                .apply
                .join(" ")
                .starts_with("nsenter --net=/proc/42/ns/net -- iptables --wait --insert INPUT --source"),
            "{steps:?}"
        );
        assert!(steps[0].undo[2].starts_with("test -e /proc/42/ns/net || { echo 'platform-api has ended"));
    }
}
