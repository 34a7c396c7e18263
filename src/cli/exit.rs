//! How each error ends the process: the codes of sysexits, which scripts and Kubernetes can tell apart.

use std::process::ExitCode;

use crate::{
    bridge::BridgeError, config::ConfigError, ingest::PairError, logging::LoggingError, spool::SpoolError,
};

const USAGE: u8 = 64;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Exit {
    /// Any code: the command has succeeded and printed its answer, which this code sums up.
    #[error("")]
    Answered(u8),
    /// 64: the command line is wrong. Waiting does not help.
    #[error("{0}")]
    Usage(String),
    /// 65: the data that was given or found is wrong.
    #[error("{0}")]
    Data(String),
    /// 69: something needed is unavailable, such as a port that is in use. Trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// 75: something could not be decided yet. Trying again later helps.
    #[error("{0}")]
    Undecided(String),
    /// 74: a disk or file failed.
    #[error("{0}")]
    Io(String),
    /// 78: the configuration is refused. Waiting does not help.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// 78: the certificate or key that the configuration names is refused.
    #[error("the TLS certificate is refused:\n  {0}")]
    Certificate(#[from] PairError),
}

impl Exit {
    /// The code of sysexits.
    pub fn code(&self) -> u8 {
        match self {
            Exit::Answered(code) => *code,
            Exit::Usage(_) => USAGE,
            Exit::Data(_) => 65,
            Exit::Unavailable(_) => 69,
            Exit::Io(_) => 74,
            Exit::Undecided(_) => 75,
            Exit::Config(_) | Exit::Certificate(_) => 78,
        }
    }
}

impl From<std::io::Error> for Exit {
    fn from(error: std::io::Error) -> Exit {
        Exit::Io(error.to_string())
    }
}

impl From<SpoolError> for Exit {
    fn from(error: SpoolError) -> Exit {
        match error {
            SpoolError::Locked { .. } => Exit::Unavailable(error.to_string()),
            SpoolError::Io { .. } | SpoolError::Unusable { .. } => Exit::Io(error.to_string()),
        }
    }
}

impl From<BridgeError> for Exit {
    fn from(error: BridgeError) -> Exit {
        match error {
            BridgeError::Spool(error) => error.into(),
            BridgeError::Thread(error) => error.into(),
            BridgeError::Certificate(error) => error.into(),
            BridgeError::NoLogs(_) => Exit::Usage(error.to_string()),
            BridgeError::Listen { .. } | BridgeError::PortLost(_) | BridgeError::Metrics(_) => {
                Exit::Unavailable(error.to_string())
            }
        }
    }
}

impl From<LoggingError> for Exit {
    fn from(error: LoggingError) -> Exit {
        Exit::Unavailable(error.to_string())
    }
}

impl From<&Exit> for ExitCode {
    fn from(exit: &Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// Prints clap's help, version or error, and returns the exit code.
pub fn command_line(error: &clap::Error) -> ExitCode {
    // If the terminal is closed, there is nobody to tell.
    let _ = error.print();
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(USAGE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        let refused = ConfigError { problems: Vec::new() };
        let codes = [
            (Exit::Answered(2), 2),
            (Exit::Usage(String::new()), 64),
            (Exit::Data(String::new()), 65),
            (Exit::Unavailable(String::new()), 69),
            (Exit::Io(String::new()), 74),
            (Exit::Undecided(String::new()), 75),
            (Exit::from(std::io::Error::other("full")), 74),
            (Exit::from(refused), 78),
            (Exit::from(BridgeError::NoLogs("x".into())), 64),
            (Exit::from(BridgeError::PortLost("the port")), 69),
            (Exit::from(BridgeError::Thread(std::io::Error::other("full"))), 74),
        ];
        for (exit, code) in codes {
            assert_eq!(exit.code(), code, "{exit:?}");
        }
    }
}
