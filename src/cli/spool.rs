//! `cmc-bridge spool`: a spool from outside, for the day it goes wrong.
//!
//! `ls` may be asked at any time. `verify` and `export` change nothing, but want a spool that nobody writes: the bridge
//! stopped, or a copy. `drain` and `repair` hold the spool's lock as the bridge does.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`drain`] | spool drain |
//! | [`export`] | spool export |
//! | [`ls`] | spool ls |
//! | [`repair`] | spool repair |
//! | [`verify`] | spool verify |

mod drain;
mod export;
mod ls;
mod repair;
mod verify;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{
    ConfigArgs,
    output::{Output, say},
    tap::StreamName,
};
use crate::{
    cli::exit::Exit,
    leftover::unknown_logs,
    spool::{SpoolLock, survey::Survey},
    stream::Stream,
};

/// What is said of a log under a name that is no stream's.
const UNKNOWN_LOG: &str = "the log of a stream that this version doesn't know";

#[derive(Debug, Subcommand)]
pub enum SpoolCommand {
    /// List each stream's segments and what waits in them
    Ls(ls::LsArgs),
    /// Read everything that waits and say what is damaged; exits with 65 when something is
    Verify(verify::VerifyArgs),
    /// Print the batches that wait as JSON lines, also out of a damaged spool; exits with 65 when something is missing
    #[command(after_help = export::AFTER_HELP)]
    Export(export::ExportArgs),
    /// Deliver what waits in a spool whose bridge is gone, and exit when it is empty
    Drain(drain::DrainArgs),
    /// Set damaged parts of a spool aside, so that delivery goes on without them
    #[command(after_help = repair::AFTER_HELP)]
    Repair(repair::RepairArgs),
}

/// Runs the command.
pub fn run(command: SpoolCommand, out: &mut Output) -> Result<(), Exit> {
    match command {
        SpoolCommand::Ls(args) => ls::run(&args, out),
        SpoolCommand::Verify(args) => verify::run(&args, out),
        SpoolCommand::Export(args) => export::run(&args, out),
        SpoolCommand::Drain(args) => drain::run(&args, out),
        SpoolCommand::Repair(args) => repair::run(&args, out),
    }
}

/// Which spool, and which of its streams.
#[derive(Args, Clone, Debug)]
pub struct Place {
    #[command(flatten)]
    config: ConfigArgs,
    /// The spool's directory [default: spool.dir of the configuration]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Only these streams; may be repeated [default: all that are there]
    #[arg(long, value_name = "STREAM", value_enum, value_delimiter = ',')]
    stream: Vec<StreamName>,
}

impl Place {
    /// The spool's directory, which must be there.
    fn dir(&self) -> Result<PathBuf, Exit> {
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => self.config.load()?.config.spool.dir,
        };
        if dir.is_dir() {
            return Ok(dir);
        }
        let from = match self.dir {
            Some(_) => "--dir",
            None => "spool.dir of the configuration",
        };
        Err(Exit::Usage(format!(
            "{} ({from}) is no directory: name the spool's directory with --dir",
            dir.display()
        )))
    }

    /// The directory with its lock, if it has a lock file, and the wanted streams whose logs are there.
    fn at_rest(&self) -> Result<AtRest, Exit> {
        let dir = self.dir()?;
        let lock = SpoolLock::of_existing(&dir)?;
        let streams = self.streams(&dir)?;
        self.tell_unknown(&dir)?;
        Ok(AtRest {
            dir,
            streams,
            _lock: lock,
        })
    }

    /// The same with the lock held in any case, for commands that write.
    fn locked(&self) -> Result<AtRest, Exit> {
        let dir = self.dir()?;
        let streams = self.streams(&dir)?;
        self.tell_unknown(&dir)?;
        Ok(AtRest {
            _lock: Some(SpoolLock::acquire(&dir)?),
            dir,
            streams,
        })
    }

    /// Says what is passed over although no stream was picked.
    fn tell_unknown(&self, dir: &Path) -> Result<(), Exit> {
        if self.stream.is_empty() {
            for name in unknown_logs(dir)? {
                say(format_args!(
                    "{}: {UNKNOWN_LOG}; passed over",
                    dir.join(name).display()
                ));
            }
        }
        Ok(())
    }

    fn streams(&self, dir: &Path) -> Result<Vec<Stream>, Exit> {
        let wanted: Vec<Stream> = self.stream.iter().map(|name| name.stream()).collect();
        let streams: Vec<Stream> = Stream::ALL
            .into_iter()
            .filter(|stream| wanted.is_empty() || wanted.contains(stream))
            .filter(|stream| dir.join(stream.name()).is_dir())
            .collect();
        if streams.is_empty() {
            return Err(Exit::Usage(format!(
                "{} holds no stream's log of a spool",
                dir.display()
            )));
        }
        Ok(streams)
    }
}

/// A spool that nobody writes meanwhile.
struct AtRest {
    dir: PathBuf,
    streams: Vec<Stream>,
    _lock: Option<SpoolLock>,
}

impl AtRest {
    /// The logs of the wanted streams; a directory without one is passed over.
    fn surveys(&self) -> impl Iterator<Item = Result<(Stream, Survey), Exit>> + '_ {
        self.streams.iter().filter_map(|stream| {
            let survey = Survey::open(&self.dir.join(stream.name()));
            survey
                .map_err(Exit::from)
                .map(|s| Some((*stream, s?)))
                .transpose()
        })
    }
}

/// What to add to a verdict when the disk refuses to read.
fn advice(refused: bool) -> &'static str {
    match refused {
        true => {
            ". The disk refuses to read: first copy the volume, with ddrescue or the like, which tries again and may get \
             more; look at the copy with --dir, and replace the disk"
        }
        false => "",
    }
}

/// RFC 3339 with seconds, UTC.
fn time(micros: i64) -> String {
    jiff::Timestamp::from_microsecond(micros).map_or_else(
        |_| "?".to_owned(),
        |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    )
}
