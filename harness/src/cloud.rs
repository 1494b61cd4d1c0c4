//! The cloud: its stand-in answers platform-api's calls, and an [`Operator`] follows its orders, so that a droplet
//! is a machine of the topology and a reboot is one.

mod conduct;
mod error;
mod first_boot;
mod operator;
mod rack;

use wopr_cloud::{Droplet, Fault};
use wopr_machine::protocol::{CloudRequest, Reply, Request};

use crate::control::ControlError;
use crate::history::{Deed, Meaning};
use crate::machine::VPS;
use crate::topology::Topology;

pub use conduct::{Conduct, Reboots};
pub use error::CloudError;
pub use operator::Operator;
pub use wopr_cloud as standin;

impl Topology {
    /// Lets somebody follow the cloud's orders until what this returns is dropped: creations boot machines of the
    /// [rack](crate::topology::Builder::rack), reboots and deletions reach them.
    ///
    /// # Errors
    /// [`CloudError::Control`].
    pub async fn operate_cloud(&self, conduct: Conduct) -> Result<Operator<'_>, CloudError> {
        Operator::begin(self, conduct).await
    }

    /// Answers the cloud's callers otherwise from now on; a [`Fault`] says how, to which calls, and how often. The
    /// newest holds; `standin::Answer::Well` to the same calls ends it.
    ///
    /// # Errors
    /// [`CloudError::Control`].
    pub async fn cloud_answers(&self, fault: Fault) -> Result<(), CloudError> {
        let shown = format!(
            "{} {} of the cloud are answered so: {:?}",
            fault.calls.method,
            fault.calls.path.as_deref().unwrap_or("to all paths"),
            fault.answer
        );
        self.ask_cloud(CloudRequest::Fault(fault)).await?;
        self.deeds().note(Deed::over(shown, Meaning::nothing()));
        Ok(())
    }

    /// The cloud's droplets.
    ///
    /// # Errors
    /// [`CloudError::Control`].
    pub async fn droplets(&self) -> Result<Vec<Droplet>, CloudError> {
        match self.ask_cloud(CloudRequest::Droplets).await? {
            Reply::Droplets { droplets } => Ok(droplets),
            other => Err(ControlError::unexpected(VPS.as_str(), &other).into()),
        }
    }

    /// A droplet goes behind platform-api's back, and its machine with it.
    ///
    /// # Errors
    /// [`CloudError::Control`].
    pub async fn lose_droplet(&self, droplet: u64) -> Result<(), CloudError> {
        self.ask_cloud(CloudRequest::Vanish { droplet }).await?;
        // What becomes of its machine is its operator's to tell.
        let what = format!("droplet {droplet} is deleted behind everybody's back");
        self.deeds().note(Deed::over(what, Meaning::nothing()));
        Ok(())
    }

    async fn ask_cloud(&self, request: CloudRequest) -> Result<Reply, CloudError> {
        let mut control = self.machine(&VPS).control().await?;
        Ok(control.ask(&Request::Cloud(request)).await?)
    }
}
