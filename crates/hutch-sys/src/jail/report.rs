//! What a jail holds and what this machine's kernel cannot give it: said, never silent.

use std::fmt;

/// The stages in which a jail is entered, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Another user and group, no supplementary groups.
    Identity,
    /// No capability that was not asked for, now or ever (bounding set).
    Capabilities,
    /// `no_new_privs`: set-id bits and file capabilities mean nothing from here on.
    NoNewPrivileges,
    /// Landlock: only the listed files and directories can be opened.
    Files,
    /// Landlock: no TCP.
    Network,
    /// Landlock: no signal and no abstract Unix socket to a process outside the jail.
    Scope,
    /// The system-call filter.
    SystemCalls,
    /// No core dump and no `ptrace` by processes of the same user.
    NotDumpable,
}

impl Stage {
    const ALL: [Self; 8] = [
        Self::Identity,
        Self::Capabilities,
        Self::NoNewPrivileges,
        Self::Files,
        Self::Network,
        Self::Scope,
        Self::SystemCalls,
        Self::NotDumpable,
    ];

    /// A number that fits a byte, for the pipe by which a child says where it failed.
    pub(crate) fn number(self) -> u8 {
        Self::ALL
            .iter()
            .position(|&stage| stage == self)
            .and_then(|at| u8::try_from(at).ok())
            .unwrap_or(u8::MAX)
    }

    /// The inverse of [`Stage::number`].
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Identity => "identity",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivileges => "no new privileges",
            Self::Files => "files",
            Self::Network => "network",
            Self::Scope => "scope",
            Self::SystemCalls => "system calls",
            Self::NotDumpable => "not dumpable",
        })
    }
}

/// What became of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All of it holds.
    Applied,
    /// Part of it holds.
    Partial {
        /// What is missing and why, as a phrase.
        missing: String,
    },
    /// None of it holds.
    Unavailable {
        /// Why, as a phrase.
        reason: String,
    },
}

/// Every stage that was asked for, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JailReport {
    stages: Vec<(Stage, Outcome)>,
}

impl JailReport {
    pub(crate) fn add(&mut self, stage: Stage, outcome: Outcome) {
        self.stages.push((stage, outcome));
    }

    /// All stages in the order in which they were entered.
    pub fn stages(&self) -> &[(Stage, Outcome)] {
        &self.stages
    }

    /// What became of one stage; none if it was not asked for.
    pub fn outcome(&self, stage: Stage) -> Option<&Outcome> {
        self.stages.iter().find(|(of, _)| *of == stage).map(|(_, outcome)| outcome)
    }

    /// One phrase for each thing that does not hold on this machine; empty when everything holds.
    pub fn weaknesses(&self) -> Vec<String> {
        let phrase = |(stage, outcome): &(Stage, Outcome)| match outcome {
            Outcome::Applied => None,
            Outcome::Partial { missing } => Some(format!("{stage}: {missing}")),
            Outcome::Unavailable { reason } => Some(format!("{stage}: {reason}")),
        };
        self.stages.iter().filter_map(phrase).collect()
    }
}
