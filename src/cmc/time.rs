//! `ce_time`: the member `created` with the offset that its zone had at the time.
//!
//! `created` is `YYYY-MM-DD HH:MM:SS` and names no zone. Its digits are kept and the offset is added, always as
//! digits (`+00:00`, never `Z`). If the clocks of the zone showed the time twice, the first one is meant; if they
//! skipped it, the offset before the gap applies. Anything but a real date and time in exactly that form has no
//! `ce_time`, nor does a time at which the zone's offset was not a whole number of minutes (local mean time, in the
//! nineteenth century).

use jiff::{
    civil::DateTime,
    tz::{AmbiguousOffset, Offset, TimeZone},
};

const CREATED_LEN: usize = 19;
/// Length of a `ce_time`.
const TIME_LEN: usize = CREATED_LEN + 6;

/// Makes `ce_time`s in one zone, remembering the last one: most neighbours in a webhook were created in the same
/// second.
pub(super) struct Clock<'z> {
    zone: &'z TimeZone,
    created: [u8; CREATED_LEN],
    time: Option<[u8; TIME_LEN]>,
}

impl<'z> Clock<'z> {
    pub fn new(zone: &'z TimeZone) -> Self {
        Clock {
            zone,
            created: [0; CREATED_LEN],
            time: None,
        }
    }

    /// The `ce_time` of this `created`, as ASCII.
    pub fn time(&mut self, created: &str) -> Option<&[u8]> {
        let created: &[u8; CREATED_LEN] = created.as_bytes().try_into().ok()?;
        if *created != self.created {
            self.created = *created;
            self.time = convert(created, self.zone);
        }
        self.time.as_ref().map(|time| &time[..])
    }
}

fn convert(created: &[u8; CREATED_LEN], zone: &TimeZone) -> Option<[u8; TIME_LEN]> {
    let offset = offset_at(parse(created)?, zone).seconds();
    if offset % 60 != 0 {
        return None;
    }
    let minutes = offset.unsigned_abs() / 60;
    let mut time = [0; TIME_LEN];
    time[..CREATED_LEN].copy_from_slice(created);
    time[10] = b'T';
    time[19] = if offset < 0 { b'-' } else { b'+' };
    time[20..22].copy_from_slice(&two_digits(minutes / 60));
    time[22] = b':';
    time[23..25].copy_from_slice(&two_digits(minutes % 60));
    Some(time)
}

/// The date and time that a `created` names, if it has exactly the sender's form.
pub(super) fn civil(created: &str) -> Option<DateTime> {
    parse(created.as_bytes().try_into().ok()?)
}

fn parse(created: &[u8; CREATED_LEN]) -> Option<DateTime> {
    for (at, separator) in [(4, b'-'), (7, b'-'), (10, b' '), (13, b':'), (16, b':')] {
        if created[at] != separator {
            return None;
        }
    }
    let number = |from: usize| {
        let (tens, ones) = (
            created[from].wrapping_sub(b'0'),
            created[from + 1].wrapping_sub(b'0'),
        );
        (tens <= 9 && ones <= 9).then(|| (tens * 10 + ones) as i8)
    };
    let year = i16::from(number(0)?) * 100 + i16::from(number(2)?);
    DateTime::new(
        year,
        number(5)?,
        number(8)?,
        number(11)?,
        number(14)?,
        number(17)?,
        0,
    )
    .ok()
}

fn offset_at(time: DateTime, zone: &TimeZone) -> Offset {
    match zone.to_ambiguous_timestamp(time).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset,
        AmbiguousOffset::Gap { before, .. } | AmbiguousOffset::Fold { before, .. } => before,
    }
}

fn two_digits(number: u32) -> [u8; 2] {
    [b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_what_is_none() {
        for (zone, created, expected) in [
            (
                "Asia/Tokyo",
                "2026-10-01 09:15:02",
                Some("2026-10-01T09:15:02+09:00"),
            ),
            ("UTC", "2026-10-01 09:15:02", Some("2026-10-01T09:15:02+00:00")),
            (
                "Asia/Kathmandu",
                "2026-10-01 00:00:00",
                Some("2026-10-01T00:00:00+05:45"),
            ),
            (
                "America/St_Johns",
                "2026-01-01 23:59:59",
                Some("2026-01-01T23:59:59-03:30"),
            ),
            (
                "Europe/Berlin",
                "2024-02-29 12:00:00",
                Some("2024-02-29T12:00:00+01:00"),
            ),
            (
                "Europe/Berlin",
                "2026-07-01 12:00:00",
                Some("2026-07-01T12:00:00+02:00"),
            ),
            // The clocks showed it twice.
            (
                "Europe/Berlin",
                "2026-10-25 02:30:00",
                Some("2026-10-25T02:30:00+02:00"),
            ),
            // The clocks skipped it.
            (
                "Europe/Berlin",
                "2026-03-29 02:30:00",
                Some("2026-03-29T02:30:00+01:00"),
            ),
            ("Asia/Tokyo", "2026-02-29 00:00:00", None),
            ("Asia/Tokyo", "2026-13-01 00:00:00", None),
            ("Asia/Tokyo", "2026-10-00 00:00:00", None),
            ("Asia/Tokyo", "2026-10-01 24:00:00", None),
            ("Asia/Tokyo", "2026-10-01 23:59:60", None),
            ("Asia/Tokyo", "2026-10-01T09:15:02", None),
            ("Asia/Tokyo", "2026-10-01 09:15:02Z", None),
            ("Asia/Tokyo", "2026-10-01 09:15", None),
            ("Asia/Tokyo", "2026-10-01 9:15:002", None),
            ("Asia/Tokyo", "2026-10-01 +9:15:02", None),
            ("Asia/Tokyo", "0000-00-00 00:00:00", None),
            ("Asia/Tokyo", "1880-01-01 00:00:00", None),
            ("UTC", "0000-01-01 00:00:00", Some("0000-01-01T00:00:00+00:00")),
            ("UTC", "9999-12-31 23:59:59", Some("9999-12-31T23:59:59+00:00")),
            ("Asia/Tokyo", "", None),
            ("Asia/Tokyo", "二〇二六年十月一日", None),
        ] {
            let zone = TimeZone::get(zone).unwrap();
            let mut clock = Clock::new(&zone);
            for _ in 0..2 {
                let time = clock.time(created).map(|time| std::str::from_utf8(time).unwrap());
                assert_eq!(time, expected, "{created}");
            }
        }
    }

    #[test]
    fn a_clock_that_remembers_never_mixes_times_up() {
        let zone = TimeZone::get("Asia/Tokyo").unwrap();
        let mut clock = Clock::new(&zone);
        for _ in 0..2 {
            assert_eq!(
                clock.time("2026-10-01 09:15:02"),
                Some(&b"2026-10-01T09:15:02+09:00"[..])
            );
            assert_eq!(clock.time("2026-10-01 09:15:63"), None);
            assert_eq!(
                clock.time("2026-10-01 09:15:03"),
                Some(&b"2026-10-01T09:15:03+09:00"[..])
            );
        }
    }
}
