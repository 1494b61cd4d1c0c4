//! Looks at traffic before and after a fault: what it harms, on new connections and on those that flow
//! already, and what it must leave alone.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use wopr_machine::protocol::{Reply, Request};

use super::FaultError;
use super::probe::{ANSWER, CONNECT, Connection, Flow, Outcome, Probe, Question};
use crate::control::{Control, ControlError};

/// What is unharmed answers at once; this is for a host on its knees.
pub(super) const UNHARMED: Duration = Duration::from_secs(3);

/// Looks that are taken at a time: those of a fleet's partition are hundreds, and each has a time-out that a busy
/// host must not use up.
const AT_ONCE: usize = 32;

/// Side by side, so many at a time, in their order.
async fn all<T>(
    looks: impl IntoIterator<Item = impl Future<Output = Result<T, FaultError>>>,
) -> Result<Vec<T>, FaultError> {
    stream::iter(looks).buffered(AT_ONCE).try_collect().await
}

/// How requests end while a fault is in effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Effect {
    pub(super) new: Outcome,
    pub(super) flowing: Outcome,
}

impl Effect {
    pub(super) const NONE: Self = Self {
        new: Outcome::Answered,
        flowing: Outcome::Answered,
    };
    pub(super) const SILENCE: Self = Self {
        new: Outcome::NoConnection,
        flowing: Outcome::NoAnswer,
    };

    fn expected(self, connection: Connection) -> Outcome {
        match connection {
            Connection::New => self.new,
            Connection::Flowing => self.flowing,
        }
    }
}

/// One thing to look at.
struct Seen {
    question: Question,
    effect: Effect,
    /// A connection from before the fault; none where none was answered on.
    flow: Option<Flow>,
    /// Another, which stays quiet while the fault lasts: that it is answered on after the heal is not to
    /// hang on the pauses of a retransmission.
    spare: Option<Flow>,
}

/// What is looked at.
pub(super) struct Sight(Vec<Seen>);

/// What is looked at again after the heal.
pub(super) struct After {
    question: Question,
    spare: Option<Flow>,
}

impl Sight {
    /// Looks at new connections alone.
    pub(super) fn of_new(expected: &[(Question, Outcome)]) -> Self {
        let seen = expected.iter().map(|(question, outcome)| Seen {
            question: question.clone(),
            effect: Effect {
                new: *outcome,
                ..Effect::NONE
            },
            flow: None,
            spare: None,
        });
        Self(seen.collect())
    }

    /// Opens connections, side by side: to what is to be harmed so, and to what is to stay unharmed. What
    /// does not answer now says nothing about a fault that is yet to come: on what is to be unharmed it is
    /// left out.
    pub(super) async fn before(
        harmed: Vec<Question>,
        effect: Effect,
        unharmed: Vec<Question>,
    ) -> Result<Self, FaultError> {
        let harmed = all(harmed.into_iter().map(|question| async move {
            let (flow, spare) = tokio::try_join!(open(&question), open(&question))?;
            Ok::<_, FaultError>(Seen {
                question,
                effect,
                flow,
                spare,
            })
        }));
        let unharmed = all(unharmed.into_iter().map(|question| async move {
            let flow = open(&question).await?;
            Ok::<_, FaultError>(flow.map(|flow| Seen {
                question,
                effect: Effect::NONE,
                flow: Some(flow),
                spare: None,
            }))
        }));
        let (mut seen, unharmed) = tokio::try_join!(harmed, unharmed)?;
        seen.extend(unharmed.into_iter().flatten());
        Ok(Self(seen))
    }

    /// Looks again, side by side, while the fault `fault` lasts. Returns what was seen, and what to look at
    /// after the heal: what was left unharmed is no sign of that, since another fault may harm it by then.
    pub(super) async fn after(self, fault: &str) -> Result<(Vec<Probe>, Vec<After>), FaultError> {
        let looks = self.0.into_iter().map(|seen| look(seen, fault));
        let (mut probes, mut after) = (Vec::new(), Vec::new());
        for (seen, again) in all(looks).await? {
            probes.extend(seen);
            after.extend(again);
        }
        Ok((probes, after))
    }
}

async fn open(question: &Question) -> Result<Option<Flow>, FaultError> {
    let (flow, probe) = question.open().await?;
    Ok((probe.outcome == Outcome::Answered).then_some(flow))
}

async fn look(seen: Seen, fault: &str) -> Result<(Vec<Probe>, Option<After>), FaultError> {
    let Seen {
        question,
        effect,
        mut flow,
        spare,
    } = seen;
    let patience = match effect.flowing {
        Outcome::NoAnswer => CONNECT,
        _ => UNHARMED,
    };
    let flowing = async {
        match &mut flow {
            Some(flow) => flow.ask(patience).await.map(Some),
            None => Ok(None),
        }
    };
    let (new, flowing) = tokio::try_join!(question.ask_until(effect.new), flowing)?;
    // What the other end closed in the meantime tells nothing.
    let flowing = flowing.filter(|probe| probe.outcome != Outcome::Closed);
    let probes: Vec<Probe> = [Some(new), flowing].into_iter().flatten().collect();
    for probe in &probes {
        if !probe.ended_as(effect.expected(probe.connection)) {
            return Err(FaultError::NotInEffect {
                fault: fault.to_owned(),
                probe: probe.clone(),
            });
        }
    }
    let after = (effect != Effect::NONE).then_some(After { question, spare });
    Ok((probes, after))
}

impl After {
    /// A fault that showed on new connections alone.
    pub(super) fn of(question: Question) -> Self {
        Self {
            question,
            spare: None,
        }
    }

    /// Looks once; returns what is not as it should be.
    async fn look(&mut self) -> Result<Option<Probe>, FaultError> {
        let new = self.question.ask().await?;
        if new.outcome != Outcome::Answered {
            return Ok(Some(new));
        }
        let Some(spare) = &mut self.spare else {
            return Ok(None);
        };
        let flowing = match spare.ask(ANSWER).await {
            // The machine that kept it open has ended since, and the connection with it.
            Err(FaultError::Control(ControlError::Ended { .. })) => return Ok(None),
            flowing => flowing?,
        };
        // The other end closes a connection that is quiet for seconds, and may have done so unheard.
        let told = matches!(flowing.outcome, Outcome::NoAnswer | Outcome::OtherStatus);
        Ok(told.then_some(flowing))
    }
}

/// Sees that traffic flows again after a heal. Where yet another fault is in effect on one of the machines,
/// traffic cannot tell.
pub(super) async fn healed(
    fault: &str,
    after: Vec<After>,
    machines: &[(String, PathBuf)],
) -> Result<(), FaultError> {
    let looks = after.into_iter().map(|mut after| async move {
        let Some(first) = after.look().await? else {
            return Ok(());
        };
        if others_are_in_effect(machines).await? {
            return Ok(());
        }
        let probe = match first.connection {
            Connection::New => after.question.ask_until(Outcome::Answered).await?,
            Connection::Flowing => first,
        };
        if probe.outcome == Outcome::Answered {
            return Ok(());
        }
        Err(FaultError::StillInEffect {
            fault: fault.to_owned(),
            probe,
        })
    });
    all(looks).await.map(drop)
}

/// Whether any machine holds a fault; one that is off or frozen, and says nothing, is under one.
pub(super) async fn others_are_in_effect(machines: &[(String, PathBuf)]) -> Result<bool, FaultError> {
    for (name, directory) in machines {
        let asked = tokio::time::timeout(UNHARMED, async {
            let mut control = Control::connect(name, directory).await?;
            control.ask(&Request::Faults).await
        });
        let reply = match asked.await {
            Err(_) | Ok(Err(ControlError::Unreachable { .. } | ControlError::Ended { .. })) => {
                return Ok(true);
            }
            Ok(answered) => answered?,
        };
        if matches!(reply, Reply::Faults { names } if !names.is_empty()) {
            return Ok(true);
        }
    }
    Ok(false)
}
