//! Boots the WOPR stack as two machines, breaks what lies between them, and proves what the platform
//! does about it.

pub mod by_hand;
pub mod clock;
pub mod cloud;
pub mod control;
pub mod dirs;
pub mod disk;
pub mod doctor;
pub mod engine;
pub mod env;
pub mod fault;
pub mod history;
pub mod image;
mod keeper;
mod lease;
pub mod machine;
mod models;
pub mod oracle;
pub mod pool;
pub mod privilege;
pub mod profile;
pub mod progress;
pub mod report;
pub mod seed;
pub mod service;
pub mod settings;
pub mod testing;
pub mod topology;
pub mod watch;

pub use machine::{GPU, VPS};
pub use service::Service;
pub use topology::Topology;
