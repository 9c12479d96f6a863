//! Names that an operator gives to things, each a type of its own, so that one can't be passed for another.

use std::fmt;
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// Longest name, in bytes. Names become metric labels and log fields, so they stay short.
pub const NAME_LENGTH_MAX: usize = 64;

fn check(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a name can't be empty".into());
    }
    if name.len() > NAME_LENGTH_MAX {
        return Err(format!("name of {} bytes; the longest is {NAME_LENGTH_MAX}", name.len()));
    }
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))) {
        Some(c) => Err(format!("character {c:?} in name {name:?}; use letters, digits, '-', '_' and '.'")),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Takes a name of 1 to [`NAME_LENGTH_MAX`] letters, digits, `-`, `_` and `.`.
            ///
            /// # Errors
            /// Says which character or length is wrong.
            pub fn new(name: &str) -> Result<Self, String> {
                check(name).map(|()| Self(name.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct NameVisitor;
                impl Visitor<'_> for NameVisitor {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                        f.write_str("a name")
                    }
                    fn visit_str<E: de::Error>(self, v: &str) -> Result<$type, E> {
                        $type::new(v).map_err(E::custom)
                    }
                }
                d.deserialize_str(NameVisitor)
            }
        }
    };
}

name!(
    /// A route's name: `routes[].name`.
    RouteName
);
name!(
    /// An upstream's name: `upstreams[].name`.
    UpstreamName
);
name!(
    /// A peer's name: `peers[].name`.
    PeerName
);
name!(
    /// A listener's name: `listeners[].name`.
    ListenerName
);
name!(
    /// A request rule's name: `routes[].request_rules[].name`.
    RuleName
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_odd_characters_says_which() {
        assert!(RouteName::new("a b").unwrap_err().contains("' '"));
        assert!(RouteName::new("").is_err());
        assert!(RouteName::new(&"x".repeat(65)).is_err());
        assert_eq!(RouteName::new("hive-paris_1.eu").unwrap().as_str(), "hive-paris_1.eu");
    }
}
