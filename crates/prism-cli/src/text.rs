//! How values are read from and shown to people.

use std::time::Duration;

use jiff::Timestamp;
pub use prism_proto::text::safe;

/// A point in time in UTC, in seconds; `-` if absent or out of range.
pub fn time(at: Option<&prost_types::Timestamp>) -> String {
    at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok())
        .map_or_else(|| "-".to_owned(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// What a key is at this moment: revoked, expired or valid.
pub fn key_state(revoked: bool, expires_at: Option<&prost_types::Timestamp>) -> &'static str {
    let end = expires_at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok());
    match (revoked, end) {
        (true, _) => "revoked",
        (false, Some(end)) if end <= Timestamp::now() => "expired",
        (false, _) => "valid",
    }
}

/// A point in time in UTC, in milliseconds; `-` if absent or out of range.
pub fn precise_time(at: Option<&prost_types::Timestamp>) -> String {
    at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok())
        .map_or_else(|| "-".to_owned(), |at| at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
}

/// Bytes with a binary unit, such as `1.5 MiB`.
pub fn bytes(count: i64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = UNITS[0];
    for next in UNITS.into_iter().skip(1) {
        if value.abs() < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

/// A limit, of which 0 means none.
pub fn limit(limit: i64) -> String {
    if limit == 0 { "unlimited".to_owned() } else { limit.to_string() }
}

/// The text, or `-` if it is empty.
pub fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// `yes` or `no`.
pub fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// An enum value as people write it: `ACCESS_PATTERN_KEY_VALUE` without `ACCESS_PATTERN_` is
/// `key-value`.
pub fn short_name(full: &str, prefix: &str) -> String {
    full.strip_prefix(prefix).unwrap_or(full).to_lowercase().replace('_', "-")
}

/// Reads a duration such as `90s`, `5m` or `1h30m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 90s, 5m or 2h"))
}

/// Reads a point in time: RFC 3339, such as `2026-03-01T12:00:00Z`.
pub fn parse_time(text: &str) -> Result<prost_types::Timestamp, String> {
    text.parse::<Timestamp>()
        .map(to_proto)
        .map_err(|_| "not a time; write RFC 3339, for example 2026-03-01T12:00:00Z".to_owned())
}

/// Reads RFC 3339, or a duration before now.
pub fn parse_past(text: &str) -> Result<prost_types::Timestamp, String> {
    parse_time(text).or_else(|_| {
        humantime::parse_duration(text)
            .map_err(drop)
            .and_then(|ago| shifted(ago, false))
            .map_err(|()| "neither a time (2026-03-01T12:00:00Z) nor how long ago (90s, 5m, 2h)".to_owned())
    })
}

/// Reads RFC 3339, or a duration from now.
pub fn parse_future(text: &str) -> Result<prost_types::Timestamp, String> {
    parse_time(text).or_else(|_| {
        humantime::parse_duration(text)
            .map_err(drop)
            .and_then(|ahead| shifted(ahead, true))
            .map_err(|()| "neither a time (2026-03-01T12:00:00Z) nor how long from now (90s, 5m, 2h)".to_owned())
    })
}

/// Reads a size in bytes, with an optional unit: `1048576`, `512KiB`, `10MiB`, `2GiB`, `1TiB`.
pub fn parse_size(text: &str) -> Result<i64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor = match unit.trim() {
        "" | "B" => Some(1_i64),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        "TiB" => Some(1 << 40),
        _ => None,
    };
    factor
        .zip(digits.parse::<i64>().ok())
        .and_then(|(factor, count)| count.checked_mul(factor))
        .ok_or_else(|| "not a size; write bytes or a number with B, KiB, MiB, GiB or TiB".to_owned())
}

/// The duration for the wire.
pub fn duration_to_proto(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos() as i32,
    }
}

fn shifted(by: Duration, ahead: bool) -> Result<prost_types::Timestamp, ()> {
    let now = Timestamp::now();
    let shifted = if ahead { now.checked_add(by) } else { now.checked_sub(by) };
    shifted.map(to_proto).map_err(drop)
}

fn to_proto(at: Timestamp) -> prost_types::Timestamp {
    // The wire wants nanoseconds that count forward, also before 1970.
    let (seconds, nanos) = (at.as_second(), at.subsec_nanosecond());
    if nanos < 0 {
        prost_types::Timestamp { seconds: seconds - 1, nanos: nanos + 1_000_000_000 }
    } else {
        prost_types::Timestamp { seconds, nanos }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_revoked_expired_or_valid() {
        let at = |seconds| prost_types::Timestamp { seconds, nanos: 0 };
        assert_eq!(key_state(false, None), "valid");
        assert_eq!(key_state(false, Some(&at(1))), "expired");
        assert_eq!(key_state(false, Some(&at(100_000_000_000))), "valid");
        assert_eq!(key_state(true, Some(&at(1))), "revoked");
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("1024"), Ok(1024));
        assert_eq!(parse_size("2KiB"), Ok(2048));
        assert_eq!(parse_size("3 MiB"), Ok(3 << 20));
        assert!(parse_size("-1").is_err());
        assert!(parse_size("10MB").is_err());
        assert!(parse_size("").is_err());
        assert!(parse_size("9223372036854775807KiB").is_err());
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1536), "1.5 KiB");
    }

    #[test]
    fn times() {
        let at = parse_time("2026-03-01T12:00:00.25+01:00").unwrap();
        assert_eq!(precise_time(Some(&at)), "2026-03-01T11:00:00.250Z");
        assert_eq!(time(Some(&at)), "2026-03-01T11:00:00Z");
        assert_eq!(time(None), "-");
        assert_eq!(
            parse_time("1969-12-31T23:59:59.5Z").unwrap(),
            prost_types::Timestamp { seconds: -1, nanos: 500_000_000 }
        );
        let now = Timestamp::now().as_second();
        assert!((now - parse_past("1h").unwrap().seconds - 3600).abs() < 5);
        assert!((parse_future("1h").unwrap().seconds - now - 3600).abs() < 5);
        assert!(parse_past("yesterday").is_err());
        assert!(parse_duration("5").is_err());
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
    }

    #[test]
    fn names() {
        assert_eq!(short_name("ACCESS_PATTERN_KEY_VALUE", "ACCESS_PATTERN_"), "key-value");
        assert_eq!(or_dash(""), "-");
        assert_eq!(limit(0), "unlimited");
        assert_eq!(limit(7), "7");
    }
}
