//! Durations, sizes, rates and shares, as they are written in the configuration.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A length of time: a whole number and `ms`, `s`, `m`, `h` or `d`. `250ms`, `30s`, `5m`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// An amount of memory: a whole number and `B`, `KiB`, `MiB` or `GiB`. `64KiB`, `1MiB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// So many in so much time: `100/s`, `30/min`, `1000/h`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many, at least 1.
    pub count: u32,
    /// In how much time.
    pub per: Duration,
}

/// A share: `0%` to `100%`, in steps of 0.1 %. Kept in thousandths.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u16);

fn split(text: &str) -> (&str, &str) {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(at)
}

impl Span {
    /// In seconds, as HTTP counts them, rounded up: nobody is told to come back too early.
    pub fn whole_seconds(self) -> u32 {
        u32::try_from(self.0.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
    }
}

impl std::str::FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration; write a whole number and ms, s, m, h or d, such as 30s");
        let (number, unit) = split(text);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let ms_each: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        number.checked_mul(ms_each).map(|ms| Span(Duration::from_millis(ms))).ok_or_else(wrong)
    }
}

impl std::str::FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size; write a whole number and B, KiB, MiB or GiB, such as 64KiB");
        let (number, unit) = split(text);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let shift = match unit {
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => return Err(wrong()),
        };
        number.checked_mul(1 << shift).map(Size).ok_or_else(wrong)
    }
}

impl std::str::FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a rate; write a whole number, a slash and s, min or h, such as 100/s");
        let (number, unit) = split(text);
        let count: u32 = number.parse().map_err(|_| wrong())?;
        let per = match unit {
            "/s" => 1,
            "/min" => 60,
            "/h" => 3600,
            _ => return Err(wrong()),
        };
        if count == 0 {
            return Err(format!("{text:?} lets nothing through; the least rate is 1"));
        }
        Ok(Rate { count, per: Duration::from_secs(per) })
    }
}

impl std::str::FromStr for Percent {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a share; write 0% to 100%, such as 20% or 0.5%");
        let number = text.strip_suffix('%').ok_or_else(wrong)?;
        let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
        if tenths.len() != 1 || whole.is_empty() || whole.len() > 3 || !whole.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let thousandths =
            whole.parse::<u16>().map_err(|_| wrong())? * 10 + tenths.parse::<u16>().map_err(|_| wrong())?;
        if thousandths > 1000 { Err(wrong()) } else { Ok(Percent(thousandths)) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        for (unit, each) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
            if ms >= each && ms.is_multiple_of(each) {
                return write!(f, "{}{unit}", ms / each);
            }
        }
        write!(f, "{ms}ms")
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if self.0 >> shift > 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per.as_secs() {
            60 => "min",
            3600 => "h",
            _ => "s",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 % 10 {
            0 => write!(f, "{}%", self.0 / 10),
            tenths => write!(f, "{}.{tenths}%", self.0 / 10),
        }
    }
}

macro_rules! from_text {
    ($type:ident, $expecting:literal) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct TextVisitor;
                impl Visitor<'_> for TextVisitor {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: de::Error>(self, v: &str) -> Result<$type, E> {
                        v.parse().map_err(E::custom)
                    }
                }
                d.deserialize_any(TextVisitor)
            }
        }
    };
}

from_text!(Span, "a duration with its unit, such as 30s");
from_text!(Size, "a size with its unit, such as 64KiB");
from_text!(Rate, "a rate, such as 100/s");
from_text!(Percent, "a share, such as 20%");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_shown() {
        for text in ["250ms", "30s", "5m", "1h", "2d"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        for text in ["17B", "64KiB", "1MiB", "2GiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for text in ["100/s", "30/min", "5/h"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for text in ["0%", "20%", "0.5%", "100%"] {
            assert_eq!(text.parse::<Percent>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn whole_seconds_are_never_too_few() {
        for (text, seconds) in [("1ms", 1), ("1s", 1), ("1001ms", 2), ("1500ms", 2), ("2m", 120), ("60000d", u32::MAX)]
        {
            assert_eq!(text.parse::<Span>().unwrap().whole_seconds(), seconds, "{text}");
        }
    }

    #[test]
    fn a_wrong_unit_is_refused_with_the_right_ones() {
        assert!("30".parse::<Span>().unwrap_err().contains("30s"));
        assert!("30sec".parse::<Span>().is_err());
        assert!("64KB".parse::<Size>().unwrap_err().contains("KiB"));
        assert!("99999999999999999999GiB".parse::<Size>().is_err());
        assert!("0/s".parse::<Rate>().is_err());
        assert!("101%".parse::<Percent>().is_err());
        assert!("1.25%".parse::<Percent>().is_err());
    }
}
