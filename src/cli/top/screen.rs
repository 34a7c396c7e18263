//! What `top` shows: a function of its state and the size of the screen.
//!
//! Words say everything; colours only repeat it. What doesn't fit is left out in this order: empty lines, the last refusals, columns
//! of tables from the right of [`StreamColumn`], and problems from the end. The state in a sentence and the footer always stay.

use std::time::Duration;

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span, Text},
    widgets::{Paragraph, Row, Table, Wrap},
};

use crate::{
    admin::status::{BridgeState, problems::Severity},
    cli::bridge_status::{BridgeStatus, Quantiles, Rates, Stream, seconds_between},
    human,
    plain::visible,
};

/// Everything that is shown.
#[derive(Clone, Debug, Default)]
pub struct Screen {
    pub bridges: Vec<Shown>,
    /// The bridge whose details are shown.
    pub selected: usize,
    /// Why the service's name can't be resolved, if it can't.
    pub trouble: Option<String>,
    pub colours: bool,
}

/// One bridge.
#[derive(Clone, Debug)]
pub struct Shown {
    pub url: String,
    /// What it said last.
    pub status: Option<BridgeStatus>,
    /// Why it doesn't answer, and for how many seconds.
    pub gone: Option<(String, u64)>,
}

impl Shown {
    fn word(&self) -> &'static str {
        match (&self.gone, &self.status) {
            (Some(_), _) => "GONE",
            (None, None) => "asking",
            (None, Some(status)) => match (status.state, worst(status)) {
                (BridgeState::NotReady, _) => "NOT READY",
                (BridgeState::Draining, _) => "draining",
                (_, Some(Severity::Critical)) => "CRITICAL",
                (_, Some(Severity::Warning)) | (BridgeState::Impaired, _) => "warning",
                _ => "ok",
            },
        }
    }
}

fn worst(status: &BridgeStatus) -> Option<Severity> {
    let problems = status.problems.iter().flatten();
    problems.map(|problem| problem.severity).min()
}

/// From this height on, empty lines separate the parts.
const ROOMY: u16 = 20;
/// Below this height, refusals are not shown.
const LOW: u16 = 16;

/// Draws the whole screen.
pub fn draw(frame: &mut Frame<'_>, screen: &Screen) {
    let area = frame.area();
    let selected = screen.bridges.get(screen.selected);
    let status = selected.and_then(|shown| shown.status.as_ref());
    let [
        header,
        bridges,
        state,
        _,
        table,
        numbers,
        _,
        problems,
        last,
        footer,
    ] = Layout::vertical(Heights::new(area, screen, status).constraints()).areas(area);
    let paint = Paint(screen.colours);
    draw_header(frame, header, selected);
    draw_bridges(frame, bridges, screen, paint);
    draw_state(frame, state, selected, paint);
    if let Some(status) = status {
        draw_streams(frame, table, status, paint);
        draw_numbers(frame, numbers, status);
        draw_problems(frame, problems, status, paint);
        draw_refusals(frame, last, status);
    }
    draw_footer(frame, footer, screen, paint);
}

/// The heights of the parts. Problems get what is left.
struct Heights {
    header: u16,
    bridges: u16,
    state: u16,
    gap: u16,
    streams: u16,
    numbers: u16,
    refusals: u16,
    footer: u16,
}

impl Heights {
    fn new(area: Rect, screen: &Screen, status: Option<&BridgeStatus>) -> Heights {
        let mut left = area.height;
        // The most important part takes first.
        let mut take = |wanted: usize| {
            let taken = left.min(wanted.try_into().unwrap_or(u16::MAX));
            left -= taken;
            taken
        };
        let (footer, state) = (take(1), take(2));
        let streams = take(status.map_or(0, |status| status.streams.len() + 1));
        let header = take(1);
        let bridges = match screen.bridges.len() {
            0 | 1 => 0,
            count => take((count + 1).min(usize::from(area.height / 3).max(2))),
        };
        let numbers = take(status.map_or(0, |_| if area.width < 100 { 2 } else { 1 }));
        let refusals = match (status, area.height) {
            (Some(status), LOW..) => take((recent(status).len() + 1).min(usize::from(area.height / 4))),
            _ => 0,
        };
        Heights {
            header,
            bridges,
            state,
            gap: u16::from(area.height >= ROOMY),
            streams,
            numbers,
            refusals,
            footer,
        }
    }

    fn constraints(&self) -> [Constraint; 10] {
        let length = Constraint::Length;
        [
            length(self.header),
            length(self.bridges),
            length(self.state),
            length(self.gap),
            length(self.streams),
            length(self.numbers),
            length(self.gap),
            Constraint::Fill(1),
            length(self.refusals),
            length(self.footer),
        ]
    }
}

/// Colours, if they are wanted.
#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn of(self, word: &str) -> Style {
        let colour = match word {
            "ok" | "idle" | "running" => Color::Green,
            "asking" | "info" => return Style::new(),
            "warning" | "draining" => Color::Yellow,
            _ => Color::Red,
        };
        match self.0 {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }
}

fn bold(text: impl Into<String>) -> Span<'static> {
    Span::styled(text.into(), Modifier::BOLD)
}

fn draw_header(frame: &mut Frame<'_>, area: Rect, selected: Option<&Shown>) {
    let mut left = vec![bold("cmc-bridge top")];
    let mut right = String::new();
    if let Some(shown) = selected {
        left.push(Span::raw(format!("  {}", visible(&shown.url))));
        if let Some(status) = &shown.status {
            left.push(Span::raw(format!(
                "  version {}, up {}",
                visible(&status.version),
                human::rough_age(status.uptime_seconds)
            )));
            right = format!("{} UTC", time_of_day(&status.at));
        }
    }
    let [left_area, right_area] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(right.len() as u16 + 1)]).areas(area);
    frame.render_widget(Line::from(left), left_area);
    frame.render_widget(Paragraph::new(right).alignment(Alignment::Right), right_area);
}

/// The numbers in the table of bridges, the most important first: head, width, and value.
type Number = (&'static str, u16, fn(&BridgeStatus) -> String);
const NUMBERS: [Number; 5] = [
    ("BACKLOG", 9, |status| short_count(backlog(status))),
    ("OLDEST", 6, oldest),
    ("TAKEN/S", 7, |status| short_rate(now(status).accepted)),
    ("REFUSED/S", 9, |status| short_rate(now(status).refused)),
    ("SENT/S", 7, |status| short_rate(now(status).delivered)),
];
/// Name and state of a bridge, with the gap between them.
const NAME_AND_STATE: u16 = 30;

fn draw_bridges(frame: &mut Frame<'_>, area: Rect, screen: &Screen, paint: Paint) {
    let mut left = area.width.saturating_sub(NAME_AND_STATE);
    let fits = |(_, width, _): &Number| {
        let fits = left > *width;
        left = left.saturating_sub(width + 1);
        fits
    };
    let numbers: Vec<Number> = NUMBERS.into_iter().take_while(fits).collect();
    let room = area.height.saturating_sub(1) as usize;
    // The selected one stays in view.
    let from = (screen.selected + 1).saturating_sub(room);
    let rows = screen.bridges.iter().enumerate().skip(from).map(|(at, shown)| {
        let mark = if at == screen.selected { ">" } else { " " };
        let name = visible(shown.url.trim_start_matches("http://"));
        let status = shown.status.as_ref().filter(|_| shown.gone.is_none());
        let state = Line::styled(shown.word(), paint.of(shown.word()));
        let values = numbers
            .iter()
            .map(|(_, _, of)| right(status.map_or("-".to_owned(), of)));
        Row::new(
            [Line::raw(format!("{mark} {name}")), state]
                .into_iter()
                .chain(values),
        )
    });
    let heads = numbers.iter().map(|(head, ..)| right(*head));
    let heads = Row::new(
        [Line::raw("  BRIDGE"), Line::raw("STATE")]
            .into_iter()
            .chain(heads),
    );
    let widths = numbers.iter().map(|(_, width, _)| Constraint::Length(*width));
    let widths = [Constraint::Fill(1), Constraint::Length(9)]
        .into_iter()
        .chain(widths);
    frame.render_widget(Table::new(rows, widths).header(heads.style(Modifier::BOLD)), area);
}

fn draw_state(frame: &mut Frame<'_>, area: Rect, selected: Option<&Shown>, paint: Paint) {
    let text = match selected {
        None => Line::raw("No bridge is known yet."),
        Some(shown) => {
            let sentence = match (&shown.gone, &shown.status) {
                (Some((error, seconds)), Some(_)) => {
                    format!(
                        "No status for {}: {error}. Below is what it said last.",
                        human::age(*seconds)
                    )
                }
                (Some((error, seconds)), None) => format!("No status for {}: {error}.", human::age(*seconds)),
                (None, Some(status)) => status.summary.clone(),
                (None, None) => String::new(),
            };
            Line::from(vec![
                Span::styled(shown.word(), paint.of(shown.word()).add_modifier(Modifier::BOLD)),
                Span::raw(format!("  {}", visible(&sentence))),
            ])
        }
    };
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
}

/// The columns of the streams' table, the most important first.
#[derive(Clone, Copy, PartialEq)]
enum StreamColumn {
    Name,
    Lane,
    Backlog,
    Oldest,
    In,
    Out,
    Spool,
    Sync,
    FullIn,
    Topic,
}

impl StreamColumn {
    const ALL: [StreamColumn; 10] = [
        StreamColumn::Name,
        StreamColumn::Lane,
        StreamColumn::Backlog,
        StreamColumn::Oldest,
        StreamColumn::In,
        StreamColumn::Out,
        StreamColumn::Spool,
        StreamColumn::Sync,
        StreamColumn::FullIn,
        StreamColumn::Topic,
    ];

    fn width(self) -> u16 {
        match self {
            StreamColumn::Name => 12,
            StreamColumn::Lane => 15,
            StreamColumn::Backlog => 9,
            StreamColumn::Spool => 5,
            StreamColumn::In | StreamColumn::Out | StreamColumn::FullIn => 6,
            StreamColumn::Oldest => 6,
            StreamColumn::Sync => 14,
            StreamColumn::Topic => 24,
        }
    }

    fn head(self) -> Line<'static> {
        match self {
            StreamColumn::Name => Line::raw("STREAM"),
            StreamColumn::Lane => Line::raw("LANE/BLOCKED BY"),
            StreamColumn::Backlog => right("BACKLOG"),
            StreamColumn::Oldest => right("OLDEST"),
            StreamColumn::In => right("IN/S"),
            StreamColumn::Out => right("OUT/S"),
            StreamColumn::Spool => right("SPOOL"),
            StreamColumn::Sync => right("SYNC P50/P99"),
            StreamColumn::FullIn => right("FULL"),
            StreamColumn::Topic => Line::raw("TOPIC"),
        }
    }

    fn cell(self, stream: &Stream, at: &str, paint: Paint) -> Line<'static> {
        match self {
            StreamColumn::Name => Line::raw(visible(&stream.stream)),
            StreamColumn::Lane => {
                let word = lane(stream);
                Line::styled(visible(word), paint.of(word))
            }
            StreamColumn::Backlog => right(short_count(stream.backlog)),
            StreamColumn::Oldest => right(match &stream.oldest {
                Some(oldest) => human::rough_age(seconds_between(oldest, at)),
                None => "-".to_owned(),
            }),
            StreamColumn::In => right(short_rate(stream.rates.accepted)),
            StreamColumn::Out => right(short_rate(stream.rates.delivered)),
            StreamColumn::Spool => {
                let used = stream.spool_bytes as f64 / stream.spool_limit_bytes.max(1) as f64;
                right(format!("{:.0} %", used * 100.0))
            }
            StreamColumn::Sync => right(times(stream.sync_seconds)),
            StreamColumn::FullIn => right(stream.full_in_seconds.map_or("-".to_owned(), human::rough_age)),
            StreamColumn::Topic => Line::raw(visible(&stream.topic)),
        }
    }
}

/// What a stream is doing, or why not.
fn lane(stream: &Stream) -> &str {
    match (stream.log.as_str(), &stream.lane.reason) {
        ("failed", _) => "failed",
        (_, Some(reason)) => reason,
        ("not_open" | "unreadable", None) => "not open",
        ("full", None) => "full",
        _ => &stream.lane.state,
    }
}

fn draw_streams(frame: &mut Frame<'_>, area: Rect, status: &BridgeStatus, paint: Paint) {
    let mut left = area.width + 1;
    let fits = |column: &StreamColumn| {
        let fits = left > column.width();
        left = left.saturating_sub(column.width() + 1);
        fits
    };
    let columns: Vec<_> = StreamColumn::ALL.into_iter().take_while(fits).collect();
    let rows = status.streams.iter().map(|stream| {
        let cells = columns
            .iter()
            .map(|column| column.cell(stream, &status.at, paint));
        Row::new(cells)
    });
    let heads = Row::new(columns.iter().map(|column| column.head())).style(Modifier::BOLD);
    let widths = columns.iter().map(|column| Constraint::Length(column.width()));
    frame.render_widget(Table::new(rows, widths).header(heads), area);
}

fn draw_numbers(frame: &mut Frame<'_>, area: Rect, status: &BridgeStatus) {
    let rates = now(status);
    let webhooks = format!(
        "Webhooks {}/s taken, {}/s refused",
        short_rate(rates.accepted),
        short_rate(rates.refused)
    );
    let answers = format!("answers p50/p99 {}", times(status.acknowledgement_seconds));
    let disk = status.disk.map_or("disk unknown".to_owned(), |disk| {
        format!(
            "disk {} of {} free",
            human::size(disk.free_bytes),
            human::size(disk.total_bytes)
        )
    });
    let text = match area.height {
        1 => Text::raw(format!("{webhooks} | {answers} | {disk}")),
        _ => Text::from(vec![
            Line::raw(webhooks),
            Line::raw(format!("{answers} | {disk}")),
        ]),
    };
    frame.render_widget(text, area);
}

fn draw_problems(frame: &mut Frame<'_>, area: Rect, status: &BridgeStatus, paint: Paint) {
    let mut lines = Vec::new();
    // A long cause must not push out what to do; `why` has all of it.
    let most = usize::from(area.width) * 2;
    match &status.problems {
        None => lines.push(Line::raw(
            "This version of the bridge does not say what is wrong.",
        )),
        Some(problems) if problems.is_empty() => lines.push(Line::raw("Nothing is wrong.")),
        Some(problems) => {
            for problem in problems {
                let word = problem.severity.name();
                lines.push(Line::from(vec![
                    Span::styled(word, paint.of(word).add_modifier(Modifier::BOLD)),
                    Span::raw(format!(
                        "  {} ({})",
                        cut(&visible(&problem.what), most.saturating_sub(30)),
                        human::age(seconds_between(&problem.since, &status.at))
                    )),
                ]));
                lines.push(Line::from(vec![
                    bold("  do  "),
                    Span::raw(visible(&problem.action)),
                ]));
            }
        }
    }
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
}

/// The last refusals and dead letters: the time, what, and how many.
fn recent(status: &BridgeStatus) -> Vec<(&str, String, u64)> {
    let refusals = status.refusals.iter().map(|refusal| {
        let cause = refusal
            .cause
            .as_ref()
            .map_or(String::new(), |cause| format!(": {cause}"));
        (
            refusal.last.as_str(),
            format!("{}{cause}", refusal.outcome),
            refusal.count,
        )
    });
    let letters = status.dead_letters.iter().map(|letter| {
        let stream = letter
            .stream
            .as_ref()
            .map_or(String::new(), |stream| format!(" of {stream}"));
        (
            letter.at.as_str(),
            format!("dead letter{stream}: {}", letter.reason),
            letter.count,
        )
    });
    let mut all: Vec<_> = refusals.chain(letters).collect();
    all.sort_by(|left, right| right.0.cmp(left.0));
    all
}

fn draw_refusals(frame: &mut Frame<'_>, area: Rect, status: &BridgeStatus) {
    let mut lines = vec![Line::from(bold("LAST REFUSALS AND DEAD LETTERS"))];
    let recent = recent(status);
    if recent.is_empty() {
        lines = vec![Line::raw("No refusal and no dead letter since the start.")];
    }
    lines.extend(recent.into_iter().map(|(time, what, count)| {
        let ago = human::rough_age(seconds_between(time, &status.at));
        Line::raw(format!(
            "{} {ago:>7} ago  {:>7}  {}",
            time_of_day(time),
            short_count(count),
            visible(&what)
        ))
    }));
    frame.render_widget(Text::from(lines), area);
}

fn draw_footer(frame: &mut Frame<'_>, area: Rect, screen: &Screen, paint: Paint) {
    let line = match (&screen.trouble, screen.bridges.len()) {
        (Some(trouble), _) => Line::styled(visible(trouble), paint.of("trouble")),
        (None, 0 | 1) => Line::raw("q: end"),
        (None, count) => Line::raw(format!("q: end   up, down: choose one of {count} bridges")),
    };
    frame.render_widget(line, area);
}

/// The beginning of a text, with a mark if there is more.
fn cut(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn right(text: impl Into<String>) -> Line<'static> {
    Line::raw(text.into()).right_aligned()
}

/// At most nine characters: `1,234,567`, then `12.3 M`. A column must not cut a number.
pub(super) fn short_count(count: u64) -> String {
    match count {
        0..10_000_000 => human::count(count),
        _ => format!("{:.1} M", count as f64 / 1e6),
    }
}

/// At most six characters for any rate that a bridge can reach: `12,345`, then `123 k`.
pub(super) fn short_rate(rate: f64) -> String {
    match rate {
        f64::MIN_POSITIVE..0.05 => "<0.1".to_owned(),
        ..99_999.5 => human::rate(rate),
        ..999_500.0 => format!("{:.0} k", rate / 1e3),
        _ => format!("{:.0} M", rate / 1e6),
    }
}

fn now(status: &BridgeStatus) -> Rates {
    status.rates.last().copied().unwrap_or_default()
}

fn backlog(status: &BridgeStatus) -> u64 {
    status.streams.iter().map(|stream| stream.backlog).sum()
}

fn oldest(status: &BridgeStatus) -> String {
    let of_streams = status.streams.iter().filter_map(|stream| stream.oldest.as_ref());
    let oldest = of_streams.map(|oldest| seconds_between(oldest, &status.at)).max();
    oldest.map_or("-".to_owned(), human::rough_age)
}

fn times(quantiles: Option<Quantiles>) -> String {
    let latency = |seconds: f64| human::latency(Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0)));
    quantiles.map_or("-".to_owned(), |q| {
        format!("{}/{}", latency(q.p50), latency(q.p99))
    })
}

/// `09:03:05` of `2026-10-01T09:03:05.5Z`.
fn time_of_day(time: &str) -> String {
    let time = time.parse::<jiff::Timestamp>();
    time.map_or(String::new(), |time| time.strftime("%T").to_string())
}
