//! Faults of a link, below TCP: packet rules in the network where the packets come from.

use super::end::End;
use super::probe::Outcome;
use super::route::Back;
use super::rules::{Fate, Mark, Packets};
use super::sight::{Effect, Sight};
use super::{Applying, Fault, FaultError};
use crate::history::Impact;
use crate::topology::Topology;

/// A directed path: the connections that one end opens to another, to all of its ports or to one. An end is a
/// machine, or a service alone.
#[derive(Debug, Clone)]
pub struct Link<'a> {
    pub(super) topology: &'a Topology,
    pub(super) from: End,
    pub(super) to: End,
    pub(super) port: Option<u16>,
}

impl Topology {
    /// The link from one end to another: `link(VPS, GPU)` is all that the VPS machine opens to the GPU machine,
    /// `link(Service::PlatformApi, GPU)` what platform-api alone does, and `link(Service::PlatformApi,
    /// Service::Postgres)` its way to the database.
    pub fn link(&self, from: impl Into<End>, to: impl Into<End>) -> Link<'_> {
        Link {
            topology: self,
            from: from.into(),
            to: to.into(),
            port: None,
        }
    }
}

impl<'a> Link<'a> {
    /// The same link, for one port of where it leads.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The other way.
    #[must_use]
    pub fn reversed(&self) -> Link<'a> {
        Link {
            topology: self.topology,
            from: self.to.clone(),
            to: self.from.clone(),
            port: self.port,
        }
    }

    pub(super) fn name(&self) -> String {
        match self.port {
            Some(port) => format!("{} → {}:{port}", self.from, self.to),
            None => format!("{} → {}", self.from, self.to),
        }
    }

    /// Both ends are cut off from each other: no packet passes in either direction, on connections that flow
    /// as little as on new ones. Of a link to one port, that port is cut off.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn partition(&self) -> Result<Fault, FaultError> {
        let back = self.reversed();
        let between_machines = matches!((&self.from, &self.to), (End::Machine(_), End::Machine(_)));
        // Both ways are cut: the polls' is one of them, whichever end it is told from.
        let polled = match (self.is_of_polls(), self.port) {
            (false, None) if back.is_of_polls() => &back,
            _ => self,
        };
        let name = format!("partition on {}", self.name());
        let mut applying = Applying::new(name, polled.meaning(Impact::Cuts).await?);
        let (rules, harmed) = match (between_machines, self.port) {
            (true, None) => (
                vec![
                    self.rule(Fate::Drop, Packets::All).await?,
                    back.rule(Fate::Drop, Packets::All).await?,
                ],
                vec![self.question().await?, back.question().await?],
            ),
            (true, Some(_)) => (
                vec![self.rule(Fate::Drop, Packets::All).await?],
                vec![self.question().await?],
            ),
            (false, _) => (
                vec![self.rule(Fate::Drop, Packets::BothWays).await?],
                vec![self.question().await?],
            ),
        };
        let sight = Sight::before(harmed, Effect::SILENCE, self.bystanders(Back::Harmed).await?).await?;
        for rule in &rules {
            rule.hold(&mut applying, self.topology).await?;
        }
        self.see(applying, sight).await
    }

    /// Packets of this direction vanish: no connection comes about, and what flows stands still.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn drop_packets(&self) -> Result<Fault, FaultError> {
        self.break_with("drop", Fate::Drop, Packets::Outgoing, Effect::SILENCE)
            .await
    }

    /// Connections in this direction are reset, new ones at once and flowing ones with their next packet.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn reset(&self) -> Result<Fault, FaultError> {
        let effect = Effect {
            new: Outcome::Refused,
            flowing: Outcome::Broken,
        };
        self.break_with("reset", Fate::Reset, Packets::Outgoing, effect)
            .await
    }

    /// No way leads to the other end, and the sender is told so. TCP takes that for an answer when it opens a
    /// connection; one that flows stands still.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn unreachable(&self) -> Result<Fault, FaultError> {
        let effect = Effect {
            new: Outcome::Refused,
            flowing: Outcome::NoAnswer,
        };
        self.break_with("no route", Fate::Unreachable, Packets::Outgoing, effect)
            .await
    }

    /// New connections are refused; those that flow live on.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn refuse_new(&self) -> Result<Fault, FaultError> {
        let effect = Effect {
            new: Outcome::Refused,
            ..Effect::NONE
        };
        self.break_with(
            "refusal of new connections",
            Fate::Reset,
            Packets::Opening,
            effect,
        )
        .await
    }

    /// New connections do not come about; those that flow live on. One that waits when this heals comes about
    /// with the sender's next attempt, up to a second later at first and then ever later.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn drop_new(&self) -> Result<Fault, FaultError> {
        let effect = Effect {
            new: Outcome::NoConnection,
            ..Effect::NONE
        };
        self.break_with("drop of new connections", Fate::Drop, Packets::Opening, effect)
            .await
    }

    /// A cable pulled and put back: connections that flow now stand still, and new ones come about.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn cut_flowing(&self) -> Result<Fault, FaultError> {
        let effect = Effect {
            flowing: Outcome::NoAnswer,
            ..Effect::NONE
        };
        let flowing = Packets::Flowing(Mark::new());
        self.break_with("cut of flowing connections", Fate::Drop, flowing, effect)
            .await
    }

    async fn break_with(
        &self,
        word: &str,
        fate: Fate,
        packets: Packets,
        effect: Effect,
    ) -> Result<Fault, FaultError> {
        let impact = match effect {
            Effect {
                new: Outcome::Answered,
                ..
            }
            | Effect {
                flowing: Outcome::Answered,
                ..
            } => Impact::May,
            _ => Impact::Cuts,
        };
        let name = format!("{word} on {}", self.name());
        let mut applying = Applying::new(name, self.meaning(impact).await?);
        let rule = self.rule(fate, packets).await?;
        let harmed = vec![self.question().await?];
        let sight = Sight::before(harmed, effect, self.bystanders(Back::Spared).await?).await?;
        rule.hold(&mut applying, self.topology).await?;
        self.see(applying, sight).await
    }

    pub(super) async fn see(&self, applying: Applying, sight: Sight) -> Result<Fault, FaultError> {
        self.topology.see(applying, sight).await
    }
}
