//! The options that choose a spool and its streams.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    cli::{config_args::ConfigArgs, exit::Exit, output::say},
    config::Config,
    leftover::unknown_logs,
    spool::{SpoolError, SpoolLock, survey::Survey},
    stream::Stream,
};

/// What messages call a log whose name is no stream's.
pub const UNKNOWN_LOG: &str = "the log of a stream that this version doesn't know";

/// Which spool.
#[derive(Args, Clone, Debug)]
pub struct SpoolArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The spool's directory [default: spool.dir of the configuration]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl SpoolArgs {
    /// The spool's directory.
    ///
    /// # Errors
    /// 64: it is no directory. 78: the configuration is refused, if it is needed.
    pub fn dir(&self) -> Result<PathBuf, Exit> {
        match &self.dir {
            Some(dir) => existing(dir.clone(), "--dir"),
            None => Ok(self.config()?.spool.dir),
        }
    }

    /// The configuration, with this spool's directory.
    ///
    /// # Errors
    /// 64: the spool is no directory. 78: the configuration is refused.
    pub fn config(&self) -> Result<Config, Exit> {
        let mut config = self.config.load()?.config;
        config.spool.dir = match &self.dir {
            Some(dir) => existing(dir.clone(), "--dir")?,
            None => existing(config.spool.dir, "spool.dir of the configuration")?,
        };
        Ok(config)
    }
}

fn existing(dir: PathBuf, origin: &str) -> Result<PathBuf, Exit> {
    if dir.is_dir() {
        return Ok(dir);
    }
    Err(Exit::Usage(format!(
        "{} ({origin}) is not a directory: name the spool's directory with --dir",
        dir.display()
    )))
}

/// Which spool, and which of its streams.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    #[command(flatten)]
    pub spool: SpoolArgs,
    /// Only these streams; may be repeated [default: all streams that have a log]
    #[arg(long, value_name = "STREAM", value_enum, value_delimiter = ',')]
    stream: Vec<Stream>,
}

impl LogArgs {
    /// The chosen logs of a spool that nothing writes. Its lock is held if it has a lock file; a copy may have none.
    ///
    /// # Errors
    /// 64: nothing to choose from. 69: a bridge has the spool open. 74: it can't be read.
    pub fn at_rest(&self) -> Result<AtRest, Exit> {
        self.chosen(SpoolLock::of_existing)
    }

    /// The same, always with the lock held, for commands that write.
    ///
    /// # Errors
    /// Those of [`LogArgs::at_rest`].
    pub fn locked(&self) -> Result<AtRest, Exit> {
        self.chosen(|dir| SpoolLock::acquire(dir).map(Some))
    }

    fn chosen(
        &self,
        lock: impl FnOnce(&Path) -> Result<Option<SpoolLock>, SpoolError>,
    ) -> Result<AtRest, Exit> {
        let dir = self.spool.dir()?;
        let streams = self.streams(&dir)?;
        let lock = lock(&dir)?;
        self.report_unknown(&dir)?;
        Ok(AtRest {
            dir,
            streams,
            _lock: lock,
        })
    }

    /// Names the logs that are skipped although no stream was chosen.
    fn report_unknown(&self, dir: &Path) -> Result<(), Exit> {
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

    /// The chosen streams that have a log.
    ///
    /// # Errors
    /// 64: none has one.
    pub fn streams(&self, dir: &Path) -> Result<Vec<Stream>, Exit> {
        let streams: Vec<Stream> = Stream::ALL
            .into_iter()
            .filter(|stream| self.stream.is_empty() || self.stream.contains(stream))
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

/// The chosen logs of a spool that nothing writes.
pub struct AtRest {
    pub dir: PathBuf,
    streams: Vec<Stream>,
    _lock: Option<SpoolLock>,
}

impl AtRest {
    /// Surveys of the chosen logs, or why one can't be opened. A directory without a log is skipped.
    pub fn surveys(&self) -> impl Iterator<Item = Result<(Stream, Survey), Exit>> + '_ {
        self.streams.iter().filter_map(|stream| {
            let survey = Survey::open(&self.dir.join(stream.name()));
            survey
                .map_err(Exit::from)
                .map(|s| Some((*stream, s?)))
                .transpose()
        })
    }
}
