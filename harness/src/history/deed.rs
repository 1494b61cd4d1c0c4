//! One thing that the harness did: words for the reader, and for the oracle what it may do to polls.

use std::fmt;
use std::net::Ipv4Addr;

use super::now_us;

/// Something that the harness did.
#[derive(Debug, Clone, PartialEq)]
pub struct Deed {
    /// The fault's name, or what was done.
    pub name: String,
    /// Whether it lasts.
    pub part: Part,
    /// When it was set about, in microseconds since 1970: it may show from then on. Its event is of when it was
    /// seen to be done.
    pub from_us: i64,
    /// Tells faults of one name apart; none where it is known by its name alone.
    pub fault: Option<u64>,
    /// What it means for polls.
    pub meaning: Meaning,
}

/// Which part of something that may last a deed is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A fault began, and is in effect for certain.
    Begun,
    /// A fault became another one of its kind: what it was is certain no longer.
    Changed,
    /// A fault's heal.
    Healed(Heal),
    /// The end of what began and was no fault, as a reboot; what it was done to may still be starting.
    Ended,
    /// Over when it is told.
    Over,
    /// From now on it is so.
    Onward,
}

/// How a heal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heal {
    /// What was harmed was seen to be well.
    Seen,
    /// It was begun, and nobody looked.
    Unseen,
}

/// What a deed means for the polls of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meaning {
    /// How it harms the requests of a poll.
    pub impact: Impact,
    /// Which of them.
    pub bearing: Bearing,
    /// What else goes wrong by it.
    pub upsets: Vec<Upset>,
}

/// How requests are harmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Impact {
    /// Not at all.
    None,
    /// They may be answered, or not.
    May,
    /// None is answered well while it lasts.
    Cuts,
}

/// Which requests of polls are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearing {
    /// Those to these addresses; none for all.
    pub hosts: Option<Vec<Ipv4Addr>>,
    /// Those to this port; none for all.
    pub port: Option<u16>,
}

/// What polls rest on, beside the way to the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upset {
    /// platform-api ends, and loses its memory.
    Memory,
    /// platform-api does not run, or starts.
    Running,
    /// The database does not answer.
    Database,
    /// platform-api's clock is not at its rate.
    Clock,
    /// What faults were made of is gone: machines or services that held their rules ended, or have moved. Polls
    /// as such are none the worse for it.
    Rules,
    /// Nobody knows.
    Unknown,
}

impl Upset {
    /// Those that polls are the worse for.
    pub const OF_POLLS: [Self; 5] = [
        Self::Memory,
        Self::Running,
        Self::Database,
        Self::Clock,
        Self::Unknown,
    ];
}

impl Bearing {
    /// All requests.
    pub const ALL: Self = Self {
        hosts: None,
        port: None,
    };

    /// Those to hosts that rows name, and not to addresses.
    pub const BY_NAME: Self = Self {
        hosts: Some(Vec::new()),
        port: None,
    };

    /// Those to an address, at one port of it or at all.
    pub fn at(host: Ipv4Addr, port: Option<u16>) -> Self {
        Self {
            hosts: Some(vec![host]),
            port,
        }
    }

    /// Whether requests to this host and port are meant. Who polls a host by its name may mean any address.
    pub fn may_meet(&self, host: Option<Ipv4Addr>, port: u16) -> bool {
        let here = match (&self.hosts, host) {
            (Some(hosts), Some(host)) => hosts.contains(&host),
            _ => true,
        };
        here && self.port.is_none_or(|of| of == port)
    }
}

impl Meaning {
    /// Polls do not depend on it.
    pub fn nothing() -> Self {
        Self {
            impact: Impact::None,
            bearing: Bearing::ALL,
            upsets: Vec::new(),
        }
    }

    /// Nobody knows what polls do about it.
    pub fn unknown() -> Self {
        Self {
            impact: Impact::May,
            bearing: Bearing::ALL,
            upsets: vec![Upset::Unknown],
        }
    }

    /// No request there is answered well.
    pub fn cuts(bearing: Bearing) -> Self {
        Self {
            impact: Impact::Cuts,
            bearing,
            upsets: Vec::new(),
        }
    }

    /// Requests there may go either way.
    pub fn may_harm(bearing: Bearing) -> Self {
        Self {
            impact: Impact::May,
            bearing,
            upsets: Vec::new(),
        }
    }

    /// It upsets what all polls rest on.
    pub fn upsets(upsets: impl Into<Vec<Upset>>) -> Self {
        Self {
            impact: Impact::May,
            bearing: Bearing::ALL,
            upsets: upsets.into(),
        }
    }

    /// The same, which upsets this as well.
    #[must_use]
    pub fn and(mut self, upset: Upset) -> Self {
        self.upsets.push(upset);
        self
    }

    /// Whether it upsets any of these.
    pub fn has(&self, upsets: &[Upset]) -> bool {
        self.upsets.iter().any(|upset| upsets.contains(upset))
    }
}

impl Deed {
    fn new(name: impl Into<String>, part: Part, meaning: Meaning) -> Self {
        Self {
            name: name.into(),
            part,
            from_us: now_us(),
            fault: None,
            meaning,
        }
    }

    /// A fault that is in effect.
    pub fn begun(name: impl Into<String>, meaning: Meaning) -> Self {
        Self::new(name, Part::Begun, meaning)
    }

    /// The attributes of a fault were changed.
    pub fn changed(name: impl Into<String>, meaning: Meaning) -> Self {
        Self::new(name, Part::Changed, meaning)
    }

    /// A fault was healed.
    pub fn healed(name: impl Into<String>, heal: Heal) -> Self {
        Self::new(name, Part::Healed(heal), Meaning::nothing())
    }

    /// Something that began, and has come to its end by itself.
    pub fn ended(name: impl Into<String>) -> Self {
        Self::new(name, Part::Ended, Meaning::nothing())
    }

    /// Something that is over.
    pub fn over(what: impl Into<String>, meaning: Meaning) -> Self {
        Self::new(what, Part::Over, meaning)
    }

    /// Something that is so from now on.
    pub fn onward(what: impl Into<String>, meaning: Meaning) -> Self {
        Self::new(what, Part::Onward, meaning)
    }

    /// The same, set about at this time.
    #[must_use]
    pub fn since(mut self, from_us: i64) -> Self {
        self.from_us = from_us;
        self
    }

    /// The same, of this very fault.
    #[must_use]
    pub fn of(mut self, fault: u64) -> Self {
        self.fault = Some(fault);
        self
    }

    /// Whether this is about the fault that another began.
    pub fn is_about(&self, begun: &Self) -> bool {
        match (self.fault, begun.fault) {
            (Some(this), Some(that)) => this == that,
            _ => self.name == begun.name,
        }
    }
}

/// What nobody has described to the oracle: it judges no verdict from here on.
impl From<String> for Deed {
    fn from(what: String) -> Self {
        Self::onward(what, Meaning::unknown())
    }
}

impl From<&str> for Deed {
    fn from(what: &str) -> Self {
        Self::from(what.to_owned())
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.part {
            Part::Begun => "begun:  ",
            Part::Changed => "changed: ",
            Part::Healed(_) => "healed: ",
            Part::Ended => "ended:  ",
            Part::Over | Part::Onward => "",
        };
        write!(f, "{word}{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Ipv4Addr = Ipv4Addr::new(10, 87, 0, 3);

    #[test]
    fn a_deed_reads_by_its_part() {
        let begun = Deed::begun("drop on vps → gpu", Meaning::nothing());
        assert_eq!(begun.to_string(), "begun:  drop on vps → gpu");
        let healed = Deed::healed("drop on vps → gpu", Heal::Seen);
        assert_eq!(healed.to_string(), "healed: drop on vps → gpu");
        assert!(healed.is_about(&begun));
        assert!(
            !healed.of(2).is_about(&begun.of(1)),
            "another one of the same name"
        );
        assert_eq!(
            Deed::from("restarted whisper".to_owned()).to_string(),
            "restarted whisper"
        );
    }

    #[test]
    fn a_bearing_is_on_one_port_or_on_all() {
        assert!(Bearing::at(HOST, None).may_meet(Some(HOST), 8080));
        assert!(!Bearing::at(HOST, Some(8081)).may_meet(Some(HOST), 8080));
        assert!(!Bearing::at(HOST, None).may_meet(Some(Ipv4Addr::LOCALHOST), 8080));
        assert!(
            Bearing::at(HOST, None).may_meet(None, 8080),
            "a name may lead there"
        );
        assert!(Bearing::ALL.may_meet(Some(HOST), 8080));
        assert!(Bearing::BY_NAME.may_meet(None, 8080));
        assert!(!Bearing::BY_NAME.may_meet(Some(HOST), 8080));
    }
}
