//! Points in time as people write them, in UTC.

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// Milliseconds since 1970 as `2026-11-28 17:31 UTC`.
///
/// ```
/// # use tidegate_sdk::date;
/// assert_eq!(date::show(1_795_887_060_000), "2026-11-28 17:31 UTC");
/// ```
pub fn show(ms: u64) -> String {
    let (year, month, day) = civil(ms / DAY_MS);
    let minutes = ms % DAY_MS / 60_000;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

/// Reads a date of RFC 3339, with or without a time (`2026-11-28T17:31:00.5Z`, `2026-11-28T18:31:00+01:00`,
/// `2026-11-28`), from 1970 on. Gives milliseconds since 1970; fractions of a second do not count.
pub fn parse(text: &str) -> Option<u64> {
    let number = |text: &str, len: usize| {
        (text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse::<u64>().ok())?
    };
    let date = text.get(..10)?;
    let mut parts = date.split('-');
    let (year, month, day) = (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let midnight_ms = days(year, month, day) * DAY_MS;
    let Some(time) = text[10..].strip_prefix(['T', 't', ' ']) else {
        return (text.len() == 10).then_some(midnight_ms);
    };
    let clock = time.get(..8)?;
    let mut parts = clock.split(':');
    let (hour, minute, second) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let zone = match time[8..].strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|byte: char| byte.is_ascii_digit()),
        None => &time[8..],
    };
    let local_ms = midnight_ms + ((hour * 60 + minute) * 60 + second) * 1000;
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    if zone.eq_ignore_ascii_case("z") {
        return Some(local_ms);
    }
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let offset_ms = (number(hours, 2)? * 60 + number(minutes, 2)?) * 60_000;
    match zone.as_bytes()[0] {
        b'+' => local_ms.checked_sub(offset_ms),
        b'-' => Some(local_ms + offset_ms),
        _ => None,
    }
}

/// Year, month and day of a number of days since 1970.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": years that begin in March, in eras of 400.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Days since 1970 of a year from 1970 on, a month and a day.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, year_of_era) = (year / 400, year % 400);
    let month_from_march = (month + 9) % 12;
    let of_year = (153 * month_from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_and_shown() {
        for (text, secs) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56Z", 951_827_696),
            ("2026-11-28T17:31:00.123456789Z", 1_795_887_060),
            ("2026-11-28T18:31:00+01:00", 1_795_887_060),
            ("2026-11-28t09:31:00-08:00", 1_795_887_060),
            ("2026-11-28", 1_795_824_000),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
        ] {
            assert_eq!(parse(text), Some(secs * 1000), "{text}");
        }
        assert_eq!(show(951_827_696_000), "2000-02-29 12:34 UTC");
        for day in 0..100_000 {
            let text = show(day * DAY_MS);
            assert_eq!(parse(&text[..10]), Some(day * DAY_MS), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_is_none() {
        for text in [
            "",
            "2026",
            "2026-13-01",
            "2026-00-01",
            "2026-01-00",
            "1969-12-31",
            "2026-1-1",
            "2026-11-28T",
            "2026-11-28T17:31",
            "2026-11-28T17:31:00",
            "2026-11-28T24:00:00Z",
            "2026-11-28T17:31:00+1",
            "2026-11-28T17:31:00é",
            "é026-11-281",
            "2026-11-28x",
            "yesterday and before",
            "1970-01-01T00:00:00+01:00",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
