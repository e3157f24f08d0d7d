//! What an answer's headers say of limits at the provider: how much is left, and when it is more.
//! Must not fail: a header that is written in a new way says nothing.

use dispatch_core::{Millis, native::Window};
use hyper::HeaderMap;

const WINDOWS_MAX: usize = 16;

/// How long until the same may be asked again.
pub(super) fn retry_at(headers: &HeaderMap, now: Millis) -> Option<Millis> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|text| text.parse::<f64>().ok()) {
        return after(now, ms);
    }
    if let Some(text) = text("retry-after") {
        return match text.parse::<f64>() {
            Ok(seconds) => after(now, seconds * 1000.0),
            Err(_) => date(text),
        };
    }
    // Of windows that are used up, the last one to open again.
    let empty = windows(headers, now);
    let empty = empty.iter().filter(|window| window.remaining == Some(0));
    empty.filter_map(|window| window.resets_at).max()
}

pub(super) fn windows(headers: &HeaderMap, now: Millis) -> Vec<Window> {
    let mut found: Vec<Window> = Vec::new();
    for (name, value) in headers {
        let Some((window, what)) = window_of(name.as_str()) else {
            continue;
        };
        let Ok(value) = value.to_str() else { continue };
        let known = found.iter().position(|each| each.name == window);
        let at = match known {
            Some(at) => at,
            None if found.len() < WINDOWS_MAX => {
                found.push(Window {
                    name: window.to_owned(),
                    limit: None,
                    remaining: None,
                    resets_at: None,
                });
                found.len() - 1
            }
            None => continue,
        };
        let window = &mut found[at];
        match what {
            What::Limit => window.limit = count(value),
            What::Remaining => window.remaining = count(value),
            What::Reset => window.resets_at = reset(value, now),
        }
    }
    found.retain(|window| window.limit.is_some() || window.remaining.is_some());
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

enum What {
    Limit,
    Remaining,
    Reset,
}

/// `anthropic-ratelimit-WINDOW-WHAT`, `x-ratelimit-WHAT-WINDOW`.
fn window_of(name: &str) -> Option<(&str, What)> {
    let what = |word: &str| match word {
        "limit" => Some(What::Limit),
        "remaining" => Some(What::Remaining),
        "reset" => Some(What::Reset),
        _ => None,
    };
    if let Some(rest) = name.strip_prefix("anthropic-ratelimit-") {
        let (window, word) = rest.rsplit_once('-')?;
        return Some((window, what(word)?));
    }
    let rest = name.strip_prefix("x-ratelimit-")?;
    let (word, window) = rest.split_once('-').unwrap_or((rest, "requests"));
    Some((window, what(word)?))
}

fn count(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn after(now: Millis, ms: f64) -> Option<Millis> {
    const YEAR_MS: Millis = 366 * 24 * 3600 * 1000;
    let ms = whole(ms).filter(|ms| *ms <= YEAR_MS)?;
    Some(now + ms)
}

fn whole(ms: f64) -> Option<Millis> {
    const MS_MAX: f64 = 1e14;
    if !(0.0..=MS_MAX).contains(&ms) {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be in a range that fits"
    )]
    let ms = ms.ceil() as Millis;
    Some(ms)
}

/// A time (RFC 3339), seconds or milliseconds since 1970, or a span: `6m0s`, `1.5s`, `20ms`, `30`.
pub(crate) fn reset(text: &str, now: Millis) -> Option<Millis> {
    const SINCE_1970_MIN: f64 = 1e9;
    const SINCE_1970_MS_MIN: f64 = 1e11;
    let text = text.trim();
    if let Ok(number) = text.parse::<f64>() {
        return if number >= SINCE_1970_MS_MIN {
            whole(number)
        } else if number >= SINCE_1970_MIN {
            whole(number * 1000.0)
        } else {
            after(now, number * 1000.0)
        };
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Millis::try_from(time.as_millisecond()).ok();
    }
    after(now, span_ms(text)?)
}

fn span_ms(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic());
        let (unit, after) = after.split_at(letters.unwrap_or(after.len()));
        let unit_ms = match unit {
            "ms" => 1.0,
            "s" => 1000.0,
            "m" => 60_000.0,
            "h" => 3_600_000.0,
            "d" => 86_400_000.0,
            _ => return None,
        };
        sum += number.parse::<f64>().ok()? * unit_ms;
        rest = after;
    }
    Some(sum)
}

fn date(text: &str) -> Option<Millis> {
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text);
    Millis::try_from(time.ok()?.as_millisecond()).ok()
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    const NOW: Millis = 1_800_000_000_000;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::from_static(name);
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn every_way_of_saying_later() {
        for (name, value, expected) in [
            ("retry-after", "30", Some(NOW + 30_000)),
            ("retry-after", "0.5", Some(NOW + 500)),
            ("retry-after-ms", "250", Some(NOW + 250)),
            (
                "retry-after",
                "Fri, 15 Jan 2027 08:00:10 GMT",
                Some(NOW + 10_000),
            ),
            ("retry-after", "-5", None),
            ("retry-after", "1e300", None),
            ("retry-after", "soon", None),
            ("x-other", "1", None),
        ] {
            assert_eq!(
                retry_at(&headers(&[(name, value)]), NOW),
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn an_empty_window_says_when() {
        let told = headers(&[
            ("anthropic-ratelimit-requests-remaining", "12"),
            ("anthropic-ratelimit-requests-reset", "2027-01-15T09:00:00Z"),
            ("anthropic-ratelimit-input-tokens-remaining", "0"),
            (
                "anthropic-ratelimit-input-tokens-reset",
                "2027-01-15T08:01:00Z",
            ),
        ]);
        assert_eq!(retry_at(&told, NOW), Some(NOW + 60_000));
    }

    #[test]
    fn windows_of_both_families() {
        let told = headers(&[
            ("anthropic-ratelimit-input-tokens-limit", "30000"),
            ("anthropic-ratelimit-input-tokens-remaining", "29000"),
            (
                "anthropic-ratelimit-input-tokens-reset",
                "2027-01-15T08:00:01Z",
            ),
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "59"),
            ("x-ratelimit-reset-requests", "1m0.5s"),
            ("x-ratelimit-remaining-tokens", "-1"),
            ("anthropic-ratelimit-unified-status", "allowed"),
            ("anthropic-ratelimit-unified-5h-reset", "1800000100"),
        ]);
        let window = |name: &str, limit, remaining, resets_at| Window {
            name: name.to_owned(),
            limit: Some(limit),
            remaining: Some(remaining),
            resets_at: Some(resets_at),
        };
        let expected = [
            window("input-tokens", 30_000, 29_000, NOW + 1000),
            window("requests", 60, 59, NOW + 60_500),
        ];
        assert_eq!(windows(&told, NOW), expected);
        assert_eq!(reset("1800000100", NOW), Some(NOW + 100_000));
        assert_eq!(reset("1800000100000", NOW), Some(NOW + 100_000));
        assert_eq!(reset("x", NOW), None);
        assert_eq!(reset("5", NOW), Some(NOW + 5000));
    }
}
