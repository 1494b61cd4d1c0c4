//! Faults of a link above TCP: its connections are led through the Toxiproxy sidecar, by a rule in the network
//! that they come from. The row keeps the machine's own address, and platform-api notices nothing but the fault.

use std::net::SocketAddrV4;
use std::time::Duration;

use wopr_machine::protocol::Step;

use super::link::Link;
use super::probe::{Outcome, Probe, Question};
use super::rules::{Place, strings};
use super::sidecar::Proxy;
use super::sight::{After, Sight};
use super::toxic::{Stream, Toxic};
use super::{Applying, Fault, FaultError};
use crate::history::{Bearing, Deed, Meaning, now_us};

/// How slow a link may be already, by other toxics, for one more to be seen on it.
const SLOW_ALREADY: Duration = Duration::from_secs(3);
/// A toxic in effect, and how it is changed.
#[derive(Debug)]
pub(super) struct Bent {
    proxy: Proxy,
    id: u32,
    toxic: Toxic,
    stream: Stream,
    question: Question,
    /// How long an answer took before it.
    before: Duration,
}

impl Link<'_> {
    /// Leads the connections of one port through the sidecar, with a toxic; those that flow are cut off. Several
    /// on one port add up, in the order in which they were begun, and each heals by itself.
    ///
    /// # Errors
    /// [`FaultError::Refused`] for a toxic that the sidecar refuses, [`FaultError::NoSuchLink`] unless the link is
    /// that of one port of the other machine, [`FaultError::NotInEffect`].
    pub async fn toxic(&self, toxic: Toxic, stream: Stream) -> Result<Fault, FaultError> {
        let (question, port, upstream) = self.bendable().await?;
        let bearing = Bearing::at(*upstream.ip(), Some(port));
        let meaning = match toxic.swallows_all() && self.is_of_polls() {
            true => Meaning::cuts(bearing),
            false => Meaning::may_harm(bearing),
        };
        let mut applying = Applying::new(format!("{toxic:?} {stream:?} on {}", self.name()), meaning);
        let before = question.clone().slower_by(SLOW_ALREADY).ask().await?;
        let sidecar = self.topology.sidecar().await?;
        let of = format!("{}-to-{}-{port}", self.from, self.to);
        let proxy = sidecar.proxy(&of, &upstream.to_string()).await?;
        let id = rand::random();
        let body = toxic.body(id, stream);
        let (mut steps, to) = match &body {
            Some((name, body)) => (vec![proxy.toxic_step(name, body)], proxy.listens),
            None => (Vec::new(), sidecar.nobody()),
        };
        steps.extend(lead(&self.place().await?, upstream, to));
        let source = self.source();
        applying
            .hold(source, self.topology.control(source).await?, steps)
            .await?;
        if let Some((name, _)) = &body
            && let Err(error) = proxy.has(name).await
        {
            return Err(applying.give_up(error).await);
        }
        let bent = Bent {
            proxy,
            id,
            toxic,
            stream,
            question,
            before: before.took,
        };
        let mut expected = Vec::new();
        if before.outcome == Outcome::Answered && !toxic.may_spare_a_check() {
            expected.push((bent.asked(), toxic.outcome()));
        }
        let mut fault = self.see(applying, Sight::of_new(&expected)).await?;
        if let Some(probe) = fault
            .receipt
            .probes
            .first()
            .filter(|probe| bent.is_too_quick(probe))
        {
            let (fault, probe) = (fault.name.clone(), probe.clone());
            return Err(FaultError::NotInEffect { fault, probe });
        }
        if toxic.may_spare_a_check() {
            let probe = bent.asked().ask().await?;
            if !matches!(probe.outcome, Outcome::Answered | Outcome::Broken) {
                let fault = fault.name.clone();
                return Err(FaultError::NotInEffect { fault, probe });
            }
            fault.receipt.probes.push(probe);
            let there = "the sidecar has it when it is read back; a check may be shorter than its limit";
            fault.receipt.observed.push(there.to_owned());
        }
        // Through it every check went well, or late: without it they go well at once.
        fault.after = vec![After::of(bent.question.clone().slower_by(bent.before))];
        fault.bent = Some(bent);
        Ok(fault)
    }

    /// What shows it, the port, and where that is.
    async fn bendable(&self) -> Result<(Question, u16, SocketAddrV4), FaultError> {
        let target = self.target().await?;
        let no_link = |reason| FaultError::NoSuchLink {
            from: self.from.clone(),
            to: self.to.clone(),
            reason,
        };
        if !self
            .topology
            .machines()
            .any(|machine| machine.address() == target.address)
        {
            return Err(no_link("toxics are for what one machine opens to another"));
        }
        let port = target
            .port
            .ok_or_else(|| no_link("a toxic is for one port: call port(…) first"))?;
        Ok((
            self.question().await?,
            port,
            SocketAddrV4::new(target.address, port),
        ))
    }
}

impl Fault {
    /// Changes the attributes of a toxic that is in effect, on connections that are open as well. It keeps its
    /// name, its place among others, and its kind.
    ///
    /// # Errors
    /// [`FaultError::NotThatKind`] for a fault of another kind, [`FaultError::Sidecar`] for attributes that are
    /// refused, [`FaultError::NotInEffect`].
    pub async fn update(&mut self, toxic: Toxic) -> Result<(), FaultError> {
        let name = self.name.clone();
        let bent = self.bent.as_mut().filter(|bent| bent.toxic.is_kind_of(toxic));
        let bent = bent.ok_or_else(|| FaultError::NotThatKind {
            fault: name.clone(),
            asked: format!("{toxic:?}"),
        })?;
        let from_us = now_us();
        if let Some((name, body)) = toxic.body(bent.id, bent.stream) {
            bent.proxy.update(&name, &body).await?;
        }
        bent.toxic = toxic;
        let wanted = toxic.outcome();
        let probe = match toxic.may_spare_a_check() {
            true => bent.asked().ask().await?,
            false => bent.asked().ask_until(wanted).await?,
        };
        let as_wanted =
            probe.ended_as(wanted) || (toxic.may_spare_a_check() && probe.outcome == Outcome::Answered);
        if !as_wanted || bent.is_too_quick(&probe) {
            return Err(FaultError::NotInEffect { fault: name, probe });
        }
        let changed = Deed::changed(format!("{name} to {toxic:?}"), Meaning::nothing());
        self.deeds.note(changed.since(from_us).of(self.id));
        self.receipt.probes = vec![probe];
        Ok(())
    }
}

impl Bent {
    /// The request that shows it. It and its answer may each be late by the most that there is.
    fn asked(&self) -> Question {
        self.question
            .clone()
            .slower_by(self.before + self.toxic.most() * 2)
    }

    /// Whether a probe was quicker than the toxic allows: then it is not there.
    fn is_too_quick(&self, probe: &Probe) -> bool {
        probe.took < self.toxic.least()
    }
}

/// For all that comes from a place, and for connections that flow already, which keep their way until the
/// kernel forgets it.
fn lead(place: &Place, target: SocketAddrV4, to: SocketAddrV4) -> Vec<Step> {
    let (address, port) = (target.ip().to_string(), target.port().to_string());
    let words = |action: &str, chain: &str| {
        let rule = ["iptables", "--wait", "--table", "nat", action, chain];
        let packets = ["--destination", &address, "--protocol", "tcp", "--dport", &port];
        let fate = ["--jump", "DNAT", "--to-destination", &to.to_string()];
        strings(&[&rule[..], &packets, &fate].concat())
    };
    let rule = |chain: &&str| place.step(words("--insert", chain), words("--delete", chain));
    // Ends with 1 when there was nothing to forget.
    let script = format!(
        "conntrack --delete --proto tcp --orig-dst {address} --orig-port-dst {port} 2>/dev/null; true"
    );
    let forget = || strings(&["sh", "-c", &script]);
    let nothing = || strings(&["true"]);
    // Undone last first: the way back is forgotten after the rules are gone.
    let mut steps = vec![place.step(nothing(), forget())];
    steps.extend(place.nat_chains().iter().map(rule));
    steps.push(place.step(forget(), nothing()));
    steps
}
