//! `cmc-bridge top`: one or several running bridges in a terminal.
//!
//! Each bridge is asked by a task of its own, so one that hangs delays no other. The terminal is in raw mode on its alternate screen
//! while the command runs, and is restored however it ends: `q`, Esc, Ctrl-C, SIGTERM, an error, or a panic (the hook of ratatui).
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`polling`] | asks the bridges |
//! | [`screen`] | what is shown: a function of the state and the size |

mod polling;
mod screen;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IsTerminal},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Args;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
};
use tokio::runtime::Runtime;

use self::{
    polling::Polling,
    screen::{Screen, draw},
};
use super::{bridge_status::BridgeClient, config_args::ConfigArgs, signals::stop_signals};
use crate::cli::exit::Exit;

pub const AFTER_HELP: &str = "\
Keys: q ends it, up and down choose a bridge.

Colours only repeat what words say; --no-colour or the variable NO_COLOR turns them off.

Rates of a bridge are those of the last seconds. Rates and sync times of streams, and answer times, are those of the last minutes. Times
of day are UTC, by the bridge's clock.";

/// How long a key or a signal may wait.
const TICK: Duration = Duration::from_millis(200);

/// The arguments of `top`.
#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Admin port of a bridge, such as http://10.0.0.7:9464; may be repeated [default: admin.listen of the configuration]
    #[arg(long)]
    pub url: Vec<String>,
    /// Name and admin port of a headless service: each of its addresses is a bridge
    #[arg(long, value_name = "HOST:PORT")]
    pub service: Option<String>,
    /// Seconds between two questions
    #[arg(long, default_value_t = 2, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub every: u64,
    /// Show no colours
    #[arg(long)]
    pub no_colour: bool,
}

/// Shows the bridges until it is told to end.
///
/// # Errors
/// 64: there is no terminal, or a URL is wrong. 74: the terminal failed. 78: `admin.listen` is refused.
pub fn run(args: &TopArgs) -> Result<(), Exit> {
    let every = Duration::from_secs(args.every);
    let runtime = Runtime::new()?;
    let mut clients: Vec<BridgeClient> = args
        .url
        .iter()
        .map(|url| BridgeClient::new(url))
        .collect::<Result<_, _>>()?;
    if clients.is_empty() && args.service.is_none() {
        clients.push(BridgeClient::configured(&args.config)?);
    }
    if let Some(service) = &args.service {
        polling::check_service(service)?;
    }
    require_a_terminal()?;
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let stop = Arc::new(AtomicBool::new(false));
    let polling = {
        let _runtime = runtime.enter();
        end_on_signals(&stop)?;
        Polling::start(clients, args.service.clone(), every)
    };
    let result = TerminalScreen::open().and_then(|mut terminal| {
        let colours = !args.no_colour && !no_colour;
        show(&mut terminal.0, polling, &stop, colours)
    });
    // A name that is being resolved delays nothing.
    runtime.shutdown_background();
    Ok(result?)
}

fn require_a_terminal() -> Result<(), Exit> {
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() || is_dumb {
        let what = "top needs a terminal for input and output (and TERM other than dumb); in a script, use `cmc-bridge why` or \
                    /status.json of the admin port";
        return Err(Exit::Usage(what.to_owned()));
    }
    Ok(())
}

fn end_on_signals(stop: &Arc<AtomicBool>) -> Result<(), Exit> {
    let (stop, mut signals) = (Arc::clone(stop), stop_signals()?);
    tokio::spawn(async move {
        signals.recv().await;
        stop.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// The alternate screen in raw mode; dropping it restores the terminal.
struct TerminalScreen(DefaultTerminal);

impl TerminalScreen {
    fn open() -> io::Result<TerminalScreen> {
        ratatui::try_init()
            .map(TerminalScreen)
            .inspect_err(|_| ratatui::restore())
    }
}

impl Drop for TerminalScreen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn show(
    terminal: &mut DefaultTerminal,
    mut polling: Polling,
    stop: &AtomicBool,
    colours: bool,
) -> io::Result<()> {
    let mut screen = Screen {
        colours,
        ..Screen::default()
    };
    while !stop.load(Ordering::Relaxed) {
        polling.update(&mut screen);
        terminal.draw(|frame| draw(frame, &screen))?;
        if event::poll(TICK)? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => match (key.code, key.modifiers) {
                    (KeyCode::Char('q') | KeyCode::Esc, _) => return Ok(()),
                    (KeyCode::Char('c'), KeyModifiers::CONTROL) => return Ok(()),
                    (KeyCode::Down | KeyCode::Char('j'), _) => choose(&mut screen, 1),
                    (KeyCode::Up | KeyCode::Char('k'), _) => choose(&mut screen, -1),
                    _ => {}
                },
                _ => {}
            }
        }
    }
    Ok(())
}

fn choose(screen: &mut Screen, step: isize) {
    let last = screen.bridges.len().saturating_sub(1);
    screen.selected = screen.selected.saturating_add_signed(step).min(last);
}
