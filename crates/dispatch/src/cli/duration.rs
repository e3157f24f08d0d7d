//! `7d`, `12h`, `30m`, `45s` to milliseconds. Must not take a number without a unit, but 0.

pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let rule = "a number and d, h, m or s, as in 7d or 12h";
    if text == "0" {
        return Ok(0);
    }
    let unit_ms = match text.chars().last() {
        Some('d') => 86_400_000,
        Some('h') => 3_600_000,
        Some('m') => 60_000,
        Some('s') => 1000,
        _ => return Err(rule.into()),
    };
    let number: u64 = text[..text.len() - 1]
        .parse()
        .map_err(|_| rule.to_owned())?;
    number
        .checked_mul(unit_ms)
        .ok_or_else(|| "it is too long".into())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn units_are_needed() {
        assert_eq!(parse("7d"), Ok(7 * 86_400_000));
        assert_eq!(parse("12h"), Ok(12 * 3_600_000));
        assert_eq!(parse("0"), Ok(0));
        for bad in [
            "",
            "7",
            "d",
            "-1d",
            "1.5h",
            "7ü",
            "99999999999999999999d",
            "18446744073709551615d",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
