//! Who follows the cloud's orders: makes, reboots and removes machines, and reports on it.

use std::marker::PhantomData;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::{AbortHandle, JoinSet};
use wopr_cloud::{Order, What};
use wopr_machine::protocol::{CloudRequest, Reply, Request};

use super::rack::Rack;
use super::{CloudError, Conduct, Reboots, first_boot};
use crate::control::{Control, ControlError};
use crate::history::{Bearing, Deed, Deeds, Meaning, Upset, now_us};
use crate::machine::{RunningMachine, VPS};
use crate::topology::Topology;

/// A machine that went down is up again by then, or was not meant to be.
const BOOT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(100);

/// Follows the cloud's orders until it is dropped. What it was doing then stays as it is: a topology of a test's
/// own goes with the test, and one of the pool does not pass its reset and is replaced.
#[must_use = "orders are followed for as long as this is held"]
pub struct Operator<'a> {
    work: Arc<Work>,
    task: AbortHandle,
    topology: PhantomData<&'a Topology>,
}

struct Work {
    rack: Rack,
    conduct: Conduct,
    deeds: Deeds,
    vps: RunningMachine,
    trouble: Mutex<Vec<CloudError>>,
}

impl<'a> Operator<'a> {
    pub(super) async fn begin(topology: &'a Topology, conduct: Conduct) -> Result<Self, CloudError> {
        let work = Arc::new(Work {
            rack: Rack::of(topology, conduct.machines.clone()),
            conduct,
            deeds: topology.deeds().clone(),
            vps: topology.machine(&VPS).clone(),
            trouble: Mutex::default(),
        });
        // From when this returns, calls have consequences.
        let control = work.listen().await?;
        let task = tokio::spawn(work.clone().follow(control)).abort_handle();
        Ok(Self {
            work,
            task,
            topology: PhantomData,
        })
    }

    /// The machine that is a droplet.
    ///
    /// # Errors
    /// [`CloudError::NoMachine`].
    pub fn machine_of(&self, droplet: u64) -> Result<crate::machine::MachineName, CloudError> {
        Ok(self.work.rack.machine_of(droplet)?.name().clone())
    }

    /// Ends it, and tells the first order that could not be followed.
    ///
    /// # Errors
    /// What kept an order from being followed.
    pub fn end(self) -> Result<(), CloudError> {
        let mut trouble = self.work.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match trouble.is_empty() {
            true => Ok(()),
            false => Err(trouble.remove(0)),
        }
    }
}

impl Drop for Operator<'_> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Work {
    async fn listen(&self) -> Result<Control, CloudError> {
        let mut control = self.vps.control().await?;
        control.ask(&Request::Cloud(CloudRequest::Machines(true))).await?;
        Ok(control)
    }

    /// The same once the VPS machine has booted anew. One that is going down may still take the question.
    async fn listen_again(&self) -> Result<Control, CloudError> {
        let began = Instant::now();
        loop {
            match self.listen().await {
                Err(CloudError::Control(ControlError::Ended { .. })) if began.elapsed() < BOOT => {
                    tokio::time::sleep(PAUSE).await;
                }
                ended => return ended,
            }
        }
    }

    async fn follow(self: Arc<Self>, mut control: Control) {
        let mut after = 0;
        // Aborted with this.
        let mut under_way = JoinSet::new();
        loop {
            match control.ask(&Request::Cloud(CloudRequest::Orders { after })).await {
                Ok(Reply::Orders { orders }) => {
                    for order in orders {
                        after = after.max(order.number);
                        under_way.spawn(self.clone().carry_out(order));
                    }
                }
                // The VPS machine boots anew; its cloud remembers.
                Err(ControlError::Ended { .. }) => match self.listen_again().await {
                    Ok(again) => control = again,
                    Err(error) => return self.complain(error),
                },
                Ok(other) => return self.complain(ControlError::unexpected(VPS.as_str(), &other).into()),
                Err(error) => return self.complain(error.into()),
            }
        }
    }

    fn complain(&self, error: CloudError) {
        self.deeds.note(format!("cloud: {error}"));
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(error);
    }

    async fn tell(&self, request: CloudRequest) -> Result<(), CloudError> {
        let mut control = self.vps.control().await?;
        control.ask(&Request::Cloud(request)).await?;
        Ok(())
    }

    async fn carry_out(self: Arc<Self>, order: Order) {
        let (droplet, action) = (order.droplet, order.action);
        let carried_out = match order.what {
            What::Create { user_data, .. } => {
                let text = user_data.map(|data| data.as_str().to_owned());
                return match self.create(droplet, text).await {
                    Ok(()) => {}
                    Err(error) => self.complain(error),
                };
            }
            What::Destroy => self.destroy(droplet).await.map(|()| true),
            What::Reboot => self.reboot(droplet).await,
            What::PowerOff => self.power_off(droplet).await.map(|()| true),
            What::PowerOn => self.power_on(droplet).await.map(|()| true),
        };
        let ended = match (carried_out, action) {
            (Ok(true), Some(action)) => self.tell(CloudRequest::Ended { action, well: true }).await,
            (Ok(_), _) => Ok(()),
            (Err(error), action) => {
                self.complain(error);
                match action {
                    Some(action) => self.tell(CloudRequest::Ended { action, well: false }).await,
                    None => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            self.complain(error);
        }
    }

    async fn create(&self, droplet: u64, user_data: Option<String>) -> Result<(), CloudError> {
        tokio::time::sleep(self.conduct.creation).await;
        let from_us = now_us();
        let machine = self.rack.make(droplet).await?;
        let (name, address) = (machine.name(), machine.address());
        let boot = format!("cloud: first boot of droplet {droplet}, {name} at {address}");
        self.deeds.note(Deed::begun(&boot, at(&[address])).since(from_us));
        let (public, private) = (address, address);
        let active = CloudRequest::Active {
            droplet,
            public,
            private,
        };
        // As with the real cloud, which knows when a droplet runs, and not what its system is at.
        self.tell(active).await?;
        let booted = self.first_boot(droplet, machine, user_data).await;
        if booted.is_err() && self.rack.machine_of(droplet).is_err() {
            // It was removed meanwhile.
            return Ok(());
        }
        if booted.is_ok() {
            self.deeds.note(Deed::ended(boot));
        }
        booted
    }

    async fn first_boot(
        &self,
        droplet: u64,
        machine: &RunningMachine,
        user_data: Option<String>,
    ) -> Result<(), CloudError> {
        self.rack.until_booted(droplet).await?;
        let Some(user_data) = user_data else {
            return Ok(());
        };
        tokio::time::sleep(self.conduct.first_boot).await;
        first_boot::run(machine, &self.vps, &user_data, &self.conduct).await
    }

    async fn destroy(&self, droplet: u64) -> Result<(), CloudError> {
        let (from_us, address) = (now_us(), self.rack.machine_of(droplet)?.address());
        self.rack.remove(droplet).await?;
        self.tell(CloudRequest::Gone { droplet }).await?;
        let gone = format!("cloud: the machine of droplet {droplet} is gone");
        self.deeds.note(Deed::onward(gone, at(&[address])).since(from_us));
        Ok(())
    }

    /// Returns whether it is over.
    async fn reboot(&self, droplet: u64) -> Result<bool, CloudError> {
        let machine = self.rack.machine_of(droplet)?;
        let (name, before) = (machine.name(), machine.address());
        match self.conduct.reboots {
            Reboots::Never => {
                let refused = format!("cloud: {name} is not rebooted, on purpose");
                self.deeds.note(Deed::over(refused, Meaning::nothing()));
                return Ok(false);
            }
            Reboots::After(time) => tokio::time::sleep(time).await,
            Reboots::Clean | Reboots::PowerCycle | Reboots::Moved => {}
        }
        let from_us = now_us();
        match self.conduct.reboots {
            Reboots::Clean => machine.stop().await?,
            _ => machine.kill().await?,
        }
        let reboot = format!("cloud: reboot of {name} at {before}");
        self.deeds
            .note(Deed::begun(&reboot, at(&[before])).since(from_us));
        match self.conduct.reboots {
            Reboots::Moved => self.rack.start_elsewhere(machine).await?,
            _ => machine.start().await?,
        }
        self.deeds.note(Deed::ended(reboot));
        let address = machine.address();
        if address != before {
            let moved = format!("cloud: {name} is at {address} and no longer at {before}");
            let moved = Deed::onward(moved, at(&[before, address]));
            self.deeds.note(moved.since(from_us));
        }
        Ok(true)
    }

    async fn power_off(&self, droplet: u64) -> Result<(), CloudError> {
        let (from_us, machine) = (now_us(), self.rack.machine_of(droplet)?);
        machine.stop().await?;
        let off = Deed::begun(is_off(machine), at(&[machine.address()]));
        self.deeds.note(off.since(from_us));
        self.tell(CloudRequest::Off { droplet }).await
    }

    async fn power_on(&self, droplet: u64) -> Result<(), CloudError> {
        let machine = self.rack.machine_of(droplet)?;
        machine.start().await?;
        self.deeds.note(Deed::ended(is_off(machine)));
        Ok(())
    }
}

fn is_off(machine: &RunningMachine) -> String {
    format!("cloud: {} is off", machine.name())
}

/// A machine does not serve at these addresses, or may not, and the rules of faults that it held are gone.
fn at(addresses: &[Ipv4Addr]) -> Meaning {
    let bearing = Bearing {
        hosts: Some(addresses.to_vec()),
        port: None,
    };
    Meaning::may_harm(bearing).and(Upset::Rules)
}
